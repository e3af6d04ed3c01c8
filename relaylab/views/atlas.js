// The call atlas. data as atlas.py makes it: `traces` and `calls` are columns, the calls of a trace stand together in the
// order of the traces; `full` has what the player shows of some traces. `player` is the player's render.

const LEVELS = 6; // of colour, above none; a cell's number says the rest
const LISTED = 40; // traces in the list below the map

const ALIGNED = { position: "position in the answer", line: "reasoning step (line of the answer)" };
const SHADES = { share: "traces that call here (%)", calls: "number of calls", tokens: "tokens delivered a call" };
const SORTS = { answered: "answered", lost: "not answered", all: "all" };

// The data with what follows from it: what rows there can be, and of each trace the number of its first call, with one
// more entry for where the last one's calls end.
function prepared(data) {
  const { traces } = data;
  const firsts = [0];
  for (const n of traces.calls) firsts.push(firsts.at(-1) + n);
  const rows = { group: { name: data.name, labels: data.groups, of: traces.group } };
  if (data.name !== "suite") rows.suite = { name: "suite", labels: data.suites, of: traces.suite };
  rows.outcome = { name: "outcome", labels: data.outcomes, of: traces.outcome };
  return { ...data, firsts, rows };
}

const counted = (data, view, c) => view.calls === "all" || Boolean(data.calls.answered[c]) === (view.calls === "answered");

function passes({ traces }, view, t) {
  const wanted = (name) => view[name] < 0 || traces[name][t] === view[name];
  return wanted("group") && wanted("suite") && wanted("outcome") && traces.tokens[t] >= view.least && traces.tokens[t] <= view.most;
}

// The columns: 0 is of traces without a call, the others are parts or lines of the answer.
function columnsOf(data, view) {
  const last = data.columns;
  const lines = Math.min(last, Math.max(...data.traces.lines));
  if (view.align === "line") {
    const names = Array.from({ length: lines }, (_, k) => `${k + 1}${k + 1 === last ? "+" : ""}`);
    return { names, says: (k) => `line ${names[k]}` };
  }
  const part = 100 / last;
  const names = Array.from({ length: last }, (_, k) => String(k * part));
  return { names, says: (k) => `${k * part} to ${(k + 1) * part} % of the answer` };
}

function columnOf(data, view, t, c) {
  const last = data.columns - 1;
  if (view.align === "line") return 1 + Math.min(data.calls.line[c], last);
  return 1 + Math.min(Math.floor((data.calls.start[c] * data.columns) / Math.max(1, data.traces.tokens[t])), last);
}

// Counts over the traces that pass the filters: of each row, and of each cell the traces that call there (`hits`; in
// column 0 those that do not call), those that have such a place (`reach`), the calls and what they delivered.
function tally(data, view) {
  const { labels, of } = data.rows[view.rows];
  const width = 1 + columnsOf(data, view).names.length;
  const zeros = (n) => new Array(n).fill(0);
  const found = { width, traces: zeros(labels.length), right: zeros(labels.length), graded: zeros(labels.length) };
  for (const name of ["hits", "reach", "calls", "tokens"]) found[name] = zeros(labels.length * width);
  const last = new Array(labels.length * width).fill(-1); // the trace that called there last: it is one hit, however often
  for (let t = 0; t < of.length; t++) {
    if (!passes(data, view, t)) continue;
    const row = of[t];
    found.traces[row]++;
    found.right[row] += data.traces.outcome[t] === 0;
    found.graded[row] += data.traces.outcome[t] < 2;
    let called = false;
    for (let c = data.firsts[t]; c < data.firsts[t + 1]; c++) {
      if (!counted(data, view, c)) continue;
      const i = row * width + columnOf(data, view, t, c);
      found.calls[i]++;
      found.tokens[i] += data.calls.delivered[c];
      found.hits[i] += last[i] !== t;
      last[i] = t;
      called = true;
    }
    if (!called) found.hits[row * width]++;
    const reached = view.align === "line" ? Math.min(data.traces.lines[t], width - 1) : width - 1;
    for (let k = 0; k <= reached; k++) found.reach[row * width + k]++;
  }
  return found;
}

// The number of a cell, or null where there is nothing to count.
function valueOf(found, view, row, column) {
  const i = row * found.width + column;
  if (!found.reach[i]) return null;
  if (view.shade === "share" || !column) return (100 * found.hits[i]) / found.reach[i];
  if (view.shade === "calls") return found.calls[i];
  return found.calls[i] ? found.tokens[i] / found.calls[i] : null;
}

// Levels of colour grow with the square: a row in which all call at one place must not make the others look alike.
const levelOf = (value, top) => (value ? Math.ceil(LEVELS * Math.sqrt(value / top)) : 0);
const boundOf = (level, top) => Number((top * (level / LEVELS) ** 2).toPrecision(2));

// What the legend says: the bounds of the levels that a number can have; where one counts, those are whole.
function legendOf(top, whole) {
  const bounds = Array.from({ length: LEVELS }, (_, k) => [k + 1, whole ? Math.floor(top * ((k + 1) / LEVELS) ** 2) : boundOf(k + 1, top)]);
  return bounds.filter(([, bound], k) => bound > (k ? bounds[k - 1][1] : 0));
}

// In a cell is room for three characters.
const brief = (v) => (v === null ? "" : v === 0 ? "·" : v < 0.5 ? "<1" : v < 1000 ? v.toFixed(0) : `${(v / 1000).toFixed(0)}k`);

function cellWords(data, view, found, row, column) {
  const { name, labels } = data.rows[view.rows];
  const i = row * found.width + column;
  const where = `${name} ${labels[row]}, ` + (column ? columnsOf(data, view).says(column - 1) : "no call");
  if (!found.reach[i]) return `${where}: no trace ${column && found.traces[row] ? "is that long" : "passes the filters"}.`;
  const share = `${((100 * found.hits[i]) / found.reach[i]).toFixed(1)} %`;
  if (!column) return `${where}: ${found.hits[i]} of ${count(found.reach[i], "trace")} (${share}).`;
  const mean = found.calls[i] ? `, ${(found.tokens[i] / found.calls[i]).toFixed(1)} tokens delivered a call` : "";
  return `${where}: ${found.hits[i]} of ${count(found.reach[i], "trace")} (${share}), ${count(found.calls[i], "call")}${mean}.`;
}

// The traces of a cell, those that can be opened first; of each the call that puts it there, null in column 0.
function listed(data, view, row, column) {
  const { of } = data.rows[view.rows];
  const found = [];
  for (let t = 0; t < of.length; t++) {
    if (of[t] !== row || !passes(data, view, t)) continue;
    const calls = [];
    for (let c = data.firsts[t]; c < data.firsts[t + 1]; c++) if (counted(data, view, c)) calls.push(c);
    const here = calls.find((c) => columnOf(data, view, t, c) === column);
    if (column ? here !== undefined : !calls.length) found.push({ t, call: here ?? null });
  }
  const opens = ({ t }) => Number(t in data.full);
  return found.sort((a, b) => opens(b) - opens(a) || a.t - b.t);
}

// The answer as a bar with its calls: one command and answer each, in a box of its tokens x 10.
function callBar(data, t) {
  const n = Math.max(1, data.traces.tokens[t]);
  let d = "";
  for (let c = data.firsts[t]; c < data.firsts[t + 1]; c++) d += `M${data.calls.start[c]} 0h${Math.max(data.calls.length[c], n / 90)}v10H${data.calls.start[c]}z`;
  const bar = h("svg", { class: "rl-atlas-bar", viewBox: `0 0 ${n} 10`, preserveAspectRatio: "none", "aria-hidden": "true" });
  bar.append(h("path", { class: "rl-ms", d: `M0 4h${n}v2H0z` }), h("path", { class: "rl-mt", d }));
  return bar;
}

function traceWords({ traces, rows }, t) {
  const parts = [`${rows.group.name} ${rows.group.labels[traces.group[t]]}`];
  if (rows.suite) parts.push(rows.suite.labels[traces.suite[t]]);
  parts.push(["✓ right", "✗ wrong", "not graded"][traces.outcome[t]], count(traces.tokens[t], "token"), count(traces.calls[t], "call"));
  return parts.join(" · ");
}

function render(stage, given) {
  const data = prepared(given);
  const longest = Math.max(...data.traces.tokens);
  const all = { group: -1, suite: -1, outcome: -1, least: 0, most: longest };
  const view = { rows: "group", align: "position", shade: "share", calls: "answered", ...all };
  let found = null; // the counts of what is shown
  let cells = []; // elements by row and column
  let means = []; // by row those with the number of traces and the share of right ones
  let at = { row: 0, column: 1 }; // the one cell that the tab key reaches
  let open = null; // the cell whose traces are listed
  let stop = () => {}; // the player
  const controls = []; // of each control what makes it show the view's value

  const readout = h("p", { class: "rl-atlas-readout", "aria-live": "polite" });
  const passed = h("span", { class: "rl-muted", "aria-live": "polite" });
  const legend = h("p", { class: "rl-atlas-legend" });
  const axis = h("p", { class: "rl-muted" });
  const grid = h("div", { class: "rl-atlas", role: "grid", "aria-label": "Where calls begin" });
  const list = h("div", { class: "rl-atlas-list" });
  const playing = h("div");

  const say = ({ row, column }) => (readout.textContent = cellWords(data, view, found, row, column));

  function build() {
    const { names } = columnsOf(data, view);
    const { name, labels } = data.rows[view.rows];
    const what = view.align === "line" ? "line of the answer" : "percent of the answer's tokens";
    const line = (...children) => h("div", { role: "row" }, ...children);
    const head = (words) => h("div", { role: "columnheader" }, words);
    const cell = () => h("div", { role: "gridcell" }, "");
    const place = () => h("div", { role: "gridcell", tabindex: -1 }, "");
    const model = line(h("div", { role: "rowheader" }), cell(), cell(), ...Array.from({ length: names.length + 1 }, place));
    const lines = labels.map(() => model.cloneNode(true)); // several times as fast as making each
    lines.forEach((element, row) => (element.firstChild.textContent = labels[row]));
    means = lines.map((element) => [...element.children].slice(1, 3));
    cells = lines.map((element) => [...element.children].slice(3));
    cells.forEach((some, row) => some.forEach((element, column) => (element.rlCell = { row, column })));
    const wide = 0.68 * clamp(Math.max(name.length, ...labels.map((label) => label.length)), 6, 24) + 1.4;
    grid.style.setProperty("--columns", `${wide}em 3.6em 3.4em 5em repeat(${names.length},minmax(2em,1fr))`);
    grid.style.minWidth = `${wide + 12 + 2.1 * names.length}em`;
    axis.textContent = `Columns: where the call begins, ${what}. A click, or enter, lists a cell's traces; arrow keys move.`;
    grid.replaceChildren(line(...[name, "traces", "right %", "no call %", ...names].map(head)), ...lines);
    at = { row: Math.min(at.row, labels.length - 1), column: Math.min(at.column, names.length) };
    cells[at.row][at.column].tabIndex = 0;
    open = null;
  }

  function update() {
    found = tally(data, view);
    const values = cells.map((line, row) => line.map((_, column) => valueOf(found, view, row, column)));
    const top = Math.max(0, ...values.flatMap((line) => line.slice(1)));
    values.forEach((line, row) => {
      const [traces, right] = means[row];
      traces.textContent = found.traces[row].toLocaleString("en");
      right.textContent = found.graded[row] ? ((100 * found.right[row]) / found.graded[row]).toFixed(0) : "–";
      line.forEach((value, column) => {
        const cell = cells[row][column];
        const words = brief(value);
        const look = value === null ? "rl-a-none" : column ? `rl-a${levelOf(value, top)}` : "rl-a-no";
        if (cell.firstChild.data !== words) cell.firstChild.data = words;
        if (cell.className !== look) cell.className = look;
      });
    });
    legend.replaceChildren(`${SHADES[view.shade]}: `, ...legendOf(top, view.shade === "calls").map(([level, bound]) =>
      h("span", { class: `rl-a${level}` }, `≤ ${bound}`)), " · none; empty: no answer is that long");
    passed.textContent = `${sum(found.traces).toLocaleString("en")} of ${count(data.traces.group.length, "trace")}`;
    say(at);
    show();
  }

  // The traces of the open cell.
  function show() {
    stop();
    playing.replaceChildren();
    for (const cell of grid.querySelectorAll("[aria-selected]")) cell.removeAttribute("aria-selected");
    if (!open) return list.replaceChildren(h("p", { class: "rl-muted" }, "Choose a cell to list its traces."));
    cells[open.row][open.column].setAttribute("aria-selected", "true");
    const traces = listed(data, view, open.row, open.column);
    const whole = traces.filter(({ t }) => t in data.full).length;
    list.replaceChildren(
      h("p", {}, h("b", {}, cellWords(data, view, found, open.row, open.column)), ` ${whole} can be opened.`),
      h("ol", {}, ...traces.slice(0, LISTED).map(entry)),
      ...(traces.length > LISTED ? [h("p", { class: "rl-muted" }, `and ${(traces.length - LISTED).toLocaleString("en")} more`)] : []),
    );
  }

  function entry({ t, call }) {
    const name = data.traces.id[t] || `trace ${t + 1}`;
    const opener = t in data.full ? button(name, () => play(t, call, opener), `Open ${name}`) : h("span", {}, name);
    return h("li", {}, opener, callBar(data, t), h("span", { class: "rl-muted" }, traceWords(data, t)));
  }

  function play(t, call, opener) {
    stop();
    for (const other of list.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    opener.setAttribute("aria-current", "true");
    const area = h("div");
    const close = button("✕ Close", () => (stop(), playing.replaceChildren(), opener.removeAttribute("aria-current"), opener.focus()), "Close the player");
    playing.replaceChildren(h("div", { class: "rl-bar" }, h("b", {}, data.traces.id[t] || `trace ${t + 1}`), close), area);
    const out = call === null ? data.traces.tokens[t] : data.calls.start[call] + data.calls.length[call];
    stop = player(area, { traces: [data.full[t]], at: out });
    playing.scrollIntoView({ block: "nearest" });
  }

  function go(row, column) {
    cells[at.row][at.column].tabIndex = -1;
    at = { row: clamp(row, 0, cells.length - 1), column: clamp(column, 0, cells[0].length - 1) };
    cells[at.row][at.column].tabIndex = 0;
    cells[at.row][at.column].focus();
  }

  const choose = ({ row, column }) => (go(row, column), (open = { row, column }), show());
  const keys = {
    ArrowUp: () => go(at.row - 1, at.column),
    ArrowDown: () => go(at.row + 1, at.column),
    ArrowLeft: () => go(at.row, at.column - 1),
    ArrowRight: () => go(at.row, at.column + 1),
    Home: (e) => go(e.ctrlKey ? 0 : at.row, 0),
    End: (e) => go(e.ctrlKey ? cells.length - 1 : at.row, cells[0].length - 1),
    Enter: () => choose(at),
    " ": () => choose(at),
  };
  grid.addEventListener("keydown", (e) => {
    if (!e.target.rlCell || !keys[e.key] || e.metaKey || e.altKey) return;
    e.preventDefault();
    e.stopPropagation();
    keys[e.key](e);
  });
  for (const name of ["mouseover", "focusin"]) grid.addEventListener(name, (e) => e.target.rlCell && say(e.target.rlCell));
  grid.addEventListener("mouseleave", () => say(at));
  grid.addEventListener("click", (e) => e.target.rlCell && choose(e.target.rlCell));

  function select(words, field, options, rebuild = false) {
    const control = h("select", {}, ...options.map(([value, text]) => h("option", { value }, text)));
    control.addEventListener("change", () => {
      view[field] = typeof view[field] === "number" ? Number(control.value) : control.value;
      if (rebuild) build();
      update();
    });
    controls.push(() => (control.value = view[field]));
    return labelled(words, control);
  }

  function number(words, field) {
    const control = h("input", { type: "number", min: 0, max: longest, value: view[field] });
    control.addEventListener("input", () => {
      view[field] = control.value === "" ? all[field] : Number(control.value);
      update();
    });
    controls.push(() => (control.value = view[field]));
    return labelled(words, control);
  }

  const filter = (words, field, labels) => select(words, field, [[-1, "all"], ...labels.map((label, k) => [k, label])]);
  const everything = () => (Object.assign(view, all), controls.forEach((follow) => follow()), update());
  const rows = Object.entries(data.rows).map(([key, { name }]) => [key, name]);
  stage.append(
    h("div", { class: "rl-bar" }, select("rows", "rows", rows, true), select("columns", "align", Object.entries(ALIGNED), true),
      select("numbers", "shade", Object.entries(SHADES)), select("calls", "calls", Object.entries(SORTS))),
    h("fieldset", {}, h("legend", {}, "Only these traces"), h("div", { class: "rl-bar" },
      filter(data.name, "group", data.groups),
      ...(data.rows.suite ? [filter("suite", "suite", data.suites)] : []),
      filter("outcome", "outcome", data.outcomes), number("tokens from", "least"), number("to", "most"),
      button("All", everything, "Show all traces"), passed)),
    axis,
    h("div", { class: "rl-scroll rl-atlas-map" }, grid),
    legend,
    readout,
    h("p", { class: "rl-muted" }, data.note),
    list,
    playing,
  );
  build();
  update();
}
