// The call atlas. State as atlas.py makes it: `traces` and `calls` are columns, the calls of a trace stand together, in
// the order of the traces; `full` has some traces as the player needs them.
import { bar, box, button, clamp, count, h, labelled, muted, onKeys, pageModel, playButton, select, sum } from "./shared.js";
import { render as renderPlayer } from "./player.js";
import { scoreMap } from "./score_map.js";

const LEVELS = 6; // of colour, above none; the number in the cell tells the rest
const LISTED = 40; // traces in the list below the map
const ALIGNED = [["position", "position in the answer"], ["line", "reasoning step (line of the answer)"]];
const SHADES = { share: "traces that call here (%)", calls: "number of calls", tokens: "tokens delivered per call" };
const SORTS = [["answered", "answered"], ["lost", "not answered"], ["all", "all"]];
const ORDERS = { come: "as they come", calls: "most calls", tokens: "most tokens", lines: "most lines" };
const HOLDS = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };
const OUTCOMES = ["✓ right", "✗ wrong", "not graded"];

// The state with the possible rows, and for each trace the number of its first call (one more entry ends the last).
export function prepared(state) {
  const { traces } = state;
  const firsts = [0];
  for (const n of traces.calls) firsts.push(firsts.at(-1) + n);
  const rows = { group: { name: state.name, labels: state.groups, of: traces.group } };
  if (state.name !== "suite") rows.suite = { name: "suite", labels: state.suites, of: traces.suite };
  rows.outcome = { name: "outcome", labels: state.outcomes, of: traces.outcome };
  return { ...state, firsts, rows };
}

// A free filter: each word must hold. "calls>1", "tokens<=60" and "lines=3" compare numbers; any other word must stand in
// the trace's id, row, suite or outcome.
export function matcher({ traces, groups, suites, outcomes }, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const tests = words.map((word) => {
    const [, name, sign, value] = word.match(/^(calls|tokens|lines)(<=|>=|<|>|=)(\d+)$/) ?? [];
    if (name) return (t) => HOLDS[sign](traces[name][t], Number(value));
    return (t) => [traces.id[t], groups[traces.group[t]], suites[traces.suite[t]], outcomes[traces.outcome[t]]].join(" ").toLowerCase().includes(word);
  });
  return (t) => tests.every((test) => test(t));
}

function passes({ traces }, view, t) {
  if (view.matches && !view.matches(t)) return false;
  const wanted = (name) => view[name] < 0 || traces[name][t] === view[name];
  return wanted("group") && wanted("suite") && wanted("outcome") && traces.tokens[t] >= view.least && traces.tokens[t] <= view.most;
}

// The calls of a trace that the view counts.
function callsOf({ firsts, calls }, view, t) {
  const found = [];
  for (let c = firsts[t]; c < firsts[t + 1]; c++) if (view.calls === "all" || Boolean(calls.answered[c]) === (view.calls === "answered")) found.push(c);
  return found;
}

// The columns: 0 holds the traces without a call, the others are parts or lines of the answer.
function columnsOf({ columns, traces }, view) {
  const length = view.align === "line" ? Math.min(columns, Math.max(...traces.lines)) : columns;
  const part = 100 / columns;
  const names = Array.from({ length }, (_, k) => (view.align === "line" ? `${k + 1}${k + 1 === columns ? "+" : ""}` : String(k * part)));
  return { names, words: (k) => (view.align === "line" ? `line ${names[k]}` : `${k * part} to ${(k + 1) * part} % of the answer`) };
}

function columnOf({ columns, calls, traces }, view, t, c) {
  const at = view.align === "line" ? calls.line[c] : Math.floor((calls.start[c] * columns) / Math.max(1, traces.tokens[t]));
  return 1 + Math.min(at, columns - 1);
}

// Counts over the traces that pass the filters. Of each row: traces, right, graded. Of each cell: traces that call there
// (`hits`; in column 0 those that do not call), traces that have such a place (`reach`), calls, delivered tokens.
export function tally(data, view) {
  const { labels, of } = data.rows[view.rows];
  const width = 1 + columnsOf(data, view).names.length;
  const zeros = (names, n) => Object.fromEntries(names.map((name) => [name, new Array(n).fill(0)]));
  const counts = { width, ...zeros(["traces", "right", "graded"], labels.length), ...zeros(["hits", "reach", "calls", "tokens"], labels.length * width) };
  for (let t = 0; t < of.length; t++) {
    if (!passes(data, view, t)) continue;
    const first = of[t] * width;
    counts.traces[of[t]]++;
    counts.right[of[t]] += data.traces.outcome[t] === 0;
    counts.graded[of[t]] += data.traces.outcome[t] < 2;
    const columns = new Set();
    for (const c of callsOf(data, view, t)) {
      const column = columnOf(data, view, t, c);
      columns.add(column);
      counts.calls[first + column]++;
      counts.tokens[first + column] += data.calls.delivered[c];
    }
    for (const column of columns.size ? columns : [0]) counts.hits[first + column]++;
    const reached = view.align === "line" ? Math.min(data.traces.lines[t], width - 1) : width - 1;
    for (let k = 0; k <= reached; k++) counts.reach[first + k]++;
  }
  return counts;
}

// The number of a cell, or null if there is nothing to count.
function valueOf(counts, view, row, column) {
  const i = row * counts.width + column;
  if (!counts.reach[i]) return null;
  if (view.shade === "share" || !column) return (100 * counts.hits[i]) / counts.reach[i];
  if (view.shade === "calls") return counts.calls[i];
  return counts.calls[i] ? counts.tokens[i] / counts.calls[i] : null;
}

// The largest number of all cells.
export function topOf(data, view, counts = tally(data, view)) {
  const cells = counts.hits.map((_, i) => (i % counts.width ? valueOf(counts, view, Math.floor(i / counts.width), i % counts.width) : 0));
  return Math.max(0, ...cells);
}

// Colours follow the square root: one crowded cell must not make all others look alike.
export const levelOf = (value, top) => (value ? Math.ceil(LEVELS * Math.sqrt(value / top)) : 0);
export const boundOf = (level, top) => Number((top * (level / LEVELS) ** 2).toPrecision(2));
// The levels of the legend with their bounds; counts are whole, so only bounds that occur.
function legendOf(top, whole) {
  const levels = Array.from({ length: LEVELS }, (_, k) => k + 1);
  const bounds = levels.map((level) => [level, whole ? Math.floor(top * (level / LEVELS) ** 2) : boundOf(level, top)]);
  return bounds.filter(([, bound], k) => bound > (k ? bounds[k - 1][1] : 0));
}
// A cell has room for three characters.
export const brief = (v) => (v === null ? "" : v === 0 ? "·" : v < 0.5 ? "<1" : v < 1000 ? v.toFixed(0) : `${(v / 1000).toFixed(0)}k`);

export function cellWords(data, view, counts, row, column) {
  const { name, labels } = data.rows[view.rows];
  const i = row * counts.width + column;
  const where = `${name} ${labels[row]}, ` + (column ? columnsOf(data, view).words(column - 1) : "no call");
  if (!counts.reach[i]) return `${where}: no trace ${column && counts.traces[row] ? "is that long" : "passes the filters"}.`;
  const share = `${counts.hits[i]} of ${count(counts.reach[i], "trace")} (${((100 * counts.hits[i]) / counts.reach[i]).toFixed(1)} %)`;
  if (!column) return `${where}: ${share}.`;
  const mean = counts.calls[i] ? `, ${(counts.tokens[i] / counts.calls[i]).toFixed(1)} tokens delivered per call` : "";
  return `${where}: ${share}, ${count(counts.calls[i], "call")}${mean}.`;
}

// The traces of a cell, those that can be opened first; with each the call that puts it there, null in column 0.
export function listed(data, view, row, column) {
  const { of } = data.rows[view.rows];
  const list = [];
  for (let t = 0; t < of.length; t++) {
    if (of[t] !== row || !passes(data, view, t)) continue;
    const calls = callsOf(data, view, t);
    const call = calls.find((c) => columnOf(data, view, t, c) === column) ?? null;
    if (column ? call !== null : !calls.length) list.push({ t, call });
  }
  const opens = ({ t }) => Number(t in data.full);
  const key = ({ t }) => data.traces[view.order]?.[t] ?? 0;
  return list.sort((a, b) => opens(b) - opens(a) || key(b) - key(a) || a.t - b.t);
}

// The answer as a bar with its calls, in a box of its tokens x 10.
function callBar({ traces, calls, firsts }, t) {
  const n = Math.max(1, traces.tokens[t]);
  let d = "";
  for (let c = firsts[t]; c < firsts[t + 1]; c++) d += `M${calls.start[c]} 0h${Math.max(calls.length[c], n / 90)}v10H${calls.start[c]}z`;
  return h("svg", { class: "rl-atlas-bar", viewBox: `0 0 ${n} 10`, preserveAspectRatio: "none", "aria-hidden": "true" },
    h("path", { class: "rl-ms", d: `M0 4h${n}v2H0z` }), h("path", { class: "rl-mt", d }));
}

export function render({ model, el }) {
  const names = ["name", "columns", "groups", "suites", "outcomes", "traces", "calls", "full", "note", "movie", "scores"];
  const data = prepared(Object.fromEntries(names.map((name) => [name, model.get(name)])));
  const { traces, full } = data;
  const longest = Math.max(...traces.tokens);
  const all = { group: -1, suite: -1, outcome: -1, least: 0, most: longest, words: "", matches: null };
  const view = { rows: "group", align: "position", shade: "share", calls: "answered", order: "come", ...all };
  if (data.movie) Object.assign(view, { rows: "suite", group: 0 });
  const tops = {}; // of a movie: the largest number of all groups, by view, so that colours mean the same in all of them
  let counts = null; // of what is shown
  let cells = []; // elements by row and column
  let means = []; // the two elements of each row with the number of traces and the share of right ones
  let at = { row: 0, column: 1 }; // the cell that the tab key reaches
  let open = null; // the cell whose traces are listed
  let stop = () => {}; // stops the player
  const ends = []; // functions that end what runs by itself
  const controls = []; // functions that make a control show the view's value

  const readout = h("p", { class: "rl-atlas-readout", "aria-live": "polite" });
  const passed = h("span", { class: "rl-muted", "aria-live": "polite" });
  const [legend, axis] = [h("p", { class: "rl-atlas-legend" }), muted()];
  const grid = h("div", { class: "rl-atlas", role: "grid", "aria-label": "Where calls begin" });
  const [list, playing] = [h("div", { class: "rl-atlas-list" }), h("div")];
  const describe = ({ row, column }) => (readout.textContent = cellWords(data, view, counts, row, column));
  const element = ({ row, column }) => cells[row][column];
  const nameOf = (t) => traces.id[t] || `trace ${t + 1}`;

  const scored = data.scores && scoreMap(data.scores, { outcome: traces.outcome, nameOf, opens: (t) => t in full, open: play });

  function build() {
    const columns = columnsOf(data, view).names;
    const { name, labels } = data.rows[view.rows];
    const line = (...children) => h("div", { role: "row" }, ...children);
    const cell = (attributes = {}) => h("div", { role: "gridcell", ...attributes }, "");
    const first = line(h("div", { role: "rowheader" }), cell(), cell(), ...["no call", ...columns].map(() => cell({ tabindex: -1 })));
    const lines = labels.map(() => first.cloneNode(true)); // several times as fast as making each
    lines.forEach((one, row) => (one.firstChild.textContent = labels[row]));
    means = lines.map((one) => [...one.children].slice(1, 3));
    cells = lines.map((one) => [...one.children].slice(3));
    cells.forEach((some, row) => some.forEach((one, column) => (one.rlCell = { row, column })));
    const wide = 0.68 * clamp(Math.max(name.length, ...labels.map((label) => label.length)), 6, 24) + 1.4;
    grid.style.setProperty("--columns", `${wide}em 3.6em 3.4em 5em repeat(${columns.length},minmax(2em,1fr))`);
    grid.style.minWidth = `${wide + 12 + 2.1 * columns.length}em`;
    const unit = view.align === "line" ? "line of the answer" : "percent of the answer's tokens";
    axis.textContent = `Columns: where the call begins, ${unit}. A click, or enter, lists a cell's traces; arrow keys move.`;
    grid.replaceChildren(line(...[name, "traces", "right %", "no call %", ...columns].map((words) => h("div", { role: "columnheader" }, words))), ...lines);
    at = { row: Math.min(at.row, labels.length - 1), column: Math.min(at.column, columns.length) };
    element(at).tabIndex = 0;
    open = null;
  }

  function update() {
    counts = tally(data, view);
    const values = cells.map((line, row) => line.map((_, column) => valueOf(counts, view, row, column)));
    const top = data.movie && view.group >= 0 ? (tops[JSON.stringify({ ...view, group: 0 })] ??= Math.max(...data.groups.map((_, group) => topOf(data, { ...view, group })))) : topOf(data, view, counts);
    values.forEach((line, row) => {
      means[row][0].textContent = counts.traces[row].toLocaleString("en");
      means[row][1].textContent = counts.graded[row] ? ((100 * counts.right[row]) / counts.graded[row]).toFixed(0) : "–";
      line.forEach((value, column) => {
        const [cell, words] = [cells[row][column], brief(value)];
        const look = value === null ? "rl-a-none" : column ? `rl-a${levelOf(value, top)}` : "rl-a-no";
        if (cell.firstChild.data !== words) cell.firstChild.data = words;
        if (cell.className !== look) cell.className = look;
      });
    });
    const levels = legendOf(top, view.shade === "calls").map(([level, bound]) => h("span", { class: `rl-a${level}` }, `≤ ${bound}`));
    legend.replaceChildren(`${SHADES[view.shade]}: `, ...levels, " · none; empty: no answer is that long");
    scored?.update((t) => passes(data, view, t));
    passed.textContent = `${sum(counts.traces).toLocaleString("en")} of ${count(traces.group.length, "trace")}`;
    describe(at);
    showList();
  }

  function showList() {
    stop();
    playing.replaceChildren();
    for (const cell of grid.querySelectorAll("[aria-selected]")) cell.removeAttribute("aria-selected");
    if (!open) return list.replaceChildren(muted("Choose a cell to list its traces."));
    element(open).setAttribute("aria-selected", "true");
    const found = listed(data, view, open.row, open.column);
    const more = found.length > LISTED ? [muted(`and ${(found.length - LISTED).toLocaleString("en")} more`)] : [];
    const words = cellWords(data, view, counts, open.row, open.column);
    list.replaceChildren(h("p", {}, h("b", {}, words), ` ${found.filter(({ t }) => t in full).length} can be opened.`),
      h("ol", {}, ...found.slice(0, LISTED).map(entry)), ...more);
  }

  function entry({ t, call }) {
    const out = call === null ? traces.tokens[t] : data.calls.start[call] + data.calls.length[call];
    const opener = t in full ? button(nameOf(t), () => play(t, out, opener), `Open ${nameOf(t)}`) : h("span", {}, nameOf(t));
    const groups = [`${data.rows.group.name} ${data.groups[traces.group[t]]}`, ...(data.rows.suite ? [data.suites[traces.suite[t]]] : [])];
    const words = [...groups, OUTCOMES[traces.outcome[t]], count(traces.tokens[t], "token"), count(traces.calls[t], "call")].join(" · ");
    return h("li", {}, opener, callBar(data, t), h("span", { class: "rl-muted" }, words));
  }

  function play(t, out, opener) {
    stop();
    for (const other of list.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    opener.setAttribute("aria-current", "true");
    const area = h("div");
    const close = () => (stop(), playing.replaceChildren(), opener.removeAttribute("aria-current"), opener.focus());
    playing.replaceChildren(bar(h("b", {}, nameOf(t)), button("✕ Close", close, "Close the player")), area);
    stop = renderPlayer({ model: pageModel({ traces: [full[t]], at: out }), el: area });
    playing.scrollIntoView({ block: "nearest" });
  }

  function go(row, column) {
    element(at).tabIndex = -1;
    at = { row: clamp(row, 0, cells.length - 1), column: clamp(column, 0, cells[0].length - 1) };
    element(at).tabIndex = 0;
    element(at).focus();
  }
  const choose = ({ row, column }) => (go(row, column), (open = { row, column }), showList());
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
  onKeys(grid, keys, { ctrl: true, when: (e) => e.target.rlCell });
  for (const name of ["mouseover", "focusin"]) grid.addEventListener(name, (e) => e.target.rlCell && describe(e.target.rlCell));
  grid.addEventListener("mouseleave", () => describe(at));
  grid.addEventListener("click", (e) => e.target.rlCell && choose(e.target.rlCell));

  const follow = () => (controls.forEach((one) => one()), update());
  function followed(words, field, control) {
    controls.push(() => (control.value = view[field]));
    return labelled(words, control);
  }
  function chooser(words, field, options, rebuild = false) {
    return followed(words, field, select(options, view[field], (value) => {
      view[field] = typeof view[field] === "number" ? Number(value) : value;
      if (rebuild) build();
      follow();
    }));
  }
  function input(words, field, attributes, read) {
    const oninput = () => ((view[field] = read(control.value)), update());
    const control = h("input", { ...attributes, value: view[field], oninput });
    return followed(words, field, control);
  }
  const number = (words, field) => input(words, field, { type: "number", min: 0, max: longest }, (text) => (text === "" ? all[field] : Number(text)));
  const filterWords = (text) => ((view.matches = text.trim() ? matcher(data, text) : null), text);
  // The slider through the groups, and what plays it.
  function film() {
    let timer = null;
    const last = data.groups.length - 1;
    const show = (group) => ((view.group = group), follow());
    const scrub = h("input", { type: "range", class: "rl-scrub", min: 0, max: last, value: 0, "aria-label": data.name, oninput: () => (pause(), show(Number(scrub.value))) });
    const where = h("output", { "aria-live": "polite" });
    const { toggle, look } = playButton(() => (timer ? pause() : run()));
    controls.push(() => {
      if (view.group >= 0) scrub.value = view.group;
      where.textContent = view.group < 0 ? "all together" : `${data.name} ${data.groups[view.group]}`;
      scrub.setAttribute("aria-valuetext", where.textContent);
    });
    controls.at(-1)();
    const pause = () => (clearInterval(timer), (timer = null), look(false));
    const run = () => {
      look(true);
      if (view.group >= last) show(0);
      timer = setInterval(() => (view.group < last && el.isConnected ? show(view.group + 1) : pause()), 700);
    };
    ends.push(pause);
    return box("Movie", bar(toggle, where), scrub);
  }
  const filter = (words, field, labels) => chooser(words, field, [[-1, "all"], ...labels.map((label, k) => [k, label])]);
  const everything = () => (Object.assign(view, all), follow());
  const rows = Object.entries(data.rows).map(([key, { name }]) => [key, name]);
  el.append(
    bar(chooser("rows", "rows", rows, true), chooser("columns", "align", ALIGNED, true), chooser("numbers", "shade", Object.entries(SHADES)),
      chooser("calls", "calls", SORTS)),
    ...(data.movie ? [film()] : []),
    box("Only these traces", bar(filter(data.name, "group", data.groups), ...(data.rows.suite ? [filter("suite", "suite", data.suites)] : []),
      filter("outcome", "outcome", data.outcomes), number("tokens from", "least"), number("to", "most"),
      input("words", "words", { type: "search", placeholder: "calls>1 tiles" }, filterWords), button("All", everything, "Show all traces"), passed)),
    axis, h("div", { class: "rl-scroll rl-atlas-map" }, grid), legend, readout, muted(data.note),
    bar(chooser("order of the list", "order", Object.entries(ORDERS))), list, ...(scored ? [scored.element] : []), playing,
  );
  build();
  update();
  return () => (stop(), ends.forEach((end) => end()));
}
