/** The view "Adapters": the files there are, found by words, one to look at or several to mix. */

import { ApiError } from "./api.js";
import { plainName } from "./catalogue.js";
import { button, empty, iconButton, note, segmented, spinner, textInput } from "./controls.js";
import { clear, h, keyed, setText } from "./dom.js";
import { formats } from "./format.js";
import { icon } from "./icons.js";
import { methodText } from "./method.js";
import { setThumb, thumb } from "./picture.js";

// Farther down than what is seen, so that scrolling finds the facts there.
const NEAR = "300px";
const REST = 150; // milliseconds in sight before a file is read

/**
 * @param {import("./panel.js").Ctx} ctx
 * @param {{chosen?: string}} params  chosen: names that are ticked, as JSON
 */
export function create(ctx, params) {
  const view = new Library(ctx, readNames(params.chosen));
  view.load();
  return { root: view.root, update: (state) => view.update(state), destroy: () => view.destroy() };
}

/** A list of names out of a view's params; empty where it is none. @param {string} [text] */
export function readNames(text) {
  try {
    const found = JSON.parse(text ?? "[]");
    return Array.isArray(found) ? found.filter((name) => typeof name === "string") : [];
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
}

class Library {
  constructor(ctx, chosen) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.chosen = chosen;
    this.rows = new Map();
    this.kind = "all";
    this.files = [];
    this.seen = new IntersectionObserver((entries) => this.#near(entries), { rootMargin: NEAR });
    this.#build();
  }

  #build() {
    const { t, ctx } = this;
    this.search = textInput({
      placeholder: t("adapters.search"), label: t("adapters.search"), onChange: () => this.#sift(), type: "search",
      test: "adapters-search",
    });
    const again = iconButton({
      label: t("adapters.refresh"), icon: "refresh", onClick: () => this.load(), test: "adapters-refresh",
    });
    const plan = button({
      label: t("plan.title"), icon: "grid", onClick: () => ctx.go("plan"), test: "open-plan", title: t("plan.about"),
    });
    this.kinds = segmented({
      label: t("adapters.kinds"), value: "all", test: "adapters-kind", onChange: (kind) => this.#show(kind),
      options: ["all", "spectral", "foreign"].map((value) => ({ value, label: t(`adapters.kind.${value}`) })),
    });
    const find = h("div", { class: "row search-row grow" }, icon("search"), this.search.root);
    this.count = h("span", { class: "muted small", role: "status", "data-test": "adapters-count" });
    this.list = h("ul", { class: "adapter-rows", "data-test": "adapters", onKeydown: (event) => this.#key(event) });
    this.said = h("div", null, spinner(t("loading")));
    this.root = h(
      "div",
      { class: "view stack adapters", "data-test": "adapters-view" },
      h("div", { class: "row wrap between" }, h("h1", null, t("tabs.adapters")), plan),
      h("div", { class: "row" }, find, again),
      h("div", { class: "row wrap between" }, this.kinds.root, this.count),
      this.said,
      this.list,
      this.#bar(),
    );
  }

  #bar() {
    const { t } = this;
    this.chosenText = h("span", { class: "grow" });
    const forget = button({ label: t("adapters.clear"), kind: "quiet", onClick: () => this.#choose([]) });
    this.mix = button({
      label: t("adapters.mix"), icon: "mix", kind: "primary", test: "adapters-mix",
      onClick: () => this.ctx.go("mix", { adapters: JSON.stringify(this.chosen) }),
    });
    const props = { class: "compare-bar row wrap", hidden: true, role: "status" };
    this.bar = h("div", props, this.chosenText, forget, this.mix);
    return this.bar;
  }

  /** Asks for the list; also what Refresh does. */
  async load() {
    try {
      this.files = await this.ctx.catalogue.list();
      if (this.gone) return;
      this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.said, note("error", error.message));
    }
  }

  /** A job that ended may have written a file. */
  update({ jobs }) {
    const made = jobs.filter(({ adapter }) => adapter).map(({ id, adapter }) => `${id} ${adapter.bytes}`).join();
    if (this.made !== undefined && made !== this.made) this.load();
    this.made = made;
  }

  #draw() {
    const { t, ctx } = this;
    const names = new Set(this.files.map(({ name }) => name));
    this.chosen = this.chosen.filter((name) => names.has(name));
    const own = this.files.filter((file) => !isOther(file)).length;
    this.kinds.root.hidden = own === 0 || own === this.files.length;
    const begin = button({ label: t("tabs.new"), icon: "plus", kind: "primary", onClick: () => ctx.go("new") });
    const words = { icon: "file", title: t("adapters.emptyTitle"), text: t("adapters.emptyText") };
    clear(this.said, this.files.length ? null : empty({ ...words, test: "adapters-empty" }, begin));
    const make = (file) => this.#row(file);
    keyed(this.list, this.files, ({ name, bytes }) => `${name} ${bytes}`, make);
    this.#sift();
    this.#choose(this.chosen);
  }

  #row(file) {
    const row = new AdapterRow(this.ctx, file, (on) => this.#pick(file.name, on));
    this.rows.set(row.root, row);
    this.seen.observe(row.root);
    return { root: row.root };
  }

  /** Reads files that stay in sight; what is scrolled past is not worth reading a large file. */
  #near(entries) {
    for (const { isIntersecting, target } of entries) {
      const row = this.rows.get(target);
      row.near = isIntersecting;
      if (isIntersecting) setTimeout(() => this.#rest(row), REST);
    }
  }

  #rest(row) {
    if (this.gone || !row.near) return;
    this.seen.unobserve(row.root);
    row.read();
  }

  #show(kind) {
    this.kind = kind;
    this.#sift();
  }

  /** Hides what the words and the kind do not fit. What a file says of itself can be searched once it was read. */
  async #sift() {
    const words = this.search.get().toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.#present();
    const fits = (row) => {
      const kind = this.kind === "all" || (this.kind === "foreign") === isOther(row.file);
      return kind && words.every((word) => row.words.includes(word));
    };
    const apply = () => {
      for (const row of rows) row.root.hidden = !fits(row);
      this.#tell(rows.filter((row) => !row.root.hidden).length, rows.length);
    };
    apply();
    if (!words.length) return;
    const asked = this.search.get();
    // LoRA files may be many and large: they are found by their names, and by their words once they were in sight.
    await Promise.all(rows.filter(({ file }) => !isOther(file)).map((row) => row.read()));
    if (!this.gone && asked === this.search.get()) apply();
  }

  #tell(found, all) {
    const { t } = this;
    setText(this.count, found < all ? t("adapters.found", { found, count: all }) : t("adapters.count", { count: all }));
    this.count.hidden = all === 0;
  }

  #present() {
    return [...this.list.children].map((root) => this.rows.get(root)).filter(Boolean);
  }

  #pick(name, on) {
    this.#choose(on ? [...this.chosen, name] : this.chosen.filter((other) => other !== name));
  }

  #choose(names) {
    const { t } = this;
    this.chosen = names;
    for (const row of this.#present()) row.tick(names.includes(row.file.name));
    this.bar.hidden = names.length === 0;
    this.mix.disabled = names.length < 2;
    const shown = names.map(plainName).join(", ");
    setText(this.chosenText, names.length > 1 ? shown : t("adapters.chooseOne", { name: shown }));
    this.ctx.stay(names.length ? { chosen: JSON.stringify(names) } : {});
  }

  /** Up and down go from file to file. */
  #key(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const rows = this.#present().filter((row) => !row.root.hidden);
    const at = rows.findIndex((row) => row.root.contains(event.target));
    const next = rows[at + by];
    if (!by || !next) return;
    event.preventDefault();
    (event.target.type === "checkbox" ? next.box : next.name).focus();
  }

  destroy() {
    this.gone = true;
    this.seen.disconnect();
  }
}

/** Whether a file is of another kind than this package's own. @param {{kind?: string|null}} file */
export function isOther({ kind }) {
  return Boolean(kind) && kind !== "spectral" && kind !== "adapter";
}

/** One file: its picture, name, method, size, trigger words, and a box to choose it. */
class AdapterRow {
  constructor(ctx, file, pick) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.file = file;
    this.words = file.name.toLowerCase();
    this.image = thumb(null);
    const open = () => ctx.go("adapter", { name: file.name });
    const props = { type: "button", class: "job-name", "data-test": "adapter-open", onClick: open };
    this.name = h("button", props, plainName(file.name));
    this.box = h("input", { type: "checkbox", "aria-label": ctx.t("adapters.pick", { name: plainName(file.name) }) });
    this.box.dataset.test = "adapter-pick";
    this.box.addEventListener("change", () => pick(this.box.checked));
    this.kind = h("span", { class: "chip", hidden: true });
    const size = formats(ctx.t.lang).bytes(file.bytes);
    this.line = h("div", { class: "muted small ellipsis" }, size);
    this.size = size;
    this.trigger = h("div", { class: "small ellipsis adapter-trigger" });
    const text = h(
      "div",
      { class: "grow stack tight" },
      h("div", { class: "row" }, h("span", { class: "adapter-row-name ellipsis" }, this.name), this.kind),
      this.line,
      this.trigger,
    );
    const pickBox = h("label", { class: "job-pick" }, this.box);
    this.root = h("li", { class: "job-row", "data-test": "adapter-row", "data-name": file.name, title: file.name });
    this.root.append(pickBox, this.image, text);
  }

  /** Fills in what the file says of itself. */
  read() {
    this.reading ??= this.#read();
    return this.reading;
  }

  async #read() {
    try {
      this.#fill(await this.ctx.catalogue.info(this.file.name, this.file.bytes));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this.trigger, error.message);
      this.trigger.title = error.message;
      this.trigger.classList.add("danger-text");
    }
  }

  #fill(info) {
    const { t } = this;
    const triggers = info.trigger_words ?? [];
    const method = methodText(t, info);
    this.kind.hidden = !method;
    setText(this.kind, method);
    const family = info.family ? t.or(`family.${info.family}`, info.family) : "";
    const title = info.title === plainName(this.file.name) ? "" : info.title;
    setText(this.line, [this.size, family, title].filter(Boolean).join(" · "));
    setText(this.trigger, triggers.length ? triggers.join(", ") : "");
    if (info.preview) setThumb(this.image, this.ctx.catalogue.previewUrl(this.file.name, info.sha256));
    const words = [this.file.name, method, info.title, info.description, info.author, info.base_name, ...triggers];
    this.words = words.filter(Boolean).join(" ").toLowerCase();
  }

  tick(on) {
    this.box.checked = on;
    this.root.classList.toggle("chosen", on);
  }
}
