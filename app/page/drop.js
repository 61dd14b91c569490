// A place to drop a file on, which is also a button to choose one.

import { h, newId } from "./element.js";
import { bytes } from "./numbers.js";

export function dropZone({ label, accept, help, file = null, onfile }) {
  const [id, wrongId, helpId] = [newId(), newId(), newId()];
  const told = h("span", { class: "number", "aria-live": "polite" });
  const wrong = h("span", { class: "wrong", id: wrongId });
  const take = (taken) => {
    if (!taken) return;
    told.textContent = `${taken.name}, ${bytes(taken.size)}`;
    onfile(taken);
  };
  const input = h("input", { id, type: "file", accept, "aria-describedby": `${helpId} ${wrongId}`,
    onclick: () => { input.value = ""; }, // else the same file, chosen again, would be no change
    onchange: () => take(input.files[0]) });
  const over = (event, is) => {
    event.preventDefault();
    element.classList.toggle("over", is);
  };
  const element = h("div", { class: "drop field",
    ondragover: (event) => over(event, true),
    ondragleave: (event) => over(event, false),
    ondrop: (event) => {
      over(event, false);
      take(event.dataTransfer.files[0]);
    } },
    h("label", { for: id }, label), h("span", { class: "help", id: helpId }, `Drop it here, or choose it. ${help}`), input, told, wrong);
  if (file) told.textContent = `${file.name}, ${bytes(file.size)}`;
  return { element, input, wrong };
}
