/** A grid's pictures: a row per checkpoint, a column per strength; one prompt at a time. */

import { button } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { formats } from "./format.js";
import { enlarge } from "./lightbox.js";
import { setThumb, thumb } from "./picture.js";
import { useKept } from "./use_kept.js";

const place = ({ checkpoint, strength, prompt }) => `${checkpoint} ${strength} ${prompt}`;

/** The table, filled as pictures arrive; those that are there stay as they are. */
export class GridTable {
  /** @param {import("./panel.js").Ctx} ctx */
  constructor(ctx) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.formats = formats(ctx.t.lang);
    this.prompt = 0;
    this.cells = new Map();
    this.places = new Map();
    this.prompts = h("div", { class: "row wrap", role: "group", "aria-label": ctx.t("grid.prompts") });
    this.said = h("p", { class: "muted small" });
    this.box = h("div", { class: "grid-scroll" });
    this.root = h("div", { class: "stack" }, this.prompts, this.box, this.said);
  }

  /** @param {Object} grid answer of the grid route @param {Object} news of the training */
  update(grid, news) {
    this.news = news;
    this.cells = new Map(grid.cells.map((cell) => [place(cell), cell]));
    const stamp = JSON.stringify(grid.axes);
    // A grid that waits has no axes yet.
    this.root.hidden = !grid.axes.prompts.length;
    if (this.root.hidden) return;
    if (stamp !== this.stamp) this.#build(grid.axes);
    this.stamp = stamp;
    this.#fill();
  }

  #build(axes) {
    this.axes = axes;
    this.prompt = Math.min(this.prompt, axes.prompts.length - 1);
    const heads = axes.strengths.map((strength) => h("th", { scope: "col" }, this.#strengthText(strength)));
    const rows = axes.checkpoints.map((checkpoint, c) => this.#row(checkpoint, c));
    const props = { class: "grid-table", style: { "--columns": String(axes.strengths.length) } };
    const head = h("thead", null, h("tr", null, h("td"), heads));
    clear(this.box, h("table", props, head, h("tbody", null, rows)));
    this.picks = axes.prompts.map((prompt, i) => this.#promptButton(prompt, i));
    clear(this.prompts, this.picks);
    this.prompts.hidden = axes.prompts.length < 2;
  }

  #row(checkpoint, c) {
    const head = h("th", { scope: "row", class: checkpoint.best ? "best" : "" }, this.#checkpointText(checkpoint));
    return h("tr", null, head, this.axes.strengths.map((_, s) => h("td", null, this.#place(c, s))));
  }

  #promptButton(prompt, i) {
    const onClick = () => this.#pick(i);
    return h("button", { type: "button", class: "pick-button", "data-test": "grid-prompt", onClick }, prompt);
  }

  #strengthText(strength) {
    if (strength === 0) return this.t("grid.base");
    return this.t("grid.strength", { strength: this.formats.number(strength) });
  }

  #checkpointText({ step, best, label }) {
    const { t } = this;
    const text = step ? t("timeline.at", { step: this.formats.count(step) }) : label;
    return [h("span", null, text), best ? h("span", { class: "chip ok" }, t("grid.best")) : null];
  }

  #place(checkpoint, strength) {
    const image = thumb(null);
    const onClick = () => this.#enlarge(checkpoint, strength);
    const props = { type: "button", class: "grid-cell", disabled: true, "data-test": "grid-cell", onClick };
    const root = h("button", props, image);
    this.places.set(`${checkpoint} ${strength}`, { root, image });
    return root;
  }

  #pick(prompt) {
    this.prompt = prompt;
    this.#fill();
  }

  #fill() {
    const { axes, t } = this;
    this.picks.forEach((pick, i) => pick.setAttribute("aria-pressed", String(i === this.prompt)));
    setText(this.said, t("grid.made", { prompt: axes.prompts[this.prompt], seed: axes.seed }));
    axes.checkpoints.forEach((_, checkpoint) => axes.strengths.forEach((_strength, strength) => {
      const { root, image } = this.places.get(`${checkpoint} ${strength}`);
      const cell = this.#cell(checkpoint, strength);
      root.disabled = !cell;
      root.setAttribute("aria-label", cell ? this.#caption(cell) : t("grid.coming"));
      setThumb(image, cell ? this.ctx.api.file(cell.thumb) : null);
    }));
  }

  #cell(checkpoint, strength) {
    return this.cells.get(place({ checkpoint, strength, prompt: this.prompt }));
  }

  #caption({ checkpoint, strength }) {
    const { step, label } = this.axes.checkpoints[checkpoint];
    const value = this.axes.strengths[strength];
    const where = step ? this.t("timeline.at", { step: this.formats.count(step) }) : label;
    return value === 0 ? this.#strengthText(0) : `${where}, ${this.#strengthText(value)}`;
  }

  #enlarge(checkpoint, strength) {
    const found = [];
    this.axes.checkpoints.forEach((_, c) => this.axes.strengths.forEach((_strength, s) => {
      const cell = this.#cell(c, s);
      if (cell) found.push(cell);
    }));
    const items = found.map((cell) => ({
      url: this.ctx.api.file(cell.url),
      caption: this.#caption(cell),
      actions: (close) => this.#actions(cell, close),
    }));
    enlarge(this.root, { t: this.t, items, at: found.indexOf(this.#cell(checkpoint, strength)) });
  }

  #actions(cell, close) {
    const strength = this.axes.strengths[cell.strength];
    if (strength === 0) return [];
    const checkpoint = this.axes.checkpoints[cell.checkpoint];
    const use = () => {
      close();
      return useKept(this.ctx, this.news, checkpoint, strength);
    };
    return [button({ label: this.t("grid.use"), icon: "plus", kind: "primary", test: "grid-use", onClick: use })];
  }
}
