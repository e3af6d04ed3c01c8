// The reward lab. rewards() and what it calls are a port of relaylab/training/rewards.py for rollouts in counts; the
// rest draws. data = {group, settings, schemes, most, longest} as reward_lab.py makes it.

// Token counts of a rollout; `kept` is what the released code leaves of it: each turn that ended in an answered call is gone.
function counted(r, settings) {
  const tags = settings.command_tokens * (r.calls + r.ignored);
  const content = r.own + r.teacher;
  const lastTurn = r.own - Math.floor((r.own * r.calls) / (r.calls + 1));
  return { content, all: content + tags, kept: r.teacher + lastTurn + settings.command_tokens * r.ignored };
}

function shares(group, settings) {
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
    const rho = Math.min(1, (r.ignored * settings.asked) / Math.max(1, counted(r, settings).kept));
    if (r.correct) return r.ignored ? 1 - rho : 1.5;
    if (kind === "dependent" && !r.ignored) return -1;
    return kind === "unsolvable" ? rho : 0;
  });
}

function rewards(group, settings, scheme) {
  if (scheme.scheme === "released") return released(group, settings);
  if (scheme.scheme === "outcome") return group.map((r) => Number(r.correct));
  const rho = shares(group, settings);
  if (scheme.scheme === "simple") return group.map((r, k) => Number(r.correct) - rho[k]);
  const kind = kindOf(group);
  return group.map((r, k) => {
    if (r.correct) return r.teacher > 0 ? 1 - rho[k] : scheme.bonus;
    if (kind === "dependent" && !r.teacher) return scheme.penalty;
    return kind === "unsolvable" ? Math.min(rho[k], scheme.explore) : 0;
  });
}

function advantages(values, eps = 1e-4) {
  const mean = sum(values) / values.length;
  const spread = Math.sqrt(sum(values.map((v) => (v - mean) ** 2)) / Math.max(1, values.length - 1));
  return values.map((v) => (v - mean) / (spread + eps));
}

// A rollout after one of its counts was edited: the others follow so that it stays possible. Nothing is delivered
// without a call, and each answered call delivers at least one token.
function edited(r, name, value, longest) {
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
const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2);
const plain = (v) => (v < 0 ? "−" : "") + Math.abs(v).toFixed(2);

// Of an advantage: to the right and filled where positive, to the left and hollow where negative, 3 at the edge.
function bar(value) {
  const width = 36 * Math.min(1, Math.abs(value) / 3);
  const d = value < 0 ? `M36 1h${-width}v6h${width}z` : `M36 1h${width}v6h${-width}z`;
  return h("svg", { class: "rl-bar2", viewBox: "0 0 72 8", "aria-hidden": "true" },
    h("path", { class: value < 0 ? "rl-minus" : "rl-plus", d }), h("path", { class: "rl-axis", d: "M36 0V8" }));
}

function render(stage, data) {
  let group = data.group;
  const settings = data.settings;
  const fields = { own: "own tokens", calls: "answered calls", teacher: "teacher tokens", ignored: "ignored calls" };
  const kind = h("p", { "aria-live": "polite" });
  const body = h("tbody");
  const rows = []; // of each rollout the controls and cells that follow an edit

  const head = h("tr", {}, ...["rollout", "right", ...Object.values(fields), "ρ", ...data.schemes.map((s) => s.name), ""].map(
    (words) => h("th", { scope: "col" }, words)));

  function build() {
    rows.length = 0;
    body.replaceChildren(...group.map((r, k) => {
      const row = { inputs: {}, cells: data.schemes.map(() => h("td")), rho: h("td") };
      const change = (name, value) => ((group = group.map((g, i) => (i === k ? edited(g, name, value, data.longest) : g))), update());
      const right = h("input", { type: "checkbox", "aria-label": `rollout ${k + 1} is right` });
      right.addEventListener("change", () => change("correct", right.checked));
      row.inputs.correct = right;
      for (const [name, words] of Object.entries(fields)) {
        const input = h("input", { type: "number", min: 0, max: data.longest, "aria-label": `rollout ${k + 1}, ${words}` });
        input.addEventListener("change", () => change(name, Number(input.value)));
        row.inputs[name] = input;
      }
      const away = button("✕", () => remove(k), `Remove rollout ${k + 1}`);
      away.disabled = group.length === 1;
      row.away = away;
      rows.push(row);
      return h("tr", {}, h("th", { scope: "row" }, String(k + 1)), ...Object.values(row.inputs).map((input) => h("td", {}, input)),
        row.rho, ...row.cells, h("td", {}, away));
    }));
    add.disabled = group.length >= data.most;
    update();
  }

  function update() {
    const rho = shares(group, settings);
    const paid = data.schemes.map((scheme) => rewards(group, settings, scheme));
    const gains = paid.map((values) => advantages(values));
    rows.forEach((row, k) => {
      for (const [name, input] of Object.entries(row.inputs))
        if (name === "correct") input.checked = group[k].correct;
        else input.value = group[k][name];
      row.rho.textContent = rho[k].toFixed(3);
      row.cells.forEach((cell, s) => cell.replaceChildren(plain(paid[s][k]), " ", h("b", {}, signed(gains[s][k])), bar(gains[s][k])));
    });
    const best = data.schemes.map((scheme, s) => `${scheme.name}: rollout ${gains[s].indexOf(Math.max(...gains[s])) + 1}`);
    kind.textContent = `The group is ${KINDS[kindOf(group)]}. Highest advantage by ${best.join("; ")}.`;
  }

  // What had the focus is gone or off: it goes to the row that came, or to the one in the place of the one that went.
  function remove(k) {
    group = group.filter((_, i) => i !== k);
    build();
    const row = rows[Math.min(k, rows.length - 1)];
    (row.away.disabled ? row.inputs.correct : row.away).focus();
  }
  const add = button("Add a rollout", () => {
    group = [...group, { correct: false, own: 70, teacher: 0, calls: 0, ignored: 0 }];
    build();
    rows.at(-1).inputs.correct.focus();
  });
  const ratio = h("select", { onchange: () => ((settings.ratio = ratio.value), update()) });
  const ratios = { paper: "paper: over all tokens", content: "content: commands do not count", group: "group: over the others' length" };
  for (const [value, words] of Object.entries(ratios)) ratio.append(h("option", { value, selected: value === settings.ratio }, words));
  const number = (name) => {
    const input = h("input", { type: "number", min: 1, max: data.longest, value: settings[name] });
    input.addEventListener("change", () => {
      settings[name] = input.value = clamp(Math.round(Number(input.value)) || 1, 1, data.longest);
      update();
    });
    return input;
  };
  const batch = h("input", { type: "checkbox", onchange: () => ((settings.batch_solved = batch.checked), update()) });
  stage.append(
    h("div", { class: "rl-bar" }, labelled("ρ by", ratio), labelled("tokens of a command", number("command_tokens")),
      labelled("an ignored call asks for", number("asked")), add),
    h("div", { class: "rl-bar" }, labelled("another prompt of the batch was solved alone (only the released code minds)", batch)),
    kind,
    h("div", { class: "rl-scroll", tabindex: "0", role: "group", "aria-label": "Rollouts, rewards and advantages" },
      h("table", { class: "rl-lab" }, h("thead", {}, head), body)),
    h("p", { class: "rl-muted" }, "In each cell: the reward, then in bold the advantage, and a bar: filled to the right above 0, hollow to the left below."),
  );
  build();
}
