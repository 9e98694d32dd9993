/** The view "New training": a short form, what it will cost, one button. */

import { ApiError, newest } from "./api.js";
import { advancedSettings, visibleSettings } from "./advanced.js";
import { button, busy, combo, field, note, spinner, textArea, textInput, toggle } from "./controls.js";
import { datasetSection } from "./dataset.js";
import { clear, h, setText } from "./dom.js";
import { Draft } from "./draft.js";
import { engineChoice } from "./engine.js";
import { estimateBar } from "./estimate.js";
import { formats } from "./format.js";
import { methodChoice, presetCards } from "./method.js";
import { help } from "./overlay.js";
import { nextName, suggestedName, suggestedPrompts } from "./suggest.js";
import { belongs, settingRow } from "./setting.js";
import { settingLabel } from "./settings_table.js";

// Settings with a place of their own in the form.
const PLACED = new Set(["trigger", "sample_prompts", "skip_bad", "method"]);

/** @param {import("./panel.js").Ctx} ctx @param {{request?: Object, plan?: Object}} params */
export function create(ctx, params) {
  const view = new NewTraining(ctx, params);
  view.load();
  return view;
}

class NewTraining {
  constructor(ctx, params) {
    this.ctx = ctx;
    this.root = h("div", { class: "view new-training", "data-test": "new-training" }, spinner(ctx.t("loading")));
    this.draft = new Draft(ctx.host);
    this.faults = new Map();
    this.only = newest();
    this.values = { method: "", values: {}, sources: {} };
    this.plan = params.plan ?? null;
    this.before = this.#fillIn(params);
    this.parts = [];
    this.refusal = "";
  }

  /** Fills the form in from elsewhere; what it held before, or null. */
  #fillIn({ request, plan }) {
    if (request) return this.draft.replace(Draft.ofRequest(request));
    return plan ? this.draft.replace(this.draft.planned(plan)) : null;
  }

  update(state) {
    this.state = state;
    this.#state();
  }

  destroy() {
    this.gone = true;
    this.draft.save.flush();
    for (const part of this.parts) part.destroy?.();
  }

  /** Asks what there is to choose from, then draws. */
  async load() {
    const { api, t } = this.ctx;
    try {
      const names = ["/form", "/bases", "/datasets", "/adapters"];
      const [form, bases, datasets, adapters] = await Promise.all(names.map((name) => api.get(name)));
      if (this.gone) return;
      Object.assign(this, { form, bases, datasets, adapters });
      this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const again = button({ label: t("retry"), icon: "refresh", onClick: () => this.load() });
      clear(this.root, note("error", error.message), h("div", { class: "row center" }, again));
    }
  }

  #draw() {
    const { t } = this.ctx;
    this.#sections();
    const left = [
      card("1", t("base.title"), t("base.help"), this.base.root),
      card("2", t("dataset.title"), t("dataset.help"), this.dataset.root),
    ];
    const more = h("section", { class: "card stack" }, this.advanced.root, this.#options());
    const right = [card("3", t("what.title"), "", ...this.#what()), more];
    const columns = [h("div", { class: "stack column" }, left), h("div", { class: "stack column" }, right)];
    clear(this.root, this.#origin(), h("div", { class: "columns" }, columns), this.#foot());
    this.draft.subscribe((names) => this.#changed(names));
    this.#changed(["everything"]);
  }

  #sections() {
    const { t } = this.ctx;
    this.rows = this.#settingRows();
    const common = new Set(this.form.common);
    const seen = ({ setting }) => common.has(setting.name) || setting.methods?.length > 0;
    const pick = (test) => new Map([...this.rows].filter(([, row]) => test(row)));
    this.visible = visibleSettings(pick(seen));
    this.folded = pick((row) => !seen(row));
    this.advanced = advancedSettings(t, {
      groups: this.form.groups,
      rows: this.folded,
      reset: () => this.#resetAll(),
    });
    this.estimate = estimateBar(this.ctx, () => this.#estimable());
    this.engine = this.#engineChoice();
    this.base = this.#baseField();
    this.dataset = datasetSection(this.ctx, {
      draft: this.draft,
      datasets: this.datasets,
      checked: (result) => this.#checked(result),
    });
    this.parts = [this.dataset, this.estimate, this.engine];
  }

  #engineChoice() {
    const { t } = this.ctx;
    const labels = new Map(this.form.settings.map(({ name, label }) => [name, label]));
    return engineChoice(this.ctx, {
      engines: this.form.engines,
      label: (name) => (name === "base" ? t("base.title") : settingLabel(t, name, labels.get(name))),
      request: () => this.#readable(),
      choose: (engine) => this.draft.change({ engine }),
      told: () => this.#ready(),
    });
  }

  #settingRows() {
    const sources = { datasets: () => this.datasets, adapters: () => this.adapters };
    const page = { t: this.ctx.t, draft: this.draft, sources, faults: this.faults };
    const shown = this.form.settings.filter(({ name }) => !PLACED.has(name));
    return new Map(shown.map((setting) => [setting.name, settingRow(setting, page)]));
  }

  #baseField() {
    const { t } = this.ctx;
    const format = formats(t.lang);
    const options = this.bases.map(({ name, kind, bytes }) => {
      const about = t(`base.kinds.${kind}`);
      const size = bytes ? format.bytes(bytes) : "";
      return { value: name, label: t("base.option", { name, about: [about, size].filter(Boolean).join(", ") }) };
    });
    const onChange = (base) => this.draft.change({ base });
    this.baseChoice = combo({ options, blank: t("base.choose"), onChange, test: "base" });
    const row = field({ label: t("base.label"), control: this.baseChoice });
    row.root.classList.add("headless");
    return row;
  }

  /** Section 3: what the pictures show, and what the result is called. */
  #what() {
    const { t } = this.ctx;
    this.presets = presetCards(t, this.form.presets, (preset) => this.draft.change({ preset }));
    this.method = methodChoice(t, this.form.methods, (name) => this.draft.set("method", name));
    this.trigger = textInput({
      placeholder: t("trigger.example"), onChange: (text) => this.draft.set("trigger", text || null), test: "trigger",
      maxLength: 200,
    });
    this.triggerField = field({ label: t("trigger.label"), help: t("trigger.help"), control: this.trigger });
    const named = (name) => this.draft.change({ name, ownName: name !== "" });
    this.name = textInput({ onChange: named, test: "name", maxLength: 100 });
    this.nameField = field({ label: t("name.label"), help: t("name.help"), control: this.name });
    const words = h("div", { class: "settings-grid two" }, this.triggerField.root, this.nameField.root);
    return [this.presets.root, this.method.root, words, this.#prompts(), this.visible.root];
  }

  #prompts() {
    const { t } = this.ctx;
    const written = (text) => {
      const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
      this.draft.values.ownPrompts = true;
      this.draft.set("sample_prompts", lines.length ? lines : null);
    };
    this.promptsInput = textArea({ rows: 3, onChange: written, test: "prompts", placeholder: t("prompts.none") });
    const suggest = () => {
      this.draft.values.ownPrompts = false;
      this.draft.set("sample_prompts", null);
    };
    this.suggest = button({ label: t("prompts.suggest"), kind: "quiet", onClick: suggest, test: "prompts-suggest" });
    this.suggest.classList.add("end", "small-button");
    const words = { label: t("prompts.label"), help: t("prompts.help") };
    return field({ ...words, control: this.promptsInput, beside: this.suggest }).root;
  }

  #options() {
    const { t } = this.ctx;
    const choose = (name) => (value) =>
      this.draft.change({ options: { ...this.draft.values.options, [name]: value } });
    this.device = combo({ onChange: (device) => this.draft.change({ device }), test: "device" });
    this.idle = toggle({ onChange: choose("wait_idle"), test: "wait-idle" });
    this.unload = toggle({ onChange: choose("unload"), test: "unload" });
    const rows = [
      { label: t("options.wait_idle"), help: t("options.wait_idle_help"), control: this.idle, inline: true },
      { label: t("options.unload"), help: t("options.unload_help"), control: this.unload, inline: true },
    ];
    this.hostRows = rows.map((row) => field(row).root);
    this.deviceRow = field({ label: t("options.device"), help: t("options.device_help"), control: this.device }).root;
    return h("div", { class: "stack options" }, this.engine.root, this.deviceRow, this.hostRows);
  }

  /** Where the form was filled in from, with the way back to one's own draft. */
  #origin() {
    if (!this.before) return null;
    const { t } = this.ctx;
    const back = () => {
      this.draft.replace(this.before);
      box.remove();
    };
    const undo = button({ label: t("again.back"), kind: "quiet", onClick: back, test: "draft-back" });
    const text = this.plan ? t("plan.filled", this.plan) : t("again.text", { name: this.draft.values.name });
    const box = note("info", text, h("div", { class: "row" }, undo));
    return box;
  }

  #foot() {
    const { t } = this.ctx;
    this.train = button({ label: t("train.go"), kind: "primary", icon: "play", onClick: () => {}, test: "train" });
    this.train.addEventListener("click", busy(this.train, () => this.#submit()));
    this.reason = h("div", { class: "train-reason small", role: "status", "data-test": "train-reason" });
    const go = h("div", { class: "train-box" }, this.reason, this.train);
    return h("div", { class: "foot" }, this.estimate.root, go);
  }

  /** The draft has changed: names of fields or settings. */
  #changed(names) {
    this.refusal = "";
    if (names.some((name) => ["base", "preset", "method", "everything"].includes(name))) this.#askValues();
    this.#show();
    if (!names.every((name) => name === "name" || name === "ownName")) this.#costs();
  }

  /** What it would cost, and what its engine says of it, may be another now. */
  #costs() {
    this.estimate.changed();
    this.engine.changed();
  }

  async #askValues() {
    const { preset, base, settings } = this.draft.values;
    if (!this.baseChoice.has(base)) return this.#valuesUnknown();
    const question = { preset, method: settings.method ?? "", base };
    try {
      const { current, value } = await this.only((signal) => this.ctx.api.post("/form/values", question, { signal }));
      if (!current || this.gone) return;
      this.values = value;
      this.#show();
      this.#costs();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.ctx.toast("error", error.message);
    }
  }

  /** Before there is a base, only the method is known. */
  #valuesUnknown() {
    const preset = this.form.presets.find(({ name }) => name === this.draft.values.preset);
    this.values = { method: this.draft.setting("method") ?? preset?.method ?? "", values: {}, sources: {} };
    this.#show();
  }

  /** Brings every control up to date with the draft. */
  #show() {
    const { values, draft } = { values: this.draft.values, draft: this.draft };
    const { method, sources } = this.values;
    this.baseChoice.set(values.base);
    this.presets.set(values.preset);
    this.method.set(draft.setting("method"), method);
    for (const row of this.rows.values()) row.update(this.values.values, sources);
    this.visible.set(method);
    this.advanced.set(method, this.#changedSettings(method));
    this.engine.set(values.engine);
    this.trigger.set(draft.setting("trigger") ?? "");
    this.#showName();
    this.#showPrompts();
    this.#state();
    this.#ready();
  }

  /** The settings in the folded part that were set by hand and count with this method. */
  #changedSettings(method) {
    const own = Object.keys(this.draft.values.settings).filter((name) => this.folded.has(name));
    return new Set(own.filter((name) => belongs(this.rows.get(name).setting, method)));
  }

  #showName() {
    const { t } = this.ctx;
    this.name.input.placeholder = this.#suggestedName() || t("name.example");
    this.name.set(this.draft.values.ownName ? this.draft.values.name : "");
    const wanted = this.#name();
    const free = nextName(wanted, this.adapters, this.state?.jobs ?? []);
    this.nameField.say(wanted && free !== wanted ? t("name.taken", { wanted, free }) : "");
  }

  #suggestedName() {
    const dataset = this.datasets.find(({ id }) => id === this.draft.values.dataset);
    return suggestedName(this.draft.setting("trigger"), dataset);
  }

  #name() {
    return (this.draft.values.ownName ? this.draft.values.name : this.#suggestedName()).trim();
  }

  #showPrompts() {
    const own = this.draft.values.ownPrompts;
    this.suggest.hidden = !own;
    if (own && this.promptsInput.input === this.promptsInput.input.getRootNode().activeElement) return;
    this.promptsInput.set(this.#prompted().join("\n"));
  }

  #prompted() {
    if (this.draft.values.ownPrompts) return this.draft.setting("sample_prompts") ?? [];
    return suggestedPrompts(this.ctx.t, this.draft.setting("trigger"), this.draft.values.preset);
  }

  #checked(result) {
    this.check = result;
    this.#ready();
    this.#costs();
  }

  /** What follows from the server's state: devices, and what the host can do. */
  #state() {
    if (!this.state || !this.device) return;
    const { device, options } = this.draft.values;
    const devices = this.state.devices.map(({ id, label }) => ({ value: id, label }));
    this.#offerDevices(devices);
    this.device.set(device);
    this.deviceRow.hidden = devices.length < 2 && device === "auto";
    this.idle.set(options.wait_idle);
    this.unload.set(options.unload);
    for (const row of this.hostRows) row.hidden = this.ctx.host.name !== "comfyui";
  }

  /** Only where they are new: a list that is open must not close at each word from the server. */
  #offerDevices(devices) {
    const known = JSON.stringify(devices);
    if (known === this.known) return;
    this.known = known;
    this.device.offer([{ value: "auto", label: this.ctx.t("options.device_auto") }, ...devices]);
  }

  #request() {
    const request = this.draft.request(this.#prompted());
    const has = ([name]) => !this.rows.has(name) || belongs(this.rows.get(name).setting, this.values.method);
    request.settings = Object.fromEntries(Object.entries(request.settings).filter(has));
    return { ...request, name: this.#name() };
  }

  #estimable() {
    return this.check && !this.#unusable() ? this.#readable() : null;
  }

  /** The request as far as the server can read it, whatever the pictures are like. */
  #readable() {
    const { base, dataset } = this.draft.values;
    if (!base || !dataset || this.faults.size) return null;
    // The name costs nothing; what is wrong with it is said by Train.
    return { ...this.#request(), name: "estimate" };
  }

  /** What is missing: [sentence, control to go to]. */
  #missing() {
    const { t } = this.ctx;
    const { base, dataset } = this.draft.values;
    if (!base) return [t("train.no_base"), this.baseChoice.input];
    if (!this.baseChoice.has(base)) return [t("train.base_gone", { name: base }), this.baseChoice.input];
    if (this.dataset.busy()) return [t("train.uploading"), null];
    if (!dataset) return [t("train.no_dataset"), this.dataset];
    const unusable = this.#unusable();
    if (unusable) return [unusable, this.dataset];
    if (!this.#name()) return [t("train.no_name"), this.name.input];
    for (const [name, text] of this.faults) return [text, this.rows.get(name).input];
    const fault = this.engine.fault();
    return fault ? [fault.text, this.#controlOf(fault.setting)] : null;
  }

  /** The control of a setting, or of the engine. */
  #controlOf(setting) {
    if (setting === "base") return this.baseChoice.input;
    return this.rows.get(setting)?.input ?? this.engine.input;
  }

  /** What keeps the chosen pictures from being trained on, or "". */
  #unusable() {
    const { t } = this.ctx;
    const { usable = 1, left = 0, findings = [] } = this.check ?? {};
    if (usable === 0 && !left) return t("train.no_pictures");
    const fatal = findings.some((finding) => finding.fatal);
    return fatal && !this.draft.setting("skip_bad") ? t("train.bad_pictures") : "";
  }

  #ready() {
    if (!this.train) return;
    const missing = this.#missing();
    this.train.setAttribute("aria-disabled", String(Boolean(missing)));
    this.reason.classList.toggle("danger-text", Boolean(this.refusal));
    setText(this.reason, this.refusal || (missing ? missing[0] : ""));
  }

  async #submit() {
    const missing = this.#missing();
    if (missing) return this.#lead(missing[1]);
    const { api, store, go, toast } = this.ctx;
    try {
      const made = await api.post("/jobs", { request: this.#request() });
      if (made.notice) toast("info", made.notice);
      await store.refresh();
      return await go("job", { id: made.id });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.refusal = error.message;
      return this.#ready();
    }
  }

  /** Goes to what is missing, unfolding what hides it. */
  #lead(target) {
    for (const [name, row] of this.rows) if (row.input === target) this.advanced.reveal(name);
    target?.focus();
  }

  /** Gives the folded settings back to the preset. */
  #resetAll() {
    const kept = Object.entries(this.draft.values.settings).filter(([name]) => !this.folded.has(name));
    for (const [name, row] of this.folded) {
      this.faults.delete(name);
      row.fail("");
    }
    this.draft.change({ settings: Object.fromEntries(kept) });
  }
}

function card(number, title, explanation, ...content) {
  const mark = h("span", { class: "step-number", "aria-hidden": "true" }, number);
  const more = explanation ? help(explanation, title) : null;
  const head = h("div", { class: "row card-head" }, mark, h("h2", null, title), more);
  return h("section", { class: "card stack", "aria-label": title }, head, content);
}
