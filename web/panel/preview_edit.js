/** The picture that a file shows of itself: seen, exchanged by dropping or choosing another, taken out. */

import { ApiError } from "./api.js";
import { button, iconButton } from "./controls.js";
import { h, setText } from "./dom.js";
import { icon } from "./icons.js";
import { base64, listenForDrops } from "./uploads.js";

const MOST = 768; // pixels of the longer side; the server makes a thumbnail of it anyway
const QUALITY = 0.9;

/**
 * A picture made small, as JPEG on white.
 * @param {Blob} file
 * @returns {Promise<Blob|null>} null where the browser cannot read it as a picture
 */
async function small(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch (error) {
    if (error instanceof DOMException) return null;
    throw error;
  }
  const scale = Math.min(1, MOST / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const g = canvas.getContext("2d");
  g.fillStyle = "white";
  g.fillRect(0, 0, canvas.width, canvas.height);
  g.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}

/** The control. `change()` is what is to be sent: undefined for nothing, "" to take the picture out, else base64. */
export class PreviewEdit {
  /** @param {{t: Function, onChange: () => void}} options */
  constructor({ t, onChange }) {
    this.t = t;
    this.onChange = onChange;
    this.wanted = undefined;
    this.image = h("img", { class: "preview-image", alt: t("edit.preview"), hidden: true, draggable: "false" });
    this.none = h("span", { class: "preview-none" }, icon("picture"));
    this.words = h("span", { class: "drop-text", role: "status" }, t("edit.preview_drop"));
    this.file = h("input", {
      type: "file", accept: "image/*", class: "visually-hidden", tabindex: "-1", "aria-hidden": "true",
      "data-test": "preview-input", onChange: (event) => this.#chosen(event),
    });
    const browse = () => this.file.click();
    const choose = button({ label: t("edit.preview_choose"), icon: "upload", onClick: browse, test: "preview-choose" });
    this.remove = iconButton({
      label: t("edit.preview_remove"), icon: "trash", onClick: () => this.#take(""), test: "preview-remove",
    });
    const row = h("div", { class: "row wrap" }, choose, this.remove, this.file);
    const side = h("div", { class: "stack tight grow" }, this.words, row);
    const props = { class: "drop compact preview-drop", "data-test": "preview-drop" };
    this.root = h("div", props, this.image, this.none, side);
    listenForDrops(this.root, ([file]) => this.#read(file));
  }

  /** Shows what the file has now. @param {string|null} url */
  show(url) {
    this.wanted = undefined;
    this.#draw(url);
    setText(this.words, this.t("edit.preview_drop"));
  }

  change() {
    return this.wanted;
  }

  #chosen(event) {
    const [file] = event.target.files;
    if (file) this.#read(file);
    event.target.value = "";
  }

  async #read(file) {
    const picture = await small(file);
    if (!picture) return setText(this.words, this.t("edit.preview_bad", { name: file.name }));
    try {
      return this.#take(await base64(picture), URL.createObjectURL(picture), file.name);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return setText(this.words, error.message);
    }
  }

  #take(wanted, url = null, name = "") {
    this.wanted = wanted;
    this.#draw(url);
    setText(this.words, name || this.t("edit.preview_gone"));
    this.onChange();
  }

  #draw(url) {
    if (this.image.src.startsWith("blob:")) URL.revokeObjectURL(this.image.src);
    this.image.hidden = url === null;
    this.none.hidden = url !== null;
    this.remove.hidden = url === null;
    if (url === null) this.image.removeAttribute("src");
    else this.image.src = url;
  }

  destroy() {
    this.#draw(null);
  }
}
