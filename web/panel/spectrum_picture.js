/** What an adapter moved: a picture by layer and column, shares by the parts of the model, all of it as a table. */

import { folded } from "./controls.js";
import { clear, h } from "./dom.js";
import { formats } from "./format.js";
import { columnText, HeatMap } from "./heat_map.js";

// People count from 1 here; settings such as top:8@16 count from 0.
const FIRST = 1;

/** Darker where more has moved. @returns {import("./heat_map.js").Painter} */
function movedPainter() {
  let top = 1;
  const prepare = (layers) => {
    top = Math.max(1e-30, ...layers.map(({ moved }) => Math.max(...moved)));
  };
  const draw = (g, colours, { layer, index, x, y, width, height }) => {
    g.fillStyle = colours.smooth;
    // By the root, or one strong column would hide all others.
    g.globalAlpha = Math.sqrt(layer.moved[index] / top);
    g.fillRect(x, y, width, height);
  };
  return { colours: ["smooth"], prepare, draw };
}

/** The picture, hidden until there is something to show. */
export class SpectrumPicture {
  /** @param {import("./panel.js").Ctx} ctx */
  constructor({ t }) {
    this.t = t;
    this.formats = formats(t.lang);
    const say = (layer, cell) => this.#say(layer, cell);
    const painter = movedPainter();
    this.map = new HeatMap({ t, label: t("spectrum.map"), test: "spectrum", painter, first: FIRST, say });
    this.inexact = h("p", { class: "muted small", hidden: true }, t("spectrum.inexact"));
    this.blocks = h("div", { class: "shares", "data-test": "spectrum-blocks" });
    this.table = h("div", { class: "table-scroll" });
    this.asTable = folded(
      { title: t("spectrum.table"), test: "spectrum-table", onToggle: (open) => open && this.#drawTable() },
      this.table,
    );
    const where = h("h3", null, t("spectrum.where"));
    const parts = [this.inexact, this.map.root, where, this.blocks, this.asTable];
    this.root = h("div", { class: "stack", hidden: true }, parts);
  }

  /** @param {Object} data as the server gives a spectrum */
  show(data) {
    const order = new Map(data.blocks.map(({ block }, i) => [block, i]));
    this.layers = [...data.layers].sort((a, b) => order.get(a.block) - order.get(b.block));
    this.root.hidden = false;
    this.inexact.hidden = data.exact;
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
    const column = columnText(this.formats, { column: columns[at], width: widths[at] }, FIRST);
    return `${column} (${this.formats.percent(moved[at], 3)})`;
  }

  #say(layer, cell) {
    if (!layer) return this.t("spectrum.hint");
    const moved = this.formats.percent(layer.moved[cell.index], 3);
    return this.t("spectrum.cell", { layer: layer.name, column: columnText(this.formats, cell, FIRST), moved });
  }

  destroy() {
    this.map.destroy();
  }
}
