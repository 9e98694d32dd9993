/** What a training moved: a picture by layer and column, shares by the parts of the model, all of it as a table. */

import { ApiError, newest } from "./api.js";
import { combo, field, folded, spinner } from "./controls.js";
import { clear, h } from "./dom.js";
import { keptOptions } from "./export.js";
import { formats } from "./format.js";
import { HeatMap } from "./heat_map.js";

/** The spectrum part of a finished job's page; it asks the server once it is opened. */
export class SpectrumSection {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} id
   */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.formats = formats(ctx.t.lang);
    this.ask = newest();
    this.#build();
  }

  #build() {
    const { t } = this;
    this.which = combo({ test: "spectrum-checkpoint", onChange: () => this.#load() });
    this.map = new HeatMap({ t, say: (layer, cell) => this.#say(layer, cell) });
    this.blocks = h("div", { class: "shares", "data-test": "spectrum-blocks" });
    this.table = h("div", { class: "table-scroll" });
    this.said = h("div", { role: "status" });
    const asTable = folded(
      { title: t("spectrum.table"), test: "spectrum-table", onToggle: (open) => open && this.#drawTable() },
      this.table,
    );
    this.asTable = asTable;
    this.picture = h(
      "div",
      { class: "stack", hidden: true },
      this.map.root,
      h("h3", null, t("spectrum.where")),
      this.blocks,
      asTable,
    );
    this.root = folded(
      { title: t("spectrum.title"), test: "spectrum-fold", onToggle: (open) => open && !this.data && this.#load() },
      h(
        "div",
        { class: "stack" },
        h("p", { class: "muted" }, t("spectrum.about")),
        h("div", { class: "form-row" }, field({ label: t("spectrum.which"), control: this.which }).root),
        this.said,
        this.picture,
      ),
    );
  }

  /** @param {{summary: Object, detail: Object}} news */
  update({ summary, detail }) {
    const options = keptOptions(summary, detail, this.t, this.formats);
    const stamp = JSON.stringify(options);
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    this.which.offer(options, this.which.get() || options[0]?.value);
  }

  async #load() {
    clear(this.said, spinner(this.t("loading")));
    const path = `/jobs/${this.id}/spectrum?checkpoint=${encodeURIComponent(this.which.get())}`;
    try {
      const { current, value } = await this.ask((signal) => this.ctx.api.get(path, { signal }));
      if (current) this.#show(value);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.said, h("p", { class: "danger-text" }, error.message));
    }
  }

  #show(data) {
    this.data = data;
    const order = new Map(data.blocks.map(({ block }, i) => [block, i]));
    this.layers = [...data.layers].sort((a, b) => order.get(a.block) - order.get(b.block));
    clear(this.said, data.exact ? null : h("p", { class: "muted small" }, this.t("spectrum.inexact")));
    this.picture.hidden = false;
    this.map.show(this.layers);
    this.#drawBlocks(data.blocks);
    if (this.asTable.open) this.#drawTable();
  }

  #drawBlocks(blocks) {
    const most = Math.max(...blocks.map(({ share }) => share), 1e-30);
    const rows = blocks.map(({ block, share, layers }) => {
      const bar = h("span", { class: "share-fill", style: { width: `${(100 * share) / most}%` } });
      const title = this.t("spectrum.layers", { count: layers });
      return h(
        "div",
        { class: "share", title },
        h("span", { class: "share-name" }, block),
        h("span", { class: "share-bar" }, bar),
        h("span", { class: "share-value number-text" }, this.formats.percent(share, 1)),
      );
    });
    clear(this.blocks, rows);
  }

  #drawTable() {
    const { t } = this;
    const heads = ["layer", "share", "total", "most"].map((name) => h("th", { scope: "col" }, t(`spectrum.${name}`)));
    const rows = this.layers.map((layer) => h(
      "tr",
      null,
      h("th", { scope: "row" }, layer.name),
      h("td", null, this.formats.percent(layer.share, 2)),
      h("td", null, this.formats.percent(layer.total, 3)),
      h("td", null, this.#strongest(layer)),
    ));
    clear(
      this.table,
      h("table", { class: "settings" }, h("thead", null, h("tr", null, heads)), h("tbody", null, rows)),
    );
  }

  #strongest({ columns, widths, moved }) {
    const at = moved.indexOf(Math.max(...moved));
    return `${this.#columnText({ column: columns[at], width: widths[at] })} (${this.formats.percent(moved[at], 3)})`;
  }

  #columnText({ column, width }) {
    const first = this.formats.count(column + 1);
    return width > 1 ? `${first}–${this.formats.count(column + width)}` : first;
  }

  #say(layer, cell) {
    if (!layer) return this.t("spectrum.hint");
    return this.t(
      "spectrum.cell",
      { layer: layer.name, column: this.#columnText(cell), moved: this.formats.percent(cell.moved, 3) },
    );
  }

  destroy() {
    this.map.destroy();
  }
}
