// A prediction: a field, choices or the fields of a curve, and what was noted.
import { bar, button, frame, h, labelled } from "./shared.js";

export function render({ model, el }) {
  const { question, choices, unit, at } = model.get("setup");
  const { root, status } = frame(model, el, `Prediction: ${question}`);
  const send = (value) => model.send({ do: "answer", value });
  const buttons = choices.map((words) => button(words, () => send(words)));
  const fields = choices.length ? [] : (at.length ? at : [null]).map(() => h("input", { type: "number", step: "any" }));
  const show = () => {
    const value = model.get("value");
    buttons.forEach((one, k) => one.setAttribute("aria-pressed", value === choices[k]));
    fields.forEach((field, k) => (field.value = (at.length ? value?.[k] : value) ?? ""));
  };
  const note = () => {
    const numbers = fields.map((field) => (field.value === "" ? null : Number(field.value)));
    send(at.length ? numbers : numbers[0]);
  };
  fields.forEach((field) => field.addEventListener("keydown", (e) => e.key === "Enter" && !e.ctrlKey && !e.shiftKey && note()));
  const answer = choices.length ? [h("div", { class: "rl-group", role: "group", "aria-label": question }, ...buttons)]
    : [...fields.map((field, k) => labelled(at.length ? `at ${at[k]}` : "your prediction", field, unit)), button("Note it", note, "Note this prediction")];
  root.append(h("p", {}, h("b", {}, question)), bar(...answer), status);
  model.on("change:value", show);
  show();
}
