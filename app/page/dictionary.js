// The view of one dictionary: how good it is, what is in it.

import { call, callJson, getJson, problemOf } from "./api.js";
import { Chart, lossChart } from "./charts.js";
import { conceptGrid } from "./concepts.js";
import { coherence } from "./coherence.js";
import { alertPlace, confirmed, disabledFor, h, heading, inTurn, newId, numberTable, panel, stat, tell } from "./element.js";
import { NONE, figure, moment, percent, seconds, whole } from "./numbers.js";
import { linkTo } from "./router.js";

// What each figure means, and what is good. `of` makes the text that is shown.
const FIGURES = [
  ["Relative error", (m) => percent(m.relative_error), "‖A − ZD‖ / ‖A‖: what the concepts leave unexplained. 0 is exact; under 20 % is good for activations."],
  ["R²", (m) => figure(m.r2), "Share of the variance explained. 1 is all; above 0.9 is good."],
  ["Mean L0", (m) => figure(m.l0_mean), "Concepts that a row uses, on average. Few are easier to read."],
  ["Share in use", (m) => percent(m.l0_fraction), "The same as a share of all concepts. Under a third is sparse."],
  ["Sparsity", (m) => figure(m.sparsity), "Hoyer's: 0 where a row uses all concepts alike, 1 where it uses one. Higher is sparser."],
  ["Dead concepts", (m) => whole(m.dead_concepts), "No row uses them. 0 is good; many: fit fewer concepts."],
  ["Near-dense concepts", (m) => whole(m.near_dense_concepts), "Used by more than 90 % of the rows, so they tell little of any. A few hold the mean."],
  ["Coherence", (m) => figure(m.coherence), "Largest cosine between two concepts. 1 says that two are the same."],
  ["Near-duplicates", (m) => whole(m.duplicates), "Concepts whose nearest other has a cosine above 0.95. 0 is good."],
  ["KKT residual", (m) => figure(m.kkt_residual), "How far the codes are from the best for this dictionary. Under 0.01 the fit has settled."],
];

export async function show(content, [reference], signal) {
  const path = `dictionaries/${encodeURIComponent(reference)}`;
  const record = await getJson(path, { signal });
  const exact = `${record.name}@${record.version}`;
  const exactPath = `dictionaries/${encodeURIComponent(exact)}`;
  const alert = alertPlace();
  const act = (label, kind, work) => h("button", { type: "button", class: kind, onclick: (event) => {
    alert.replaceChildren();
    disabledFor(event.target, () => work().catch((error) => tell(alert, error)));
  } }, label);
  content.append(
    heading(exact,
      h("a", { class: "button primary", href: linkTo("try", exact) }, "Try it"),
      act("Download npy", "", () => download(exactPath, exact, "npy", "application/x-npy", signal)),
      act("Download safetensors", "", () => download(exactPath, exact, "safetensors", "application/vnd.safetensors", signal)),
      act("Delete…", "danger", async () => {
        if (!await confirmed(`Delete ${exact}? It cannot be brought back, and its number is not given again.`, "Delete it", signal)) return;
        await call("DELETE", exactPath, { signal });
        location.hash = "#/";
      })),
    alert,
    h("p", { class: "muted" }, `${whole(record.nb_concepts)} concepts of ${whole(record.n_features)} features, made ${moment(record.created_at)}`
      + (record.seconds === null ? ", imported." : ` in ${seconds(record.seconds)}.`), " ", ...versions(record)));

  const { metrics } = record;
  const isMeasured = "relative_error" in metrics;
  content.append(isMeasured
    ? h("dl", { class: "figures" }, FIGURES.filter(([, of]) => of(metrics) !== NONE).map(([title, of, help]) => stat(title, of(metrics), help)))
    : h("p", {}, "It was imported: figures tell of a dictionary and the data that it was fitted to, so there are none."));

  const concepts = await getJson(`${exactPath}/concepts`, { signal });
  const charts = h("div", { class: "columns" });
  const later = [];
  if (record.loss_history.length) {
    const chart = lossChart(signal);
    charts.append(panel("Loss", chart.element));
    later.push(() => chart.show(record.loss_history.map(([x]) => x), record.loss_history.map(([, y]) => y)));
  }
  if (concepts.energy) {
    const sorted = [...concepts.energy].sort((a, b) => b - a);
    const chart = new Chart({ x: "concept, by energy", y: "share of the energy", bars: sorted.length <= 500, words: (_, ys) =>
      `Energy of the concepts, largest first: the first holds ${percent(ys[0])}, and ${whole(half(ys))} hold half of it. `
      + "A long flat tail says that fewer concepts would do." }, signal);
    charts.append(panel("Energy", chart.element));
    later.push(() => chart.show(sorted.map((_, at) => at + 1), sorted));
  }
  charts.append(...coherence(record, concepts, exactPath, signal));
  if (metrics.worst_features?.length) charts.append(panel("Worst features", worst(metrics.worst_features)));
  content.append(charts, conceptGrid(exact, concepts), ...notes(record, exactPath, signal));
  later.forEach((draw) => draw());
}

function versions({ name, version, versions }) {
  if (versions.length < 2) return [];
  const shown = versions.slice(-12);
  return [versions.length > shown.length ? "Latest versions: " : "Versions: ", ...shown.flatMap((each, at) => [at ? ", " : "",
    each === version ? h("strong", { "aria-current": "true" }, String(each)) : h("a", { href: linkTo("dictionaries", `${name}@${each}`) }, String(each))]),
  ". ", h("a", { href: linkTo("compare", `${name}@${versions.at(versions.at(-1) === version ? -2 : -1)}`, `${name}@${version}`) }, "Compare with another")];
}

/** How many of the largest hold half of the sum. */
function half(sorted) {
  const total = sorted.reduce((sum, value) => sum + value, 0);
  let sum = 0;
  return sorted.findIndex((value) => (sum += value) >= total / 2) + 1;
}

function worst(features) {
  return h("div", {}, h("p", { class: "muted" }, "Features that the concepts explain least, with the R² of each."),
    numberTable("Table: Worst features", ["Feature", "R²"], features.map(({ feature, r2 }) => [feature, figure(r2)])));
}

async function download(path, name, ending, type, signal) {
  const answer = await call("GET", `${path}/weights`, { headers: { Accept: type }, signal });
  if (!answer.headers.get("content-type")?.startsWith(type)) throw await problemOf(answer);
  const url = URL.createObjectURL(await answer.blob());
  h("a", { href: url, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Labels, and what the fit was told. */
function notes(record, path, signal) {
  const alert = alertPlace();
  const list = h("dl", { class: "facts" });
  const [keyId, textId] = [newId(), newId()];
  const key = h("input", { id: keyId, required: true, autocomplete: "off", placeholder: "team" });
  const text = h("input", { id: textId, autocomplete: "off", placeholder: "vision" });
  let { labels } = record;
  const draw = () => list.replaceChildren(...Object.entries(labels).flatMap(([name, value]) => [h("dt", {}, name),
    h("dd", {}, h("bdi", {}, value), " ", h("button", { type: "button", class: "quiet", "aria-label": `Remove the label ${name}`, onclick: () => set(name, null) }, "remove"))]));
  const set = inTurn(async (name, value) => {
    alert.replaceChildren();
    try {
      const body = JSON.stringify({ labels: { [name]: value } });
      const headers = { "Content-Type": "application/json" };
      ({ labels } = await callJson("PATCH", path, { signal, repeatable: true, headers, body }));
      if (key.value.trim() === name && text.value.trim() === value) key.value = text.value = ""; // else of another
      draw();
    } catch (error) {
      tell(alert, error);
    }
  });
  draw();
  const facts = (told) => h("dl", { class: "facts" }, Object.entries(told).flatMap(([name, value]) =>
    [h("dt", {}, name), h("dd", {}, typeof value === "object" && value !== null ? JSON.stringify(value).slice(0, 300) : String(value ?? "–"))]));
  return [h("div", { class: "columns" },
    panel("Labels", list, h("form", { class: "filters", onsubmit: (event) => {
      event.preventDefault();
      set(key.value.trim(), text.value.trim() || null);
    } }, h("div", {}, h("label", { for: keyId }, "Label"), key), h("div", {}, h("label", { for: textId }, "Text"), text),
      h("button", { type: "submit" }, "Set")), alert),
    panel("How it was made", facts({ ...record.parameters, ...record.data, sha256: record.sha256, ...record.software }),
      record.job && h("p", {}, h("a", { href: linkTo("jobs", record.job) }, "Its job"))))];
}
