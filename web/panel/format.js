/** Numbers, sizes and times as people read them, in their language. */

const kept = new Map();

const BYTES = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
const AGES = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];

/**
 * The formatters of a language; an unknown language falls back to English.
 * @param {string} [lang] a language tag such as "en" or "fr"
 */
export function formats(lang = "en") {
  if (!kept.has(lang)) kept.set(lang, new Formats(known(lang)));
  return kept.get(lang);
}

function known(lang) {
  try {
    return Intl.getCanonicalLocales(lang)[0];
  } catch (fault) {
    if (fault instanceof RangeError) return "en";
    throw fault;
  }
}

class Formats {
  #lang;
  #count;
  #age;
  #date;
  #decimal;

  constructor(lang) {
    this.#lang = lang;
    this.#count = new Intl.NumberFormat(lang, { maximumFractionDigits: 0 });
    this.#age = new Intl.RelativeTimeFormat(lang, { numeric: "auto" });
    this.#decimal = new Intl.NumberFormat(lang).format(0.5).replace(/\d/g, "");
    this.#date = new Intl.DateTimeFormat(lang, { dateStyle: "medium", timeStyle: "short" });
  }

  /** A number that was written with a point. */
  written(text) {
    return text.replace(".", this.#decimal);
  }

  /** A whole number: 12,000. */
  count(value) {
    return this.#count.format(value);
  }

  /** A number with about `digits` significant digits. */
  number(value, digits = 3) {
    return new Intl.NumberFormat(this.#lang, { maximumSignificantDigits: digits }).format(value);
  }

  /** A loss: four digits, or powers of ten where it is tiny; a dash for one that is no number. */
  loss(value) {
    if (!isNumber(value)) return "–";
    if (value !== 0 && Math.abs(value) < 1e-3) return this.written(power(value, 3));
    const digits = { minimumSignificantDigits: 3, maximumSignificantDigits: 4 };
    return new Intl.NumberFormat(this.#lang, digits).format(value);
  }

  /** A learning rate: 1e-4 rather than 0.0001. */
  rate(value) {
    if (!isNumber(value)) return "–";
    return value === 0 || value >= 1e-2 ? this.number(value, 2) : this.written(power(value, 2));
  }

  /** A share as a percentage. */
  percent(share, digits = 0) {
    return new Intl.NumberFormat(this.#lang, { style: "percent", maximumFractionDigits: digits }).format(share);
  }

  /** A stretch of time as exactly as anybody wants to know it: 40 sec, 12 min, 1 hr 5 min, 2 days 3 hr. */
  duration(seconds) {
    if (!isNumber(seconds) || seconds < 0) return "–";
    const whole = Math.round(seconds);
    if (whole < 90) return this.#unit(whole, "second");
    if (whole < 3570) return this.#unit(Math.max(1, Math.round(whole / 60)), "minute");
    const minutes = Math.round(whole / 60);
    if (minutes < 1440) {
      const spare = minutes % 60 ? ` ${this.#unit(minutes % 60, "minute")}` : "";
      return this.#unit(Math.floor(minutes / 60), "hour") + spare;
    }
    const hours = Math.round(minutes / 60);
    return this.#unit(Math.floor(hours / 24), "day") + (hours % 24 ? ` ${this.#unit(hours % 24, "hour")}` : "");
  }

  /** A size of memory or of a file. */
  bytes(count) {
    if (!isNumber(count)) return "–";
    let power = 0;
    for (let left = count; left >= 1000 && power < BYTES.length - 1; left /= 1000) power += 1;
    const value = count / 1000 ** power;
    return this.#unit(value, BYTES[power], power && value < 100 ? 1 : 0);
  }

  /** How long ago a time (seconds since 1970) was. */
  ago(time, now = Date.now() / 1000) {
    const age = now - time;
    for (const [unit, seconds] of AGES) {
      if (Math.abs(age) >= seconds) return this.#age.format(-Math.round(age / seconds), unit);
    }
    return this.#age.format(0, "second");
  }

  /** Day and time of day of a time (seconds since 1970). */
  date(time) {
    return this.#date.format(new Date(time * 1000));
  }

  #unit(value, unit, digits = 0) {
    const options = { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: digits };
    return new Intl.NumberFormat(this.#lang, options).format(value);
  }
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function power(value, digits) {
  return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
}
