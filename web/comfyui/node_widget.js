/** What elements on a node need: to be left alone by the canvas's own keys and gestures, and a node of their size. */

import { app } from "../../../scripts/app.js";
import { on } from "../panel/dom.js";

const HANDS = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
const MEASURED = 80; // milliseconds
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

let pending = 0;

function finish() {
  clearTimeout(pending);
  pending = 0;
  app.canvas.emitAfterChange();
}

/**
 * Begins a change that is one step of undo. It ends by itself a moment later, with the size that Nodes 2.0 measures
 * after drawing; else that would be a step of its own.
 */
export function step() {
  if (pending) finish();
  app.canvas.emitBeforeChange();
  pending = setTimeout(finish, MEASURED);
}

// The elements of widgets that have gone, by node and widget.
const gone = new Map();

/**
 * Older Nodes 2.0 keep showing a widget's element when undo has put another one into its place. Call it for each new
 * element, and what it gives when the widget goes.
 * @param {LGraphNode} node
 * @param {string} name of the widget
 * @param {HTMLElement} root
 * @returns {() => void}
 */
export function takePlace(node, name, root) {
  const key = () => `${node.id}/${name}`;
  const swap = () => {
    const before = gone.get(key());
    gone.delete(key());
    if (!root.isConnected && before?.isConnected) before.replaceWith(root);
  };
  // After the node has its number and the page has drawn it.
  requestAnimationFrame(() => requestAnimationFrame(swap));
  return () => gone.set(key(), root);
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
