/** Two trainings side by side: their curves over each other, the settings that differ, their samples. */

import { ApiError } from "./api.js";
import { Chart } from "./chart.js";
import { button, combo, note, spinner } from "./controls.js";
import { Curve } from "./curve.js";
import { clear, h } from "./dom.js";
import { formats } from "./format.js";
import { valueText } from "./settings_table.js";
import { beforeAfter } from "./slider.js";

/**
 * @param {import("./panel.js").Ctx} ctx
 * @param {{a: string, b: string}} params ids of two trainings
 */
export function create(ctx, params) {
  const page = new ComparePage(ctx, params);
  page.load();
  return { root: page.root, update: () => {}, destroy: () => page.destroy() };
}

class ComparePage {
  constructor(ctx, { a, b }) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.ids = [a, b];
    this.formats = formats(ctx.t.lang);
    this.gone = new AbortController();
    this.chart = new Chart({ t: ctx.t });
    this.body = h("div", { class: "stack" }, spinner(ctx.t("loading")));
    const { t } = this;
    const back = button({
      label: t("job.back"),
      icon: "back",
      kind: "quiet",
      onClick: () => ctx.go("jobs"),
      test: "compare-back",
    });
    const swap = button({
      label: t("compare.swap"),
      icon: "refresh",
      onClick: () => ctx.go("compare", { a: b, b: a }),
      test: "compare-swap",
    });
    const head = h(
      "header",
      { class: "job-head" },
      back,
      h("div", { class: "row wrap between" }, h("h1", null, t("compare.title")), swap),
    );
    this.root = h("div", { class: "view stack", "data-test": "compare" }, head, this.body);
  }

  async load() {
    const [a, b] = this.ids.map(encodeURIComponent);
    try {
      const found = await this.ctx.api.get(`/compare?a=${a}&b=${b}`, { signal: this.gone.signal });
      this.#draw(found);
    } catch (error) {
      if (this.gone.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      clear(this.body, note("error", error.message));
    }
  }

  #draw({ settings, runs }) {
    const { t } = this;
    const shown = runs.map((run) => {
      const curve = new Curve();
      curve.apply({ ...run.curve, validations: run.validations, reset: true });
      return { name: run.name, curve };
    });
    const names = shown.map(({ name }) => name);
    // Two trainings of one name are told apart.
    if (names[0] === names[1]) shown.forEach((run, i) => (run.name = `${run.name} (${"AB"[i]})`));
    this.names = shown.map(({ name }) => name);
    this.chart.show(shown);
    const curves = h(
      "section",
      { class: "card" },
      h("h2", null, t("compare.curves")),
      this.chart.root,
      this.#bests(runs),
    );
    const differ = h("section", { class: "card" }, h("h2", null, t("compare.settings")), this.#settings(settings));
    clear(
      this.body,
      h("div", { class: "job-columns" }, this.#samples(runs), h("div", { class: "stack" }, curves, differ)),
    );
  }

  #bests(runs) {
    const { formats: f, t } = this;
    const say = (best, name) => t("compare.best", { name, loss: f.loss(best.loss), step: f.count(best.step) });
    const texts = runs.map(({ best }, i) => (best ? h("span", null, say(best, this.names[i])) : null));
    return h("div", { class: "muted small stack tight" }, texts);
  }

  #settings(settings) {
    const { t } = this;
    if (!settings.length) return h("p", { class: "muted", "data-test": "compare-same" }, t("compare.same"));
    const links = this.ids.map(
      (id, i) => h(
        "th",
        { scope: "col", class: `run-${"ab"[i]}` },
        h("button", { type: "button", class: "link", onClick: () => this.ctx.go("job", { id }) }, this.names[i]),
      ),
    );
    const rows = settings.map(
      ({ name, label, a, b }) => h(
        "tr",
        null,
        h("th", { scope: "row" }, label ?? t.or(`settings.${name}.label`, name)),
        h("td", null, valueText(a, t)),
        h("td", null, valueText(b, t)),
      ),
    );
    return h(
      "div",
      { class: "table-scroll" },
      h(
        "table",
        { class: "settings", "data-test": "compare-settings" },
        h("thead", null, h("tr", null, h("td"), links)),
        h("tbody", null, rows),
      ),
    );
  }

  /** The last samples of the prompts that both have, one over the other. */
  #samples(runs) {
    const { t } = this;
    const last = runs.map(({ samples }) => new Map(samples.map((sample) => [sample.prompt, sample])));
    const shared = [...last[0].keys()].filter((prompt) => last[1].has(prompt));
    const section = h("section", { class: "card stack" }, h("h2", null, t("compare.samples")));
    if (!shared.length) {
      section.append(h("p", { class: "muted" }, t("compare.noShared")));
      return section;
    }
    const stage = beforeAfter({ t, test: "compare-samples" });
    const show = (prompt) => stage.show(...last.map((found, i) => this.#side(found.get(prompt), this.names[i])));
    const pick = combo({
      options: shared,
      value: shared[0],
      label: t("grid.prompts"),
      test: "compare-prompt",
      onChange: show,
    });
    show(shared[0]);
    section.append(pick.root, stage.root);
    return section;
  }

  #side(sample, name) {
    const { t } = this;
    const when = sample.step === 0 ? t("timeline.before") : t("timeline.at", { step: this.formats.count(sample.step) });
    const label = `${name}, ${when}`;
    return { url: this.ctx.api.file(sample.url), label, alt: `${sample.prompt}, ${label}` };
  }

  destroy() {
    this.gone.abort();
    this.chart.destroy();
  }
}
