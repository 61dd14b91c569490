// Charts to be explored, by plotly.js: a megabyte and a half that is loaded once a view has a chart.

import { h, numberTable } from "./element.js";
import { figure } from "./numbers.js";

const MOST_TOLD = 60; // rows of a chart's table
// Plotly writes its styles into the sheet of the element of this id, if there is one; else it would make an inline one,
// which the page's policy forbids. So it would for a map's, which we never draw, unless it finds the second.
const SHEET = "plotly.js-style-global";
const MAPS = "9f215cf04c5486422605d13261cb87401f4e7763b6296af81e98efbc0130da53";

let loading = null;

function plotly() {
  loading ??= (async () => {
    await loaded(h("link", { id: SHEET, rel: "stylesheet", href: "page/charts.css" }));
    document.head.append(h("link", { id: MAPS }));
    await loaded(h("script", { src: "page/plotly.js" }));
    return window.Plotly;
  })().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

/** Into the page's head. What could not be loaded does not stay there: Plotly would take it for its sheet ever after. */
function loaded(element) {
  return new Promise((resolve, reject) => {
    element.addEventListener("load", resolve);
    element.addEventListener("error", () => {
      element.remove();
      reject(new Error("the charts could not be loaded; the figures are in the tables"));
    });
    document.head.append(element);
  });
}

/** A chart of one line or of bars that can be given other values, with a table in its place for who cannot see it. */
export class Chart {
  /**
   * x, y: titles of the axes. bars: whether bars are drawn. log: whether y is logarithmic.
   * words: from the values to a sentence that tells what there is to see.
   */
  constructor({ x, y, bars = false, log = false, words }, signal) {
    Object.assign(this, { x, y, bars, log, words, xs: [], ys: [] });
    this.plot = h("div", { class: "chart", role: "img" });
    this.caption = h("figcaption");
    this.table = h("details", { ontoggle: () => this.list() }, h("summary", { class: "muted" }, "The same as a table"), h("div"));
    this.element = h("figure", {}, this.plot, this.caption, this.table);
    addEventListener("theme", () => this.draw(), { signal });
    signal.addEventListener("abort", () => this.drawn && window.Plotly.purge(this.plot));
    this.signal = signal;
  }

  async show(xs, ys) {
    Object.assign(this, { xs, ys });
    const told = this.words(xs, ys);
    this.caption.textContent = told;
    this.plot.setAttribute("aria-label", told);
    this.list();
    await this.draw();
  }

  async draw() {
    if (!this.ys.length) return;
    let Plotly;
    try {
      Plotly = await plotly();
    } catch (error) {
      this.plot.textContent = error.message;
      return;
    }
    if (this.signal.aborted || !this.plot.isConnected) return;
    const [ink, line, accent, surface] = colours("--muted", "--line", "--accent", "--surface");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    // Not in powers, as Plotly would tell of 1e38: those it writes with style attributes, which the policy forbids as well.
    const log = this.log && { type: "log", dtick: spans(this.ys) };
    const trace = this.bars ? { type: "bar", marker: { color: accent } }
      : { type: "scatter", mode: this.ys.length < 3 ? "lines+markers" : "lines", line: { color: accent, width: 2 } };
    if (!this.drawn) this.plot.replaceChildren();
    this.drawn = true;
    await Plotly.react(this.plot, [{ x: this.xs, y: this.ys, ...trace }], {
      margin: { l: 10, r: 10, t: 10, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", bargap: 0.1,
      font: { family: "system-ui, sans-serif", size: 12, color: ink }, hoverlabel: { bgcolor: surface, font: { color: ink } },
      xaxis: { ...axis, title: { text: this.x }, showgrid: false },
      yaxis: { ...axis, title: { text: this.y }, exponentformat: "e", ...log },
    }, { responsive: true, displayModeBar: false });
  }

  list() {
    if (!this.table.open) return;
    const step = Math.max(1, Math.ceil(this.ys.length / MOST_TOLD));
    const rows = this.xs.map((x, at) => [x, this.ys[at]]).filter((_, at) => at % step === 0 || at === this.ys.length - 1);
    this.table.lastChild.replaceChildren(numberTable(`${this.y} by ${this.x}`, [this.x, this.y], rows.map((row) => row.map(figure))));
  }
}

/** Between two ticks of a logarithmic axis: a power of ten where there are several, else Plotly's own. */
function spans(values) {
  let [low, high] = [Infinity, 0];
  for (const value of values) if (value > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return high > 100 * low ? 1 : undefined;
}

/** Colours of the theme as Plotly reads them. */
function colours(...names) {
  const probe = h("span");
  document.body.append(probe);
  const found = names.map((name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  });
  probe.remove();
  return found;
}

/** The loss by iteration. */
export function lossChart(signal) {
  return new Chart({ x: "iteration", y: "loss", log: true, words: (xs, ys) =>
    ys.length ? `Loss ½‖A − ZD‖², from ${figure(ys[0])} down to ${figure(ys.at(-1))} at iteration ${xs.at(-1)}. It should fall, `
      + "then level off." : "No loss yet." }, signal);
}
