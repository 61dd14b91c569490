// The view of two dictionaries side by side: which concept of one is which of the other.

import { getJson } from "./api.js";
import { alertPlace, h, heading, panel, stat, tell } from "./element.js";
import { captionedHistogram } from "./drawing.js";
import { drawnShare } from "./meter.js";
import { binned, figure, percent, whole } from "./numbers.js";
import { dictionaryFields } from "./pick.js";
import { linkTo, linkToConcept } from "./router.js";
import { Table } from "./table.js";

export async function show(content, chosen, signal) {
  const { inputs: [a, b] } = await dictionaryFields(["One", "The other"], chosen, signal);
  const alert = alertPlace();
  const result = h("div", { class: "view" });
  content.append(heading("Compare"), panel("Two dictionaries",
    h("form", { class: "filters", onsubmit: (event) => {
      event.preventDefault();
      const link = linkTo("compare", a.input.value.trim(), b.input.value.trim());
      if (link === location.hash) compare();
      else location.hash = link;
    } }, a.element, b.element, h("button", { type: "submit", class: "primary" }, "Compare")),
    h("p", { class: "muted" }, "Two fits of the same data with different seeds tell how stable its concepts are: what both find is in the data."),
    alert), result);
  if (chosen[0] && chosen[1]) await compare();

  async function compare() {
    alert.replaceChildren();
    try {
      const [one, other] = [a, b].map(({ input }) => encodeURIComponent(input.value.trim()));
      result.replaceChildren(...shown(await getJson(`dictionaries/${one}/compare/${other}`, { signal })));
    } catch (error) {
      result.replaceChildren();
      tell(alert, error);
    }
  }
}

function shown({ a, b, matches, mean_cosine: mean, median_cosine: median, stability }) {
  const link = (side, index) => h("a", { href: linkToConcept(name(side), index) }, `#${index}`);
  const name = (side) => `${side.dictionary}@${side.version}`;
  const words = `Cosines of ${whole(matches.length)} matched concepts, from 0 to 1. The further right, the more the two agree.`;
  const table = new Table({
    caption: "Matched concepts", what: "matches", rows: matches, sort: [2, true],
    filter: (match) => `#${match.a} #${match.b}`,
    columns: [
      { title: name(a), isNumber: true, value: (match) => match.a, cell: (match) => link(a, match.a) },
      { title: name(b), isNumber: true, value: (match) => match.b, cell: (match) => link(b, match.b) },
      { title: "Cosine", isNumber: true, value: (match) => match.cosine, cell: (match) => figure(match.cosine) },
      { title: "from 0 to 1", cell: (match) => drawnShare(match.cosine) },
    ],
  });
  return [
    h("dl", { class: "figures" },
      stat("Stability", percent(stability), "Share of the larger one's concepts that have a match above 0.9. Above 80 % both find the same."),
      stat("Mean cosine", figure(mean), "Of the matches. 1 is the same."),
      stat("Median cosine", figure(median), "Half of the matches are above it."),
      stat("Concepts", `${whole(a.nb_concepts)} and ${whole(b.nb_concepts)}`, "Each is matched with one other at most.")),
    panel("Cosines of the matches", captionedHistogram(binned(matches.map(({ cosine }) => cosine), 20, 0, 1), 0, 1, words)),
    panel("Matches", table.element),
  ];
}
