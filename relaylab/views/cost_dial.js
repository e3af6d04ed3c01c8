// The cost dial. compare() and what it calls are a port of cost.py for regular responses; the rest draws.
// State: prices, shape, lines, measure, measures, longest, as cost_dial.py makes them; null means not set.
import { bar, box, clamp, count, h, labelled, muted, select, table } from "./shared.js";

const known = (value) => (value === null ? NaN : value);
const upto = (n) => (n * (n + 1)) / 2;

// usage(regular_trace(...)): a response of `tokens` without its commands, `calls` of n tokens evenly spaced.
function usage({ prompt, tokens, command_tokens }, calls, n) {
  const own = tokens - calls * n;
  const used = { teacher_new: 0, teacher_again: 0, teacher_context: 0, teacher_context_again: 0 };
  let view = prompt;
  let seen = 0;
  for (let k = 0; k < calls; k++) {
    view += Math.floor((own * (k + 1)) / (calls + 1)) - Math.floor((own * k) / (calls + 1));
    used.teacher_new += view - seen;
    used.teacher_again += seen;
    used.teacher_context += upto(view + n) - upto(seen);
    used.teacher_context_again += upto(seen);
    view = seen = view + n;
  }
  // The student does not read what ends the answer. With a token of its own the last turn is the student's.
  const last = own || !calls ? 0 : command_tokens ? n : calls * n;
  const all = tokens + calls * command_tokens;
  const written = all - calls * n;
  const read = written ? prompt : 0;
  return {
    ...used, hand_offs: calls, teacher_written: calls * n, teacher_share: (calls * n) / all,
    student_written: written, student_read: read + calls * n - last, student_context: upto(read + all - last),
  };
}

function teacherAlone({ prompt, tokens }) {
  return {
    hand_offs: 1, teacher_new: prompt, teacher_again: 0, teacher_written: tokens, teacher_share: 1,
    teacher_context: upto(prompt + tokens), teacher_context_again: 0, student_written: 0, student_read: 0, student_context: 0,
  };
}

const stepOf = (model, rows) => (1 + model.row_share * (rows - 1)) / known(model.decode_rate);

function model(m, read, cached, written, context) {
  return {
    flops: 2 * m.parameters * (read + written) + 4 * m.attention_width * context,
    money: (read * known(m.input_price) + cached * m.cached_price + written * known(m.output_price)) / 1e6,
    seconds: read / known(m.prefill_rate) + written * stepOf(m, m.batch),
    teacher_busy: read / known(m.prefill_rate) + (written * stepOf(m, m.batch)) / m.batch,
  };
}

function costs(u, { student, teacher, network_delay, cache }) {
  const again = cache ? 0 : u.teacher_again;
  const nothing = { flops: 0, money: 0, seconds: 0, teacher_busy: 0 };
  const s = u.student_written ? model(student, u.student_read, 0, u.student_written, u.student_context) : nothing;
  const context = u.teacher_context + (cache ? 0 : u.teacher_context_again);
  const t = u.hand_offs ? model(teacher, u.teacher_new + again, u.teacher_again - again, u.teacher_written, context) : nothing;
  return {
    flops: s.flops + t.flops, money: s.money + t.money,
    seconds: s.seconds + t.seconds + u.hand_offs * network_delay, teacher_busy: t.teacher_busy,
  };
}

// A row of sweep(): shares of the teacher alone, and both sides in full.
export function compare(prices, shape, calls, n) {
  const u = usage(shape, calls, n);
  const relay = costs(u, prices);
  const alone = costs(teacherAlone(shape), prices);
  const relative = Object.fromEntries(Object.keys(relay).map((name) => [name, relay[name] / alone[name]]));
  return { calls, call_tokens: n, teacher_share: u.teacher_share, relay, alone, relative };
}

// f times as large is f times as slow, reading and writing, as on the roofline.
export function resized(m, parameters) {
  const slower = (rate) => (rate === null ? null : (rate * m.parameters) / parameters);
  return { ...m, parameters, prefill_rate: slower(m.prefill_rate), decode_rate: slower(m.decode_rate) };
}

// 1, 2, 5, 10 ... calls, as many as fit.
export function ladder(tokens, n) {
  const found = [];
  for (let power = 1; power * n <= tokens; power *= 10)
    for (const digit of [1, 2, 5]) if (digit * power * n <= tokens) found.push(digit * power);
  return found;
}

const three = (v) => {
  if (!Number.isFinite(v)) return "unknown";
  return v < 1e6 ? v.toLocaleString("en", { maximumSignificantDigits: 3 }) : v.toExponential(2).replace("e+", "e");
};
const percent = (v) => (Number.isFinite(v) ? `${three(100 * v)} %` : "unknown");
const size = (v) => (v >= 1e9 ? `${three(v / 1e9)} B` : `${three(v / 1e6)} M`);
const BOX = { left: 80, right: 570, top: 38, bottom: 372, width: 760, height: 424 };
const MARKS = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "M-4.5 -4.5h9v9h-9z", "M0 -6l6 10h-12z"]; // circle, square, triangle
const CIRCLE = "M-11 0a11 11 0 1 0 22 0a11 11 0 1 0 -22 0z"; // the circle around the chosen point

// The chart: cost and share, both relative to the teacher alone, on logarithmic axes of whole decades.
function chart(lines, before, chosen, measure, title, label) {
  const known = (line) => line.filter((p) => p.relative[measure] > 0 && Number.isFinite(p.relative[measure]));
  const points = known([...lines, ...before].flat().concat(chosen));
  const svg = h("svg", { class: "rl-chart", viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": label });
  const path = (d, name, more = {}) => h("path", { class: name, d, ...more });
  const text = (x, y, words, anchor = "start") => svg.append(h("text", { x, y, "text-anchor": anchor }, words));
  if (!points.length) return text(20, 40, "Unknown: set the prices or speeds that this needs."), svg;
  // Decades from the lowest value, or just above it, to at least 100 %.
  const span = (values) => [Math.floor(Math.log10(Math.min(...values)) + 0.02), Math.max(0, Math.ceil(Math.log10(Math.max(...values))))];
  const [x0, x1] = span(points.map((p) => p.teacher_share));
  const [y0, y1] = span(points.map((p) => p.relative[measure]));
  const x = (v) => BOX.left + ((Math.log10(v) - x0) / (x1 - x0 || 1)) * (BOX.right - BOX.left);
  const y = (v) => BOX.bottom - ((Math.log10(v) - y0) / (y1 - y0 || 1)) * (BOX.bottom - BOX.top);
  const at = (p) => `${x(p.teacher_share).toFixed(1)} ${y(p.relative[measure]).toFixed(1)}`;
  for (let e = x0; e <= x1; e++) {
    svg.append(path(`M${x(10 ** e)} ${BOX.bottom}V${BOX.top}`, "rl-grid"));
    text(x(10 ** e), BOX.height - 28, percent(10 ** e), "middle");
  }
  for (let e = y0; e <= y1; e++) {
    svg.append(path(`M${BOX.left} ${y(10 ** e)}H${BOX.right}`, "rl-grid"));
    text(BOX.left - 6, y(10 ** e) + 4, percent(10 ** e), "end");
  }
  text(4, 18, title);
  text((BOX.left + BOX.right) / 2, BOX.height - 6, "teacher's share of the tokens", "middle");
  const even = Math.max(x0, y0); // where the diagonal enters the box
  if (even < Math.min(x1, y1)) svg.append(path(`M${x(10 ** even)} ${y(10 ** even)}L${x(1)} ${y(1)}`, "rl-even"));
  for (const line of before) if (known(line).length) svg.append(path("M" + known(line).map(at).join("L"), "rl-was"));
  const ends = [];
  lines.map(known).forEach((line, i) => {
    if (!line.length) return;
    const marks = line.map((p) => path(MARKS[i], "rl-mark", { transform: `translate(${at(p)})` }));
    svg.append(h("g", { class: `rl-l${i}` }, path("M" + line.map(at).join("L"), "rl-line"), ...marks));
    ends.push({ i, y: y(line.at(-1).relative[measure]), words: count(line[0].call_tokens, "token") + " per call" });
  });
  ends.sort((a, b) => a.y - b.y).forEach((end, k) => {
    if (k) end.y = Math.max(end.y, ends[k - 1].y + 17); // names stand at the ends of their lines, but never on each other
    svg.append(h("g", { class: `rl-l${end.i}` }, path(MARKS[end.i], "rl-mark", { transform: `translate(${BOX.right + 16} ${end.y})` })));
    text(BOX.right + 28, end.y + 4, end.words);
  });
  if (known([chosen]).length) svg.append(path(CIRCLE, "rl-chosen", { transform: `translate(${at(chosen)})` }));
  return svg;
}

export function render({ model, el }) {
  const base = model.get("prices");
  const [measures, longest] = [model.get("measures"), model.get("longest")];
  const prices = structuredClone(base);
  const shape = { ...model.get("shape") };
  let measure = model.get("measure");
  const figure = h("div");
  const summary = h("p", { "aria-live": "polite" });
  const body = h("tbody");
  const linesOf = () => model.get("lines").map((n) => ladder(shape.tokens, n).map((calls) => compare(prices, shape, calls, n)));
  const before = linesOf(); // as the dial began: what has moved can be seen

  // A slider over [low, high], logarithmic if `log`; `write` takes its value, `show` says what stands beside it.
  function slider(words, { low, high, value, log = false, step = 0.01, show, write }) {
    const [to, from] = log ? [Math.log10, (v) => Number((10 ** v).toPrecision(3))] : [(v) => v, (v) => v];
    const output = h("output", {}, show(value));
    const input = h("input", { type: "range", min: to(low), max: to(high), step, value: to(value ?? low), "aria-valuetext": show(value) });
    input.addEventListener("input", () => {
      const v = from(Number(input.value));
      write(v);
      output.textContent = show(v);
      input.setAttribute("aria-valuetext", show(v));
      update();
    });
    return labelled(words, input, output);
  }
  function price(who, name, words) {
    const value = prices[who][name];
    const show = (v) => (v === null ? "not set" : String(Number(v.toFixed(2))));
    return slider(words, { low: 0, high: Math.max(10, 2 * (value ?? 0)), step: 0.05, value, show, write: (v) => (prices[who][name] = v) });
  }
  function parameters(who) {
    const value = base[who].parameters;
    const write = (v) => {
      const { input_price, cached_price, output_price, batch } = prices[who]; // set by other sliders: a new size keeps them
      Object.assign(prices[who], resized(base[who], v), { input_price, cached_price, output_price, batch });
    };
    return slider("parameters", { low: value / 100, high: value * 100, log: true, value, show: size, write });
  }
  const fields = {}; // of the response's shape
  function whole(words, name, low, high) {
    const onchange = () => {
      shape[name] = clamp(Math.round(Number(fields[name].value)) || low, low, high);
      shape.call_tokens = Math.min(shape.call_tokens, shape.tokens);
      shape.calls = Math.min(shape.calls, Math.floor(shape.tokens / shape.call_tokens));
      for (const [key, field] of Object.entries(fields)) field.value = shape[key];
      update();
    };
    fields[name] = h("input", { type: "number", min: low, max: high, value: shape[name], onchange });
    return labelled(words, fields[name]);
  }

  function update() {
    const chosen = compare(prices, shape, shape.calls, shape.call_tokens);
    const words = measures[measure];
    summary.textContent = `${count(shape.calls, "call")} of ${count(shape.call_tokens, "token")}, the circle: ` +
      `${percent(chosen.teacher_share)} of the tokens; ${words}: ${percent(chosen.relative[measure])} of the teacher alone.`;
    const label = `${words} against the teacher's share. ${summary.textContent}`;
    figure.replaceChildren(chart(linesOf(), before, chosen, measure, `${words}, of the teacher alone`, label));
    body.replaceChildren(...Object.entries(measures).map(([name, title]) => {
      const cells = [three(chosen.relay[name]), three(chosen.alone[name]), percent(chosen.relative[name])];
      return h("tr", {}, h("th", { scope: "row" }, title), ...cells.map((cell) => h("td", {}, cell)));
    }));
  }

  const cache = h("input", { type: "checkbox", checked: prices.cache, onchange: () => ((prices.cache = cache.checked), update()) });
  const batch = { low: 1, high: Math.max(256, base.teacher.batch), step: 1, value: base.teacher.batch, show: String, write: (v) => (prices.teacher.batch = v) };
  const delay = { low: 0, high: Math.max(1, 2 * base.network_delay), step: 0.005, value: base.network_delay, show: (v) => v.toFixed(3) };
  el.append(
    h("div", { class: "rl-dials" },
      box("Teacher", parameters("teacher"), price("teacher", "input_price", "price, input"), price("teacher", "cached_price", "price, cached"),
        price("teacher", "output_price", "price, output"), slider("rows in a batch", batch)),
      box("Student", parameters("student"), price("student", "input_price", "price, input"), price("student", "output_price", "price, output")),
      box("Between them", slider("delay, s", { ...delay, write: (v) => (prices.network_delay = v) }),
        h("label", { class: "rl-check" }, cache, "the teacher keeps its cache between calls"))),
    bar(labelled("cost in", select(Object.entries(measures), measure, (value) => ((measure = value), update()))), whole("calls", "calls", 1, longest),
      whole("of tokens", "call_tokens", 1, longest), whole("answer", "tokens", 1, longest), whole("prompt", "prompt", 0, 10 * longest),
      whole("command", "command_tokens", 0, 100)),
    summary, figure,
    muted("Marked lines: calls of 1, 10 or 100 tokens, ever more of them. Fine dots: the lines at the start. Long dashes: 1 % of the tokens would be 1 % of the cost. Prices are per million tokens."),
    table("The chosen calls in numbers", ["", "relay", "teacher alone", "of the teacher"], body),
  );
  update();
}
