// Counterfactuals: choose a token in a strip and change what happens there. The kernel decodes the rest.
import { bar, button, h, labelled, muted, questionBox } from "./shared.js";
import { busyButtons, frame, panels } from "./live.js";

const NOTHING = "Choose a token: click it, or go there with ← → and press Enter.";

export function render({ model, el }) {
  const { root, status } = frame(model, el, "Counterfactuals: a trace, and what becomes of it when one thing is changed");
  const send = (name, more = {}) => model.send({ do: name, ...more });
  let at = null; // { key, i }: the chosen token

  const where = h("p", { class: "rl-token", role: "status", "aria-live": "polite" }, NOTHING);
  const n = h("input", { type: "number", min: 1, step: 1, value: 8 });
  const base = () => model.get("runs").findIndex((run) => run.key === at?.key);
  const fork = (change) => send("fork", { at: at.i, of: base(), ...change });
  const force = button("Force a call here", () => fork({ call: Number(n.value) }));
  const resize = button("Change its n", () => fork({ call: Number(n.value) }), "Let this call ask for n tokens instead");
  const forbid = button("Forbid this call", () => fork({ forbid: true }));
  const stop = button("Stop", () => send("stop"), "Stop the answer that is being written");
  const clear = button("Remove forks", () => send("clear"), "Remove all forks");
  const area = h("div", { class: "rl-runs", tabindex: "-1" });
  const group = (...buttons) => h("div", { class: "rl-group" }, ...buttons);
  root.append(
    questionBox((model.get("runs")[0] ?? model.get("live")).question),
    where,
    bar(labelled("n", n, h("span", { class: "rl-muted" }, "tokens")), group(force, resize, forbid), group(stop, clear)),
    status,
    area,
    muted("Keys in a strip: ← → go from token to token (with shift ten), home, end, c and shift+c from call to call, Enter chooses."),
  );

  const callAt = (one) => one?.run().calls[one.strip.owner(at.i)];
  function choose(key, i) {
    at = { key, i };
    for (const [other, one] of shown) one.strip.choose(other === key ? i : -1);
    settle();
    const call = callAt(shown.get(key));
    if (call?.requested) n.value = call.requested;
    n.focus();
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
    where.textContent = at ? words + ofCall : NOTHING;
  }
  const updateButtons = busyButtons(model, [force, resize, forbid], stop);
  const shown = panels(model, area, (key) => ({ pick: (i) => choose(key, i), question: false, remove: (gone) => send("remove", { key: gone }) }));
  model.on("change:runs", settle);
  settle();
}
