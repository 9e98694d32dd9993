/** One row of a stack: its switch, its file, its strengths. */

import { h, on, setText } from "../panel/dom.js";
import { icon } from "../panel/icons.js";
import { nameParts } from "./picker.js";
import { scrub } from "./scrub.js";

export class RowView {
  /**
   * @param {Function} t
   * @param {import("./rows_data.js").Row} row changed in place
   * @param {import("./rows_view.js").Doings & {remove: () => void}} doings
   */
  constructor(t, row, doings) {
    this.t = t;
    this.row = row;
    this.doings = doings;
    /** By which it is moved; whoever made the row puts it there. @type {HTMLElement|undefined} */
    this.handle = undefined;
    this.toggle = h("input", {
      class: "spectral-switch", type: "checkbox", role: "switch", "data-test": "row-on",
      onChange: () => this.#set({ on: this.toggle.checked }),
    });
    this.name = h("button", {
      type: "button", class: "spectral-name", "data-test": "row-name", onClick: () => this.#choose(),
    });
    this.model = scrub({
      label: t("rows.model"), test: "row-model",
      onMove: (model) => !row.apart && this.clip.set(model),
      onDone: (model) => this.#set(row.apart ? { model } : { model, clip: model }),
    });
    this.clip = scrub({ label: t("rows.clip"), test: "row-clip", onMove() {}, onDone: (clip) => this.#set({ clip }) });
    this.link = h("button", {
      type: "button", class: "spectral-icon", "data-test": "row-link", onClick: () => this.#apart(),
    });
    this.info = this.#icon("info", t("rows.info"), "row-info", () => this.#tell());
    this.remove = this.#icon("close", t("rows.remove"), "row-remove", () => doings.remove());
    this.remove.classList.add("spectral-remove");
    this.root = h(
      "div",
      { class: "spectral-row", role: "listitem", "data-id": row.id, "data-test": "row" },
      this.toggle, this.name, this.model.root, this.link, this.clip.root, this.info, this.remove,
    );
    on(this.root, "contextmenu", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.#tell();
    });
  }

  update() {
    const { t, row } = this;
    const { folder, name } = nameParts(row.adapter);
    const there = !row.adapter || this.doings.isThere(row.adapter);
    setText(this.name, name || t("rows.choose"));
    this.name.title = there ? folder + name : t("rows.missing", { name: row.adapter });
    this.name.classList.toggle("bad", !there);
    this.handle?.setAttribute("aria-label", t("jobs.move", { name }));
    this.toggle.checked = row.on;
    this.toggle.setAttribute("aria-label", t("rows.on", { name }));
    this.root.classList.toggle("off", !row.on);
    this.root.classList.toggle("apart", row.apart);
    this.model.set(row.model);
    this.clip.set(row.clip);
    this.clip.root.hidden = !row.apart;
    this.link.replaceChildren(icon(row.apart ? "unlink" : "link"));
    this.link.title = t(row.apart ? "rows.together" : "rows.apart");
    this.link.setAttribute("aria-label", this.link.title);
    this.info.classList.toggle("marked", row.parts !== "");
  }

  #icon(shape, label, test, onClick) {
    const named = { "aria-label": label, title: label, "data-test": test };
    return h("button", { type: "button", class: "spectral-icon", ...named, onClick }, icon(shape));
  }

  #set(values) {
    Object.assign(this.row, values);
    this.doings.changed();
  }

  #apart() {
    const { row } = this;
    this.#set(row.apart ? { apart: false, clip: row.model } : { apart: true });
  }

  #choose() {
    this.doings.choose(this.name, this.row.adapter, (adapter) => {
      this.#set({ adapter });
      this.name.focus();
    });
  }

  #tell() {
    this.doings.tell(this.info, this.row, () => this.doings.changed());
  }
}
