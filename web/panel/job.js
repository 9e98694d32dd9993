/** One job's page: a training that waits or runs, one that has ended, a grid of its own, or another task. */

import { note, spinner } from "./controls.js";
import { clear, h } from "./dom.js";
import { DoneView } from "./done.js";
import { JobFeed } from "./job_feed.js";
import { RunningView } from "./running.js";
import { ended } from "./status.js";
import { TASKS, TaskView } from "./task_view.js";

/**
 * @param {import("./panel.js").Ctx} ctx
 * @param {{id: string}} params
 */
export function create(ctx, params) {
  const root = h("div", { class: "view job-view", "data-test": "job" }, spinner(ctx.t("loading")));
  const page = new JobPage(ctx, root);
  page.follow(params.id);
  return { root, update: (state) => page.update(state), destroy: () => page.destroy() };
}

class JobPage {
  constructor(ctx, root) {
    this.ctx = ctx;
    this.root = root;
    this.view = null;
  }

  follow(id) {
    this.id = id;
    this.feed = new JobFeed(this.ctx.api, id, () => this.#changed());
  }

  update(state) {
    this.state = state;
    const summary = this.#summary();
    if (!summary) return this.#missing();
    // What is made of a training is seen on the training's page.
    if (summary.kind !== "train" && summary.parent && state.jobs.some((job) => job.id === summary.parent)) {
      this.feed.destroy();
      this.follow(summary.parent);
      return this.update(state);
    }
    return this.feed.update(summary, state.jobs.filter((job) => job.parent === this.id));
  }

  #summary() {
    return this.state.jobs.find((job) => job.id === this.id);
  }

  #missing() {
    this.#drop();
    clear(this.root, note("info", this.ctx.t("job.gone")));
  }

  #changed() {
    const summary = this.#summary();
    if (!summary || this.feed.gone) return this.#missing();
    if (!this.feed.detail) return clear(this.root, note("error", this.feed.error));
    const kind = viewOf(summary);
    if (!(this.view instanceof kind)) {
      this.#drop();
      this.view = new kind(this.ctx, this.id);
      clear(this.root, this.view.root);
    }
    return this.view.update({ summary, detail: this.feed.detail, curve: this.feed.curve, state: this.state });
  }

  #drop() {
    this.view?.destroy();
    this.view = null;
  }

  destroy() {
    this.feed.destroy();
    this.#drop();
  }
}

function viewOf({ kind, status }) {
  if (TASKS.has(kind)) return TaskView;
  return ended(status) ? DoneView : RunningView;
}
