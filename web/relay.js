// The relay of relaylab/relay, for one question. Where the student writes <call>n</call>, the teacher writes n tokens.
// Student and teacher share a tokenizer. Bytes are strings of characters 0 to 255: the grammar of a call is ASCII.

import { octets } from "./runtime.js";

const LIMIT = 1e12;
const FORBIDDEN_SPAN = 8; // tokens from a fork that forbids a call, in which none may begin
const CALL = /<call>(?:((?:(?!<call>)[^]){0,32}?)<\/call>)?/g;

// All calls in a text: {start, end, n, problem}. n is null where there is a problem.
export function findCalls(text) {
  return [...text.matchAll(CALL)].map((m) => ({ start: m.index, end: m.index + m[0].length, ...readBody(m[1]) }));
}

function readBody(body) {
  if (body === undefined) return { n: null, problem: "unclosed" };
  if (/^[ \t\r\n]*$/.test(body)) return { n: null, problem: "empty" };
  const number = /^[ \t\r\n]*([0-9]+)[ \t\r\n]*$/.exec(body);
  if (!number) return { n: null, problem: "malformed" };
  const n = Number(number[1]);
  if (n === 0) return { n: null, problem: "zero" };
  return n < LIMIT ? { n, problem: null } : { n: null, problem: "too_large" };
}

// What the student writes between two hand-offs (engine/token_text.py).
class StudentTurn {
  constructor(text) {
    Object.assign(this, { text, ids: [], ends: [], bytes: "", calls: [] });
  }

  // Adds a token; returns the calls that it closes.
  append(token) {
    this.ids.push(token);
    this.bytes += this.text.bytes[token];
    this.ends.push(this.bytes.length);
    if (!this.text.bytes[token].includes(">")) return [];
    const start = this.calls.at(-1)?.end ?? 0;
    const closed = findCalls(this.bytes.slice(start)).filter((c) => c.problem !== "unclosed");
    for (const call of closed) Object.assign(call, { start: call.start + start, end: call.end + start });
    this.calls.push(...closed);
    return closed;
  }

  unclosed() {
    return findCalls(this.bytes).filter((c) => c.problem === "unclosed");
  }

  // The tokens that overlap these bytes: the first, and the one after the last.
  tokens({ start, end }) {
    return [this.ends.findIndex((stop) => stop > start), this.ends.findIndex((stop) => stop >= end) + 1];
  }

  // Ids without the closed calls. Of a token with other text besides, such as ">=", that text is encoded anew.
  withoutCalls() {
    let begin = 0;
    return this.ids.flatMap((token, k) => {
      const [first, end] = [begin, (begin = this.ends[k])];
      const touching = this.calls.filter((c) => c.start < end && c.end > first);
      if (!touching.length)
        return first === end && this.calls.some((c) => c.start < first && first < c.end) ? [] : [token];
      const rest = Array.from(this.bytes.slice(first, end)).filter(
        (_, b) => !touching.some((c) => c.start <= first + b && first + b < c.end),
      );
      return rest.length ? this.text.encodeBytes(rest.join("")) : [];
    });
  }
}

const REQUESTED = ["answered", "failed", "interrupted"]; // how calls end that the teacher was asked for

// The state of one answer (relay/sequence.py). `source` has a letter a token: s student, t teacher, c command.
export class Sequence {
  constructor(text, endIds, config, seed = 0) {
    Object.assign(this, { text, endIds, config, seed, ids: [], source: [], pieces: [], calls: [], stop: "" });
    this.view = []; // what the teacher sees of the answer
    this.waiting = null; // the call that the teacher has to answer
    this.forcedCall = null; // a fork's call, to be written before the next token
    this.noCallBefore = 0; // no call may begin before this position
    this.banned = null; // [position, token that must not come there]
    this.turn = new StudentTurn(text);
    this.turnStart = 0;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  get room() {
    return this.config.maxTokens - this.ids.length;
  }

  writeStudent(token, forced = false) {
    if (this.endIds.includes(token) && !forced) {
      this.append(token, "s", this.decoder.decode());
      this.finish("end");
      return;
    }
    this.append(token, "s");
    for (const command of this.turn.append(token)) this.closeCall(command, forced);
    if (!this.waiting && this.room <= 0) this.finish("length");
  }

  // Writes the command for n tokens as if the student had; false, and nothing, if it does not fit.
  appendCall(n) {
    const tokens = this.text.encode(`<call>${n}</call>`);
    if (tokens.length >= this.room) return false;
    for (const token of tokens) this.writeStudent(token, true);
    return true;
  }

  closeCall(command, forced) {
    const start = this.turnStart + this.turn.tokens(command)[0];
    this.source.fill("c", start);
    const call = {
      start,
      end: this.ids.length,
      requested: command.n,
      granted: 0,
      delivered: 0,
      status: command.problem ?? "waiting",
      forced,
    };
    if (command.problem) this.calls.push(call);
    else this.request(call);
  }

  // Grants what the caps leave. One token can close two calls: the first is answered, the second refused.
  request(call) {
    const { callEnd, fixedCallTokens } = this.config;
    const counted = callEnd === "tokens" || call.forced; // a fork's call is for what it asks for
    const wanted = counted ? (fixedCallTokens ?? call.requested) : this.room;
    call.granted = this.waiting ? 0 : Math.min(wanted, this.allowance());
    call.status = call.granted ? "waiting" : "refused";
    this.calls.push(call);
    if (call.granted) this.waiting = call;
  }

  allowance() {
    const { maxCalls, maxCallTokens, maxTeacherTokens } = this.config;
    if (maxCalls !== null && this.calls.filter((c) => c.status === "answered").length >= maxCalls) return 0;
    const teacher = this.source.filter((s) => s === "t").length;
    return Math.max(0, Math.min(this.room, maxCallTokens ?? Infinity, (maxTeacherTokens ?? Infinity) - teacher));
  }

  append(token, source, piece = this.decoder.decode(octets(this.text.bytes[token]), { stream: true })) {
    this.ids.push(token);
    this.source.push(source);
    this.pieces.push(piece);
  }

  // The teacher's answer to the waiting call: its tokens, and "length", "line", or "stop" where it ended the answer.
  writeTeacher(ids, finishReason) {
    const call = this.waiting;
    this.waiting = null;
    if (!ids.length && finishReason === "length") {
      call.status = "failed"; // its context is full
    } else {
      this.take(ids);
      Object.assign(call, { status: "answered", delivered: ids.length });
    }
    if (finishReason === "stop") this.finish("teacher_end");
    else if (this.room <= 0) this.finish("length");
  }

  take(ids) {
    for (const token of ids) this.append(token, "t");
    this.view.push(...ids);
    this.turnStart = this.ids.length;
  }

  // The turn's calls that were never closed are noted, its text without calls is shown to the teacher.
  endStudentTurn() {
    for (const command of this.turn.unclosed()) {
      const [start, end] = this.turn.tokens(command).map((k) => this.turnStart + k);
      this.calls.push({ start, end, requested: null, granted: 0, delivered: 0, status: "unclosed", forced: false });
    }
    this.calls.sort((a, b) => a.start - b.start);
    this.view.push(...this.turn.withoutCalls());
    this.turn = new StudentTurn(this.text);
    this.turnStart = this.ids.length;
  }

  finish(why) {
    this.stop = why;
    if (this.waiting) this.waiting.status = "interrupted";
    this.waiting = null;
    this.endStudentTurn();
    if (this.pieces.length) this.pieces.push(this.pieces.pop() + this.decoder.decode());
  }

  // Begins with the first `at` tokens of another answer; a call that ends at `at` is requested anew.
  takeOver(other, at) {
    this.calls = other.calls.filter((c) => c.end <= at && c.status !== "unclosed").map((c) => ({ ...c }));
    const again = this.calls.filter((c) => c.end === at && REQUESTED.includes(c.status));
    for (const call of this.calls.filter((c) => REQUESTED.includes(c.status) && !again.includes(c))) {
      this.give(other.ids.slice(this.ids.length, call.end));
      this.endStudentTurn();
      const own = other.ids.slice(call.end, Math.min(at, call.end + call.delivered));
      call.delivered = own.length;
      this.take(own);
    }
    this.give(other.ids.slice(this.ids.length, at));
    this.calls = this.calls.filter((c) => !again.includes(c));
    for (const call of again) this.request({ ...call, delivered: 0 });
    this.calls.sort((a, b) => a.start - b.start);
    if (!this.waiting && this.room <= 0) this.finish("length");
  }

  // Tokens of the student whose calls are known already.
  give(ids) {
    const begin = this.ids.length;
    for (const token of ids) {
      this.append(token, "s");
      this.turn.append(token);
    }
    for (const { start, end } of this.calls)
      if (begin <= start && end <= this.ids.length) this.source.fill("c", start, end);
  }
}

// A fork of an answer at `at`: with a call for so many tokens there, or with the call forbidden that begins there.
export function fork(other, at, { call = null, forbid = false }) {
  const s = new Sequence(other.text, other.endIds, other.config, other.seed);
  s.takeOver(other, at);
  if (forbid) {
    s.noCallBefore = at + FORBIDDEN_SPAN;
    if (other.source[at] !== "t") s.banned = [at, other.ids[at]];
  } else s.forcedCall = call;
  return s;
}

// Writes an answer to its end. Yields after every token that a model wrote; closed early, the answer is interrupted.
export async function* relay(s, promptIds, student, teacher) {
  const [own, its] = [student.open([...promptIds, ...s.ids]), teacher?.open([...promptIds])];
  let read = 0; // of the teacher's view
  try {
    while (!s.stop) {
      if (!s.waiting && own.ids.length > student.context) s.finish("context");
      else if (!s.waiting) {
        // 1) The student writes a token, or the command that a fork wants.
        const before = s.ids.length;
        const logits = await student.next(own);
        const n = s.forcedCall;
        s.forcedCall = null;
        if (n === null || !s.appendCall(n)) s.writeStudent(draw(s, logits));
        own.ids.push(...s.ids.slice(before));
        yield s;
      } else {
        // 2) The teacher reads what is new, and writes what was granted.
        s.endStudentTurn();
        its.ids.push(...s.view.slice(read));
        const answer = [];
        let finish = its.ids.length > teacher.context ? "length" : "";
        while (!finish) {
          const token = likeliest(await teacher.next(its));
          if (teacher.endIds.includes(token)) finish = "stop";
          else (its.ids.push(token), answer.push(token));
          if (s.config.callEnd === "line" && !s.waiting.forced && s.text.bytes[token].includes("\n")) finish ||= "line";
          if (answer.length === s.waiting.granted || its.ids.length > teacher.context) finish ||= "length";
          yield s;
        }
        s.writeTeacher(answer, finish);
        read = s.view.length;
        own.ids.push(...answer);
        yield s;
      }
    }
  } finally {
    if (!s.stop) s.finish("interrupted");
  }
}

function draw(s, logits) {
  const at = s.ids.length;
  const forbidding = s.config.forbidCalls || at < s.noCallBefore;
  const begins = forbidding && s.text.forbidden(s.turn.bytes.slice(-16));
  const may = (id) =>
    s.text.bytes[id] !== undefined && !(begins && (begins(id) || (s.banned?.[0] === at && s.banned[1] === id)));
  const allowed = logits.map((value, id) => (may(id) ? value : -Infinity));
  const first = likeliest(allowed);
  if (s.config.temperature === 0) return first;
  const weights = Array.from(allowed, (value) => Math.exp((value - allowed[first]) / s.config.temperature));
  let left = uniform(s.seed, at) * weights.reduce((a, b) => a + b);
  const drawn = weights.findIndex((w) => (left -= w) < 0);
  return drawn < 0 ? first : drawn;
}

const likeliest = (logits) => logits.reduce((best, value, id) => (value > logits[best] ? id : best), 0);

// A number in [0, 1), a function of seed and position: a fork uses the same random numbers. They are not Python's.
function uniform(seed, position) {
  let x = Math.imul(seed, 0x9e3779b1) ^ Math.imul(position + 1, 0x85ebca6b);
  for (const factor of [0x85ebca6b, 0xc2b2ae35, 0x27d4eb2f]) x = Math.imul(x ^ (x >>> 15), factor);
  return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
}
