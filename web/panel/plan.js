/** The view "Plan columns": which concept of a set trains on which columns, so that they can be fused unmixed. */

import { ApiError, newest } from "./api.js";
import { command, commandRow, quoted } from "./command.js";
import { busy, button, field, note, numberInput, segmented, textArea, textInput } from "./controls.js";
import { clear, debounce, h } from "./dom.js";
import { formats } from "./format.js";
import { columnText, HeatMap } from "./heat_map.js";
import { keep, reread } from "./remember.js";
import { COLOUR_NAMES, colourName, named } from "./swatches.js";

const SLOT = "plan";
const WAIT = 250;
const WAYS = ["blocks", "sample"];
const BLANK = { concepts: "", rank: 8, how: "blocks", start: 0, pool: 128, seed: 0 };

/** @param {import("./panel.js").Ctx} ctx */
export function create(ctx) {
  const page = new PlanPage(ctx);
  page.changed();
  return { root: page.root, update() {}, destroy: () => page.destroy() };
}

/** Values of the right types, whatever was kept by an older version. */
function sound(kept) {
  const values = { ...BLANK };
  for (const name of Object.keys(BLANK)) if (typeof kept?.[name] === typeof BLANK[name]) values[name] = kept[name];
  return WAYS.includes(values.how) ? values : { ...values, how: BLANK.how };
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** One row per concept, in its colour; what two concepts use is hatched. @returns {import("./heat_map.js").Painter} */
function planPainter() {
  const draw = (g, colours, { layer, x, y, width, height }) => {
    g.fillStyle = colours[colourName(layer.place)];
    g.globalAlpha = 1;
    g.fillRect(x, y, width, height);
  };
  return { colours: COLOUR_NAMES, prepare() {}, draw };
}

class PlanPage {
  constructor(ctx) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.formats = formats(ctx.t.lang);
    this.only = newest();
    this.values = sound(reread(ctx.host, SLOT));
    this.ask = debounce(() => this.#ask(), WAIT);
    this.#build();
  }

  #build() {
    const { t, ctx } = this;
    const back = button({
      label: t("adapters.all"), icon: "back", kind: "quiet", onClick: () => ctx.go("adapters"), test: "plan-back",
    });
    const head = h("header", { class: "job-head" }, back, h("h1", null, t("plan.title")));
    const about = h("p", { class: "muted said" }, t("plan.about"));
    this.result = h("section", { class: "stack", "data-test": "plan-result", "aria-live": "polite" });
    const form = h("section", { class: "card stack" }, this.#form());
    this.keeping = this.#keeping();
    this.map = new HeatMap({
      t, label: t("plan.map"), test: "plan", painter: planPainter(), first: 0,
      say: (row, cell) => this.#say(row, cell),
    });
    const columns = h("div", { class: "job-columns halves" }, form, this.result);
    this.root = h("div", { class: "view stack", "data-test": "plan" }, head, about, columns);
  }

  #form() {
    const { t, values } = this;
    const set = (name) => (value) => this.#set(name, value);
    const number = (name, least, most, test) =>
      numberInput({ value: values[name], min: least, max: most, whole: true, onChange: set(name), test });
    const concepts = textArea({
      value: values.concepts, rows: 4, onChange: set("concepts"), placeholder: t("plan.example"), test: "plan-concepts",
    });
    this.how = segmented({
      label: t("plan.how"), value: values.how, onChange: set("how"), test: "plan-how",
      options: WAYS.map((value) => ({ value, label: t(`plan.ways.${value}`) })),
    });
    this.way = h("p", { class: "muted small" });
    const row = (key, control) => field({ label: t(`plan.${key}`), help: t(`plan.${key}Help`), control }).root;
    const rank = row("rank", number("rank", 1, 4096, "plan-rank"));
    this.blocks = [row("start", number("start", 0, 4096, "plan-start"))];
    const pool = row("pool", number("pool", 1, 65536, "plan-pool"));
    this.sample = [pool, row("seed", number("seed", 0, 2 ** 31, "plan-seed"))];
    return [
      row("concepts", concepts),
      field({ label: t("plan.how"), control: this.how }).root,
      this.way,
      h("div", { class: "settings-grid" }, rank, this.blocks, this.sample),
    ];
  }

  /** Where the plan is kept for trainings to choose. */
  #keeping() {
    const { t } = this;
    const words = { placeholder: t("plan.nameExample"), label: t("plan.name") };
    const name = textInput({ ...words, test: "plan-name", maxLength: 100 });
    const said = h("p", { class: "small", role: "status", "data-test": "plan-saved" });
    const work = () => held();
    const save = button({ label: t("plan.save"), icon: "save", test: "plan-save", onClick: work });
    const held = busy(save, async () => {
      try {
        const { saved } = await this.ctx.api.post("/mix/plan", { ...this.#request(), save: name.get().trim() });
        clear(said, saved ? t("plan.saved", { name: saved }) : t("plan.noName"));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        clear(said, h("span", { class: "danger-text" }, error.message));
      }
    });
    const row = h("div", { class: "row" }, h("div", { class: "grow" }, name.root), save);
    return h("div", { class: "stack tight" }, h("p", { class: "muted small" }, t("plan.keep")), row, said);
  }

  #set(name, value) {
    // An emptied field means what stands there at first.
    this.values[name] = value ?? BLANK[name];
    keep(this.ctx.host, SLOT, this.values);
    this.changed();
  }

  /** Brings the form up to date and asks for the plan. */
  changed() {
    const blocks = this.values.how === "blocks";
    for (const row of this.blocks) row.hidden = !blocks;
    for (const row of this.sample) row.hidden = blocks;
    clear(this.way, this.t(`plan.wayHelp.${this.values.how}`));
    this.ask();
  }

  #request() {
    const { rank, how, start, pool, seed } = this.values;
    const more = how === "blocks" ? { start } : { pool, seed };
    return { concepts: lines(this.values.concepts), rank, how, ...more };
  }

  async #ask() {
    const wanted = this.#request();
    if (!wanted.concepts.length) return clear(this.result, h("p", { class: "muted" }, this.t("plan.none")));
    try {
      const { current, value } = await this.only((signal) => this.ctx.api.post("/mix/plan", wanted, { signal }));
      if (current && !this.gone) this.#draw(value);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (!this.gone) clear(this.result, note("error", error.message));
    }
    return undefined;
  }

  #draw(plan) {
    const { t, ctx } = this;
    this.plan = plan;
    const rows = plan.concepts.map((concept, place) => this.#row(concept, place));
    const table = h("table", { class: "settings plan-table" }, h("tbody", null, rows));
    const words = plan.concepts.map(({ name }) => quoted(name));
    const { concepts: _, ...options } = this.#request();
    const flags = Object.entries(options).map(([name, value]) => `--${name} ${value}`);
    const text = command("plan", ...words, ...flags, "--out plan.json");
    const title = h("h2", null, t("plan.share"));
    clear(
      this.result,
      this.#odds(plan),
      h("div", { class: "card stack" }, this.map.root, h("div", { class: "table-scroll" }, table)),
      h("section", { class: "card stack" }, title, this.keeping, commandRow(ctx, text, "copy-plan")),
    );
    this.map.show(plan.concepts.map((concept, place) => ({ ...cells(concept.indices), place, ...labels(concept) })));
  }

  #row(concept, place) {
    const { t, ctx } = this;
    const { name, columns } = concept;
    const train = () => ctx.go("new", { plan: { concept: name, columns } });
    const label = t("plan.train");
    const go = button({ label, icon: "play", onClick: train, test: "plan-train", title: t("plan.trainOf", { name }) });
    return h(
      "tr",
      { "data-test": "plan-row" },
      h("th", { scope: "row" }, named(place, name), h("code", null, columns)),
      h("td", { class: "end" }, go),
    );
  }

  /** How likely it is that two concepts meet, and which do. */
  #odds({ how, concepts, odds, collisions }) {
    const { t } = this;
    if (how === "blocks") return note("ok", t("plan.free"));
    const share = (value) => this.formats.percent(value, value < 0.01 ? 2 : 1);
    const facts = { pair: share(odds.pair), any: share(odds.any), count: concepts.length };
    const met = collisions.map(({ a, b, columns }) => t("plan.met", { a, b, columns: columns.join(", ") }));
    const said = concepts.length > 1 ? h("p", { class: "muted small" }, t("plan.odds", facts)) : null;
    const verdict = met.length ? note("warn", met.join(" ")) : note("ok", t("plan.free"));
    return h("div", { class: "stack tight" }, verdict, said);
  }

  #say(row, cell) {
    if (!row) return this.t("plan.hint");
    return this.t("plan.cell", { name: row.name, column: columnText(this.formats, cell, 0) });
  }

  destroy() {
    this.gone = true;
    this.ask.cancel();
    this.map.destroy();
  }
}

const labels = ({ name }) => ({ name, block: name });

/** Runs of neighbouring columns. @param {number[]} indices ascending */
function cells(indices) {
  const columns = [];
  const widths = [];
  for (const index of indices) {
    if (columns.length && index === columns.at(-1) + widths.at(-1)) widths[widths.length - 1] += 1;
    else {
      columns.push(index);
      widths.push(1);
    }
  }
  return { columns, widths };
}
