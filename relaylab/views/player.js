// The relay player. data = {traces: [...]}, each as player.py makes it; texts are safe to lay out, but are only text.
// With data.at it begins with so many tokens out. render() returns what stops it.

const ROLES = { s: "student", t: "teacher", c: "command" };
const PAGE = 512; // tokens in a strip at a time
const SPEEDS = [4, 16, 64, 256, 1024]; // tokens a second

// Of each token the index of its call, or -1.
function owners(trace) {
  const owner = new Array(trace.source.length).fill(-1);
  trace.calls.forEach((call, k) => owner.fill(k, call.start, call.end + call.delivered));
  return owner;
}

const cut = (text, limit) => (text.length <= limit ? text : text.slice(0, limit - 1) + "…");

// A token's text on screen: an empty one has a sign, a line break has one too.
const laidOut = (piece) => (piece === "" ? "∅" : piece.replaceAll("\n", "↵\n"));

const three = (value) => value.toFixed(3).replace(/^-(0\.000)$/, "$1");

function tokenWords(trace, owner, i) {
  const call = owner[i] < 0 ? "" : `, call ${owner[i] + 1}`;
  const parts = [`token ${i + 1} of ${trace.source.length}`, ROLES[trace.source[i]] + call];
  parts.push(`“${cut(laidOut(trace.pieces[i]), 60)}”`.replaceAll("\n", ""), `id ${trace.ids[i]}`);
  if (trace.logprobs?.[i] != null) parts.push(`log-prob ${three(trace.logprobs[i])}`);
  if (trace.entropies?.[i] != null) parts.push(`entropy ${three(trace.entropies[i])} nats`);
  return parts.join(" · ");
}

// How many tokens are out when the next call begins behind `at`, or the last one before it: its first token is out.
function callFrom(trace, at, forward) {
  const stops = trace.calls.map((call) => Math.min(call.start + 1, trace.source.length)).sort((a, b) => a - b);
  return forward ? stops.find((stop) => stop > at) : stops.findLast((stop) => stop < at);
}

// Bars of the whole completion, of a height and a colour for each source: one path of each, in a box of n x 10.
function mapPaths(source) {
  const tops = { s: 4, c: 2, t: 0 };
  const paths = { s: "", t: "", c: "" };
  for (let start = 0, i = 1; i <= source.length; i++) {
    if (source[i] === source[start]) continue;
    const letter = source[start];
    paths[letter] += `M${start} ${tops[letter]}h${i - start}V${10 - tops[letter]}H${start}z`;
    start = i;
  }
  return paths;
}

// One of the two strips. `textOf` says what its reader sees of a token, null for nothing. `fill` lays out one page of
// tokens, those from `at` on hidden, so that an answer of any length moves as fast as one page.
function strip(trace, owner, name, textOf) {
  const rewritten = new Set(trace.rewritten);
  const self = { pane: h("pre", { class: "rl-strip", dir: "ltr", tabindex: "0", role: "group", "aria-label": name }), spans: {} };
  self.fill = (from, at) => {
    self.spans = {};
    for (let i = from; i < Math.min(from + PAGE, trace.source.length); i++) {
      const text = textOf(i);
      if (text === null) continue;
      const call = trace.calls[owner[i]];
      const look = text === trace.pieces[i] ? trace.source[i] : "s"; // what is left of a command is no command
      const span = document.createElement("span");
      span.className = "rl-" + look;
      span.classList.toggle("rl-lost", look === trace.source[i] && Boolean(call?.lost));
      span.classList.toggle("rl-x", rewritten.has(i));
      span.classList.toggle("rl-later", i >= at);
      if (look === "c" && call?.start === i) span.dataset.call = owner[i] + 1 + (call.lost ? "\u00a0✗" : "");
      span.textContent = laidOut(text);
      span.rlIndex = i;
      self.spans[i] = span;
    }
    self.pane.replaceChildren(...Object.values(self.spans)); // whole numbers as keys: in their order
    self.pane.scrollTop = 0;
  };
  return self;
}

// One trace on the stage, with `begin` tokens out where it is given. Returns what stops it, for when another one takes its place.
function play(stage, trace, begin) {
  const n = trace.source.length;
  const owner = owners(trace);
  const mine = strip(trace, owner, "The student's view: everything, its commands included", (i) => trace.pieces[i]);
  const seen = (i) => (i in trace.view ? trace.view[i] || null : trace.pieces[i]);
  const theirs = strip(trace, owner, "The teacher's view: the same history without the commands", seen);
  const strips = [mine, theirs];
  let at = Math.min(n, PAGE); // tokens that are out
  let from = 0; // the first token of the page
  let marked = []; // spans of the current token
  let pointed = []; // and of the one under the pointer
  let pointer = ""; // where it is
  let resting = null; // where it was when the tokens moved last: nobody points at what comes to lie under it
  let timer = null;
  let speed = SPEEDS[1];

  const token = h("p", { class: "rl-token", "aria-live": "polite" });
  const callLine = h("p", { class: "rl-callwords rl-muted" });
  const where = h("span", { class: "rl-muted" });
  const scrub = h("input", { type: "range", class: "rl-scrub", min: 0, max: n, step: 1, value: at });
  scrub.setAttribute("aria-label", "tokens that are out");
  scrub.addEventListener("input", () => (pause(), seek(Number(scrub.value))));

  function describe(i) {
    token.textContent = i < 0 ? "Nothing is written yet." : tokenWords(trace, owner, i);
    const call = i < 0 ? null : trace.calls[owner[i]];
    callLine.textContent = call ? `Call ${owner[i] + 1}, at token ${call.start + 1}: ${call.words}` : "No call here.";
  }

  function turn(page, to) {
    from = page;
    for (const s of strips) s.fill(from, to);
    const last = Math.min(from + PAGE, n);
    where.textContent = n > PAGE ? `tokens ${from + 1} to ${last} of ${n}` : "";
  }

  function reveal({ pane, spans }) {
    let i = at - 1;
    while (i > from && !spans[i]) i--; // the teacher sees nothing of a command: stay with the text before it
    const span = spans[i];
    const top = span ? span.offsetTop : 0;
    if (top < pane.scrollTop || top > pane.scrollTop + pane.clientHeight - 40) pane.scrollTop = top - pane.clientHeight / 2;
  }

  function mark(old, i, name) {
    for (const span of old) span.classList.remove(name);
    const spans = strips.map((s) => s.spans[i]).filter(Boolean);
    for (const span of spans) span.classList.add(name);
    return spans;
  }

  function seek(to) {
    to = clamp(to, 0, n);
    const page = Math.floor(Math.max(0, to - 1) / PAGE) * PAGE;
    if (page === from)
      for (const { spans } of strips)
        for (let i = Math.min(at, to); i < Math.max(at, to); i++) spans[i]?.classList.toggle("rl-later", i >= to);
    else turn(page, to);
    at = to;
    resting = pointer;
    pointed = mark(pointed, -1, "rl-here");
    marked = mark(marked, at - 1, "rl-now");
    scrub.value = at;
    scrub.setAttribute("aria-valuetext", `${at} of ${n} tokens`);
    describe(at - 1);
    strips.forEach(reveal);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    token.setAttribute("aria-live", "polite");
    toggle.textContent = "▶ Play";
    toggle.setAttribute("aria-label", "Play");
  }

  function run() {
    if (timer) return pause();
    if (at >= n) seek(0);
    token.setAttribute("aria-live", "off"); // nobody can listen to a token every few milliseconds
    toggle.textContent = "‖ Pause";
    toggle.setAttribute("aria-label", "Pause");
    let last = performance.now();
    let due = 0; // of the next token, the part whose time has come
    timer = setInterval(() => {
      const now = performance.now();
      due += ((now - last) / 1000) * speed;
      last = now;
      if (due >= 1) seek(at + Math.floor(due));
      due %= 1;
      if (at >= n || !stage.isConnected) pause();
    }, 30);
  }

  const placeOf = (e) => `${e.screenX} ${e.screenY}`;
  const go = (to) => (pause(), to === undefined || seek(to));
  const toggle = button("▶ Play", run, "Play");
  const keys = {
    " ": run,
    ArrowRight: (e) => go(at + (e.shiftKey ? 10 : 1)),
    ArrowLeft: (e) => go(at - (e.shiftKey ? 10 : 1)),
    Home: () => go(0),
    End: () => go(n),
    c: () => go(callFrom(trace, at, true)),
    C: () => go(callFrom(trace, at, false)),
  };
  const events = {
    keydown: (e) => {
      if (!keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      e.stopPropagation();
      keys[e.key](e);
    },
    mousemove: (e) => {
      pointer = placeOf(e);
      resting = null;
    },
    mouseover: (e) => {
      const i = e.target.rlIndex;
      if (i === undefined || placeOf(e) === resting) return;
      pointed = mark(pointed, i, "rl-here");
      describe(i);
    },
    mouseleave: () => {
      pointed = mark(pointed, -1, "rl-here");
      describe(at - 1);
    },
    click: (e) => e.target.rlIndex !== undefined && go(e.target.rlIndex + 1),
  };
  for (const { pane } of strips) for (const [name, act] of Object.entries(events)) pane.addEventListener(name, act);

  const rate = h("select", { onchange: () => (speed = Number(rate.value)) });
  for (const s of SPEEDS) rate.append(h("option", { value: s, selected: s === speed }, `${s} tokens/s`));
  const map = h("svg", { class: "rl-map", viewBox: `0 0 ${Math.max(1, n)} 10`, preserveAspectRatio: "none" });
  map.setAttribute("aria-hidden", "true");
  for (const [letter, d] of Object.entries(mapPaths(trace.source))) if (d) map.append(h("path", { class: "rl-m" + letter, d }));
  const legend = Object.entries(ROLES).map(([letter, name]) =>
    h("span", {}, h("span", { class: "rl-" + letter }, letter === "c" ? "<call>n</call>" : "text"), ` ${name}`),
  );
  stage.replaceChildren(
    h("div", { class: "rl-question", dir: "auto", tabindex: "0", role: "group", "aria-label": "Question" }, trace.question),
    h("p", { class: "rl-muted" }, trace.summary),
    h(
      "div",
      { class: "rl-bar" },
      h("div", { class: "rl-group" }, button("|‹", keys.Home, "To the start"), button("‹", () => go(at - 1), "One token back"),
        toggle, button("›", () => go(at + 1), "One token on"), button("›|", keys.End, "To the end")),
      h("div", { class: "rl-group" }, button("‹ call", keys.C, "To the call before"), button("call ›", keys.c, "To the next call")),
      labelled("speed", rate),
      ...legend,
      where,
    ),
    map,
    scrub,
    h("div", { class: "rl-panes" }, h("div", {}, h("h4", {}, "The student sees"), mine.pane), h("div", {}, h("h4", {}, "The teacher sees"), theirs.pane)),
    token,
    callLine,
    h("p", { class: "rl-muted" }, "Keys in a strip: space plays, ← → step (with shift ten), home, end, c and shift+c go from call to call."),
  );
  turn(0, at);
  describe(at - 1);
  if (begin !== undefined) seek(begin);
  return pause;
}

function render(stage, data) {
  const area = h("div");
  let stop = () => {};
  const show = (k) => (stop(), (stop = play(area, data.traces[k], data.at)));
  if (data.traces.length > 1) {
    const choice = h("select", { onchange: () => show(choice.selectedIndex) });
    data.traces.forEach((trace, k) => choice.append(h("option", {}, cut(`${k + 1}. ${trace.summary}`, 90))));
    stage.append(h("div", { class: "rl-bar" }, labelled("trace", choice)));
  }
  stage.append(area);
  if (data.traces.length) show(0);
  return () => stop();
}
