/** How large a LoRA may become: as small as it is exact, of a rank, or by the share of the change that it keeps. */

import { numberInput, segmented } from "./controls.js";
import { h } from "./dom.js";

const WAYS = ["exact", "rank", "energy"];

/**
 * @param {Function} t
 * @param {{by?: "exact"|"rank"|"energy"}} [options] by: what is chosen at first
 * @returns {{root: HTMLElement, get: () => {rank?: number, energy?: number}}} get: as the server takes it
 */
export function loraSize(t, { by = "exact" } = {}) {
  const label = t("fuse.by.energy");
  const rank = numberInput({ value: 32, min: 1, max: 4096, whole: true, label: t("export.rank"), test: "lora-rank" });
  const energy = numberInput({ value: 99, min: 1, max: 100, label, unit: "%", test: "lora-energy" });
  const show = (way) => {
    rank.root.hidden = way !== "rank";
    energy.root.hidden = way !== "energy";
  };
  const ways = segmented({
    label: t("fuse.size"), value: by, test: "lora-by", onChange: show,
    options: WAYS.map((value) => ({ value, label: t(`fuse.by.${value}`) })),
  });
  show(by);
  const numbers = [rank.root, energy.root].map((root) => h("div", { class: "lora-number" }, root));
  const get = () => {
    if (ways.get() === "rank") return { rank: rank.get() ?? undefined };
    return ways.get() === "energy" ? { energy: energy.get() === null ? undefined : energy.get() / 100 } : {};
  };
  return { root: h("div", { class: "row wrap", "data-test": "lora-size" }, ways.root, numbers), get };
}
