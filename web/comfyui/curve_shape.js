/** A strength over the course of sampling: the same curves as the server's (spectral/curve.py). */

/**
 * @typedef {Object} Curve
 * @property {number} start strength up to `begin`
 * @property {number} end strength from `finish` on
 * @property {number} begin share of the course, 0 to 1
 * @property {number} finish share of the course, 0 to 1
 * @property {string} easing
 */

const SLOPES = {
  linear: (x) => x,
  "ease in": (x) => x * x,
  "ease out": (x) => 1 - (1 - x) ** 2,
  smooth: (x) => x * x * (3 - 2 * x),
};
const FINE = 48; // pieces of a drawn slope

/** Where the strength jumps, and to what. */
function jumps({ start, end, begin, finish, easing }) {
  if (easing === "step") return [[(begin + finish) / 2, end]];
  if (easing === "between" && begin < finish) return [[begin, end], [finish, start]];
  return [];
}

/** Whether both points count: not with a constant. @param {Curve} curve */
export function hasEnd({ easing }) {
  return easing !== "constant";
}

/**
 * The corners of the curve as it is drawn, from 0 to 1.
 * @param {Curve} curve
 * @returns {[number, number][]} [share, strength]
 */
export function outline(curve) {
  const slope = SLOPES[curve.easing];
  if (slope) return sloped(curve, slope);
  const corners = [[0, curve.start]];
  for (const [share, strength] of jumps(curve)) corners.push([share, corners.at(-1)[1]], [share, strength]);
  return [...corners, [1, corners.at(-1)[1]]];
}

function sloped({ start, end, begin, finish }, slope) {
  const way = Array.from({ length: FINE + 1 }, (_, i) => {
    const done = slope(i / FINE);
    return [begin + (i / FINE) * (finish - begin), (1 - done) * start + done * end];
  });
  return [[0, start], ...way, [1, end]];
}

/**
 * Where the two points of the curve are drawn. With `between` the end's strength is the plateau's.
 * @param {Curve} curve
 * @returns {{begin: [number, number], finish: [number, number]}}
 */
export function handles({ start, end, begin, finish, easing }) {
  if (easing === "constant") return { begin: [0, start], finish: [1, start] };
  return { begin: [begin, start], finish: [finish, end] };
}

/**
 * The curve with one of its points moved; the points never pass each other.
 * @param {Curve} curve
 * @param {"begin"|"finish"} which
 * @param {number} share
 * @param {number} strength
 * @returns {Curve}
 */
export function moved(curve, which, share, strength) {
  if (which === "begin") {
    return { ...curve, begin: Math.min(Math.max(0, share), curve.finish), start: strength };
  }
  return { ...curve, finish: Math.max(Math.min(1, share), curve.begin), end: strength };
}

/**
 * The least and the largest strength to show: always 0 to 1, and some room to drag into.
 * @param {Curve} curve
 * @returns {[number, number]}
 */
export function range({ start, end }) {
  const low = Math.min(0, start, end);
  const high = Math.max(1, start, end);
  const room = 0.25 * (high - low);
  return [low < 0 ? low - room : low, high + room];
}
