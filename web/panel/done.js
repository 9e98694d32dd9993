/** A training that has ended: what came of it and why, and what can be done with it. */

import { act } from "./act.js";
import { Chart } from "./chart.js";
import { busy, button, combo, folded } from "./controls.js";
import { h, setText } from "./dom.js";
import { ExportSection } from "./export.js";
import { formats } from "./format.js";
import { GridSection } from "./grid.js";
import { jobHead, logTail, noticeList } from "./job_head.js";
import { enlarge } from "./lightbox.js";
import { settingsTables } from "./settings_table.js";
import { SpectrumSection } from "./spectrum.js";
import { Timeline } from "./timeline.js";
import { useKept } from "./use_kept.js";
import { Verdict } from "./verdict.js";

/** The page of a job that has ended. */
export class DoneView {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} id
   */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.formats = formats(ctx.t.lang);
    this.shown = null;
    this.#build();
  }

  #build() {
    const { ctx, t, id } = this;
    this.head = jobHead(ctx);
    this.verdict = new Verdict(ctx, id);
    this.notices = noticeList(t, this.formats);
    this.grid = new GridSection(ctx, id);
    this.spectrum = new SpectrumSection(ctx, id);
    this.export = new ExportSection(ctx, id);
    this.log = logTail(t, folded);
    this.samples = this.#samples();
    this.curve = this.#curve();
    const side = h("div", { class: "stack" }, this.curve, this.notices.root);
    const columns = h("div", { class: "job-columns" }, this.samples, side);
    const made = [this.grid.root, this.export.root, this.spectrum.root];
    const parts = [this.head.root, this.verdict.root, columns, made, this.#settings(), this.log.root, this.#footer()];
    this.root = h("div", { class: "stack" }, parts);
  }

  #samples() {
    const { ctx, t } = this;
    this.timeline = new Timeline(ctx, { emptyText: () => t("timeline.none") });
    const show = () => this.#showSheet();
    this.sheet = button({ label: t("done.sheet"), icon: "grid", kind: "quiet", test: "sheet", onClick: show });
    const title = h("div", { class: "row between" }, h("h2", null, t("timeline.title")), this.sheet);
    return h("section", { class: "card" }, title, this.timeline.root);
  }

  #curve() {
    const { ctx, t } = this;
    this.chart = new Chart({ t });
    this.best = h("p", { class: "grow", "data-test": "best" });
    this.takeBest = button({ label: "", icon: "check", test: "use-best", onClick: (event) => held(event) });
    const take = () => useKept(ctx, this.news, { step: this.news.detail.best.step, final: false }, 1);
    const held = busy(this.takeBest, take);
    const best = h("div", { class: "row wrap best-text" }, this.best, this.takeBest);
    return h("section", { class: "card" }, h("h2", null, t("chart.title")), this.chart.root, best);
  }

  #settings() {
    const { ctx, t } = this;
    this.settings = settingsTables(ctx);
    this.folder = h("code", { class: "path" });
    const onToggle = (open) => open && this.settings.open();
    const folder = h("p", { class: "muted small" }, t("done.folder"), " ", this.folder);
    return folded({ title: t("done.settings"), test: "settings-fold", onToggle }, this.settings.root, folder);
  }

  #footer() {
    const { t, ctx } = this;
    const label = t("done.compareWith");
    const compare = (b) => b && ctx.go("compare", { a: this.id, b });
    this.others = combo({ blank: label, label, test: "compare-with", onChange: compare });
    const work = () => held();
    const remove = button({ label: t("done.delete"), icon: "trash", kind: "danger", test: "delete", onClick: work });
    const held = busy(remove, () => this.#delete());
    return h("div", { class: "row wrap between job-footer" }, this.others.root, remove);
  }

  #showSheet() {
    const url = this.ctx.api.file(this.news.detail.pictures.sheet);
    enlarge(this.root, { t: this.t, items: [{ url, caption: this.t("done.sheet") }] });
  }

  async #delete() {
    const { t, ctx } = this;
    const question = t("done.deleteAsk", { name: this.news.summary.name });
    const sure = await ctx.confirm(question, { yes: t("done.delete"), danger: true });
    if (sure && (await act(ctx, `/jobs/${this.id}/delete`, {}, t("done.deleted")))) ctx.go("jobs");
  }

  /** @param {{summary: Object, detail: Object, curve: import("./curve.js").Curve, state: Object}} news */
  update(news) {
    const { summary, detail, curve, state } = news;
    const begun = curve.count > 0 || detail.samples.length > 0;
    const learned = summary.adapter !== null || detail.checkpoints.length > 0;
    this.news = news;
    this.head.update(summary);
    this.verdict.update(news);
    this.samples.hidden = this.curve.hidden = !begun;
    this.timeline.update(detail.samples, summary.best?.step ?? null);
    this.sheet.hidden = !detail.pictures.sheet;
    if (this.shown !== curve) this.chart.show([{ curve, name: summary.name }]);
    else this.chart.draw();
    this.shown = curve;
    this.#drawBest(summary, detail);
    this.notices.update(detail.notices);
    this.grid.root.hidden = this.export.root.hidden = this.spectrum.root.hidden = !learned;
    if (learned) for (const part of [this.grid, this.export, this.spectrum]) part.update(news);
    this.settings.update(detail.spec);
    setText(this.folder, detail.folder);
    this.log.update(detail.log);
    this.#offerOthers(state);
  }

  /** Which checkpoint is best, and a way to take it where another one was made the adapter. */
  #drawBest(summary, detail) {
    setText(this.best, this.#bestText(detail));
    const kept = detail.best && detail.checkpoints.some(({ step }) => step === detail.best.step);
    // With a patience the adapter is the best already.
    const taken = summary.adapter && detail.spec.patience > 0;
    this.takeBest.hidden = !kept || taken || detail.best.step === summary.step;
    if (this.takeBest.hidden) return;
    const step = this.formats.count(detail.best.step);
    const text = summary.adapter ? this.t("done.takeBest", { step }) : this.t("done.take", { step });
    setText(this.takeBest.lastElementChild, text);
  }

  #bestText(detail) {
    const { best } = detail;
    if (!best) return detail.validations.length ? "" : this.t("done.noBest");
    const [first, before] = detail.validations[0] ?? [];
    const facts = {
      step: this.formats.count(best.step),
      loss: this.formats.loss(best.loss),
      before: this.formats.loss(before),
    };
    return this.t(first === 0 ? "done.bestBefore" : "done.best", facts);
  }

  #offerOthers(state) {
    const offered = state.jobs
      .filter((job) => job.kind === "train" && job.id !== this.id && job.step > 0)
      .map((job) => ({ value: job.id, label: `${job.name} (${this.formats.ago(job.created)})` }));
    const stamp = JSON.stringify(offered);
    this.others.root.hidden = offered.length === 0;
    // A list that is open must not be drawn anew for nothing.
    if (stamp === this.othersStamp) return;
    this.othersStamp = stamp;
    this.others.offer(offered, "");
  }

  destroy() {
    this.chart.destroy();
    this.spectrum.destroy();
  }
}
