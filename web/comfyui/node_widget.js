/** What elements on a node need: to be left alone by the canvas's own keys and gestures, and a node of their size. */

import { app } from "../../../scripts/app.js";
import { on } from "../panel/dom.js";

const HANDS = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
const MIDDLE = 1;
const MIDDLE_HELD = 4;

/**
 * Keeps what is done in an element from the canvas, but for moving and zooming it.
 * @param {HTMLElement} root
 */
export function forwardToCanvas(root) {
  on(root, "keydown", (event) => {
    // Delete would remove the node; Ctrl and its letters are the page's own: undo, queue, save.
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  for (const [type, hand] of Object.entries(HANDS)) {
    on(root, type, (event) => {
      const middle = type === "pointermove" ? (event.buttons & MIDDLE_HELD) !== 0 : event.button === MIDDLE;
      if (middle) app.canvas[hand](event);
      else event.stopPropagation();
    });
  }
  on(root, "wheel", (event) => {
    event.preventDefault();
    event.stopPropagation();
    app.canvas.processMouseWheel(event);
  }, { passive: false });
}

/**
 * Gives a node the height that its widgets need, keeping what its user had added to it.
 * @param {LGraphNode} node
 * @param {number} height of the widget that has changed
 */
export function settle(node, height) {
  const before = node.spectralHeight ?? height;
  node.spectralHeight = height;
  const least = node.computeSize()[1];
  const wanted = Math.max(least, node.size[1] + height - before);
  if (wanted !== node.size[1]) node.setSize([node.size[0], wanted]);
  node.setDirtyCanvas?.(true, true);
}
