/** One file's page: what it is, what it says of itself (to be changed), what it moves, how to take it elsewhere. */

import { copyText } from "./act.js";
import { AdapterEdit } from "./adapter_edit.js";
import { AdapterExport } from "./adapter_export.js";
import { isOther } from "./adapters.js";
import { ApiError } from "./api.js";
import { plainName } from "./catalogue.js";
import { command, commandRow, quoted } from "./command.js";
import { button, folded, iconButton, note, spinner } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { factList } from "./facts.js";
import { methodText } from "./method.js";
import { picture } from "./picture.js";
import { SpectrumPicture } from "./spectrum_picture.js";
import { useAdapter } from "./use_kept.js";

/**
 * @param {import("./panel.js").Ctx} ctx
 * @param {{name: string, job?: string}} params  job: the id of an export
 */
export function create(ctx, params) {
  const page = new AdapterPage(ctx, params);
  page.load();
  return { root: page.root, update: (state) => page.update(state), destroy: () => page.destroy() };
}

class AdapterPage {
  constructor(ctx, { name = "", job }) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.name = name;
    this.job = job;
    this.body = h("div", { class: "stack" }, spinner(ctx.t("loading")));
    this.#head();
    this.root = h("div", { class: "view stack", "data-test": "adapter" }, this.head, this.body);
  }

  #head() {
    const { t, ctx } = this;
    const back = button({
      label: t("adapters.all"), icon: "back", kind: "quiet", onClick: () => ctx.go("adapters"), test: "adapter-back",
    });
    this.title = h("h1", { "data-test": "adapter-title" }, plainName(this.name));
    this.kind = h("span", { class: "chip accent", hidden: true });
    const title = h("div", { class: "row job-title wrap" }, this.title, this.kind);
    this.head = h("header", { class: "job-head" }, back, title, h("div", { class: "muted small path" }, this.name));
  }

  async load() {
    try {
      const info = await this.ctx.catalogue.info(this.name);
      if (this.gone) return;
      if (this.info) this.#fill(info);
      else this.#draw(info);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (!this.gone) clear(this.body, note("error", error.message));
    }
  }

  #draw(info) {
    const { ctx, t } = this;
    this.image = picture({ class: "preview-large" });
    this.said = h("div", { class: "stack tight" });
    this.facts = factList(ctx);
    const about = h(
      "section",
      { class: "card stack" },
      h("div", { class: "adapter-about" }, this.image.root, this.said),
      this.facts.root,
    );
    const editable = info.editable !== false;
    this.edit = editable ? new AdapterEdit(ctx, this.name, () => this.#saved()) : null;
    const heading = h("h2", null, t("edit.heading"));
    const form = editable ? h("section", { class: "card stack" }, heading, this.edit.root) : null;
    const columns = h("div", { class: "job-columns halves" }, about, form);
    clear(this.body, this.#actions(), columns, this.#spectrum(info), this.#elsewhere(info), this.#metadata());
    this.#fill(info);
  }

  #actions() {
    const { ctx, t } = this;
    const mix = () => ctx.go("adapters", { chosen: JSON.stringify([this.name]) });
    const use = () => useAdapter(ctx, this.name);
    const first = ctx.host.useInGraph
      ? button({ label: t("done.use"), icon: "plus", kind: "primary", onClick: use, test: "use-in-graph" })
      : button({ label: t("done.copyName"), icon: "copy", onClick: () => copyText(ctx, this.name), test: "copy-name" });
    const mixed = button({ label: t("adapters.mixWith"), icon: "mix", onClick: mix, test: "adapter-mix" });
    return h("div", { class: "row wrap actions" }, first, mixed);
  }

  #fill(info) {
    this.info = info;
    const method = methodText(this.t, info);
    setText(this.title, info.title || plainName(this.name));
    this.kind.hidden = !method;
    setText(this.kind, method);
    this.image.set(info.preview ? this.ctx.catalogue.previewUrl(this.name, info.sha256) : null, info.title ?? "");
    this.#words(info);
    this.facts.show(info);
    this.edit?.show(info);
    if (this.metadata.open) this.#drawMetadata();
  }

  #words({ trigger_words: triggers = [], description, author, licence }) {
    const { t, ctx } = this;
    const words = triggers.map((word) => {
      const label = t("adapter.copyTrigger", { word });
      const copy = iconButton({ label, icon: "copy", onClick: () => copyText(ctx, word), test: "copy-trigger" });
      return h("span", { class: "trigger", "data-test": "trigger-word" }, h("span", { class: "grow" }, word), copy);
    });
    const none = triggers.length ? null : h("p", { class: "muted" }, t("adapter.noTrigger"));
    const by = [author, licence].filter(Boolean).join(" · ");
    clear(
      this.said,
      h("h2", null, t("edit.triggers")),
      none,
      h("div", { class: "row wrap" }, words),
      description ? h("p", { class: "said", "data-test": "adapter-description" }, description) : null,
      by ? h("p", { class: "muted small" }, by) : null,
    );
  }

  #spectrum(info) {
    if (isOther(info)) return null;
    const { t, ctx } = this;
    this.map = new SpectrumPicture(ctx);
    const said = h("div", { role: "status" });
    const onToggle = async (open) => {
      if (!open || this.moved) return;
      clear(said, spinner(t("loading")));
      try {
        this.moved = await ctx.api.get(`/adapters/spectrum?name=${encodeURIComponent(this.name)}`);
        clear(said);
        if (!this.gone) this.map.show(this.moved);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        clear(said, note("error", error.message));
      }
    };
    const about = h("p", { class: "muted" }, t("spectrum.about"));
    const parts = h("div", { class: "stack" }, about, said, this.map.root);
    return folded({ title: t("spectrum.title"), test: "adapter-spectrum", onToggle }, parts);
  }

  update(state) {
    this.export?.update(state);
  }

  /** A LoRA, and the command for what needs more than a click. */
  #elsewhere(info) {
    const { t, ctx } = this;
    const part = (title, ...content) => h("div", { class: "stack tight" }, h("h3", null, title), content);
    const folder = `${plainName(this.name).replace(/^-/, "./-")}-hub`;
    const publish = command("publish", quoted(info.path ?? this.name), quoted(folder));
    const about = h("p", { class: "muted" }, t("adapter.publishAbout"));
    const keep = (job) => this.gone || ctx.stay({ name: this.name, job });
    this.export = isOther(info) ? null : new AdapterExport(ctx, { name: this.name, info, job: this.job, keep });
    const parts = [
      this.export ? part(t("export.title"), this.export.root) : null,
      part(t("adapter.publish"), about, commandRow(ctx, publish, "copy-publish")),
    ];
    this.export?.update(ctx.store.state);
    const props = { title: t("adapter.elsewhere"), test: "adapter-elsewhere", open: Boolean(this.job) };
    return folded(props, h("div", { class: "stack" }, parts));
  }

  #metadata() {
    this.table = h("div", { class: "table-scroll" });
    const onToggle = (open) => open && this.#drawMetadata();
    this.metadata = folded({ title: this.t("adapter.metadata"), test: "adapter-metadata", onToggle }, this.table);
    return this.metadata;
  }

  #drawMetadata() {
    const rows = Object.entries(this.info.metadata ?? {}).map(([key, value]) =>
      h("tr", null, h("th", { scope: "row" }, key), h("td", null, short(value))),
    );
    clear(this.table, h("table", { class: "settings" }, h("tbody", null, rows)));
  }

  #saved() {
    this.ctx.catalogue.forget(this.name);
    this.load();
  }

  destroy() {
    this.gone = true;
    this.map?.destroy();
    this.edit?.destroy();
  }
}

/** Long values, such as an embedded picture, are cut. */
function short(value) {
  const text = String(value);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
}
