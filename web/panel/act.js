/** Doing something to a job: ask the server, say what it answers, show what has changed. */

import { ApiError } from "./api.js";

/**
 * POST an action of a job; a refusal becomes a toast.
 * @param {import("./panel.js").Ctx} ctx
 * @param {string} path such as "/jobs/ID/stop"
 * @param {Object} [body]
 * @param {string} [done] what to say where it worked
 * @returns {Promise<*>} the answer, or null where it was refused
 */
export async function act(ctx, path, body = {}, done = "") {
  try {
    const answer = await ctx.api.post(path, body);
    if (answer?.notice) ctx.toast("info", answer.notice);
    else if (done) ctx.toast("ok", done);
    await ctx.store.refresh();
    return answer ?? {};
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    ctx.toast("error", error.message);
    return null;
  }
}

/** Puts a text on the clipboard; where that is forbidden the text is shown, to be copied by hand. */
export async function copyText(ctx, text) {
  try {
    await navigator.clipboard.writeText(text);
    ctx.toast("ok", ctx.t("copied", { text }));
  } catch (error) {
    if (!(error instanceof DOMException) && !(error instanceof TypeError)) throw error;
    ctx.toast("info", text);
  }
}
