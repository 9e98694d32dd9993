/** The page of a job that is no training: looking for conflicts, fusing. */

import { act } from "./act.js";
import { ApiError } from "./api.js";
import { busy, button, folded, note } from "./controls.js";
import { ConflictView } from "./conflict_view.js";
import { clear, h } from "./dom.js";
import { fusedResult } from "./fuse.js";
import { jobHead, logTail, noticeList } from "./job_head.js";
import { formats } from "./format.js";
import { ended } from "./status.js";
import { TaskLine } from "./task_line.js";

export const TASKS = new Set(["conflict", "fuse"]);

/** How it goes, what came of it, the way to the page where it was asked for. */
export class TaskView {
  /** @param {import("./panel.js").Ctx} ctx @param {string} id */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.head = jobHead(ctx);
    this.line = new TaskLine(ctx, "task");
    this.result = h("div", { class: "stack" });
    this.notices = noticeList(ctx.t, formats(ctx.t.lang));
    this.log = logTail(ctx.t, folded);
    this.box = h("section", { class: "card" }, this.line.root);
    this.root = h("div", { class: "stack", "data-test": "task-view" }, this.head.root, this.box, this.result);
    this.root.append(this.notices.root, this.log.root, this.#foot());
  }

  #foot() {
    const { t } = this;
    this.mix = button({ label: t("task.mix"), icon: "mix", onClick: () => this.#mix(), test: "task-mix" });
    const work = () => held();
    this.remove = button({ label: t("done.delete"), icon: "trash", kind: "danger", onClick: work, test: "delete" });
    const held = busy(this.remove, () => this.#delete());
    return h("div", { class: "row wrap between job-footer" }, this.mix, this.remove);
  }

  /** Back to the mix, with what was asked. */
  #mix() {
    const { adapters = [], base, mode } = this.request;
    const names = adapters.map((each) => each.name ?? each);
    const weights = adapters.map((each) => each.weight ?? 1);
    const given = { adapters: JSON.stringify(names), weights: JSON.stringify(weights), [this.kind]: this.id };
    this.ctx.go("mix", { ...given, ...(base ? { base } : {}), ...(mode ? { mode } : {}) });
  }

  async #delete() {
    const { t, ctx } = this;
    const sure = await ctx.confirm(t("task.deleteAsk"), { yes: t("done.delete"), danger: true });
    if (sure && (await act(ctx, `/jobs/${this.id}/delete`, {}, t("done.deleted")))) ctx.go("jobs");
  }

  /** @param {{summary: Object, detail: Object}} news */
  update({ summary, detail }) {
    this.kind = summary.kind;
    this.request = detail.request ?? {};
    this.head.update({ ...summary, name: this.t(`jobs.${summary.kind}Of`, { name: summary.name }) });
    this.box.hidden = summary.status === "finished";
    this.line.update(summary);
    this.notices.update(detail.notices);
    this.log.update(detail.log);
    this.remove.hidden = !ended(summary.status);
    this.mix.hidden = !Array.isArray(this.request.adapters);
    if (summary.status === "finished" && !this.shown) this.#show(summary);
  }

  async #show(summary) {
    this.shown = true;
    if (summary.kind === "fuse") return clear(this.result, fusedResult(this.ctx, summary));
    this.conflict = new ConflictView(this.ctx);
    clear(this.result, this.conflict.root);
    try {
      this.conflict.show(await this.ctx.api.get(`/jobs/${this.id}/conflict`));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.result, note("error", error.message));
    }
    return undefined;
  }

  destroy() {
    this.conflict?.destroy();
  }
}
