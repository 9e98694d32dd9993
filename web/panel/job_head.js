/** The top of a job's page: the way back, its name, its status, what it is made with. */

import { button } from "./controls.js";
import { h, setText } from "./dom.js";
import { aboutText, badge } from "./status.js";

/**
 * @param {import("./panel.js").Ctx} ctx
 * @returns {{root: HTMLElement, update: (job: Object) => void}}
 */
export function jobHead(ctx) {
  const { t } = ctx;
  const back = button({
    label: t("job.back"),
    icon: "back",
    kind: "quiet",
    onClick: () => ctx.go("jobs"),
    test: "job-back",
  });
  const name = h("h1", { "data-test": "job-name" });
  const status = badge(t);
  const about = h("div", { class: "muted small" });
  const root = h("header", { class: "job-head" }, back, h("div", { class: "row job-title" }, name, status.root), about);
  const update = (job) => {
    setText(name, job.name);
    status.set(job);
    setText(about, aboutText(job, t));
  };
  return { root, update };
}

/**
 * What the trainer remarked, newest last; nothing where there is nothing.
 * @param {Function} t
 * @param {ReturnType<typeof import("./format.js").formats>} formats
 */
export function noticeList(t, formats) {
  const list = h("ul", { class: "notices" });
  const root = h(
    "section",
    { class: "card", hidden: true, "data-test": "notices" },
    h("h2", null, t("job.notices")),
    list,
  );
  let shown = 0;
  const update = (notices) => {
    if (notices.length < shown) {
      list.replaceChildren();
      shown = 0;
    }
    for (const { kind, step, text } of notices.slice(shown)) {
      // Warnings name their step themselves.
      const said = step && kind === "notice" ? `${t("timeline.at", { step: formats.count(step) })}: ` : "";
      list.append(h("li", null, h("span", { class: "muted" }, said), text));
    }
    shown = notices.length;
    root.hidden = shown === 0;
  };
  return { root, update };
}

/** The last lines that the training process printed, folded. */
export function logTail(t, folded) {
  const text = h("pre", { class: "log", tabindex: "0", "data-test": "log" });
  const root = folded({ title: t("job.log"), test: "log-fold" }, text);
  const update = (log) => {
    root.hidden = !log;
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
    setText(text, log);
    if (atEnd) text.scrollTop = text.scrollHeight;
  };
  return { root, update };
}
