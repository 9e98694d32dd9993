/** The view "start": what is seen before the first training. */

import { button } from "./controls.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";

const STEPS = [
  ["picture", "pictures"],
  ["chart", "train"],
  ["check", "use"],
];

/** @param {import("./panel.js").Ctx} ctx */
export function create({ t, go }) {
  const step = ([shape, key], i) =>
    h(
      "li",
      { class: "card start-step" },
      h("span", { class: "step-number", "aria-hidden": "true" }, String(i + 1)),
      h(
        "div",
        { class: "stack tight grow" },
        h("h2", null, t(`start.steps.${key}.title`)),
        h("p", { class: "muted" }, t(`start.steps.${key}.text`)),
      ),
      icon(shape),
    );
  const open = () => go("new");
  const begin = button({ label: t("start.begin"), kind: "primary", icon: "plus", onClick: open, test: "begin" });
  const root = h(
    "div",
    { class: "view start", "data-test": "start" },
    h("h1", null, t("start.title")),
    h("p", { class: "muted" }, t("start.text")),
    h("ol", { class: "start-steps" }, STEPS.map(step)),
    h("div", { class: "row" }, begin),
    h("p", { class: "muted small" }, t("start.first")),
  );
  return { root, update() {}, destroy() {} };
}
