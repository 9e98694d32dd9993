/** Pictures that stay in view until their successor is there, so that an update never flickers. */

import { h } from "./dom.js";

/**
 * One picture that may change.
 * @param {{class?: string}} [props]
 * @returns {{root: HTMLImageElement, set: (url: string|null, alt?: string) => Promise<boolean>}} set: resolves to true
 *   once that picture is seen, to false where it could not be had or another one was asked for meanwhile
 */
export function picture(props = {}) {
  const root = h("img", { decoding: "async", draggable: "false", alt: "", hidden: true, ...props });
  let wanted = null;
  const set = async (url, alt = "") => {
    if (url === wanted) return root.hidden === false;
    wanted = url;
    if (url === null) {
      root.hidden = true;
      root.removeAttribute("src");
      return false;
    }
    const ready = await loaded(url);
    if (wanted !== url) return false;
    root.hidden = !ready;
    if (!ready) {
      // Asked for again at the next update.
      wanted = null;
      return false;
    }
    root.src = url;
    root.alt = alt;
    return true;
  };
  return { root, set };
}

async function loaded(url) {
  const early = new Image();
  early.src = url;
  try {
    await early.decode();
    return early;
  } catch (error) {
    // EncodingError: not there, or no picture.
    if (error instanceof DOMException) return null;
    throw error;
  }
}

/**
 * A small picture in a list: fetched when it comes near, a quiet box where it cannot be had.
 * @param {string|null} url
 * @param {string} [alt]
 */
export function thumb(url, alt = "") {
  const image = h("img", { loading: "lazy", decoding: "async", draggable: "false", alt, hidden: true });
  const root = h("span", { class: "thumb" }, image);
  image.addEventListener("error", () => (image.hidden = true));
  setThumb(root, url);
  return root;
}

/** Gives a small picture another address; the same one is left alone. */
export function setThumb(root, url) {
  const image = root.firstElementChild;
  if (image.getAttribute("src") === url) return;
  image.hidden = !url;
  if (url) image.src = url;
  else image.removeAttribute("src");
}
