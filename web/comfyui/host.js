/** What the panel needs of its host, answered by ComfyUI. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addLoader, refreshAdapters } from "./graph.js";

const SEVERITY = { error: "error", warn: "warn", ok: "success" };
const LIFE = { error: 15_000, warn: 10_000 };

/**
 * A short message in ComfyUI's own style.
 * @param {string} kind error, warn or ok; anything else is mere information
 * @param {string} text
 * @param {string} [title]
 */
export function toast(kind, text, title = "Spectral Adapters") {
  const severity = SEVERITY[kind] ?? "info";
  app.extensionManager.toast.add({ severity, summary: title, detail: text, life: LIFE[severity] ?? 6000 });
}

/** @returns {import("../panel/panel.js").Host} */
export function comfyHost() {
  return {
    name: "comfyui",
    base: "/spectral_adapters",
    lang: app.extensionManager.setting.get("Comfy.Locale") ?? "en",
    fetch: (path, init) => api.fetchApi(path, init),
    url: (path) => api.apiURL(path),
    toast: (kind, text) => toast(kind, text),
    useInGraph: addLoader,
    refreshAdapters,
  };
}
