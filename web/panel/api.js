/** Questions to the server. Every failure is an ApiError whose message is a sentence to show. */

const TIMEOUT = 30_000;

/** status 0: the server was not reached. */
export class ApiError extends Error {
  /**
   * @param {string} sentence
   * @param {number} status
   */
  constructor(sentence, status) {
    super(sentence);
    this.name = "ApiError";
    this.status = status;
  }
}

async function sentenceOf(response) {
  try {
    const body = await response.json();
    if (typeof body.error === "string") return body.error;
  } catch {
    // Not JSON: a proxy or the host itself answered.
  }
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

/** Answers of the routes below `host.base`. */
export class Api {
  /** @param {{base: string, fetch: Function, url: Function}} host */
  constructor(host) {
    this.host = host;
  }

  /** Where a path of ours lies, for pictures. @param {string} path such as "/datasets/thumb?id=..." */
  url(path) {
    return this.host.url(this.host.base + path);
  }

  /** The address of a file whose full path the server gave ("/spectral_adapters/jobs/..."). */
  file(path) {
    return this.host.url(path);
  }

  /** @param {string} path @returns {Promise<*>} */
  get(path, init = {}) {
    return this.#ask(path, { method: "GET", ...init });
  }

  /** @param {string} path @param {Object} body @returns {Promise<*>} */
  post(path, body = {}, init = {}) {
    const headers = { "Content-Type": "application/json" };
    return this.#ask(path, { method: "POST", headers, body: JSON.stringify(body), ...init });
  }

  async #ask(path, init) {
    let response;
    try {
      const signal = init.signal ?? AbortSignal.timeout(init.timeout ?? TIMEOUT);
      response = await this.host.fetch(this.host.base + path, { cache: "no-store", ...init, signal });
    } catch (error) {
      throw new ApiError(`The server was not reached (${error.message}).`, 0);
    }
    if (!response.ok) throw new ApiError(await sentenceOf(response), response.status);
    try {
      return await response.json();
    } catch {
      throw new ApiError("The server's answer was cut short.", 0);
    }
  }
}

/**
 * Keeps only the newest of overlapping questions: an older answer that arrives later is dropped.
 * @returns {(ask: (signal: AbortSignal) => Promise<*>) => Promise<{current: boolean, value: *}>}
 */
export function newest() {
  let running = null;
  return async (ask) => {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    try {
      const value = await ask(mine.signal);
      return { current: running === mine, value };
    } catch (error) {
      if (running !== mine) return { current: false, value: null };
      throw error;
    }
  };
}
