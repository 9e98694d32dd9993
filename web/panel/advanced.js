/** The settings: the common ones in sight; all others folded away, in groups, with a search over names and helps. */

import { button, folded, textInput } from "./controls.js";
import { h, setText } from "./dom.js";
import { icon } from "./icons.js";
import { belongs } from "./setting.js";

function words(row, t) {
  const { name, label, help } = row.setting;
  return [name, name.replaceAll("_", " "), label, help, row.root.textContent, t.or(`form.settings.${name}.help`, "")]
    .join(" ")
    .toLowerCase();
}

/**
 * The settings that are in sight without unfolding: the common ones, and those that only the chosen method has.
 * @param {Map<string, {root: HTMLElement, setting: Object}>} rows
 * @returns {{root: HTMLElement, set: (method: string) => void}}
 */
export function visibleSettings(rows) {
  const all = [...rows.values()];
  const root = h("div", { class: "settings-grid", "data-test": "common-settings" }, all.map((row) => row.root));
  const set = (method) => {
    for (const row of all) row.root.hidden = !belongs(row.setting, method);
  };
  return { root, set };
}

/**
 * @param {Function} t
 * @param {{groups: {id: string, title: string}[], rows: Map<string, Object>, reset: () => void}} page
 *   rows: those that are not in sight elsewhere; reset: gives all settings back to the preset
 * @returns {{root: HTMLElement, set: (method: string, changed: Set<string>) => void, reveal: (name: string) => void}}
 */
export function advancedSettings(t, { groups, rows, reset }) {
  const hint = t("advanced.search");
  const search = textInput({ placeholder: hint, label: hint, test: "search", type: "search" });
  const none = h("p", { class: "muted small", hidden: true, role: "status" }, t("advanced.none"));
  const all = t("advanced.reset");
  const restore = button({ label: all, icon: "reset", kind: "quiet", onClick: reset, test: "reset-all" });
  const count = h("span", { class: "chip accent", "data-test": "changed-count" });
  const parts = groups
    .map((group) => groupPart(t, group, [...rows.values()].filter(({ setting }) => setting.group === group.id)))
    .filter((part) => part.rows.length);
  const bar = h("div", { class: "row search-row" }, icon("search"), search.root, restore);
  const body = h("div", { class: "stack" }, bar, none, h("div", null, parts.map((part) => part.root)));
  const root = folded({ title: t("advanced.title"), test: "advanced", aside: count }, body);
  let method = "";

  const filter = () => {
    const wanted = search.get().trim().toLowerCase();
    let seen = 0;
    for (const part of parts) seen += part.filter(wanted, method, t);
    none.hidden = seen > 0;
  };
  search.input.addEventListener("input", filter);
  const set = (inForce, changed) => {
    count.hidden = changed.size === 0;
    setText(count, t("advanced.changed", { count: changed.size }));
    restore.disabled = changed.size === 0;
    for (const part of parts) part.mark(changed);
    if (method === inForce) return;
    method = inForce;
    filter();
  };
  const reveal = (name) => {
    root.open = true;
    search.set("");
    filter();
    const part = parts.find(({ rows: own }) => own.some(({ setting }) => setting.name === name));
    if (part) part.root.open = true;
  };
  return { root, set, reveal };
}

function groupPart(t, group, rows) {
  const count = h("span", { class: "muted small" });
  const grid = h("div", { class: "settings-grid" }, rows.map((row) => row.root));
  const title = t.or(`form.groups.${group.id}`, group.title);
  const root = folded({ title, test: `group-${group.id}`, aside: count }, grid);
  const filter = (wanted, method) => {
    let seen = 0;
    for (const row of rows) {
      const hit = belongs(row.setting, method) && (!wanted || words(row, t).includes(wanted));
      row.root.hidden = !hit;
      seen += Number(hit);
    }
    root.hidden = seen === 0;
    root.open = seen > 0 && Boolean(wanted);
    return seen;
  };
  const mark = (changed) => {
    const own = rows.filter(({ setting }) => changed.has(setting.name)).length;
    setText(count, own ? t("advanced.changed", { count: own }) : "");
  };
  return { root, rows, filter, mark };
}
