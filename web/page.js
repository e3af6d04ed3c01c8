// The page: a form, the answer as it is written, forks of it, and the table of calls. It decodes with relay.js.
// Texts of models and readers become text nodes only (views/shared.js).
import { bar, box, button, count, h, labelled, muted, onKeys, scrolling, select } from "./views/shared.js";
import { render as renderForks } from "./views/counterfactual_view.js";
import { fork, relay, Sequence } from "./relay.js";
import { loadPair, problems, settings } from "./runtime.js";

const KEEP = 4; // runs beside each other: the answer and its latest forks
const FRAME = 40; // milliseconds between two drawings
const FIRST = "tiles"; // the suite that is shown first, if the pair knows it: its first problem needs a call
const TITLE = [
  h("h1", {}, "A relay in this page"),
  h(
    "p",
    {},
    "A small model, the student, writes. Where it writes <call>n</call>, a larger one, the teacher, writes the " +
      "next n tokens. Both run in this page: there is no server, and nothing leaves the page.",
  ),
];
// Characters that could steer the layout or hide, as in relaylab/call_tag.py.
const HOSTILE = new RegExp(
  "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b" +
    "\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\ufffe\\uffff\\ud800-\\udfff" +
    "\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e0fff}]",
  "gu",
);
const visible = (text) => text.replace(HOSTILE, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

const STOPS = {
  end: "ended by the student",
  teacher_end: "ended by the teacher",
  length: "cut at the limit of tokens",
  context: "cut, the context was full",
  interrupted: "interrupted",
  "": "being written",
};
const RESULTS = {
  failed: "failed: the teacher could not",
  refused: "refused: a cap left nothing to grant",
  empty: "empty: no number in the command",
  malformed: "malformed: not a number",
  zero: "zero tokens requested",
  too_large: "too large a number",
  unclosed: "unclosed: the tag never ends",
};
const result = (call) => RESULTS[call.status] ?? call.status;
const isLost = (call) => call.status !== "answered" && call.status !== "waiting";

// "right", "wrong", or "" without a reference. Answers of the suites are whole numbers.
export function grade(text, answer) {
  if (!answer) return "";
  const boxed = [...text.matchAll(/\\boxed\{\s*([^{}]*?)\s*\}/g)].at(-1)?.[1] ?? "";
  return /^[+-]?[\d,]+(\.0+)?$/.test(boxed) && Number(boxed.replaceAll(",", "")) === Number(answer) ? "right" : "wrong";
}

// The text that the teacher sees: the answer without its commands.
export function withoutCalls(s) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(
    Uint8Array.from(s.view.flatMap((id) => Array.from(s.text.bytes[id], (c) => c.charCodeAt(0)))),
  );
}

// A sequence as the views draw it.
function state(s, run) {
  const pieces = s.pieces.map(visible);
  const teacher = s.source.filter((x) => x === "t").length;
  const lost = s.calls.filter(isLost).length;
  const share = s.ids.length ? ((100 * teacher) / s.ids.length).toFixed(1) : "0.0";
  const calls = s.calls.map((c) => ({
    ...c,
    lost: isLost(c),
    words: `asked for ${c.requested ?? "no number"}; granted ${c.granted}; delivered ${c.delivered}; ${result(c)}`,
  }));
  return {
    ...run,
    source: s.source.join(""),
    ids: [...s.ids],
    pieces,
    rewritten: [...pieces.keys()].filter((i) => pieces[i] !== s.pieces[i]),
    calls,
    outcome: s.stop === "interrupted" ? "" : grade(withoutCalls(s), run.answer),
    summary:
      `${count(s.ids.length, "token")}, ${count(calls.length, "call")}${lost ? ` (${lost} not answered)` : ""}, ` +
      `call ratio ${share} %, ${STOPS[s.stop]}`,
  };
}

// One question, its answer and its forks: the model that counterfactual_view.js draws and sends commands to.
class Answer {
  constructor(pair, onchange) {
    Object.assign(this, { pair, onchange, sequences: new Map(), listeners: [], made: 0, writing: null });
    this.state = { runs: [], live: {}, busy: false, message: "", failed: false, mark: "page" };
  }
  get = (name) => this.state[name];
  on = (event, listener) => this.listeners.push([event, listener]);
  set(changes) {
    Object.assign(this.state, changes);
    for (const [event, listener] of this.listeners) if (event.replace("change:", "") in changes) listener();
    this.onchange(this.state);
  }

  send(message) {
    const { runs } = this.state;
    if (message.do === "stop") this.stopped = true;
    if (message.do === "clear") this.set({ runs: runs.slice(0, 1), message: "Removed all forks.", failed: false });
    if (message.do === "remove")
      this.set({ runs: runs.filter((run) => run.key !== message.key), message: "Removed.", failed: false });
    if (message.do === "fork") {
      try {
        this.fork(runs[message.of], message);
      } catch (error) {
        this.set({ message: error.message, failed: true });
      }
    }
  }

  fork(base, { at, call = null, forbid = false }) {
    const k = base.calls.findIndex((c) => c.start <= at && at < c.end + c.delivered);
    const old = base.calls[k];
    if (forbid && !old) throw new Error(`token ${at + 1} belongs to no call, so there is none to forbid`);
    if (!forbid && !(Number.isInteger(call) && call >= 1 && call < 1e12))
      throw new Error("n must be a whole number of tokens, at least 1");
    if (!forbid && base.config.forbidCalls)
      throw new Error("no call can be forced: this student is alone; choose a pair with a teacher");
    const resized = !forbid && old && at <= old.end;
    const start = forbid || resized ? old.start : at;
    const { maxTokens } = base.config;
    if (!forbid && start + this.pair.text.encode(`<call>${call}</call>`).length >= maxTokens)
      throw new Error(`no room for a call at token ${start + 1}: the limit is ${maxTokens} tokens`);
    const what = forbid
      ? `call ${k + 1} forbidden`
      : resized
        ? `call ${k + 1} asks for ${call}, not ${old.requested ?? "no number"}`
        : `a call for ${call} at token ${at + 1}`;
    const run = {
      ...base,
      key: `run-${++this.made}`,
      heading: `Fork ${this.made}: ${what}`,
      how: `the first ${start} tokens are those of the ${base.heading.split(":")[0].toLowerCase()}`,
      fork: start,
      fixed: false,
    };
    this.write(fork(this.sequences.get(base.key), start, { call, forbid }), run);
  }

  // Writes a sequence to its end, and keeps it.
  async write(s, run) {
    this.sequences.set(run.key, s);
    this.stopped = false;
    this.set({ live: state(s, run), busy: true, message: `${run.heading}: writing …`, failed: false });
    let [drawn, error] = [0, ""];
    try {
      for await (const _ of relay(s, this.pair.text.promptIds(run.question), this.pair.student, this.pair.teacher)) {
        if (this.stopped) break;
        if (performance.now() - drawn < FRAME) continue;
        this.set({ live: state(s, run) });
        await new Promise((resolve) => setTimeout(resolve)); // the browser draws
        drawn = performance.now();
      }
    } catch (raised) {
      error = raised.message;
    }
    const done = state(s, run);
    const runs = [...this.state.runs, done];
    if (runs.length > KEEP) runs.splice(1, 1);
    this.set({
      runs,
      live: {},
      busy: false,
      failed: Boolean(error),
      message: error || `${run.heading}. ${done.outcome || "not graded"}, ${done.summary}.`,
    });
  }
}

function callTable(runs) {
  const rows = runs.flatMap((run) =>
    run.calls.map((c, k) => [
      `${run.heading.split(":")[0]}, call ${k + 1}`,
      c.start + 1,
      c.requested ?? "–",
      c.granted,
      c.delivered,
      result(c),
    ]),
  );
  const title = h("h2", {}, "Calls");
  if (!rows.length) return [title, muted("None.")];
  const left = ["call", "result"];
  const head = ["call", "at token", "asked", "granted", "delivered", "result"];
  const table = h(
    "table",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ...head.map((name) => h("th", { scope: "col", class: left.includes(name) ? "rl-left" : null }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      ...rows.map(([name, ...cells]) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          ...cells.map((cell, k) => h("td", { class: k === 4 ? "rl-left" : null }, String(cell))),
        ),
      ),
    ),
  );
  return [title, scrolling("Calls", table)];
}

async function start(main) {
  const status = h("p", { class: "rl-status", role: "status", "aria-live": "polite" }, "Loading …");
  const form = h(
    "section",
    { class: "rl-view", "aria-label": "Ask" },
    ...(window === window.parent ? TITLE : []), // a page around this one has its own
    h(
      "p",
      { class: "rl-muted" },
      "Tokens: ",
      h("span", { class: "rl-s" }, "student"),
      ", ",
      h("span", { class: "rl-t" }, "teacher: shaded, bold, underlined"),
      ", ",
      h("span", { class: "rl-c" }, "command: dashed border"),
      ".",
    ),
    status,
  );
  const answer = h("div", { class: "rl-answer" });
  const table = h("section", { class: "rl-view", "aria-label": "Calls", hidden: true });
  main.replaceChildren(form, answer, table);
  const fail = (error, remedy = "") => {
    status.classList.add("rl-bad");
    status.textContent = `✗ ${error.message}${remedy}`;
  };
  try {
    const [{ pairs }, drawn] = await Promise.all([settings(), problems(), loadPair(0)]);
    performance.mark("relay:ready");
    await controls(pairs, drawn, { form, status, answer, table, fail });
  } catch (error) {
    fail(error, ". Reload the page. It needs a web server, and a browser of 2023 or later");
  }
}

function controls(pairs, drawn, { form, status, answer, table, fail }) {
  const place = {}; // the number of the problem that is shown, by suite
  const number = (min, more = {}) => h("input", { type: "number", min, step: 1, ...more });
  const inputs = {
    temperature: number(0, { step: 0.1, max: 2 }),
    seed: number(0, { value: 0 }),
    maxCalls: number(0, { placeholder: "any" }),
    maxCallTokens: number(0, { placeholder: "any" }),
  };
  const question = h("textarea", { rows: 2, dir: "auto", spellcheck: false, maxlength: 4000 });
  const grading = h("span", { class: "rl-muted" });
  const suites = h("span");
  let suite;

  const reference = () => drawn[suite.value].find(([text]) => text === question.value.trim())?.[1] ?? "";
  const updateGrading = () => {
    const right = reference();
    grading.textContent = right
      ? `will be graded: the answer is ${right}`
      : "your own question: not graded. The models know problems in the words of these suites only";
  };
  const pick = (step) => {
    place[suite.value] = ((place[suite.value] ?? -step) + step) % drawn[suite.value].length;
    question.value = drawn[suite.value][place[suite.value]][0];
    updateGrading();
  };
  const choosePair = () => {
    const { config, suites: known } = pairs[pair.value];
    const before = suite?.value ?? FIRST;
    suite = select(
      known.map((name) => [name, name]),
      known.includes(before) ? before : known[0],
      () => pick(0),
    );
    suites.replaceChildren(labelled("suite", suite));
    for (const name of ["temperature", "maxCalls", "maxCallTokens"]) inputs[name].value = config[name] ?? "";
    if (suite.value !== before || !question.value) pick(0);
    else updateGrading();
  };
  const pair = select(
    pairs.map(({ name, teacher }, k) => [k, teacher ? name : `${name} alone`]),
    0,
    choosePair,
  );

  const ask = async () => {
    ask_.disabled = true;
    status.classList.remove("rl-bad");
    status.textContent = "Loading the models …";
    try {
      for (const input of Object.values(inputs))
        if (!input.checkValidity()) throw new Error(`${input.parentElement.textContent}: ${input.validationMessage}`);
      if (!question.value.trim()) throw new Error("There is no question: type one, or pick another one");
      answer.inert = true; // nothing is forked with the old pair while another one loads
      const loaded = await loadPair(Number(pair.value)).finally(() => (answer.inert = false));
      status.textContent = "";
      const cap = (name) => (inputs[name].value === "" ? null : Number(inputs[name].value));
      const config = {
        ...loaded.config,
        temperature: Number(inputs.temperature.value),
        maxCalls: cap("maxCalls"),
        maxCallTokens: cap("maxCallTokens"),
      };
      const one = new Answer(loaded, ({ runs, live, busy }) => {
        ask_.disabled = busy;
        table.hidden = false;
        table.replaceChildren(...callTable(live.key ? [...runs, live] : runs));
      });
      const run = {
        key: "run-0",
        heading: "Original",
        how: pairs[pair.value].name,
        question: question.value.trim().toWellFormed(),
        answer: reference(),
        fixed: true,
        config,
      };
      const writing = one.write(
        new Sequence(loaded.text, loaded.student.endIds, config, Number(inputs.seed.value)),
        run,
      );
      renderForks({ model: one, el: answer });
      await writing;
      performance.mark("relay:answer");
    } catch (error) {
      ask_.disabled = false;
      fail(error);
    }
  };
  const ask_ = button("Ask", ask, "Ask this question");
  onKeys(question, { Enter: () => ask_.disabled || ask() }, { ctrl: true, when: (e) => e.ctrlKey });
  question.addEventListener("input", updateGrading);
  status.before(
    box(
      "Question",
      h("label", { class: "rl-wide" }, h("span", {}, "question, picked or typed (ctrl+enter asks)"), question),
      bar(
        suites,
        button("Another one", () => pick(1), "Pick the next question of this suite"),
        ask_,
        grading,
      ),
    ),
    h(
      "details",
      { class: "rl-words" },
      h("summary", {}, "Pair, sampling, limits"),
      Object.assign(
        bar(
          box("Who", labelled("pair", pair)),
          box("Sampling", labelled("temperature", inputs.temperature), labelled("seed", inputs.seed)),
          box("Limits", labelled("calls at most", inputs.maxCalls), labelled("tokens per call", inputs.maxCallTokens)),
        ),
        { className: "rl-bar rl-form" },
      ),
    ),
  );
  choosePair();
  return ask();
}

const theme = new URLSearchParams(location.search).get("theme"); // a page around this one may say which
if (theme === "light" || theme === "dark") document.documentElement.setAttribute("theme", theme);
start(document.getElementById("page"));
