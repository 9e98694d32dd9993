/** One adapter as a LoRA, for programs and people without this package: a fusion of one. */

import { act } from "./act.js";
import { ApiError } from "./api.js";
import { plainName } from "./catalogue.js";
import { busy, button, combo, field } from "./controls.js";
import { clear, h } from "./dom.js";
import { fusedResult } from "./fuse.js";
import { loraSize } from "./lora_size.js";
import { ended } from "./status.js";
import { TaskLine } from "./task_line.js";

// Methods that change every direction of a weight, which no small LoRA holds exactly.
const FULL = new Set(["svdiff", "soda"]);

/** The export part of a file's page. */
export class AdapterExport {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {{name: string, info: Object, job?: string, keep: (id: string) => void}} page
   *   job: the id of an export that was asked for; keep: what a reload is to find again
   */
  constructor(ctx, page) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.page = page;
    this.job = page.job;
    this.#build();
  }

  #build() {
    const { t, ctx } = this;
    const { method, profile } = this.page.info;
    const said = () => this.baseField.fail("");
    this.size = loraSize(t, { by: FULL.has(method) ? "rank" : "exact" });
    this.base = profile === "compact" ? combo({ blank: t("base.choose"), test: "export-base", onChange: said }) : null;
    this.baseField = this.base && field({ label: t("base.title"), help: t("mix.baseHelp"), control: this.base });
    const work = (event) => held(event);
    this.go = button({ label: t("export.make"), icon: "download", test: "adapter-export", onClick: work });
    const held = busy(this.go, () => this.#make());
    this.line = new TaskLine(ctx, "adapter-export-task");
    this.result = h("div", { class: "stack" });
    const form = h("div", { class: "row wrap" }, this.size.root, this.go);
    const about = h("p", { class: "muted" }, t("adapter.export"));
    this.root = h("div", { class: "stack" }, about, this.baseField?.root, form, this.line.root, this.result);
    if (this.base) this.#offerBases();
  }

  async #offerBases() {
    const named = this.page.info.base_name;
    try {
      const options = (await this.ctx.api.get("/bases")).map(({ name }) => ({ value: name, label: name }));
      this.base.offer(options, options.some(({ value }) => value === named) ? named : "");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.ctx.toast("error", error.message);
    }
  }

  async #make() {
    const { name } = this.page;
    if (this.base?.get() === "") {
      this.baseField.fail(this.t("train.no_base"));
      return this.base.input.focus();
    }
    clear(this.result);
    const made = await act(this.ctx, "/mix/fuse", {
      adapters: [{ name, weight: 1 }],
      mode: "sum",
      to: "lora",
      base: this.base?.get() ?? "",
      name: `${plainName(name)}-lora`,
      ...this.size.get(),
    });
    if (!made?.id) return undefined;
    this.job = made.id;
    this.page.keep(made.id);
    return this.update(this.ctx.store.state);
  }

  /** @param {Object|undefined} state of the server */
  update(state) {
    const job = this.job && state?.jobs.find(({ id }) => id === this.job);
    if (!job) return;
    this.line.update(job.status === "finished" ? undefined : job);
    this.go.disabled = !ended(job.status);
    if (job.status !== "finished" || this.shown === job.id) return;
    this.shown = job.id;
    clear(this.result, fusedResult(this.ctx, job));
  }
}
