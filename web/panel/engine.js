/** What trains: the built-in trainer, or kohya's sd-scripts where it is set up; and what that does otherwise. */

import { ApiError, newest } from "./api.js";
import { combo, field } from "./controls.js";
import { clear, debounce, h } from "./dom.js";
import { help } from "./overlay.js";

const BUILT_IN = "built-in";
const WAIT = 400;
const SILENT = { refusals: [], remarks: [] };

/** What an engine is called. @param {Function} t @param {string} name @param {string} [title] in English */
export function engineName(t, name, title = name) {
  return t.or(`form.engines.${name}.title`, title);
}

/** Whether it is another trainer than this package's own. @param {string} [name] */
export function isOther(name) {
  return Boolean(name) && name !== BUILT_IN;
}

/**
 * The choice, in sight where there is one; else a line that says where to read how to set the other up.
 * @param {import("./panel.js").Ctx} ctx
 * @param {{engines: {name: string, title: string, help: string, available: boolean, text: string}[],
 *   label: (setting: string) => string, request: () => Object|null, choose: (name: string) => void,
 *   told: () => void}} page
 *   request: what would be trained, null while that is not known; told: what the engine says may have changed
 * @returns {{root: HTMLElement, input: HTMLElement, set: (name: string) => void, changed: () => void,
 *   fault: () => {text: string, setting: string|null}|null, destroy: () => void}}
 */
export function engineChoice({ t, api }, { engines, label, request, choose, told }) {
  const choices = engineField(t, engines, choose);
  const hint = hintLine(t, engines);
  const says = h("ul", { class: "notices small", "data-test": "engine-says", "aria-live": "polite", hidden: true });
  const root = h("div", { class: "stack tight" }, choices.root, hint, says);
  const only = newest();
  let chosen = BUILT_IN;
  let found = SILENT;

  const show = (next) => {
    found = next;
    clear(says, lines(t, label, found));
    says.hidden = !says.childElementCount;
    told();
  };
  const ask = async () => {
    const wanted = isOther(chosen) ? request() : null;
    if (!wanted) return show(SILENT);
    try {
      const { current, value } = await only((signal) => api.post("/form/engine", { request: wanted }, { signal }));
      return current && isOther(chosen) ? show(value) : undefined;
    } catch (error) {
      // What is wrong with the request, the estimate says.
      if (!(error instanceof ApiError)) throw error;
      return show(SILENT);
    }
  };
  const later = debounce(ask, WAIT);
  const set = (name) => {
    chosen = name;
    choices.set(name);
    choices.root.hidden = !isOther(name) && !engines.some((each) => isOther(each.name) && each.available);
    hint.hidden = !choices.root.hidden;
  };
  const fault = () => faultOf(t, label, engines, { chosen, found: isOther(chosen) ? found : SILENT });
  return { root, input: choices.input, set, changed: later, fault, destroy: () => later.cancel() };
}

function engineField(t, engines, choose) {
  const options = engines.map(({ name, title, available }) => ({
    value: name, label: engineName(t, name, title), disabled: !available,
  }));
  const control = combo({ options, onChange: choose, test: "engine" });
  const helps = engines.map(({ name, title, help: text }) =>
    t("engine.says", { name: engineName(t, name, title), text: t.or(`form.engines.${name}.help`, text) }),
  );
  const { root } = field({ label: t("engine.label"), help: helps.join(" "), control });
  return { root, input: control.input, set: control.set };
}

/** Where to read how to set the other engine up; its question mark says what is missing here. */
function hintLine(t, engines) {
  const missing = engines.find(({ available }) => !available);
  const why = missing ? help(missing.text, t("engine.label")) : null;
  return h("div", { class: "row muted small", "data-test": "engine-hint" }, h("span", null, t("engine.hint")), why);
}

function faultOf(t, label, engines, { chosen, found }) {
  const engine = engines.find(({ name }) => name === chosen);
  const name = engineName(t, chosen, engine?.title);
  if (!engine?.available) return { text: t("engine.gone", { name, text: engine?.text ?? "" }).trim(), setting: null };
  const first = found.refusals[0];
  return first ? { text: t("engine.cannot", { name, text: sentence(t, label, first) }), setting: first.setting } : null;
}

function lines(t, label, { refusals, remarks }) {
  const line = (said, kind, look) => h("li", { class: look, "data-kind": kind }, sentence(t, label, said));
  return [
    refusals.map((said) => line(said, "refused", "danger-text")),
    remarks.map((said) => line(said, "differs", "muted")),
  ];
}

/** "Setting: what becomes of it", in the reader's language. */
function sentence(t, label, { setting, text }) {
  return t("engine.says", { name: label(setting), text: t.or(`form.says.${setting}`, text) });
}
