// What the two live views share: a strip of tokens that grows, a panel for a run, and the panels beside each other.
// It stands behind frontend.js and player.js, whose helpers it uses. What a model wrote becomes text nodes only.

// A strip that shows one page of the newest trace it was given, and keeps the spans that it has.
// pick(i): called for a token that is chosen by a click, Enter or space; without it there is nothing to choose.
function growing(name, pick = null) {
  const role = pick ? { role: "listbox", "aria-orientation": "horizontal" } : { role: "group", tabindex: "0" };
  const pane = h("pre", { class: "rl-strip", dir: "ltr", "aria-label": name, ...role });
  const where = h("span", { class: "rl-muted" });
  const pages = h("div", { class: "rl-bar", hidden: true }, button("‹ page", () => turn(from - PAGE), "The tokens before"),
    button("page ›", () => turn(from + PAGE), "The tokens behind"), where);
  let trace = { source: "", calls: [], pieces: [], rewritten: [] };
  let owner = [];
  let from = 0; // the first token of the page
  let spans = [];
  let current = 0; // the token that the keyboard reaches, and the one that was chosen
  let chosen = -1;

  function turn(to) {
    from = clamp(Math.floor(to / PAGE) * PAGE, 0, Math.max(0, Math.floor((trace.source.length - 1) / PAGE) * PAGE));
    spans = [];
    pane.replaceChildren();
    draw();
  }

  function draw() {
    const n = trace.source.length;
    const rewritten = new Set(trace.rewritten);
    const end = Math.min(from + PAGE, n);
    for (let i = from; i < end; i++) {
      const call = trace.calls[owner[i]];
      const look = `rl-${trace.source[i]}` + (call?.lost ? " rl-lost" : "") + (rewritten.has(i) ? " rl-x" : "") +
        (i === trace.fork ? " rl-fork" : "") + (i === chosen ? " rl-now" : "");
      const badge = trace.source[i] === "c" && call?.start === i ? owner[i] + 1 + (call.lost ? "\u00a0✗" : "") : null;
      let span = spans[i - from];
      if (!span) {
        span = document.createElement("span");
        span.rlIndex = i;
        spans.push(span);
        pane.append(span);
      }
      const text = laidOut(trace.pieces[i]);
      if (span.textContent !== text) span.textContent = text;
      if (span.className !== look) span.className = look;
      if (badge !== null) span.dataset.call = badge;
      if (!pick) continue;
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", i === chosen);
      span.setAttribute("aria-label", tokenWords(trace, owner, i));
      span.setAttribute("tabindex", i === current ? "0" : "-1");
    }
    while (spans.length > end - from) spans.pop().remove();
    pages.hidden = n <= PAGE;
    where.textContent = `tokens ${from + 1} to ${end} of ${n}`;
  }

  function focus(to) {
    current = clamp(to, 0, trace.source.length - 1);
    if (current < from || current >= from + PAGE) turn(current);
    else draw();
    spans[current - from]?.focus();
  }

  function choose(i) {
    chosen = i;
    if (i >= 0) current = i;
    draw();
  }

  const keys = {
    ArrowRight: (e) => focus(current + (e.shiftKey ? 10 : 1)),
    ArrowLeft: (e) => focus(current - (e.shiftKey ? 10 : 1)),
    Home: () => focus(0),
    End: () => focus(trace.source.length - 1),
    c: () => focus((callFrom(trace, current + 1, true) ?? current + 1) - 1),
    C: () => focus((callFrom(trace, current + 1, false) ?? current + 1) - 1),
    Enter: () => pick(current),
    " ": () => pick(current),
  };
  if (pick) {
    pane.addEventListener("click", (e) => e.target.rlIndex !== undefined && pick(e.target.rlIndex));
    pane.addEventListener("keydown", (e) => {
      if (!keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      e.stopPropagation();
      keys[e.key](e);
    });
  }
  pane.addEventListener("mouseover", (e) => {
    if (e.target.rlIndex !== undefined && !e.target.title) e.target.title = tokenWords(trace, owner, e.target.rlIndex);
  });

  function show(next, follow) {
    for (const span of spans) span.title = "";
    trace = next;
    owner = owners(trace);
    current = clamp(current, 0, Math.max(0, trace.source.length - 1));
    if (follow && trace.source.length > from + PAGE) turn(trace.source.length - 1);
    else draw();
    if (follow) pane.scrollTop = pane.scrollHeight;
  }

  return { pane, pages, show, choose, focus: () => focus(current), owner: (i) => owner[i] };
}

const MARKS = { right: "✓ correct", wrong: "✗ wrong", "": "not graded" };
const COLOURS = { right: "rl-good", wrong: "rl-bad", "": "rl-muted" };

// A run: what was done, how it ended, its question and its tokens. With `pick`, its tokens can be chosen.
function panel(run, { remove, pick = null, question = true }) {
  const title = h("h4");
  const how = h("p", { class: "rl-muted" });
  const outcome = h("p", { class: "rl-outcome" });
  const asked = h("div", { class: "rl-question", dir: "auto", tabindex: "0", role: "group", "aria-label": "Question" });
  const calls = h("ul", { class: "rl-calls", tabindex: "0", "aria-label": "Calls" });
  const strip = growing("", pick);
  const away = button("Remove", () => remove(run.key));
  const root = h("div", { class: "rl-run", role: "group" }, title, how, ...(question ? [asked] : []), outcome, strip.pane, strip.pages, calls, h("div", { class: "rl-bar" }, away));

  function update(next, growingStill) {
    const fresh = next.source.length !== run.source.length || !title.textContent;
    run = next;
    title.textContent = run.heading;
    how.textContent = run.how;
    asked.textContent = run.question;
    root.setAttribute("aria-label", run.heading);
    root.setAttribute("aria-busy", growingStill);
    strip.pane.setAttribute("aria-label", `${run.heading}: its tokens`);
    const state = growingStill ? h("b", { class: "rl-muted" }, "… writing") : h("b", { class: COLOURS[run.outcome] }, MARKS[run.outcome]);
    outcome.replaceChildren(state, `, ${growingStill ? count(run.source.length, "token") : run.summary.replaceAll(" %", "\u00a0%")}`);
    calls.hidden = !run.calls.length;
    calls.replaceChildren(...run.calls.slice(0, 50).map((call, k) => h("li", {}, `Call ${k + 1}, at token ${call.start + 1}: ${call.words}`)));
    away.hidden = growingStill || Boolean(run.fixed);
    for (const name of ["aria-label", "title"]) away.setAttribute(name, `Remove ${run.heading}`);
    strip.show(run, growingStill && fresh);
  }

  const focus = () => (!away.hidden ? away : pick ? strip : strip.pane).focus();

  return { root, strip, update, focus, run: () => run };
}

// Keeps the panels of `area` those of the model's runs and of the one that is being written, in their order.
function panels(model, area, options) {
  const shown = new Map();
  const redraw = () => {
    const runs = [...model.get("runs")];
    const live = model.get("live");
    const writing = live.key && !runs.some((run) => run.key === live.key);
    if (writing) runs.push(live);
    const keys = new Set(runs.map((run) => run.key));
    for (const [key, one] of shown) {
      if (keys.has(key)) continue;
      const had = one.root.contains(document.activeElement);
      const near = one.root.nextElementSibling ?? one.root.previousElementSibling;
      one.root.remove();
      shown.delete(key);
      if (had) ([...shown.values()].find((other) => other.root === near) ?? area).focus(); // not nowhere
    }
    for (const run of runs) {
      if (!shown.has(run.key)) {
        const one = panel(run, options(run.key));
        shown.set(run.key, one);
        area.append(one.root);
      }
      const one = shown.get(run.key);
      const growingStill = writing && run === live;
      if (one.last !== run) one.update(run, growingStill);
      one.last = run;
    }
  };
  model.on("change:runs", redraw);
  model.on("change:live", redraw);
  redraw();
  return shown;
}

// The root of a view: its style hides the record that stands below it, and its status line says what happens.
function frame(model, el, label) {
  const said = h("p", { class: "rl-said", role: "status", "aria-live": "polite" });
  const tell = () => {
    said.classList.toggle("rl-bad", model.get("failed"));
    said.textContent = (model.get("failed") ? "✗ " : "") + model.get("message");
  };
  model.on("change:message", tell);
  model.on("change:failed", tell);
  tell();
  const hide = h("style", {}, `[data-rl-record="${model.get("mark")}"]{display:none}`);
  const root = h("section", { class: "rl-view", "aria-label": label });
  keepKeys(root);
  el.replaceChildren(hide, root);
  return { root, said };
}

// A button that begins and one that stops: the focus goes along, since one that is off cannot hold it.
function pair(model, begins, stop) {
  const turn = () => {
    const busy = model.get("busy");
    const had = document.activeElement;
    for (const one of begins()) one.disabled = busy || one.rlOff === true;
    stop.disabled = !busy;
    if (busy && begins().includes(had)) stop.focus();
    if (!busy && had === stop) (begins().find((one) => !one.disabled) ?? stop).focus();
  };
  model.on("change:busy", turn);
  turn();
  return turn;
}
