/** What the check of a dataset found, worst first. */

import { button, note } from "./controls.js";
import { clear, h } from "./dom.js";
import { icon } from "./icons.js";

const FEW = 4;

/**
 * @param {Function} t
 * @returns {{root: HTMLElement, show: (result: Object|null) => void, fail: (text: string) => void, wait: () => void}}
 */
export function findingsList(t) {
  const root = h("div", { class: "stack tight", "data-test": "check", "aria-live": "polite" });
  const show = (result) => {
    root.removeAttribute("aria-busy");
    clear(root);
    if (result) root.append(headline(result, t), ...listing(result.findings, t));
  };
  const fail = (text) => {
    root.removeAttribute("aria-busy");
    clear(root, note("error", text));
  };
  return { root, show, fail, wait: () => root.setAttribute("aria-busy", "true") };
}

function headline({ usable, findings, sizes }, t) {
  const bad = new Set(findings.filter(({ fatal, file }) => fatal && file).map(({ file }) => file)).size;
  const kind = bad || usable === 0 ? "error" : findings.length ? "warn" : "ok";
  const part = ([size, count]) => t("check.size", { size: size.replace("x", " × "), count });
  const parts = Object.entries(sizes ?? {}).map(part);
  const text = bad ? t("check.bad", { count: usable, bad }) : t("check.good", { count: usable });
  const more = parts.length ? h("span", { class: "muted small" }, ` ${parts.join(", ")}`) : null;
  const root = note(kind, text, more);
  root.dataset.test = "check-headline";
  root.dataset.usable = String(usable);
  return root;
}

function listing(findings, t) {
  if (!findings.length) return [];
  const sorted = [...findings].sort((a, b) => Number(b.fatal) - Number(a.fatal));
  const list = h("ul", { class: "plain-list findings" }, sorted.slice(0, FEW).map(finding));
  if (sorted.length <= FEW) return [list];
  const rest = sorted.slice(FEW);
  const all = button({
    label: t("check.more", { count: rest.length }),
    kind: "quiet",
    onClick: () => {
      list.append(...rest.map(finding));
      all.remove();
    },
  });
  return [list, all];
}

function finding({ file, kind, text, fatal }) {
  const words = h("span", { class: "grow" }, file ? [h("strong", null, file), " "] : null, text);
  const shape = icon(fatal ? "error" : "warn");
  const look = `row top check-finding ${fatal ? "fatal" : "mild"}`;
  const props = { class: look, "data-test": "finding", "data-kind": kind };
  return h("li", props, shape, words);
}
