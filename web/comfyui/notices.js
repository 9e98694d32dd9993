/** Word of a training that ended, in every open page, and its adapter in the loader's list at once. */

import { app } from "../../../scripts/app.js";
import { refreshAdapters } from "./graph.js";
import { toast } from "./host.js";

export const NOTIFY = "SpectralAdapters.Notify";
const MAKES = new Set(["train", "fuse", "save"]); // kinds of jobs, and the node, that end with an adapter
const KIND = { finished: "ok", stopped: "info", interrupted: "warn", failed: "error" };

/**
 * What to do when the server says that a job has changed; once per ending.
 * @returns {(event: CustomEvent<Job>) => Promise<void>}
 * @typedef {{id: string, kind: string, name: string, status: string, text: string}} Job
 */
export function notices() {
  const last = new Map();
  return async ({ detail: job }) => {
    const before = last.get(job.id);
    last.set(job.id, job.status);
    if (before === job.status || !(job.status in KIND)) return;
    if (job.status === "finished" && MAKES.has(job.kind)) await refreshAdapters();
    if (app.extensionManager.setting.get(NOTIFY)) toast(KIND[job.status], job.text, job.name);
  };
}
