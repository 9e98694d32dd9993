/** Which steps a chart shows: all of them as they come, or a stretch that was zoomed to. */

const LEAST = 4;

/** A window on the steps [0, last]. Without a zoom it grows with the run. */
export class StepWindow {
  constructor() {
    this.last = 1;
    this.zoomed = null;
  }

  get low() {
    return this.zoomed ? this.zoomed[0] : 0;
  }

  get high() {
    return this.zoomed ? this.zoomed[1] : this.last;
  }

  /** Whether a step is in sight. */
  holds(step) {
    return step >= this.low && step <= this.high;
  }

  /** Show steps from `a` to `b`, in either order; all of them leaves the zoom. */
  show(a, b) {
    const low = Math.max(0, Math.min(a, b));
    const high = Math.min(this.last, Math.max(a, b));
    if (high - low < Math.min(LEAST, this.last)) return;
    this.zoomed = low <= 0 && high >= this.last ? null : [low, high];
  }

  /** Magnify by `factor` around a step that stays in its place. */
  zoom(factor, around) {
    const span = Math.min(this.last, Math.max(LEAST, (this.high - this.low) / factor));
    const share = (around - this.low) / (this.high - this.low);
    const low = Math.min(Math.max(0, around - share * span), this.last - span);
    this.show(low, low + span);
  }

  /** Move by a number of steps, without leaving the run. */
  pan(by) {
    if (!this.zoomed) return;
    const [low, high] = this.zoomed;
    const way = Math.min(Math.max(by, -low), this.last - high);
    this.zoomed = [low + way, high + way];
  }

  reset() {
    this.zoomed = null;
  }
}
