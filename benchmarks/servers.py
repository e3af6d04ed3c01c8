"""Real servers under a relay: are answers those of this process, how fast are they, what does a hand-off cost?

    python benchmarks/servers.py --write runs/served         # the pair as folders that a server can load
    vllm serve runs/served/student --served-model-name student --dtype float32 --port 8001 --enforce-eager
    vllm serve runs/served/teacher --served-model-name teacher --dtype float32 --port 8002 --enforce-eager
    python benchmarks/servers.py --student-url http://127.0.0.1:8001/v1 --teacher-url http://127.0.0.1:8002/v1

For llama.cpp, write with ``--gguf`` and serve DIR/student/model.gguf. Caches of keys and values must be float32, too.
With ``--resume FOLDER`` it decodes into that folder, no more. Kill a server meanwhile, start it again, and run the same
command again: every row has to be as in this process.

Equality is that of ids, sources and calls, greedy. At a first difference it prints the two tokens and how likely this
process finds them. Speeds are ratios of runs in turn, so that other work on the machine slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from relaylab.engine.engine import Engine
from relaylab.engine.load import RELAY_CONFIG, load_model, resolve
from relaylab.relay.api_client import APIClient
from relaylab.relay.call_rules import CallEvery
from relaylab.relay.pair import Pair, load_pair, load_student
from relaylab.relay.server_probe import read_completion
from relaylab.relay.students import Student
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.suites import ALL_SUITES, Problem, problem
from relaylab.trace import Trace

LEAST = 32  # the smallest attention heads that vLLM's kernels for a CPU take
PIECE = 8  # tokens of a request, where an answer is written in pieces
Clock = Callable[[], float]


def write(names: dict[str, str], out: Path) -> None:
    """Each model as a whole folder: adapters merged, float32, heads that vLLM would not take padded."""
    for role, name in names.items():
        model, tokenizer = load_model(name, device="cpu", dtype=torch.float32)
        config = model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head < LEAST:
            model = padded(model)
        model.save_pretrained(out / role)
        tokenizer.save_pretrained(out / role)
        if (caps := Path(resolve(name)) / RELAY_CONFIG).exists():
            shutil.copy(caps, out / role)
        print(f"{out / role}: {name}, heads of {head}{' padded' if head < LEAST else ''}")


def write_gguf(folder: Path) -> None:
    """The model of a folder as GGUF in float32, for llama.cpp: Qwen2 or Qwen3 with a byte-level tokenizer of theirs.

    llama.cpp's own converter knows tokenizers by their digest, and refuses those of the embedded models.
    """
    import gguf  # pip install gguf

    model, tokenizer = load_model(folder, device="cpu", dtype=torch.float32)
    config, file = model.config, folder / "model.gguf"
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out = gguf.GGUFWriter(file, config.model_type)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
    tokens = [f"[unused {i}]" for i in range(config.vocab_size)]
    for token, i in vocabulary.items():
        tokens[i] = token
    kinds = gguf.TokenType
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokens)
    out.add_token_types([
        kinds.CONTROL if i in added else kinds.NORMAL if token in vocabulary else kinds.UNUSED
        for i, token in enumerate(tokens)
    ])  # fmt: skip
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_add_bos_token(False)
    if tokenizer.chat_template:
        out.add_chat_template(tokenizer.chat_template)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            out.add_tensor(names.get_name(key, (".weight", ".bias")), value.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    print(file)


def padded(model: Any) -> Any:
    """A Qwen3 with heads four times as large that computes the same.

    New dimensions are zero. Two things depend on how many there are: the mean of the norm and the scale of attention.
    Projections that are twice as large keep the first, keys half as large the second. Nothing is rounded by this.
    """
    config, grow, factor = model.config, 4, 2
    small, head = config.head_dim, config.head_dim * grow
    if config.model_type != "qwen3":
        raise SystemExit(f"heads of {small} are too small for vLLM, and those of a {config.model_type} are not padded")
    wide = type(model)(type(config)(**config.to_dict() | {"head_dim": head})).float().eval()
    # Dimension i turns with i + small / 2 at the speed theta ** (-2 i / small), which is that of i * grow among more.
    half = torch.arange(small // 2) * grow
    turning, plain = torch.cat([half, half + head // 2]), torch.arange(small)
    state, result = model.state_dict(), wide.state_dict()
    for key, value in state.items():
        part = key.split(".")[-2]
        if part in ("q_proj", "k_proj", "v_proj"):
            rows = result[key].zero_().view(-1, head, value.shape[-1])
            scale = 1 if part == "v_proj" else factor
            rows[:, plain if part == "v_proj" else turning] = value.view(-1, small, value.shape[-1]) * scale
        elif part == "o_proj":
            result[key].zero_().view(len(value), -1, head)[..., plain] = value.view(len(value), -1, small)
        elif part in ("q_norm", "k_norm"):
            result[key].zero_()[turning] = value / (factor if part == "k_norm" else 1)
        else:
            result[key].copy_(value)
    wide.load_state_dict(result)
    wide.generation_config = model.generation_config
    return wide


# Equal answers ------------------------------------------------------------------------------------------------------


def content(trace: Trace) -> dict[str, Any]:
    """What must be equal: ids, sources, calls without their latency and the teacher's name, and how it ended."""
    calls = [asdict(c) | {"latency": None, "teacher": None} for c in trace.calls]
    return {"ids": trace.completion_ids, "source": trace.source, "calls": calls, "stop": trace.stop}


@torch.no_grad()
def difference(models: dict[str, Engine], local: Trace, remote: Trace) -> str:
    """Where two answers part, and how likely the local model of that turn finds either token."""
    ours, theirs = local.completion_ids, remote.completion_ids
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    if at in (len(ours), len(theirs)):
        return f"position {at}: one ends there ({local.stop}, {remote.stop}), or a call differs"
    writer = "teacher" if local.source[at] == "t" else "student"
    # The teacher does not see the commands.
    seen = [i for i, source in zip(ours[:at], local.source) if writer == "student" or source != "c"]
    logits = models[writer].model(input_ids=torch.tensor([local.prompt_ids + seen])).logits[0, -1].float()
    p = torch.softmax(logits, -1)
    return (
        f"position {at}, the {writer}'s: {ours[at]} with p={p[ours[at]]:.4f}, {theirs[at]} with p={p[theirs[at]]:.4f}"
    )


def compare(local: Pair, pairs: dict[str, Pair], questions: list[Problem]) -> dict[str, dict[str, int]]:
    """How many answers of each pair are those of the local one, at 64 rows and one by one, and with calls forbidden."""
    models, counts = {"student": local.student, "teacher": local.teacher.engine}, {}
    for way, rows, options in (
        ("64 rows", 64, {}), ("calls forbidden", 64, {"forbid_calls": True}), ("one row at a time", 1, {}),
    ):  # fmt: skip
        expected = local.decode(questions, progress=False, **options)
        called = sum(bool(t.answered) for t in expected)
        print(f"in process, {way}: {len(expected)} answers, {called} with answered calls", flush=True)
        for name, pair in pairs.items():
            made = pair.decode(questions, progress=False, batch_size=rows, **options)
            wrong = [(a, b) for a, b in zip(expected, made) if content(a) != content(b)]
            counts[f"{name}, {way}"] = found = {
                "answers": len(made), "equal": len(made) - len(wrong),
                "tokens": sum(len(t.completion_ids) for t in made), "calls": sum(len(t.answered) for t in made),
            }  # fmt: skip
            print(f"{name}, {way}: {found}", dict(Counter(t.stop for t in made)), flush=True)
            for a, b in wrong:
                print(f"  {a.id}: {difference(models, a, b)}", flush=True)
    return counts


# Speed --------------------------------------------------------------------------------------------------------------


def processor(pids: list[int]) -> float:
    """The processor's time of this process and of others, in seconds. Linux alone numbers the clocks so."""
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def speed(pair: Pair, questions: list[Problem], rows: int, clock: Clock) -> float:
    """Tokens a second of a relay."""
    started = clock()
    traces = pair.decode(questions, progress=False, batch_size=rows)
    return sum(len(t.completion_ids) for t in traces) / (clock() - started)


def speeds(
    cases: dict[str, tuple[Pair, Pair]], questions: list[Problem], batches: list[int], rounds: int, clock: Clock
) -> list:
    """Each case on servers and in this process, in turn. Each round has questions that no cache has seen."""
    table, fresh = [], iter(questions)
    for name, (local, remote) in cases.items():
        for rows in batches:
            parts = [list(islice(fresh, max(4, rows))) for _ in range(rounds + 1)]
            pairs = [tuple(speed(pair, part, rows, clock) for pair in (remote, local)) for part in parts][1:]
            ratios = sorted(a / b for a, b in pairs)
            on_servers, in_process = (median(values) for values in zip(*pairs))
            table.append({
                "what": name, "rows": rows, "server": on_servers, "process": in_process,
                "ratio": median(ratios), "lowest": ratios[0], "highest": ratios[-1],
            })  # fmt: skip
            print("{what}, {rows} rows: {server:.0f} tokens/s on servers, {process:.0f} in process, "
                  "ratio {ratio:.2f} ({lowest:.2f}, {highest:.2f})".format(**table[-1]), flush=True)  # fmt: skip
    return table


def handoff(student: Any, prompt: list[int], rounds: int, tokens: int = 64) -> dict[str, float]:
    """What it costs to go on in another request: so many tokens in one request, and in pieces. A call needs two."""
    server = student.probe()
    client = APIClient(server.url)

    def written(piece: int) -> float:
        ids, started = list(prompt), time.perf_counter()
        while len(ids) < len(prompt) + tokens:
            body = {"model": server.model, "prompt": ids, "max_tokens": piece, "temperature": 0.0, "ignore_eos": True}
            ids += client.ask(server.path, body | server.wants_ids, read=read_completion).ids or []
        return time.perf_counter() - started

    written(tokens), written(PIECE)
    pairs = [(written(tokens), written(PIECE)) for _ in range(rounds)]
    client.close()
    costs = [(pieces - whole) / (tokens / PIECE - 1) for whole, pieces in pairs]
    in_tokens = sorted(cost / (whole / tokens) for cost, (whole, _) in zip(costs, pairs))
    return {"ms": 1000 * median(costs), "token_ms": 1000 * median(w for w, _ in pairs) / tokens,
            "tokens": median(in_tokens), "lowest": in_tokens[0], "highest": in_tokens[-1]}  # fmt: skip


def resume(local: Pair, both: Pair, questions: list[Problem], folder: Path) -> None:
    """Decode on the servers what the folder lacks, and compare with this process."""
    expected = {trace.id: content(trace) for trace in local.decode(questions, progress=False)}
    folder.mkdir(parents=True, exist_ok=True)
    made = both.decode(questions, out=folder / "traces.jsonl", batch_size=16, on_failure="exclude")
    equal, lost = sum(content(t) == expected[t.id] for t in made), sum(t.stop == "excluded" for t in made)
    print(f"{len(made)} rows of {len(questions)}: {equal} as in this process, {lost} excluded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="relay")
    parser.add_argument("--teacher", default="teacher")
    parser.add_argument("--write", type=Path, help="write both as folders there, and no more")
    parser.add_argument("--gguf", action="store_true", help="with --write: also as GGUF, for llama.cpp")
    parser.add_argument("--student-url", help="of a running server, as URL or URL#model")
    parser.add_argument("--teacher-url")
    parser.add_argument("--count", type=int, default=72, help="questions whose answers are compared")
    parser.add_argument("--resume", type=Path, help="a folder to decode into, and no more")
    parser.add_argument("--every", type=int, help="call for 4 tokens after so many: for a student that never calls")
    parser.add_argument("--max-tokens", type=int, help="of an answer")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--cases", nargs="*", default=["relay", "student alone", "teacher alone"])
    parser.add_argument("--pid", type=int, nargs="*", help="of the servers here: speed by processor time, with theirs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args()
    names = {"student": args.student, "teacher": args.teacher}
    if args.write:
        write(names, args.write)
        for role in names if args.gguf else ():
            write_gguf(args.write / role)
        return
    if not (args.student_url and args.teacher_url):
        parser.error("give --student-url and --teacher-url, or --write")
    load = f"{os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else "unknown"  # Windows has none
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {load}"
    print(machine)
    count = args.count + len(args.cases) * (args.rounds + 1) * sum(max(4, rows) for rows in args.rows)
    questions = [problem(ALL_SUITES[i % len(ALL_SUITES)], i // len(ALL_SUITES)) for i in range(count)]
    options = {
        "student_options": {"tokenizer": args.student},
        "teacher_options": {"tokenizer": args.teacher, "concurrency": 256},
    }
    local, both = load_pair(args.student, args.teacher), load_pair(args.student_url, args.teacher_url, **options)
    settings = {"call_rule": CallEvery(args.every, 4)} if args.every else {}
    settings |= {"max_tokens": args.max_tokens} if args.max_tokens else {}
    local.defaults, both.defaults = local.defaults | settings, both.defaults | settings
    if args.resume:
        return resume(local, both, questions[: args.count], args.resume)
    pairs = {
        "both on servers": both,
        "student on a server": Pair(both.student, local.teacher, local.defaults),
        "teacher on a server": Pair(local.student, both.teacher, local.defaults),
    }
    report: dict[str, Any] = {"machine": machine}
    report["equal"] = compare(local, pairs, questions[: args.count]) if args.count else {}
    alone: Callable[[Student], Pair] = lambda model: Pair(model, NoTeacher(), local.defaults)  # noqa: E731
    served = load_student(args.teacher_url, tokenizer=args.teacher)
    cases = {
        "relay": (local, both),
        "student alone": (alone(local.student), alone(both.student)),
        "teacher alone": (alone(local.teacher.engine), alone(served)),
    }
    cases = {name: pairs for name, pairs in cases.items() if name in args.cases}
    clock = partial(processor, args.pid) if args.pid else time.perf_counter
    report["speed"] = speeds(cases, questions[args.count :], args.rows, args.rounds, clock) if args.rounds else []
    for name, model in (("student", both.student), ("teacher", served)) if args.rounds else ():
        report[f"request of the {name}"] = cost = handoff(model, model.prompt_ids(questions[0].messages()), args.rounds)
        print(f"another request of the {name}: " + "{ms:.1f} ms, as long as {tokens:.1f} tokens of {token_ms:.1f} ms "
              "({lowest:.1f}, {highest:.1f})".format(**cost))  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
