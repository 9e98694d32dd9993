/** A training that waits or runs: how far it is, what it has learned so far, and what one can ask of it. */

import { act } from "./act.js";
import { Chart } from "./chart.js";
import { busy, button, folded, note, progressBar } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { engineName } from "./engine.js";
import { formats } from "./format.js";
import { jobHead, logTail, noticeList } from "./job_head.js";
import { phaseText } from "./status.js";
import { Timeline } from "./timeline.js";

const STATS = ["loss", "rate", "lr", "memory", "elapsed", "device"];

/** The page of a job that has not ended. */
export class RunningView {
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
    const { ctx, t } = this;
    this.head = jobHead(ctx);
    this.timeline = new Timeline(ctx, { emptyText: () => this.#emptyText(), more: true });
    this.chart = new Chart({ t });
    this.notices = noticeList(t, this.formats);
    this.log = logTail(t, folded);
    this.silent = note("warn", t("running.silent"));
    this.silent.hidden = true;
    const samples = h("section", { class: "card" }, h("h2", null, t("timeline.title")), this.timeline.root);
    const curve = h("section", { class: "card" }, h("h2", null, t("chart.title")), this.chart.root);
    const side = h("div", { class: "stack" }, curve, this.notices.root);
    this.body = h("div", { class: "job-columns" }, samples, side);
    this.plan = h("section", { class: "card", hidden: true, "data-test": "plan" });
    this.root = h(
      "div",
      { class: "stack" },
      this.head.root,
      this.#progress(),
      this.silent,
      this.plan,
      this.body,
      this.log.root,
    );
  }

  #progress() {
    const { t } = this;
    this.bar = progressBar({ label: t("running.progress"), test: "progress" });
    this.where = h("div", { class: "grow running-where", "data-test": "where" });
    this.eta = h("div", { class: "muted number-text", "data-test": "eta" });
    this.stats = new Map(STATS.map((name) => [name, h("dd", { class: "number-text", "data-test": `stat-${name}` })]));
    const facts = STATS.map((name) => h("div", null, h("dt", null, t(`running.${name}`)), this.stats.get(name)));
    this.facts = h("dl", { class: "facts" }, facts);
    return h(
      "section",
      { class: "card stack" },
      h("div", { class: "row between" }, this.where, this.eta),
      this.bar.root,
      this.facts,
      this.#buttons(),
    );
  }

  #buttons() {
    const { t, ctx } = this;
    const post = (action, body, said) => act(ctx, `/jobs/${this.id}/${action}`, body, said);
    const made = (name, options, work) => {
      const root = button({
        label: t(`running.${name}`),
        test: name,
        ...options,
        onClick: (event) => this.held[name](event),
      });
      this.held[name] = busy(root, work);
      return root;
    };
    this.held = {};
    this.sample = made(
      "sample",
      { icon: "camera", title: t("running.sampleHelp") },
      () => post("sample", {}, t("running.sampleAsked")),
    );
    this.save = made(
      "save",
      { icon: "save", title: t("running.saveHelp") },
      () => post("save", {}, t("running.saveAsked")),
    );
    this.stop = made("stop", { icon: "stop", title: t("running.stopHelp") }, () => post("stop", {}, ""));
    this.stopNow = made("stopNow", { icon: "stop", kind: "danger", test: "stop-now" }, () => this.#stopNow());
    this.leave = made("leave", { icon: "close" }, () => post("stop", {}, ""));
    return h("div", { class: "row wrap actions" }, this.sample, this.save, this.stop, this.stopNow, this.leave);
  }

  async #stopNow() {
    const { t, ctx } = this;
    if (await ctx.confirm(t("running.stopNowAsk"), { yes: t("running.stopNow"), danger: true })) {
      await act(ctx, `/jobs/${this.id}/stop`, { now: true });
    }
  }

  /** @param {{summary: Object, detail: Object, curve: import("./curve.js").Curve, state: Object}} news */
  update(news) {
    const { summary, detail, curve } = news;
    this.news = news;
    this.head.update(summary);
    this.#updateProgress(summary, news.state);
    this.#updateButtons(summary);
    const waiting = summary.status === "queued";
    this.body.hidden = waiting && !detail.samples.length && !curve.count;
    this.plan.hidden = !this.body.hidden;
    this.#drawPlan(detail);
    this.silent.hidden = !summary.unresponsive;
    this.timeline.update(detail.samples, summary.best?.step ?? null);
    if (this.shown !== curve) this.chart.show([{ curve, name: summary.name }]);
    else this.chart.draw();
    this.shown = curve;
    this.notices.update(detail.notices);
    this.log.update(detail.log);
  }

  /** What a waiting training is going to do. */
  #drawPlan({ engine, request, spec, prompts }) {
    if (this.plan.hidden || this.plan.childElementCount) return;
    const { t } = this;
    const rows = [
      [t("running.pictures"), request.dataset],
      [t("running.base"), request.base],
      [t("running.method"), spec.method && t.or(`form.methods.${spec.method}.title`, spec.method)],
      [t("running.engine"), engineName(t, engine)],
      [t("running.trigger"), spec.trigger],
      [t("running.steps"), spec.steps && this.formats.count(spec.steps)],
      [t("timeline.prompts"), prompts.join("\n")],
    ].filter(([, value]) => value);
    const cells = rows.map(([name, value]) => h("tr", null, h("th", { scope: "row" }, name), h("td", null, value)));
    clear(this.plan, h("h2", null, t("running.plan")), h("table", { class: "settings" }, h("tbody", null, cells)));
  }

  #updateProgress(job, state) {
    const { t } = this;
    const begun = job.step > 0 && job.steps > 0;
    const counted = job.progress?.total > 0;
    this.facts.hidden = job.status === "queued";
    this.bar.root.hidden = job.status === "queued";
    if (job.status === "queued") setText(this.where, this.#queueText(job, state));
    else if (begun) setText(this.where, this.#stepText(job));
    else setText(this.where, phaseText(job, t, this.formats));
    if (begun) this.bar.set(job.step, job.steps);
    else if (counted) this.bar.set(job.progress.done, job.progress.total);
    else this.bar.set(null);
    setText(this.eta, this.#etaText(job));
    this.#updateStats(job, state);
  }

  #stepText(job) {
    const share = this.formats.percent(job.step / job.steps);
    const text = this.t(
      "running.step",
      { step: this.formats.count(job.step), steps: this.formats.count(job.steps), share },
    );
    if (job.status === "stopping") return `${this.t("running.stopping")} ${text}`;
    return job.phase && job.phase !== "training" ? `${text} · ${phaseText(job, this.t, this.formats)}` : text;
  }

  #queueText(job, state) {
    const at = state.queue.indexOf(job.id);
    const facts = { place: at + 1, count: state.queue.length };
    const place = at < 0 ? this.t("status.queued") : this.t("running.queued", facts);
    if (!state.supervisor.alive) return `${place} ${this.t("running.nobody")} ${state.supervisor.text}`.trim();
    return job.text ? `${place} ${job.text}` : place;
  }

  #etaText(job) {
    if (job.status === "stopping") return this.t("running.saving");
    if (job.status !== "running" || !(job.eta >= 1)) return "";
    return this.t("running.eta", { time: this.formats.duration(job.eta) });
  }

  #updateStats(job, state) {
    const { formats: f, t } = this;
    const device = state.devices.find(({ id }) => id === job.device);
    const values = {
      loss: f.loss(job.loss),
      rate: rateText(job.rate, t, f),
      lr: f.rate(job.lr),
      memory: f.bytes(job.memory),
      elapsed: job.started ? f.duration(Date.now() / 1000 - job.started) : "–",
      device: device?.label ?? job.device ?? "–",
    };
    for (const name of STATS) setText(this.stats.get(name), values[name]);
  }

  #updateButtons(job) {
    const running = job.status === "running";
    this.sample.hidden = this.save.hidden = this.stop.hidden = !running;
    // Before the first step there is nothing to sample or to save.
    this.sample.disabled = this.save.disabled = !(job.step > 0);
    this.stopNow.hidden = !(job.status === "stopping" || job.unresponsive);
    this.leave.hidden = job.status !== "queued";
  }

  #emptyText() {
    const { summary, detail } = this.news;
    const every = detail.spec.sample_every;
    if (!detail.prompts.length) return this.t("timeline.noPrompts");
    if (summary.phase?.startsWith("sampling")) return this.t("timeline.now");
    if (!every) return this.t("timeline.atTheEnd");
    const next = Math.ceil((summary.step + 1) / every) * every;
    if (next > (summary.steps ?? Infinity)) return this.t("timeline.atTheEnd");
    return this.t("timeline.soon", { step: this.formats.count(next) });
  }

  destroy() {
    this.chart.destroy();
  }
}

/** Steps per second, or seconds per step where these are the larger number. */
function rateText(rate, t, f) {
  if (!(rate > 0)) return "–";
  return rate >= 1 ? t("running.perSecond", { count: f.number(rate) }) : t(
    "running.perStep",
    { count: f.number(1 / rate) },
  );
}
