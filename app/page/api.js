// Calls to the service: with the token, repeated after an interruption where that is safe, errors in its own words.

import { h, alertPlace, tell } from "./element.js";
import { upload } from "./upload.js";

const KEY = "dictserve.token";
const NEEDED = "dictserve.needsToken"; // kept once a 401 has said so
const LATER = new Set([429, 502, 503, 504]);
const MOST_TRIES = 30; // of what a person waits for, while a worker starts; what is only read is tried until they leave
const MOST_SECONDS = 60; // between two tries, whatever a proxy asks for: the service itself never asks for more
const NOW = "trynow"; // the event by which a person ends every wait

/** What the service says is wrong (RFC 9457), or that it does not answer (status 0). */
export class Problem extends Error {
  constructor(status, told, retrySeconds = 0) {
    super(told.detail);
    const { type, title = `Status ${status}`, errors = [] } = told;
    Object.assign(this, { status, type, title, errors, retrySeconds });
  }
}

/**
 * Call the service.
 *
 * path: relative, so that the page works under whatever path the service is mounted.
 * repeatable: whether sending it twice does no harm.
 * read: from the answer to what is wanted of it, or a Problem.
 * waiting: told what is waited for after an interruption, and "" when that is over.
 * onsent: told the share of the body, a file, that has been sent; anew with each try.
 */
export async function call(method, path, options = {}) {
  const { signal, body, headers = {}, repeatable = method === "GET", read = asItIs, waiting = notice, onsent } = options;
  const most = method === "GET" ? Infinity : MOST_TRIES;
  for (let tries = 1; ; tries++) {
    try {
      const told = await once(method, path, { signal, body, headers, read, onsent });
      if (tries > 1) waiting("");
      return told;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (wantsToken(error)) {
        await askToken(error, signal);
        continue;
      }
      const isLater = LATER.has(error.status) || error.status === 0;
      if (!isLater || !repeatable || tries >= most) {
        waiting("");
        throw error;
      }
      await pause(error.retrySeconds || Math.min(2 ** (tries - 1), 10), error, signal, waiting);
    }
  }
}

/**
 * Whether a token, or another one, is what is wanted. With 403 the service tells of a token that may not do this; but
 * also, where it needs none at all, of what it takes for a page of another site.
 */
function wantsToken({ status, type }) {
  if (status === 401) sessionStorage.setItem(NEEDED, "yes");
  return status === 401 || (status === 403 && type === "forbidden" && sessionStorage.getItem(NEEDED) !== null);
}

export const callJson = (method, path, options) => call(method, path, { ...options, read: json });
export const getJson = (path, options) => callJson("GET", path, options);

async function asItIs(answer) {
  if (answer.ok) return answer;
  throw await problemOf(answer);
}

async function json(answer) {
  const told = parsed(await (await asItIs(answer)).text());
  if (told === null) throw await problemOf(answer);
  return told;
}

/** An object or an array of JSON; null where it is anything else. A seed that numbers here cannot hold stays text. */
export function parsed(text) {
  try {
    const told = JSON.parse(text.replace(/("seed": ?)(\d{16,})/g, '$1"$2"'));
    return typeof told === "object" ? told : null;
  } catch {
    return null;
  }
}

async function once(method, path, { signal, body, headers, read, onsent }) {
  const token = sessionStorage.getItem(KEY);
  const request = { method, body, signal, headers: token ? { ...headers, Authorization: `Bearer ${token}` } : headers };
  let answer;
  try {
    answer = await (onsent ? upload(path, { ...request, onsent }) : fetch(path, request));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (body instanceof Blob && !(await isReadable(body))) {
      const detail = "it has changed since it was chosen, or is gone: choose it again";
      throw new Problem(400, { title: "The file cannot be read", detail });
    }
    throw new Problem(0, { title: "No connection", detail: "the service does not answer" });
  }
  try {
    return await read(answer);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // which is how browsers tell of it
    throw new Problem(0, { title: "No connection", detail: "the answer broke off" });
  }
}

/** Whether a file is what it was when it was chosen: browsers send no other, and do not say why. */
const isReadable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

/** What is wrong with an answer: in the service's words or, where it is none of the service's, in ours. */
export async function problemOf(answer) {
  const told = parsed(await answer.text().catch(() => ""));
  const plain = {
    title: `Status ${answer.status} ${answer.statusText}`.trim(),
    detail: "this is no answer of the service, but of a proxy or the like before it",
  };
  const seconds = Number(answer.headers.get("retry-after")) || 0;
  const known = typeof told?.detail === "string" ? told : plain;
  return new Problem(answer.status, known, Math.min(Math.max(seconds, 0), MOST_SECONDS));
}

/** Wait, saying why and how long, until it is time to try again; at once where the connection has come back. */
export async function pause(seconds, error, signal, waiting = notice) {
  const until = Date.now() + 1000 * seconds;
  for (let left = seconds; left > 0; left = (until - Date.now()) / 1000) {
    waiting(`${error.title}: ${error.message}. Trying again in ${Math.ceil(left)} s.`);
    if (await tick(Math.min(left, 1), signal)) break;
  }
  waiting(`${error.title}: ${error.message}. Trying again now.`);
}

/** Resolves after the time, or to true once one is online again or would go on; rejects when the view is left. */
function tick(seconds, signal) {
  return new Promise((resolve, reject) => {
    const done = (settle, value) => {
      clearTimeout(timer);
      removeEventListener("online", back);
      removeEventListener(NOW, back);
      signal?.removeEventListener("abort", left);
      settle(value);
    };
    const back = () => done(resolve, true);
    const left = () => done(reject, new DOMException("left", "AbortError"));
    const timer = setTimeout(() => done(resolve, false), 1000 * seconds);
    addEventListener("online", back);
    addEventListener(NOW, back);
    signal?.addEventListener("abort", left);
    if (signal?.aborted) left();
  });
}

/** Tell in a place what is waited for, with a button for who would not; "" when that is over. */
export function tellWait(place, text) {
  if (!text) {
    const hasFocus = place.contains(document.activeElement);
    place.replaceChildren();
    if (hasFocus) document.getElementById("view").focus({ preventScroll: true });
    return;
  }
  let words = place.querySelector(".words");
  if (!words) { // else the button stays as it is, and has the focus that it had
    words = h("span", { class: "words" });
    const now = h("button", { type: "button", onclick: () => dispatchEvent(new Event(NOW)) }, "Try now");
    place.replaceChildren(words, " ", now);
  }
  if (words.textContent !== text) words.textContent = text;
}

/** The line under the page's head, for what concerns all of it. */
export const notice = (text) => tellWait(document.getElementById("notice"), text);

let asked = null;

/** Ask for a token, once for all calls that need one; they go on when it is given. */
export function askToken(problem, signal) {
  asked ??= new Promise((resolve, reject) => {
    const place = alertPlace();
    const input = h("input", { id: "token-given", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
    const dialog = h("dialog", { "aria-labelledby": "token-title", onclose: () => {
      dialog.remove();
      asked = null;
      if (dialog.returnValue === "given") resolve();
      else reject(problem ?? new DOMException("closed", "AbortError"));
    } },
      h("form", { onsubmit: (event) => {
        event.preventDefault();
        const token = input.value.trim();
        if (!/^[!-~]+$/.test(token)) {
          tell(place, { title: "No token", message: "it has characters that tokens do not have" });
          return;
        }
        sessionStorage.setItem(KEY, token);
        dialog.close("given");
      } },
        h("h2", { id: "token-title" }, "A token, please"),
        place,
        h("p", { class: "muted" }, "It is kept until this tab is closed. What you have typed in the page stays. "
          + "Whoever runs the service makes tokens with “dictserve token new”."),
        h("label", { for: "token-given" }, "Token"),
        input,
        h("div", { class: "actions" },
          h("button", { type: "button", onclick: () => dialog.close("") }, "Cancel"),
          h("button", { type: "submit", class: "primary" }, "Use it"))));
    document.body.append(dialog);
    dialog.showModal();
    if (problem) tell(place, problem);
    signal?.addEventListener("abort", () => dialog.close(""));
  });
  return asked;
}
