/** The stack's rows as a widget: on the classic canvas and in Nodes 2.0, kept in the workflow, undone with it. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { openInfo } from "./file_info.js";
import { forwardToCanvas, settle, step, takePlace } from "./node_widget.js";
import { openPicker } from "./picker.js";
import { readRows, writeRows } from "./rows_data.js";
import { RowsView } from "./rows_view.js";
import { strings } from "./strings.js";
import { addStyle } from "./style.js";

const STACK = "SpectralAdapterStack";
const INPUT = "rows";
const HEAD = 52; // pixels: the line above the rows with the widget's margins, a row, and the line that stands for none
const ROW = 30;
const EMPTY = 26;
const WIDTH = 380;

/** The files there are, as the node's definition names them. */
let known = [];
const views = new Set();

function learn(definition) {
  const names = (definition?.input?.required?.[INPUT] ?? [])[1]?.adapters;
  if (!Array.isArray(names)) return;
  known = names;
  for (const view of views) view.draw();
}

/** Takes the list of files from the definitions that key R has brought. @param {Object<string, *>} definitions */
export function refreshRows(definitions) {
  learn(definitions[STACK]);
}

async function lookAgain() {
  const response = await api.fetchApi(`/object_info/${STACK}`, { cache: "no-store" });
  learn((await response.json())[STACK]);
}

async function choose(t, anchor, chosen, pick) {
  const picker = openPicker(anchor, { t, names: known, chosen, pick });
  await lookAgain(); // a training may have ended meanwhile
  picker.offer(known);
}

/**
 * The widget of the input `rows`. Its value is text: a list of rows in JSON.
 * @param {LGraphNode} node
 * @param {string} name
 * @param {[string, Object]} input
 */
export function rowsWidget(node, name, [, options]) {
  addStyle();
  known = options?.adapters ?? known;
  const root = document.createElement("div");
  root.className = "spectral-widget";
  let value = options?.default ?? "[]";
  let view = null;
  const count = () => readRows(value)?.length ?? 0;
  const height = () => HEAD + (count() * ROW || EMPTY);
  const widget = node.addDOMWidget(name, "SPECTRAL_ADAPTER_ROWS", root, {
    getValue: () => value,
    setValue: (next) => {
      const text = typeof next === "string" ? next : JSON.stringify(next ?? []);
      if (text === value) return; // Nodes 2.0 hands back what it was given; drawn anew, the focus would be lost
      value = text;
      view?.set(readRows(value));
      settle(node, height());
    },
    getMinHeight: height,
    getMaxHeight: height,
  });
  const changed = () => {
    step();
    value = writeRows(view.rows);
    widget.callback?.(value);
    settle(node, height());
  };
  forwardToCanvas(root);
  const leave = takePlace(node, name, root);
  strings().then((t) => {
    view = new RowsView(t, {
      changed,
      choose: (anchor, chosen, pick) => choose(t, anchor, chosen, pick),
      tell: (anchor, row, done) => openInfo(anchor, { t, row, changed: done }),
      isThere: (adapter) => known.includes(adapter),
    });
    views.add(view);
    root.append(view.root);
    view.set(readRows(value));
  });
  const onRemove = widget.onRemove?.bind(widget);
  widget.onRemove = () => {
    onRemove?.();
    leave();
    views.delete(view);
    view?.destroy();
  };
  return { widget, minWidth: WIDTH, minHeight: HEAD + EMPTY };
}
