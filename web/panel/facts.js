/** The facts of a file as a list of names and values. */

import { copyText } from "./act.js";
import { clear, h } from "./dom.js";
import { formats } from "./format.js";
import { methodText } from "./method.js";

const HASH_SHOWN = 12;

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
      ["method", [methodText(t, info), info.columns].filter(Boolean).join(", ")],
      ["family", info.family ? t.or(`family.${info.family}`, info.family) : ""],
      ["base", info.base_name],
      ["profile", info.profile ? t.or(`adapter.profiles.${info.profile}`, info.profile) : ""],
      ["layers", info.layers && f.count(info.layers)],
      ["parameters", info.parameters && f.count(info.parameters)],
      ["size", f.bytes(info.file_bytes)],
      ...trained(info, f),
      ["sha256", info.sha256 && hash(info.sha256)],
      ["content", info.content_hash && hash(info.content_hash)],
    ];
    clear(root, rows.filter(([, value]) => value).map(([name, value]) => fact(t(`facts.${name}`), value)));
  };
  return { root, show };
}

/** How it was trained, as far as the file tells. */
function trained({ training = {} }, f) {
  const plain = (value) => (typeof value === "number" ? f.number(value, 6) : value);
  const date = Number(training.date ?? training.finished);
  return [
    ["steps", plain(training.steps)],
    ["lr", plain(training.lr)],
    ["images", plain(training.images)],
    ["date", date > 0 ? f.date(date) : ""],
  ];
}

function fact(name, value) {
  const title = typeof value === "string" ? value : null;
  return h("div", null, h("dt", null, name), h("dd", { title }, value));
}
