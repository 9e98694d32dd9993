/** How adapters are put together: the ways there are, what each does, and which of them fit. */

import { h, uniqueId } from "./dom.js";
import { isOther } from "./adapters.js";

/** In the order of how often they are wanted. Gradient fusion needs a model that paints: the node does that. */
export const MODES = ["sum", "mean", "interpolate", "paper", "rotate", "shift"];
// Modes that work on the parameters of one method.
const ONE_METHOD = { paper: null, rotate: "rotation", shift: "svdiff" };

/** Whether a mode fits files, as far as their facts tell. @param {string} mode @param {Object[]} infos */
export function modeFits(mode, infos) {
  if (!Object.hasOwn(ONE_METHOD, mode)) return true;
  const methods = new Set(infos.map((info) => (isOther(info) ? "" : info.method)));
  const wanted = ONE_METHOD[mode];
  return methods.size === 1 && !methods.has("") && (wanted === null || methods.has(wanted));
}

/**
 * The choice, arrow keys move in it.
 * @param {Function} t
 * @param {{value: string, onChange: (mode: string) => void}} options
 * @returns {{root: HTMLElement, fit: (infos: Object[]) => string}} fit: disables what does not fit; the mode in force
 */
export function modeChoice(t, { value, onChange }) {
  const group = uniqueId("mode");
  const inputs = new Map();
  const row = (mode) => {
    const props = { type: "radio", name: group, value: mode, checked: mode === value, "data-test": `mode-${mode}` };
    inputs.set(mode, h("input", { ...props, onChange: () => onChange(mode) }));
    return h(
      "label",
      { class: "mode" },
      inputs.get(mode),
      h("span", { class: "mode-name" }, t(`modes.${mode}.title`)),
      h("span", { class: "mode-help" }, t(`modes.${mode}.help`)),
    );
  };
  const root = h("div", { class: "modes", role: "radiogroup", "aria-label": t("mix.mode") }, MODES.map(row));
  const fit = (infos) => {
    for (const [mode, input] of inputs) input.disabled = !modeFits(mode, infos);
    const chosen = [...inputs.values()].find((input) => input.checked);
    if (!chosen?.disabled) return chosen.value;
    inputs.get(MODES[0]).checked = true;
    return MODES[0];
  };
  return { root, fit };
}
