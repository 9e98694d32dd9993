/**
 * Controls of a form. Each gives {root, input, get(), set(value)}: `root` goes into the page, `input` is what a label
 * names, `set` does not call onChange.
 */

import { clear, h, setText, uniqueId } from "./dom.js";
import { icon } from "./icons.js";
import { help as helpButton, tooltip } from "./overlay.js";

/**
 * @param {{label: string, icon?: string, kind?: "primary"|"plain"|"quiet"|"danger", onClick: Function, test?: string,
 *   title?: string, disabled?: boolean}} options
 * @returns {HTMLButtonElement}
 */
export function button({ label, icon: shape, kind = "plain", onClick, test, title, disabled = false }) {
  return h(
    "button",
    { type: "button", class: `button ${kind}`, "data-test": test, title, disabled, onClick },
    shape ? icon(shape) : null,
    h("span", { class: "button-text" }, label),
  );
}

/**
 * A button that is only a drawing; its label is read out and shown beside the pointer.
 * @param {{label: string, icon: string, onClick: Function, test?: string}} options
 * @returns {HTMLButtonElement}
 */
export function iconButton({ label, icon: shape, onClick, test }) {
  const root = h("button", { type: "button", class: "icon-button", "aria-label": label, "data-test": test, onClick });
  root.append(icon(shape));
  return tooltip(root, label);
}

/** Runs `work` on a click, with the button held down meanwhile so that nothing is asked twice. */
export function busy(target, work) {
  return async (event) => {
    if (target.getAttribute("aria-busy") === "true") return;
    target.setAttribute("aria-busy", "true");
    try {
      await work(event);
    } finally {
      target.removeAttribute("aria-busy");
    }
  };
}

/**
 * A label, its help, the control, a line below for a remark or an error.
 * @param {{label: string, help?: string, control: {root: HTMLElement, input: HTMLElement}, test?: string,
 *   beside?: HTMLElement|null, inline?: boolean}} options  beside: to the right of the label
 * @returns {{root: HTMLElement, say: (text: string) => void, fail: (text: string) => void}}
 */
export function field({ label, help, control, test, beside = null, inline = false }) {
  const id = uniqueId("field");
  const noteId = `${id}-note`;
  control.input.id = id;
  const note = h("div", { class: "field-note", id: noteId, hidden: true });
  const name = h("label", { class: "field-label", for: id, title: label }, label);
  const head = h("div", { class: "field-head" }, name, help ? helpButton(help, label) : null, beside);
  const root = h("div", { class: `field${inline ? " inline" : ""}`, "data-test": test }, head, control.root, note);
  const write = (text, bad) => {
    setText(note, text);
    note.hidden = !text;
    root.classList.toggle("bad", bad && Boolean(text));
    if (bad && text) control.input.setAttribute("aria-invalid", "true");
    else control.input.removeAttribute("aria-invalid");
    if (text) control.input.setAttribute("aria-describedby", noteId);
    else control.input.removeAttribute("aria-describedby");
  };
  return { root, say: (text) => write(text, false), fail: (text) => write(text, true) };
}

function describeOption(option) {
  return typeof option === "string" ? { value: option, label: option } : option;
}

function optionNodes(options) {
  const groups = new Map();
  const nodes = [];
  for (const option of options.map(describeOption)) {
    const node = h("option", { value: option.value, disabled: option.disabled ?? false }, option.label);
    if (!option.group) nodes.push(node);
    else if (groups.has(option.group)) groups.get(option.group).append(node);
    else {
      const group = h("optgroup", { label: option.group }, node);
      groups.set(option.group, group);
      nodes.push(group);
    }
  }
  return nodes;
}

/**
 * One of a list. Options are texts or {value, label, group?, disabled?}. A value that is not in the list stays shown as
 * missing, so that nothing is chosen silently. `blank`: the text of no choice.
 * @param {{options?: Array, value?: string, blank?: string, onChange?: (value: string) => void, test?: string,
 *   label?: string}} options
 */
export function combo({ options = [], value = "", blank, onChange, test, label }) {
  const input = h("select", { class: "input select", "data-test": test, "aria-label": label });
  const nothing = blank === undefined ? null : h("option", { value: "" }, blank);
  let known = options;
  const has = (wanted) => known.some((option) => describeOption(option).value === wanted);
  const set = (wanted) => {
    const missing = Boolean(wanted) && !has(wanted);
    input.querySelector(".missing")?.remove();
    if (missing) input.append(h("option", { value: wanted, class: "missing" }, wanted));
    if (input.value !== wanted) input.value = wanted;
    input.classList.toggle("is-missing", missing);
  };
  const offer = (next, wanted = input.value) => {
    known = next;
    clear(input, nothing, optionNodes(known));
    set(wanted);
  };
  offer(options, value);
  input.addEventListener("change", () => {
    input.classList.toggle("is-missing", Boolean(input.value) && !has(input.value));
    onChange?.(input.value);
  });
  const root = h("div", { class: "select-box" }, input, icon("chevron"));
  return { root, input, get: () => input.value, set, has, offer, nameBlank: (text) => setText(nothing, text) };
}

/**
 * One line of text.
 * @param {{value?: string, placeholder?: string, onChange?: (value: string) => void, test?: string, label?: string,
 *   type?: string, maxLength?: number, suggestions?: string[]}} options  onChange is called at every key
 */
export function textInput(options) {
  const { value = "", placeholder, onChange, test, label, type = "text", maxLength, suggestions = [] } = options;
  const list = suggestions.length ? h("datalist", { id: uniqueId("list") }, optionNodes(suggestions)) : null;
  const input = h("input", {
    class: "input", type, value, placeholder, maxlength: maxLength, "data-test": test, "aria-label": label,
    autocomplete: "off", spellcheck: type === "text" && !list ? "true" : "false", list: list?.id,
  });
  input.addEventListener("input", () => onChange?.(input.value));
  const root = list ? h("div", null, input, list) : input;
  return { root, input, get: () => input.value, set: (next) => setValue(input, next) };
}

function setValue(input, next) {
  const text = next ?? "";
  if (input.value !== String(text)) input.value = text;
}

/**
 * A number, or null while empty. What is no number calls onFault with the text and keeps the last value.
 * @param {{value?: number|null, placeholder?: string, min?: number, max?: number, above?: number, whole?: boolean,
 *   unit?: string,
 *   onChange?: (value: number|null) => void, onFault?: (text: string) => void, test?: string, label?: string}} options
 */
export function numberInput(options) {
  const { value = null, placeholder, min, max, above, whole = false, unit, onChange, onFault, test, label } = options;
  const input = h("input", {
    class: "input number", type: "text", inputmode: whole ? "numeric" : "decimal", value: value ?? "", placeholder,
    "data-test": test, "aria-label": label, autocomplete: "off", spellcheck: "false",
  });
  let last = value;
  input.addEventListener("input", () => {
    const read = readNumber(input.value, { min, max, above, whole });
    if (read === undefined) return onFault?.(input.value.trim());
    last = read;
    return onChange?.(read);
  });
  const set = (next) => {
    last = next ?? null;
    setValue(input, last);
  };
  const mark = () => h("span", { class: "unit", "aria-hidden": "true" }, unit);
  const root = unit ? h("div", { class: "unit-box" }, input, mark()) : input;
  return { root, input, get: () => last, set };
}

/**
 * The number in a text; null for an empty one, undefined for what is none or lies outside. A decimal comma is taken.
 * @param {string} text
 * @returns {number|null|undefined}
 */
export function readNumber(text, { min = -Infinity, max = Infinity, above = -Infinity, whole = false } = {}) {
  const clean = text.trim().replace(",", ".");
  if (clean === "") return null;
  const value = Number(clean);
  const inside = value >= min && value <= max && value > above;
  return Number.isFinite(value) && inside && (!whole || Number.isInteger(value)) ? value : undefined;
}

/**
 * Several lines of text that grow with their content.
 * @param {{value?: string, placeholder?: string, rows?: number, onChange?: (value: string) => void, test?: string,
 *   label?: string, maxLength?: number}} options
 */
export function textArea({ value = "", placeholder, rows = 2, onChange, test, label, maxLength }) {
  const input = h("textarea", {
    class: "input area", rows, placeholder, maxlength: maxLength, "data-test": test, "aria-label": label, value,
  });
  input.addEventListener("input", () => onChange?.(input.value));
  return { root: input, input, get: () => input.value, set: (next) => setValue(input, next) };
}

/**
 * On or off.
 * @param {{value?: boolean, onChange?: (value: boolean) => void, test?: string, label?: string}} options
 */
export function toggle({ value = false, onChange, test, label }) {
  const input = h("input", {
    class: "switch-input", type: "checkbox", role: "switch", checked: value, "data-test": test, "aria-label": label,
  });
  input.addEventListener("change", () => onChange?.(input.checked));
  const root = h("span", { class: "switch" }, input, h("span", { class: "switch-track", "aria-hidden": "true" }));
  return { root, input, get: () => input.checked, set: (next) => (input.checked = Boolean(next)) };
}

/**
 * One of a few, all in sight. Arrow keys move between them.
 * @param {{options: {value: string, label: string, title?: string}[], value?: string, onChange?: Function,
 *   test?: string, label: string}} options
 */
export function segmented({ options, value, onChange, test, label }) {
  const name = uniqueId("segment");
  const inputs = options.map((option) =>
    h("input", {
      type: "radio", name, value: option.value, checked: option.value === value, "data-test": `${test}-${option.value}`,
      onChange: () => onChange?.(option.value),
    }),
  );
  const part = (option, i) =>
    h("label", { class: "segment", title: option.title }, inputs[i], h("span", null, option.label));
  const parts = options.map(part);
  const root = h("div", { class: "segments", role: "radiogroup", "aria-label": label, "data-test": test }, parts);
  const set = (next) => inputs.forEach((input) => (input.checked = input.value === next));
  return { root, input: root, get: () => inputs.find((input) => input.checked)?.value, set };
}

/**
 * A part of the page that can be folded away.
 * @param {{title: string, open?: boolean, onToggle?: (open: boolean) => void, test?: string, aside?: Node}} options
 * @param {...*} content
 * @returns {HTMLDetailsElement}
 */
export function folded({ title, open = false, onToggle, test, aside }, ...content) {
  const summary = h("summary", null, icon("chevron"), h("span", { class: "grow" }, title), aside);
  const body = h("div", { class: "folded-body" }, content);
  const root = h("details", { class: "folded", open, "data-test": test }, summary, body);
  root.addEventListener("toggle", () => onToggle?.(root.open));
  return root;
}

/**
 * A bar of progress; without a total it only says that something goes on.
 * @param {{label: string, test?: string}} options
 * @returns {{root: HTMLElement, set: (done: number|null, total?: number) => void}}
 */
export function progressBar({ label, test }) {
  const fill = h("div", { class: "progress-fill" });
  const root = h("div", { class: "progress", role: "progressbar", "aria-label": label, "data-test": test }, fill);
  const set = (done, total = 1) => {
    const known = done !== null && total > 0;
    root.classList.toggle("unknown", !known);
    if (!known) return root.removeAttribute("aria-valuenow");
    const share = Math.min(1, Math.max(0, done / total));
    fill.style.width = `${share * 100}%`;
    return root.setAttribute("aria-valuenow", String(Math.round(share * 100)));
  };
  set(null);
  return { root, set };
}

/**
 * A sentence in a box. Kinds: "info", "ok", "warn", "error".
 * @param {"info"|"ok"|"warn"|"error"} kind
 * @param {string} text
 * @param {...*} more
 */
export function note(kind, text, ...more) {
  const shape = { info: "info", ok: "check", warn: "warn", error: "error" }[kind];
  const role = kind === "error" ? "alert" : null;
  const body = h("div", { class: "grow" }, h("span", null, text), more);
  return h("div", { class: `note ${kind}`, role }, icon(shape), body);
}

/** What is shown where there is nothing yet: a drawing, a heading, a sentence, what to do. */
export function empty({ icon: shape, title, text, test }, ...actions) {
  return h(
    "div",
    { class: "empty", "data-test": test },
    icon(shape),
    h("h2", null, title),
    h("p", null, text),
    actions.length ? h("div", { class: "row center" }, actions) : null,
  );
}

/** A wheel that turns while something is fetched. */
export function spinner(label) {
  return h("span", { class: "spinner", role: "status", "aria-label": label });
}
