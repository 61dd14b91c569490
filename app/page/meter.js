// A share as a bar, for the eye: the number stands beside it.

import { h } from "./element.js";

export function drawnShare(share) {
  const filled = h("span");
  filled.style.width = `${100 * share}%`;
  return h("span", { class: "meter", "aria-hidden": "true" }, filled);
}
