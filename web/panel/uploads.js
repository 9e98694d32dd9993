/** Pictures from the user's disk into a dataset: dropped, or chosen from a dialog. */

import { ApiError } from "./api.js";
import { button, progressBar } from "./controls.js";
import { h, keyed, setText } from "./dom.js";
import { icon } from "./icons.js";

const AT_ONCE = 2;
const MOST_BYTES = 64 * 1024 * 1024;
const CAPTIONS = /\.(txt|caption)$/i;

/** @param {string} name @returns {string} without folder and ending */
export function stem(name) {
  return name.replace(/^.*[\\/]/, "").replace(/\.[^.]*$/, "");
}

/** The content of a file as base64. @param {Blob} file @returns {Promise<string>} */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new ApiError(reader.error.message, 0));
    reader.readAsDataURL(file);
  });
}

function entryFile(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

/** All entries of a dropped folder; a reader gives them in portions. */
async function entriesOf(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}

async function filesOf(entry) {
  if (entry.isFile) return [await entryFile(entry)];
  return (await Promise.all((await entriesOf(entry)).map(filesOf))).flat();
}

/**
 * What was dropped: files, and the files in dropped folders.
 * @param {DataTransfer} transfer
 * @returns {Promise<{files: File[], folder: string}>} folder: the name of the first dropped folder, or ""
 */
export async function dropped(transfer) {
  // The items are gone after the first await.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return { files: [...transfer.files], folder: "" };
  const files = (await Promise.all(entries.map(filesOf))).flat();
  return { files, folder: entries.find((entry) => entry.isDirectory)?.name ?? "" };
}

/** Pictures with the caption files that lie beside them. A caption without its picture is handed on as a picture. */
function paired(files) {
  const captions = new Map(files.filter((file) => CAPTIONS.test(file.name)).map((file) => [stem(file.name), file]));
  const pictures = files.filter((file) => !CAPTIONS.test(file.name));
  return pictures.map((file) => ({ file, caption: captions.get(stem(file.name)) ?? null }));
}

/**
 * Sends files into a dataset, a few at a time. Each row of `rows` tells how its file is: {key, name, state, error}.
 * @param {import("./api.js").Api} api
 * @param {string} id the dataset
 * @param {File[]} files
 * @param {(rows: Object[]) => void} listen called at each change
 * @param {Function} t
 */
export async function send(api, id, files, listen, t) {
  const row = (pair, i) => ({ ...pair, key: `${i}`, name: pair.file.name, state: "waiting", error: "" });
  const rows = paired(files).map(row);
  const waiting = [...rows];
  const one = async (row) => {
    row.state = "sending";
    listen(rows);
    try {
      await sendOne(api, id, row, t);
      row.state = "done";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      row.state = "failed";
      row.error = error.message;
    }
    listen(rows);
  };
  const worker = async () => {
    while (waiting.length) await one(waiting.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return rows;
}

async function sendOne(api, id, { file, caption }, t) {
  if (file.size > MOST_BYTES) throw new ApiError(t("upload.too_large", { limit: MOST_BYTES / 1024 / 1024 }), 0);
  const body = { id, name: file.name, data: await base64(file) };
  const sent = await api.post("/datasets/upload", body, { timeout: 120_000 });
  const text = caption ? (await caption.text()).trim() : "";
  if (text) await api.post("/datasets/caption", { id, name: sent.name, text });
}

/**
 * The area to drop pictures on.
 * @param {{t: Function, onFiles: (files: File[], folder: string) => void}} options
 * @returns {{root: HTMLElement, label: (text: string, compact: boolean) => void, progress: (rows: Object[]) => void,
 *   disable: (off: boolean) => void}}
 */
export function dropZone({ t, onFiles }) {
  const chosen = (event) => {
    onFiles([...event.target.files], "");
    event.target.value = "";
  };
  const input = h("input", {
    type: "file", multiple: true, accept: "image/*,.txt,.caption", class: "visually-hidden", tabindex: "-1",
    "aria-hidden": "true", "data-test": "upload-input", onChange: chosen,
  });
  const words = h("span", { class: "drop-text" });
  const browse = () => input.click();
  const choose = button({ label: t("upload.choose"), icon: "upload", onClick: browse, test: "upload-choose" });
  const area = h("div", { class: "drop", "data-test": "drop-zone" }, icon("picture"), words, choose, input);
  const status = uploadStatus(t);
  listenForDrops(area, onFiles);
  return {
    root: h("div", { class: "stack" }, area, status.root),
    label: (text, compact) => {
      setText(words, text);
      area.classList.toggle("compact", compact);
    },
    progress: status.show,
    disable: (off) => {
      choose.disabled = off;
      input.disabled = off;
      area.classList.toggle("off", off);
    },
  };
}

/** Hands on what is dropped on `area`, which is marked meanwhile; nothing while it has the class "off". */
export function listenForDrops(area, onFiles) {
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    area.classList.toggle("over", depth > 0);
  };
  area.addEventListener("dragenter", () => mark(1));
  area.addEventListener("dragleave", () => mark(-1));
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  area.addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(-depth);
    if (area.classList.contains("off")) return;
    const { files, folder } = await dropped(event.dataTransfer);
    if (files.length) onFiles(files, folder);
  });
}

/** How the upload goes: a bar while it runs, then what failed and why. */
function uploadStatus(t) {
  const bar = progressBar({ label: t("upload.progress"), test: "upload-progress" });
  const words = h("div", { class: "small muted", role: "status" });
  const failed = h("ul", { class: "plain-list small", "data-test": "upload-errors" });
  const root = h("div", { class: "stack tight", hidden: true }, bar.root, words, failed);
  const show = (rows) => {
    const ended = rows.filter((row) => row.state === "done" || row.state === "failed").length;
    const faults = rows.filter((row) => row.state === "failed");
    root.hidden = rows.length === 0 || (ended === rows.length && faults.length === 0);
    bar.root.hidden = ended === rows.length;
    bar.set(ended, rows.length);
    const sending = rows.filter((row) => row.state === "sending").map((row) => row.name).join(", ");
    setText(words, ended < rows.length ? t("upload.sending", { done: ended, total: rows.length, names: sending }) : "");
    keyed(failed, faults, (row) => row.key, failure);
  };
  return { root, show };
}

function failure(row) {
  const text = h("span", { class: "grow" }, h("strong", null, row.name), " ", row.error);
  return { root: h("li", { class: "row top danger-text" }, icon("error"), text) };
}
