/** Who moves what: a map of layers and columns in the adapters' colours; what two of them use is striped. */

import { COLOUR_NAMES, colourName } from "./swatches.js";

const STRIPE = 3; // pixels, of each colour
const FAINTEST = 0.12;

/**
 * Each cell in the colour of the adapter that moves most there, stronger where it is more of that adapter's change.
 * @returns {import("./heat_map.js").Painter}
 */
export function conflictPainter() {
  let tops = [];
  const stripes = new Map();
  const prepare = (rows) => {
    const count = rows[0]?.values[0]?.length ?? 0;
    const top = (i) => Math.max(1e-30, ...rows.flatMap(({ values }) => values.map((cell) => cell[i])));
    tops = Array.from({ length: count }, (_, i) => top(i));
    stripes.clear();
  };
  const draw = (g, colours, { layer, index, x, y, width, height }) => {
    const order = strongest(layer.values[index], tops);
    const [first, second] = order;
    // By the root, or one strong column would hide all others.
    g.globalAlpha = Math.max(FAINTEST, Math.sqrt(first.part));
    if (layer.shared[index] > 0 && second) {
      g.globalAlpha = Math.max(0.35, Math.sqrt(first.part));
      g.fillStyle = striped(g, stripes, colours, first.place, second.place);
    } else g.fillStyle = colours[colourName(first.place)];
    g.fillRect(x, y, width, height);
  };
  return { colours: [...COLOUR_NAMES, "clash"], prepare, draw };
}

/** The adapters that move something in a cell, by how much it is of their strongest cell. */
function strongest(values, tops) {
  const found = values.map((value, place) => ({ place, part: value / tops[place] })).filter(({ part }) => part > 0);
  return found.sort((a, b) => b.part - a.part);
}

/** Diagonal stripes of two adapters' colours with a line of the warning colour between. */
function striped(g, known, colours, a, b) {
  const pair = [a, b].sort((x, y) => x - y);
  const key = pair.map((place) => colours[colourName(place)]).join();
  if (!known.has(key)) known.set(key, g.createPattern(tile(colours, pair), "repeat"));
  return known.get(key);
}

function tile(colours, [a, b]) {
  const side = 4 * STRIPE;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const g = canvas.getContext("2d");
  g.fillStyle = colours[colourName(a)];
  g.fillRect(0, 0, side, side);
  diagonals(g, colours[colourName(b)], side / 2, side / 2, side);
  diagonals(g, colours.clash, side / 4, 2, side);
  return canvas;
}

/** Lines x + y = at, at + side, ..., so that the tile can be repeated without a seam. */
function diagonals(g, colour, at, width, side) {
  g.strokeStyle = colour;
  g.lineWidth = width * Math.SQRT1_2;
  for (let sum = at - side; sum <= at + 2 * side; sum += side) {
    g.beginPath();
    g.moveTo(sum + side, -side);
    g.lineTo(sum - 2 * side, 2 * side);
    g.stroke();
  }
}
