/** The rows of a stack as they stand on the node: what is drawn and what one can do. It knows nothing of ComfyUI. */

import { h, keyed, setText } from "../panel/dom.js";
import { Reorder } from "../panel/reorder.js";
import { RowView } from "./row_view.js";
import { row } from "./rows_data.js";

/**
 * @typedef {Object} Doings
 * @property {() => void} changed the rows are others now
 * @property {(anchor: HTMLElement, chosen: string, pick: (name: string) => void) => void} choose opens the list
 * @property {(anchor: HTMLElement, row: import("./rows_data.js").Row, changed: () => void) => void} tell opens facts
 * @property {(name: string) => boolean} isThere whether a file of that name is known
 */

export class RowsView {
  /** @param {Function} t @param {Doings} doings */
  constructor(t, doings) {
    this.t = t;
    this.doings = doings;
    this.rows = [];
    this.views = new Map();
    this.list = h("div", { class: "spectral-list", role: "list", "data-test": "rows-list" });
    this.reorder = new Reorder({ t, list: this.list, save: async (ids) => this.#ordered(ids) });
    this.root = h("div", { class: "spectral-rows", "data-test": "rows" }, this.#head(), this.list, this.reorder.spoken);
    this.empty = h("div", { class: "spectral-note" }, t("rows.empty"));
    this.fault = h("div", { class: "spectral-note bad", role: "alert", hidden: true }, t("rows.unreadable"));
    this.root.append(this.fault, this.empty);
    this.set([]);
  }

  #head() {
    const { t } = this;
    this.all = h("input", {
      class: "spectral-switch", type: "checkbox", role: "switch", "aria-label": t("rows.all"), title: t("rows.all"),
      "data-test": "rows-all", onChange: () => this.#toggleAll(),
    });
    this.count = h("span", { class: "spectral-count" });
    this.add = h(
      "button",
      { type: "button", class: "spectral-add", "data-test": "rows-add", onClick: () => this.#choose() },
      `+ ${t("rows.add")}`,
    );
    return h("div", { class: "spectral-head" }, this.all, this.count, this.add);
  }

  /** @param {import("./rows_data.js").Row[]|null} rows null: what could not be read */
  set(rows) {
    this.fault.hidden = rows !== null;
    this.rows = rows ?? [];
    this.draw();
  }

  draw() {
    const { t, rows } = this;
    keyed(this.list, rows, (each) => each.id, (each) => this.#view(each));
    const on = rows.filter((each) => each.on).length;
    this.all.checked = rows.length > 0 && on === rows.length;
    this.all.indeterminate = on > 0 && on < rows.length;
    this.all.disabled = rows.length === 0;
    setText(this.count, rows.length ? t("rows.count", { on, count: rows.length }) : "");
    this.empty.hidden = rows.length > 0 || !this.fault.hidden;
  }

  #view(each) {
    const { t, doings } = this;
    const remove = () => this.#remove(each);
    const view = new RowView(t, each, { ...doings, remove, changed: () => this.#changed() });
    view.handle = this.reorder.handle(view.root, { id: each.id, name: each.adapter });
    view.root.prepend(view.handle);
    return view;
  }

  #changed() {
    this.fault.hidden = true;
    this.draw();
    this.doings.changed();
  }

  #toggleAll() {
    const on = !this.rows.every((each) => each.on);
    for (const each of this.rows) each.on = on;
    this.#changed();
  }

  #choose() {
    this.doings.choose(this.add, "", (adapter) => {
      this.rows.push(row({ adapter }));
      this.#changed();
      this.list.lastElementChild.querySelector(".spectral-name").focus();
    });
  }

  #remove(each) {
    const at = this.rows.indexOf(each);
    this.rows.splice(at, 1);
    this.#changed();
    const next = this.list.children[Math.min(at, this.rows.length - 1)];
    (next?.querySelector(".spectral-remove") ?? this.add).focus();
  }

  #ordered(ids) {
    this.rows.sort((a, b) => ids.indexOf(a.id) - ids.indexOf(b.id));
    this.#changed();
  }

  destroy() {
    this.reorder.destroy();
  }
}
