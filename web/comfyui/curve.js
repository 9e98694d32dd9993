/** The curve on the schedule node. The node's own numbers hold it: they stay, for links, the keyboard and the API. */

import { app } from "../../../scripts/app.js";
import { CurveView } from "./curve_view.js";
import { forwardToCanvas, takePlace } from "./node_widget.js";
import { strings } from "./strings.js";
import { addStyle } from "./style.js";

const SCHEDULE = "SpectralAdapterSchedule";
const NAMES = {
  start: "strength_start", end: "strength_end", begin: "start_percent", finish: "end_percent", easing: "easing",
};
const HEIGHT = 150;
const WIDTH = 300;

/** The node's widgets by what they are of the curve; null where a version of the node lacks one. */
function widgetsOf(node) {
  const found = Object.entries(NAMES).map(([key, name]) => [key, node.widgets?.find((each) => each.name === name)]);
  return found.every(([, widget]) => widget) ? Object.fromEntries(found) : null;
}

function read(widgets) {
  return Object.fromEntries(Object.entries(widgets).map(([key, widget]) => [key, widget.value]));
}

function write(node, widgets, curve) {
  for (const [key, widget] of Object.entries(widgets)) {
    if (widget.value === curve[key]) continue;
    widget.value = curve[key];
    widget.callback?.(curve[key], app.canvas, node);
  }
  node.setDirtyCanvas?.(true, true);
}

/** Calls `changed` whenever one of the widgets has another value, however that came about. */
function watch(node, widgets, changed) {
  for (const widget of Object.values(widgets)) {
    const callback = widget.callback;
    widget.callback = function (...rest) {
      const result = callback?.apply(this, rest);
      changed();
      return result;
    };
  }
  const configured = node.onConfigure;
  node.onConfigure = function (...rest) {
    configured?.apply(this, rest);
    changed();
  };
}

/**
 * Puts the curve above the numbers of a new schedule node.
 * @param {LGraphNode} node
 */
export function addCurve(node) {
  if (node.comfyClass !== SCHEDULE) return;
  const widgets = widgetsOf(node);
  if (!widgets) return;
  addStyle("curve.css");
  const root = document.createElement("div");
  root.className = "spectral-widget";
  const widget = node.addDOMWidget("curve", "SPECTRAL_ADAPTER_CURVE", root, {
    serialize: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT, hideOnZoom: false,
  });
  widget.serialize = false; // else the values of a saved workflow would be one too many
  let view = null;
  watch(node, widgets, () => view?.draw());
  forwardToCanvas(root);
  const leave = takePlace(node, "curve", root);
  strings().then((t) => {
    view = new CurveView(t, {
      get: () => read(widgets),
      set: (curve) => write(node, widgets, curve),
      begun: () => app.canvas.emitBeforeChange(),
      done: () => app.canvas.emitAfterChange(), // what undo goes back to
    });
    root.append(view.root);
    view.draw();
  });
  const onRemove = widget.onRemove?.bind(widget);
  widget.onRemove = () => {
    onRemove?.();
    leave();
    view?.destroy();
  };
  node.setSize([Math.max(WIDTH, node.size[0]), Math.max(node.computeSize()[1], node.size[1])]);
}
