// The relay player. State: traces, as player.py makes them; at: the number of tokens that are out at the start.
import { bar, button, clamp, h, labelled, muted, onKeys, playButton, questionBox, select } from "./shared.js";
import { PAGE, ROLES, callFrom, cut, likelyList, owners, tokenStrip, tokenWords } from "./strip.js";

const SPEEDS = [4, 16, 64, 256, 1024]; // tokens per second

// One trace, with `begin` tokens out. Returns what stops it.
function play(stage, trace, begin) {
  const n = trace.source.length;
  const owner = owners(trace);
  const seen = (t, i) => (i in t.view ? t.view[i] || null : t.pieces[i]);
  const strips = [
    tokenStrip("The student's view: everything, its commands included"),
    tokenStrip("The teacher's view: the same history without the commands", { textOf: seen }),
  ];
  let at = Math.min(n, PAGE); // tokens that are out
  let pointer = ""; // where the mouse is
  let resting = null; // where it was when the tokens moved: nobody points at what comes to lie under it
  let timer = null;
  let speed = SPEEDS[1];

  const token = h("p", { class: "rl-token", "aria-live": "polite" });
  const likely = likelyList();
  const callLine = h("p", { class: "rl-callwords rl-muted" });
  const where = h("span", { class: "rl-muted" });
  const scrub = h("input", { type: "range", class: "rl-scrub", min: 0, max: n, step: 1, value: at, "aria-label": "tokens that are out" });
  scrub.addEventListener("input", () => (pause(), seek(Number(scrub.value))));

  function describe(i) {
    token.textContent = i < 0 ? "Nothing is written yet." : tokenWords(trace, owner, i);
    likely.show(trace, i);
    const call = i < 0 ? null : trace.calls[owner[i]];
    callLine.textContent = call ? `Call ${owner[i] + 1}, at token ${call.start + 1}: ${call.words}` : "No call here.";
  }

  function point(i) {
    for (const strip of strips) strip.update({ here: i });
    describe(i < 0 ? at - 1 : i);
  }

  function seek(to) {
    at = clamp(to, 0, n);
    const from = Math.floor(Math.max(0, at - 1) / PAGE) * PAGE;
    for (const strip of strips) strip.update({ trace, from, out: at, now: at - 1, here: -1 });
    where.textContent = n > PAGE ? `tokens ${from + 1} to ${Math.min(from + PAGE, n)} of ${n}` : "";
    resting = pointer;
    scrub.value = at;
    scrub.setAttribute("aria-valuetext", `${at} of ${n} tokens`);
    describe(at - 1);
    for (const strip of strips) strip.reveal(at);
  }

  function playing(on) {
    token.setAttribute("aria-live", on ? "off" : "polite"); // nobody can listen to a token every few milliseconds
    look(on);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    playing(false);
  }

  function run() {
    if (timer) return pause();
    if (at >= n) seek(0);
    playing(true);
    let last = performance.now();
    let due = 0; // the part of the next token whose time has come
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
  const { toggle, look } = playButton(run);
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
    mousemove: (e) => ((pointer = placeOf(e)), (resting = null)),
    mouseover: (e) => e.target.rlIndex !== undefined && placeOf(e) !== resting && point(e.target.rlIndex),
    mouseleave: () => point(-1),
    click: (e) => e.target.rlIndex !== undefined && go(e.target.rlIndex + 1),
  };
  for (const { pane } of strips) {
    onKeys(pane, keys);
    for (const [name, act] of Object.entries(events)) pane.addEventListener(name, act);
  }

  const rate = select(SPEEDS.map((s) => [s, `${s} tokens/s`]), speed, (value) => (speed = Number(value)));
  const map = h("svg", { class: "rl-map", viewBox: `0 0 ${Math.max(1, n)} 10`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const [letter, d] of Object.entries(trace.map)) map.append(h("path", { class: `rl-m${letter}`, d }));
  const legend = Object.entries(ROLES).map(([letter, name]) => h("span", {}, h("span", { class: `rl-${letter}` }, letter === "c" ? "<call>n</call>" : "text"), ` ${name}`));
  const group = (...buttons) => h("div", { class: "rl-group" }, ...buttons);
  stage.replaceChildren(
    questionBox(trace.question),
    muted(trace.summary),
    bar(
      group(button("|‹", keys.Home, "To the start"), button("‹", () => go(at - 1), "One token back"), toggle,
        button("›", () => go(at + 1), "One token on"), button("›|", keys.End, "To the end")),
      group(button("‹ call", keys.C, "To the call before"), button("call ›", keys.c, "To the next call")),
      labelled("speed", rate), ...legend, where,
    ),
    map,
    scrub,
    h("div", { class: "rl-panes" }, ...["student", "teacher"].map((who, k) => h("div", {}, h("h4", {}, `The ${who} sees`), strips[k].pane))),
    token,
    likely.list,
    callLine,
    muted("Keys in a strip: space plays, ← → step (with shift ten), home, end, c and shift+c go from call to call."),
  );
  seek(begin ?? at);
  if (begin === undefined) for (const { pane } of strips) pane.scrollTop = 0;
  return pause;
}

export function render({ model, el }) {
  const traces = model.get("traces");
  const area = h("div");
  let stop = () => {};
  const show = (k) => (stop(), (stop = play(area, traces[k], model.get("at"))));
  if (traces.length > 1) el.append(bar(labelled("trace", select(traces.map((t, k) => [k, cut(`${k + 1}. ${t.summary}`, 90)]), 0, (k) => show(Number(k))))));
  el.append(area);
  if (traces.length) show(0);
  return () => stop();
}
