/** All that the page knows of one job: asked for when the server's state says that something is new. */

import { ApiError } from "./api.js";
import { Curve } from "./curve.js";
import { moving } from "./store.js";

// While a job runs its state changes every second, its details seldom.
const DETAIL_EVERY = 2000;
const TIMEOUT = 30_000;

/** Detail and curve of a job; `onChange` is called when either has changed, or when the job is gone. */
export class JobFeed {
  /**
   * @param {import("./api.js").Api} api
   * @param {string} id
   * @param {() => void} onChange
   */
  constructor(api, id, onChange) {
    this.api = api;
    this.id = id;
    this.onChange = onChange;
    this.curve = new Curve();
    this.detail = null;
    this.gone = false;
    this.error = "";
    this.stamp = "";
    this.status = "";
    this.asked = -Infinity;
    this.timer = 0;
    this.stopped = new AbortController();
  }

  /** @param {Object|undefined} summary of the job @param {Object[]} tasks summaries of what is made of it */
  update(summary, tasks) {
    const stamp = JSON.stringify([summary, tasks.map(({ id, status, text }) => [id, status, text])]);
    if (stamp === this.stamp || !summary) return;
    this.stamp = stamp;
    this.summary = summary;
    this.again = true;
    this.#ask();
  }

  async #ask() {
    if (this.asking) return;
    this.asking = true;
    try {
      while (this.again && !this.stopped.signal.aborted) {
        this.again = false;
        await this.#fetch();
      }
    } finally {
      this.asking = false;
    }
  }

  async #fetch() {
    const signal = AbortSignal.any([this.stopped.signal, AbortSignal.timeout(TIMEOUT)]);
    const path = `/jobs/${encodeURIComponent(this.id)}`;
    try {
      const [detail, part] = await Promise.all([
        this.#wantsDetail() ? this.api.get(path, { signal }) : null,
        this.api.get(`${path}/curve?${this.curve.query}`, { signal }),
      ]);
      this.#take(detail, part);
    } catch (error) {
      if (this.stopped.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      // Asked again at the next change, or when the server is back.
      this.stamp = "";
      this.asked = -Infinity;
      this.error = error.message;
      this.gone = error.status === 404;
      this.onChange();
    }
  }

  #wantsDetail() {
    const { status } = this.summary;
    const early = this.asked + DETAIL_EVERY - performance.now();
    if (this.detail && status === this.status && moving(this.summary) && early > 0) {
      this.#later(early);
      return false;
    }
    this.asked = performance.now();
    this.status = status;
    return true;
  }

  /** Details that were left out come later, even if nothing else changes until then. */
  #later(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.again = true;
      this.#ask();
    }, wait);
  }

  #take(detail, part) {
    if (this.stopped.signal.aborted) return;
    this.error = "";
    if (detail) this.detail = detail;
    this.curve.apply(part);
    this.onChange();
  }

  destroy() {
    clearTimeout(this.timer);
    this.stopped.abort();
  }
}
