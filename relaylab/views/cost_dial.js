// The cost dial. compare() and what it calls are a port of relaylab/evaluation/cost.py for regular responses; the rest
// draws. data = {terms, shape, lines, measure, measures, longest} as cost_dial.py makes it; null is not set.

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
function compare(terms, shape, calls, n) {
  const u = usage(shape, calls, n);
  const relay = costs(u, terms);
  const alone = costs(teacherAlone(shape), terms);
  const relative = Object.fromEntries(Object.keys(relay).map((name) => [name, relay[name] / alone[name]]));
  return { calls, call_tokens: n, teacher_share: u.teacher_share, relay, alone, relative };
}

// f times as large is f times as slow, reading and writing, as on the roofline.
function resized(m, parameters) {
  const slower = (rate) => (rate === null ? null : (rate * m.parameters) / parameters);
  return { ...m, parameters, prefill_rate: slower(m.prefill_rate), decode_rate: slower(m.decode_rate) };
}

// 1, 2, 5, 10 ... calls, as many as fit.
function ladder(tokens, n) {
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

const BOX = { left: 80, right: 168, top: 38, bottom: 52, width: 760, height: 424 };
const MARKS = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "M-4.5 -4.5h9v9h-9z", "M0 -6l6 10h-12z"]; // circle, square, triangle

// The chart: cost and share, both relative to the teacher alone, on logarithmic axes of whole decades.
function chart(lines, before, chosen, measure, title, label) {
  const points = [...lines, ...before].flat().concat(chosen).filter((p) => p.relative[measure] > 0);
  // Decades from the lowest value, or just above it, to at least 100 %.
  const span = (values) => [Math.floor(Math.log10(Math.min(...values)) + 0.02), Math.max(0, Math.ceil(Math.log10(Math.max(...values))))];
  const svg = h("svg", { class: "rl-chart", viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": label });
  if (!points.length) {
    svg.append(h("text", { x: 20, y: 40 }, "Unknown: set the prices or speeds that this needs."));
    return svg;
  }
  const [x0, x1] = span(points.map((p) => p.teacher_share));
  const [y0, y1] = span(points.map((p) => p.relative[measure]));
  const x = (v) => BOX.left + ((Math.log10(v) - x0) / (x1 - x0 || 1)) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.height - BOX.bottom - ((Math.log10(v) - y0) / (y1 - y0 || 1)) * (BOX.height - BOX.top - BOX.bottom);
  const at = (p) => `${x(p.teacher_share).toFixed(1)} ${y(p.relative[measure]).toFixed(1)}`;
  const path = (line) => "M" + line.filter((p) => p.relative[measure] > 0).map(at).join("L");
  for (let e = x0; e <= x1; e++)
    svg.append(h("path", { class: "rl-grid", d: `M${x(10 ** e)} ${y(10 ** y0)}V${y(10 ** y1)}` }),
      h("text", { x: x(10 ** e), y: BOX.height - 28, "text-anchor": "middle" }, percent(10 ** e)));
  for (let e = y0; e <= y1; e++)
    svg.append(h("path", { class: "rl-grid", d: `M${x(10 ** x0)} ${y(10 ** e)}H${x(10 ** x1)}` }),
      h("text", { x: BOX.left - 6, y: y(10 ** e) + 4, "text-anchor": "end" }, percent(10 ** e)));
  svg.append(h("text", { x: 4, y: 18 }, title));
  const even = Math.max(x0, y0); // where the diagonal comes into the box
  if (even < Math.min(x1, y1)) svg.append(h("path", { class: "rl-even", d: `M${x(10 ** even)} ${y(10 ** even)}L${x(1)} ${y(1)}` }));
  svg.append(h("text", { x: (BOX.left + BOX.width - BOX.right) / 2, y: BOX.height - 6, "text-anchor": "middle" }, "teacher's share of the tokens"));
  for (const line of before) if (line.length) svg.append(h("path", { class: "rl-was", d: path(line) }));
  const ends = [];
  lines.forEach((line, i) => {
    const drawn = line.filter((p) => p.relative[measure] > 0);
    if (!drawn.length) return;
    const group = h("g", { class: `rl-l${i}` }, h("path", { class: "rl-line", d: path(line) }));
    for (const p of drawn) group.append(h("path", { class: "rl-mark", d: MARKS[i], transform: `translate(${at(p)})` }));
    svg.append(group);
    ends.push({ i, y: y(drawn.at(-1).relative[measure]), words: count(line[0].call_tokens, "token") + " a call" });
  });
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, k) => { // names stand at the ends of their lines, one below the other where these are close
    if (k) end.y = Math.max(end.y, ends[k - 1].y + 17);
    svg.append(h("g", { class: `rl-l${end.i}` }, h("path", { class: "rl-mark", d: MARKS[end.i], transform: `translate(${BOX.width - BOX.right + 16} ${end.y})` })),
      h("text", { x: BOX.width - BOX.right + 28, y: end.y + 4 }, end.words));
  });
  if (chosen.relative[measure] > 0) svg.append(h("path", { class: "rl-chosen", d: "M-11 0a11 11 0 1 0 22 0a11 11 0 1 0 -22 0z", transform: `translate(${at(chosen)})` }));
  return svg;
}

function render(stage, data) {
  const base = data.terms;
  const terms = structuredClone(base);
  const shape = { ...data.shape };
  let measure = data.measure;
  const figure = h("div");
  const said = h("p", { "aria-live": "polite" });
  const body = h("tbody");
  const linesOf = (t, s) => data.lines.map((n) => ladder(s.tokens, n).map((calls) => compare(t, s, calls, n)));
  const before = linesOf(base, shape); // as the dial began: what has moved can be seen

  // A slider over [low, high], logarithmic where `log` is set; `write` takes its value and returns what stands beside it.
  function slider(words, { low, high, value, log = false, step, show, write }) {
    const [to, from] = log ? [Math.log10, (v) => Number((10 ** v).toPrecision(3))] : [(v) => v, (v) => v];
    const output = h("output", {}, show(value));
    const input = h("input", { type: "range", min: to(low), max: to(high), step: log ? 0.01 : step, value: to(value ?? low) });
    const name = () => input.setAttribute("aria-valuetext", output.textContent);
    input.addEventListener("input", () => {
      const v = from(Number(input.value));
      write(v);
      output.textContent = show(v);
      name();
      update();
    });
    name();
    return labelled(words, input, output);
  }
  // What other sliders have set of a model and a new size does not change.
  const priced = (m) => ({ input_price: m.input_price, cached_price: m.cached_price, output_price: m.output_price, batch: m.batch });
  const price = (who, name, words) => {
    const value = terms[who][name];
    const show = (v) => (v === null ? "not set" : String(Number(v.toFixed(2))));
    return slider(words, { low: 0, high: Math.max(10, 2 * (value ?? 0)), step: 0.05, value, show, write: (v) => (terms[who][name] = v) });
  };
  const parameters = (who) => slider("parameters", {
    low: base[who].parameters / 100, high: base[who].parameters * 100, log: true, value: base[who].parameters, show: size,
    write: (v) => Object.assign(terms[who], resized({ ...base[who], ...priced(terms[who]) }, v)),
  });
  const numbers = {}; // the fields of the response's shape
  const whole = (words, name, low, high) => {
    const input = h("input", { type: "number", min: low, max: high, value: shape[name] });
    input.addEventListener("change", () => {
      shape[name] = clamp(Math.round(Number(input.value)) || low, low, high);
      shape.call_tokens = Math.min(shape.call_tokens, shape.tokens);
      shape.calls = Math.min(shape.calls, Math.floor(shape.tokens / shape.call_tokens));
      for (const [key, field] of Object.entries(numbers)) field.value = shape[key];
      update();
    });
    numbers[name] = input;
    return labelled(words, input);
  };

  function update() {
    const chosen = compare(terms, shape, shape.calls, shape.call_tokens);
    const words = data.measures[measure];
    said.textContent = `${count(shape.calls, "call")} of ${count(shape.call_tokens, "token")}, the circle: ` +
      `${percent(chosen.teacher_share)} of the tokens; ${words}: ${percent(chosen.relative[measure])} of the teacher alone.`;
    figure.replaceChildren(chart(linesOf(terms, shape), before, chosen, measure, `${words}, of the teacher alone`,
      `${words} against the teacher's share. ${said.textContent}`));
    body.replaceChildren(...Object.entries(data.measures).map(([name, title]) =>
      h("tr", {}, h("th", { scope: "row" }, title), ...[chosen.relay[name], chosen.alone[name]].map((v) => h("td", {}, three(v))),
        h("td", {}, percent(chosen.relative[name])))));
  }

  const pick = h("select", { onchange: () => ((measure = pick.value), update()) });
  for (const [name, words] of Object.entries(data.measures)) pick.append(h("option", { value: name, selected: name === measure }, words));
  const cache = h("input", { type: "checkbox", checked: terms.cache, onchange: () => ((terms.cache = cache.checked), update()) });
  const box = (title, ...fields) => h("fieldset", {}, h("legend", {}, title), ...fields);
  stage.append(
    h("div", { class: "rl-dials" },
      box("Teacher", parameters("teacher"), price("teacher", "input_price", "price, input"), price("teacher", "cached_price", "price, cached"), price("teacher", "output_price", "price, output"),
        slider("rows in a batch", { low: 1, high: Math.max(256, base.teacher.batch), step: 1, value: base.teacher.batch, show: String, write: (v) => (terms.teacher.batch = v) })),
      box("Student", parameters("student"), price("student", "input_price", "price, input"), price("student", "output_price", "price, output")),
      box("Between them", slider("delay, s", { low: 0, high: Math.max(1, 2 * base.network_delay), step: 0.005, value: base.network_delay, show: (v) => v.toFixed(3), write: (v) => (terms.network_delay = v) }),
        h("label", { class: "rl-check" }, cache, "the teacher keeps its cache between calls"))),
    h("div", { class: "rl-bar" }, labelled("cost in", pick), whole("calls", "calls", 1, data.longest), whole("of tokens", "call_tokens", 1, data.longest),
      whole("answer", "tokens", 1, data.longest), whole("prompt", "prompt", 0, 10 * data.longest), whole("command", "command_tokens", 0, 100)),
    said, figure,
    h("p", { class: "rl-muted" }, "Solid and marked: calls of so many tokens, ever more of them. Fine dots: as it began. Long dashes: where 1 % of the tokens would be 1 % of the cost. Prices are for a million tokens."),
    h("div", { class: "rl-scroll", tabindex: "0", role: "group", "aria-label": "The chosen calls in numbers" },
      h("table", {}, h("thead", {}, h("tr", {}, ...["", "relay", "teacher alone", "of the teacher"].map((w) => h("th", { scope: "col" }, w)))), body)),
  );
  update();
}
