// The strip of tokens: the one way in which a view draws the text of a trace, and what it says of tokens and calls.
import { bar, button, clamp, h, onKeys } from "./shared.js";

export const ROLES = { s: "student", t: "teacher", c: "command" };
export const PAGE = 512; // tokens in a strip at a time, so that a long answer is as fast as a short one

// What the student would have written at a token, the likeliest first: bars with their probabilities.
export function likelyList() {
  const list = h("ol", { class: "rl-likely", "aria-live": "polite", "aria-label": "The student's likeliest next tokens" });
  const show = (trace, i) => {
    const likely = trace.alternatives?.[i];
    list.hidden = !trace.alternatives;
    list.replaceChildren(...(likely ?? []).map(([text, p]) => {
      const written = text === trace.pieces[i] || (text === "<call>" && trace.calls.some((call) => call.start === i && call.end > i));
      const item = h("li", { class: written && "rl-written" }, h("span", { class: text === "<call>" ? "rl-c" : "rl-s" }, shownText(text)), ` ${percent(p)}${written ? " ✓" : ""}`);
      item.style.setProperty("--share", `${100 * p}%`);
      return item;
    }));
    if (i >= 0 && !likely) list.append(h("li", {}, "not known: the student was not asked here"));
  };
  return { list, show };
}
const percent = (p) => (p > 0 && p < 0.001 ? "<0.1 %" : `${(100 * p).toFixed(p > 0 && p < 0.0995 ? 1 : 0)} %`);
const shownText = (text) => (text === "" ? "end" : text.replaceAll("\n", "↵").replaceAll(" ", "␣"));

// The index of the call of each token, or -1.
export function owners(trace) {
  const owner = new Array(trace.source.length).fill(-1);
  trace.calls.forEach((call, k) => owner.fill(k, call.start, call.end + call.delivered));
  return owner;
}

export const cut = (text, limit) => (text.length <= limit ? text : text.slice(0, limit - 1) + "…");
export const laidOut = (piece) => (piece === "" ? "∅" : piece.replaceAll("\n", "↵\n"));
const three = (value) => value.toFixed(3).replace(/^-(0\.000)$/, "$1");

export function tokenWords(trace, owner, i) {
  const call = owner[i] < 0 ? "" : `, call ${owner[i] + 1}`;
  const parts = [`token ${i + 1} of ${trace.source.length}`, ROLES[trace.source[i]] + call];
  parts.push(`“${cut(laidOut(trace.pieces[i]), 60)}”`.replaceAll("\n", ""), `id ${trace.ids[i]}`);
  if (trace.logprobs?.[i] != null) parts.push(`log-prob ${three(trace.logprobs[i])}`);
  if (trace.entropies?.[i] != null) parts.push(`entropy ${three(trace.entropies[i])} nats`);
  const teacher = [];
  if (trace.teacher_logprobs?.[i] != null) teacher.push(`log-prob ${three(trace.teacher_logprobs[i])}`);
  if (trace.divergences?.[i] != null) teacher.push(`divergence ${three(trace.divergences[i])} nats`);
  if (trace.teacher_top?.[i] != null) teacher.push(`likeliest “${cut(laidOut(trace.teacher_top[i]), 30)}”`.replaceAll("\n", ""));
  if (teacher.length) parts.push(`under the teacher: ${teacher.join(", ")}`);
  return parts.join(" · ");
}

// The number of tokens that are out when the next call after `at` begins, or the last one before it.
export function callFrom(trace, at, forward) {
  const stops = trace.calls.map((call) => Math.min(call.start + 1, trace.source.length)).sort((a, b) => a - b);
  return forward ? stops.find((stop) => stop > at) : stops.findLast((stop) => stop < at);
}

// pick(i): a token was chosen by a click, Enter or space; without it no token can be chosen.
// textOf(trace, i): what the reader of this strip sees of a token, null for nothing.
// update() draws. It takes any of: trace; from (the first token of the page); out (the number of visible tokens);
// now and here (tokens that are outlined).
export function tokenStrip(name, { pick = null, textOf = (trace, i) => trace.pieces[i] } = {}) {
  const role = pick ? { role: "listbox", "aria-orientation": "horizontal" } : { role: "group", tabindex: "0" };
  const pane = h("pre", { class: "rl-strip", dir: "ltr", "aria-label": name, ...role });
  const where = h("span", { class: "rl-muted" });
  const pages = bar(button("‹ page", () => turn(view.from - PAGE), "The page before"), button("page ›", () => turn(view.from + PAGE), "The next page"), where);
  const view = { trace: { source: "", calls: [], pieces: [], rewritten: [] }, from: 0, out: Infinity, now: -1, here: -1 };
  let owner = [];
  let rewritten = new Set();
  let spans = {}; // of the page, by token
  let current = 0; // the token that the keyboard reaches

  const clear = () => ((spans = {}), pane.replaceChildren(), (pane.scrollTop = 0));
  const length = () => view.trace.source.length;
  const pageOf = (i) => Math.floor(clamp(i, 0, Math.max(0, length() - 1)) / PAGE) * PAGE; // its first token
  const turn = (to) => {
    const from = pageOf(to);
    current = clamp(current, from, from + PAGE - 1); // the keyboard reaches a token of every page
    update({ from });
  };

  function update(change = {}) {
    const { from, trace } = view;
    Object.assign(view, change);
    if (view.from !== from || length() < trace.source.length) clear();
    if (change.trace) {
      owner = owners(view.trace);
      rewritten = new Set(view.trace.rewritten);
      current = clamp(current, 0, Math.max(0, length() - 1));
    }
    const end = Math.min(view.from + PAGE, length());
    for (let i = view.from; i < end; i++) draw(i);
    pages.hidden = length() <= PAGE;
    where.textContent = `tokens ${view.from + 1} to ${end} of ${length()}`;
  }

  function draw(i) {
    const { trace } = view;
    const text = textOf(trace, i);
    if (text === null) return;
    const call = trace.calls[owner[i]];
    const source = text === trace.pieces[i] ? trace.source[i] : "s"; // what is left of a command is no command
    const look = [`rl-${source}`, call?.lost && source === trace.source[i] && "rl-lost", rewritten.has(i) && "rl-x", i === trace.fork && "rl-fork",
      i >= view.out && "rl-later", i === view.here && "rl-here", i === view.now && "rl-now"].filter(Boolean).join(" ");
    const span = (spans[i] ??= pane.appendChild(Object.assign(document.createElement("span"), { rlIndex: i })));
    if (span.rlText !== text) span.textContent = laidOut((span.rlText = text));
    if (span.className !== look) span.className = look;
    if (call?.start === i && source !== "t" && text === trace.pieces[i]) span.dataset.call = owner[i] + 1 + (call.lost ? "\u00a0✗" : "");
    if (!pick) return;
    const words = { role: "option", "aria-selected": i === view.now, "aria-label": tokenWords(trace, owner, i), tabindex: i === current ? 0 : -1 };
    for (const [key, value] of Object.entries(words)) span.setAttribute(key, value);
  }

  function focus(to = current) {
    current = clamp(to, 0, length() - 1);
    update({ from: pageOf(current) });
    spans[current]?.focus();
  }

  function choose(i) {
    if (i >= 0) current = i;
    update({ now: i, from: i < 0 ? view.from : pageOf(i) });
  }

  // Scrolls to the last token before `at` that this reader sees.
  function reveal(at) {
    let i = at - 1;
    while (i > view.from && !spans[i]) i--;
    const top = spans[i]?.offsetTop ?? 0;
    if (top < pane.scrollTop || top > pane.scrollTop + pane.clientHeight - 40) pane.scrollTop = top - pane.clientHeight / 2;
  }

  const step = (by) => (e) => focus(current + (e.shiftKey ? 10 : 1) * by);
  const toCall = (forward) => () => focus((callFrom(view.trace, current + 1, forward) ?? current + 1) - 1);
  if (pick) {
    pane.addEventListener("focusin", (e) => (current = e.target.rlIndex ?? current));
    pane.addEventListener("click", (e) => e.target.rlIndex !== undefined && pick(e.target.rlIndex));
    onKeys(pane, {
      ArrowRight: step(1), ArrowLeft: step(-1), Home: () => focus(0), End: () => focus(length() - 1), c: toCall(true), C: toCall(false),
      Enter: () => pick(current), " ": () => pick(current),
    });
  }
  return { pane, pages, update, turn, choose, focus, reveal, words: (i) => tokenWords(view.trace, owner, i), owner: (i) => owner[i] };
}
