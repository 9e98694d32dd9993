/** The facts of a file as a list of names and values. */

import { copyText } from "./act.js";
import { clear, h } from "./dom.js";
import { formats } from "./format.js";
import { methodText } from "./method.js";

const HASH_SHOWN = 12;
const MOVED_SHOWN = 3;

/**
 * @param {import("./panel.js").Ctx} ctx
 * @returns {{root: HTMLElement, show: (info: Object) => void}}
 */
export function factList(ctx) {
  const { t } = ctx;
  const f = formats(t.lang);
  const root = h("dl", { class: "facts adapter-facts", "data-test": "adapter-facts" });
  const hash = (value) => {
    const copy = () => copyText(ctx, value);
    return h("button", { type: "button", class: "link mono", title: value, onClick: copy }, value.slice(0, HASH_SHOWN));
  };
  const show = (info) => {
    const rows = [
      ["method", [methodText(t, info), columnsText(t, info)].filter(Boolean).join(", ")],
      ["family", info.family ? t.or(`family.${info.family}`, info.family) : ""],
      ["base", info.base_name],
      ["profile", info.profile ? t.or(`adapter.profiles.${info.profile}`, info.profile) : ""],
      ["layers", info.layers && f.count(info.layers)],
      ["parameters", info.parameters && f.count(info.parameters)],
      ["size", f.bytes(info.file_bytes)],
      ["sha256", info.sha256 && hash(info.sha256)],
      ["content", info.content_hash && hash(info.content_hash)],
      ["leftOut", info.left_out?.length && f.count(info.left_out.length)],
    ];
    const named = rows.map(([name, value]) => [t(`facts.${name}`), value]);
    const known = [...named, ...trained(t, f, info)].filter(([, value]) => value);
    clear(root, known.map(([name, value]) => fact(name, value)));
  };
  return { root, show };
}

/** How it was trained, as far as the file tells. */
function trained(t, f, { training }) {
  const label = (name) => t.or(`facts.trained.${name.replaceAll(" ", "_")}`, name);
  const text = (name, value) => {
    const time = name === "date" ? Date.parse(value) / 1000 : NaN;
    return Number.isNaN(time) ? String(value) : f.date(time);
  };
  return Object.entries(training ?? {}).map(([name, value]) => [label(name), text(name, value)]);
}

/** The columns, and those of layers that use others. */
function columnsText(t, { columns, moved }) {
  const others = Object.entries(moved ?? {}).slice(0, MOVED_SHOWN);
  const said = others.map(([which, count]) => t("facts.moved", { columns: which, count }));
  return [columns, ...said].filter(Boolean).join("; ");
}

function fact(name, value) {
  const title = typeof value === "string" ? value : null;
  return h("div", null, h("dt", null, name), h("dd", { title }, value));
}
