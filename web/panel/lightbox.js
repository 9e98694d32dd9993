/** A picture over the whole window, with its neighbours at the arrow keys. */

import { iconButton } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { picture } from "./picture.js";

/**
 * Shows a picture until it is closed.
 * @param {Element} parent where the dialog is put, inside the panel
 * @param {{t: Function, items: Item[], at?: number}} options
 * @typedef {{url: string, caption: string, actions?: (close: () => void) => Element[]}} Item
 */
export function enlarge(parent, { t, items, at = 0 }) {
  const box = new Lightbox(t, items);
  parent.append(box.dialog);
  box.show(at);
  box.dialog.showModal();
  // Not on the first button, whose tooltip would lie over the picture.
  box.dialog.focus();
}

class Lightbox {
  constructor(t, items) {
    this.items = items;
    this.view = picture({ class: "light-picture" });
    this.caption = h("div", { class: "light-caption grow" });
    this.actions = h("div", { class: "row wrap light-actions" });
    const stage = h("div", { class: "light-stage" }, this.view.root);
    const props = { class: "light", "aria-label": t("lightbox.label"), "data-test": "lightbox", tabindex: "-1" };
    this.dialog = h("dialog", props, this.#head(t), stage, this.actions);
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => this.dialog.remove());
  }

  #head(t) {
    const turn = (by, icon, label) =>
      iconButton({ label, icon, onClick: () => this.show(this.at + by), test: `lightbox-${icon}` });
    const turns = [turn(-1, "back", t("lightbox.previous")), turn(1, "chevron", t("lightbox.next"))];
    const close = () => this.dialog.close();
    const end = iconButton({ label: t("close"), icon: "close", onClick: close, test: "lightbox-close" });
    return h("div", { class: "row light-head" }, this.caption, this.items.length > 1 ? turns : null, end);
  }

  /** Show the picture at a place; the last is followed by the first. */
  show(at) {
    this.at = (at + this.items.length) % this.items.length;
    const item = this.items[this.at];
    this.view.set(item.url, item.caption);
    setText(this.caption, item.caption);
    clear(this.actions, item.actions?.(() => this.dialog.close()) ?? []);
  }

  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || this.items.length < 2) return;
    event.preventDefault();
    this.show(this.at + by);
  }
}
