/** A picture over the whole window, with its neighbours at the arrow keys. */

import { iconButton } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { picture } from "./picture.js";

/**
 * @param {Element} parent where the dialog is put, inside the panel
 * @param {{t: Function, items: Item[], at?: number}} options
 * @typedef {{url: string, caption: string, actions?: (close: () => void) => Element[]}} Item
 */
export function enlarge(parent, { t, items, at = 0 }) {
  const view = picture({ class: "light-picture" });
  const caption = h("div", { class: "light-caption grow" });
  const actions = h("div", { class: "row wrap light-actions" });
  const dialog = h(
    "dialog",
    { class: "light", "aria-label": t("lightbox.label"), "data-test": "lightbox", tabindex: "-1" },
  );
  let place = at;
  const close = () => {
    dialog.close();
    dialog.remove();
  };
  const show = (next) => {
    place = (next + items.length) % items.length;
    const item = items[place];
    view.set(item.url, item.caption);
    setText(caption, item.caption);
    clear(actions, item.actions?.(close) ?? []);
  };
  const turn = (by, shape, label) => iconButton({
    label,
    icon: shape,
    onClick: () => show(place + by),
    test: `lightbox-${shape}`,
  });
  const many = items.length > 1;
  const head = h(
    "div",
    { class: "row light-head" },
    caption,
    many ? turn(-1, "back", t("lightbox.previous")) : null,
    many ? turn(1, "chevron", t("lightbox.next")) : null,
    iconButton({ label: t("close"), icon: "close", onClick: close, test: "lightbox-close" }),
  );
  dialog.append(head, h("div", { class: "light-stage" }, view.root), actions);
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !many) return;
    event.preventDefault();
    show(place + by);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => dialog.remove());
  parent.append(dialog);
  show(at);
  dialog.showModal();
  // Not on the first button, whose tooltip would lie over the picture.
  dialog.focus();
}
