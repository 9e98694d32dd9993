/** The grid: the same prompts and seed at several checkpoints and strengths, to choose by looking. */

import { act } from "./act.js";
import { ApiError } from "./api.js";
import { busy, button, field, numberInput, progressBar, textArea, textInput } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { FINAL, keptOptions } from "./export.js";
import { formats } from "./format.js";
import { GridTable } from "./grid_table.js";
import { badge, ended, phaseText } from "./status.js";
import { readStrengths } from "./strengths.js";

const STRENGTHS = "0, 0.5, 1, 1.25";
const MOST_CHOSEN = 3;

/** The grid part of a finished job's page: the form, and the newest grid. */
export class GridSection {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} id of the training
   */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.formats = formats(ctx.t.lang);
    this.chosen = null;
    this.shown = null;
    this.#build();
  }

  #build() {
    const { t } = this;
    this.form = this.#form();
    this.results = h("div", { class: "stack" });
    const about = [h("h2", null, t("grid.title")), h("p", { class: "muted" }, t("grid.about"))];
    this.root = h("section", { class: "card stack", "data-test": "grid" }, about, this.results, this.form);
  }

  #form() {
    const { t } = this;
    this.error = h("p", { class: "danger-text", role: "alert", hidden: true });
    const halves = h("div", { class: "form-halves" }, this.#axes(), this.#fixed());
    const fields = h("div", { class: "stack" }, halves, this.error, this.#start());
    return h("details", { class: "grid-form" }, h("summary", { "data-test": "grid-form" }, t("grid.new")), fields);
  }

  /** What makes the difference between the pictures. */
  #axes() {
    const { t } = this;
    const label = t("grid.checkpoints");
    const props = { class: "row wrap", role: "group", "aria-label": label, "data-test": "grid-checkpoints" };
    this.checkpoints = h("div", props);
    this.strengths = textInput({ value: STRENGTHS, test: "grid-strengths", onChange: () => this.#count() });
    this.strengthField = field({ label: t("grid.strengths"), help: t("grid.strengthsHelp"), control: this.strengths });
    const name = h("div", { class: "field-label" }, label);
    return h("div", { class: "stack" }, name, this.checkpoints, this.strengthField.root);
  }

  /** What they have in common. */
  #fixed() {
    const { t } = this;
    this.prompts = textArea({ rows: 3, test: "grid-prompts", onChange: () => this.#count() });
    this.seed = numberInput({ value: 1, min: 0, max: 2 ** 32 - 1, whole: true, test: "grid-seed" });
    const prompts = field({ label: t("grid.prompts"), help: t("grid.promptsHelp"), control: this.prompts });
    const seed = field({ label: t("grid.seed"), help: t("grid.seedHelp"), control: this.seed });
    return h("div", { class: "stack" }, prompts.root, seed.root);
  }

  #start() {
    const label = this.t("grid.make");
    this.make = button({ label, icon: "grid", kind: "primary", test: "grid-make", onClick: (event) => held(event) });
    const held = busy(this.make, () => this.#make());
    this.count = h("span", { class: "muted", "data-test": "grid-count" });
    return h("div", { class: "row wrap" }, this.make, this.count);
  }

  /** @param {{summary: Object, detail: Object, state: Object}} news */
  update(news) {
    const { summary, detail } = news;
    this.news = news;
    this.#offer(keptOptions(summary, detail, this.t, this.formats), detail);
    const grids = detail.tasks.filter(({ kind }) => kind === "grid").sort((a, b) => b.created - a.created);
    if (!grids.length && !this.asked) this.form.open = true;
    this.asked = true;
    this.#show(grids);
  }

  #offer(options, detail) {
    const stamp = JSON.stringify(options);
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    if (this.chosen === null) {
      this.prompts.set(detail.prompts.join("\n"));
      this.chosen = new Set(firstChoice(options, detail));
    }
    const boxes = options.map(({ value, label }) => {
      const input = h(
        "input",
        { type: "checkbox", checked: this.chosen.has(value), "data-test": `grid-checkpoint-${value}` },
      );
      input.addEventListener("change", () => this.#toggle(value, input.checked));
      return h("label", { class: "pick" }, input, h("span", null, label));
    });
    clear(this.checkpoints, boxes);
    this.#count();
  }

  #toggle(value, on) {
    if (on) this.chosen.add(value);
    else this.chosen.delete(value);
    this.#count();
  }

  #wanted() {
    const prompts = this.prompts.get().split("\n").map((line) => line.trim()).filter(Boolean);
    return {
      checkpoints: [...this.chosen],
      strengths: readStrengths(this.strengths.get()),
      prompts,
      seed: this.seed.get() ?? 1,
    };
  }

  #count() {
    const { checkpoints, strengths, prompts } = this.#wanted();
    this.strengthField.fail(strengths ? "" : this.t("grid.strengthsBad"));
    // At strength 0 all checkpoints are the base: its pictures are made once.
    const own = strengths ? strengths.filter((strength) => strength !== 0).length * checkpoints.length : 0;
    const total = (own + (strengths?.includes(0) ? 1 : 0)) * prompts.length;
    setText(this.count, this.t("grid.count", { count: total }));
    this.make.disabled = !strengths || !checkpoints.length || !prompts.length;
  }

  async #make() {
    this.error.hidden = true;
    try {
      await this.ctx.api.post(`/jobs/${this.id}/grid`, this.#wanted());
      this.form.open = false;
      this.open = null;
      await this.ctx.store.refresh();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.error.hidden = false;
      setText(this.error, error.message);
    }
  }

  #show(grids) {
    const chosen = grids.find(({ id }) => id === this.open) ?? grids[0];
    if (!chosen) return clear(this.results);
    if (this.shown?.id !== chosen.id) {
      this.shown = new GridResult(this.ctx, chosen.id, this.news);
      clear(this.results, this.#picker(grids, chosen), this.shown.root);
      this.pickerStamp = grids.length;
    } else if (this.pickerStamp !== grids.length) {
      this.pickerStamp = grids.length;
      clear(this.results, this.#picker(grids, chosen), this.shown.root);
    }
    return this.shown.update(chosen, this.news);
  }

  #picker(grids, chosen) {
    if (grids.length < 2) return null;
    const pick = (id) => {
      this.open = id;
      this.#show(grids);
    };
    const buttons = grids.map(
      (grid) => h(
        "button",
        {
          type: "button",
          class: "pick-button",
          "aria-pressed": String(grid.id === chosen.id),
          onClick: () => pick(grid.id),
        },
        this.formats.date(grid.created),
      ),
    );
    return h("div", { class: "row wrap", role: "group", "aria-label": this.t("grid.earlier") }, buttons);
  }
}

/** The best, the newest, and one from the middle of the way: enough to see where it goes. */
function firstChoice(options, detail) {
  const names = options.map(({ value }) => value);
  const best = detail.checkpoints.find((checkpoint) => checkpoint.best)?.name;
  const wanted = [names.includes(FINAL) ? FINAL : null, best, names[Math.floor(names.length / 2)], names[0]];
  return [...new Set(wanted.filter((name) => name && names.includes(name)))].slice(0, MOST_CHOSEN);
}

/** One grid: how far it is, and its pictures as they come. */
class GridResult {
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.status = badge(ctx.t);
    this.where = h("span", { class: "grow muted" });
    this.bar = progressBar({ label: ctx.t("grid.progress"), test: "grid-progress" });
    this.stop = button({
      label: ctx.t("grid.stop"),
      icon: "stop",
      test: "grid-stop",
      onClick: (event) => this.held(event),
    });
    this.held = busy(this.stop, () => act(ctx, `/jobs/${id}/stop`, { now: this.summary?.status === "stopping" }));
    this.resume = button({
      label: ctx.t("grid.resume"),
      icon: "play",
      test: "grid-resume",
      onClick: () => act(ctx, `/jobs/${id}/resume`),
    });
    this.head = h("div", { class: "row wrap" }, this.status.root, this.where, this.stop, this.resume);
    this.table = new GridTable(ctx);
    this.root = h("div", { class: "stack", "data-test": "grid-result" }, this.head, this.bar.root, this.table.root);
  }

  update(summary, news) {
    this.summary = summary;
    this.news = news;
    const over = ended(summary.status);
    this.head.hidden = summary.status === "finished";
    this.status.set(summary);
    const waits = summary.status === "queued";
    setText(this.where, over || waits ? summary.text : phaseText(summary, this.t, formats(this.t.lang)));
    this.bar.root.hidden = over || waits;
    this.bar.set(summary.progress?.done ?? null, summary.progress?.total);
    this.stop.hidden = over;
    this.resume.hidden = !(over && summary.resumable);
    this.#fetch();
  }

  async #fetch() {
    if (this.asking) return;
    this.asking = true;
    try {
      // The grid may have gone on while it was asked for.
      while (this.stamp !== this.#now()) {
        const stamp = this.#now();
        const grid = await this.ctx.api.get(`/jobs/${this.id}/grid`);
        this.stamp = stamp;
        this.table.update(grid, this.news);
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this.where, error.message);
      this.head.hidden = false;
    } finally {
      this.asking = false;
    }
  }

  #now() {
    return JSON.stringify([this.summary.status, this.summary.progress]);
  }
}
