// What the two live views share: a panel per run, the panels beside each other, and what can be changed in them.
import { bar, box, button, count, h, labelled, muted, questionBox } from "./shared.js";
import { PAGE, likelyList, tokenStrip } from "./strip.js";

const MARKS = { right: "✓ correct", wrong: "✗ wrong", "": "not graded" };
const COLOURS = { right: "rl-good", wrong: "rl-bad", "": "rl-muted" };

// A run: its heading, how it was made, how it ended, its tokens and its calls. pick(i): a token was chosen.
function panel(run, { remove, pick, question }) {
  const title = h("h4");
  const how = h("p", { class: "rl-muted" });
  const outcome = h("p", { class: "rl-outcome" });
  const asked = questionBox(run.question);
  const calls = h("ul", { class: "rl-calls", tabindex: "0", "aria-label": "Calls" });
  const strip = tokenStrip("", { pick });
  const likely = likelyList();
  for (const name of ["mouseover", "focusin"]) {
    strip.pane.addEventListener(name, ({ target }) => {
      if (target.rlIndex === undefined) return;
      target.title = strip.words(target.rlIndex);
      likely.show(run, target.rlIndex);
    });
  }
  const away = button("Remove", () => remove(run.key));
  const root = h("div", { class: "rl-run", role: "group" }, title, how, ...(question ? [asked] : []), outcome, strip.pane, strip.pages, likely.list, calls, bar(away));

  function update(next, growing) {
    run = next;
    title.textContent = run.heading;
    how.textContent = run.how;
    asked.textContent = run.question;
    root.setAttribute("aria-label", run.heading);
    root.setAttribute("aria-busy", growing);
    strip.pane.setAttribute("aria-label", `${run.heading}: its tokens`);
    const state = growing ? h("b", { class: "rl-muted" }, "… writing") : h("b", { class: COLOURS[run.outcome] }, MARKS[run.outcome]);
    outcome.replaceChildren(state, `, ${growing ? count(run.source.length, "token") : run.summary.replaceAll(" %", "\u00a0%")}`);
    calls.hidden = !run.calls.length;
    calls.replaceChildren(...run.calls.slice(0, 50).map((call, k) => h("li", {}, `Call ${k + 1}, at token ${call.start + 1}: ${call.words}`)));
    away.hidden = growing || Boolean(run.fixed);
    for (const name of ["aria-label", "title"]) away.setAttribute(name, `Remove ${run.heading}`);
    strip.update({ trace: run });
    likely.show(run, -1);
    if (!growing) return;
    if (run.source.length > PAGE) strip.turn(run.source.length - 1);
    strip.pane.scrollTop = strip.pane.scrollHeight;
  }

  const focus = () => (away.hidden ? strip : away).focus();
  const choose = (i) => (strip.choose(i), i >= 0 && likely.show(run, i));
  return { root, strip, update, focus, choose, run: () => run };
}

// Keeps one panel in `area` for each run of the model and for the one that is being written: the newest first or last.
function panels(model, area, newestFirst, options) {
  const shown = new Map();
  const redraw = () => {
    const runs = [...model.get("runs")];
    const live = model.get("live");
    const writing = Boolean(live.key) && !runs.some((run) => run.key === live.key);
    if (writing) runs.push(live);
    const keys = new Set(runs.map((run) => run.key));
    for (const [key, one] of shown) {
      if (keys.has(key)) continue;
      const focused = one.root.contains(document.activeElement);
      const near = one.root.nextElementSibling ?? one.root.previousElementSibling;
      one.root.remove();
      shown.delete(key);
      if (focused) ([...shown.values()].find((other) => other.root === near) ?? area).focus();
    }
    for (const run of runs) {
      if (!shown.has(run.key)) shown.set(run.key, panel(run, options(run.key)));
      const one = shown.get(run.key);
      if (!one.root.isConnected) area[newestFirst ? "prepend" : "append"](one.root);
      if (one.last !== run) one.update(run, writing && run === live);
      one.last = run;
    }
  };
  model.on("change:runs", redraw);
  model.on("change:live", redraw);
  redraw();
  return shown;
}

// While an answer is written, only `stop` can be pressed. The focus moves along, since a disabled button cannot hold it.
function busyButtons(model, starters, stop) {
  let from = null; // the starter that had the focus
  const update = () => {
    const busy = model.get("busy");
    const focused = document.activeElement;
    for (const one of starters) one.disabled = busy || one.rlOff === true;
    stop.disabled = !busy;
    if (busy && starters.includes(focused)) (from = focused), stop.focus();
    if (!busy && focused === stop) ([from, ...starters].find((one) => one && !one.disabled) ?? stop).focus();
  };
  model.on("change:busy", update);
  update();
  return update;
}

// The runs of a view, and a box in which the call at a chosen token is changed. The first call of a new run is chosen.
export function whatIf(model, { starters = [], stop, newestFirst = false, question = true }) {
  const send = (name, more = {}) => model.send({ do: name, ...more });
  let at = null; // { key, i }: the chosen token
  let newest = null; // the key of the newest run
  let timer = null;

  const where = h("p", { class: "rl-token", role: "status", "aria-live": "polite" });
  const n = h("input", { type: "number", min: 1, step: 1, value: 8 });
  const drag = h("input", { type: "range", min: 1, max: 30, value: 8, "aria-label": "n, by dragging" });
  const base = () => model.get("runs").findIndex((run) => run.key === at?.key);
  const fork = (change) => send("fork", { at: at.i, of: base(), ...change });
  const force = button("Force a call here", () => fork({ call: Number(n.value) }));
  const resize = button("Change its n", () => fork({ at: callAt(shown.get(at.key)).start, call: Number(n.value) }),
    "Let this call ask for n tokens instead");
  const forbid = button("Forbid this call", () => fork({ forbid: true }));
  n.addEventListener("input", () => (drag.value = n.value));
  drag.addEventListener("input", () => (n.value = drag.value));
  drag.addEventListener("change", () => {
    clearTimeout(timer);
    timer = setTimeout(() => (resize.disabled ? force : resize).click(), 300); // several steps by keys are one change
  });

  const callAt = (one) => one?.run().calls[one.strip.owner(at.i)];
  function choose(key, i) {
    at = { key, i };
    for (const [other, one] of shown) one.choose(other === key ? i : -1);
    settle();
    const call = callAt(shown.get(key));
    if (call?.requested) n.value = drag.value = call.requested;
  }
  // What can be done at the chosen token; the kernel checks it again.
  function settle() {
    if (base() < 0) at = null;
    const one = shown.get(at?.key);
    const call = at && callAt(one);
    force.rlOff = !at || Boolean(call && at.i <= call.end);
    resize.rlOff = !call;
    forbid.rlOff = !call || call.start === call.end;
    updateButtons();
    const words = at && `Chosen in ${one.run().heading.split(":")[0]}: ${one.strip.words(at.i)}.`;
    const ofCall = call && call.start < call.end ? ` Call ${one.strip.owner(at.i) + 1} ${call.words}.` : "";
    where.textContent = at ? words + ofCall : "Choose a token: click it, or go there with ← → and press Enter.";
  }
  function follow() {
    const last = model.get("runs").at(-1);
    const begin = last?.fork ?? last?.calls[0]?.start ?? 0;
    // A fork that wrote nothing, and a silent call at the end, begin after the last token.
    if (last?.source && last.key !== newest) choose(last.key, Math.min(begin, last.source.length - 1));
    else settle();
    newest = last?.key;
  }
  const area = h("div", { class: "rl-runs", tabindex: "-1" });
  const updateButtons = busyButtons(model, [...starters, force, resize, forbid], stop);
  const shown = panels(model, area, newestFirst, (key) => ({
    pick: (i) => (choose(key, i), n.focus()), question, remove: (gone) => send("remove", { key: gone }),
  }));
  model.on("change:runs", follow);
  follow();
  const changes = box("What if", where, bar(labelled("n", n, drag), h("div", { class: "rl-group" }, force, resize, forbid)));
  const help = muted("Keys in a strip: ← → go from token to token (with shift ten), home, end, c and shift+c from call to call, Enter chooses.");
  return { changes, area, help };
}
