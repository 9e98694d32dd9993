/** Who moves what: a map of layers and columns in the adapters' colours; what two of them use is striped. */

import { COLOUR_NAMES, colourName } from "./swatches.js";

const SIDE = 12; // pixels of a tile of stripes
// The least strength of a cell, and of one that is used twice: a small part is to be seen too.
const FAINTEST = 0.15;
const FAINTEST_SHARED = 0.5;

/**
 * Each cell in the colour of the adapter that moves most there, stronger where it is more of that adapter's change.
 * @returns {import("./heat_map.js").Painter}
 */
export function conflictPainter() {
  let tops = [];
  const tiles = new Map();
  const prepare = (rows) => {
    const count = rows[0]?.values[0]?.length ?? 0;
    const largest = (i) => rows.reduce((top, { values }) => Math.max(top, ...values.map((cell) => cell[i])), 1e-30);
    tops = Array.from({ length: count }, (_, i) => largest(i));
    tiles.clear();
  };
  const draw = (g, colours, { layer, index, x, y, width, height }) => {
    const order = strongest(layer.values[index], tops);
    const [first, second] = order;
    // By the root, or one strong column would hide all others.
    const shared = layer.shared[index] > 0 && second;
    const own = colours[colourName(first.place)];
    g.globalAlpha = Math.max(shared ? FAINTEST_SHARED : FAINTEST, Math.sqrt(first.part));
    g.fillStyle = shared ? stripesOf(g, tiles, own, colours[colourName(second.place)]) : own;
    g.fillRect(x, y, width, height);
    if (!shared) return;
    g.globalAlpha = 1;
    g.fillStyle = warningLines(g, tiles, colours.clash);
    g.fillRect(x, y, width, height);
  };
  return { colours: [...COLOUR_NAMES, "clash"], prepare, draw };
}

/** The adapters that move something in a cell, by how much it is of their strongest cell. */
function strongest(values, tops) {
  const found = values.map((value, place) => ({ place, part: value / tops[place] })).filter(({ part }) => part > 0);
  return found.sort((a, b) => b.part - a.part);
}

/** The tile of a pattern, made once for its colours: stripes of two adapters' colours, or the warning's lines alone. */
function pattern(g, known, key, paint) {
  if (!known.has(key)) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    paint(canvas.getContext("2d"));
    known.set(key, g.createPattern(canvas, "repeat"));
  }
  return known.get(key);
}

function stripesOf(g, known, one, other) {
  return pattern(g, known, `${one} ${other}`, (tile) => {
    tile.fillStyle = one;
    tile.fillRect(0, 0, SIDE, SIDE);
    diagonals(tile, other, SIDE / 2, SIDE / 2);
  });
}

function warningLines(g, known, colour) {
  return pattern(g, known, colour, (tile) => diagonals(tile, colour, SIDE / 4, 2.2));
}

/** Lines x + y = at, at + SIDE, ..., so that the tile can be repeated without a seam. */
function diagonals(g, colour, at, width) {
  g.strokeStyle = colour;
  g.lineWidth = width * Math.SQRT1_2;
  for (let sum = at - SIDE; sum <= at + 2 * SIDE; sum += SIDE) {
    g.beginPath();
    g.moveTo(sum + SIDE, -SIDE);
    g.lineTo(sum - 2 * SIDE, 2 * SIDE);
    g.stroke();
  }
}
