/** All that the page knows of one job: asked for when the server's state says that something is new. */

import { ApiError } from "./api.js";
import { Curve } from "./curve.js";
import { moving } from "./store.js";

// While a job runs its state changes every second, its details seldom.
const DETAIL_EVERY = 2000;

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
    this.asked = 0;
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
    while (this.again && !this.stopped.signal.aborted) {
      this.again = false;
      await this.#fetch();
    }
    this.asking = false;
  }

  async #fetch() {
    const { signal } = this.stopped;
    const path = `/jobs/${encodeURIComponent(this.id)}`;
    try {
      const [detail, part] = await Promise.all([
        this.#wantsDetail() ? this.api.get(path, { signal }) : null,
        this.api.get(`${path}/curve?${this.curve.query}`, { signal }),
      ]);
      this.#take(detail, part);
    } catch (error) {
      if (!(error instanceof ApiError) || signal.aborted) {
        if (signal.aborted) return;
        throw error;
      }
      this.stamp = "";
      this.error = error.message;
      this.gone = error.status === 404;
      this.onChange();
    }
  }

  #wantsDetail() {
    const { status } = this.summary;
    const now = performance.now();
    if (this.detail && status === this.status && moving(this.summary) && now - this.asked < DETAIL_EVERY) return false;
    this.asked = now;
    this.status = status;
    return true;
  }

  #take(detail, part) {
    if (this.stopped.signal.aborted) return;
    this.error = "";
    if (detail) this.detail = detail;
    // A fresh curve is laid over nothing: what is seen is never older than what was seen before.
    this.curveChanged = this.curve.apply(part);
    this.onChange();
  }

  destroy() {
    this.stopped.abort();
  }
}
