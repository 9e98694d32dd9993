/** The samples of a run: choose a prompt and a step, compare with an earlier one; the newest is followed by itself. */

import { button, combo, iconButton } from "./controls.js";
import { h, keyed, on, setText } from "./dom.js";
import { formats } from "./format.js";
import { enlarge } from "./lightbox.js";
import { setThumb, thumb } from "./picture.js";
import { beforeAfter } from "./slider.js";

const keyOf = (sample) => `${sample.number} ${sample.prompt}`;

/** Samples by prompt and step. */
export class Timeline {
  /**
   * @param {import("./panel.js").Ctx} ctx
   * @param {{emptyText: () => string, more?: boolean}} options emptyText: where the first or next pictures come from;
   *   more: it holds for the next ones too
   */
  constructor(ctx, { emptyText, more = false }) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.formats = formats(ctx.t.lang);
    this.emptyText = emptyText;
    this.more = more;
    this.rows = new Map();
    this.prompt = null;
    this.step = null;
    this.against = null;
    this.best = null;
    this.#build();
  }

  #build() {
    const { t } = this;
    this.empty = h("div", { class: "timeline-empty muted", "data-test": "samples-empty" });
    this.prompts = h("div", { class: "prompt-picks", role: "group", "aria-label": t("timeline.prompts") });
    this.strip = h("div", { class: "strip", role: "group", "aria-label": t("timeline.steps") });
    this.next = h("p", { class: "muted small", hidden: !this.more, "data-test": "samples-next" });
    const parts = [this.prompts, this.#head(), this.#stage(), this.#range(), this.strip, this.#other(), this.next];
    this.full = h("div", { class: "stack" }, parts);
    this.root = h("div", { class: "timeline", "data-test": "timeline" }, this.empty, this.full);
  }

  #head() {
    const label = this.t("timeline.follow");
    this.title = h("div", { class: "grow timeline-prompt", "data-test": "sample-prompt" });
    this.follow = button({ label, kind: "quiet", onClick: () => this.#choose(null), test: "sample-follow" });
    return h("div", { class: "row timeline-head" }, this.title, this.follow);
  }

  #stage() {
    const label = this.t("timeline.enlarge");
    const large = iconButton({ label, icon: "open", onClick: () => this.#enlarge(), test: "sample-enlarge" });
    this.stage = beforeAfter({ t: this.t, test: "sample" });
    this.stage.root.append(h("div", { class: "ba-tools" }, large));
    return this.stage.root;
  }

  #range() {
    const props = { type: "range", class: "range", min: "0", step: "1", "data-test": "sample-step" };
    this.range = h("input", { ...props, "aria-label": this.t("timeline.step") });
    on(this.range, "input", () => this.#choose(this.#steps()[Number(this.range.value)].step));
    return this.range;
  }

  /** What the chosen pictures are compared with. */
  #other() {
    const label = this.t("timeline.against");
    this.others = combo({ label, test: "sample-against", onChange: (step) => this.#compareWith(Number(step)) });
    this.other = h("label", { class: "row small muted" }, label, this.others.root);
    return this.other;
  }

  /**
   * @param {{step: number, number: number, prompt: string, url: string, thumb: string}[]} samples
   * @param {number|null} [best] the step of the best checkpoint
   */
  update(samples, best = null) {
    this.best = best;
    this.rows = new Map();
    for (const sample of samples) {
      const key = keyOf(sample);
      if (!this.rows.has(key)) this.rows.set(key, []);
      this.rows.get(key).push(sample);
    }
    for (const row of this.rows.values()) row.sort((a, b) => a.step - b.step);
    this.empty.hidden = samples.length > 0;
    this.full.hidden = samples.length === 0;
    setText(samples.length ? this.next : this.empty, this.emptyText());
    if (samples.length) this.#draw();
  }

  #draw() {
    if (!this.rows.has(this.prompt)) this.prompt = this.rows.keys().next().value;
    this.#drawPrompts();
    this.#drawStrip();
    this.#drawStage();
  }

  #drawPrompts() {
    this.prompts.hidden = this.rows.size < 2;
    const make = ([key, row]) => {
      const image = thumb(null);
      const root = h(
        "button",
        {
          type: "button",
          class: "prompt-pick",
          title: row[0].prompt,
          "data-test": "sample-prompt-pick",
          onClick: () => this.#pick(key),
        },
        image,
      );
      root.setAttribute("aria-label", row[0].prompt);
      return {
        root,
        update: ([, now]) => {
          setThumb(image, this.#address(now.at(-1).thumb));
          root.setAttribute("aria-pressed", String(key === this.prompt));
        },
      };
    };
    keyed(this.prompts, [...this.rows], ([key]) => key, make);
  }

  #drawStrip() {
    const steps = this.#steps();
    const chosen = this.#chosen();
    const make = (sample) => {
      const image = thumb(this.#address(sample.thumb));
      const label = h("span", { class: "strip-label" }, this.#label(sample.step));
      const root = h(
        "button",
        {
          type: "button",
          class: "strip-item",
          "data-test": "sample-item",
          "data-step": sample.step,
          onClick: () => this.#choose(sample.step),
        },
        image,
        label,
      );
      return {
        root,
        update: (now) => {
          root.setAttribute("aria-pressed", String(now.step === this.#chosen().step));
          root.classList.toggle("best", now.step === this.best);
          root.title = now.step === this.best ? this.t("timeline.best") : "";
        },
      };
    };
    keyed(this.strip, steps, (sample) => `${this.prompt} ${sample.step}`, make);
    const at = steps.indexOf(chosen);
    this.range.max = String(steps.length - 1);
    this.range.value = String(at);
    this.range.disabled = steps.length < 2;
    this.range.setAttribute("aria-valuetext", this.#label(chosen.step));
    this.#reveal(at);
  }

  /** The chosen picture of the strip is in sight, without moving the page. */
  #reveal(at) {
    const item = this.strip.children[at];
    if (!item || this.revealed === item) return;
    this.revealed = item;
    const left = item.offsetLeft - this.strip.offsetLeft;
    const { scrollLeft, clientWidth } = this.strip;
    if (left < scrollLeft || left + item.offsetWidth > scrollLeft + clientWidth) {
      this.strip.scrollLeft = left - clientWidth / 2 + item.offsetWidth / 2;
    }
  }

  #drawStage() {
    const steps = this.#steps();
    const chosen = this.#chosen();
    setText(this.title, chosen.prompt);
    this.follow.hidden = this.step === null;
    const other = this.#compared();
    this.stage.show(chosen === other ? null : this.#side(other), this.#side(chosen));
    this.#drawOthers(steps, other);
  }

  #drawOthers(steps, other) {
    const options = steps.map(({ step }) => ({ value: String(step), label: this.#label(step) }));
    const stamp = JSON.stringify([options, other.step]);
    this.other.hidden = steps.length < 3;
    // A list that is open must not be drawn anew for nothing.
    if (stamp === this.othersStamp) return;
    this.othersStamp = stamp;
    this.others.offer(options, String(other.step));
  }

  #compareWith(step) {
    this.against = step;
    this.#draw();
  }

  /** The sample on the left: the first one unless another was asked for. */
  #compared() {
    const steps = this.#steps();
    return steps.find((sample) => sample.step === this.against) ?? steps[0];
  }

  #side(sample) {
    const label = this.#label(sample.step);
    return { url: this.#address(sample.url), label, alt: `${sample.prompt}, ${label}` };
  }

  #label(step) {
    return step === 0 ? this.t("timeline.before") : this.t("timeline.at", { step: this.formats.count(step) });
  }

  #steps() {
    return this.rows.get(this.prompt) ?? [];
  }

  #chosen() {
    const steps = this.#steps();
    return steps.find((sample) => sample.step === this.step) ?? steps.at(-1);
  }

  #pick(key) {
    this.prompt = key;
    this.#draw();
  }

  #choose(step) {
    this.step = step === this.#steps().at(-1).step ? null : step;
    this.#draw();
  }

  /** Show the pictures of a step. */
  showStep(step) {
    if (this.#steps().some((sample) => sample.step === step)) this.#choose(step);
  }

  #enlarge() {
    const steps = this.#steps();
    const items = steps.map(
      (sample) => ({ url: this.#address(sample.url), caption: `${this.#label(sample.step)} – ${sample.prompt}` }),
    );
    enlarge(this.root, { t: this.t, items, at: steps.indexOf(this.#chosen()) });
  }

  #address(path) {
    return path ? this.ctx.api.file(path) : null;
  }
}
