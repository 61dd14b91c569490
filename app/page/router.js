// From the address after # to a view, which is loaded when it is first shown.

import { alertPlace, h, tell } from "./element.js";
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
const SECTION = { dictionary: "dictionaries", concept: "dictionaries", job: "fit" };

export const linkTo = (...parts) => `#/${parts.map((part) => encodeURIComponent(part)).join("/").replaceAll("%40", "@")}`;

let leave = new AbortController();
let isFirst = true;

export async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const view = document.getElementById("view");
  const path = location.hash.slice(1);
  const found = ROUTES.map(([pattern, name]) => [pattern.exec(path), name]).find(([match]) => match);
  notice("");
  document.title = "dictserve"; // until the view has one of its own
  mark(found?.[1]);
  if (!found) {
    view.replaceChildren(h("h1", { tabindex: -1 }, "No such view"), h("p", {}, h("a", { href: "#/" }, "To the dictionaries")));
    return;
  }
  const content = h("div", { class: `view ${found[1]}` });
  view.replaceChildren(content);
  view.setAttribute("aria-busy", "true");
  try {
    const module = await import(`./${found[1]}.js`).catch(() => {
      throw new Error("This part of the page could not be loaded: the service does not answer.");
    });
    if (signal.aborted) return;
    await module.show(content, found[0].slice(1).map((part) => part && decodeURIComponent(part)), signal);
  } catch (error) {
    if (signal.aborted) return;
    const place = alertPlace();
    content.append(place, h("p", {}, h("button", { type: "button", onclick: show }, "Try again")));
    tell(place, error);
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
