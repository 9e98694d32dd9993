/** What the server found of a conflict, as rows of a map: bands of columns with each adapter's share. */

import { columnText } from "./heat_map.js";

/**
 * @typedef {Object} Row a row of the map
 * @property {string} name
 * @property {string} block
 * @property {number[]} columns first column of each band that any adapter moves
 * @property {number[]} widths
 * @property {number[][]} values by band, then by adapter: the share of its whole change
 * @property {number[]} shared by band: how many columns (of how many layers) at least two adapters use
 */

/**
 * Rows of all layers of one kind in a block, or of every layer.
 * @param {Object} conflict as the server gives it
 * @param {"blocks"|"layers"} by
 * @param {(kind: string) => string} kindName
 * @returns {Row[]}
 */
export function mapRows(conflict, by, kindName) {
  const { bands } = conflict;
  if (by === "blocks") {
    return conflict.rows.map((row) => mapRow(bands, row.block, `${row.block} ${kindName(row.kind)}`.trim(), row));
  }
  const order = new Map(conflict.rows.map(({ block, kind }, i) => [`${block} ${kind}`, i]));
  const at = ({ block, kind }) => order.get(`${block} ${kind}`);
  const layers = [...conflict.layers].sort((a, b) => at(a) - at(b));
  return layers.map((layer) => mapRow(bands, layer.block, layer.name, { ...layer, shared: sharedBands(bands, layer) }));
}

function mapRow(bands, block, name, { bands: shares, shared }) {
  const row = { name, block: block || name, columns: [], widths: [], values: [], shared: [] };
  bands.forEach(({ first, last }, i) => {
    const values = shares.map((share) => share?.[i] ?? 0);
    if (!values.some((value) => value > 0)) return;
    row.columns.push(first);
    row.widths.push(last - first + 1);
    row.values.push(values);
    row.shared.push(shared[i]);
  });
  return row;
}

/** By band, how many columns of a layer at least two adapters use. */
function sharedBands(bands, { pairs }) {
  const columns = new Set();
  for (const { shared } of pairs) {
    for (const [first, last] of shared ?? []) for (let i = first; i <= last; i += 1) columns.add(i);
  }
  const inside = ({ first, last }) => [...columns].filter((column) => column >= first && column <= last).length;
  return bands.map(columns.size ? inside : () => 0);
}

/** Spans of columns as settings count them, from 0: "0–7, 16". @param {number[][]|null} spans */
export function spansText(spans, formats, most = 3) {
  const text = ([first, last]) => columnText(formats, { column: first, width: last - first + 1 }, 0);
  const shown = (spans ?? []).slice(0, most).map(text).join(", ");
  return spans?.length > most ? `${shown}, …` : shown;
}
