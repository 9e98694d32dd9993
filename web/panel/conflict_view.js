/** What was found of several adapters: one sentence, the map, every two of them in numbers, all of it as a table. */

import { plainName } from "./catalogue.js";
import { folded, note, segmented } from "./controls.js";
import { clear, h } from "./dom.js";
import { mapRows, spansText } from "./conflict_data.js";
import { conflictPainter } from "./conflict_map.js";
import { clashes, sentence } from "./conflict_words.js";
import { formats } from "./format.js";
import { columnText, HeatMap } from "./heat_map.js";
import { named } from "./swatches.js";

const PAIR = ["pair", "columns", "layers", "overlap", "cosine", "interference"];

/** The picture and its words, hidden until there is something to show. */
export class ConflictView {
  /** @param {import("./panel.js").Ctx} ctx */
  constructor(ctx) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.formats = formats(ctx.t.lang);
    this.by = "blocks";
    this.#build();
  }

  #build() {
    const { t } = this;
    const say = (row, cell) => this.#say(row, cell);
    const painter = conflictPainter();
    this.map = new HeatMap({ t, label: t("conflict.map"), test: "conflict", painter, first: 0, say });
    this.rows = segmented({
      label: t("conflict.rows"), value: "blocks", test: "conflict-rows", onChange: (by) => this.#show(by),
      options: ["blocks", "layers"].map((value) => ({ value, label: t(`conflict.by.${value}`) })),
    });
    this.words = h("div", { class: "stack tight", role: "status" });
    this.legend = h("div", { class: "row wrap conflict-legend" });
    this.pairs = h("div", { class: "table-scroll" });
    this.table = h("div", { class: "table-scroll" });
    this.asTable = folded(
      { title: t("spectrum.table"), test: "conflict-table", onToggle: (open) => open && this.#drawTable() },
      this.table,
    );
    const over = h("div", { class: "row wrap between" }, this.legend, this.rows.root);
    const how = h("p", { class: "muted small said" }, t("conflict.about"));
    const picture = h("div", { class: "card stack" }, over, this.map.root, how);
    const title = h("h3", null, t("conflict.pairs"));
    const parts = [this.words, picture, h("div", { class: "card stack" }, title, this.pairs, this.asTable)];
    this.root = h("div", { class: "stack", hidden: true, "data-test": "conflict" }, parts);
  }

  /** @param {Object} conflict as the server gives it */
  show(conflict) {
    this.conflict = conflict;
    this.names = conflict.adapters.map(({ name }) => plainName(name));
    this.root.hidden = false;
    const kind = conflict.pairs.some(clashes) ? "warn" : "ok";
    const said = note(kind, sentence(conflict, this.names, this.t));
    said.dataset.test = "conflict-sentence";
    const notes = conflict.notes.map((text) => h("p", { class: "muted small" }, text));
    clear(this.words, said, notes);
    const striped = h("i", { class: "swatch both", "aria-hidden": "true" });
    const both = h("span", { class: "legend-name" }, striped, h("span", null, this.t("conflict.both")));
    clear(this.legend, this.names.map((name, place) => named(place, name)), both);
    this.#show(this.by);
    this.#drawPairs();
    if (this.asTable.open) this.#drawTable();
  }

  #kind(kind) {
    return this.t.or(`conflict.works.${kind}`, kind);
  }

  #show(by) {
    this.by = by;
    this.map.show(mapRows(this.conflict, by, (kind) => this.#kind(kind)));
  }

  #say(row, cell) {
    const { t } = this;
    if (!row) return t("conflict.hint");
    const parts = row.values[cell.index]
      .map((value, place) => [value, this.names[place]])
      .filter(([value]) => value > 0)
      .map(([value, name]) => t("conflict.part", { name, share: this.formats.percent(value, 2) }));
    const facts = { layer: row.name, column: columnText(this.formats, cell, 0), parts: parts.join(", ") };
    return row.shared[cell.index] ? t("conflict.cellShared", facts) : t("conflict.cell", facts);
  }

  #percent(share) {
    return share === null ? "?" : this.formats.percent(share, share < 0.01 ? 2 : 0);
  }

  #drawPairs() {
    const { t, conflict } = this;
    const heads = PAIR.map((name) => h("th", { scope: "col" }, t(`conflict.${name}`)));
    const rows = conflict.pairs.map((pair) => this.#pairRow(pair));
    const head = h("thead", null, h("tr", null, heads));
    clear(this.pairs, h("table", { class: "settings pairs-table" }, head, h("tbody", null, rows)));
  }

  #pairRow(pair) {
    const { t, names } = this;
    const { a, b, interference, overlap, cosine, shared, shared_layers: layers } = pair;
    const onto = (from, to, share) =>
      h("div", null, t("conflict.onto", { a: names[from], b: names[to], share: this.#percent(share) }));
    const values = [
      spansText(shared, this.formats) || "–",
      overlap === null ? "?" : this.formats.count(layers),
      this.#percent(overlap),
      cosine === null ? "?" : this.formats.number(cosine, 2),
      h("div", null, onto(a, b, interference[0]), onto(b, a, interference[1])),
    ];
    // The labels stand before the values where there is no room for columns.
    const cells = values.map((value, i) => h("td", { "data-label": t(`conflict.${PAIR[i + 1]}`) }, value));
    const name = h("th", { scope: "row" }, named(a, names[a]), " ", named(b, names[b]));
    return h("tr", { "data-test": "conflict-pair", class: clashes(pair) ? "clash" : "" }, name, cells);
  }

  /** Every layer, for those who do not see the map. */
  #drawTable() {
    const { t, conflict } = this;
    const heads = [t("spectrum.layer"), ...this.names, t("conflict.columns")];
    const head = heads.map((text) => h("th", { scope: "col" }, text));
    const rows = conflict.layers.map((layer) => {
      const own = layer.used.map((spans, i) => {
        const share = layer.bands[i] === null ? "–" : this.formats.percent(layer.shares[i], 2);
        return h("td", null, spans ? `${share} · ${spansText(spans, this.formats)}` : share);
      });
      const shared = layer.pairs.map((pair) => spansText(pair.shared, this.formats)).filter(Boolean).join("; ");
      return h("tr", null, h("th", { scope: "row" }, layer.name), own, h("td", null, shared || "–"));
    });
    const body = h("tbody", null, rows);
    clear(this.table, h("table", { class: "settings wide-table" }, h("thead", null, h("tr", null, head)), body));
  }

  destroy() {
    this.map.destroy();
  }
}
