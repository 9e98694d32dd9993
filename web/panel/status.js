/** What a job's status is called and how it is marked. */

import { h, setText } from "./dom.js";
import { engineName, isOther } from "./engine.js";

const KINDS = { running: "accent", stopping: "accent", finished: "ok", failed: "error", interrupted: "warn" };
const ENDED = new Set(["stopped", "interrupted", "failed", "finished"]);

/** Whether a job is over, for now or for good. @param {string} status */
export function ended(status) {
  return ENDED.has(status);
}

/**
 * A chip with the job's status.
 * @param {Function} t
 * @returns {{root: HTMLElement, set: (job: {status: string, unresponsive?: boolean}) => void}}
 */
export function badge(t) {
  const root = h("span", { class: "chip status", "data-test": "status" });
  const set = ({ status, unresponsive }) => {
    root.className = `chip status ${unresponsive ? "warn" : KINDS[status] ?? ""}`;
    root.dataset.status = status;
    setText(root, t(unresponsive ? "status.silent" : `status.${status}`));
  };
  return { root, set };
}

/** What a job is doing: its phase and how far it is in it. */
export function phaseText(job, t, formats) {
  if (!job.phase) return job.status === "running" ? t("phase.starting") : t(`status.${job.status}`);
  const phase = t.or(`phase.${job.phase.replaceAll(" ", "_")}`, job.phase);
  const { done, total } = job.progress ?? {};
  return total ? t("phase.progress", { phase, done: formats.count(done), total: formats.count(total) }) : phase;
}

/** What a training was made with, in a few words. */
export function aboutText(job, t) {
  const method = job.method ? t.or(`form.methods.${job.method}.title`, job.method) : null;
  const engine = isOther(job.engine) ? engineName(t, job.engine) : null;
  return [job.base, method, job.trigger ? `“${job.trigger}”` : null, engine].filter(Boolean).join(" · ");
}
