/** The loss chart: every step's loss faint, its running mean bold, held-out losses as points, the best ringed. */

import { Axis, lossAxis, tickLabel } from "./axis.js";
import { chartInput } from "./chart_input.js";
import {
  across, halo, paintBest, paintCloud, paintCrosshair, paintFrame, paintLine, paintPoints, paintSpot, paintSteps,
  paintTicks,
} from "./chart_paint.js";
import { StepWindow } from "./chart_view.js";
import { clear, h, on, setText } from "./dom.js";
import { formats } from "./format.js";

const RIGHT = 14;
const TOP = 10;
const BOTTOM = 24;
const GAP = 12;
const RATE_SHARE = 0.17;
// Below this height the learning rate has no panel of its own.
const RATE_FROM = 220;
const COLOURS = ["raw", "smooth", "held", "smooth-b", "best", "lr", "mark", "paper", "grid", "faint", "select"];

/** A live chart of one run, or of two laid over each other. */
export class Chart {
  /**
   * @param {{t: Function, name?: string}} options name: what is read out as the chart's name
   */
  constructor({ t, name }) {
    this.t = t;
    this.formats = formats(t.lang);
    this.runs = [];
    this.window = new StepWindow();
    this.scale = "auto";
    this.cross = null;
    this.selection = null;
    this.frame = 0;
    this.#build(name ?? t("chart.name"));
    this.#listen();
  }

  #build(name) {
    const { t } = this;
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.stage = h(
      "div",
      { class: "chart-stage", tabindex: "0", role: "application", "data-test": "chart" },
      this.canvas,
    );
    this.stage.setAttribute("aria-roledescription", t("chart.kind"));
    this.stage.setAttribute("aria-label", `${name}. ${t("chart.keys")}`);
    this.spoken = h("div", { class: "visually-hidden", "aria-live": "polite" });
    // A canvas knows no CSS variables: elements of each colour tell what it is in the theme of the moment.
    this.probes = COLOURS.map((colour) => h("i", { style: { color: `var(--chart-${colour})` } }));
    this.legend = h("div", { class: "chart-legend" });
    const foot = h("div", { class: "chart-foot" }, this.legend, h("div", { class: "chart-hint" }, t("chart.hint")));
    const probes = h("div", { hidden: true }, this.probes);
    this.root = h("div", { class: "chart" }, this.#bar(), this.stage, foot, this.spoken, probes);
  }

  #bar() {
    const { t } = this;
    const made = (name, text, onClick, props) =>
      h("button", { type: "button", class: "chart-button", "data-test": `chart-${name}`, onClick, ...props }, text);
    this.readout = h("div", { class: "chart-readout", "data-test": "chart-readout" });
    this.resetButton = made("reset", t("chart.all"), () => this.#reset(), { disabled: true });
    this.logButton = made("log", t("chart.log"), () => this.#toggleLog(), { title: t("chart.logHelp") });
    const buttons = h("div", { class: "chart-buttons" }, this.resetButton, this.logButton);
    return h("div", { class: "chart-bar" }, this.readout, buttons);
  }

  #listen() {
    const redraw = () => this.draw();
    const stage = new ResizeObserver(redraw);
    stage.observe(this.stage);
    const theme = new MutationObserver(redraw);
    theme.observe(document.documentElement, { attributes: true });
    theme.observe(document.body, { attributes: true });
    this.stops = [
      () => stage.disconnect(),
      () => theme.disconnect(),
      () => cancelAnimationFrame(this.frame),
      on(matchMedia("(prefers-color-scheme: dark)"), "change", redraw),
      on(matchMedia("(resolution: 1dppx)"), "change", redraw),
      chartInput(this.stage, this.#wishes()),
    ];
  }

  #wishes() {
    return {
      point: (x) => this.#point(this.#stepAt(x), false),
      leave: () => this.#leave(),
      selecting: (a, b) => this.#select(a, b, false),
      select: (a, b) => this.#select(a, b, true),
      pan: (pixels) => this.#pan(pixels),
      zoom: (factor, x) => this.#zoom(factor, x),
      reset: () => this.#reset(),
      walk: (by) => this.#walk(by),
      toggleLog: () => this.#toggleLog(),
    };
  }

  /**
   * What to show.
   * @param {{name?: string, curve: import("./curve.js").Curve}[]} runs one or two
   */
  show(runs) {
    this.runs = runs;
    this.#drawLegend();
    this.draw();
  }

  /** Draw at the next frame; many calls in between are one. */
  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  /** Draw now. */
  paint() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !height) return;
    this.window.last = Math.max(1, ...this.runs.map(({ curve }) => curve.last));
    const g = this.#context(width, height);
    const colours = this.#colours();
    const panels = this.#panels(g, width, height);
    this.panels = panels;
    paintFrame(g, panels[0], colours, (value, ticks) => this.formats.written(tickLabel(value, ticks)));
    if (panels[1]) paintFrame(g, panels[1], colours, (value) => this.formats.rate(value));
    paintSteps(g, panels.at(-1), colours, (value) => this.formats.count(value), this.t("chart.step"));
    g.save();
    g.beginPath();
    g.rect(panels[0].left - 8, 0, panels[0].right - panels[0].left + 16, height);
    g.clip();
    this.#paintRuns(g, panels, colours);
    this.#paintMarks(g, panels, colours);
    g.restore();
    this.#sayNothingYet(g, panels[0], colours);
    this.#updateLegend();
    this.#read();
  }

  #context(width, height) {
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.round(width * ratio);
    const high = Math.round(height * ratio);
    if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(
      this.canvas,
      { width: wide, height: high },
    );
    const g = this.canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    return g;
  }

  #colours() {
    return Object.fromEntries(COLOURS.map((name, i) => [name, getComputedStyle(this.probes[i]).color]));
  }

  #panels(g, width, height) {
    g.font = `11px ${getComputedStyle(this.stage).fontFamily}`;
    const rates = this.runs.length === 1 && height >= RATE_FROM ? this.#rateTop() : 0;
    const bottom = height - BOTTOM;
    const share = rates ? (bottom - TOP) * RATE_SHARE : 0;
    const x = new Axis(this.window.low, this.window.high, { wanted: Math.max(2, width / 85) });
    const y = this.#lossAxis((bottom - TOP - share) / 45);
    const box = { left: 52, right: width - RIGHT, x };
    const upper = { ...box, top: TOP, bottom: rates ? bottom - share - GAP : bottom, y };
    if (!rates) return [upper];
    return [upper, { ...box, top: bottom - share, bottom, y: new Axis(0, rates * 1.12, { wanted: 1.5 }) }];
  }

  #rateTop() {
    const { curve } = this.runs[0];
    let top = 0;
    for (let i = 0; i < curve.count; i += 1) if (curve.lr[i] > top) top = curve.lr[i];
    return top;
  }

  #lossAxis(wanted) {
    const shown = [];
    const loose = [];
    for (const { curve } of this.runs) {
      const [from, to] = curve.range(this.window.low, this.window.high);
      const every = Math.max(1, Math.floor((to - from) / 2000));
      for (let i = from; i < to; i += every) shown.push(curve.mean[i]);
      for (let i = from; i < to; i += 1) loose.push(curve.loss[i]);
      for (const [step, loss] of curve.validations) if (this.window.holds(step)) shown.push(loss);
    }
    return lossAxis(shown, this.runs.length > 1 ? [] : loose, this.scale, Math.min(5, Math.max(2, wanted)));
  }

  #paintRuns(g, [upper, lower], colours) {
    this.runs.forEach(({ curve }, i) => {
      const own = i ? "-b" : "";
      const range = curve.range(this.window.low, this.window.high);
      if (this.runs.length === 1) paintCloud(g, upper, curve.steps, curve.loss, range, colours.raw);
      paintLine(g, upper, curve.steps, curve.mean, range, colours[`smooth${own}`], 2.2);
      const held = this.runs.length === 1 ? colours.held : colours[`smooth${own}`];
      if (curve.validations.length) paintPoints(g, upper, curve.validations, held);
      if (lower) paintLine(g, lower, curve.steps, curve.lr, range, colours.lr, 1.4);
    });
    if (lower) this.#paintRateName(g, lower, colours);
  }

  /** At the end that the line leaves free. */
  #paintRateName(g, panel, colours) {
    const { curve } = this.runs[0];
    const low = panel.y.place(curve.lr[curve.range(this.window.low, this.window.high)[1] - 1]) < 0.5;
    g.textAlign = "right";
    g.textBaseline = low ? "top" : "bottom";
    halo(g, this.t("chart.lr"), panel.right - 5, low ? panel.top + 2 : panel.bottom - 3, colours.lr, colours.paper);
  }

  #paintMarks(g, panels, colours) {
    const [upper] = panels;
    if (this.runs.length === 1) {
      const { curve } = this.runs[0];
      paintTicks(g, upper, curve.checkpoints, colours);
      if (curve.best) paintBest(g, upper, curve.best, colours, this.#bestText(curve.best));
    }
    if (this.selection) {
      g.fillStyle = colours.select;
      const [a, b] = this.selection;
      for (const panel of panels) g.fillRect(Math.min(a, b), panel.top, Math.abs(b - a), panel.bottom - panel.top);
    }
    if (this.cross === null) return;
    paintCrosshair(g, panels, across(upper, this.cross), colours.faint);
    this.runs.forEach(({ curve }, i) => {
      const at = curve.nearest(this.cross);
      if (at < 0 || Math.abs(curve.steps[at] - this.cross) > this.#reach()) return;
      paintSpot(g, upper, curve.steps[at], curve.mean[at], colours[i ? "smooth-b" : "smooth"], colours.paper);
    });
  }

  #bestText(best) {
    return this.t("chart.best", { loss: this.formats.loss(best.loss), step: this.formats.count(best.step) });
  }

  #sayNothingYet(g, panel, colours) {
    if (this.runs.some(({ curve }) => curve.count || curve.validations.length)) return;
    g.fillStyle = colours.faint;
    g.textAlign = "center";
    g.textBaseline = "middle";
    g.fillText(this.t("chart.nothing"), (panel.left + panel.right) / 2, (panel.top + panel.bottom) / 2);
  }

  #drawLegend() {
    const entry = (kind, colour, text, shown) => ({
      item: h(
        "span",
        { class: `legend ${kind}`, style: { "--swatch": `var(--chart-${colour})` } },
        h("i", { "aria-hidden": "true" }),
        text,
      ),
      shown,
    });
    const { t } = this;
    this.entries = this.runs.length > 1
      ? [
        ...this.runs.map((run, i) => entry("line", i ? "smooth-b" : "smooth", run.name, () => true)),
        entry("dot", "mark", t("chart.held"), (curve) => curve.validations.length > 0),
      ]
      : [
        entry("line", "raw", t("chart.raw"), () => true),
        entry("line", "smooth", t("chart.smooth"), () => true),
        entry("dot", "held", t("chart.held"), (curve) => curve.validations.length > 0),
        entry("ring", "best", t("chart.bestMark"), (curve) => curve.best !== null),
        entry("tick", "mark", t("chart.checkpoint"), (curve) => curve.checkpoints.length > 0),
      ];
    clear(this.legend, this.entries.map(({ item }) => item));
  }

  #updateLegend() {
    for (const { item, shown } of this.entries ?? []) item.hidden = !this.runs.some(({ curve }) => shown(curve));
    this.resetButton.disabled = this.window.zoomed === null;
    const log = this.panels[0].y.log;
    this.logButton.setAttribute("aria-pressed", String(log));
  }

  #stepAt(x) {
    const [panel] = this.panels ?? [];
    return panel ? panel.x.value((x - panel.left) / (panel.right - panel.left)) : 0;
  }

  /** How far, in steps, the crosshair may lie from the point it reads. */
  #reach() {
    return Math.max(2, (this.window.high - this.window.low) / 30);
  }

  #point(step, spoken) {
    this.cross = Math.min(Math.max(step, this.window.low), this.window.high);
    this.draw();
    if (spoken) setText(this.spoken, this.#values().map(([name, value]) => `${name} ${value}`).join(", "));
  }

  #leave() {
    this.cross = null;
    this.draw();
  }

  #select(a, b, done) {
    this.selection = done || a === b ? null : [a, b];
    if (done) this.window.show(this.#stepAt(a), this.#stepAt(b));
    this.draw();
  }

  #pan(pixels) {
    const [panel] = this.panels;
    const span = this.window.high - this.window.low;
    const share = Number.isFinite(pixels) ? pixels / (panel.right - panel.left) : Math.sign(pixels) * 0.8;
    this.window.pan(share * span);
    this.draw();
  }

  #zoom(factor, x) {
    const middle = (this.window.low + this.window.high) / 2;
    const around = x === undefined ? this.cross ?? middle : this.#stepAt(x);
    this.window.zoom(factor, Math.min(Math.max(around, this.window.low), this.window.high));
    this.draw();
  }

  #reset() {
    this.window.reset();
    this.draw();
  }

  #walk(by) {
    const { curve } = this.runs[0];
    if (!curve.count) return;
    const [from, to] = curve.range(this.window.low, this.window.high);
    const start = this.cross === null ? (by < 0 ? to - 1 : from) : curve.nearest(this.cross);
    // One press moves by what can be seen: a pixel's worth of points.
    const stride = Math.max(1, Math.round((to - from) / 400));
    const at = this.cross === null && Number.isFinite(by) ? start : Math.min(
      Math.max(start + by * stride, from),
      to - 1,
    );
    this.#point(curve.steps[at], true);
  }

  #toggleLog() {
    this.scale = this.panels?.[0].y.log ? "linear" : "log";
    this.draw();
  }

  /** [name, value] pairs at the crosshair, or at the newest step. */
  #values() {
    const { t } = this;
    const step = this.cross ?? this.window.last;
    const read = ({ curve }) => curve.nearest(step);
    if (this.runs.length > 1) {
      const means = this.runs.map((run) => [run.name, this.formats.loss(run.curve.mean[read(run)])]);
      return [[t("chart.step"), this.formats.count(Math.round(step))], ...means];
    }
    const curve = this.runs[0]?.curve;
    const at = curve ? curve.nearest(step) : -1;
    if (at < 0) return [];
    const found = [
      [t("chart.step"), this.formats.count(curve.steps[at])],
      [t("chart.loss"), this.formats.loss(curve.loss[at])],
      [t("chart.mean"), this.formats.loss(curve.mean[at])],
      [t("chart.lrShort"), this.formats.rate(curve.lr[at])],
    ];
    const held = curve.validations.find(([when]) => Math.abs(when - curve.steps[at]) <= this.#reach() / 6);
    return held && this.cross !== null ? [...found, [t("chart.heldShort"), this.formats.loss(held[1])]] : found;
  }

  #read() {
    const values = this.#values();
    if (this.readout.childElementCount !== values.length) {
      clear(this.readout, values.map(() => h("span", null, h("b"), " ", h("span"))));
    }
    values.forEach(([name, value], i) => {
      const [label, text] = this.readout.children[i].children;
      setText(label, name);
      setText(text, value);
    });
  }

  /** Let go of everything; the chart is not used any more. */
  destroy() {
    this.stops.forEach((stop) => stop());
  }
}
