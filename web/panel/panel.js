/**
 * The panel: <spectral-panel>, a web component for ComfyUI's sidebar and for a page of its own. It knows no host; what
 * it needs of one is its `host` property.
 */

import { create as adapter } from "./adapter.js";
import { create as adapters } from "./adapters.js";
import { Api } from "./api.js";
import { Catalogue } from "./catalogue.js";
import { create as compare } from "./compare.js";
import { note } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { loadStrings } from "./i18n.js";
import { create as job } from "./job.js";
import { create as jobs } from "./job_list.js";
import { create as mix } from "./mix.js";
import { create as newTraining } from "./new_training.js";
import { ask, toasts } from "./overlay.js";
import { create as plan } from "./plan.js";
import { recall, remember } from "./remember.js";
import { create as start } from "./start.js";
import { moving, Store } from "./store.js";
import { followTheme } from "./theme.js";
import { tokenScreen } from "./token.js";

const STYLES = ["./style.css", "./views.css", "./mix.css"].map((name) => new URL(name, import.meta.url).href);
// A view: create(ctx, params) -> {root, update(state), destroy()}. All are loaded at once: the server may be away when
// one is opened.
const VIEWS = { start, new: newTraining, job, jobs, compare, adapters, adapter, mix, plan };
const TABS = ["new", "jobs", "adapters"];
const TAB_OF = {
  start: "new", new: "new", job: "jobs", jobs: "jobs", compare: "jobs", adapters: "adapters", adapter: "adapters",
  mix: "adapters", plan: "adapters",
};

/**
 * @typedef {Object} Host
 * @property {string} name "comfyui" or "standalone"
 * @property {string} base where the routes lie, "/spectral_adapters"
 * @property {(path: string, init: Object) => Promise<Response>} fetch
 * @property {(path: string) => string} url a path as an address for pictures
 * @property {string} lang such as "en"
 * @property {(adapter: string) => void} [useInGraph]
 * @property {(kind: string, text: string) => void} [toast]
 * @property {() => void} [refreshAdapters]
 * @property {{read: () => [string, Object]|null, write: (view: string, params: Object, stay: boolean) => void}} [route]
 *   stay: the same page in another state, which Back does not go to
 */

/**
 * @typedef {Object} Ctx what every view is given
 * @property {Api} api
 * @property {Store} store
 * @property {Function} t
 * @property {import("./catalogue.js").Catalogue} catalogue
 * @property {(view: string, params?: Object) => void} go
 * @property {(params: Object) => void} stay keeps other params for the view that is shown, which stays as it is
 * @property {(kind: string, text: string) => void} toast
 * @property {Host} host
 * @property {(text: string, options?: {yes?: string, danger?: boolean}) => Promise<boolean>} confirm
 */

/** The element. Set `host` before or after it is put into the page; it starts with both. */
export class SpectralPanel extends HTMLElement {
  #host = null;
  #ctx = null;
  #view = null;
  #at = { view: "", params: {} };
  #turn = 0;
  #leave = null;
  #lights = null;

  /** @param {Host} host */
  set host(host) {
    this.#host = host;
    if (this.isConnected) this.#begin();
  }

  get host() {
    return this.#host;
  }

  connectedCallback() {
    if (this.#host) this.#begin();
  }

  disconnectedCallback() {
    this.#turn += 1;
    this.#view?.destroy();
    this.#view = null;
    this.#leave?.();
    this.#lights?.();
    this.#leave = this.#lights = null;
    this.#ctx?.store.stop();
    this.#ctx = null;
    this.#at = { view: "", params: {} };
  }

  async #begin() {
    if (this.#ctx) return;
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    const api = new Api(this.#host);
    const store = new Store(api);
    this.#ctx = { api, store, host: this.#host, catalogue: new Catalogue(api) };
    const turn = ++this.#turn;
    this.shell = h("div", { class: "shell", hidden: true });
    isolate(this.shell);
    clear(root, this.#styles(), this.shell);
    const t = await this.#strings(api, turn);
    if (t === null) return;
    this.#draw(t);
    this.#leave = store.subscribe(() => this.#changed());
    store.start();
  }

  /** Links to the style sheets; the panel stays unseen until the first is there. */
  #styles() {
    const seen = () => {
      this.shell.hidden = false;
      this.#lights ??= followTheme(this.shell);
    };
    return STYLES.map((href) => h("link", { rel: "stylesheet", href, onLoad: seen, onError: seen }));
  }

  /** The strings; while the server is away it is asked again. */
  async #strings(api, turn) {
    for (let wait = 1000; ; wait = Math.min(wait * 2, 15_000)) {
      try {
        const t = await loadStrings(api, this.#host.lang);
        return turn === this.#turn ? t : null;
      } catch (error) {
        if (turn !== this.#turn) return null;
        // Without strings there are no translated sentences yet: the error is the server's own.
        clear(this.shell, note("error", error.message));
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  }

  #draw(t) {
    const layer = toasts(t("close"));
    const toast = (kind, text) => (this.#host.toast ?? layer.show)(kind, text);
    const confirm = (text, { yes = t("yes"), danger = false } = {}) =>
      ask(this.shell, { text, yes, no: t("cancel"), danger });
    this.shell.lang = t.lang;
    const go = (view, params) => this.go(view, params);
    Object.assign(this.#ctx, { t, toast, confirm, go, stay: (params) => this.#stay(params) });
    this.tabs = new Map(TABS.map((view) => [view, this.#tab(view, t(`tabs.${view}`))]));
    this.count = h("span", { class: "badge", hidden: true, "data-test": "jobs-count" });
    this.tabs.get("jobs").append(this.count);
    this.banner = h("div", { class: "banner", role: "status", hidden: true, "data-test": "banner" });
    this.main = h("main", { class: "main", tabindex: "-1", "data-test": "main" });
    const nav = h("nav", { class: "tabs", "aria-label": t("title") }, [...this.tabs.values()]);
    clear(this.shell, h("header", { class: "frame-top" }, nav), this.banner, this.main, layer.root);
  }

  #tab(view, label) {
    const open = () => this.go(view);
    return h("button", { type: "button", class: "tab", "data-test": `tab-${view}`, onClick: open }, label);
  }

  /** The store has something new. */
  #changed() {
    const { store, t } = this.#ctx;
    const lost = store.connection === "lost";
    this.banner.hidden = !lost;
    if (lost) setText(this.banner, t("connection.lost", { reason: store.error }));
    if (store.connection === "token") return this.#askToken();
    if (!store.state) return undefined;
    const active = store.state.jobs.filter(moving).length;
    this.count.hidden = active === 0;
    setText(this.count, String(active));
    this.count.title = t("tabs.active", { count: active });
    if (!this.#view && !this.#at.view) return this.#first(store.state);
    return this.#view?.update(store.state);
  }

  #askToken() {
    if (this.asking) return;
    const before = [...this.shell.children];
    this.asking = true;
    const enter = () => {
      this.asking = false;
      clear(this.shell, before);
      this.#ctx.store.refresh();
    };
    clear(this.shell, tokenScreen(this.#ctx.api, enter, this.#ctx.t));
  }

  /** Where to begin: where one was, else what there is. */
  #first(state) {
    const place = this.#host.route?.read() ?? recall(this.#host, "view");
    if (place && Object.hasOwn(VIEWS, place[0])) return this.go(...place);
    const running = state.jobs.find((job) => job.status === "running");
    if (running) return this.go("job", { id: running.id });
    return this.go(state.jobs.length ? "jobs" : "start");
  }

  /**
   * Shows a view.
   * @param {keyof typeof VIEWS} view
   * @param {Object} [params] plain values: they are remembered across a reload
   */
  go(view, params = {}) {
    if (!Object.hasOwn(VIEWS, view)) return undefined;
    // Not drawn yet: it begins there.
    if (!this.#ctx?.t) return remember(this.#host, "view", [view, params]);
    this.#at = { view, params };
    this.#mark(view);
    this.#view?.destroy();
    this.#view = this.#make(view, params);
    clear(this.main, this.#view.root);
    this.main.scrollTop = 0;
    this.main.dataset.view = view;
    if (this.#ctx.store.state) this.#view.update(this.#ctx.store.state);
    return undefined;
  }

  #mark(view) {
    for (const [name, tab] of this.tabs) {
      if (TAB_OF[view] === name) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    this.#keep(false);
  }

  /** The view shown has come to another state, which a reload finds again. */
  #stay(params) {
    if (JSON.stringify(params) === JSON.stringify(this.#at.params)) return;
    this.#at.params = params;
    this.#keep(true);
  }

  #keep(stay) {
    const { view, params } = this.#at;
    const kept = view === "new" ? {} : params;
    this.#host.route?.write(view, kept, stay);
    remember(this.#host, "view", [view, kept]);
  }

  #make(view, params) {
    try {
      return VIEWS[view](this.#ctx, params);
    } catch (error) {
      // A view that cannot be made must say so instead of leaving the old one in place.
      console.error(error);
      return { root: note("error", error.message), update() {}, destroy() {} };
    }
  }
}

/**
 * Keeps to the panel what happens in it. Seen from outside, the target of an event is the panel and not the text field:
 * a host would take typed letters for its shortcuts, and a dropped picture for a workflow.
 */
function isolate(shell) {
  const typing = (event) => event.target.closest?.("input, textarea, select, [contenteditable]");
  for (const type of ["keydown", "keyup", "keypress", "copy", "cut", "paste"]) {
    shell.addEventListener(type, (event) => typing(event) && event.stopPropagation());
  }
  for (const type of ["dragover", "drop"]) {
    shell.addEventListener(type, (event) => {
      event.stopPropagation();
      if (!typing(event)) event.preventDefault();
    });
  }
}

if (!customElements.get("spectral-panel")) customElements.define("spectral-panel", SpectralPanel);
