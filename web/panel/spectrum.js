/** What a training moved, checkpoint by checkpoint, on its page. */

import { ApiError, newest } from "./api.js";
import { combo, field, folded, spinner } from "./controls.js";
import { clear, h } from "./dom.js";
import { keptOptions } from "./export.js";
import { formats } from "./format.js";
import { SpectrumPicture } from "./spectrum_picture.js";

/** The spectrum part of a finished job's page; it asks the server once it is opened. */
export class SpectrumSection {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {string} id
   */
  constructor(ctx, id) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.id = id;
    this.formats = formats(ctx.t.lang);
    this.ask = newest();
    this.#build();
  }

  #build() {
    const { t } = this;
    this.which = combo({ test: "spectrum-checkpoint", onChange: () => this.#load() });
    this.said = h("div", { role: "status" });
    this.picture = new SpectrumPicture(this.ctx);
    this.root = folded(
      { title: t("spectrum.title"), test: "spectrum-fold", onToggle: (open) => open && !this.data && this.#load() },
      h(
        "div",
        { class: "stack" },
        h("p", { class: "muted" }, t("spectrum.about")),
        h("div", { class: "form-row" }, field({ label: t("spectrum.which"), control: this.which }).root),
        this.said,
        this.picture.root,
      ),
    );
  }

  /** @param {{summary: Object, detail: Object}} news */
  update({ summary, detail }) {
    const options = keptOptions(summary, detail, this.t, this.formats);
    const stamp = JSON.stringify(options);
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    this.which.offer(options, this.which.get() || options[0]?.value);
  }

  async #load() {
    clear(this.said, spinner(this.t("loading")));
    const path = `/jobs/${this.id}/spectrum?checkpoint=${encodeURIComponent(this.which.get())}`;
    try {
      const { current, value } = await this.ask((signal) => this.ctx.api.get(path, { signal }));
      if (current) this.#show(value);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.said, h("p", { class: "danger-text" }, error.message));
    }
  }

  #show(data) {
    this.data = data;
    clear(this.said);
    this.picture.show(data);
  }

  destroy() {
    this.picture.destroy();
  }
}
