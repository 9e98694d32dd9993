/** Small things kept in the browser, apart for each host. Storage may be forbidden or full: then nothing is kept. */

const key = (host, name) => `spectral_adapters.${host.name}.${name}`;

function kept(work, otherwise) {
  try {
    return work();
  } catch (error) {
    if (error instanceof DOMException || error instanceof SyntaxError) return otherwise;
    throw error;
  }
}

/** What this tab was shown. @param {{name: string}} host @returns {*} null where nothing is kept */
export function recall(host, name) {
  return kept(() => JSON.parse(sessionStorage.getItem(key(host, name))), null);
}

/** Kept until the tab is closed. */
export function remember(host, name, value) {
  kept(() => sessionStorage.setItem(key(host, name), JSON.stringify(value)));
}

/** What was written with `keep`, also by an earlier tab. @returns {*} null where nothing is kept */
export function reread(host, name) {
  return kept(() => JSON.parse(localStorage.getItem(key(host, name))), null);
}

/** Kept across tabs and restarts. */
export function keep(host, name, value) {
  kept(() => localStorage.setItem(key(host, name), JSON.stringify(value)));
}

/** Forgets what `keep` wrote. */
export function forget(host, name) {
  kept(() => localStorage.removeItem(key(host, name)));
}
