/** The rows of a stack as text in the workflow, and back. */

const FRESH = { on: true, adapter: "", model: 1, clip: 1, parts: "" };
let last = 0;

/**
 * @typedef {{id: string, on: boolean, adapter: string, model: number, clip: number, parts: string, apart: boolean}} Row
 *   id: of this page only; apart: the strengths are moved one by one though they may be equal
 */

/** @param {Partial<Row>} given @returns {Row} */
export function row(given = {}) {
  last += 1;
  const made = { ...FRESH, ...given };
  const clip = given.clip ?? made.model;
  return { ...made, clip, apart: clip !== made.model, id: `row-${last}` };
}

/**
 * @param {*} value what a workflow holds
 * @returns {Row[]|null} null for what cannot be read
 */
export function readRows(value) {
  let found = value;
  if (typeof value === "string") {
    try {
      found = JSON.parse(value.trim() || "[]");
    } catch (fault) {
      if (fault instanceof SyntaxError) return null;
      throw fault;
    }
  }
  if (!Array.isArray(found) || !found.every((each) => each && typeof each.adapter === "string")) return null;
  return found.map(row);
}

/** @param {Row[]} rows */
export function writeRows(rows) {
  return JSON.stringify(rows.map(({ on, adapter, model, clip, parts }) => ({ on, adapter, model, clip, parts })));
}
