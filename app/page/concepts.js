// The concepts of a dictionary as a grid: filtered, sorted, a page at a time, so that ten thousand are as quick as ten.

import { h, labelled, newId, panel } from "./element.js";
import { drawnShare } from "./meter.js";
import { figure, percent } from "./numbers.js";
import { linkToConcept } from "./router.js";
import { Pager, compare } from "./table.js";

const PAGE = 72;
const NEAR_DENSE_SHARE = 0.9; // as in core/constants.py

export function conceptGrid(reference, concepts) {
  const { nb_concepts: count, rows, energy, uses, nearest, cosine, labels } = concepts;
  const label = (i) => labels[i] ?? "";
  const share = (i) => (uses && rows ? uses[i] / rows : null);
  const kinds = {
    "all": () => true,
    "labelled": (i) => i in labels,
    "not labelled": (i) => !(i in labels),
    ...(uses && { "dead": (i) => uses[i] === 0, "near-dense": (i) => share(i) > NEAR_DENSE_SHARE }),
    ...(cosine && { "near-duplicates": (i) => cosine[i] > 0.95 }),
  };
  const orders = {
    "number": [(i) => i, false],
    ...(energy && { "energy, largest first": [(i) => energy[i], true] }),
    ...(uses && { "uses, most first": [(i) => uses[i], true], "uses, fewest first": [(i) => uses[i], false] }),
    ...(cosine && { "nearest cosine, largest first": [(i) => cosine[i], true] }),
    "label": [(i) => label(i) || null, false],
  };
  const most = energy ? energy.reduce((a, b) => Math.max(a, b), 0) : 0;
  const list = h("ul", { class: "grid" });
  let shown = [];
  const pager = new Pager(PAGE, (from, to) => list.replaceChildren(...shown.slice(from, to).map(card)));
  const [textId, kindId, orderId] = [newId(), newId(), newId()];
  const text = h("input", { id: textId, type: "search", autocomplete: "off", oninput: arrange });
  const kind = choice(kindId, Object.keys(kinds), arrange);
  const order = choice(orderId, Object.keys(orders), arrange);
  order.value = energy ? "energy, largest first" : "number";
  arrange();
  return panel("Concepts",
    h("div", { class: "filters" },
      h("div", {}, h("label", { for: textId }, "Label or number"), text),
      h("div", {}, h("label", { for: kindId }, "Show"), kind),
      h("div", {}, h("label", { for: orderId }, "Sort by"), order)),
    list, pager.element);

  function arrange() {
    const wanted = text.value.trim().toLowerCase();
    const isShown = kinds[kind.value];
    const [key, descending] = orders[order.value];
    shown = [];
    for (let i = 0; i < count; i++) {
      if (isShown(i) && (!wanted || String(i) === wanted.replace("#", "") || label(i).toLowerCase().includes(wanted))) shown.push(i);
    }
    const keys = Array.from({ length: count }, (_, i) => key(i));
    shown.sort((a, b) => compare(keys[a], keys[b], descending) || a - b);
    pager.show(shown.length, "concepts");
  }

  function card(i) {
    return h("li", {}, h("a", { href: linkToConcept(reference, i) },
      h("strong", {}, `#${i}`, uses?.[i] === 0 && h("span", { class: "tag" }, "dead"),
        share(i) > NEAR_DENSE_SHARE && h("span", { class: "tag" }, "near-dense"), labelled(label(i))), // of which a long one is cut
      energy && drawnShare(most ? energy[i] / most : 0),
      energy && h("span", { class: "muted" }, `energy ${percent(energy[i])}`),
      uses && h("span", { class: "muted" }, `in ${percent(share(i))} of rows`),
      nearest?.[i] >= 0 && h("span", { class: "muted" }, `nearest #${nearest[i]}, cosine ${figure(cosine[i])}`)));
  }
}

function choice(id, options, onchange) {
  return h("select", { id, onchange }, options.map((option) => h("option", {}, option)));
}
