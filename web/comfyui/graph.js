/** The loader node in the open workflow: put there from the panel, and its list of adapters kept up to date. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const LOADER = "SpectralAdapterLoader";
const WIDGET = "adapter";
const STRENGTHS = ["strength_model", "strength_clip"];
// Of the graph's units: around a node, whose title stands above its place; between the places that are tried.
const MARGIN = 20;
const STEP = 40;
const WIDTH = 320; // room for a file's name

function* nodesOf(graph) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    yield node;
    if (node.subgraph) yield* nodesOf(node.subgraph);
  }
}

/** The loader's choices, from its definition: older ComfyUI puts them in the place of the type. */
function choicesOf(definition) {
  const [type, options] = definition.input.required[WIDGET];
  return Array.isArray(type) ? type : options.options;
}

/**
 * Brings the loader's list of adapters up to date, in new nodes and in those of the workflow. Key R would ask for the
 * definitions of all nodes, and say so.
 * @returns {Promise<string[]>} the adapters
 */
export async function refreshAdapters() {
  const response = await api.fetchApi(`/object_info/${LOADER}`, { cache: "no-store" });
  const definition = (await response.json())[LOADER];
  await app.registerNodeDef(LOADER, definition);
  const choices = choicesOf(definition);
  for (const node of nodesOf(app.rootGraph ?? app.graph)) {
    if (node.type !== LOADER) continue;
    const widget = node.widgets?.find((each) => each.name === WIDGET);
    if (widget) widget.options.values = choices;
  }
  return choices;
}

/** The part of the canvas that no side panel covers, in the graph's coordinates. */
function visible(canvas) {
  const whole = canvas.canvas.getBoundingClientRect();
  const panel = document.querySelector("spectral-panel")?.getBoundingClientRect();
  let { left, right } = whole;
  if (panel && panel.left - left < right - panel.right) left = Math.max(left, panel.right);
  else if (panel) right = Math.min(right, panel.left);
  const { offset, scale } = canvas.ds;
  const x = (pixels) => (pixels - whole.left) / scale - offset[0];
  return { left: x(left), right: x(right), top: -offset[1], bottom: whole.height / scale - offset[1] };
}

/** Where a node of that size goes: the free place nearest to the middle of what is seen, else the middle. */
function place(canvas, [width, height]) {
  const view = visible(canvas);
  const middle = [(view.left + view.right - width) / 2, (view.top + view.bottom - height) / 2];
  const far = ([x, y]) => Math.hypot(x - middle[0], y - middle[1]);
  const isFree = ([x, y]) =>
    canvas.graph.nodes.every(({ pos, size }) => {
      const beside = pos[0] > x + width + MARGIN || pos[0] + size[0] + MARGIN < x;
      return beside || pos[1] > y + height + 2 * MARGIN || pos[1] + size[1] + 2 * MARGIN < y;
    });
  const spots = [];
  for (let x = view.left + MARGIN; x + width + MARGIN <= view.right; x += STEP) {
    for (let y = view.top + 4 * MARGIN; y + height + MARGIN <= view.bottom; y += STEP) spots.push([x, y]);
  }
  return spots.sort((a, b) => far(a) - far(b)).find(isFree) ?? middle;
}

function setWidget(node, name, value) {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
}

/**
 * Adds a loader with the adapter chosen: connected to nothing, selected, in view.
 * @param {string} adapter its name in the loader's list
 * @param {number} [strength] of the model and the text encoder
 */
export async function addLoader(adapter, strength = 1) {
  const known = await refreshAdapters();
  if (!known.includes(adapter)) throw new Error(`The adapter ${adapter} is not in the loader's list.`);
  const canvas = app.canvas;
  const node = window.LiteGraph.createNode(LOADER);
  node.setSize([Math.max(WIDTH, node.size[0]), node.size[1]]);
  node.pos = place(canvas, node.size);
  canvas.graph.add(node);
  setWidget(node, WIDGET, adapter);
  for (const name of STRENGTHS) setWidget(node, name, strength);
  canvas.deselectAll();
  canvas.select(node);
  canvas.setDirty(true, true);
}
