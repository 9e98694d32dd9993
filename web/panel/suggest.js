/** What the form proposes where nothing was written by hand. */

const ENDING = /\.safetensors$/i;
// What no file name may hold, on any system.
const FORBIDDEN = /[\u0000-\u001f\\/:*?"<>|]+/g;

/** A name for the adapter: that of the dataset, else the trigger word. */
export function suggestedName(trigger, dataset) {
  const text = dataset?.name || trigger || "";
  return text.replace(FORBIDDEN, " ").replace(/^[. ]+|[. ]+$/g, "").slice(0, 100);
}

/** Prompts that show what is learnt and what is spoilt: two with the trigger word, one without. */
export function suggestedPrompts(t, trigger, preset) {
  if (!trigger) return [];
  const kind = preset === "style" ? "style" : "subject";
  return [
    t(`prompts.suggested.${kind}.first`, { trigger }),
    t(`prompts.suggested.${kind}.second`, { trigger }),
    t(`prompts.suggested.${kind}.without`),
  ];
}

/**
 * The name the file will get: the wanted one, or the next that is free, as the server chooses it.
 * @param {string} wanted
 * @param {{name: string}[]} adapters
 * @param {{status: string, kind: string, name: string}[]} jobs
 */
export function nextName(wanted, adapters, jobs) {
  const plain = (name) => name.replace(/^.*[\\/]/, "").replace(ENDING, "").toLowerCase();
  const waiting = jobs.filter(({ kind, adapter }) => kind === "train" && !adapter).map(({ name }) => plain(name));
  const taken = new Set([...adapters.map(({ name }) => plain(name)), ...waiting]);
  let name = wanted;
  for (let i = 2; taken.has(name.toLowerCase()); i += 1) name = `${wanted}-${i}`;
  return name;
}
