/** What lies above the page: help texts, questions, short messages. */

import { h, on, uniqueId } from "./dom.js";
import { icon } from "./icons.js";

const GAP = 6;
const TOAST_SECONDS = 6;

/**
 * A short text beside an element while the pointer rests on it or it has the focus; Escape hides it.
 * @param {HTMLElement} anchor
 * @param {string} text
 * @returns {HTMLElement} the anchor
 */
export function tooltip(anchor, text) {
  const bubble = h("div", { class: "tooltip", role: "tooltip", id: uniqueId("tip"), popover: "manual" }, text);
  anchor.setAttribute("aria-describedby", bubble.id);
  const hide = () => bubble.remove();
  const show = () => {
    anchor.after(bubble);
    anchor.getRootNode().addEventListener("scroll", hide, { capture: true, once: true });
    bubble.showPopover();
    place(bubble, anchor.getBoundingClientRect());
  };
  anchor.addEventListener("pointerenter", show);
  anchor.addEventListener("pointerleave", hide);
  anchor.addEventListener("focus", show);
  anchor.addEventListener("blur", hide);
  anchor.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  return anchor;
}

function place(bubble, anchor) {
  const size = bubble.getBoundingClientRect();
  const left = Math.min(Math.max(GAP, anchor.left + anchor.width / 2 - size.width / 2), innerWidth - size.width - GAP);
  const above = anchor.top - size.height - GAP;
  bubble.style.left = `${left}px`;
  bubble.style.top = `${above > GAP ? above : anchor.bottom + GAP}px`;
}

/** A round "?" that explains something. @param {string} text @param {string} label what it explains */
export function help(text, label) {
  return tooltip(h("button", { type: "button", class: "help", "aria-label": `${label} ?` }, icon("help")), text);
}

/**
 * Asks before something is done. Resolves true only by the button; Escape and Cancel are no.
 * @param {HTMLElement} layer where the dialog is put
 * @param {{text: string, yes: string, no: string, danger?: boolean}} question
 * @returns {Promise<boolean>}
 */
export function ask(layer, { text, yes, no, danger = false }) {
  return new Promise((resolve) => {
    const close = (answer) => {
      dialog.close();
      dialog.remove();
      resolve(answer);
    };
    const choice = (kind, test, answer, label) =>
      h("button", { type: "button", class: `button ${kind}`, "data-test": test, onClick: () => close(answer) }, label);
    const confirm = choice(danger ? "danger" : "primary", "confirm-yes", true, yes);
    const cancel = choice("plain", "confirm-no", false, no);
    const dialog = h(
      "dialog",
      { class: "dialog", "aria-label": text, "data-test": "confirm" },
      h("p", { class: "dialog-text" }, text),
      h("div", { class: "row end" }, cancel, confirm),
    );
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      close(false);
    });
    layer.append(dialog);
    dialog.showModal();
    (danger ? cancel : confirm).focus();
  });
}

/**
 * Short messages at the lower edge, read out by screen readers. Kinds: "info", "ok", "warn", "error"; errors stay until
 * they are closed.
 * @param {string} closeLabel
 * @returns {{root: HTMLElement, show: (kind: string, text: string) => void}}
 */
export function toasts(closeLabel) {
  const root = h("div", { class: "toasts", role: "status", "aria-live": "polite" });
  const icons = { info: "info", ok: "check", warn: "warn", error: "error" };
  const show = (kind, text) => {
    const remove = () => toast.remove();
    const toast = h(
      "div",
      { class: `toast ${kind}`, "data-test": `toast-${kind}` },
      icon(icons[kind] ?? "info"),
      h("span", { class: "grow" }, text),
      h("button", { type: "button", class: "icon-button", "aria-label": closeLabel, onClick: remove }, icon("close")),
    );
    root.append(toast);
    while (root.children.length > 4) root.firstElementChild.remove();
    if (kind !== "error") fade(toast, remove);
  };
  return { root, show };
}

/** Goes after a while, but not under the pointer. */
function fade(toast, remove) {
  let timer = setTimeout(remove, TOAST_SECONDS * 1000);
  on(toast, "pointerenter", () => clearTimeout(timer));
  on(toast, "pointerleave", () => {
    timer = setTimeout(remove, TOAST_SECONDS * 1000);
  });
}
