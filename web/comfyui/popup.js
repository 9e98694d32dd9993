/** Something that opens beside an element of a node, above everything and at its own size however far one has zoomed. */

import { h, on } from "../panel/dom.js";

const GAP = 4;

/**
 * Opens it. Escape, a click elsewhere and `close()` take it away.
 * @param {HTMLElement} anchor
 * @param {{label: string, test: string}} about
 * @param {...*} content
 * @returns {{root: HTMLElement, close: () => void, place: () => void}}
 */
export function popup(anchor, { label, test }, ...content) {
  const root = h(
    "div",
    { class: "spectral-popup", popover: "auto", role: "dialog", "aria-label": label, "data-test": test },
    ...content,
  );
  const place = () => beside(root, anchor.getBoundingClientRect());
  const close = () => root.isConnected && root.hidePopover();
  root.addEventListener("toggle", (event) => {
    if (event.newState === "closed") root.remove();
  });
  // ComfyUI's own keys (Delete, R, ...) must not work on nodes while one types here.
  for (const type of ["keydown", "keyup", "wheel", "pointerdown"]) on(root, type, (event) => event.stopPropagation());
  document.body.append(root);
  root.showPopover();
  place();
  return { root, close, place };
}

/** Below the anchor where there is room, else above, else where it fits. */
function beside(root, anchor) {
  const size = root.getBoundingClientRect();
  const below = anchor.bottom + GAP;
  const above = anchor.top - size.height - GAP;
  const top = below + size.height <= innerHeight || above < GAP ? below : above;
  root.style.left = `${clamp(anchor.left, innerWidth - size.width - GAP)}px`;
  root.style.top = `${clamp(top, innerHeight - size.height - GAP)}px`;
}

function clamp(value, most) {
  return Math.max(GAP, Math.min(value, most));
}
