// The playground: a question, its settings in a fold, and the runs, the newest first. The kernel decodes; this page sends
// questions and shows answers.
import { bar, box, button, frame, h, labelled, select } from "./shared.js";
import { whatIf } from "./live.js";

export function render({ model, el }) {
  const { suites, students, teachers, settings } = model.get("setup");
  const { root, status } = frame(model, el, "Playground");
  const send = (name, more = {}) => model.send({ do: name, ...more });
  const pick = () => send("pick", { suite: suite.value });
  const number = (name, more = {}) => h("input", { type: "number", min: 0, step: 1, value: settings[name] ?? "", ...more });
  const names = (list) => list.map((name) => [name, name]);

  const suite = select(suites.map(([name, level]) => [name, `${name} (${level})`]), null, pick);
  const student = select(names(students));
  const teacher = select(names(teachers));
  const inputs = {
    max_tokens: number("max_tokens", { min: 1 }),
    max_calls: number("max_calls", { placeholder: "any" }),
    max_call_tokens: number("max_call_tokens", { placeholder: "any" }),
    temperature: number("temperature", { step: 0.1 }),
    seed: number("seed"),
  };
  const speeds = [...new Set([0, 20, 5, settings.pace])];
  const pace = select(speeds.map((v) => [v, v ? `${v} tokens/s` : "as fast as it goes"]), settings.pace);
  const question = h("textarea", { rows: 3, dir: "auto", spellcheck: false });
  const grading = h("span", { class: "rl-muted" });

  const updateGrading = () => {
    const picked = model.get("picks").find((one) => one.question === question.value.trim());
    grading.textContent = picked ? `${picked.suite}, number ${picked.index}: will be graded against ${picked.answer}` : "your own question: not graded";
  };
  const takePicked = () => {
    const picked = model.get("picked");
    if (!picked.question) return;
    suite.value = picked.suite;
    question.value = picked.question;
    updateGrading();
  };
  const ask = () => {
    const values = Object.entries(inputs).map(([name, input]) => [name, input.value === "" ? null : Number(input.value)]);
    send("ask", { question: question.value, student: student.value, teacher: teacher.value, ...Object.fromEntries(values), pace: Number(pace.value) });
  };
  question.addEventListener("input", updateGrading);
  question.addEventListener("keydown", (e) => {
    if (e.key !== "Enter" || !(e.ctrlKey || e.metaKey)) return;
    e.preventDefault();
    e.stopPropagation();
    if (!start.disabled) ask();
  });

  const start = button("Ask", ask, "Ask this question");
  const stop = button("Stop", () => send("stop"), "Stop the answer that is being written");
  const clear = button("Remove all", () => send("clear"), "Remove all runs");
  const { changes, area, help } = whatIf(model, { starters: [start], stop, newestFirst: true });
  const form = bar(
    box("Who", labelled("student", student), labelled("teacher", teacher)),
    box("Limits", labelled("tokens at most", inputs.max_tokens), labelled("calls at most", inputs.max_calls), labelled("tokens per call", inputs.max_call_tokens)),
    box("Sampling", labelled("temperature", inputs.temperature), labelled("seed", inputs.seed), labelled("pace", pace)),
  );
  form.classList.add("rl-form");
  root.append(
    box("Question", bar(labelled("suite", suite), button("Another one", pick, "Pick the next question of this suite"), grading),
      h("label", { class: "rl-wide" }, h("span", {}, "question, picked or typed"), question)),
    h("details", { class: "rl-words" }, h("summary", {}, "Student, teacher, limits, sampling"), form),
    bar(h("div", { class: "rl-group" }, start, stop, clear), h("span", { class: "rl-muted" }, "ctrl+enter in the question asks, too")),
    status,
    changes,
    area,
    help,
  );
  model.on("change:picked", takePicked);
  takePicked();
}
