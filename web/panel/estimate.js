/** What a training will cost, from the server's estimate: asked again shortly after each change. */

import { ApiError, newest } from "./api.js";
import { debounce, h, setText } from "./dom.js";
import { isOther } from "./engine.js";
import { formats } from "./format.js";
import { icon } from "./icons.js";

const WAIT = 400;
const AGAIN = 1000;

function item(name, shape, label) {
  const value = h("span", { class: "estimate-value number-text", "data-test": `estimate-${name}` }, "–");
  const root = h("div", { class: "estimate-item" }, icon(shape), h("span", { class: "estimate-label" }, label), value);
  return { root, value };
}

/** What the memory is for, a line for each part. */
function parts(memory, format) {
  const largest = Object.entries(memory ?? {}).sort(([, a], [, b]) => b - a);
  return largest.map(([name, bytes]) => `${name.replaceAll("_", " ")}: ${format.bytes(bytes)}`).join("\n");
}

/**
 * @param {import("./panel.js").Ctx} ctx
 * @param {() => Object|null} request the request to estimate, null while base or pictures are missing
 * @returns {{root: HTMLElement, changed: () => void, destroy: () => void}}
 */
export function estimateBar({ t, api }, request) {
  const format = formats(t.lang);
  const items = {
    memory: item("memory", "memory", t("estimate.memory")),
    time: item("time", "clock", t("estimate.time")),
    file: item("file", "file", t("estimate.file")),
    parameters: item("parameters", "spectrum", t("estimate.parameters")),
  };
  const compact = new Intl.NumberFormat(t.lang, { notation: "compact", maximumSignificantDigits: 3 });
  const free = h("span", { class: "estimate-free muted small number-text" });
  items.memory.root.append(free);
  const state = h("span", { class: "estimate-state small muted", role: "status", "data-test": "estimate-state" });
  const row = h("div", { class: "estimate-items" }, Object.values(items).map(({ root }) => root));
  const root = h("div", { class: "estimate", "data-test": "estimate" }, row, state);
  const only = newest();
  let timer = 0;

  let seen = false;

  const say = (text, bad = false) => {
    if (text !== t("estimate.working")) root.removeAttribute("aria-busy");
    setText(state, text);
    state.classList.toggle("danger-text", bad);
  };
  const blank = () => {
    seen = false;
    for (const { value } of Object.values(items)) setText(value, "–");
    items.memory.root.classList.remove("bad");
  };
  const show = (found, other) => {
    const over = found.free_bytes > 0 && found.memory_bytes > found.free_bytes;
    seen = true;
    setText(items.memory.value, format.bytes(found.memory_bytes));
    setText(free, found.free_bytes > 0 ? t("estimate.of_free", { free: format.bytes(found.free_bytes) }) : "");
    items.memory.root.classList.toggle("bad", over);
    setText(items.time.value, found.seconds > 0 ? format.duration(found.seconds) : t("estimate.unknown"));
    setText(items.file.value, format.bytes(found.file_bytes));
    setText(items.parameters.value, compact.format(found.parameters));
    items.time.root.title = t(`estimate.time_from.${found.sources?.time ?? "unknown"}`);
    items.memory.root.title = parts(found.memory, format);
    items.parameters.root.title = format.count(found.parameters);
    if (other) say(t("estimate.built_in"));
    else say(over ? t("estimate.too_much") : "", over);
  };
  const ask = async () => {
    clearTimeout(timer);
    const wanted = request();
    if (!wanted) {
      blank();
      return say("");
    }
    root.setAttribute("aria-busy", "true");
    if (!seen) say(t("estimate.working"));
    return answer(wanted);
  };
  const answer = async (wanted) => {
    try {
      const { current, value } = await only((signal) => api.post("/estimate", { request: wanted }, { signal }));
      if (!current) return;
      if (!value.pending) return void show(value, isOther(wanted.engine));
      timer = setTimeout(ask, AGAIN);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      blank();
      say(error.message, true);
    }
  };
  const later = debounce(ask, WAIT);
  const destroy = () => {
    later.cancel();
    clearTimeout(timer);
  };
  return { root, changed: later, destroy };
}
