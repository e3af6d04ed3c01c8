// A prediction: a field or choices, and what was noted.
import { bar, button, frame, h, labelled } from "./shared.js";

export function render({ model, el }) {
  const { question, choices, unit } = model.get("setup");
  const { root, status } = frame(model, el, `Prediction: ${question}`);
  const send = (value) => model.send({ do: "answer", value });
  const buttons = choices.map((words) => button(words, () => send(words)));
  const press = () => buttons.forEach((one, k) => one.setAttribute("aria-pressed", model.get("value") === choices[k]));
  const field = h("input", { type: "number", step: "any", value: model.get("value") });
  const note = () => send(field.value === "" ? null : Number(field.value));
  field.addEventListener("keydown", (e) => e.key === "Enter" && !e.ctrlKey && !e.shiftKey && note());
  const answer = choices.length ? [h("div", { class: "rl-group", role: "group", "aria-label": question }, ...buttons)]
    : [labelled("your prediction", field, unit), button("Note it", note, "Note this prediction")];
  root.append(h("p", {}, h("b", {}, question)), bar(...answer), status);
  model.on("change:value", press);
  press();
}
