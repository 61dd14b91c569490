// The view to try a dictionary in: a row, its codes, and what becomes of it when they are moved.

import { Problem, call, callJson, getJson, problemOf, tellWait } from "./api.js";
import { dropZone } from "./drop.js";
import { alertPlace, debounced, h, heading, labelled, newId, panel, tell } from "./element.js";
import { captionedHistogram, imageShape, largest, lines, picture } from "./drawing.js";
import { isNpy, NPY, readNpy, readSafetensors, writeNpy } from "./arrays.js";
import { figure, percent, whole } from "./numbers.js";
import { dictionaryFields } from "./pick.js";
import { linkToConcept } from "./router.js";

const SLIDERS = 12; // the strongest codes,
const LEAST_SHARE = 1e-4; // none below this share of the largest
const PAUSE_MS = 60; // of a moving slider, before it is decoded
const MOST_TEXT = 2_000_000; // that a text field is given: of a longer file it says so
const HINT = "[0, 1.5, 0.25, …] or 0, 1.5, 0.25, …";
const UNREAD = "The row cannot be read";
const draft = { file: null, text: "", rows: null, row: 0 }; // file: one whose rows or text have not been read yet

/** What cannot be taken from what was given, before the service is asked. */
class NoRow extends Error {
  constructor(message, title = "No such row") {
    super(message);
    this.title = title;
  }
}

export async function show(content, [reference], signal) {
  const alert = alertPlace();
  const waiting = h("p", { class: "waiting", role: "status" });
  const result = h("div", { class: "view" });
  const { inputs: [choice], dictionaries } = await dictionaryFields(["Dictionary"], [reference ?? ""], signal);
  if (!choice.input.value && dictionaries.length === 1) choice.input.value = dictionaries[0].name;
  const [textId, rowId] = [newId(), newId()];
  const text = h("textarea", { id: textId, rows: 4, spellcheck: "false", placeholder: HINT, value: draft.text,
    oninput: () => Object.assign(draft, { file: null, text: text.value, rows: null }) });
  const row = h("input", { id: rowId, type: "number", min: 0, value: draft.row, oninput: () => { draft.row = row.valueAsNumber; } });
  const zone = dropZone({ label: "or a file", accept: ".npy,.csv,.safetensors,.json", help: "A .npy, .csv, .safetensors or .json file; one of its rows is taken.", file: draft.file, onfile: (file) => {
    Object.assign(draft, { file, text: "", rows: null });
    text.value = "";
    text.placeholder = HINT;
    result.replaceChildren(); // that of another row
    encode();
  } });
  const example = h("button", { type: "button", onclick: () => guarded(useConcept) }, "Use a concept as the row");
  content.append(heading("Try it"), panel("A row of activations",
    h("form", { novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      encode();
    } },
      h("div", { class: "filters" }, choice.element, h("div", {}, h("label", { for: rowId }, "Row, from 0"), row)),
      h("div", { class: "field" }, h("label", { for: textId }, "Numbers, as JSON or with commas between them"), text),
      zone.element, alert, waiting,
      h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Encode"), example))), result);

  const next = onlyTheLast(signal);

  /** One at a time: what is asked for ends what was, whose answer might come later. */
  async function guarded(work) {
    const mine = next();
    alert.replaceChildren();
    tellWait(waiting, "");
    try {
      await work({ signal: mine, repeatable: true, waiting: (words) => tellWait(waiting, words) });
    } catch (error) {
      if (mine.aborted) return;
      result.replaceChildren(); // those of another row
      tell(alert, error);
    }
  }

  const named = () => choice.input.value.trim();

  async function useConcept(options) {
    const concept = await getJson(`dictionaries/${encodeURIComponent(named())}/concepts/0`, options);
    text.value = JSON.stringify(concept.weights);
    Object.assign(draft, { file: null, text: text.value, rows: null, row: 0 });
    row.value = 0;
    await encoded(options);
  }

  function encode() {
    return guarded(encoded);
  }

  /** Read the file that waits for it, unless another one or a text takes its place meanwhile. */
  async function read(signal) {
    const { file } = draft;
    if (!file) return;
    const content = await contentOf(file);
    signal.throwIfAborted();
    if (draft.file !== file) return;
    Object.assign(draft, { file: null, ...content });
    const { rows } = content;
    const isLong = draft.text.length > MOST_TEXT;
    text.value = isLong ? "" : draft.text;
    if (rows) text.placeholder = `${whole(rows.rows)} rows of ${whole(rows.columns)} features, of ${file.name}`;
    else if (isLong) text.placeholder = `What is in ${file.name}`;
  }

  async function encoded(options) {
    await read(options.signal);
    const [input, asked] = [rowOf(), draft.row];
    const query = new URLSearchParams({ dictionary: named(), reconstruct: true });
    const told = await callJson("POST", input.numbers ? `encode?${query}` : "encode", {
      ...options, body: input.body, headers: { "Content-Type": input.type, Accept: "application/json" },
    }).catch((error) => {
      throw input.numbers && error instanceof Problem ? ofRow(asked, error) : error;
    });
    const { dictionary, version, codes, relative_error: errors } = told;
    const exact = `${dictionary}@${version}`;
    const { concept_labels: labels } = await getJson(`dictionaries/${encodeURIComponent(exact)}`, options);
    if (!input.numbers) requireRow(asked, codes.length);
    const at = input.numbers ? 0 : asked;
    result.replaceChildren(...codesOf({ exact, labels, codes: codes[at], error: errors[at], row: input.numbers, asked, signal }));
  }

  /** The row as it is sent, and its numbers where they can be read here. What cannot goes as it is: the service says why. */
  function rowOf() {
    if (!Number.isInteger(draft.row) || draft.row < 0) throw new NoRow("its number is a whole one, from 0 on");
    if (draft.rows) {
      requireRow(draft.row, draft.rows.rows);
      const numbers = draft.rows.row(draft.row);
      return { numbers, body: writeNpy(numbers), type: NPY };
    }
    const isJson = /^\s*[[{]/.test(draft.text);
    const cells = isJson ? null : cellsOf(draft.text, draft.row);
    const numbers = numbersOf(isJson ? parsed(draft.text, draft.row) : cells);
    if (numbers) return { numbers, body: writeNpy(numbers), type: NPY };
    const data = isJson ? draft.text : JSON.stringify(cells);
    return { numbers: null, body: `{"dictionary": ${JSON.stringify(named())}, "reconstruct": true, "data": ${data}}`, type: "application/json" };
  }
}

/** What is in a file: the rows of an npy or safetensors file, the text of any other. */
async function contentOf(file) {
  const unread = (why) => new NoRow(`${file.name} ${why}`, "The file cannot be read");
  const buffer = await file.arrayBuffer().catch(() => {
    throw unread("is too large to be read here, or has changed since it was chosen");
  });
  const rows = readNpy(buffer) ?? readSafetensors(buffer);
  if (rows) return { rows, text: "" };
  if (isNpy(buffer)) throw unread("is an npy file of a kind that is not read here: save rows of float16, float32, float64 or integers");
  const none = "is neither text nor npy nor safetensors with one array of rows: choose a .npy, .csv, .safetensors or .json file";
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(buffer);
  } catch {
    throw unread(none);
  }
  if (text.includes("\0")) throw unread(none);
  return { rows, text };
}

/** The row in the service's words as a person counts it: the service has been sent one alone. */
function ofRow(row, problem) {
  const words = (text) => text.replace("row 0,", `row ${row},`);
  const errors = problem.errors.map((entry) => ({ ...entry, msg: words(entry.msg) }));
  return Object.assign(problem, { message: words(problem.message), errors });
}

/** Signals for what is asked for again and again: each ends what was asked for with the one before, and `signal` all. */
function onlyTheLast(signal) {
  let running = new AbortController();
  return () => {
    running.abort();
    running = new AbortController();
    return AbortSignal.any([signal, running.signal]);
  };
}

function requireRow(row, count) {
  if (row >= count) throw new NoRow(`there ${count === 1 ? "is one row" : `are ${whole(count)} rows`}, from 0; ${whole(row)} was asked for`);
}

/** A row of JSON: of rows, of a single one, or of a request's `data`. */
function parsed(text, row) {
  let rows;
  try {
    const told = JSON.parse(text);
    rows = Array.isArray(told) ? told : told.data;
  } catch {
    return null;
  }
  if (!Array.isArray(rows)) return null;
  const isMany = Array.isArray(rows[0]);
  requireRow(row, isMany ? rows.length : 1);
  return isMany ? rows[row] : rows;
}

/** A row of lines of numbers, as the service counts them: a first line without any number is a header. What is no number stays as it is. */
function cellsOf(text, row) {
  const lines = text.split(/[\r\n]+/).filter((line) => line.trim());
  const cells = (line) => line.trim().split(/\s*[,;]\s*|\t|\s+/).map((cell) => cell.replace(/^"([^"]*)"$/, "$1"));
  const isNumber = (cell) => cell !== "" && !Number.isNaN(Number(cell));
  const first = lines.length > 1 ? cells(lines[0]) : [];
  if (first.length > 2 && first.every((cell, at) => cell === String(at))) {
    throw new NoRow("the first line is 0,1,2,…: column names, as pandas writes them? Save with header=False; a row of these numbers is written 0.0,1.0,…", UNREAD);
  }
  const rows = first.length && !first.some(isNumber) ? lines.slice(1) : lines;
  if (!rows.length) return [];
  requireRow(row, rows.length);
  if (rows[row].includes(",") && /;|\d\s+[-+.\d]/.test(rows[row])) { // 1,5;2,5 would be taken for four numbers
    throw new NoRow("commas part numbers here: write 1.5 for 1,5", UNREAD);
  }
  const found = cells(rows[row]);
  const empty = found.indexOf("");
  if (empty >= 0) throw new NoRow(`feature ${whole(empty)}, counted from 0, has none: write 0 where that is its value`, "A number is missing");
  return found.map((cell) => (isNumber(cell) ? Number(cell) : cell));
}

function numbersOf(row) {
  const isRow = Array.isArray(row) && row.length > 0 && row.every((value) => typeof value === "number");
  return isRow ? Float32Array.from(row) : null;
}

function codesOf({ exact, labels, codes, error, row, asked, signal }) {
  const most = largest(codes);
  const strongest = [...codes.keys()].sort((a, b) => codes[b] - codes[a]).slice(0, SLIDERS).filter((i) => codes[i] > LEAST_SHARE * most);
  const used = codes.filter((code) => code > LEAST_SHARE * most).length; // none where all are zero
  const now = [...codes];
  const alert = alertPlace();
  const told = h("p", { class: "number", role: "status" });
  const beside = h("div", { class: "columns" });
  const next = onlyTheLast(signal);
  const decodeSoon = debounced(PAUSE_MS, decode);
  const sliders = strongest.map((i) => slider(i, labels[i], exact, codes[i], most, (value) => {
    now[i] = value;
    decodeSoon();
  }));
  decode();

  async function decode() {
    try {
      const rows = await call("POST", `decode?${new URLSearchParams({ dictionary: exact })}`, {
        body: writeNpy(now), headers: { "Content-Type": NPY, Accept: NPY }, repeatable: true, read: npyOf,
        signal: next(), waiting: (text) => tellWait(alert, text),
      });
      const rebuilt = rows.row(0);
      alert.replaceChildren();
      told.textContent = `Relative error ‖a − zD‖ / ‖a‖: ${percent(row ? errorOf(row, rebuilt) : error)}`;
      beside.replaceChildren(...comparison(row, rebuilt));
    } catch (failure) {
      tell(alert, failure);
    }
  }

  const inUse = used ? `${whole(used)} ${used === 1 ? "is" : "are"} in use, the largest is ${figure(most)}` : "all are zero";
  const words = `All ${whole(codes.length)} codes by concept; ${inUse}.`;
  return [
    panel(`Codes of row ${whole(asked)}`, told, alert,
      codes.length <= 2000 && captionedHistogram(codes, 0, codes.length - 1, words),
      used > 0 && [h("h3", {}, `The strongest, to be moved`), h("ul", { class: "codes" }, sliders.map(({ element }) => element)),
      h("p", {}, h("button", { type: "button", onclick: () => {
        sliders.forEach(({ set }, at) => set(codes[strongest[at]]));
        decode();
      } }, "As encoded"))]),
    panel("Reconstruction", beside),
  ];
}

async function npyOf(answer) {
  const rows = answer.ok ? readNpy(await answer.clone().arrayBuffer()) : null;
  if (!rows) throw await problemOf(answer);
  return rows;
}

function slider(i, label, exact, code, most, onmove) {
  const id = newId();
  const shown = h("output", { for: id }, figure(code));
  const input = h("input", { id, type: "range", min: 0, max: 2 * most, step: most / 100, value: code, oninput: () => {
    shown.textContent = figure(Number(input.value));
    onmove(Number(input.value));
  } });
  input.value = code;
  const element = h("li", {}, h("label", { for: id }, h("a", { href: linkToConcept(exact, i) }, `#${i}`), labelled(label)), input, shown);
  return { element, set: (value) => {
    input.value = value;
    shown.textContent = figure(value);
    onmove(value);
  } };
}

function errorOf(row, rebuilt) {
  let [error, size] = [0, 0];
  row.forEach((value, j) => {
    error += (value - rebuilt[j]) ** 2;
    size += value ** 2;
  });
  return size ? Math.sqrt(error / size) : 0;
}

/** The row beside what its codes make of it: as pictures where it may be an image, as lines otherwise. */
function comparison(row, rebuilt) {
  const shape = imageShape(rebuilt.length);
  if (!row) return [h("div", {}, lines([rebuilt], "The reconstruction, by feature"))];
  const most = Math.max(largest(row), largest(rebuilt));
  const both = h("figure", {}, lines([row, rebuilt], "The row and its reconstruction, by feature"),
    h("figcaption", {}, h("span", { class: "key" }), "the row ", h("span", { class: "key second" }), "its reconstruction"));
  if (!shape) return [both];
  const [width, height, channels] = shape;
  const drawn = (values, name) => h("figure", {}, picture(values, width, height, { channels, most, alternative: name }), h("figcaption", {}, name));
  return [drawn(row, "The row"), drawn(rebuilt, "Its reconstruction"), both];
}
