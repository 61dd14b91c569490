// Tables that are sorted by their heads and filtered by a field, a page at a time: a thousand rows are as quick as ten.

import { h, newId, scrolling } from "./element.js";
import { whole } from "./numbers.js";

const PAGE = 50;

/** Buttons that page through count items, `size` at a time; `draw(from, to)` shows some. */
export class Pager {
  constructor(size, draw) {
    Object.assign(this, { size, draw, at: 0, count: 0 });
    this.told = h("span", { "aria-live": "polite", class: "number" });
    this.back = h("button", { type: "button", onclick: () => this.go(this.at - size) }, "Previous");
    this.on = h("button", { type: "button", onclick: () => this.go(this.at + size) }, "Next");
    this.element = h("div", { class: "pager" }, this.back, this.on, this.told);
  }

  show(count, what) {
    Object.assign(this, { count, what });
    this.go(0);
  }

  go(at) {
    const last = Math.max(0, this.count - 1);
    this.at = Math.max(0, Math.min(at, last - (last % this.size))); // where a page begins
    const to = Math.min(this.at + this.size, this.count);
    this.draw(this.at, to);
    this.back.disabled = this.at === 0;
    this.on.disabled = to >= this.count;
    this.back.hidden = this.on.hidden = this.count <= this.size;
    const all = `${whole(this.count)} ${this.count === 1 ? one(this.what) : this.what}`;
    this.told.textContent = this.count > this.size ? `${whole(this.at + 1)} to ${whole(to)} of ${all}` : all;
  }
}

const one = (many) => many.replace(/ies$/, "y").replace(/(?:(ch)e)?s$/, "$1");

/** Values in order; what is not there comes last, whichever way. */
export function compare(a, b, descending) {
  const [missing, other] = [a === null || a === undefined, b === null || b === undefined];
  if (missing || other) return missing - other;
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return descending ? -order : order;
}

/**
 * A table.
 *
 * columns: {title, value: what it is sorted by, if it can be, cell: what is shown (the value by default), isNumber, help}.
 * filter: from a row to the text that is searched; without it there is no field for that.
 */
export class Table {
  constructor({ caption, what, columns, rows, sort = null, filter = null, page = PAGE }) {
    Object.assign(this, { columns, rows, sort, filter, what });
    const id = newId();
    this.body = h("tbody");
    this.heads = columns.map((column, index) => h("th", { scope: "col", class: column.isNumber && "number", title: column.help },
      column.value ? h("button", { type: "button", onclick: () => this.sortBy(index) }, column.title) : column.title));
    this.pager = new Pager(page, (from, to) => this.draw(from, to));
    this.field = h("input", { id, type: "search", autocomplete: "off", oninput: () => this.arrange() });
    this.element = h("div", {},
      filter && h("div", { class: "filters" }, h("div", {}, h("label", { for: id }, `Filter ${what}`), this.field)),
      scrolling(`Table: ${caption}`,
        h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, this.heads)), this.body)),
      this.pager.element);
    this.arrange();
  }

  sortBy(index) {
    const isSame = this.sort?.[0] === index;
    this.sort = [index, isSame ? !this.sort[1] : Boolean(this.columns[index].isNumber)];
    this.arrange();
  }

  /** Other rows, where one has got to in them. */
  renew(rows) {
    this.rows = rows;
    const { at } = this.pager;
    this.arrange();
    this.pager.go(at);
  }

  arrange() {
    const words = this.field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => this.filter(row).toLowerCase();
    this.shown = words.length ? this.rows.filter((row) => words.every((word) => text(row).includes(word))) : [...this.rows];
    if (this.sort) {
      const [index, descending] = this.sort;
      const keys = new Map(this.shown.map((row) => [row, this.columns[index].value(row)]));
      this.shown.sort((a, b) => compare(keys.get(a), keys.get(b), descending));
      this.heads.forEach((head, at) => {
        if (at === index) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
    }
    this.pager.show(this.shown.length, this.what);
  }

  draw(from, to) {
    this.body.replaceChildren(...this.shown.slice(from, to).map((row) => h("tr", {}, this.columns.map((column) =>
      h("td", { class: column.isNumber && "number" },
        (column.cell ?? column.value)(row))))));
  }
}
