/** Loader nodes in the open workflow: put there from the panel, and their lists of files kept up to date. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const ADAPTERS = { type: "SpectralAdapterLoader", widget: "adapter" };
// ComfyUI's own, for files that the panel lists as loras/NAME.
const LORAS = { type: "LoraLoader", widget: "lora_name" };
const LORA_FOLDER = "loras/";
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

/** A loader's choices, from its definition: older ComfyUI puts them in the place of the type. */
function choicesOf(definition, name) {
  const [type, options] = definition.input.required[name];
  return Array.isArray(type) ? type : options.options;
}

/**
 * Brings a loader's list of files up to date, in new nodes and in those of the workflow. Key R would ask for the
 * definitions of all nodes, and say so.
 */
async function refresh({ type, widget: name }) {
  const response = await api.fetchApi(`/object_info/${type}`, { cache: "no-store" });
  const definition = (await response.json())[type];
  await app.registerNodeDef(type, definition);
  const choices = choicesOf(definition, name);
  for (const node of nodesOf(app.rootGraph ?? app.graph)) {
    if (node.type !== type) continue;
    const widget = node.widgets?.find((each) => each.name === name);
    if (widget) widget.options.values = choices;
  }
  return choices;
}

/**
 * Brings the list of adapters up to date.
 * @returns {Promise<string[]>} the adapters
 */
export function refreshAdapters() {
  return refresh(ADAPTERS);
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

/** The loader that has a file in its list, and the name there. An adapter may lie in a folder named loras, too. */
async function loaderOf(file) {
  const names = [[ADAPTERS, file]];
  if (file.startsWith(LORA_FOLDER)) names.push([LORAS, file.slice(LORA_FOLDER.length)]);
  for (const [loader, name] of names) if ((await refresh(loader)).includes(name)) return { loader, name };
  throw new Error(`The file ${file} is not in the loader's list.`);
}

/**
 * Adds a loader with the file chosen: connected to nothing, selected, in view.
 * @param {string} adapter its name in the loader's list, or loras/NAME
 * @param {number} [strength] of the model and the text encoder
 */
export async function addLoader(adapter, strength = 1) {
  const { loader, name } = await loaderOf(adapter);
  const canvas = app.canvas;
  const node = window.LiteGraph.createNode(loader.type);
  node.setSize([Math.max(WIDTH, node.size[0]), node.size[1]]);
  node.pos = place(canvas, node.size);
  canvas.graph.add(node);
  setWidget(node, loader.widget, name);
  for (const each of STRENGTHS) setWidget(node, each, strength);
  canvas.deselectAll();
  canvas.select(node);
  canvas.setDirty(true, true);
}
