/** Choosing one of many files: a list with a search, by keys and by pointer. */

import { clear, h, setText, uniqueId } from "../panel/dom.js";
import { popup } from "./popup.js";

const SHOWN = 200; // at once; typing shows the others

/** The folders, the name and the ending of a file. @param {string} path */
export function nameParts(path) {
  const cut = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1;
  return { folder: path.slice(0, cut), name: path.slice(cut).replace(/\.safetensors$/i, "") };
}

/** Those that have every word of the search in them. @param {string[]} names @param {string} search */
export function matching(names, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
}

/**
 * @param {HTMLElement} anchor
 * @param {{t: Function, names: string[], chosen?: string, pick: (name: string) => void}} options
 */
export function openPicker(anchor, { t, names, chosen, pick }) {
  const picker = new Picker(t, chosen, (name) => {
    shown.close();
    pick(name);
  });
  const parts = [picker.search, picker.list, picker.note];
  const shown = popup(anchor, { label: t("rows.choose"), test: "rows-picker" }, ...parts);
  picker.offer(names);
  shown.place();
  picker.search.focus();
  return { offer: (next) => picker.offer(next) };
}

class Picker {
  constructor(t, chosen, pick) {
    this.t = t;
    this.chosen = chosen;
    this.pick = pick;
    this.names = [];
    this.at = 0;
    const list = { class: "spectral-options", role: "listbox", id: uniqueId("files"), "data-test": "rows-options" };
    this.list = h("div", list);
    this.note = h("div", { class: "spectral-note", role: "status", hidden: true });
    this.search = h("input", {
      class: "spectral-search", type: "search", role: "combobox", placeholder: t("rows.search"), autocomplete: "off",
      spellcheck: "false", "aria-label": t("rows.search"), "aria-expanded": "true", "aria-controls": this.list.id,
      "data-test": "rows-search", onInput: () => this.#draw(), onKeydown: (event) => this.#key(event),
    });
  }

  offer(names) {
    this.names = names;
    this.#draw();
  }

  #draw() {
    this.found = matching(this.names, this.search.value);
    clear(this.list, this.found.slice(0, SHOWN).map((name, i) => this.#option(name, i)));
    const more = this.found.length - SHOWN;
    const none = this.names.length ? this.t("rows.nothingFound") : this.t("rows.nothingThere");
    setText(this.note, more > 0 ? this.t("rows.more", { count: more }) : this.found.length ? "" : none);
    this.note.hidden = !this.note.textContent;
    this.#go(Math.max(0, this.search.value ? 0 : this.found.indexOf(this.chosen)));
  }

  #option(name, i) {
    const { folder, name: short } = nameParts(name);
    return h(
      "div",
      {
        class: "spectral-option", role: "option", id: `${this.list.id}-${i}`, title: name, "data-name": name,
        "aria-selected": String(name === this.chosen), onClick: () => this.pick(name),
        onPointermove: () => this.at !== i && this.#go(i, false),
      },
      h("span", { class: "spectral-option-name" }, short),
      h("span", { class: "spectral-option-folder" }, folder.replace(/[/\\]$/, "")),
    );
  }

  #go(to, scroll = true) {
    const options = this.list.children;
    options[this.at]?.classList.remove("at");
    this.at = Math.min(Math.max(0, to), Math.max(0, options.length - 1));
    const option = options[this.at];
    option?.classList.add("at");
    if (option) this.search.setAttribute("aria-activedescendant", option.id);
    else this.search.removeAttribute("aria-activedescendant");
    if (scroll) option?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (step) {
      event.preventDefault();
      this.#go(this.at + step);
    } else if (event.key === "Enter" && this.found[this.at]) {
      event.preventDefault();
      this.pick(this.found[this.at]);
    }
  }
}
