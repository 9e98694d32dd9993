/** The pack's sentences for what stands on nodes, in the page's language. ComfyUI hands out every pack's. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { translator } from "../panel/i18n.js";

let asked = null;

async function load() {
  const lang = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
  const tables = await (await api.fetchApi("/i18n")).json();
  const language = tables[lang]?.spectralAdapters ? lang : "en";
  return translator(tables[language].spectralAdapters, language);
}

/** @returns {Promise<ReturnType<typeof translator>>} asked for once */
export function strings() {
  asked ??= load();
  return asked;
}
