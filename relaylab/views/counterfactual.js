// What if: a token is chosen in one of the strips, and what should be otherwise there. The kernel decodes the rest.

function show({ model, el }) {
  const { root, said } = frame(model, el, "Counterfactual: a trace, and what becomes of it where one thing is changed");
  const send = (name, more = {}) => model.send({ do: name, ...more });
  let at = null; // { key, i }: the token that was chosen

  const nothing = "Choose a token: click it, or go there with ← → and press Enter.";
  const where = h("p", { class: "rl-token", role: "status", "aria-live": "polite" }, nothing);
  const n = h("input", { type: "number", min: 1, step: 1, value: 8 });
  const base = () => model.get("runs").findIndex((run) => run.key === at?.key);
  const fork = (change) => send("fork", { at: at.i, of: base(), ...change });
  const force = button("Force a call here", () => fork({ call: Number(n.value) }));
  const change = button("Change its n", () => fork({ call: Number(n.value) }), "Let this call ask for n tokens instead");
  const forbid = button("Forbid this call", () => fork({ forbid: true }));
  const stop = button("Stop", () => send("stop"), "Stop the answer that is being written");
  const clear = button("Remove forks", () => send("clear"), "Remove all forks");
  const area = h("div", { class: "rl-runs", tabindex: "-1" });
  const question = h("div", { class: "rl-question", dir: "auto", tabindex: "0", role: "group", "aria-label": "Question" });
  question.textContent = model.get("runs")[0].question;
  root.append(
    question,
    where,
    h("div", { class: "rl-bar" }, labelled("n", n, h("span", { class: "rl-muted" }, "tokens")),
      h("div", { class: "rl-group" }, force, change, forbid), h("div", { class: "rl-group" }, stop, clear)),
    said,
    area,
    h("p", { class: "rl-muted" }, "Keys in a strip: ← → go from token to token (with shift ten), home, end, c and shift+c from call to call, Enter chooses."),
  );

  const choose = (key, i) => {
    at = { key, i };
    for (const [other, one] of shown) one.strip.choose(other === key ? i : -1);
    settle();
    const call = callOf();
    if (call?.requested) n.value = call.requested;
    n.focus();
  };
  const callOf = () => {
    const one = shown.get(at?.key);
    return one ? one.run().calls[one.strip.owner(at.i)] : undefined;
  };
  // What can be done at the chosen token; the kernel checks it again.
  const settle = () => {
    const one = shown.get(at?.key);
    if (base() < 0) at = null;
    const call = at && callOf();
    const inCommand = call && at.i <= call.end;
    force.rlOff = !at || Boolean(inCommand);
    change.rlOff = !call;
    forbid.rlOff = !call || call.start === call.end;
    turn();
    if (!at) return void (where.textContent = nothing);
    const run = one.run();
    const k = one.strip.owner(at.i);
    const told = `Chosen in ${run.heading.split(":")[0]}: ${tokenWords(run, Object.assign([], { [at.i]: k }), at.i)}.`;
    where.textContent = call ? `${told} ${call.start === call.end ? "" : `Call ${k + 1} ${call.words}.`}` : told;
  };
  const turn = pair(model, () => [force, change, forbid], stop);
  const shown = panels(model, area, (key) => ({ pick: (i) => choose(key, i), question: false, remove: (gone) => send("remove", { key: gone }) }));
  model.on("change:runs", settle);
  settle();
}
