/** Small line drawings, 16 x 16, in the colour of the text around them. */

import { svg } from "./dom.js";

const PATHS = {
  plus: "M8 3v10M3 8h10",
  close: "M4 4l8 8M12 4l-8 8",
  check: "M3 8.5l3.2 3.2L13 4.8",
  warn: "M8 2.2L14.4 13.4H1.6zM8 6.4v3.2M8 11.4v.4",
  error: "M8 1.8a6.2 6.2 0 100 12.4A6.2 6.2 0 008 1.8zM8 4.8v4M8 10.8v.4",
  info: "M8 1.8a6.2 6.2 0 100 12.4A6.2 6.2 0 008 1.8zM8 7.2v4M8 4.8v.4",
  help: "M8 1.8a6.2 6.2 0 100 12.4A6.2 6.2 0 008 1.8zM6.2 6.3a1.8 1.8 0 113 1.4c-.8.6-1.2.9-1.2 1.7M8 11.3v.3",
  play: "M5 3.2v9.6L12.6 8z",
  stop: "M4 4h8v8H4z",
  refresh: "M13 8a5 5 0 11-1.6-3.7M13 2.4v3h-3",
  reset: "M3 8a5 5 0 101.6-3.7M3 2.4v3h3",
  picture: "M2.2 3h11.6v10H2.2zM2.2 11l3.4-3.6 2.6 2.6 2-1.8 3.6 3M10.6 6h.1",
  upload: "M8 10.6V2.8M4.8 5.8L8 2.6l3.2 3.2M2.6 10.6v2.6h10.8v-2.6",
  download: "M8 2.6v7.8M4.8 7.4L8 10.6l3.2-3.2M2.6 10.6v2.6h10.8v-2.6",
  trash: "M2.8 4.2h10.4M6.2 4.2V2.6h3.6v1.6M4.2 4.2l.6 9.2h6.4l.6-9.2M6.8 6.8v4M9.2 6.8v4",
  folder: "M1.8 12.8V3.2h4.4l1.4 1.8h6.6v7.8z",
  chart: "M2.2 2.4v11.2h11.6M4.6 10.4l2.6-3.6 2.2 2 3.8-5",
  chevron: "M6 3.6L10.4 8 6 12.4",
  back: "M10 3.6L5.6 8 10 12.4",
  up: "M8 12.8V3.4M4.4 7L8 3.4 11.6 7",
  down: "M8 3.2v9.4M4.4 9L8 12.6 11.6 9",
  search: "M7 2.6a4.4 4.4 0 100 8.8 4.4 4.4 0 000-8.8zM10.2 10.2l3.4 3.4",
  save: "M2.8 2.8h8.4l2 2v8.4H2.8zM5 2.8v3.6h5V2.8M5 13.2V9.4h6v3.8",
  camera: "M1.8 4.8h3L6 3.2h4l1.2 1.6h3v8H1.8zM8 6.4a2.3 2.3 0 100 4.6 2.3 2.3 0 000-4.6z",
  copy: "M5.4 5.4h8v8h-8zM10.6 5.2V2.6h-8v8h2.6",
  open: "M9.4 2.6h4v4M13.2 2.8L7.6 8.4M11.6 9.4v4H2.6v-9h4",
  grid: "M2.4 2.4h4.4v4.4H2.4zM9.2 2.4h4.4v4.4H9.2zM2.4 9.2h4.4v4.4H2.4zM9.2 9.2h4.4v4.4H9.2z",
  compare: "M8 1.8v12.4M2.4 4h3.2v8H2.4zM10.4 4h3.2v8h-3.2z",
  spectrum: "M2.2 13.4V3M5 13.4V6.4M7.8 13.4V8.6M10.6 13.4v-3.4M13.4 13.4v-1.6",
  mix: "M5.8 3.6a4.4 4.4 0 100 8.8 4.4 4.4 0 000-8.8zM10.2 3.6a4.4 4.4 0 110 8.8 4.4 4.4 0 010-8.8z",
  clock: "M8 1.8a6.2 6.2 0 100 12.4A6.2 6.2 0 008 1.8zM8 4.6V8l2.4 1.6",
  memory: "M3 4.2h10v7.6H3zM5.4 4.2V2.4M8 4.2V2.4M10.6 4.2V2.4M5.4 13.6v-1.8M8 13.6v-1.8M10.6 13.6v-1.8",
  file: "M3.6 1.8h5.6l3.2 3.2v9.2H3.6zM9 2v3.2h3.2",
  star: "M8 1.9l1.9 3.9 4.2.6-3 3 .7 4.2L8 11.6l-3.8 2 .7-4.2-3-3 4.2-.6z",
  brush: "M13.6 2.4L7 9M7 9a2.6 2.6 0 00-2.8.4c-.9.8-.6 2.4-2 3.2 2 1 4.6.6 5.6-.7A2.6 2.6 0 007 9zM5.8 7.8L8.2 10",
  feather: "M2.4 13.6L9 7M13.4 2.6c-3.6-.4-8 1.4-8.6 7.6 6.4 1 8.8-3.4 8.6-7.6zM5 10.2h4",
  dots: "M3.4 8h.1M8 8h.1M12.6 8h.1",
  drag: "M6 3.6h.1M6 8h.1M6 12.4h.1M10 3.6h.1M10 8h.1M10 12.4h.1",
};

/**
 * @param {keyof typeof PATHS} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const shape = svg("path", { d: PATHS[name], "vector-effect": "non-scaling-stroke" });
  return svg("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" }, shape);
}
