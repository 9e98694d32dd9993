/** A number that one drags, types or moves with the arrow keys. */

import { readNumber } from "../panel/controls.js";
import { h, on } from "../panel/dom.js";

const STEP = 0.05;
const FINE = 0.01;
const PIXELS = 4; // of the pointer for a step
const LARGEST = 10;

/** To the second digit, within bounds. @param {number} value */
export function rounded(value) {
  return Math.min(LARGEST, Math.max(-LARGEST, Math.round(value * 100) / 100)) + 0;
}

/** @param {number} value */
export function written(value) {
  return rounded(value).toFixed(2);
}

/**
 * @param {{label: string, test: string, onMove: (value: number) => void, onDone: (value: number) => void}} options
 *   onMove: while it is dragged; onDone: once, when it has another value
 * @returns {{root: HTMLInputElement, set: (value: number) => void}}
 */
export function scrub({ label, test, onMove, onDone }) {
  let value = 0;
  let drag = null;
  const root = h("input", {
    class: "spectral-number", type: "text", inputmode: "decimal", role: "spinbutton", autocomplete: "off",
    spellcheck: "false", "aria-label": label, title: label, "aria-valuemin": -LARGEST, "aria-valuemax": LARGEST,
    "data-test": test,
  });
  const show = (next) => {
    value = rounded(next);
    root.value = written(value);
    root.setAttribute("aria-valuenow", String(value));
  };
  const finish = (next) => {
    const before = value;
    show(next);
    if (value !== before) onDone(value);
  };
  on(root, "pointerdown", (event) => {
    if (event.button !== 0 || document.activeElement === root) return;
    event.preventDefault(); // a click, which sets the focus, is known when the button is let go
    root.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, from: value, moved: false };
  });
  on(root, "pointermove", (event) => {
    if (!drag) return;
    const steps = Math.trunc((event.clientX - drag.x) / PIXELS);
    drag.moved ||= steps !== 0;
    if (!drag.moved) return;
    show(drag.from + steps * (event.shiftKey ? FINE : STEP));
    onMove(value);
  });
  const drop = () => {
    if (!drag) return;
    const { moved, from } = drag;
    drag = null;
    if (!moved) {
      root.focus();
      root.select();
    } else if (value !== from) onDone(value);
  };
  on(root, "pointerup", drop);
  on(root, "pointercancel", drop);
  on(root, "change", () => finish(readNumber(root.value) ?? value));
  on(root, "keydown", (event) => {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (way) {
      event.preventDefault();
      finish((readNumber(root.value) ?? value) + way * (event.shiftKey ? FINE : STEP));
    } else if (event.key === "Enter") root.blur();
    else if (event.key === "Escape") {
      show(value);
      root.blur();
    }
  });
  return { root, set: show };
}
