/** How a job of seconds or minutes goes: its status, how far it is, Stop; in the end what it said. */

import { act } from "./act.js";
import { button, progressBar } from "./controls.js";
import { h, setText } from "./dom.js";
import { formats } from "./format.js";
import { badge, ended, phaseText } from "./status.js";

export class TaskLine {
  /** @param {import("./panel.js").Ctx} ctx @param {string} test */
  constructor(ctx, test) {
    const { t } = ctx;
    this.t = t;
    this.formats = formats(t.lang);
    this.status = badge(t);
    this.text = h("span", { class: "grow" });
    this.bar = progressBar({ label: t("running.progress"), test: `${test}-progress` });
    const stop = () => act(ctx, `/jobs/${this.id}/stop`, { now: false });
    this.stop = button({ label: t("running.stop"), icon: "stop", kind: "quiet", onClick: stop, test: `${test}-stop` });
    const line = h("div", { class: "row wrap" }, this.status.root, this.text, this.stop);
    const props = { class: "stack tight", hidden: true, role: "status", "data-test": test };
    this.root = h("div", props, line, this.bar.root);
  }

  /** @param {Object|undefined} job its summary; nothing is shown where there is none */
  update(job) {
    this.root.hidden = !job;
    if (!job) return;
    this.id = job.id;
    const over = ended(job.status);
    this.status.set(job);
    setText(this.text, over || job.status === "queued" ? job.text : phaseText(job, this.t, this.formats));
    this.text.classList.toggle("danger-text", job.status === "failed");
    this.bar.root.hidden = over;
    this.bar.set(job.progress?.done ?? null, job.progress?.total);
    this.stop.hidden = over;
  }
}
