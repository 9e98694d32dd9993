/** The training that is being described: kept in the browser until it is started, so that a reload loses nothing. */

import { debounce } from "./dom.js";
import { keep, reread } from "./remember.js";

const SLOT = "draft";
const WAIT = 300;
// Settings that say which columns; a training takes one of them.
const COLUMNS = new Set(["rank", "columns", "avoid", "column_plan", "concept"]);

/**
 * @typedef {Object} Values
 * @property {string} name what the adapter will be called; "" until somebody says so
 * @property {string} base
 * @property {string} dataset
 * @property {string} preset
 * @property {Object<string, *>} settings only what was set by hand, by the names of the settings
 * @property {string} device
 * @property {string} engine what trains
 * @property {{wait_idle: boolean, unload: boolean}} options
 * @property {boolean} ownPrompts whether the sample prompts were written by hand, or follow the trigger word
 * @property {boolean} ownName whether the name was written by hand, or follows the dataset
 */

/** @returns {Values} */
function blank() {
  return {
    name: "",
    base: "",
    dataset: "",
    preset: "subject",
    settings: {},
    device: "auto",
    engine: "built-in",
    options: { wait_idle: false, unload: true },
    ownPrompts: false,
    ownName: false,
  };
}

/** A draft with every field of the right type, whatever was kept by an older version. */
function sound(kept) {
  const draft = blank();
  for (const [name, value] of Object.entries(draft)) {
    if (kept && typeof kept[name] === typeof value && kept[name] !== null) draft[name] = kept[name];
  }
  draft.options = { ...blank().options, ...draft.options };
  return draft;
}

/** The draft, with the listeners of the page's parts. */
export class Draft {
  /** @param {import("./panel.js").Host} host */
  constructor(host) {
    this.host = host;
    this.values = sound(reread(host, SLOT));
    this.listeners = new Set();
    this.save = debounce(() => keep(host, SLOT, this.values), WAIT);
  }

  /** Calls `listener(names)` with the names of what changed: fields of Values, or settings. @returns {() => void} */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Changes fields. @param {Partial<Values>} changes */
  change(changes) {
    Object.assign(this.values, changes);
    this.#tell(Object.keys(changes));
  }

  /** What was set by hand, or undefined. @param {string} name */
  setting(name) {
    return this.values.settings[name];
  }

  /** Sets a setting by hand; undefined or null gives it back to the preset. */
  set(name, value) {
    const settings = { ...this.values.settings };
    if (value === undefined || value === null) delete settings[name];
    else settings[name] = value;
    this.values.settings = settings;
    this.#tell([name]);
  }

  /** Puts another in its place, for instance the request of an earlier training; returns the old one. */
  replace(values) {
    const before = this.values;
    this.values = sound(values);
    this.#tell(["everything"]);
    return before;
  }

  /** The draft of "the same again, with changes". @param {Object} request as the server keeps it */
  static ofRequest(request) {
    return sound({ ...request, ownPrompts: true, ownName: true });
  }

  /** The draft with what a plan gives a concept: its columns, and its name for the file. */
  planned({ concept, columns }) {
    const kept = Object.entries(this.values.settings).filter(([name]) => !COLUMNS.has(name));
    const settings = { ...Object.fromEntries(kept), columns };
    return sound({ ...this.values, name: concept, ownName: true, settings });
  }

  /** A draft as it is before anything was said. */
  static blank() {
    return blank();
  }

  /** What the server is asked to train. @param {string[]} prompts the sample prompts in force */
  request(prompts) {
    const { name, base, dataset, preset, device, engine, options } = this.values;
    const settings = { ...this.values.settings };
    if (prompts.length) settings.sample_prompts = prompts;
    return { name: name.trim(), base, dataset, preset, settings, device, engine, options };
  }

  #tell(names) {
    this.save();
    for (const listener of [...this.listeners]) listener(names);
  }
}
