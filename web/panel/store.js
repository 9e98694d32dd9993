/** What the server says about jobs, asked again and again: the page holds no truth of its own. */

import { on } from "./dom.js";

const BUSY = 1000;
const CALM = 4000;
const LONGEST = 15_000;
const MOVING = new Set(["queued", "running", "stopping"]);

/** Whether a job still changes by itself. @param {{status: string}} job */
export function moving(job) {
  return MOVING.has(job.status);
}

/**
 * The server's state. `connection`: "connecting", "ok", "lost" (tries again by itself), "token" (the server wants one).
 */
export class Store {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
    this.state = null;
    this.connection = "connecting";
    this.error = "";
    this.listeners = new Set();
    this.timer = 0;
    this.failures = 0;
    this.running = false;
    this.asking = null;
  }

  /** Calls `listener(store)` at each change of state or connection. @returns {() => void} stops it */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  start() {
    if (this.running) return;
    this.running = true;
    this.unwatch = on(document, "visibilitychange", () => this.#plan(0));
    this.#plan(0);
  }

  stop() {
    this.running = false;
    clearTimeout(this.timer);
    this.unwatch?.();
  }

  /** Asks now, for instance after an action; resolves when the answer is in. */
  async refresh() {
    await this.asking;
    await this.#ask();
  }

  /** The job's summary, or undefined. @param {string} id */
  job(id) {
    return this.state?.jobs.find((job) => job.id === id);
  }

  #plan(delay) {
    clearTimeout(this.timer);
    if (this.running && !document.hidden) this.timer = setTimeout(() => this.#ask(), delay);
  }

  #ask() {
    this.asking ??= this.#fetch().finally(() => {
      this.asking = null;
      this.#plan(this.#delay());
    });
    return this.asking;
  }

  #delay() {
    if (this.failures > 0) return Math.min(LONGEST, BUSY * 2 ** (this.failures - 1));
    return this.state?.jobs.some(moving) ? BUSY : CALM;
  }

  async #fetch() {
    const known = this.state && this.connection === "ok" ? `?known=${encodeURIComponent(this.state.version)}` : "";
    try {
      const answer = await this.api.get(`/state${known}`);
      this.failures = 0;
      if (answer.unchanged && this.connection === "ok") return;
      this.#set(answer.unchanged ? this.state : answer, "ok", "");
    } catch (error) {
      if (error.name !== "ApiError") throw error;
      this.failures += 1;
      this.#set(this.state, error.status === 401 ? "token" : "lost", error.message);
    }
  }

  #set(state, connection, error) {
    this.state = state;
    this.connection = connection;
    this.error = error;
    for (const listener of [...this.listeners]) listener(this);
  }
}
