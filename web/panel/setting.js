/** One setting of a training: its control, where its value comes from, and the way back to that. */

import { combo, field, iconButton, numberInput, textArea, textInput, toggle } from "./controls.js";

const NUMBERS = new Set(["int", "float"]);

/** Whether a method has a setting. @param {{methods?: string[]}} setting @param {string} method */
export function belongs(setting, method) {
  return !setting.methods?.length || setting.methods.includes(method);
}

/** A value as it is shown: lists by commas, no number with a tail of nines. */
export function shown(value, t) {
  if (value === null || value === undefined) return t("setting.unset");
  if (typeof value === "object" && !Object.keys(value).length) return t("setting.none");
  if (typeof value === "boolean") return value ? t("setting.on") : t("setting.off");
  if (typeof value === "number") return String(Number(value.toPrecision(10)));
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "object") return JSON.stringify(value);
  return value === "" ? t("setting.none") : String(value);
}

function options(setting, sources) {
  if (setting.kind === "dataset") return sources.datasets().map(({ id }) => ({ value: id, label: id }));
  if (setting.kind === "adapter") return sources.adapters().map(({ name }) => ({ value: name, label: name }));
  return setting.choices ?? [];
}

function lines(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean);
}

/** A table of a setting from lines "name = value"; undefined where a line is none. */
export function readTable(text) {
  const table = {};
  for (const line of lines(text)) {
    const at = line.indexOf("=");
    const name = line.slice(0, at).trim();
    if (at < 1 || !name) return undefined;
    table[name] = readPlain(line.slice(at + 1).trim());
  }
  return table;
}

function readPlain(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function writeTable(table) {
  const line = ([name, value]) => `${name} = ${JSON.stringify(value)}`;
  return Object.entries(table ?? {}).map(line).join("\n");
}

/**
 * The control of a setting. `write(value)` sets it (null: back to the preset), `fault(text)` says what is wrong.
 */
function makeControl(setting, { t, sources, write, fault }) {
  const test = `setting-${setting.name}`;
  const { kind, min, max, above, suggestions } = setting;
  if (NUMBERS.has(kind)) {
    const onFault = (text) => fault(t("setting.bad_number", { found: text, expected: range(setting, t) }));
    // "Steps" needs no "steps" behind its number.
    const said = setting.unit === undefined || setting.label.toLowerCase() === setting.unit;
    const unit = said ? undefined : t.or(`form.units.${setting.unit}`, setting.unit);
    return numberInput({ min, max, above, unit, whole: kind === "int", onChange: write, onFault, test });
  }
  if (kind === "bool") return toggle({ onChange: write, test });
  if (kind === "choice" || kind === "dataset" || kind === "adapter") {
    return combo({ options: options(setting, sources), blank: "", onChange: (value) => write(value || null), test });
  }
  if (kind === "texts" || kind === "adapters") {
    return listed(textArea({ rows: 2, onChange: (text) => write(text.trim() ? lines(text) : null), test }));
  }
  if (kind === "table") return tabled(test, write, () => fault(t("setting.bad_table")));
  return textInput({ onChange: (value) => write(value || null), test, suggestions, maxLength: setting.longest });
}

function listed(area) {
  return { ...area, set: (value) => area.set((value ?? []).join("\n")) };
}

function tabled(test, write, fault) {
  const read = (text) => {
    const table = readTable(text);
    if (table === undefined) fault();
    else write(Object.keys(table).length ? table : null);
  };
  const area = textArea({ rows: 2, onChange: read, test });
  return { ...area, set: (value) => area.set(writeTable(value)) };
}

function range({ kind, min, max, above }, t) {
  const what = kind === "int" ? t("setting.whole") : t("setting.number");
  if (above !== undefined) return t("setting.above", { what, above });
  if (min !== undefined && max !== undefined) return t("setting.between", { what, min, max });
  if (min !== undefined) return t("setting.at_least", { what, min });
  return max === undefined ? what : t("setting.at_most", { what, max });
}

/**
 * A setting's row.
 * @param {Object} setting as the form names it: {name, group, label, help, kind, choices, default, min, max, unit}
 * @param {{t: Function, draft: import("./draft.js").Draft, sources: Object, faults: Map<string, string>}} page
 *   faults: what cannot be read, by setting; kept here so that the page refuses to train on it
 * @returns {{root: HTMLElement, setting: Object, update: (values: Object, sources: Object) => void,
 *   fail: (text: string) => void, input: HTMLElement}}
 */
export function settingRow(setting, page) {
  const { t, draft, faults } = page;
  const label = t.or(`form.settings.${setting.name}.label`, setting.label);
  const reset = iconButton({
    label: t("setting.reset"), icon: "reset", test: `reset-${setting.name}`, onClick: () => accept(null),
  });
  reset.classList.add("reset");
  const accept = (value) => {
    faults.delete(setting.name);
    row.say("");
    draft.set(setting.name, value);
  };
  const refuse = (text) => {
    faults.set(setting.name, `${label}: ${text}`);
    row.fail(text);
    draft.change({});
  };
  const control = makeControl(setting, { t, sources: page.sources, write: accept, fault: refuse });
  const help = t.or(`form.settings.${setting.name}.help`, setting.help);
  const row = field({ label, help, control, beside: reset, inline: setting.kind === "bool" });
  row.root.classList.add("setting");
  const update = (values, sources) => {
    const own = draft.setting(setting.name);
    const preset = values[setting.name] ?? setting.default;
    show(control, { own, preset, from: sources[setting.name], t });
    reset.hidden = own === undefined;
    row.root.classList.toggle("changed", own !== undefined);
  };
  return { root: row.root, setting, update, fail: row.fail, input: control.input };
}

/** Brings a control up to date: its own value, and the preset's, with its source, as what stands there without one. */
function show(control, { own, preset, from, t }) {
  const value = shown(preset, t);
  const text = from ? t("setting.sourced", { value, source: t.or(`form.sources.${from}`, from) }) : value;
  control.input.title = own === undefined ? text : t("setting.instead", { text });
  if (control.input.type === "checkbox") return control.set(own ?? Boolean(preset));
  if (control.input.tagName === "SELECT") {
    control.nameBlank(text);
    return control.set(own ?? "");
  }
  control.input.placeholder = text;
  if (own === undefined && control.input.getAttribute("aria-invalid")) return undefined;
  return isFocused(control.input) ? undefined : control.set(own ?? null);
}

function isFocused(input) {
  return input.getRootNode().activeElement === input;
}
