/** Where the server asks who one is: the token that it printed when it was started. */

import { button, field, textInput } from "./controls.js";
import { h } from "./dom.js";

/**
 * @param {import("./api.js").Api} api
 * @param {() => void} enter called when the token was accepted
 * @param {Function} t
 * @returns {HTMLElement}
 */
export function tokenScreen(api, enter, t) {
  const control = textInput({ type: "password", test: "token" });
  const entry = field({ label: t("token.label"), control });
  const submit = async (event) => {
    event.preventDefault();
    try {
      await api.post("/session", { token: control.get().trim() });
      enter();
    } catch (error) {
      entry.fail(error.message);
      control.input.select();
    }
  };
  const send = button({ label: t("token.enter"), kind: "primary", onClick: submit, test: "token-enter" });
  return h(
    "form",
    { class: "token", onSubmit: submit, "data-test": "token-screen" },
    h("h1", null, t("token.title")),
    h("p", { class: "muted" }, t("token.text")),
    entry.root,
    h("div", { class: "row end" }, send),
  );
}
