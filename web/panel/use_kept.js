/** Taking an adapter, at the checkpoint and strength that were chosen by looking. */

import { act, copyText } from "./act.js";

/**
 * Puts an adapter into the graph; where there is none, its file name on the clipboard.
 * @param {import("./panel.js").Ctx} ctx
 * @param {string} adapter its name in the loader's list
 * @param {number} [strength]
 */
export async function useAdapter(ctx, adapter, strength = 1) {
  if (!ctx.host.useInGraph) return copyText(ctx, adapter);
  try {
    await ctx.host.useInGraph(adapter, strength);
    return ctx.toast("ok", ctx.t("done.used", { adapter }));
  } catch (error) {
    // Whatever the host's graph has against it is said in its own words.
    return ctx.toast("error", error.message);
  }
}

/**
 * The same for what a training has kept: a checkpoint is first made an adapter file of its own.
 * @param {import("./panel.js").Ctx} ctx
 * @param {{summary: Object, detail: Object}} news of the training
 * @param {{step: number, final: boolean}} kept
 * @param {number} strength
 */
export async function useKept(ctx, { summary, detail }, kept, strength) {
  const checkpoint = detail.checkpoints.find(({ step }) => step === kept.step);
  if (summary.adapter && (kept.final || !checkpoint)) return useAdapter(ctx, summary.adapter.name, strength);
  const made = await act(ctx, `/jobs/${summary.id}/keep`, { checkpoint: checkpoint.name });
  return made && useAdapter(ctx, made.adapter, strength);
}
