// Counterfactuals: choose a token in a strip and change what happens there. The kernel decodes the rest.
import { bar, button, frame, questionBox } from "./shared.js";
import { whatIf } from "./live.js";

export function render({ model, el }) {
  const { root, status } = frame(model, el, "Counterfactuals: a trace, and what becomes of it when one thing is changed");
  const stop = button("Stop", () => model.send({ do: "stop" }), "Stop the answer that is being written");
  const clear = button("Remove forks", () => model.send({ do: "clear" }), "Remove all forks");
  const { changes, area, help } = whatIf(model, { stop, question: false });
  root.append(questionBox((model.get("runs")[0] ?? model.get("live")).question), changes, bar(stop, clear), status, area, help);
}
