/** A run's course as the page keeps it: columns that grow, and what marks them. */

const COLUMNS = ["steps", "loss", "lr", "memory", "rate"];

/** One run's curve, fed by the answers of the curve route; entries [0, count) of each column are valid. */
export class Curve {
  constructor() {
    this.#clear();
  }

  #clear() {
    this.generation = null;
    this.next = 0;
    this.count = 0;
    for (const name of COLUMNS) this[name] = new Float64Array(1024);
    this.validations = [];
    this.checkpoints = [];
    this.best = null;
    this.mean = new Float64Array(0);
  }

  /** What to ask the curve route for. */
  get query() {
    const known = this.generation === null ? "" : `&generation=${this.generation}`;
    return `after=${this.next}${known}`;
  }

  /**
   * Take in an answer of the curve route: more points, or all of them where it says so.
   * @param {object} part {generation, next, reset, steps, loss, lr, memory, rate, validations, checkpoints}
   * @returns {boolean} whether anything changed
   */
  apply(part) {
    const fresh = part.reset || (this.generation !== null && part.generation !== this.generation);
    if (fresh) this.#clear();
    this.generation = part.generation;
    this.next = part.next;
    this.#append(part);
    const marked = this.#mark(part);
    return fresh || marked || part.steps.length > 0;
  }

  #append(part) {
    const added = part.steps.length;
    if (!added) return;
    this.#reserve(this.count + added);
    for (const name of COLUMNS) {
      const from = part[name] ?? [];
      const to = this[name];
      for (let i = 0; i < added; i += 1) to[this.count + i] = from[i] ?? NaN;
    }
    this.count += added;
    this.mean = runningMean(this.loss.subarray(0, this.count));
  }

  #reserve(wanted) {
    if (wanted <= this.steps.length) return;
    const room = Math.max(wanted, this.steps.length * 2);
    for (const name of COLUMNS) {
      const larger = new Float64Array(room);
      larger.set(this[name].subarray(0, this.count));
      this[name] = larger;
    }
  }

  #mark(part) {
    const validations = (part.validations ?? this.validations).filter(([, loss]) => loss !== null);
    const checkpoints = part.checkpoints ?? this.checkpoints;
    const changed = validations.length !== this.validations.length || checkpoints.length !== this.checkpoints.length;
    this.validations = validations;
    this.checkpoints = checkpoints;
    this.best = lowest(validations);
    return changed;
  }

  /** The last step anything is known of. */
  get last() {
    const ends = [this.count ? this.steps[this.count - 1] : 0];
    if (this.validations.length) ends.push(this.validations.at(-1)[0]);
    if (this.checkpoints.length) ends.push(this.checkpoints.at(-1).step);
    return Math.max(...ends);
  }

  /** [i, j) of the points from step `low` to step `high`, one more to either side for the lines' sake. */
  range(low, high) {
    return [Math.max(0, this.#before(low) - 1), Math.min(this.count, this.#before(high) + 2)];
  }

  /** The index of the point whose step is nearest; -1 where there are none. */
  nearest(step) {
    if (!this.count) return -1;
    const right = Math.min(this.#before(step), this.count - 1);
    const left = Math.max(0, right - 1);
    return step - this.steps[left] < this.steps[right] - step ? left : right;
  }

  /** How many points lie before a step. */
  #before(step) {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The best validation of what was trained: step 0 is the base model. */
function lowest(validations) {
  let best = null;
  for (const [step, loss] of validations) if (step > 0 && (best === null || loss < best.loss)) best = { step, loss };
  return best;
}

/**
 * Mean with weights that fall off exponentially to both sides, as in the run's loss.png.
 *
 * The weights fall to 1/e over `share` of the values, in short runs over six. NaN stays NaN and counts for nothing.
 * @param {Float64Array} losses
 * @param {number} [share]
 */
export function runningMean(losses, share = 0.02) {
  const n = losses.length;
  const decay = 1 - 1 / Math.max(1, share * n, Math.min(6, n / 5));
  const made = new Float64Array(n);
  const weights = new Float64Array(n);
  let sum = 0;
  let weight = 0;
  for (let i = 0; i < n; i += 1) {
    const good = !Number.isNaN(losses[i]);
    made[i] = sum = decay * sum + (good ? losses[i] : 0);
    weights[i] = weight = decay * weight + (good ? 1 : 0);
  }
  sum = weight = 0;
  for (let i = n - 1; i >= 0; i -= 1) {
    const good = !Number.isNaN(losses[i]);
    made[i] = good ? (made[i] + decay * sum) / (weights[i] + decay * weight) : NaN;
    sum = decay * sum + (good ? losses[i] : 0);
    weight = decay * weight + (good ? 1 : 0);
  }
  return made;
}
