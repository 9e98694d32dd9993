/** The adapters of a mix with how much of each: a slider and the number beside it. */

import { plainName } from "./catalogue.js";
import { iconButton, numberInput } from "./controls.js";
import { h, setText } from "./dom.js";
import { methodText } from "./method.js";
import { swatch } from "./swatches.js";

const RANGE = { min: -1, max: 2, step: 0.05 };

/**
 * One adapter's row.
 * @param {import("./panel.js").Ctx} ctx
 * @param {{name: string, place: number, value: number, onChange: (value: number) => void,
 *   onRemove: () => void}} options
 * @returns {{root: HTMLElement, tell: (info: Object) => void, removable: (can: boolean) => void}}
 */
export function weightRow({ t, go }, { name, place, value, onChange, onRemove }) {
  const label = t("mix.weightOf", { name: plainName(name) });
  const set = (next) => {
    if (next === null) return;
    slider.value = String(next);
    number.set(next);
    onChange(next);
  };
  const slider = h("input", {
    type: "range", class: "range", ...RANGE, "aria-label": label, "data-test": "mix-slider",
    onInput: (event) => set(Number(event.target.value)),
  });
  slider.value = String(value);
  const number = numberInput({
    value, min: -10, max: 10, label, test: "mix-weight",
    onChange: (next) => {
      if (next === null) return;
      slider.value = String(next);
      onChange(next);
    },
  });
  const title = t("mix.remove", { name: plainName(name) });
  const remove = iconButton({ label: title, icon: "close", onClick: onRemove, test: "mix-remove" });
  const open = h("button", { type: "button", class: "link", title: name }, plainName(name));
  open.addEventListener("click", () => go("adapter", { name }));
  const kind = h("span", { class: "chip", hidden: true });
  const about = h("div", { class: "muted small" });
  const tell = (info) => {
    const method = methodText(t, info);
    kind.hidden = !method;
    setText(kind, method);
    setText(about, [info.columns, (info.trigger_words ?? []).join(", ")].filter(Boolean).join(" · "));
  };
  const head = h("div", { class: "row" }, swatch(place), h("span", { class: "grow" }, open), kind, remove);
  const root = h(
    "li",
    { class: "weight", "data-test": "mix-row", "data-name": name },
    head,
    about,
    h("div", { class: "row" }, slider, h("div", { class: "weight-number" }, number.root)),
  );
  return { root, tell, removable: (can) => (remove.hidden = !can) };
}
