// Where the page begins.

import { askToken } from "./api.js";
import { show } from "./router.js";

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  dispatchEvent(new Event("theme"));
}

setTheme(localStorage.getItem("dictserve.theme") ?? "system");
document.getElementById("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  localStorage.setItem("dictserve.theme", next);
  setTheme(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("theme")));
document.getElementById("token").addEventListener("click", () => askToken(null).then(showAgain, () => {}));
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address after # is the view's
  document.getElementById("view").focus();
});

/** With another token, unless something is typed in the view: that stays, and what was wrong there can be tried again. */
function showAgain() {
  const isTyped = [...document.querySelectorAll("#view :is(input, textarea)")].some(({ value }) => value);
  if (!isTyped) show();
}

addEventListener("hashchange", show);
show();
