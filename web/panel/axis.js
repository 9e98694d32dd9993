/** Ranges of values, their places and round tick values; the rules are those of the run's loss.png. */

// From this ratio of the largest to the smallest shown loss on, equal ratios get equal heights.
const LOG_FROM = 12;
// More values than these change the outliers' bounds by nothing that can be seen.
const ENOUGH = 4000;

/** A range of values; `log` spaces them by their ratio. wanted: about how many tick values. */
export class Axis {
  constructor(low, high, { log = false, wanted = 5 } = {}) {
    this.low = low;
    this.high = high;
    this.log = log;
    this.wanted = wanted;
    this.from = log ? Math.log(low) : low;
    this.span = (log ? Math.log(high) : high) - this.from;
  }

  /** Where a value lies between the ends, 0 to 1 inside. */
  place(value) {
    return ((this.log ? Math.log(Math.max(value, this.low * 1e-3)) : value) - this.from) / this.span;
  }

  /** The value at a place. */
  value(place) {
    const found = this.from + place * this.span;
    return this.log ? Math.exp(found) : found;
  }

  /** Round values within the range, few enough to be read. */
  ticks() {
    return this.log ? logTicks(this.low, this.high, this.wanted) : roundTicks(this.low, this.high, this.wanted);
  }
}

function roundTicks(low, high, wanted) {
  const step = roundStep((high - low) / wanted);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step || 0);
  return found;
}

function logTicks(low, high, wanted) {
  let found = [];
  for (const digits of [[1, 2, 5], [1, 3], [1]]) {
    found = [];
    for (let ten = Math.floor(Math.log10(low)); ten <= Math.log10(high) + 1; ten += 1) {
      for (const digit of digits) found.push(digit * 10 ** ten);
    }
    found = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    if (found.length <= wanted + 3) break;
  }
  // A range within one decade may hold no such value.
  return found.length > 1 ? found : roundTicks(low, high, wanted);
}

/** The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`. */
export function roundStep(least) {
  const ten = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 2.5, 5, 10].find((digit) => digit * ten >= least * (1 - 1e-9)) * ten;
}

/**
 * The axis of losses: it shows the whole mean and every validation; outliers of the raw loss do not stretch it.
 * @param {number[]} shown values that must be seen
 * @param {number[]} loose values of which the outermost hundredths may be cut
 * @param {"auto"|"log"|"linear"} scale
 */
export function lossAxis(shown, loose, scale, wanted) {
  const values = shown.concat(inner(loose)).filter(Number.isFinite);
  if (!values.length) return new Axis(0, 1, { wanted });
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > 0 && (scale === "log" || (scale === "auto" && high / low > LOG_FROM))) {
    return new Axis(low / 1.15, high * 1.15, { log: true, wanted });
  }
  const room = 0.07 * (high - low) || 0.1 * Math.abs(high) || 1;
  return new Axis(low >= 0 && low < 0.35 * high ? 0 : low - room, high + room, { wanted });
}

function inner(values) {
  const every = Math.max(1, Math.floor(values.length / ENOUGH));
  const found = Float64Array.from(values.filter((value, i) => i % every === 0 && Number.isFinite(value))).sort();
  if (!found.length) return [];
  const cut = found.length >= 200 ? Math.floor(found.length / 100) : 0;
  return [found[cut], found[found.length - 1 - cut]];
}

/** A tick value with as many decimals as its neighbours need. */
export function tickLabel(value, ticks) {
  let gap = Math.abs(value) || 1;
  for (let i = 1; i < ticks.length; i += 1) gap = Math.min(gap, ticks[i] - ticks[i - 1]);
  if (value && !(gap >= 1e-4 && Math.abs(value) < 1e5)) return String(Number(value.toPrecision(3)));
  const decimals = Math.max(0, Math.ceil(-Math.log10(gap) - 1e-9));
  // A gap of 0.25 needs one more place than one of 0.2.
  const more = Math.abs(Number(gap.toFixed(decimals)) - gap) > 1e-9 * gap ? 1 : 0;
  return value.toFixed(decimals + more);
}
