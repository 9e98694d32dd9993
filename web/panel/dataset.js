/** The pictures to train on: chosen among the datasets there are, or uploaded; with captions and the check. */

import { ApiError, newest } from "./api.js";
import { combo, field, folded, iconButton, note, textInput, toggle } from "./controls.js";
import { clear, debounce, h } from "./dom.js";
import { findingsList } from "./findings.js";
import { pictureList } from "./pictures.js";
import { dropZone, send } from "./uploads.js";

const NEW = " new";
const CHECK_WAIT = 500;
// What the check looks at besides the pictures.
const CHECKED = new Set([
  "base", "resolution", "buckets", "trigger", "alpha_masks", "prediction", "masks", "class_images", "validation_images",
]);

/** Datasets as options of a combo, by root. */
function options(datasets, t) {
  const listed = datasets.map(({ id, root, name, pictures }) => ({
    value: id,
    label: t("dataset.option", { name: name || root, count: pictures }),
    group: root,
  }));
  return [{ value: NEW, label: t("dataset.new") }, ...listed];
}

/**
 * The section of the form.
 * @param {import("./panel.js").Ctx} ctx
 * @param {{draft: import("./draft.js").Draft, datasets: Object[], checked: (result: Object|null) => void}} page
 *   checked is told each result of the check, null while there is none
 * @returns {{root: HTMLElement, busy: () => boolean, focus: () => void, reload: () => Promise<void>}}
 */
export function datasetSection(ctx, page) {
  return new DatasetSection(ctx, page);
}

class DatasetSection {
  constructor(ctx, page) {
    this.ctx = ctx;
    this.page = page;
    this.draft = page.draft;
    this.uploading = false;
    this.only = newest();
    const { t } = ctx;
    this.check = debounce(() => this.#check(), CHECK_WAIT);
    this.choice = combo({ blank: t("dataset.choose"), onChange: (id) => this.#choose(id), test: "dataset" });
    const refresh = () => this.reload();
    const label = t("dataset.refresh");
    const again = iconButton({ label, icon: "refresh", onClick: refresh, test: "datasets-refresh" });
    const control = { root: h("div", { class: "row" }, h("div", { class: "grow" }, this.choice.root), again) };
    control.input = this.choice.input;
    this.chooser = field({ label: t("dataset.label"), control });
    this.chooser.root.classList.add("headless");
    this.name = textInput({ value: this.#freeName(), test: "dataset-name", maxLength: 100 });
    this.naming = field({ label: t("dataset.name"), help: t("dataset.name_help"), control: this.name });
    this.drop = dropZone({ t, onFiles: (files, folder) => this.#upload(files, folder) });
    this.box = h("div", { class: "stack" });
    this.findings = findingsList(t);
    this.skip = this.#skipBad();
    const parts = [this.chooser, this.naming, this.drop, this.findings, this.skip];
    this.root = h("div", { class: "stack" }, ...parts.map((part) => part.root), this.box);
    this.making = false;
    this.#offer();
    this.#show();
    this.leave = this.draft.subscribe((names) => this.#changed(names));
  }

  /** Whether pictures are on their way. */
  busy() {
    return this.uploading;
  }

  focus() {
    this.choice.input.focus();
  }

  destroy() {
    this.leave();
    this.check.cancel();
  }

  /** Asks again which datasets there are. */
  async reload() {
    try {
      await this.#fetch();
      this.#offer();
      this.#show();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.chooser.fail(error.message);
    }
  }

  async #fetch() {
    const found = await this.ctx.api.get("/datasets");
    this.page.datasets.splice(0, Infinity, ...found);
  }

  /** A name for a new dataset that no other has. */
  #freeName() {
    const base = this.ctx.t("dataset.default_name");
    const taken = new Set(this.page.datasets.map(({ name }) => name));
    let name = base;
    for (let i = 2; taken.has(name); i += 1) name = `${base}-${i}`;
    return name;
  }

  #skipBad() {
    const { t } = this.ctx;
    this.skipSwitch = toggle({ onChange: (value) => this.draft.set("skip_bad", value || null), test: "skip-bad" });
    const words = { label: t("check.skip_bad"), help: t("check.skip_bad_help") };
    const row = field({ ...words, control: this.skipSwitch, inline: true });
    row.root.hidden = true;
    return row;
  }

  #offer() {
    const { dataset } = this.draft.values;
    this.choice.offer(options(this.page.datasets, this.ctx.t), this.making ? NEW : dataset);
    const known = !dataset || this.page.datasets.some(({ id }) => id === dataset);
    if (known) this.chooser.say(this.#chosen()?.note ?? "");
    else this.chooser.fail(this.ctx.t("dataset.gone", { name: dataset }));
  }

  #changed(names) {
    if (names.includes("everything")) this.making = false;
    if (names.includes("everything") || names.includes("dataset")) {
      this.#offer();
      this.#show();
    } else if (names.some((name) => CHECKED.has(name))) {
      this.check();
    }
    if (names.includes("trigger")) this.list?.hint();
    this.skipSwitch.set(this.draft.setting("skip_bad") ?? false);
  }

  #choose(id) {
    this.making = id === NEW;
    this.draft.change({ dataset: this.making ? "" : id });
    if (!this.making) return;
    this.name.set(this.#freeName());
    this.name.input.select();
  }

  #chosen() {
    return this.page.datasets.find(({ id }) => id === this.draft.values.dataset);
  }

  /** The drop zone, pictures and check of what is chosen now. */
  #show() {
    const { t } = this.ctx;
    const dataset = this.#chosen();
    this.naming.root.hidden = Boolean(dataset) || !(this.making || this.page.datasets.length === 0);
    this.drop.root.hidden = Boolean(dataset) && !dataset.writable;
    this.drop.label(dataset ? t("upload.add") : t("upload.drop"), Boolean(dataset) && dataset.pictures > 0);
    this.list = null;
    clear(this.box);
    if (!dataset) {
      this.#result(null);
      return;
    }
    this.list = pictureList(this.ctx, {
      id: dataset.id,
      writable: dataset.writable,
      hint: () => this.#captionHint(),
      onChange: () => this.check(),
    });
    const kept = dataset.writable ? null : note("info", t("dataset.read_only", { root: dataset.root }));
    const title = t("pictures.title");
    this.box.append(folded({ title, open: true, test: "pictures-fold" }, kept, this.list.root));
    this.list.load();
    this.check();
  }

  #captionHint() {
    const { t } = this.ctx;
    const trigger = this.draft.setting("trigger");
    return trigger ? t("pictures.hint_trigger", { trigger }) : t("pictures.hint");
  }

  #result(result) {
    this.result = result;
    this.findings.show(result);
    const fatal = result?.findings.some((finding) => finding.fatal) ?? false;
    this.skip.root.hidden = !(fatal && result.usable > 0);
    this.page.checked(result);
  }

  async #check() {
    const { base, dataset, settings } = this.draft.values;
    if (!dataset || !this.#chosen()) return;
    this.findings.wait();
    try {
      const ask = (signal) => this.ctx.api.post("/datasets/check", { id: dataset, base, settings }, { signal });
      const { current, value } = await this.only(ask);
      if (!current || dataset !== this.draft.values.dataset) return;
      this.#result(value);
      if (value.left) this.check(); // a large dataset is looked at in portions
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#result(null);
      this.findings.fail(error.message);
    }
  }

  /** The dataset that dropped pictures go to; a new one where none is chosen. */
  async #target(folder) {
    const chosen = this.#chosen();
    if (chosen) return chosen.id;
    const wanted = this.making || !folder ? this.name.get().trim() : folder;
    const made = await this.ctx.api.post("/datasets/create", { name: wanted || this.#freeName() });
    return made.id;
  }

  async #upload(files, folder) {
    const { api, t } = this.ctx;
    this.uploading = true;
    this.drop.disable(true);
    this.page.checked(this.result ?? null);
    let id = "";
    try {
      id = await this.#target(folder);
      this.naming.fail("");
      await send(api, id, files, (rows) => this.drop.progress(rows), t);
      await this.#fetch();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.naming.root.hidden = false;
      this.naming.fail(error.message);
      this.name.input.focus();
    } finally {
      this.uploading = false;
      this.drop.disable(false);
    }
    if (!id) return this.page.checked(null);
    this.making = false;
    return this.draft.change({ dataset: id });
  }
}
