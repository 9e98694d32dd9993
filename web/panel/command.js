/** Commands to copy into a terminal. */

import { copyText } from "./act.js";
import { iconButton } from "./controls.js";
import { h } from "./dom.js";

// Letters and digits of any script, and signs that no shell reads as more than themselves between double quotes.
const HARMLESS = /^[\p{L}\p{M}\p{N} ._:/\\+,@()=~-]+$/u;

/**
 * A path as one word of a command. What a shell might run is put between single quotes, which cmd.exe does not know: a
 * file's name must not become a command where it is pasted.
 * @param {string} path
 */
export function quoted(path) {
  if (HARMLESS.test(path) && !path.endsWith("\\")) return `"${path}"`;
  return `'${path.replace(/[\u0000-\u001f\u007f]/g, "?").replaceAll("'", "'\\''")}'`;
}

/** A command of this package. @param {...string} words already quoted */
export function command(...words) {
  return ["python -m spectral_adapters", ...words].join(" ");
}

/**
 * A command with a button that copies it.
 * @param {import("./panel.js").Ctx} ctx
 * @param {string} text
 * @param {string} test
 */
export function commandRow(ctx, text, test) {
  const copy = () => copyText(ctx, text);
  const props = { label: ctx.t("copy"), icon: "copy", onClick: copy, test };
  return h("div", { class: "command row" }, h("code", { class: "grow" }, text), iconButton(props));
}
