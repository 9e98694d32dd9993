/** How a training ended, in one box: the result or the reason, and the next step as a button. */

import { act, copyText } from "./act.js";
import { busy, button } from "./controls.js";
import { clear, h } from "./dom.js";
import { formats } from "./format.js";
import { icon } from "./icons.js";

const KINDS = { finished: "ok", failed: "error", interrupted: "warn", stopped: "info" };
const ICONS = { ok: "check", error: "error", warn: "warn", info: "info" };
// What training again begins with, by the reason of the end.
const ADVICE = { out_of_memory: "memory", diverged: "rate" };

/** The box at the top of a finished job's page. */
export class Verdict {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} id
   */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.formats = formats(ctx.t.lang);
    this.root = h("section", { class: "verdict-box", "data-test": "verdict" });
  }

  /** @param {{summary: Object, detail: Object, state: Object}} news */
  update({ summary, detail, state }) {
    const can = state.host.can ?? [];
    const stamp = JSON.stringify([summary.status, summary.reason, summary.text, summary.adapter, summary.resumable, can]);
    // Drawn only when it says something else, so that the focus stays on its buttons.
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    const kind = KINDS[summary.status];
    clear(
      this.root,
      h(
        "div",
        { class: `verdict ${kind}`, role: kind === "error" ? "alert" : null },
        icon(ICONS[kind]),
        h("div", { class: "grow stack" }, this.#words(summary), this.#file(summary), this.#actions(summary, detail, can)),
      ),
    );
  }

  #words(job) {
    const { t } = this;
    const facts = { step: this.formats.count(job.step), steps: this.formats.count(job.steps ?? job.step) };
    const key = job.status === "finished" || job.status === "failed" ? job.reason ?? job.status : job.status;
    return h(
      "div",
      null,
      h("h2", { "data-test": "verdict-title" }, t(`verdict.${key}.title`, facts)),
      h("p", null, t.or(`verdict.${key}.text`, "", facts)),
      job.text ? h("p", { class: "muted small verdict-said", "data-test": "verdict-text" }, job.text) : null,
    );
  }

  #file(job) {
    if (!job.adapter) return null;
    const { name, bytes, path } = job.adapter;
    const size = h("span", { class: "muted" }, this.formats.bytes(bytes));
    return h("div", { class: "row wrap", "data-test": "adapter" }, icon("file"), h("b", { class: "adapter-name", title: path }, name), size);
  }

  #actions(job, detail, can) {
    const found = [...this.#useful(job, can), ...this.#goOn(job), ...this.#again(job)];
    // The first is what most people want next.
    if (found.length && !job.adapter) found[0].classList.add("primary");
    return h("div", { class: "row wrap actions" }, found);
  }

  #useful(job, can) {
    const { t, ctx } = this;
    const { host } = ctx;
    const found = [];
    if (job.adapter && host.useInGraph) {
      found.push(button({ label: t("done.use"), icon: "plus", kind: "primary", test: "use-in-graph", onClick: () => host.useInGraph(job.adapter.name) }));
    } else if (job.adapter) {
      found.push(
        button({ label: t("done.copyName"), icon: "copy", kind: "primary", test: "copy-name", onClick: () => copyText(ctx, job.adapter.name) }),
        button({ label: t("done.copyPath"), icon: "copy", test: "copy-path", onClick: () => copyText(ctx, job.adapter.path) }),
      );
    }
    if (can.includes("open")) found.push(this.#button("done.open", "folder", "open-folder", () => act(ctx, `/jobs/${this.id}/open`)));
    return found;
  }

  #goOn(job) {
    if (!job.resumable || job.status === "finished") return [];
    const { t } = this;
    const [, setting] = /--allow (\w+)/.exec(job.text ?? "") ?? [];
    if (setting) {
      const label = t("done.resumeAnyway", { setting: t.or(`settings.${setting}.label`, setting) });
      return [this.#button(null, "play", "resume-allow", () => this.#resume({ allow: [setting] }), label)];
    }
    return [this.#button("done.resume", "play", "resume", () => this.#resume({}))];
  }

  #resume(body) {
    return act(this.ctx, `/jobs/${this.id}/resume`, body);
  }

  #again(job) {
    const hint = job.status === "failed" ? ADVICE[job.reason] : undefined;
    const go = (params) => this.ctx.go("new", params);
    const found = hint ? [this.#button(`done.again_${hint}`, "reset", `again-${hint}`, () => go({ again: this.id, hint }))] : [];
    return [...found, this.#button("done.again", "refresh", "again", () => go({ again: this.id }))];
  }

  #button(key, shape, test, work, label = this.t(key)) {
    let run = work;
    const root = button({ label, icon: shape, test, onClick: (event) => run(event) });
    run = busy(root, work);
    return root;
  }
}
