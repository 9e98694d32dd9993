/** The view "Mix": several adapters, where they meet, and one made of them. */

import { act } from "./act.js";
import { isOther, readNames } from "./adapters.js";
import { ApiError } from "./api.js";
import { plainName } from "./catalogue.js";
import { button, combo, field, note } from "./controls.js";
import { ConflictView } from "./conflict_view.js";
import { clear, h, setText } from "./dom.js";
import { FusePart } from "./fuse.js";
import { ended } from "./status.js";
import { TaskLine } from "./task_line.js";
import { weightRow } from "./weights.js";

/**
 * @param {import("./panel.js").Ctx} ctx
 * @param {{adapters: string, weights?: string, base?: string, mode?: string, conflict?: string,
 *   fuse?: string}} params  adapters, weights: lists as JSON; conflict, fuse: ids of the jobs that were asked for
 */
export function create(ctx, params) {
  const page = new MixPage(ctx, params);
  page.load();
  return { root: page.root, update: (state) => page.update(state), destroy: () => page.destroy() };
}

class MixPage {
  constructor(ctx, params) {
    this.ctx = ctx;
    this.t = ctx.t;
    this.params = { ...params };
    this.names = [...new Set(readNames(params.adapters))];
    this.weights = readWeights(params.weights, this.names.length);
    this.infos = new Map();
    this.#build(params);
  }

  #build(params) {
    const { t, ctx } = this;
    const back = button({
      label: t("adapters.all"), icon: "back", kind: "quiet", test: "mix-back",
      onClick: () => ctx.go("adapters", { chosen: JSON.stringify(this.names) }),
    });
    const head = h("header", { class: "job-head" }, back, h("h1", null, t("mix.title")));
    this.list = h("ul", { class: "plain-list weights" });
    this.said = h("div", { role: "status" });
    this.conflict = new ConflictView(ctx);
    this.fuse = new FusePart(ctx, {
      request: () => this.#ingredients(),
      mode: params.mode,
      keep: (changes) => this.#keep(changes),
    });
    const inputs = [h("h2", null, t("mix.what")), this.list, this.said, this.#base()];
    const what = h("section", { class: "card stack" }, inputs);
    const where = h("section", { class: "card stack" }, h("h2", null, t("mix.where")), this.#ask());
    const side = h("div", { class: "stack" }, what, where);
    const parts = h("div", { class: "mix-parts" }, side, this.conflict.root, this.fuse.root);
    this.root = h("div", { class: "view stack", "data-test": "mix" }, head, parts);
  }

  #base() {
    const { t } = this;
    this.base = combo({ blank: t("mix.noBase"), test: "mix-base", onChange: () => this.#changed() });
    this.baseField = field({ label: t("base.title"), help: t("mix.baseHelp"), control: this.base });
    return this.baseField.root;
  }

  #ask() {
    const { t } = this;
    this.line = new TaskLine(this.ctx, "conflict-task");
    const look = () => this.#look();
    this.look = button({ label: t("mix.look"), icon: "search", kind: "primary", test: "mix-look", onClick: look });
    const about = h("p", { class: "muted" }, t("mix.lookAbout"));
    return [about, h("div", { class: "row wrap" }, this.look), this.line.root];
  }

  /** Asks which bases there are and what the files say; what cannot be read is named. */
  async load() {
    if (this.names.length < 2) return clear(this.root, this.#tooFew());
    this.#drawRows();
    try {
      const bases = await this.ctx.api.get("/bases");
      if (this.gone) return undefined;
      this.base.offer(bases.map(({ name }) => ({ value: name, label: name })), this.params.base ?? "");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.said, note("error", error.message));
    }
    return this.#read();
  }

  #tooFew() {
    const { t, ctx } = this;
    const go = () => ctx.go("adapters", { chosen: JSON.stringify(this.names) });
    const choose = button({ label: t("adapters.all"), icon: "back", onClick: go });
    return h("div", { class: "stack" }, note("info", t("mix.tooFew")), h("div", { class: "row" }, choose));
  }

  async #read() {
    const faults = [];
    const one = async (name) => {
      try {
        const info = await this.ctx.catalogue.info(name);
        this.infos.set(name, info);
        this.rows.get(name)?.tell(info);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        faults.push(note("error", `${plainName(name)}: ${error.message}`));
      }
    };
    await Promise.all(this.names.map(one));
    if (this.gone) return;
    clear(this.said, faults);
    this.#guessBase();
    this.#changed();
  }

  /** Where all files name one base that is here, that is it. */
  #guessBase() {
    if (this.base.get()) return;
    const named = new Set([...this.infos.values()].map(({ base_name: base }) => base).filter(Boolean));
    const [only] = named;
    if (named.size === 1 && this.#needy().length && this.base.has(only)) this.base.set(only);
  }

  #drawRows() {
    this.rows = new Map(this.names.map((name, place) => [name, this.#row(name, place)]));
    clear(this.list, [...this.rows.values()].map(({ root }) => root));
    for (const row of this.rows.values()) row.removable(this.names.length > 2);
  }

  #row(name, place) {
    const onChange = (value) => {
      this.weights[place] = value;
      this.#keep({ weights: JSON.stringify(this.weights) });
      this.fuse.changed();
    };
    const onRemove = () => {
      const rest = (list) => JSON.stringify(list.filter((_, i) => i !== place));
      this.ctx.go("mix", { adapters: rest(this.names), weights: rest(this.weights), base: this.base.get() });
    };
    return weightRow(this.ctx, { name, place, value: this.weights[place], onChange, onRemove });
  }

  /** Files that can only be read with their base. */
  #needy() {
    return this.names.filter((name) => this.infos.get(name)?.profile === "compact");
  }

  /** Files that name no columns, which only the base's basis shows. */
  #unknown() {
    return this.names.filter((name) => isOther(this.infos.get(name) ?? {}));
  }

  /** What follows from the files and the base. */
  #changed() {
    const { t } = this;
    const shown = (names) => names.map(plainName).join(", ");
    const needy = this.#needy();
    const unknown = this.#unknown();
    const based = Boolean(this.base.get());
    const missing = !based && needy.length ? t("mix.needs", { names: shown(needy), count: needy.length }) : "";
    const hidden = !based && unknown.length ? t("mix.unknown", { names: shown(unknown), count: unknown.length }) : "";
    this.baseField.say([missing, hidden].filter(Boolean).join(" ") || (based ? "" : t("mix.baseFree")));
    this.#keep({ base: this.base.get() || undefined });
    this.fuse.show(this.names.map((name) => this.infos.get(name) ?? {}), missing);
  }

  #ingredients() {
    const adapters = this.names.map((name, place) => ({ name, weight: this.weights[place] }));
    return { adapters, base: this.base.get() };
  }

  async #look() {
    const body = { adapters: this.names, base: this.base.get() };
    const made = await act(this.ctx, "/mix/conflict", body);
    if (!made?.id || this.gone) return;
    this.shown = null;
    this.#keep({ conflict: made.id });
    this.update(this.ctx.store.state);
  }

  #keep(changes) {
    if (this.gone) return;
    Object.assign(this.params, changes);
    for (const [name, value] of Object.entries(this.params)) if (value === undefined) delete this.params[name];
    this.ctx.stay({ ...this.params });
  }

  update(state) {
    if (!state || this.names.length < 2) return;
    const find = (id) => state.jobs.find((job) => job.id === id);
    const job = find(this.params.conflict);
    this.look.disabled = Boolean(job) && !ended(job.status);
    this.line.update(job?.status === "finished" ? undefined : job);
    if (job?.status === "finished" && this.shown !== job.id) this.#show(job.id);
    this.fuse.update(find(this.params.fuse), state);
  }

  async #show(id) {
    this.shown = id;
    setText(this.look.querySelector(".button-text"), this.t("mix.lookAgain"));
    this.look.classList.remove("primary");
    try {
      const conflict = await this.ctx.api.get(`/jobs/${id}/conflict`);
      if (!this.gone && this.shown === id) this.conflict.show(conflict);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(this.said, note("error", error.message));
    }
  }

  destroy() {
    this.gone = true;
    this.conflict.destroy();
  }
}

/** One weight for each adapter, 1 where none was kept. */
function readWeights(text, count) {
  const kept = readList(text);
  return Array.from({ length: count }, (_, i) => (Number.isFinite(kept[i]) ? kept[i] : 1));
}

function readList(text) {
  try {
    const found = JSON.parse(text ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
}
