/** Two pictures in one frame, parted by a line that is dragged or moved with the arrow keys. */

import { h, on, setText } from "./dom.js";
import { icon } from "./icons.js";
import { picture } from "./picture.js";

const NEAR = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2 };
const STEPS = { ...NEAR, PageDown: -20, PageUp: 20, Home: -100, End: 100 };

/**
 * A before/after comparison; with one picture only, that picture.
 * @param {{t: Function, test?: string}} options
 * @returns {{root: HTMLElement, show: (before: Side|null, after: Side|null) => void}}
 * @typedef {{url: string, label: string, alt: string}} Side
 */
export function beforeAfter({ t, test = "before-after" }) {
  const right = picture({ class: "ba-after" });
  const left = picture({ class: "ba-before" });
  const leftLabel = h("span", { class: "ba-label start" });
  const rightLabel = h("span", { class: "ba-label end" });
  const line = dividingLine(t, test);
  const pictures = [right.root, left.root];
  const root = h("div", { class: "ba", "data-test": `${test}-pictures` }, pictures, leftLabel, rightLabel, line);
  const move = mover(root, line, t);
  dragging(root, line, move);
  move.to(50);
  const show = (before, after) => {
    const both = Boolean(before && after && before.url !== after.url);
    const main = after ?? before;
    root.classList.toggle("single", !both);
    line.hidden = leftLabel.hidden = !both;
    rightLabel.hidden = !main;
    setText(leftLabel, before?.label ?? "");
    setText(rightLabel, main?.label ?? "");
    left.set(both ? before.url : null, before?.alt);
    right.set(main?.url ?? null, main?.alt).then((seen) => seen && fit(root, right.root));
  };
  return { root, show };
}

function dividingLine(t, test) {
  const grip = h("span", { class: "ba-grip" }, icon("back"), icon("chevron"));
  const range = { "aria-label": t("slider.label"), "aria-valuemin": "0", "aria-valuemax": "100" };
  return h("div", { class: "ba-line", role: "slider", tabindex: "0", "data-test": `${test}-line`, ...range }, grip);
}

/** The frame takes the picture's shape. */
function fit(root, image) {
  if (image.naturalWidth) root.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
  else image.addEventListener("load", () => fit(root, image), { once: true });
}

function mover(root, line, t) {
  let at = 50;
  const to = (percent) => {
    at = Math.min(100, Math.max(0, percent));
    root.style.setProperty("--at", `${at}%`);
    line.setAttribute("aria-valuenow", String(Math.round(at)));
    line.setAttribute("aria-valuetext", t("slider.value", { percent: Math.round(at) }));
  };
  return { to, by: (percent) => to(at + percent) };
}

function dragging(root, line, move) {
  const follow = (event) => {
    const box = root.getBoundingClientRect();
    move.to(((event.clientX - box.left) / box.width) * 100);
  };
  let held = false;
  on(root, "pointerdown", (event) => {
    if (event.button !== 0 || root.classList.contains("single") || event.target.closest("button")) return;
    held = true;
    root.setPointerCapture(event.pointerId);
    // Dragging must not select text or drag the picture out of the page.
    event.preventDefault();
    line.focus({ preventScroll: true, focusVisible: false });
    follow(event);
  });
  on(root, "pointermove", (event) => held && follow(event));
  on(root, "pointerup", () => (held = false));
  on(root, "pointercancel", () => (held = false));
  on(line, "keydown", (event) => {
    if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move.by(STEPS[event.key]);
  });
}
