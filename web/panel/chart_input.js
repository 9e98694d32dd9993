/** Pointer, wheel and keys of a chart, as wishes: zoom, pan, select, point. */

import { on } from "./dom.js";

// A shorter drag is a click.
const DRAG = 5;

/**
 * Mouse: drag selects a stretch, Shift or the middle button pans, the wheel zooms once the chart has the focus (or with
 * Ctrl), a double click resets. Touch: one finger points, two zoom and pan. Keys: arrows point, + and - zoom, 0 resets.
 * @param {HTMLElement} element takes the focus
 * @param {{point: Function, leave: Function, select: Function, selecting: Function, pan: Function, zoom: Function,
 *   reset: Function, walk: Function, toggleLog: Function}} wishes  x in pixels from the element's left edge
 * @returns {() => void} stops listening
 */
export function chartInput(element, wishes) {
  const stops = [pointers(element, wishes), wheel(element, wishes), keys(element, wishes)];
  stops.push(on(element, "dblclick", () => wishes.reset()));
  return () => stops.forEach((stop) => stop());
}

function pointers(element, wishes) {
  const held = new Map();
  let drag = null;
  const place = (event) => event.clientX - element.getBoundingClientRect().left;
  const press = (event) => {
    if (event.button === 2) return;
    // A pointer may be gone before it can be held, as after a quick tap.
    if (event.pointerType !== "touch") element.setPointerCapture(event.pointerId);
    held.set(event.pointerId, place(event));
    const pans = event.shiftKey || event.button === 1;
    drag = event.pointerType === "touch" ? null : { from: place(event), at: place(event), pans };
    if (pans) event.preventDefault();
    if (event.pointerType === "touch") wishes.point(place(event));
  };
  const move = (event) => {
    const x = place(event);
    if (held.size === 2 && held.has(event.pointerId)) return pinch(held, event.pointerId, x, wishes);
    if (!drag) return wishes.point(x);
    if (drag.pans) wishes.pan(drag.at - x);
    else wishes.selecting(drag.from, x);
    drag.at = x;
    return undefined;
  };
  const release = (event) => {
    held.delete(event.pointerId);
    if (drag && !drag.pans && Math.abs(drag.at - drag.from) > DRAG) wishes.select(drag.from, drag.at);
    else wishes.selecting(0, 0);
    drag = null;
  };
  const cancel = (event) => {
    held.delete(event.pointerId);
    drag = null;
    wishes.selecting(0, 0);
  };
  const stops = [
    on(element, "pointerdown", press), on(element, "pointermove", move), on(element, "pointerup", release),
    on(element, "pointercancel", cancel), on(element, "pointerleave", () => wishes.leave()),
  ];
  return () => stops.forEach((stop) => stop());
}

/** Two fingers: their distance zooms, their middle pans. */
function pinch(held, id, x, wishes) {
  const [other] = [...held].filter(([key]) => key !== id).map(([, value]) => value);
  const before = held.get(id);
  held.set(id, x);
  wishes.pan((before - x) / 2);
  const factor = Math.abs(x - other) / Math.max(1, Math.abs(before - other));
  if (factor > 0.5 && factor < 2) wishes.zoom(factor, (x + other) / 2);
}

function wheel(element, wishes) {
  const turn = (event) => {
    // Without the focus the wheel belongs to the page, or nobody could scroll past a chart.
    if (!event.ctrlKey && !element.matches(":focus-within")) return;
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) wishes.pan(event.deltaX || event.deltaY);
    else wishes.zoom(2 ** (-event.deltaY / 250), event.clientX - element.getBoundingClientRect().left);
  };
  return on(element, "wheel", turn, { passive: false });
}

function keys(element, wishes) {
  const press = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 10 : 1;
    const actions = {
      ArrowLeft: () => wishes.walk(-far), ArrowRight: () => wishes.walk(far),
      Home: () => wishes.walk(-Infinity), End: () => wishes.walk(Infinity),
      PageUp: () => wishes.pan(-Infinity), PageDown: () => wishes.pan(Infinity),
      "+": () => wishes.zoom(1.5), "=": () => wishes.zoom(1.5), "-": () => wishes.zoom(1 / 1.5),
      0: () => wishes.reset(), Escape: () => wishes.leave(), l: () => wishes.toggleLog(),
    };
    const action = actions[event.key];
    if (!action) return;
    // Escape with nothing to leave may still close what lies around the chart.
    if (event.key !== "Escape") event.preventDefault();
    action();
  };
  return on(element, "keydown", press);
}
