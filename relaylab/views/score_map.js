// The map of scores: each token of the student by its entropy and by the divergence of the teacher (TIP, 2604.14084).
// `scores` has the columns of atlas.py; both axes follow the square root, since most tokens are near 0.
import { count, h, muted, onKeys } from "./shared.js";
import { cut, laidOut } from "./strip.js";

const [WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM] = [720, 380, 52, 26, 12, 48]; // of the box, and of its margins
const TICKS = [0, 0.1, 0.6, 1, 2, 4, 8, 16, 32];
const NEAR = 14; // how far from a point the mouse may be
const CIRCLE = (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0-${2 * r} 0z`;
const SHAPES = [(x, y) => CIRCLE(x, y, 3.4), (x, y) => `M${x} ${y - 4.6}l4.4 7.8h-8.8z`, (x, y) => `M${x - 3} ${y - 3}h6v6h-6z`]; // by outcome
const MARKS = ["● in a right answer", "▲ in a wrong one", "■ in one that is not graded"];
const CORNERS = [["sure, the teacher agrees", "sure, the teacher disagrees"], ["unsure, the teacher agrees", "unsure, the teacher disagrees"]];

// The corner of a point: whether the student is unsure, whether the teacher disagrees.
export const cornerOf = ({ entropy, divergence, mark }, i) => [Number(entropy[i] > mark), Number(divergence[i] > mark)];

// Points per corner among those to keep.
export function corners(scores, keep) {
  const counts = [[0, 0], [0, 0]];
  for (let i = 0; i < scores.trace.length; i++) {
    const [unsure, other] = cornerOf(scores, i);
    if (keep(scores.trace[i])) counts[unsure][other]++;
  }
  return counts;
}

// Places of all points in the box.
export function places({ entropy, divergence }) {
  const [right, up] = [entropy, divergence].map((values) => Math.max(1, ...values));
  const x = (value) => LEFT + (WIDTH - LEFT - RIGHT) * Math.sqrt(value / right);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * Math.sqrt(value / up);
  return { x, y, right, up, at: entropy.map((value, i) => [x(value), y(divergence[i])].map(Math.round)) };
}

// The point nearest to a place among those to keep, or -1 if none is near.
export function nearest(at, keep, x, y) {
  let [best, least] = [-1, NEAR ** 2];
  at.forEach(([a, b], i) => {
    const distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least && keep(i)) [best, least] = [i, distance];
  });
  return best;
}

export function pointWords(scores, name, i) {
  const text = (piece) => `“${laidOut(piece).replaceAll("\n", "")}”`;
  const numbers = `entropy ${scores.entropy[i].toFixed(3)}, divergence ${scores.divergence[i].toFixed(3)} nats`;
  const top = scores.top[i] ? `; the teacher's likeliest is ${text(scores.top[i])}` : "";
  const [unsure, other] = cornerOf(scores, i);
  return `${text(scores.token[i])}, token ${scores.at[i] + 1} of ${cut(name, 60)}: ${numbers}${top}; ${CORNERS[unsure][other]}.`;
}

// The map. open(trace, token, opener) is called for a chosen point; update(keep) draws the points of the traces to keep.
export function scoreMap(scores, { outcome, nameOf, opens, open }) {
  const { x, y, right, up, at } = places(scores);
  let keep = () => true;
  let order = []; // the points that are drawn, from the largest divergence on
  let here = -1; // place in the order
  const shapes = SHAPES.map((_, k) => h("path", { class: `rl-p${k}` }));
  const ring = h("path", { class: "rl-chosen" });
  const labels = [[0, 0], [0, 1], [1, 0], [1, 1]].map(([unsure, other]) =>
    [unsure, other, h("text", { x: unsure ? WIDTH - RIGHT : LEFT + 4, y: other ? TOP - 8 : y(scores.mark) + 18, "text-anchor": unsure ? "end" : "start" })]);
  const ticks = (top) => TICKS.filter((value) => value <= top);
  const line = (d, look = "rl-grid") => h("path", { class: look, d, fill: "none" });
  const svg = h("svg", { class: "rl-chart rl-scores", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "group" },
    ...ticks(right).flatMap((v) => [line(`M${x(v)} ${TOP}V${HEIGHT - BOTTOM}`), h("text", { x: x(v), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, String(v))]),
    ...ticks(up).flatMap((v) => [line(`M${LEFT} ${y(v)}H${WIDTH - RIGHT}`), h("text", { x: LEFT - 6, y: y(v) + 5, "text-anchor": "end" }, String(v))]),
    line(`M${x(scores.mark)} ${TOP}V${HEIGHT - BOTTOM}`, "rl-even"), line(`M${LEFT} ${y(scores.mark)}H${WIDTH - RIGHT}`, "rl-even"),
    h("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "the student's entropy (nats)"),
    h("text", { transform: `translate(14 ${(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)`, "text-anchor": "middle" }, "the teacher's divergence (nats)"),
    ...shapes, ring, ...labels.map(([, , text]) => text));
  const readout = h("p", { class: "rl-atlas-readout", "aria-live": "polite" });

  function point(i) {
    here = order.indexOf(i);
    ring.setAttribute("d", i < 0 ? "" : CIRCLE(...at[i], 8));
    const note = i >= 0 && !opens(scores.trace[i]) ? " Its trace is not in this page in full." : "";
    readout.textContent = i < 0 ? "Point at a token, or go through them with the arrow keys." : pointWords(scores, nameOf(scores.trace[i]), i) + note;
  }
  const choose = (i) => i >= 0 && opens(scores.trace[i]) && open(scores.trace[i], scores.at[i] + 1, svg);
  const go = (to) => point(order[Math.min(order.length - 1, Math.max(0, to))] ?? -1);

  function update(kept) {
    keep = kept;
    order = at.map((_, i) => i).filter((i) => keep(scores.trace[i])).sort((a, b) => scores.divergence[b] - scores.divergence[a] || a - b);
    const d = ["", "", ""];
    for (const i of order) {
      const k = outcome[scores.trace[i]];
      d[k] += SHAPES[k](...at[i]);
    }
    shapes.forEach((path, k) => path.setAttribute("d", d[k]));
    const counts = corners(scores, keep);
    const share = (n) => (order.length ? `${n.toLocaleString("en")} (${((100 * n) / order.length).toFixed(1)} %)` : "0");
    for (const [unsure, other, text] of labels) text.textContent = `${CORNERS[unsure][other]}: ${share(counts[unsure][other])}`;
    svg.setAttribute("aria-label", `${count(order.length, "token")} by entropy and divergence. ${labels.map(([, , text]) => text.textContent).join("; ")}.`);
    point(-1);
  }

  const placeOf = (e) => {
    const box = svg.getBoundingClientRect();
    return nearest(at, (i) => keep(scores.trace[i]), ((e.clientX - box.left) * WIDTH) / box.width, ((e.clientY - box.top) * HEIGHT) / box.height);
  };
  svg.addEventListener("mousemove", (e) => point(placeOf(e)));
  svg.addEventListener("click", (e) => choose(placeOf(e)));
  onKeys(svg, {
    ArrowRight: () => go(here + 1), ArrowLeft: () => go(here - 1), Home: () => go(0), End: () => go(order.length - 1),
    Enter: () => choose(order[here] ?? -1), " ": () => choose(order[here] ?? -1),
  });
  const thinned = scores.every > 1 ? ` One in ${scores.every} of ${scores.total.toLocaleString("en")} tokens is drawn.` : "";
  const element = h("div", {}, h("h4", {}, "What the teacher thinks of the student's tokens"), muted(`${MARKS.join(", ")}. Dashed: ${scores.mark} nats.${thinned}`), svg, readout,
    muted("Keys in the map: ← → go from the largest divergence to the smallest, home, end; enter opens the trace at this token."));
  return { element, update };
}
