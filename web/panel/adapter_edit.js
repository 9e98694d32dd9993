/** The form for what a file says of itself. Only the words and the picture in it change, never what it does. */

import { ApiError } from "./api.js";
import { busy, button, field, note, textArea, textInput } from "./controls.js";
import { clear, h } from "./dom.js";
import { PreviewEdit } from "./preview_edit.js";

// Names that model hubs know.
const LICENCES = [
  "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "creativeml-openrail-m", "openrail++", "mit",
];
const TEXTS = ["title", "description", "licence", "author"];

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** The form of an adapter's page. */
export class AdapterEdit {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} name of the file
   * @param {() => void} saved called after the file was changed
   */
  constructor(ctx, name, saved) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.name = name;
    this.saved = saved;
    this.#build();
  }

  #build() {
    const { t } = this;
    const onChange = () => this.#changed();
    this.controls = {
      title: textInput({ onChange, test: "edit-title", maxLength: 200 }),
      description: textArea({ rows: 3, onChange, test: "edit-description", maxLength: 4000 }),
      licence: textInput({ onChange, test: "edit-licence", maxLength: 200, suggestions: LICENCES }),
      author: textInput({ onChange, test: "edit-author", maxLength: 200 }),
    };
    this.triggers = textArea({ rows: 2, onChange, test: "edit-triggers", maxLength: 4000 });
    this.preview = new PreviewEdit({ t, onChange });
    const row = (key, control, help) => field({ label: t(`edit.${key}`), control, help }).root;
    const work = (event) => this.held(event);
    this.save = button({ label: t("edit.save"), icon: "save", kind: "primary", test: "edit-save", onClick: work });
    this.held = busy(this.save, () => this.#save());
    const undo = () => this.show(this.info);
    this.undo = button({ label: t("edit.undo"), kind: "quiet", test: "edit-undo", onClick: undo });
    this.said = h("div", { role: "status" });
    this.root = h(
      "div",
      { class: "stack", "data-test": "edit" },
      row("title", this.controls.title),
      row("triggers", this.triggers, t("edit.triggers_help")),
      row("description", this.controls.description),
      h(
        "div",
        { class: "settings-grid two" },
        row("licence", this.controls.licence, t("edit.licence_help")),
        row("author", this.controls.author),
      ),
      this.preview.root,
      this.said,
      h("div", { class: "row end wrap" }, this.undo, this.save),
    );
  }

  /** Shows what the file says now. @param {Object} info */
  show(info) {
    this.info = info;
    for (const name of TEXTS) this.controls[name].set(info[name] ?? "");
    this.triggers.set((info.trigger_words ?? []).join("\n"));
    this.preview.show(info.preview ? this.ctx.catalogue.previewUrl(this.name, info.sha256) : null);
    clear(this.said);
    this.#changed();
  }

  /** What differs from the file, as the server takes it. */
  #changes() {
    const found = {};
    for (const name of TEXTS) {
      const text = this.controls[name].get().trim();
      if (text !== (this.info[name] ?? "")) found[name] = text;
    }
    const triggers = lines(this.triggers.get());
    if (JSON.stringify(triggers) !== JSON.stringify(this.info.trigger_words ?? [])) found.trigger_words = triggers;
    const preview = this.preview.change();
    return preview === undefined ? found : { ...found, preview };
  }

  #changed() {
    const same = Object.keys(this.#changes()).length === 0;
    this.save.disabled = this.undo.disabled = same;
  }

  async #save() {
    try {
      await this.ctx.api.post("/adapters/edit", { name: this.name, ...this.#changes() });
      this.ctx.toast("ok", this.t("edit.done"));
      this.saved();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.said, note("error", error.message));
    }
  }

  destroy() {
    this.preview.destroy();
  }
}
