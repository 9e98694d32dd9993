/** Taking the checkpoint and strength that were chosen by looking. */

import { act, copyText } from "./act.js";

/**
 * Puts an adapter into the graph, or its file name on the clipboard; a checkpoint is first made an adapter file.
 * @param {import("./panel.js").Ctx} ctx
 * @param {{summary: Object, detail: Object}} news of the training
 * @param {{step: number, label: string, name?: string}} kept
 * @param {number} strength
 */
export async function useKept(ctx, { summary, detail }, kept, strength) {
  const name = await adapterOf(ctx, summary, detail, kept);
  if (name === null) return;
  if (ctx.host.useInGraph) ctx.host.useInGraph(name, strength);
  else await copyText(ctx, name);
}

async function adapterOf(ctx, summary, detail, kept) {
  const checkpoint = detail.checkpoints.find(({ step }) => step === kept.step);
  if (summary.adapter && (kept.final || !checkpoint)) return summary.adapter.name;
  const answer = await act(ctx, `/jobs/${summary.id}/keep`, { checkpoint: checkpoint.name });
  return answer?.adapter ?? null;
}
