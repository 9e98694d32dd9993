/** How a training ended, in one box: the result or the reason, and the next step as a button. */

import { act, copyText } from "./act.js";
import { busy, button } from "./controls.js";
import { clear, h } from "./dom.js";
import { formats } from "./format.js";
import { icon } from "./icons.js";
import { settingLabel } from "./settings_table.js";
import { useAdapter } from "./use_kept.js";

const KINDS = { finished: "ok", failed: "error", interrupted: "warn", stopped: "info" };
const ICONS = { ok: "check", error: "error", warn: "warn", info: "info" };
// Reasons that say more than the status.
const REASONS = new Set(["converged", "diverged", "out_of_memory"]);
// Endings of which the trainer knows no more than our own words say.
const PLAIN = new Set(["stopped", "diverged"]);
// What training again begins with, by the reason of the end: settings from those that failed.
const ADVICE = { out_of_memory: ["memory", lighter], diverged: ["rate", slower] };

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

  /** @param {{summary: Object, detail: Object, curve: import("./curve.js").Curve, state: Object}} news */
  update({ summary, detail, curve, state }) {
    const can = state.host.can ?? [];
    const { status, reason, text, adapter, resumable } = summary;
    const stamp = JSON.stringify([status, reason, text, adapter, resumable, can]);
    // Drawn only when it says something else, so that the focus stays on its buttons.
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    const kind = KINDS[summary.status];
    const words = [this.#words(summary), this.#file(summary), this.#actions(summary, detail, can, curve)];
    const role = kind === "error" ? "alert" : null;
    const body = h("div", { class: "grow stack" }, words);
    clear(this.root, h("div", { class: `verdict ${kind}`, role }, icon(ICONS[kind]), body));
  }

  #words(job) {
    const { t } = this;
    const facts = { step: this.formats.count(job.step), steps: this.formats.count(job.steps ?? job.step) };
    const key = endingOf(job);
    const said = PLAIN.has(key) ? "" : job.text;
    return h(
      "div",
      null,
      h("h2", { "data-test": "verdict-title" }, t(`verdict.${key}.title`, facts)),
      h("p", null, t.or(`verdict.${key}.text`, "", facts)),
      h("p", { class: "muted small verdict-said", "data-test": "verdict-text" }, said),
    );
  }

  #file(job) {
    if (!job.adapter) return null;
    const { name, bytes, path } = job.adapter;
    const size = h("span", { class: "muted" }, this.formats.bytes(bytes));
    return h(
      "div",
      { class: "row wrap", "data-test": "adapter" },
      icon("file"),
      h("b", { class: "adapter-name", title: path }, name),
      size,
    );
  }

  #actions(job, detail, can, curve) {
    const again = this.#again(job, detail, curve);
    const goOn = this.#goOn(job);
    const onward = job.status === "failed" && !refusedSetting(job) ? [...again, ...goOn] : [...goOn, ...again];
    const use = this.#useful(job);
    const found = job.status === "finished" ? [...use, ...onward] : [...onward, ...use];
    const open = () => act(this.ctx, `/jobs/${this.id}/open`);
    if (can.includes("open")) found.push(this.#button("open", "folder", "open-folder", open));
    // The first is what most people want next.
    found[0].classList.add("primary");
    return h("div", { class: "row wrap actions" }, found);
  }

  #useful({ adapter }) {
    const { ctx } = this;
    if (!adapter) return [];
    const use = () => useAdapter(ctx, adapter.name);
    if (ctx.host.useInGraph) return [this.#button("use", "plus", "use-in-graph", use)];
    return [
      this.#button("copyName", "copy", "copy-name", use),
      this.#button("copyPath", "copy", "copy-path", () => copyText(ctx, adapter.path)),
    ];
  }

  #goOn(job) {
    if (job.status === "finished") return [];
    const { t } = this;
    const setting = refusedSetting(job);
    if (setting) {
      const label = t("done.resumeAnyway", { setting: settingLabel(t, setting) });
      return [this.#button(null, "play", "resume-allow", () => this.#resume({ allow: [setting] }), label)];
    }
    return [this.#button(job.resumable ? "resume" : "begin", "play", "resume", () => this.#resume({}))];
  }

  #resume(body) {
    return act(this.ctx, `/jobs/${this.id}/resume`, body);
  }

  #again(job, { request, spec }, curve) {
    const asked = (changes) => ({ ...request, settings: { ...request.settings, ...changes } });
    const go = (changes) => this.ctx.go("new", { request: asked(changes) });
    const [name, change] = (job.status === "failed" && ADVICE[job.reason]) || [];
    const again = this.#button("again", "refresh", "again", () => go({}));
    if (!name) return [again];
    return [this.#button(`again_${name}`, "reset", `again-${name}`, () => go(change(spec, curve))), again];
  }

  #button(key, shape, test, work, label = this.t(`done.${key}`)) {
    let run = work;
    const root = button({ label, icon: shape, test, onClick: (event) => run(event) });
    // The work begins in the click itself: only then may it use the clipboard.
    run = busy(root, async () => work());
    return root;
  }
}

/** The setting whose new content kept a training from being resumed, or null; the trainer's sentence names it. */
function refusedSetting({ status, text }) {
  return status === "failed" ? /--allow (\w+)/.exec(text ?? "")?.[1] ?? null : null;
}

/** Which words say how a job ended. */
export function endingOf(job) {
  const { status, reason, step, resumable } = job;
  if (refusedSetting(job)) return "refused";
  if (status === "stopped" && !step && !resumable) return "unbegun";
  if (status === "stopped" && (reason === "killed" || !resumable)) return "ended";
  if (status === "interrupted" && !resumable) return "lost";
  return REASONS.has(reason) && (status === "finished" || status === "failed") ? reason : status;
}

/** The same training with less memory: fewer pictures at once, activations computed twice. */
function lighter({ batch_size: batch = 1, accumulation = 1 }) {
  const halved = batch > 1 ? { batch_size: Math.floor(batch / 2), accumulation: accumulation * 2 } : {};
  return { gradient_checkpointing: true, ...halved };
}

/** The same with a quarter of the learning rate, in round numbers; a preset's own rate is read off the curve. */
function slower({ lr }, curve) {
  const rate = lr ?? curve.lr.subarray(0, curve.count).reduce((top, value) => Math.max(top, value), 0);
  return rate > 0 ? { lr: Number((rate / 4).toPrecision(2)) } : {};
}
