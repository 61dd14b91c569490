// The view of all dictionaries.

import { getJson } from "./api.js";
import { h, heading, panel } from "./element.js";
import { figure, moment, percent, whole } from "./numbers.js";
import { linkTo } from "./router.js";
import { Table } from "./table.js";

export async function show(content, _, signal) {
  content.append(heading("Dictionaries", h("a", { class: "button primary", href: "#/fit" }, "New fit")));
  const { dictionaries } = await getJson("dictionaries", { signal });
  if (!dictionaries.length) {
    content.append(panel("None yet", h("div", { class: "empty" },
      h("p", {}, "A dictionary of concepts is learned from activations: a file with a row for each example and a column for each feature."),
      h("a", { class: "button primary", href: "#/fit" }, "Fit the first one"))));
    return;
  }
  const metric = (title, name, help, shown = figure) => ({
    title, help, isNumber: true, value: (row) => row.metrics[name], cell: (row) => shown(row.metrics[name]),
  });
  const table = new Table({
    caption: "Dictionaries, the latest version of each", what: "dictionaries", rows: dictionaries, sort: [7, true],
    filter: (row) => [row.name, ...Object.entries(row.labels).flat()].join(" "),
    columns: [
      { title: "Name", value: (row) => row.name, cell: (row) => h("a", { href: linkTo("dictionaries", row.name) }, row.name) },
      { title: "Version", isNumber: true, value: (row) => row.version },
      { title: "Concepts", isNumber: true, value: (row) => row.nb_concepts, cell: (row) => whole(row.nb_concepts) },
      { title: "Features", isNumber: true, value: (row) => row.n_features, cell: (row) => whole(row.n_features) },
      metric("Relative error", "relative_error", "‖A − ZD‖ / ‖A‖: 0 is exact", percent),
      metric("Mean L0", "l0_mean", "Concepts that a row uses, on average"),
      metric("Dead", "dead_concepts", "Concepts that no row uses"),
      { title: "Created", value: (row) => row.created_at, cell: (row) => moment(row.created_at) },
    ],
  });
  content.append(h("section", { class: "panel", "aria-label": "All dictionaries" }, table.element));
}
