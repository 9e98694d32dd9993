/** One colour for each adapter of a mix, the same wherever it is shown. */

import { h } from "./dom.js";

const COLOURS = 6;

/** The name of the `--chart-...` colour of the adapter at a place; they repeat after the sixth. */
export function colourName(place) {
  return `mix-${(place % COLOURS) + 1}`;
}

/** All of these names. */
export const COLOUR_NAMES = Array.from({ length: COLOURS }, (_, place) => colourName(place));

/** A small square in an adapter's colour. @param {number} place */
export function swatch(place) {
  return h("i", { class: "swatch", "aria-hidden": "true", style: { "--swatch": `var(--chart-${colourName(place)})` } });
}

/** An adapter's name in its colour. */
export function named(place, name) {
  return h("span", { class: "legend-name" }, swatch(place), h("span", null, name));
}
