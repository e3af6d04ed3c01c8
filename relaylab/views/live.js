// What the two live views share: a panel per run, the panels beside each other, and the frame around a view.
import { bar, button, count, h, keepKeys, questionBox } from "./shared.js";
import { PAGE, tokenStrip } from "./strip.js";

const MARKS = { right: "✓ correct", wrong: "✗ wrong", "": "not graded" };
const COLOURS = { right: "rl-good", wrong: "rl-bad", "": "rl-muted" };

// A run: its heading, how it was made, how it ended, its tokens and its calls. With `pick`, its tokens can be chosen.
function panel(run, { remove, pick = null, question = true }) {
  const title = h("h4");
  const how = h("p", { class: "rl-muted" });
  const outcome = h("p", { class: "rl-outcome" });
  const asked = questionBox(run.question);
  const calls = h("ul", { class: "rl-calls", tabindex: "0", "aria-label": "Calls" });
  const strip = tokenStrip("", { pick });
  strip.pane.addEventListener("mouseover", ({ target }) => {
    if (target.rlIndex !== undefined) target.title = strip.words(target.rlIndex);
  });
  const away = button("Remove", () => remove(run.key));
  const root = h("div", { class: "rl-run", role: "group" }, title, how, ...(question ? [asked] : []), outcome, strip.pane, strip.pages, calls, bar(away));

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
    if (!growing) return;
    if (run.source.length > PAGE) strip.turn(run.source.length - 1);
    strip.pane.scrollTop = strip.pane.scrollHeight;
  }

  const focus = () => (!away.hidden ? away : pick ? strip : strip.pane).focus();
  return { root, strip, update, focus, run: () => run };
}

// Keeps one panel in `area` for each run of the model and for the one that is being written, in their order.
export function panels(model, area, options) {
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
      if (!one.root.isConnected) area.append(one.root);
      if (one.last !== run) one.update(run, writing && run === live);
      one.last = run;
    }
  };
  model.on("change:runs", redraw);
  model.on("change:live", redraw);
  redraw();
  return shown;
}

// The root of a view and its status line. Its style hides the record that stands below the view.
export function frame(model, el, label) {
  const status = h("p", { class: "rl-status", role: "status", "aria-live": "polite" });
  const report = () => {
    status.classList.toggle("rl-bad", model.get("failed"));
    status.textContent = (model.get("failed") ? "✗ " : "") + model.get("message");
  };
  model.on("change:message", report);
  model.on("change:failed", report);
  report();
  const root = h("section", { class: "rl-view tex2jax_ignore mathjax_ignore", "aria-label": label });
  keepKeys(root);
  el.replaceChildren(h("style", {}, `[data-rl-record="${model.get("mark")}"]{display:none}`), root);
  return { root, status };
}

// While an answer is written, only `stop` can be pressed. The focus moves along, since a disabled button cannot hold it.
export function busyButtons(model, starters, stop) {
  const update = () => {
    const busy = model.get("busy");
    const focused = document.activeElement;
    for (const one of starters) one.disabled = busy || one.rlOff === true;
    stop.disabled = !busy;
    if (busy && starters.includes(focused)) stop.focus();
    if (!busy && focused === stop) (starters.find((one) => !one.disabled) ?? stop).focus();
  };
  model.on("change:busy", update);
  update();
  return update;
}
