/** What opens beside an element of a node, above everything, at its own size however far one has zoomed. */

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
  // "auto" would close again when the button is let go that has opened it from a context menu.
  const root = h(
    "div",
    {
      class: "spectral-popup", popover: "manual", role: "dialog", "aria-label": label, "data-test": test, tabindex: -1,
    },
    ...content,
  );
  const place = () => beside(root, anchor.getBoundingClientRect());
  const close = () => {
    stops.forEach((stop) => stop());
    if (root.contains(document.activeElement)) anchor.focus();
    root.remove();
  };
  const stops = [
    on(document, "pointerdown", (event) => root.contains(event.target) || close(), { capture: true }),
    on(document, "keydown", (event) => event.key === "Escape" && leave(event, close), { capture: true }),
  ];
  // ComfyUI's own keys (Delete, R, ...) must not work on nodes while one types here.
  for (const type of ["keydown", "keyup", "wheel", "pointerdown"]) on(root, type, (event) => event.stopPropagation());
  document.body.append(root);
  root.showPopover();
  place();
  root.focus();
  return { root, close, place };
}

function leave(event, close) {
  event.preventDefault();
  event.stopPropagation();
  close();
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
