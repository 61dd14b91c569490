// Elements of the document, made in one expression. Text is always text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value") element.value = value;
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let count = 0;
export const newId = () => `e${++count}`;

/** A place for what goes wrong: read out when it is filled. */
export function alertPlace() {
  return h("div", { class: "alert", role: "alert" });
}

/** Tell of an error in words, the service's own where it has some. */
export function tell(place, error) {
  if (error.name === "AbortError") return;
  const errors = (error.errors ?? []).filter((entry) => !error.message.includes(entry.msg));
  place.replaceChildren(
    h("p", {}, error.title ? h("strong", {}, `${error.title}: `) : null, error.message),
    errors.length ? h("ul", {}, errors.map((entry) => h("li", {}, `${placeOf(entry.loc)}: ${entry.msg}`))) : "",
  );
}

/** Where in a request something is wrong, in words. */
export function placeOf([field, row, column, ...rest]) {
  if (typeof row !== "number") return [field, row, column, ...rest].filter((part) => part !== undefined).join(" ");
  return `${field}, row ${row}${column === undefined ? "" : `, column ${column}`}`;
}

/** A label behind what it is of, on its own: one that is written from right to left turns nothing around beside it. */
export const labelled = (label) => (label ? [" ", h("bdi", {}, label)] : []);

/** A section with a heading; without a title, a plain block. */
export function panel(title, ...children) {
  const id = newId();
  return h("section", { class: "panel", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

/** A figure with its name and, if there is any, what it means. */
export const stat = (title, text, help) => h("div", {}, h("dt", {}, title), h("dd", { class: "value" }, text), help && h("dd", { class: "help" }, help));

/** What may be wider than the page: moved sideways by itself, by keys too. */
export function scrolling(label, ...children) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children);
}

/** A small table of numbers, which nobody sorts. */
export function numberTable(label, heads, rows) {
  const cells = (row) => row.map((value) => h("td", { class: "number" }, value));
  return scrolling(label, h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: "number" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, cells(row))))));
}

/** The head of a view: where one is, and what can be done there. */
export function heading(title, ...actions) {
  document.title = `${title} · dictserve`;
  return h("div", { class: "heading" }, h("h1", { tabindex: -1 }, title), h("div", { class: "actions" }, actions));
}

/** Ask before what cannot be undone; resolves to whether to go on, which is not so once the view is left. */
export function confirmed(question, act, signal) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question", onclose: () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    } },
      h("p", { id: "question" }, question),
      h("div", { class: "actions" },
        h("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, act)));
    document.body.append(dialog);
    dialog.showModal();
    signal.addEventListener("abort", () => dialog.close("no"));
  });
}

/**
 * Do something with the button disabled that asked for it. That takes the focus from it: afterwards it has it again or,
 * if it is no more, what has come in its place, unless somebody has gone on meanwhile.
 */
export async function disabledFor(button, work, inItsPlace = null) {
  const hadFocus = document.activeElement === button;
  button.disabled = true;
  try {
    await work();
  } finally {
    button.disabled = false;
    if (hadFocus && document.activeElement === document.body) (button.isConnected ? button : inItsPlace)?.focus();
  }
}

/** Call with the last arguments only, once calls have stopped for a moment. */
export function debounced(milliseconds, call) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), milliseconds);
  };
}

/** Call at once or, so soon after the last time, once it is time again: with the last arguments only. */
export function atMostEvery(milliseconds, call) {
  let [timer, last] = [0, -Infinity];
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      last = performance.now();
      call(...given);
    }, last + milliseconds - performance.now());
  };
}

/** Begin each call once the one before has ended: what is changed twice is left as the later one would have it. */
export function inTurn(call) {
  let before = Promise.resolve();
  return (...given) => {
    const next = () => call(...given);
    before = before.then(next, next);
  };
}
