/** A picture of layers: a row per layer in its block, columns by falling singular value; what a cell shows is drawn by
 * a painter. */

import { h, on, setText } from "./dom.js";

const TOP = 4;
const BOTTOM = 22;
// More columns than these get places by their logarithm: the first ones carry most of a weight.
const LINEAR = 64;
const ROW = { least: 3, most: 14 };
const COLOURS = ["paper", "grid", "faint"];

/**
 * @typedef {Object} Painter
 * @property {string[]} colours names of the `--chart-...` colours that it takes besides the map's own
 * @property {(layers: Object[]) => void} prepare called with the layers before they are drawn
 * @property {(g: CanvasRenderingContext2D, colours: Object<string, string>, cell: Cell) => void} draw
 * @typedef {{layer: Object, index: number, x: number, y: number, width: number, height: number}} Cell
 */

/** Rows in blocks, on a canvas that tells what lies under the pointer or the arrow keys. */
export class HeatMap {
  /**
   * @param {{t: Function, label: string, test: string, painter: Painter, first: 0|1,
   *   say: (layer: Object|null, cell: {column: number, width: number, index: number}|null) => string}} options
   *   first: the number of the first column, as it is shown
   */
  constructor({ t, label, test, painter, first, say }) {
    this.t = t;
    this.first = first;
    this.say = say;
    this.painter = painter;
    this.names = [...COLOURS, ...painter.colours];
    this.rows = [];
    this.at = null;
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.stage = h(
      "div",
      {
        class: "heat-stage",
        tabindex: "0",
        role: "application",
        "aria-label": label,
        "data-test": `${test}-map`,
      },
      this.canvas,
    );
    this.readout = h("div", { class: "heat-readout", "aria-live": "polite", "data-test": `${test}-readout` });
    this.probes = this.names.map((name) => h("i", { style: { color: `var(--chart-${name})` } }));
    this.root = h("div", { class: "heat" }, this.readout, this.stage, h("div", { hidden: true }, this.probes));
    this.#listen();
  }

  #listen() {
    const redraw = () => this.paint();
    const size = new ResizeObserver(redraw);
    size.observe(this.stage);
    this.stops = [
      () => size.disconnect(),
      on(matchMedia("(prefers-color-scheme: dark)"), "change", redraw),
      on(this.stage, "pointermove", (event) => this.#point(event)),
      on(this.stage, "pointerdown", (event) => this.#point(event)),
      on(this.stage, "pointerleave", () => this.#go(null)),
      on(this.stage, "keydown", (event) => this.#key(event)),
    ];
  }

  /** @param {{name: string, block: string, columns: number[], widths: number[]}[]} layers in order */
  show(layers) {
    this.rows = layers;
    this.at = null;
    this.last = Math.max(1, ...layers.map(({ columns, widths }) => columns.at(-1) + widths.at(-1)));
    this.painter.prepare(layers);
    this.row = Math.min(ROW.most, Math.max(ROW.least, Math.floor(360 / layers.length)));
    this.stage.style.height = `${TOP + BOTTOM + this.row * layers.length}px`;
    setText(this.readout, this.say(null, null));
    this.paint();
  }

  /** Where a column begins, 0 to 1. */
  #place(column) {
    return this.last <= LINEAR ? column / this.last : Math.log2(1 + column) / Math.log2(1 + this.last);
  }

  #column(place) {
    return this.last <= LINEAR ? place * this.last : 2 ** (place * Math.log2(1 + this.last)) - 1;
  }

  /** Draw now. */
  paint() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !this.rows.length) return;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const g = this.canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    const colours = Object.fromEntries(this.names.map((name, i) => [name, getComputedStyle(this.probes[i]).color]));
    g.font = `11px ${getComputedStyle(this.stage).fontFamily}`;
    this.left = Math.min(150, width * 0.3);
    this.wide = width - this.left - 8;
    g.fillStyle = colours.paper;
    g.fillRect(this.left, TOP, this.wide, this.row * this.rows.length);
    this.#paintCells(g, colours);
    this.#paintBlocks(g, colours);
    this.#paintColumns(g, colours);
    this.#paintAt(g, colours);
  }

  #paintCells(g, colours) {
    const gap = this.row > 5 ? 1 : 0;
    this.rows.forEach((layer, i) => {
      const y = TOP + i * this.row;
      layer.columns.forEach((column, index) => {
        const x = this.left + this.#place(column) * this.wide;
        const end = this.left + this.#place(column + layer.widths[index]) * this.wide;
        const width = Math.max(0.5, end - x - (end - x > 4 ? 1 : 0));
        this.painter.draw(g, colours, { layer, index, x, y, width, height: this.row - gap });
      });
    });
    g.globalAlpha = 1;
  }

  #paintBlocks(g, colours) {
    g.strokeStyle = colours.grid;
    g.fillStyle = colours.faint;
    g.textAlign = "right";
    g.textBaseline = "middle";
    g.lineWidth = 1;
    for (const { block, from, count } of this.#blocks()) {
      const y = TOP + from * this.row;
      g.beginPath();
      g.moveTo(0, y - 0.5);
      g.lineTo(this.left + this.wide, y - 0.5);
      g.stroke();
      if (count * this.row >= 11) g.fillText(
        fitting(g, block, this.left - 10),
        this.left - 6,
        y + (count * this.row) / 2,
      );
    }
  }

  #blocks() {
    const found = [];
    this.rows.forEach(({ block }, i) => {
      if (found.at(-1)?.block === block) found.at(-1).count += 1;
      else found.push({ block, from: i, count: 1 });
    });
    return found;
  }

  #paintColumns(g, colours) {
    g.fillStyle = colours.faint;
    g.textBaseline = "top";
    g.textAlign = "left";
    const y = TOP + this.rows.length * this.row + 6;
    let free = 0;
    for (const column of this.#labelled()) {
      const x = this.left + this.#place(column) * this.wide;
      const text = String(column + this.first);
      const end = x + g.measureText(text).width;
      if (x < free || end > this.left + this.wide) continue;
      g.fillText(text, x, y);
      free = end + 8;
    }
    g.textAlign = "right";
    g.fillText(fitting(g, this.t("spectrum.columns"), this.left - 10), this.left - 6, y);
  }

  #labelled() {
    const found = [];
    if (this.last <= LINEAR) for (let i = 0; i < this.last; i += Math.ceil(this.last / 16)) found.push(i);
    else for (let i = 1; i < this.last; i *= 2) found.push(i - 1);
    return found;
  }

  #paintAt(g, colours) {
    if (!this.at) return;
    const { columns, widths } = this.rows[this.at.row];
    const x = this.left + this.#place(columns[this.at.cell]) * this.wide;
    const end = this.left + this.#place(columns[this.at.cell] + widths[this.at.cell]) * this.wide;
    g.strokeStyle = colours.faint;
    g.lineWidth = 1.5;
    g.strokeRect(x - 1, TOP + this.at.row * this.row - 1, Math.max(3, end - x + 1), this.row + 1);
  }

  #point(event) {
    const box = this.stage.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - TOP) / this.row);
    const column = this.#column((event.clientX - box.left - this.left) / this.wide);
    const layer = this.rows[row];
    if (!layer) return this.#go(null);
    const cell = layer.columns.findLastIndex((first) => first <= column);
    const inside = cell >= 0 && column < layer.columns[cell] + layer.widths[cell];
    return this.#go(inside ? { row, cell } : null);
  }

  #key(event) {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!way || !this.rows.length) return;
    event.preventDefault();
    const now = this.at ?? { row: 0, cell: 0 };
    const row = this.at ? Math.min(this.rows.length - 1, Math.max(0, now.row + way[0])) : 0;
    const cell = this.at ? now.cell + way[1] : 0;
    this.#go({ row, cell: Math.min(this.rows[row].columns.length - 1, Math.max(0, cell)) });
  }

  #go(at) {
    if (at?.row === this.at?.row && at?.cell === this.at?.cell) return;
    this.at = at;
    const layer = at && this.rows[at.row];
    const cell = at && { column: layer.columns[at.cell], width: layer.widths[at.cell], index: at.cell };
    setText(this.readout, this.say(layer, cell));
    this.paint();
  }

  destroy() {
    this.stops.forEach((stop) => stop());
  }
}

/** Columns as text, "5" or "5–8"; the first of all has the number `first`. */
export function columnText(formats, { column, width }, first) {
  const from = formats.count(column + first);
  return width > 1 ? `${from}–${formats.count(column + width + first - 1)}` : from;
}

/** The text, cut at the end where it is wider than `width` pixels. */
function fitting(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  let short = text;
  while (short && g.measureText(`${short}…`).width > width) short = short.slice(0, -1);
  return `${short}…`;
}
