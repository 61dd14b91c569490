// From the address after # to a view, which is loaded when it is first shown.

import { alertPlace, h, heading, tell } from "./element.js";
import { notice } from "./api.js";

const ROUTES = [
  [/^\/?$/, "dictionaries"],
  [/^\/dictionaries\/([^/]+)$/, "dictionary"],
  [/^\/dictionaries\/([^/]+)\/concepts\/(\d+)$/, "concept"],
  [/^\/fit$/, "fit"],
  [/^\/jobs\/([^/]+)$/, "job"],
  [/^\/try(?:\/([^/]+))?$/, "try"],
  [/^\/compare(?:\/([^/]+)\/([^/]+))?$/, "compare"],
  [/^\/service$/, "service"],
];
const DOTS = [".", ".."]; // in the path of a call they would lead elsewhere, encoded or not
const SECTION = { dictionary: "dictionaries", concept: "dictionaries", job: "fit" };

export const linkTo = (...parts) => `#/${parts.map((part) => encodeURIComponent(part)).join("/").replaceAll("%40", "@")}`;

export const linkToConcept = (reference, index) => linkTo("dictionaries", reference, "concepts", String(index));

/** The name of a view and what its address says; null where there is no such view. */
function routed(path) {
  for (const [pattern, name] of ROUTES) {
    const match = pattern.exec(path);
    if (!match) continue;
    try {
      const parts = match.slice(1).map((part) => part && decodeURIComponent(part));
      return parts.some((part) => DOTS.includes(part)) ? null : { name, parts };
    } catch {
      return null; // it is malformed
    }
  }
  return null;
}

let leave = new AbortController();
let isFirst = true;

export async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const view = document.getElementById("view");
  const found = routed(location.hash.slice(1));
  notice("");
  document.title = "dictserve"; // until the view has one of its own
  mark(found?.name);
  const content = h("div", { class: found ? `view ${found.name}` : "view" });
  view.replaceChildren(content);
  view.setAttribute("aria-busy", "true");
  try {
    if (!found) {
      content.append(heading("No such view"), h("p", {}, h("a", { href: "#/" }, "To the dictionaries")));
      return;
    }
    const module = await import(`./${found.name}.js`).catch(() => {
      throw new Error("This part of the page could not be loaded: the service does not answer.");
    });
    if (signal.aborted) return;
    await module.show(content, found.parts, signal);
  } catch (error) {
    if (signal.aborted) return;
    const { name, title, message, errors } = error;
    const hasHeading = content.querySelector("h1") !== null;
    if (!hasHeading) content.append(heading(title ?? "It cannot be shown"));
    const place = alertPlace();
    content.append(place, h("p", {}, h("button", { type: "button", onclick: show }, "Try again")));
    tell(place, hasHeading ? error : { name, message, errors }); // the title is told already
  } finally {
    if (!signal.aborted) {
      view.removeAttribute("aria-busy");
      if (!isFirst) view.querySelector("h1")?.focus({ preventScroll: true });
      isFirst = false;
    }
  }
}

function mark(name) {
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === (SECTION[name] ?? name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}
