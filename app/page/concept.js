// The view of one concept: what it looks like, where it is found, what people call it.

import { callJson, getJson } from "./api.js";
import { Chart } from "./charts.js";
import { alertPlace, h, heading, inTurn, labelled, newId, numberTable, panel, stat, tell } from "./element.js";
import { captionedHistogram, imageShape, picture } from "./drawing.js";
import { drawnShare } from "./meter.js";
import { NONE, figure, percent, whole } from "./numbers.js";
import { linkTo, linkToConcept } from "./router.js";

const MOST_BARS = 2000; // past it a line is drawn
const shownAs = {}; // the kind and the width, by the number of features: what a person has set holds for the next concept

export async function show(content, [reference, index], signal) {
  const path = `dictionaries/${encodeURIComponent(reference)}`;
  const [concept, { nb_concepts: count }] = await Promise.all([`${path}/concepts/${index}`, path].map((each) => getJson(each, { signal })));
  const exact = `${concept.dictionary}@${concept.version}`;
  const link = (i, text) => h("a", { class: "button", href: linkToConcept(exact, i) }, text);
  const { rows, uses } = concept;
  const head = heading(`#${concept.concept} ${concept.label ?? ""}`.trim(), concept.concept > 0 && link(concept.concept - 1, "Previous"), concept.concept + 1 < count && link(concept.concept + 1, "Next"));
  const entitle = () => head.querySelector("h1").replaceChildren(`#${concept.concept}`, ...labelled(concept.label));
  entitle();
  content.append(
    h("p", {}, h("a", { href: linkTo("dictionaries", exact) }, exact), " › concept"),
    head,
    labelForm(exact, concept, signal, entitle),
    h("dl", { class: "figures" },
      told("Energy", percent(concept.energy), "Its share of all concepts' energy."),
      told("Uses", uses === null ? NONE : `${whole(uses)} of ${whole(rows)}`, concept.dead ? "Dead: no row of the fit uses it." : concept.near_dense
        ? "Near-dense: nearly every row uses it, so it tells little of any." : "Rows of the fit with a code above zero."),
      told("Largest code", figure(concept.largest), "In the rows of the fit."),
      told("Norm", figure(concept.norm), "‖D_i‖ of its weights.")));
  const weights = weightsPanel(concept, signal);
  content.append(h("div", { class: "columns" }, weights.element,
    concept.histogram && panel("Codes", codes(concept)),
    panel("Nearest concepts", neighbours(exact, concept.nearest, "cosine", "Their weights point in nearly the same direction.")),
    concept.together && panel("Found together", neighbours(exact, concept.together, "overlap", "Share of rows that use both, of those that use either.")),
    concept.top_rows && panel("Top rows", topRows(concept.top_rows))));
  weights.draw();
}

function told(title, text, help) {
  return text === NONE ? null : stat(title, text, help);
}

function labelForm(exact, concept, signal, ondone) {
  const id = newId();
  const alert = alertPlace();
  const status = h("span", { role: "status", class: "muted" });
  const input = h("input", { id, autocomplete: "off", maxlength: 500, value: concept.label ?? "", placeholder: "what it stands for" });
  const save = inTurn(async (label) => {
    alert.replaceChildren();
    status.textContent = "";
    try {
      await callJson("PATCH", `dictionaries/${encodeURIComponent(exact)}`, { signal, repeatable: true, headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ concept_labels: { [concept.concept]: label } }) });
      concept.label = label;
      status.textContent = label ? "Saved." : "Removed.";
      ondone();
    } catch (error) {
      tell(alert, error);
    }
  });
  return h("form", { class: "panel", onsubmit: (event) => {
    event.preventDefault();
    save(input.value.trim() || null);
  } }, h("div", { class: "filters" }, h("div", {}, h("label", { for: id }, "Label"), input), h("button", { type: "submit" }, "Save"), status), alert);
}

/** The weights as bars or, where a row may be an image, as a picture. */
function weightsPanel(concept, signal) {
  const { weights } = concept;
  const [kindId, widthId] = [newId(), newId()];
  const place = h("div");
  const kind = h("select", { id: kindId, onchange: draw }, h("option", { value: "bars" }, "bars"), h("option", { value: "picture" }, "a picture"));
  const width = h("input", { id: widthId, type: "number", min: 1, max: weights.length, oninput: draw });
  const shape = imageShape(weights.length);
  const held = (shownAs[weights.length] ??= { kind: shape ? "picture" : "bars", width: shape?.[0] ?? "" });
  kind.value = held.kind;
  width.value = held.width;
  const words = (_, ys) => {
    const most = [...ys.keys()].sort((a, b) => ys[b] - ys[a]).slice(0, 5);
    return `Weights of the ${whole(ys.length)} features; the largest are of ${most.map((at) => `${at} (${figure(ys[at])})`).join(", ")}.`;
  };
  const chart = new Chart({ x: "feature", y: "weight", bars: weights.length <= MOST_BARS, words }, signal);

  function draw() {
    held.kind = kind.value;
    width.parentElement.hidden = kind.value !== "picture";
    if (kind.value === "bars") {
      place.replaceChildren(chart.element);
      chart.show([...weights.keys()], weights);
      return;
    }
    const found = Number(width.value) > 0 ? imageShape(weights.length, Number(width.value)) : null;
    if (!found) {
      place.replaceChildren(h("p", { class: "muted" }, `Give a width that divides ${weights.length} features into rows of pixels.`));
      return;
    }
    held.width = found[0];
    const alternative = `The weights as a picture of ${found[0]} by ${found[1]} pixels; light is large. ${words(null, weights)}`;
    place.replaceChildren(h("figure", {}, picture(weights, found[0], found[1], { channels: found[2], alternative }), h("figcaption", {}, alternative)));
  }

  const element = panel("Weights", h("div", { class: "filters" }, h("div", {}, h("label", { for: kindId }, "Shown as"), kind),
    h("div", {}, h("label", { for: widthId }, "Width in pixels"), width)), place);
  return { element, draw };
}

function codes({ histogram: counts, largest, uses, rows }) {
  const words = `Codes above zero, from 0 to ${figure(largest)}, of ${whole(uses)} rows (${percent(uses / rows)}). `
    + "Most are small where a concept is a matter of degree; a second hill is a group of its own.";
  return captionedHistogram(counts, 0, largest, words);
}

function neighbours(exact, others, measure, help) {
  return h("div", {}, h("p", { class: "muted" }, help),
    others.length === 0 ? h("p", {}, "None.") : h("ul", { class: "grid" }, others.map((other) =>
      h("li", {}, h("a", { href: linkToConcept(exact, other.concept) },
        h("strong", {}, `#${other.concept}`, labelled(other.label)), drawnShare(other[measure]),
        h("span", { class: "muted" }, `${measure} ${figure(other[measure])}`))))));
}

function topRows(rows) {
  return h("div", {}, h("p", { class: "muted" }, "Rows of the fit, counted from 0, with its largest codes. Look these up in your data."),
    numberTable("Table: Top rows", ["Row", "Code"], rows.map(({ row, code }) => [row, figure(code)])));
}
