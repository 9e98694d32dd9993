/** All jobs: what runs, what waits (in an order that can be changed), what has ended; two can be chosen to compare. */

import { act } from "./act.js";
import { busy, button, empty, iconButton, note, progressBar } from "./controls.js";
import { h, keyed, setText } from "./dom.js";
import { formats } from "./format.js";
import { setThumb, thumb } from "./picture.js";
import { Reorder } from "./reorder.js";
import { aboutText, badge, ended, phaseText } from "./status.js";
import { endingOf } from "./verdict.js";

const PAGE = 40;

/** @param {import("./panel.js").Ctx} ctx */
export function create(ctx) {
  const list = new JobList(ctx);
  return { root: list.root, update: (state) => list.update(state), destroy: () => list.destroy() };
}

class JobList {
  constructor(ctx) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.formats = formats(ctx.t.lang);
    this.chosen = [];
    this.most = PAGE;
    const { t } = this;
    this.parts = { running: this.#part("running"), queue: this.#part("queue"), past: this.#part("past") };
    this.reorder = new Reorder({ t, list: this.parts.queue.list, save: (order) => this.#save(order) });
    this.passive = note("warn", "");
    this.passive.hidden = true;
    this.more = button({ label: t("jobs.more"), kind: "quiet", onClick: () => this.#showMore(), test: "jobs-more" });
    const { running, queue, past } = this.parts;
    const parts = [this.passive, this.#empty(), running.root, queue.root, past.root, this.more, this.#compareBar()];
    this.root = h("div", { class: "view stack jobs", "data-test": "jobs" }, parts, this.reorder.spoken);
  }

  #empty() {
    const { t, ctx } = this;
    const begin = () => ctx.go("new");
    this.empty = empty(
      { icon: "picture", title: t("jobs.emptyTitle"), text: t("jobs.emptyText"), test: "jobs-empty" },
      button({ label: t("tabs.new"), icon: "plus", kind: "primary", onClick: begin, test: "jobs-new" }),
    );
    return this.empty;
  }

  #compareBar() {
    const { t } = this;
    const label = t("jobs.compare");
    const go = () => this.#compare();
    this.compareText = h("span", { class: "grow" });
    this.compare = button({ label, icon: "compare", kind: "primary", onClick: go, test: "jobs-compare" });
    const forget = button({ label: t("cancel"), kind: "quiet", onClick: () => this.#choose([]) });
    const props = { class: "compare-bar row wrap", hidden: true, role: "status" };
    this.bar = h("div", props, this.compareText, forget, this.compare);
    return this.bar;
  }

  #part(name) {
    const list = h(name === "queue" ? "ol" : "ul", { class: "job-rows", "data-test": `jobs-${name}` });
    const root = h("section", { class: "stack tight", hidden: true }, h("h2", null, this.t(`jobs.${name}`)), list);
    return { root, list };
  }

  update(state) {
    this.state = state;
    const known = new Map(state.jobs.map((job) => [job.id, job]));
    const queue = this.reorder.order(state.queue).map((id) => known.get(id)).filter((job) => job?.status === "queued");
    const waiting = new Set(queue.map(({ id }) => id));
    const running = state.jobs.filter((job) => !ended(job.status) && !waiting.has(job.id));
    // A grid or an export is seen on its training's page once it is over.
    const past = state.jobs.filter((job) => ended(job.status) && !(job.parent && known.has(job.parent)));
    this.chosen = this.chosen.filter((id) => known.has(id));
    this.empty.hidden = state.jobs.length > 0;
    this.#warn(state);
    this.#fill(this.parts.running, running);
    this.#fill(this.parts.queue, queue);
    this.#fill(this.parts.past, past.slice(0, this.most));
    this.more.hidden = past.length <= this.most;
    this.#drawBar();
  }

  #warn({ supervisor, queue }) {
    this.passive.hidden = supervisor.alive || !queue.length;
    setText(this.passive.querySelector("span"), `${this.t("running.nobody")} ${supervisor.text}`.trim());
  }

  #fill({ root, list }, jobs) {
    root.hidden = jobs.length === 0;
    const make = (job) => (list === this.parts.queue.list ? this.#queueRow(job) : this.#row(job));
    keyed(list, jobs, (job) => job.id, make);
  }

  #row(job) {
    const { t, ctx } = this;
    const row = new JobRow(ctx, job);
    const name = t("jobs.pick", { name: job.name });
    const pick = h("input", { type: "checkbox", "aria-label": name, "data-test": "job-pick" });
    pick.addEventListener("change", () => this.#pick(job.id, pick.checked));
    const word = h("span", { class: "job-pick-word small" }, t("jobs.compare"));
    row.root.append(h("label", { class: "job-pick" }, pick, word));
    const update = (now) => {
      row.update(now);
      const comparable = now.kind === "train" && now.step > 0;
      pick.parentElement.classList.toggle("absent", !comparable);
      pick.disabled = !comparable;
      pick.checked = this.chosen.includes(now.id);
    };
    return { root: row.root, update };
  }

  #queueRow(job) {
    const row = new JobRow(this.ctx, job);
    const label = this.t("running.leave");
    const leave = iconButton({ label, icon: "close", test: "job-leave", onClick: (event) => held(event) });
    const held = busy(leave, () => act(this.ctx, `/jobs/${job.id}/stop`));
    row.root.prepend(this.reorder.handle(row.root, job));
    row.root.append(leave);
    return { root: row.root, update: (now) => row.update(now) };
  }

  async #save(order) {
    await act(this.ctx, "/queue", { order });
    this.update(this.ctx.store.state);
  }

  #pick(id, on) {
    // A third choice takes the place of the older of two.
    this.#choose(on ? [...this.chosen, id].slice(-2) : this.chosen.filter((other) => other !== id));
  }

  #choose(ids) {
    this.chosen = ids;
    this.update(this.state);
  }

  #drawBar() {
    this.bar.hidden = this.chosen.length === 0;
    if (!this.chosen.length) return;
    const names = this.chosen.map((id) => this.state.jobs.find((job) => job.id === id).name);
    const [a, b] = names;
    setText(this.compareText, b ? this.t("jobs.chosen", { a, b }) : this.t("jobs.chooseOne", { a }));
    this.compare.disabled = !b;
  }

  #compare() {
    const [a, b] = this.chosen;
    this.ctx.go("compare", { a, b });
  }

  #showMore() {
    this.most += PAGE;
    this.update(this.state);
  }

  destroy() {
    this.reorder.destroy();
  }
}

/** One job in a list: picture, name, status, how far it is. */
class JobRow {
  constructor(ctx, job) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.formats = formats(ctx.t.lang);
    this.image = thumb(null);
    const open = () => ctx.go("job", { id: job.id });
    this.name = h("button", { type: "button", class: "job-name ellipsis", "data-test": "job-open", onClick: open });
    this.status = badge(ctx.t);
    this.line = h("div", { class: "muted small job-line" });
    this.said = h("div", { class: "small job-said" });
    this.bar = progressBar({ label: ctx.t("running.progress"), test: "job-progress" });
    const text = h(
      "div",
      { class: "grow stack tight" },
      h("div", { class: "row" }, this.name, this.status.root),
      this.line,
      this.said,
      this.bar.root,
    );
    this.root = h("li", { class: "job-row", "data-test": "job-row", "data-id": job.id }, this.image, text);
  }

  update(job) {
    const { t } = this;
    const over = ended(job.status);
    setThumb(this.image, job.cover ? this.ctx.api.file(job.cover) : null);
    setText(this.name, job.kind === "train" ? job.name : t(`jobs.${job.kind}Of`, { name: job.name }));
    this.status.set(job);
    const when = this.formats.ago(job.ended ?? job.started ?? job.created);
    setText(this.line, [over || job.status === "queued" ? when : null, aboutText(job, t)].filter(Boolean).join(" · "));
    this.bar.root.hidden = over || job.status === "queued";
    if (job.step > 0 && job.steps > 0) this.bar.set(job.step, job.steps);
    else this.bar.set(job.progress?.done ?? null, job.progress?.total);
    setText(this.said, this.#said(job, over));
    this.said.classList.toggle("danger-text", job.status === "failed");
  }

  #said(job, over) {
    const { t } = this;
    if (job.status === "failed" && job.kind !== "train") return job.text;
    if (job.status === "failed") return t(`verdict.${endingOf(job)}.title`, job);
    if (job.status === "queued") return job.text;
    if (job.adapter) return `${job.adapter.name}, ${this.formats.bytes(job.adapter.bytes)}`;
    const steps = { step: this.formats.count(job.step ?? 0), steps: this.formats.count(job.steps ?? 0) };
    const where = t("running.stepShort", steps);
    if (over) return job.kind === "train" ? where : job.text;
    const left = job.eta >= 1 ? t("running.eta", { time: this.formats.duration(job.eta) }) : null;
    return [job.step > 0 ? where : phaseText(job, t, this.formats), left].filter(Boolean).join(" · ");
  }
}
