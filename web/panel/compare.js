/** Two trainings side by side: their curves over each other, the settings that differ, their samples. */

import { ApiError } from "./api.js";
import { Chart } from "./chart.js";
import { button, combo, note, spinner } from "./controls.js";
import { Curve } from "./curve.js";
import { clear, h } from "./dom.js";
import { engineName } from "./engine.js";
import { formats } from "./format.js";
import { shown } from "./setting.js";
import { settingLabel } from "./settings_table.js";
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

  #draw({ settings, runs, pairs }) {
    const { t } = this;
    const drawn = runs.map((run) => {
      const curve = new Curve();
      curve.apply({ ...run.curve, validations: run.validations, reset: true });
      return { name: run.name, curve };
    });
    const names = drawn.map(({ name }) => name);
    // Two trainings of one name are told apart.
    if (names[0] === names[1]) drawn.forEach((run, i) => (run.name = `${run.name} (${"AB"[i]})`));
    this.names = drawn.map(({ name }) => name);
    this.chart.show(drawn);
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
      h("div", { class: "job-columns" }, this.#samples(pairs), h("div", { class: "stack" }, curves, differ)),
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
        h("th", { scope: "row" }, name === "engine" ? t("engine.label") : settingLabel(t, name, label)),
        [a, b].map((value) => h("td", null, name === "engine" ? engineName(t, value) : shown(value, t))),
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

  /** The samples of the prompts that both have, one over the other. */
  #samples(pairs) {
    const { t } = this;
    const rowsOf = ({ prompt, steps }) => ({ prompt, rows: together(steps) });
    const shared = pairs.map(rowsOf).filter(({ rows }) => rows.length);
    const section = h("section", { class: "card stack" }, h("h2", null, t("compare.samples")));
    if (!shared.length) {
      section.append(h("p", { class: "muted" }, t("compare.noShared")));
      return section;
    }
    const stage = beforeAfter({ t, test: "compare-samples" });
    const range = h(
      "input",
      { type: "range", class: "range", min: "0", "aria-label": t("timeline.step"), "data-test": "compare-step" },
    );
    let rows = [];
    const show = () => {
      const { a, b } = rows[Number(range.value)];
      stage.show(this.#side(a, this.names[0]), this.#side(b, this.names[1]));
      range.setAttribute("aria-valuetext", t("timeline.at", { step: this.formats.count(b.step) }));
    };
    const choose = (index) => {
      rows = shared[Number(index)].rows;
      range.max = String(rows.length - 1);
      range.value = range.max;
      range.hidden = rows.length < 2;
      show();
    };
    range.addEventListener("input", show);
    const options = shared.map(({ prompt }, i) => ({ value: String(i), label: prompt }));
    const pick = combo({ options, value: "0", label: t("grid.prompts"), test: "compare-prompt", onChange: choose });
    choose(0);
    section.append(pick.root, stage.root, range);
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

/** The steps that both have, and at the end the last of each: nobody trains two runs alike only to compare them. */
function together(steps) {
  const both = steps.filter(({ a, b }) => a && b);
  const a = steps.findLast((row) => row.a)?.a;
  const b = steps.findLast((row) => row.b)?.b;
  if (!a || !b) return [];
  const last = both.at(-1);
  return last && last.a === a && last.b === b ? both : [...both, { a, b }];
}
