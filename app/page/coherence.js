// How alike a dictionary's concepts are: the nearest of each, the closest pairs, and for a few hundred the whole map.

import { call } from "./api.js";
import { alertPlace, disabledFor, h, labelled, panel, scrolling, tell } from "./element.js";
import { captionedHistogram, picture } from "./drawing.js";
import { binned, figure, whole } from "./numbers.js";
import { readNpy } from "./arrays.js";
import { linkToConcept } from "./router.js";

const MOST_MAPPED = 256; // concepts of a map
const MOST_WEIGHTS = 4_000_000; // numbers of a dictionary that is fetched for one
const PAIRS = 8;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }; // of rows and columns

export function coherence(record, concepts, path, signal) {
  const { cosine, nearest, labels } = concepts;
  const ofAll = mappable(record) ? [map(record, path, signal)] : [];
  if (!cosine) return ofAll; // which an import has not
  const counts = binned(cosine, 20, 0, 1);
  const near = cosine.filter((value) => value > 0.95).length;
  const words = `Cosine of each concept with the one nearest to it, from 0 to 1: ${whole(near)} of ${whole(cosine.length)} are above 0.95. `
    + "Bars to the right are concepts that hardly differ.";
  const pairs = closest(nearest, cosine);
  const name = `${record.name}@${record.version}`;
  const link = (index) => h("a", { href: linkToConcept(name, index) }, `#${index}`, labelled(labels[index]));
  const parts = [panel("Nearest cosines", captionedHistogram(counts, 0, 1, words),
    pairs.length ? [h("h3", {}, "Closest pairs"), scrolling("Table: Closest pairs",
      h("table", {}, h("tbody", {}, pairs.map(([i, j, value]) =>
        h("tr", {}, h("td", { class: "wide" }, link(i), " and ", link(j)), h("td", { class: "number" }, figure(value)))))))] : [])];
  return [...parts, ...ofAll];
}

function mappable({ nb_concepts: k, n_features: d }) {
  return k > 1 && k <= MOST_MAPPED && k * d <= MOST_WEIGHTS;
}

/** Pairs of which one is the other's nearest, closest first. */
function closest(nearest, cosine) {
  const seen = new Set();
  return nearest.map((j, i) => [Math.min(i, j), Math.max(i, j), cosine[i]])
    .filter(([i]) => i >= 0)
    .sort((a, b) => b[2] - a[2])
    .filter(([i, j]) => !seen.has(`${i} ${j}`) && seen.add(`${i} ${j}`))
    .slice(0, PAIRS);
}

function map(record, path, signal) {
  const alert = alertPlace();
  const place = h("div", { tabindex: -1 }, h("p", { class: "muted" }, "The cosine of every concept with every other, as a picture. It needs the weights themselves."),
    h("button", { type: "button", onclick: (event) => {
      alert.replaceChildren();
      disabledFor(event.target, () => drawn().catch((error) => tell(alert, error)), place);
    } }, "Draw the map"));
  return panel("Coherence map", place, alert);

  async function drawn() {
    const answer = await call("GET", `${path}/weights`, { signal, headers: { Accept: "application/x-npy" } });
    draw(place, readNpy(await answer.arrayBuffer()));
  }
}

function draw(place, D) {
  const unit = Array.from({ length: D.rows }, (_, i) => {
    const row = D.row(i);
    const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0)) || 1;
    return row.map((value) => value / norm);
  });
  const cosines = new Float32Array(D.rows ** 2);
  for (let i = 0; i < D.rows; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let at = 0; at < D.columns; at++) sum += unit[i][at] * unit[j][at];
      cosines[i * D.rows + j] = cosines[j * D.rows + i] = sum;
    }
  }
  const last = D.rows - 1;
  const words = `Cosines of ${D.rows} concepts with each other, from 0 (dark) to 1 (light). The diagonal is each with itself; `
    + "light spots off it are pairs that are alike, light blocks are families. Point at a spot, or move by the arrow keys.";
  const told = h("p", { class: "number", "aria-live": "polite" }, " ");
  const canvas = picture(cosines, D.rows, D.rows, { most: 1, alternative: words, kind: "map" });
  canvas.tabIndex = 0;
  let [i, j] = [0, 0];
  const moveTo = (...spot) => {
    [i, j] = spot.map((at) => Math.min(Math.max(at, 0), last));
    told.textContent = `#${i} and #${j}: ${figure(cosines[i * D.rows + j])}`;
  };
  const point = (event) => {
    const scale = D.rows / canvas.clientWidth;
    moveTo(Math.floor(event.offsetY * scale), Math.floor(event.offsetX * scale));
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("focus", () => moveTo(i, j));
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault(); // or the page would scroll
    const far = event.shiftKey ? 10 : 1;
    moveTo(i + far * step[0], j + far * step[1]);
  });
  place.replaceChildren(h("figure", {}, canvas, h("figcaption", {}, words)), told);
}
