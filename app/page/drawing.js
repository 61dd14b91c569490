// Small pictures, drawn here at once: histograms, lines, matrices. What is explored is in charts.js.

import { h, s } from "./element.js";
import { figure } from "./numbers.js";

/** Counts in equal bins from low to high, as bars. */
function histogram(counts, low, high, alternative) {
  const most = Math.max(...counts, 1);
  const bars = counts.map((count, at) => {
    const height = (100 * count) / most;
    return s("rect", { class: "bar", x: at + 0.04, y: 100 - height, width: 0.92, height });
  });
  return framed(counts.length, bars, [figure(low), figure(high)], alternative);
}

/** The same, with what it tells below it. */
export const captionedHistogram = (counts, low, high, words) => h("figure", {}, histogram(counts, low, high, words), h("figcaption", {}, words));

/** One or two rows of numbers over each other, from 0 up. */
export function lines(rows, alternative) {
  const most = Math.max(...rows.map((row) => largest(row)), 1e-30);
  const width = rows[0].length;
  const drawn = rows.map((row, at) => {
    let path = "";
    for (let j = 0; j < width; j++) path += `${j ? "L" : "M"}${j + 0.5} ${(100 - (98 * row[j]) / most).toFixed(2)}`;
    return s("path", { class: at ? "line second" : "line", d: path });
  });
  return framed(width, drawn, ["feature 0", `largest ${figure(most)}`, String(width - 1)], alternative);
}

function framed(width, drawn, scale, alternative) {
  return h("div", {},
    s("svg", { class: "plain", viewBox: `0 0 ${width} 100`, preserveAspectRatio: "none", role: "img", "aria-label": alternative }, drawn),
    h("div", { class: "scale", "aria-hidden": "true" }, scale.map((text) => h("span", {}, text))));
}

export function largest(values) {
  let most = 0;
  for (const value of values) if (value > most) most = value;
  return most;
}

/** Values from 0 to `most` as pixels, dark to light; with three channels, as colours. */
export function picture(values, width, height, { channels = 1, most = largest(values), alternative, kind = "" }) {
  const canvas = h("canvas", { class: `picture ${kind}`, width, height, role: "img", "aria-label": alternative });
  const image = new ImageData(width, height);
  for (let at = 0; at < width * height; at++) {
    const colour = channels === 3
      ? [0, 1, 2].map((channel) => (255 * values[3 * at + channel]) / (most || 1)) : shade(values[at] / (most || 1));
    image.data.set([...colour, 255], 4 * at);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Evenly brighter, and told apart by those who see few colours: from near black over teal to a pale yellow.
const SHADES = [[13, 18, 24], [22, 72, 86], [26, 131, 118], [120, 185, 104], [248, 240, 190]];

function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (SHADES.length - 1);
  const at = Math.min(Math.floor(place), SHADES.length - 2);
  return SHADES[at].map((from, channel) => from + (place - at) * (SHADES[at + 1][channel] - from));
}

/**
 * [width, height, channels] where a row of so many features may be an image; null where it may not. What is a square in
 * colours has them at other widths, too.
 */
export function imageShape(features, width = null) {
  const isColoured = width !== null && imageShape(features)?.[2] === 3;
  for (const channels of isColoured ? [3, 1] : [1, 3]) {
    const pixels = features / channels;
    const side = width ?? Math.sqrt(pixels);
    if (Number.isInteger(pixels) && Number.isInteger(side) && side > 1 && Number.isInteger(pixels / side)) {
      return [side, pixels / side, channels];
    }
  }
  return null;
}
