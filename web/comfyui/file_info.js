/** What a row's file is: facts, preview, trigger words to copy; and the row's own parts. */

import { copyText } from "../panel/act.js";
import { Api, ApiError } from "../panel/api.js";
import { clear, h } from "../panel/dom.js";
import { factList } from "../panel/facts.js";
import { picture } from "../panel/picture.js";
import { comfyHost } from "./host.js";
import { nameParts } from "./picker.js";
import { popup } from "./popup.js";

/**
 * @param {HTMLElement} anchor
 * @param {{t: Function, row: import("./rows_data.js").Row, changed: () => void}} options
 */
export function openInfo(anchor, { t, row, changed }) {
  const { name } = nameParts(row.adapter);
  const body = h("div", { class: "spectral-facts" });
  const shown = popup(
    anchor,
    { label: t("rows.infoOf", { name }), test: "rows-info" },
    h("h3", null, name || t("rows.choose")),
    body,
    partsField(t, row, changed),
  );
  if (row.adapter) fill(body, t, row.adapter).then(shown.place);
}

async function fill(body, t, name) {
  const host = comfyHost();
  const api = new Api(host);
  const query = `name=${encodeURIComponent(name)}`;
  try {
    const info = await api.get(`/adapters/info?${query}`);
    const ctx = { t, api, toast: host.toast };
    const facts = factList(ctx);
    facts.show(info);
    const image = picture({ class: "spectral-preview" });
    if (info.preview) await image.set(api.url(`/adapters/preview?${query}`), t("rows.preview", { name }));
    clear(body, image.root, info.description && h("p", null, info.description), words(ctx, info), facts.root);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    clear(body, h("p", { class: "spectral-note bad", role: "alert" }, faultText(t, error)));
  }
}

function faultText(t, error) {
  return error.status === 401 ? t("rows.locked") : error.message;
}

/** The trigger words, each a button that copies it. */
function words(ctx, { trigger_words: found }) {
  if (!found?.length) return null;
  const button = (word) =>
    h(
      "button",
      { type: "button", class: "spectral-word", title: ctx.t("rows.copy"), "data-test": "rows-word",
        onClick: () => copyText(ctx, word) },
      word,
    );
  return h("div", { class: "spectral-words", "data-test": "rows-words" }, found.map(button));
}

function partsField(t, row, changed) {
  const input = h("input", {
    class: "spectral-search", type: "text", value: row.parts, placeholder: "IN04=0.5, OUT*=1.2, text=0",
    autocomplete: "off", spellcheck: "false", "data-test": "rows-parts",
    onChange: () => {
      row.parts = input.value.trim();
      changed();
    },
  });
  return h("label", { class: "spectral-field", title: t("rows.partsHelp") }, h("span", null, t("rows.parts")), input);
}
