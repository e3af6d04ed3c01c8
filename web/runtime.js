// The libraries behind the relay: onnxruntime-web runs the models, @huggingface/tokenizers encodes text.
import * as ort from "./vendor/ort.js";
import { Tokenizer } from "./vendor/tokenizers.js";

const FORBIDDEN = "<call"; // no text that is sampled while calls are forbidden may contain this

const toBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));
export const octets = (bytes) => Uint8Array.from(bytes, (c) => c.charCodeAt(0));

// Text to ids, and the bytes of each token (engine/token_text.py). `spec` is of page.json.
export class TokenText {
  constructor(spec) {
    this.spec = spec;
    this.whole = new Tokenizer(spec.json, {});
    this.plain = new Tokenizer({ ...spec.json, added_tokens: [] }, {}); // what looks like a special token stays text
    const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const alphabet = new Map(); // GPT-2's stand-ins for bytes
    for (let b = 0, next = 256; b < 256; b++)
      alphabet.set(String.fromCharCode(printable(b) ? b : next++), String.fromCharCode(b));
    this.bytes = [];
    for (const [token, id] of Object.entries(spec.json.model.vocab))
      this.bytes[id] = Array.from(token, (c) => alphabet.get(c)).join("");
    for (const { id, content } of spec.json.added_tokens) this.bytes[id] = toBytes(content);
    this.single = new Map(
      this.bytes
        .map((b, id) => [b, id])
        .filter(([b]) => b?.length === 1)
        .reverse(),
    );
  }

  encode(text) {
    return this.plain.encode(text, { add_special_tokens: false }).ids;
  }

  promptIds(question) {
    const { before, after, special } = this.spec;
    const whole = (text) => this.whole.encode(text, { add_special_tokens: false }).ids;
    if (!special.some((token) => question.includes(token))) return whole(before + question + after);
    return [...whole(before), ...this.encode(question), ...whole(after)];
  }

  // Ids of a piece of a token's bytes, which may not be whole characters.
  encodeBytes(bytes) {
    try {
      return this.encode(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(octets(bytes)));
    } catch {
      return Array.from(bytes).flatMap((b) => this.single.get(b) ?? []);
    }
  }

  // Whether a token would complete the beginning of a call after the bytes of a turn.
  forbidden(turn) {
    let matched = FORBIDDEN.length - 1;
    while (matched > 0 && !turn.endsWith(FORBIDDEN.slice(0, matched))) matched--;
    const rest = FORBIDDEN.slice(matched);
    return (id) => this.bytes[id].includes(FORBIDDEN) || (matched > 0 && this.bytes[id].startsWith(rest));
  }
}

// A model. A slot holds the ids of one text; `next` runs those that were not run yet.
class Model {
  constructor(session, { context, endIds }) {
    Object.assign(this, { session, context, endIds });
    const caches = session.inputMetadata.filter((input) => input.name !== "input_ids");
    this.empty = caches.map(({ name, shape }) => [
      name,
      new ort.Tensor(
        "float32",
        [],
        shape.map((size) => (typeof size === "string" ? 0 : size)),
      ),
    ]);
  }

  open(ids) {
    return { ids, cached: 0, past: Object.fromEntries(this.empty) };
  }

  // The logits of the next token.
  async next(slot) {
    const ids = slot.ids.slice(slot.cached);
    const { logits, ...caches } = await this.session.run({
      input_ids: new ort.Tensor("int64", ids.map(BigInt), [1, ids.length]),
      ...slot.past,
    });
    slot.past = Object.fromEntries(
      Object.entries(caches).map(([name, cache]) => [name.replace("present", "past_key_values"), cache]),
    );
    slot.cached = slot.ids.length;
    return logits.data;
  }
}

const kept = new Map(); // what was loaded, or is being loaded
const once = (key, make) => kept.get(key) ?? kept.set(key, make()).get(key);

// A file beside this one. Packed files are unpacked here, unless the server has said that they are packed.
async function read(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`${file}: the server answers ${response.status}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  return new Uint8Array(
    await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer(),
  );
}

const json = async (file) => JSON.parse(new TextDecoder().decode(await read(file)));
export const settings = () => once("settings", () => json("page.json"));
export const problems = () => once("problems", () => json("problems.json.gz"));

const runtime = () =>
  once("runtime", async () => {
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: await read("vendor/ort.wasm.gz") });
  });

const load = (spec) =>
  once(spec.file, async () => {
    const [bytes] = await Promise.all([read(spec.file), runtime()]);
    return new Model(await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] }), spec);
  });

// The pair of this number in page.json: { text, student, teacher, config }; without a teacher, `teacher` is null.
export async function loadPair(number) {
  const { pairs, tokenizers } = await settings();
  const { student, teacher, config } = pairs[number];
  const [own, its] = await Promise.all([load(student), teacher && load(teacher)]);
  const text = once(student.tokenizer, () => new TokenText(tokenizers[student.tokenizer]));
  return { text, student: own, teacher: its, config };
}
