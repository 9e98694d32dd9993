/** Strokes of the chart: pure drawing on a canvas context, given a panel with its axes. */

/**
 * @typedef {{left: number, top: number, right: number, bottom: number, x: import("./axis.js").Axis,
 *   y: import("./axis.js").Axis}} Panel  edges in CSS pixels
 */

/** Where a step lies, in pixels. @param {Panel} panel */
export function across(panel, step) {
  return panel.left + panel.x.place(step) * (panel.right - panel.left);
}

/** Where a value lies, in pixels; what is outside is drawn at the panel's edge. @param {Panel} panel */
export function down(panel, value) {
  const place = Math.min(1, Math.max(0, panel.y.place(value)));
  return panel.bottom - place * (panel.bottom - panel.top);
}

/** Grid lines and the values at the left edge. */
export function paintFrame(g, panel, colours, label) {
  g.fillStyle = colours.paper;
  g.fillRect(panel.left, panel.top, panel.right - panel.left, panel.bottom - panel.top);
  g.strokeStyle = colours.grid;
  g.lineWidth = 1;
  g.fillStyle = colours.faint;
  g.textAlign = "right";
  g.textBaseline = "middle";
  g.beginPath();
  const ticks = panel.y.ticks();
  for (const value of ticks) {
    const y = crisp(down(panel, value));
    g.moveTo(panel.left, y);
    g.lineTo(panel.right, y);
    g.fillText(label(value, ticks), panel.left - 7, y);
  }
  for (const value of panel.x.ticks()) {
    const x = crisp(across(panel, value));
    g.moveTo(x, panel.top);
    g.lineTo(x, panel.bottom);
  }
  g.stroke();
}

/** The steps below the lowest panel; one that would run into its neighbour or the word "step" is left out. */
export function paintSteps(g, panel, colours, count, word) {
  g.fillStyle = colours.faint;
  g.textBaseline = "top";
  g.textAlign = "right";
  g.fillText(word, panel.right, panel.bottom + 6);
  const limit = panel.right - g.measureText(word).width - 8;
  let free = -Infinity;
  g.textAlign = "center";
  for (const value of panel.x.ticks()) {
    if (!Number.isInteger(value)) continue;
    const text = count(value);
    const half = g.measureText(text).width / 2;
    const x = across(panel, value);
    if (x - half < free || x + half > limit) continue;
    g.fillText(text, x, panel.bottom + 6);
    free = x + half + 8;
  }
}

/**
 * Every value as part of a faint line; where many share a column of pixels, their range.
 * @param {Float64Array} steps
 * @param {Float64Array} values NaN leaves a gap
 */
export function paintCloud(g, panel, steps, values, [from, to], colour) {
  const width = panel.right - panel.left;
  g.strokeStyle = colour;
  g.lineWidth = 1;
  g.beginPath();
  if (to - from <= 2 * width) thread(g, panel, steps, values, from, to, 1);
  else columns(g, panel, steps, values, from, to);
  g.stroke();
}

/** A line through the values, broken where one is missing; `every` thins out what pixels could not show. */
export function paintLine(g, panel, steps, values, [from, to], colour, width) {
  const every = Math.max(1, Math.floor((to - from) / (2 * (panel.right - panel.left))));
  g.strokeStyle = colour;
  g.lineWidth = width;
  g.lineJoin = "round";
  g.lineCap = "round";
  g.beginPath();
  thread(g, panel, steps, values, from, to, every);
  g.stroke();
}

function thread(g, panel, steps, values, from, to, every) {
  let drawing = false;
  const put = (i) => {
    if (Number.isNaN(values[i])) {
      drawing = false;
      return;
    }
    const x = across(panel, steps[i]);
    const y = down(panel, values[i]);
    // A lone point between gaps is seen as a dot.
    if (!drawing) g.moveTo(x - 0.01, y);
    g.lineTo(x, y);
    drawing = true;
  };
  if (every > 1) put(from);
  // Whole multiples, so that the chosen points stay the same ones while more arrive.
  for (let i = Math.ceil(from / every) * every; i < to; i += every) put(i);
  if (every > 1) put(to - 1);
}

function columns(g, panel, steps, values, from, to) {
  let column = -1;
  let low = Infinity;
  let high = -Infinity;
  const flush = () => {
    if (high < low) return;
    const x = column + 0.5;
    g.moveTo(x, down(panel, low) + 0.5);
    g.lineTo(x, down(panel, high) - 0.5);
  };
  for (let i = from; i < to; i += 1) {
    const value = values[i];
    if (Number.isNaN(value)) continue;
    const at = Math.floor(across(panel, steps[i]));
    if (at !== column) {
      flush();
      column = at;
      low = high = value;
    } else if (value < low) low = value;
    else if (value > high) high = value;
  }
  flush();
}

/** Validations: a thin line with a dot at each. @param {[number, number][]} pairs */
export function paintPoints(g, panel, pairs, colour) {
  g.strokeStyle = colour;
  g.fillStyle = colour;
  g.lineWidth = 1.2;
  g.beginPath();
  pairs.forEach(([step, value], i) => {
    const method = i ? "lineTo" : "moveTo";
    g[method](across(panel, step), down(panel, value));
  });
  g.stroke();
  const radius = pairs.length > 60 ? 2 : 3.2;
  for (const [step, value] of pairs) disc(g, across(panel, step), down(panel, value), radius);
}

function disc(g, x, y, radius) {
  g.beginPath();
  g.arc(x, y, radius, 0, 2 * Math.PI);
  g.fill();
}

/** A ring around the best validation, and what it is. */
export function paintBest(g, panel, best, colours, text) {
  const x = across(panel, best.step);
  const y = down(panel, best.loss);
  if (x < panel.left - 1 || x > panel.right + 1) return;
  g.strokeStyle = colours.best;
  g.lineWidth = 2.2;
  g.beginPath();
  g.arc(x, y, 7, 0, 2 * Math.PI);
  g.stroke();
  const atTheEnd = x > panel.left + 0.6 * (panel.right - panel.left);
  g.textAlign = atTheEnd ? "right" : "left";
  g.textBaseline = "middle";
  halo(g, text, x + (atTheEnd ? 8 : -8), y - 32 > panel.top ? y - 18 : y + 18, colours.best, colours.paper);
}

/** Text on a rim of the paper's colour, readable above lines. */
export function halo(g, text, x, y, colour, paper) {
  g.lineJoin = "round";
  g.lineWidth = 4;
  g.strokeStyle = paper;
  g.strokeText(text, x, y);
  g.fillStyle = colour;
  g.fillText(text, x, y);
}

/** Checkpoints: small triangles on the panel's lower edge, the best one in its own colour. */
export function paintTicks(g, panel, checkpoints, colours) {
  for (const { step, best } of checkpoints) {
    const x = across(panel, step);
    if (x < panel.left - 4 || x > panel.right + 4) continue;
    g.fillStyle = best ? colours.best : colours.mark;
    g.beginPath();
    g.moveTo(x - 4, panel.bottom);
    g.lineTo(x + 4, panel.bottom);
    g.lineTo(x, panel.bottom - 7);
    g.fill();
  }
}

/** The upright line of the crosshair. */
export function paintCrosshair(g, panels, x, colour) {
  g.strokeStyle = colour;
  g.lineWidth = 1;
  g.beginPath();
  for (const panel of panels) {
    g.moveTo(crisp(x), panel.top);
    g.lineTo(crisp(x), panel.bottom);
  }
  g.stroke();
}

/** A dot with a rim, where the crosshair meets a line. */
export function paintSpot(g, panel, step, value, colour, paper) {
  if (Number.isNaN(value)) return;
  g.fillStyle = paper;
  disc(g, across(panel, step), down(panel, value), 4.5);
  g.fillStyle = colour;
  disc(g, across(panel, step), down(panel, value), 3);
}

function crisp(place) {
  return Math.round(place) + 0.5;
}
