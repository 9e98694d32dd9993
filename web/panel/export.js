/** Making a LoRA of an adapter, for programs and people without this package. */

import { ApiError } from "./api.js";
import { busy, button, combo, field, folded, numberInput } from "./controls.js";
import { h, keyed, setText } from "./dom.js";
import { formats } from "./format.js";
import { badge } from "./status.js";

export const FINAL = "final";

/** Choices of what was kept: the finished adapter first, then the checkpoints, newest first. */
export function keptOptions(summary, detail, t, f) {
  const steps = detail.checkpoints.map(({ step, best, name }) => {
    const label = t("timeline.at", { step: f.count(step) });
    return { value: name, label: best ? t("kept.best", { step: label }) : label };
  });
  const final = summary.adapter ? [{ value: FINAL, label: t("kept.final") }] : [];
  return [...final, ...steps.reverse()];
}

/** The export part of a finished job's page. */
export class ExportSection {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} id
   */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.formats = formats(ctx.t.lang);
    this.#build();
  }

  #build() {
    const { t } = this;
    this.which = combo({ test: "export-checkpoint" });
    this.rank = numberInput({ min: 1, max: 4096, whole: true, placeholder: t("export.rankNone"), test: "export-rank" });
    this.rankField = field({ label: t("export.rank"), help: t("export.rankHelp"), control: this.rank });
    const which = field({ label: t("export.which"), control: this.which });
    const make = button({
      label: t("export.make"),
      icon: "download",
      test: "export-make",
      onClick: (event) => this.held(event),
    });
    this.held = busy(make, () => this.#make());
    this.list = h("ul", { class: "tasks", "data-test": "exports" });
    const form = h("div", { class: "form-row" }, which.root, this.rankField.root, make);
    this.root = folded(
      { title: t("export.title"), test: "export-fold" },
      h("p", { class: "muted" }, t("export.about")),
      form,
      this.list,
    );
  }

  async #make() {
    this.rankField.fail("");
    try {
      await this.ctx.api.post(`/jobs/${this.id}/export`, { checkpoint: this.which.get(), rank: this.rank.get() });
      await this.ctx.store.refresh();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.rankField.fail(error.message);
      this.rank.input.focus();
    }
  }

  /** @param {{summary: Object, detail: Object}} news */
  update({ summary, detail }) {
    const options = keptOptions(summary, detail, this.t, this.formats);
    const stamp = JSON.stringify(options);
    if (stamp !== this.stamp) this.which.offer(options, this.which.get() || options[0]?.value);
    this.stamp = stamp;
    const made = detail.tasks.filter(({ kind }) => kind === "export");
    if (made.length && !this.opened) this.root.open = this.opened = true;
    keyed(this.list, made, ({ id }) => id, () => taskRow(this.t));
  }
}

/** One export: its status, and the file or the reason. */
function taskRow(t) {
  const status = badge(t);
  const text = h("span", { class: "grow" });
  const root = h("li", { class: "row task", "data-test": "export-task" }, status.root, text);
  const update = (task) => {
    status.set(task);
    setText(text, task.text || task.adapter?.name || "");
  };
  return { root, update };
}
