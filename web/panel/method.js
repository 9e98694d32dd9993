/** What is trained, in words: preset and method. */

import { combo, field } from "./controls.js";
import { h, uniqueId } from "./dom.js";
import { icon } from "./icons.js";

const DRAWINGS = { subject: "star", style: "brush", single: "picture", "tiny-file": "feather" };

/**
 * The presets as cards; arrow keys move between them.
 * @param {Function} t
 * @param {{name: string, title: string, help: string}[]} presets
 * @param {(name: string) => void} onChange
 * @returns {{root: HTMLElement, set: (name: string) => void}}
 */
export function presetCards(t, presets, onChange) {
  const group = uniqueId("preset");
  const inputs = new Map();
  const card = ({ name, title, help }) => {
    const choose = () => onChange(name);
    const props = { type: "radio", name: group, value: name, "data-test": `preset-${name}`, onChange: choose };
    inputs.set(name, h("input", props));
    return h(
      "label",
      { class: "preset" },
      inputs.get(name),
      h("span", { class: "preset-title" }, icon(DRAWINGS[name] ?? "dots"), t.or(`form.presets.${name}.title`, title)),
      h("span", { class: "preset-help" }, t.or(`form.presets.${name}.help`, help)),
    );
  };
  const root = h("div", { class: "presets", role: "radiogroup", "aria-label": t("preset.label") }, presets.map(card));
  const set = (name) => {
    for (const [key, input] of inputs) input.checked = key === name;
  };
  return { root, set };
}

/**
 * The method, with what it is in a sentence.
 * @param {Function} t
 * @param {{name: string, title: string, help: string}[]} methods
 * @param {(name: string|null) => void} onChange null: the preset's own
 * @returns {{root: HTMLElement, set: (own: string|undefined, inForce: string) => void}}
 */
export function methodChoice(t, methods, onChange) {
  const title = (name) => {
    const found = methods.find((method) => method.name === name);
    return found ? t.or(`form.methods.${name}.title`, found.title) : name;
  };
  const options = methods.map(({ name }) => ({ value: name, label: title(name) }));
  const control = combo({ options, blank: "", onChange: (name) => onChange(name || null), test: "method" });
  const row = field({ label: t("method.label"), help: t("method.help"), control });
  const set = (own, inForce) => {
    control.nameBlank(t("method.of_preset", { method: title(inForce) }));
    control.set(own ?? "");
    const help = methods.find((method) => method.name === inForce)?.help ?? "";
    row.say(t.or(`form.methods.${inForce}.help`, help));
  };
  return { root: row.root, set };
}

/**
 * What a file is, in a word: the method of one of ours, the kind of another.
 * @param {Function} t
 * @param {{method?: string|null, kind?: string|null}} info
 */
export function methodText(t, { method, kind }) {
  return method ? t.or(`form.methods.${method}.title`, method) : kind ?? "";
}
