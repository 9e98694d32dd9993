/** What adapter files say of themselves. A file is read once, a few at a time, and again only when it has changed. */

import { ApiError } from "./api.js";

const AT_ONCE = 3;

/**
 * @typedef {Object} Listed a file as the server lists it
 * @property {string} name
 * @property {number|null} bytes
 * @property {string} [kind]
 */

/** Files and their facts, shared by the views of a panel. */
export class Catalogue {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
    this.known = new Map();
    this.waiting = [];
    this.working = 0;
  }

  /** Every file that can be chosen. @returns {Promise<Listed[]>} */
  list() {
    return this.api.get("/adapters");
  }

  /**
   * The facts of a file.
   * @param {string} name
   * @param {number|null} [bytes] its size, when the list has just told: another one means another file
   * @returns {Promise<Object>} as the server answers; rejects with an ApiError
   */
  info(name, bytes) {
    const found = this.known.get(name);
    if (found && (bytes === undefined || found.bytes === bytes)) return found.promise;
    const promise = new Promise((resolve, reject) => this.waiting.push({ name, resolve, reject }));
    this.known.set(name, { bytes, promise });
    // What cannot be read now may be readable later.
    promise.catch((error) => error instanceof ApiError && this.forget(name));
    this.#work();
    return promise;
  }

  /** To be read anew the next time, after it was changed. */
  forget(name) {
    this.known.delete(name);
  }

  /** Where the picture of a file lies; `stamp` makes the address another one when the file is another. */
  previewUrl(name, stamp = "") {
    return this.api.url(`/adapters/preview?name=${encodeURIComponent(name)}${stamp ? `&v=${stamp}` : ""}`);
  }

  async #work() {
    while (this.working < AT_ONCE && this.waiting.length) {
      // The newest first: it is what somebody looks at.
      const { name, resolve, reject } = this.waiting.pop();
      this.working += 1;
      this.api.get(`/adapters/info?name=${encodeURIComponent(name)}`).then(resolve, reject).finally(() => {
        this.working -= 1;
        this.#work();
      });
    }
  }
}

/** A file's name as people say it: without folders and endings. */
export function plainName(name) {
  return name.replace(/^.*[\\/]/, "").replace(/(\.lora)?\.safetensors$/i, "");
}
