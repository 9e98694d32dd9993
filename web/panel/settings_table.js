/** The settings of a training as tables, one for each group of the form. */

import { ApiError } from "./api.js";
import { clear, h } from "./dom.js";
import { shown } from "./setting.js";

const unset = (value) => value === null || value === "" || (typeof value === "object" && !Object.keys(value).length);

/** What a setting is called, in the reader's language. */
export function settingLabel(t, name, label = name) {
  return t.or(`form.settings.${name}.label`, label);
}

/**
 * The tables, made when they are first looked at: the labels are the form's.
 * @param {import("./panel.js").Ctx} ctx
 * @returns {{root: HTMLElement, open: () => Promise<void>, update: (spec: Object) => void}}
 */
export function settingsTables(ctx) {
  const root = h("div", { class: "settings-box", "data-test": "settings" });
  let spec = {};
  let form = null;
  let drawn = "";
  const draw = () => {
    const stamp = JSON.stringify(spec);
    if (!form || stamp === drawn) return;
    drawn = stamp;
    clear(root, form.groups.map((group) => groupTable(ctx.t, group, form.settings, spec)));
  };
  const open = async () => {
    try {
      form ??= await ctx.api.get("/form");
      draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(root, h("p", { class: "danger-text" }, error.message));
    }
  };
  const update = (next) => {
    spec = next;
    draw();
  };
  return { root, open, update };
}

function groupTable(t, group, settings, spec) {
  const own = settings.filter(({ name, group: of }) => of === group.id && !unset(spec[name] ?? null));
  if (!own.length) return null;
  const rows = own.map(({ name, label }) =>
    h("tr", null, h("th", { scope: "row" }, settingLabel(t, name, label)), h("td", null, shown(spec[name], t))),
  );
  return h(
    "table",
    { class: "settings" },
    h("caption", null, t.or(`form.groups.${group.id}`, group.title)),
    h("tbody", null, rows),
  );
}
