/** The picture of a curve, and its two points to take hold of. It knows nothing of ComfyUI. */

import { clear, h, svg } from "../panel/dom.js";
import { handles, hasEnd, moved, outline, range } from "./curve_shape.js";

const LEFT = 34; // pixels round the drawing, where its numbers stand
const RIGHT = 14;
const TOP = 8;
const BOTTOM = 24;
// What a drag or a key moves by; with Shift the finest that the numbers on the node can hold.
const COARSE = { share: 0.01, strength: 0.05 };
const FINE = { share: 0.001, strength: 0.01 };
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function rounded(value, grain) {
  return Number((Math.round(value / grain) * grain).toFixed(4));
}

export class CurveView {
  /**
   * @param {Function} t
   * @param {{get: () => import("./curve_shape.js").Curve, set: (curve: import("./curve_shape.js").Curve) => void,
   *   begun: () => void, done: () => void}} curve reads it, changes it, and is told before and after a change
   */
  constructor(t, curve) {
    this.t = t;
    this.curve = curve;
    this.held = null;
    this.picture = svg("svg", { class: "spectral-curve-picture", role: "group", "aria-label": t("curve.title") });
    this.said = h("div", { class: "spectral-curve-said", "aria-hidden": "true" });
    this.root = h("div", { class: "spectral-curve", "data-test": "curve" }, this.picture, this.said);
    this.points = { begin: this.#point("begin"), finish: this.#point("finish") };
    // Drawn anew each time, beside the points: taking one out while it is held would let go of the pointer.
    this.scene = svg("g");
    this.picture.append(this.scene, this.points.begin, this.points.finish);
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.root);
  }

  destroy() {
    this.watcher.disconnect();
  }

  #point(which) {
    return svg("circle", {
      class: "spectral-curve-point", r: 6, tabindex: 0, role: "slider", "data-test": `curve-${which}`,
      "aria-label": this.t(`curve.${which}`),
      onPointerdown: (event) => this.#take(event, which),
      onPointermove: (event) => this.#drag(event),
      onPointerup: (event) => this.#drop(event),
      onPointercancel: (event) => this.#drop(event),
      onKeydown: (event) => this.#step(event, which),
    });
  }

  #take(event, which) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.currentTarget.setPointerCapture(event.pointerId);
    event.currentTarget.focus();
    this.held = { which, range: range(this.curve.get()) };
    this.curve.begun();
    this.draw();
  }

  #drag(event) {
    if (!this.held) return;
    const box = this.picture.getBoundingClientRect();
    const zoom = box.width / this.picture.clientWidth;
    const x = (event.clientX - box.left) / zoom;
    const y = (event.clientY - box.top) / zoom;
    const grain = event.shiftKey ? FINE : COARSE;
    const { share, strength } = this.#scale();
    const at = [share.back(x), Math.min(Math.max(strength.back(y), this.held.range[0]), this.held.range[1])];
    this.#move(this.held.which, rounded(at[0], grain.share), rounded(at[1], grain.strength));
  }

  #drop(event) {
    if (!this.held) return;
    event.currentTarget.releasePointerCapture(event.pointerId);
    this.held = null;
    this.draw();
    this.curve.done();
  }

  #step(event, which) {
    const way = KEYS[event.key];
    if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const grain = event.shiftKey ? FINE : COARSE;
    const [share, strength] = handles(this.curve.get())[which];
    const to = [share + way[0] * grain.share, strength + way[1] * grain.strength];
    this.curve.begun();
    this.#move(which, rounded(to[0], FINE.share), rounded(to[1], FINE.strength));
    this.curve.done();
  }

  #move(which, share, strength) {
    const curve = this.curve.get();
    this.curve.set(moved(curve, hasEnd(curve) ? which : "begin", hasEnd(curve) ? share : curve.begin, strength));
    this.draw();
  }

  /** From shares and strengths to pixels, and back. */
  #scale() {
    const [low, high] = this.held?.range ?? range(this.curve.get());
    const right = Math.max(LEFT + 1, this.picture.clientWidth - RIGHT);
    const floor = Math.max(TOP + 1, this.picture.clientHeight - BOTTOM);
    return {
      low, high, right, floor,
      share: { to: (x) => LEFT + x * (right - LEFT), back: (x) => (x - LEFT) / (right - LEFT) },
      strength: {
        to: (y) => floor - ((y - low) / (high - low)) * (floor - TOP),
        back: (y) => low + ((floor - y) / (floor - TOP)) * (high - low),
      },
    };
  }

  draw() {
    if (!this.picture.clientWidth) return;
    const curve = this.curve.get();
    const scale = this.#scale();
    const line = outline(curve).map(([x, y]) => `${scale.share.to(x).toFixed(1)},${scale.strength.to(y).toFixed(1)}`);
    const ground = scale.strength.to(0).toFixed(1);
    const area = [`${LEFT},${ground}`, ...line, `${scale.right},${ground}`];
    const at = handles(curve);
    for (const [which, point] of Object.entries(this.points)) this.#place(point, at[which], scale);
    // In a constant curve the second point would say the same again.
    this.points.finish.setAttribute("display", hasEnd(curve) ? "inline" : "none");
    clear(
      this.scene,
      this.#grid(scale),
      svg("polygon", { class: "spectral-curve-area", points: area.join(" ") }),
      svg("polyline", { class: "spectral-curve-line", points: line.join(" ") }),
    );
    this.#say(at);
  }

  #grid({ low, high, right, floor, share, strength }) {
    const step = high - low > 4 ? 1 : 0.5;
    const marks = [];
    for (let y = Math.ceil(low / step) * step; y <= high; y += step) {
      const at = strength.to(y).toFixed(1);
      const kind = y === 0 || y === 1 ? "spectral-curve-grid strong" : "spectral-curve-grid";
      marks.push(svg("line", { class: kind, x1: LEFT, x2: right, y1: at, y2: at }));
      marks.push(svg("text", { x: LEFT - 11, y: at, "text-anchor": "end", "dominant-baseline": "central" }, `${y}`));
    }
    for (const x of [0, 0.25, 0.5, 0.75, 1]) {
      const at = share.to(x).toFixed(1);
      marks.push(svg("line", { class: "spectral-curve-grid", x1: at, x2: at, y1: TOP, y2: floor }));
            marks.push(svg("text", { x: at, y: floor + 18, "text-anchor": "middle" }, `${x * 100} %`));
    }
    return marks;
  }

  #place(point, [share, strength], scale) {
    point.setAttribute("cx", scale.share.to(share).toFixed(1));
    point.setAttribute("cy", scale.strength.to(strength).toFixed(1));
    point.setAttribute("aria-valuenow", strength);
    point.setAttribute("aria-valuetext", this.#words(share, strength));
  }

  #words(share, strength) {
    return this.t("curve.point", { percent: rounded(share * 100, 0.1), strength: rounded(strength, 0.001) });
  }

  #say(at) {
    this.said.hidden = !this.held;
    if (this.held) this.said.textContent = this.#words(...at[this.held.which]);
  }
}
