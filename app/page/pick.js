// A field to choose a dictionary in: those that there are are suggested, any name or name@version can be typed.

import { getJson } from "./api.js";
import { h, newId } from "./element.js";

export async function dictionaryFields(labels, values, signal) {
  const { dictionaries } = await getJson("dictionaries", { signal });
  const listId = newId();
  const names = dictionaries.flatMap(({ name, versions }) => [name, ...versions.slice(-5).reverse().map((version) => `${name}@${version}`)]);
  const list = h("datalist", { id: listId }, names.map((name) => h("option", { value: name })));
  const inputs = labels.map((label, at) => {
    const id = newId();
    const input = h("input", { id, list: listId, required: true, autocomplete: "off", spellcheck: "false", value: values[at] ?? "", placeholder: names[0] ?? "digits" });
    return { input, element: h("div", {}, h("label", { for: id }, label), input) };
  });
  inputs[0].element.append(list);
  return { inputs, dictionaries };
}
