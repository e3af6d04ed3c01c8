// The live bench: a form, and the runs side by side. The kernel decodes; this page sends what is asked and shows.

function show({ model, el }) {
  const { suites, students, teachers, settings } = model.get("setup");
  const { root, said } = frame(model, el, "Live bench");
  const send = (name, more = {}) => model.send({ do: name, ...more });

  const choice = (words, names, told = (name) => name) => {
    const select = h("select", {}, ...names.map((name) => h("option", { value: name }, told(name))));
    return [select, labelled(words, select)];
  };
  const number = (words, name, more = {}) => {
    const input = h("input", { type: "number", min: 0, step: 1, value: settings[name] ?? "", ...more });
    return [input, labelled(words, input)];
  };
  const levels = Object.fromEntries(suites);
  const [suite, suiteField] = choice("suite", Object.keys(levels), (name) => `${name} (${levels[name]})`);
  const [student, studentField] = choice("student", students);
  const [teacher, teacherField] = choice("teacher", teachers);
  const [tokens, tokensField] = number("tokens at most", "max_tokens", { min: 1 });
  const [calls, callsField] = number("calls at most", "max_calls", { placeholder: "any" });
  const [callTokens, callTokensField] = number("tokens a call", "max_call_tokens", { placeholder: "any" });
  const [heat, heatField] = number("temperature", "temperature", { step: 0.1 });
  const [seed, seedField] = number("seed", "seed");
  const [pace, paceField] = choice("pace", ["0", "20", "5"], (v) => (v === "0" ? "as fast as it goes" : `${v} tokens/s`));
  if (![...pace.options].some((o) => Number(o.value) === settings.pace))
    pace.append(h("option", { value: settings.pace }, `${settings.pace} tokens/s`));
  pace.value = String(settings.pace);
  const question = h("textarea", { rows: 3, dir: "auto", spellcheck: false });
  const known = h("span", { class: "rl-muted" });

  const take = () => {
    const picked = model.get("picked");
    if (!picked.question) return;
    suite.value = picked.suite;
    question.value = picked.question;
    grading();
  };
  const grading = () => {
    const picked = model.get("picked");
    const same = question.value.trim() === picked.question;
    known.textContent = same ? `${picked.suite}, number ${picked.index}: will be graded against ${picked.answer}` : "your own question: not graded";
  };
  const whole = (input) => (input.value === "" ? null : Number(input.value));
  const ask = () =>
    send("ask", {
      question: question.value,
      student: student.value,
      teacher: teacher.value,
      max_tokens: whole(tokens),
      max_calls: whole(calls),
      max_call_tokens: whole(callTokens),
      temperature: Number(heat.value),
      seed: whole(seed),
      pace: Number(pace.value),
    });
  suite.addEventListener("change", () => send("pick", { suite: suite.value }));
  question.addEventListener("input", grading);
  question.addEventListener("keydown", (e) => {
    if (e.key !== "Enter" || !(e.ctrlKey || e.metaKey)) return;
    e.preventDefault();
    e.stopPropagation();
    if (!start.disabled) ask();
  });

  const start = button("Ask", ask, "Ask this question");
  const stop = button("Stop", () => send("stop"), "Stop the answer that is being written");
  const clear = button("Remove all", () => send("clear"), "Remove all runs");
  const area = h("div", { class: "rl-runs", tabindex: "-1" });
  root.append(
    h("fieldset", {}, h("legend", {}, "Question"),
      h("div", { class: "rl-bar" }, suiteField, button("Another one", () => send("pick", { suite: suite.value }), "Pick the next question of this suite"), known),
      h("label", { class: "rl-wide" }, h("span", {}, "question, picked or typed"), question)),
    h("div", { class: "rl-bar rl-form" },
      h("fieldset", {}, h("legend", {}, "Who"), studentField, teacherField),
      h("fieldset", {}, h("legend", {}, "Limits"), tokensField, callsField, callTokensField),
      h("fieldset", {}, h("legend", {}, "Drawing"), heatField, seedField, paceField)),
    h("div", { class: "rl-bar" }, h("div", { class: "rl-group" }, start, stop, clear), h("span", { class: "rl-muted" }, "ctrl+enter in the question asks, too")),
    said,
    area,
  );
  model.on("change:picked", take);
  take();
  pair(model, () => [start], stop);
  panels(model, area, () => ({ remove: (key) => send("remove", { key }) }));
}
