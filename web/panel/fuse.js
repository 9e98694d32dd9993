/** Making one file of several: how, under which name, and what came of it. */

import { act, copyText } from "./act.js";
import { ApiError } from "./api.js";
import { plainName } from "./catalogue.js";
import { busy, button, combo, field, note, textInput } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { loraSize } from "./lora_size.js";
import { modeChoice, MODES } from "./modes.js";
import { ended } from "./status.js";
import { nextName } from "./suggest.js";
import { TaskLine } from "./task_line.js";
import { useAdapter } from "./use_kept.js";

const KINDS = ["auto", "native", "lora", "diff"];
const LONGEST = 60; // characters of a name that is made of names

/** The part of the mix page that fuses. */
export class FusePart {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {{request: () => {adapters: Object[], base: string}, mode?: string, keep: (changes: Object) => void}} page
   *   keep: what a reload is to find again, mode and fuse (the id of the job)
   */
  constructor(ctx, page) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.page = page;
    this.mode = MODES.includes(page.mode) ? page.mode : MODES[0];
    this.files = [];
    this.#build();
  }

  #build() {
    const { t } = this;
    const onMode = (mode) => {
      this.mode = mode;
      this.page.keep({ mode });
    };
    this.modes = modeChoice(t, { value: this.mode, onChange: onMode });
    const kinds = KINDS.map((value) => ({ value, label: t(`fuse.kinds.${value}`) }));
    this.kind = combo({ options: kinds, value: "auto", test: "fuse-to", onChange: () => this.changed() });
    this.kindField = field({ label: t("fuse.to"), help: t("fuse.toHelp"), control: this.kind });
    this.size = loraSize(t);
    this.name = textInput({ onChange: () => this.changed(), test: "fuse-name", maxLength: 100 });
    this.nameField = field({ label: t("name.label"), help: t("name.help"), control: this.name });
    this.missing = h("div", { class: "small train-reason", role: "status", "data-test": "fuse-missing" });
    const work = (event) => this.held(event);
    this.go = button({ label: t("fuse.go"), icon: "mix", kind: "primary", test: "fuse", onClick: work });
    this.held = busy(this.go, () => this.#fuse());
    this.line = new TaskLine(this.ctx, "fuse-task");
    this.result = h("div", { class: "stack tight", "data-test": "fuse-result" });
    const settings = h("div", { class: "settings-grid two" }, this.nameField.root, this.kindField.root);
    this.root = h(
      "section",
      { class: "card stack" },
      h("h2", null, t("fuse.title")),
      h("h3", null, t("mix.mode")),
      this.modes.root,
      settings,
      this.size.root,
      h("div", { class: "row wrap end" }, this.missing, this.go),
      this.line.root,
      this.result,
    );
  }

  /**
   * @param {Object[]} infos of the files, in their order
   * @param {string} missing what has to be chosen before, or ""
   */
  show(infos, missing) {
    this.lack = missing;
    this.mode = this.modes.fit(infos);
    this.changed();
    if (!this.files.length) this.#list();
  }

  /** Asks which names are taken. */
  async #list() {
    try {
      this.files = await this.ctx.catalogue.list();
      this.changed();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.result, note("error", error.message));
    }
  }

  /** Brings the form up to date. */
  changed() {
    this.size.root.hidden = this.kind.get() !== "lora";
    this.name.input.placeholder = this.#suggested();
    const wanted = this.#name();
    const free = nextName(wanted, this.files, this.state?.jobs ?? []);
    this.nameField.say(free === wanted ? "" : this.t("name.taken", { wanted, free }));
    setText(this.missing, this.lack ?? "");
    this.go.disabled = Boolean(this.lack) || this.#atWork();
  }

  #suggested() {
    return this.page.request().adapters.map(({ name }) => plainName(name)).join("-").slice(0, LONGEST).trim();
  }

  #name() {
    return this.name.get().trim() || this.#suggested();
  }

  #atWork() {
    return Boolean(this.job) && !ended(this.job.status);
  }

  #request() {
    const to = this.kind.get();
    const size = to === "lora" ? this.size.get() : {};
    return { ...this.page.request(), mode: this.mode, to, name: this.#name(), ...size };
  }

  async #fuse() {
    clear(this.result);
    const made = await act(this.ctx, "/mix/fuse", this.#request());
    if (!made?.id) return;
    this.page.keep({ fuse: made.id });
    this.update(this.ctx.store.job(made.id), this.ctx.store.state);
  }

  /** @param {Object|undefined} job the summary of the job that fuses @param {Object} state */
  update(job, state) {
    this.state = state;
    this.job = job;
    this.line.update(job?.status === "finished" ? undefined : job);
    this.go.disabled = Boolean(this.lack) || this.#atWork();
    const stamp = JSON.stringify([job?.id, job?.status, job?.text]);
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    if (job?.status !== "finished") return;
    clear(this.result, fusedResult(this.ctx, job));
    this.#list();
  }
}

/**
 * What fusing made: the file, the report, where to go with it.
 * @param {import("./panel.js").Ctx} ctx
 * @param {Object} job its summary, finished
 */
export function fusedResult(ctx, job) {
  const { t } = ctx;
  const { adapter, text } = job;
  const report = h("p", { class: "said small", "data-test": "fuse-report" }, text);
  const onward = h("div", { class: "row wrap" });
  if (adapter) offer(ctx, adapter, onward);
  return note("ok", adapter ? t("fuse.made", { name: adapter.name }) : t("fuse.done"), report, onward);
}

/** What can be done with a file that was made, once the list says under which name it is known. */
async function offer(ctx, { name, path }, onward) {
  const { t } = ctx;
  const copy = () => copyText(ctx, path);
  const rest = [button({ label: t("done.copyPath"), icon: "copy", onClick: copy, test: "fuse-copy" })];
  try {
    const listed = (await ctx.catalogue.list()).find((file) => file.name === name || file.name.endsWith(`/${name}`));
    if (listed) {
      const open = () => ctx.go("adapter", { name: listed.name });
      rest.unshift(button({ label: t("fuse.open"), icon: "file", onClick: open, test: "fuse-open" }));
    }
    if (listed && ctx.host.useInGraph) {
      const use = () => useAdapter(ctx, listed.name);
      rest.unshift(button({ label: t("done.use"), icon: "plus", kind: "primary", onClick: use, test: "fuse-use" }));
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    ctx.toast("error", error.message);
  }
  clear(onward, rest);
}
