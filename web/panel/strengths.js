/** Strengths as people write them: apart by commas, semicolons or spaces. */

/**
 * The different numbers in a text, in their order; null where there is none or something else is in it.
 * @param {string} text
 * @returns {number[]|null}
 */
export function readStrengths(text) {
  const numbers = text.split(/[\s,;]+/).filter(Boolean).map(Number);
  return numbers.length && numbers.every(Number.isFinite) ? [...new Set(numbers)] : null;
}
