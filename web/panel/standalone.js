/** The page of its own: the panel without ComfyUI. Elsewhere this file does nothing. */

import { SpectralPanel } from "./panel.js";

/** View and params in the page's address, so that reload, bookmarks and Back work. */
const route = {
  read() {
    const [view, query] = location.hash.slice(1).split("?");
    return view ? [view, Object.fromEntries(new URLSearchParams(query ?? ""))] : null;
  },
  write(view, params, stay) {
    const query = new URLSearchParams(params).toString();
    const hash = `#${view}${query ? `?${query}` : ""}`;
    if (!location.hash || stay) history.replaceState(null, "", hash);
    else if (location.hash !== hash) history.pushState(null, "", hash);
  },
};

/** @returns {import("./panel.js").Host} */
function standaloneHost() {
  return {
    name: "standalone",
    base: "/spectral_adapters",
    lang: navigator.language.split("-")[0],
    fetch: (path, init) => fetch(path, { credentials: "same-origin", ...init }),
    url: (path) => path,
    route,
  };
}

function start(page) {
  const panel = new SpectralPanel();
  panel.host = standaloneHost();
  page.append(panel);
  addEventListener("popstate", () => {
    const place = route.read();
    if (place) panel.go(...place);
  });
}

const page = document.querySelector("[data-spectral-standalone]");
if (page) start(page);
