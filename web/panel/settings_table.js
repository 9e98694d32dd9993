/** The settings of a training as a table. */

import { h } from "./dom.js";

/** A setting's value as text. */
export function valueText(value, t) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "boolean") return t(value ? "on" : "off");
  if (Array.isArray(value)) return value.length ? value.map((item) => valueText(item, t)).join(", ") : "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/**
 * @param {Object} spec settings by name
 * @param {Function} t
 * @returns {HTMLTableElement}
 */
export function settingsTable(spec, t) {
  const rows = Object.entries(spec)
    .filter(([, value]) => value !== null && value !== "" && !(Array.isArray(value) && !value.length))
    .map(
      ([name, value]) => h(
        "tr",
        null,
        h("th", { scope: "row" }, t.or(`settings.${name}.label`, name)),
        h("td", null, valueText(value, t)),
      ),
    );
  return h("table", { class: "settings" }, h("tbody", null, rows));
}
