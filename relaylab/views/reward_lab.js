// The reward lab. rewards() and what it calls are a port of training/rewards.py for rollouts in counts; the rest draws.
// State: group, settings, schemes, most, longest, as reward_lab.py makes them.
import { bar, button, clamp, h, labelled, muted, select, sum, table } from "./shared.js";

// Token counts of a rollout. `kept`: what the released code keeps, which drops each turn that ended in an answered call.
function counted(r, settings) {
  const tags = settings.command_tokens * (r.calls + r.ignored);
  const content = r.own + r.teacher;
  const lastTurn = r.own - Math.floor((r.own * r.calls) / (r.calls + 1));
  return { content, all: content + tags, kept: r.teacher + lastTurn + settings.command_tokens * r.ignored };
}

export function shares(group, settings) {
  const counts = group.map((r) => counted(r, settings));
  const content = (r, c) => (c.content ? r.teacher / c.content : 0);
  if (settings.ratio === "paper") return group.map((r, k) => (counts[k].all ? r.teacher / counts[k].all : 0));
  if (settings.ratio === "content") return group.map((r, k) => content(r, counts[k]));
  const total = sum(counts.map((c) => c.content));
  return group.map((r, k) => {
    const others = total - counts[k].content;
    return others > 0 ? Math.min(1, (r.teacher * (group.length - 1)) / others) : content(r, counts[k]);
  });
}

function kindOf(group) {
  const right = group.filter((r) => r.correct);
  if (!right.length) return "unsolvable";
  return right.every((r) => r.teacher > 0) ? "dependent" : "solvable";
}

function released(group, settings) {
  const right = group.filter((r) => r.correct);
  const alone = settings.batch_solved || right.some((r) => !r.ignored);
  const kind = alone ? "solvable" : right.length ? "dependent" : "unsolvable";
  return group.map((r) => {
    const rho = Math.min(1, (r.ignored * settings.requested) / Math.max(1, counted(r, settings).kept));
    if (r.correct) return r.ignored ? 1 - rho : 1.5;
    if (kind === "dependent" && !r.ignored) return -1;
    return kind === "unsolvable" ? rho : 0;
  });
}

export function rewards(group, settings, scheme) {
  if (scheme.scheme === "released") return released(group, settings);
  if (scheme.scheme === "outcome") return group.map((r) => Number(r.correct));
  const rho = shares(group, settings);
  if (scheme.scheme === "simple") return group.map((r, k) => Number(r.correct) - rho[k]);
  const kind = kindOf(group);
  return group.map((r, k) => {
    if (r.correct) return r.teacher > 0 ? 1 - rho[k] : scheme.bonus;
    if (kind === "dependent" && !r.teacher) return scheme.penalty;
    return kind === "unsolvable" ? Math.min(rho[k], scheme.cap) : 0;
  });
}

export function advantages(values, eps = 1e-4) {
  const mean = sum(values) / values.length;
  const spread = Math.sqrt(sum(values.map((v) => (v - mean) ** 2)) / Math.max(1, values.length - 1));
  return values.map((v) => (v - mean) / (spread + eps));
}

// A rollout after an edit. Other counts follow so that it stays possible: nothing is delivered without a call, and an
// answered call delivers at least one token.
export function edited(r, name, value, longest) {
  const next = { ...r, [name]: name === "correct" ? value : clamp(Math.round(value) || 0, 0, longest) };
  if (name === "teacher") next.calls = clamp(next.calls, Math.min(1, next.teacher), next.teacher);
  if (name === "calls") next.teacher = next.calls ? Math.max(next.teacher, next.calls) : 0;
  return next;
}

const KINDS = {
  solvable: "solvable: a rollout is right without the teacher",
  dependent: "dependent: all that are right were helped",
  unsolvable: "unsolvable: none is right",
};
const FIELDS = { own: "own tokens", calls: "answered calls", teacher: "teacher tokens", ignored: "ignored calls" };
const RATIOS = [["paper", "paper: over all tokens"], ["content", "content: commands do not count"], ["group", "group: over the others' length"]];
const plain = (v) => (v < 0 ? "−" : "") + Math.abs(v).toFixed(2);
const signed = (v) => (v < 0 ? "" : "+") + plain(v);

// The bar of an advantage: to the right and filled if positive, to the left and hollow if negative; 3 is the edge.
function advantageBar(value) {
  const width = 36 * Math.min(1, Math.abs(value) / 3);
  const d = value < 0 ? `M36 1h${-width}v6h${width}z` : `M36 1h${width}v6h${-width}z`;
  return h("svg", { class: "rl-bar2", viewBox: "0 0 72 8", "aria-hidden": "true" },
    h("path", { class: value < 0 ? "rl-minus" : "rl-plus", d }), h("path", { class: "rl-axis", d: "M36 0V8" }));
}

export function render({ model, el }) {
  const [schemes, most, longest] = ["schemes", "most", "longest"].map((name) => model.get(name));
  const settings = { ...model.get("settings") };
  let group = model.get("group");
  const kind = h("p", { "aria-live": "polite" });
  const body = h("tbody");
  let rows = []; // the controls and cells of each rollout

  function row(k) {
    const change = (name, value) => ((group = group.map((r, i) => (i === k ? edited(r, name, value, longest) : r))), update());
    const correct = h("input", { type: "checkbox", "aria-label": `rollout ${k + 1} is right`, onchange: () => change("correct", correct.checked) });
    const numbers = Object.entries(FIELDS).map(([name, words]) => {
      const onchange = (e) => change(name, Number(e.target.value));
      return [name, h("input", { type: "number", min: 0, max: longest, "aria-label": `rollout ${k + 1}, ${words}`, onchange })];
    });
    const away = button("✕", () => remove(k), `Remove rollout ${k + 1}`);
    away.disabled = group.length === 1;
    return { correct, numbers, away, rho: h("td"), cells: schemes.map(() => h("td")) };
  }

  function build() {
    rows = group.map((_, k) => row(k));
    body.replaceChildren(...rows.map(({ correct, numbers, away, rho, cells }, k) =>
      h("tr", {}, h("th", { scope: "row" }, String(k + 1)), ...[correct, ...numbers.map(([, input]) => input)].map((input) => h("td", {}, input)),
        rho, ...cells, h("td", {}, away))));
    add.disabled = group.length >= most;
    why.textContent = add.disabled ? `${most} rollouts are the most: remove one to add another` : "";
    update();
  }

  function update() {
    const rho = shares(group, settings);
    const paid = schemes.map((scheme) => rewards(group, settings, scheme));
    const gains = paid.map((values) => advantages(values));
    rows.forEach((one, k) => {
      one.correct.checked = group[k].correct;
      for (const [name, input] of one.numbers) input.value = group[k][name];
      one.rho.textContent = rho[k].toFixed(3);
      one.cells.forEach((cell, s) => cell.replaceChildren(plain(paid[s][k]), " ", h("b", {}, signed(gains[s][k])), advantageBar(gains[s][k])));
    });
    const best = schemes.map((scheme, s) => `${scheme.name}: rollout ${gains[s].indexOf(Math.max(...gains[s])) + 1}`);
    kind.textContent = `The group is ${KINDS[kindOf(group)]}. Highest advantage by ${best.join("; ")}.`;
  }

  // The focus goes to the row that came, or to the one in the place of the one that went.
  function remove(k) {
    group = group.filter((_, i) => i !== k);
    build();
    const next = rows[Math.min(k, rows.length - 1)];
    (next.away.disabled ? next.correct : next.away).focus();
  }
  const add = button("Add a rollout", () => {
    group = [...group, { correct: false, own: 70, teacher: 0, calls: 0, ignored: 0 }];
    build();
    rows.at(-1).correct.focus();
  });
  const why = h("span", { class: "rl-muted" });
  const set = (name, value) => ((settings[name] = value), update());
  const number = (name) => {
    const onchange = ({ target }) => set(name, Number((target.value = clamp(Math.round(Number(target.value)) || 1, 1, longest))));
    return h("input", { type: "number", min: 1, max: longest, value: settings[name], onchange });
  };
  const batch = h("input", { type: "checkbox", onchange: () => set("batch_solved", batch.checked) });
  const heads = ["rollout", "right", ...Object.values(FIELDS), "ρ", ...schemes.map((s) => s.name), ""];
  el.append(
    bar(labelled("ρ by", select(RATIOS, settings.ratio, (value) => set("ratio", value))), labelled("tokens of a command", number("command_tokens")),
      labelled("an ignored call asks for", number("requested")), add, why),
    bar(labelled("another prompt of the batch was solved alone (only the released code minds)", batch)),
    kind,
    table("Rollouts, rewards and advantages", heads, body, "rl-lab"),
    muted("In each cell: the reward, then in bold the advantage, and a bar: filled to the right above 0, hollow to the left below."),
  );
  build();
}
