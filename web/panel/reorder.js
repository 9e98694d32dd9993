/** Changing the order of a list by dragging a row's handle, or with the arrow keys on it. */

import { h, on, setText } from "./dom.js";
import { icon } from "./icons.js";

/** The order of a list whose rows carry their id in data-id. */
export class Reorder {
  /** @param {{t: Function, list: HTMLElement, save: (ids: string[]) => Promise<void>}} options */
  constructor({ t, list, save }) {
    this.t = t;
    this.list = list;
    this.save = save;
    this.wanted = null;
    this.drag = null;
    this.spoken = h("div", { class: "visually-hidden", "aria-live": "assertive" });
    this.stops = [
      on(list, "pointermove", (event) => this.#move(event)),
      on(list, "pointerup", () => this.#drop()),
      on(list, "pointercancel", () => this.#drop()),
    ];
  }

  /** The ids in the order that is wanted here, as long as the server has not said the same. @param {string[]} ids */
  order(ids) {
    if (!this.wanted) return ids;
    const known = this.wanted.filter((id) => ids.includes(id));
    return [...known, ...ids.filter((id) => !known.includes(id))];
  }

  /** The handle of a row. */
  handle(row, { id, name }) {
    const root = h(
      "button",
      {
        type: "button",
        class: "drag-handle",
        "aria-label": this.t("jobs.move", { name }),
        title: this.t("jobs.moveHelp"),
        "data-test": "job-move",
      },
      icon("drag"),
    );
    on(root, "pointerdown", (event) => this.#grab(event, row));
    on(root, "keydown", (event) => this.#key(event, row, id, root));
    return root;
  }

  #ids() {
    return [...this.list.children].map((row) => row.dataset.id);
  }

  #grab(event, row) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.drag = { row, before: this.#ids().join() };
    this.list.setPointerCapture(event.pointerId);
    row.classList.add("dragged");
  }

  #move(event) {
    if (!this.drag) return;
    const { row } = this.drag;
    // It may have begun to run meanwhile, and is in another list now.
    if (row.parentElement !== this.list) return;
    const rows = [...this.list.children];
    const over = rows.find((other) => {
      const box = other.getBoundingClientRect();
      return other !== row && event.clientY > box.top && event.clientY < box.bottom;
    });
    if (!over) return;
    const below = rows.indexOf(over) > rows.indexOf(row);
    this.list.insertBefore(row, below ? over.nextSibling : over);
    this.wanted = this.#ids();
  }

  #drop() {
    if (!this.drag) return;
    this.drag.row.classList.remove("dragged");
    const changed = this.drag.before !== this.#ids().join();
    this.drag = null;
    if (changed) this.#send();
  }

  #key(event, row, id, root) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const rows = [...this.list.children];
    const to = rows.indexOf(row) + by;
    if (to < 0 || to >= rows.length) return;
    this.list.insertBefore(row, by < 0 ? rows[to] : rows[to].nextSibling);
    root.focus();
    setText(this.spoken, this.t("jobs.moved", { place: to + 1, count: rows.length }));
    this.wanted = this.#ids();
    this.#send();
  }

  async #send() {
    const sent = this.#ids();
    this.wanted = sent;
    await this.save(sent);
    // Another change may have come meanwhile.
    if (this.wanted === sent) this.wanted = null;
  }

  destroy() {
    this.stops.forEach((stop) => stop());
  }
}
