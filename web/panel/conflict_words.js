/** A conflict in a sentence, in the reader's language. The server's own is English; the rules here are its rules. */

import { spansText } from "./conflict_data.js";
import { formats } from "./format.js";

const MUCH = 0.1; // of overlap or cosine: from here on two adapters may blend
const SAME = 0.999; // cosine from which two changes are one
const TOLD = 4; // pairs

/** How much two adapters may disturb each other, 0 to 1. */
export function harm({ cosine, overlap, interference }) {
  // Where not all columns are known, what is known of either on the other's.
  const met = overlap ?? Math.max(...interference.map((share) => share ?? 0));
  return Math.max(Math.abs(cosine ?? 0), met);
}

/** Whether two adapters may blend. */
export function clashes(pair) {
  return harm(pair) >= MUCH;
}

/**
 * What to expect.
 * @param {Object} conflict as the server gives it
 * @param {string[]} names of the adapters
 * @param {Function} t
 */
export function sentence(conflict, names, t) {
  if (t.lang === "en") return conflict.sentence;
  const f = formats(t.lang);
  const pairs = [...conflict.pairs].sort((a, b) => harm(b) - harm(a));
  const said = pairs.slice(0, TOLD).map((pair) => {
    const facts = {
      a: names[pair.a],
      b: names[pair.b],
      columns: spansText(pair.shared, f),
      count: f.count(pair.shared_layers),
      share: pair.overlap === null ? "?" : f.percent(pair.overlap),
      cosine: pair.cosine === null ? "?" : f.number(pair.cosine, 2),
    };
    return t(`conflict.says.${verdict(conflict, pair)}`, facts);
  });
  const more = pairs.length - TOLD;
  return [...said, more > 0 ? t("conflict.more", { count: more }) : ""].filter(Boolean).join(" ");
}

function verdict({ adapters }, pair) {
  const [a, b] = [adapters[pair.a], adapters[pair.b]];
  if (pair.layers === 0) return "apart";
  if (!(a.norm && b.norm)) return "nothing";
  if ((pair.cosine ?? 0) >= SAME) return "same";
  if (pair.overlap === null) return "unknown";
  if (pair.shared_layers === 0) return Math.abs(pair.cosine ?? 0) < MUCH ? "free" : "alike";
  const kind = a.measured || b.measured ? "measured" : "columns";
  return clashes(pair) ? kind : `${kind}Weakly`;
}
