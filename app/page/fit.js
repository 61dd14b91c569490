// The view of a new fit: a file, and what the fit is told.

import { callJson, tellWait } from "./api.js";
import { alertPlace, disabledFor, h, heading, newId, panel, placeOf, tell } from "./element.js";
import { dropZone } from "./drop.js";
import { linkTo } from "./router.js";

// As in app/schemas.py; a test holds the two together.
const PARAMETERS = [
  { name: "name", label: "Name", type: "text", required: true, placeholder: "digits",
    help: "Of the dictionary: letters, digits, . _ -. A name that exists gets its next version." },
  { name: "nb_concepts", label: "Concepts", type: "number", required: true, min: 1, placeholder: "64",
    help: "How many concepts to look for (k). More explain more, and each says less: begin with a tenth of the features." },
  { name: "max_iter", label: "Most iterations", type: "number", min: 1, value: "500", help: "It stops earlier once it hardly improves." },
  { name: "tol", label: "Tolerance", type: "number", min: 0, max: 0.999999, step: "any", value: "0.0001",
    help: "It stops once ten iterations have lowered the loss by less than this share of it." },
  { name: "solver", label: "Solver", options: ["hals", "mu", "pgd", "anls"], value: "hals",
    help: "hals is the fastest and, as a rule, ends lowest. mu, pgd and anls are there to compare with." },
  { name: "init", label: "Start", type: "text", value: "auto",
    help: "auto, nndsvda, random, or a dictionary to start from, as digits@1." },
  { name: "seed", label: "Seed", type: "number", min: 0, value: "0", help: "The same data, parameters and seed give the same dictionary." },
  { name: "ranks", label: "Processes", type: "number", min: 1, value: "1", help: "That share out the rows; more than 1 only where the service allows it." },
  { name: "files", label: "Files of the service", rows: 2, placeholder: "layer4/*.npy",
    help: "Instead of a file from here: npy files of the service's data directory, where it has one. Names or patterns, one a line." },
  { name: "epochs", label: "Epochs", type: "number", min: 1,
    help: "Of files of the service: how often a fit in bounded memory reads each row. Large files are fitted so anyway." },
  { name: "clip", label: "Make negative values zero", type: "checkbox", help: "Else negative values are refused, with the place of the first." },
];
const FIRST = 2; // parameters that are always seen

// What has been typed stays while the page does, wherever one goes meanwhile.
const draft = { file: null, values: Object.fromEntries(PARAMETERS.map(({ name, value }) => [name, value ?? ""])), key: newKey() };

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function show(content, _, signal) {
  const wrong = {};
  const alert = alertPlace();
  const waiting = h("p", { class: "waiting", role: "status" });
  const send = h("button", { type: "submit", class: "primary" }, "Start the fit");
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Share of the file that has been sent" });
  const zone = dropZone({
    label: "Activations", accept: ".npy,.csv,.safetensors", file: draft.file,
    help: "A .npy, .csv or .safetensors file: a row for each example, a column for each feature, no negative values.",
    onfile: (file) => {
      Object.assign(draft, { file, key: newKey() });
      wrong.data.textContent = "";
    },
  });
  wrong.data = zone.wrong;
  const fields = PARAMETERS.map((parameter) => field(parameter, wrong));
  const form = h("form", { novalidate: true, onsubmit: (event) => {
    event.preventDefault();
    submit();
  }, oninput: () => { draft.key = newKey(); } },
    zone.element,
    h("div", { class: "fields" }, fields.slice(0, FIRST)),
    h("details", { open: PARAMETERS.slice(FIRST).some(({ name, value }) => draft.values[name] !== (value ?? "")) },
      h("summary", {}, "More parameters"), h("div", { class: "fields" }, fields.slice(FIRST))),
    alert, waiting, bar,
    h("div", { class: "actions" }, send));
  content.append(heading("New fit"), panel("What to fit", form));

  async function submit() {
    if (send.disabled) return;
    alert.replaceChildren();
    for (const [name, place] of Object.entries(wrong)) mark(name, place, "");
    const unread = [...form.elements].filter(({ validity }) => validity.badInput); // whose value is "", as if left out
    for (const { name } of unread) mark(name, wrong[name], "this is no number");
    if (unread.length) {
      unread[0].focus();
      return;
    }
    const files = draft.values.files.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!draft.file && !files.length) {
      mark("data", wrong.data, "choose a file first: drop it here, or use the button");
      zone.input.focus();
      return;
    }
    if (draft.file && /\.json$/i.test(draft.file.name)) { // a request's body, beside which nothing else is told
      mark("data", wrong.data, "choose a .npy, .csv or .safetensors file: JSON is not read here");
      zone.input.focus();
      return;
    }
    if (draft.file && files.length) {
      mark("files", wrong.files, "a file from here is chosen, too: leave out these, or open the page anew without it");
      form.querySelector("[name=files]").focus();
      return;
    }
    tellSent("Sending…");
    await disabledFor(send, () => sent(files.length ? ofFiles(files) : ofFile(draft.file)));
    tellSent("Start the fit");
  }

  async function sent({ path, type, body }) {
    try {
      const { id } = await callJson("POST", path, {
        body, signal, headers: { "Content-Type": type, "Idempotency-Key": draft.key }, repeatable: true,
        waiting: onwait, onsent: body instanceof File ? onsent : undefined,
      });
      draft.key = newKey();
      location.hash = linkTo("jobs", id);
    } catch (error) {
      tell(alert, error);
      for (const { loc, msg } of error.errors ?? []) {
        if (wrong[loc[0]]) mark(loc[0], wrong[loc[0]], loc.length > 1 ? `${placeOf(loc)}: ${msg}` : msg);
      }
      form.querySelector("[aria-invalid=true]")?.focus();
    }
  }

  function onwait(text) {
    tellWait(waiting, text);
    if (text) tellSent("Sending…");
  }

  function onsent(share) {
    tellSent(share < 1 ? `Sending… ${Math.floor(100 * share)} %` : "Sent. The service reads it…", share);
  }

  /** On the button and, where it is known how much of the file has gone, by the bar. */
  function tellSent(text, share = null) {
    send.textContent = text;
    bar.hidden = share === null;
    bar.value = share ?? 0;
  }

  function mark(name, place, text) {
    place.textContent = text;
    const input = name === "data" ? zone.input : form.querySelector(`[name=${name}]`);
    if (text) {
      input.setAttribute("aria-invalid", "true");
      const folded = input.closest("details");
      if (folded) folded.open = true;
    } else {
      input.removeAttribute("aria-invalid");
    }
  }
}

function field({ name, label, help, options, ...attributes }, wrong) {
  const [id, helpId, wrongId] = [newId(), newId(), newId()];
  wrong[name] = h("span", { class: "wrong", id: wrongId });
  const told = { id, name, "aria-describedby": `${helpId} ${wrongId}`, autocomplete: "off", ...attributes, value: draft.values[name] };
  const help_ = h("span", { class: "help", id: helpId }, help);
  if (attributes.type === "checkbox") {
    const box = h("input", { ...told, value: "true", onchange: () => { draft.values[name] = box.checked; } });
    box.checked = draft.values[name] === true;
    return h("div", { class: "field" }, h("label", { for: id }, box, label), help_, wrong[name]);
  }
  const input = h(options ? "select" : attributes.rows ? "textarea" : "input", { ...told, oninput: () => { draft.values[name] = input.value; } },
    (options ?? []).map((option) => h("option", { value: option }, option)));
  input.value = draft.values[name];
  return h("div", { class: "field" }, h("label", { for: id }, label), input, help_, wrong[name]);
}

/** What has been filled in, but for the files. */
function told() {
  return Object.entries(draft.values).filter(([name, value]) => name !== "files" && value !== "" && value !== false);
}

function ofFile(file) {
  return { path: `fit?${new URLSearchParams(told())}`, type: typeOf(file), body: file };
}

/** In JSON, where numbers are numbers: whole ones as they were typed, since a seed may be larger than numbers here. */
function ofFiles(files) {
  const isNumber = (name) => PARAMETERS.find((parameter) => parameter.name === name).type === "number";
  const inJson = (name, value) => (!isNumber(name) ? JSON.stringify(value) : /^[1-9]\d*$/.test(value) ? value : Number(value));
  const fields = told().map(([name, value]) => `"${name}": ${inJson(name, value)}`);
  return { path: "fit", type: "application/json", body: `{${[...fields, `"files": ${JSON.stringify(files)}`].join(", ")}}` };
}

const TYPES = { npy: "application/x-npy", csv: "text/csv", safetensors: "application/vnd.safetensors" };

/** By the name's end; without one that is known, the service finds out by the first bytes. */
function typeOf(file) {
  return TYPES[file.name.split(".").at(-1).toLowerCase()] ?? "application/octet-stream";
}
