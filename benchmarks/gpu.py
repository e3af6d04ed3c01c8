"""One GPU, measured: the engine, the relay and the memory of training, with random weights at Qwen3's sizes.

    python benchmarks/gpu.py engine --out runs/gpu      # decoding with CUDA graphs and without, against model.generate
    python benchmarks/gpu.py relay --out runs/gpu       # what hand-offs cost: ideal time / measured time
    python benchmarks/gpu.py memory --out runs/gpu      # the peak of a GRPO step, beside what memory.py computes
    python benchmarks/gpu.py all --out runs/gpu --tiny --device cpu      # does it run?

Models are made on the card, so nothing is downloaded; the tokenizer is the embedded one, and no answer ends early.
Each writes ``<name>.json`` as it goes.

engine: ``--prompt`` tokens are read first and not timed, then ``--tokens`` are written. Ours and ``generate`` are
measured in turn; the time of a token of ``generate`` is that of a long call less that of a call for one. MBU is the
share of the card's memory bandwidth (``--bandwidth``, the datasheet's) that reading the weights and the cache once a
token takes.

relay: all rows call at the same places. Ideal is the time of as many passes of each model alone, of the same sizes.

memory: the steps on one batch of rollouts of the shipped settings.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from relaylab.engine.engine import Engine
from relaylab.engine.kv_cache import CacheSlot
from relaylab.engine.load import embedded_tokenizer
from relaylab.engine.sampling import sample
from relaylab.memory import QWEN3, Shape, shipped, total
from relaylab.relay.call_rules import CallAt
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.tasks.suites import SUITES, problems
from relaylab.training.run_dir import read_metrics

TOKENIZER = embedded_tokenizer()
TINY = Shape(64, 2, 4, 2, 16, 96, 2048, True)


class Bench:
    """Where to measure, and the file of results, which is written after each of them."""

    def __init__(self, args: argparse.Namespace, name: str):
        self.args, self.file = args, args.out / f"{name}.json"
        cuda = args.device == "cuda"
        card = torch.cuda.get_device_name() if cuda else "no card"
        self.results: list[dict[str, Any]] = []
        self.told = {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}

    def note(self, **result: Any) -> None:
        self.results.append({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()})
        self.file.write_text(json.dumps(self.told | {"results": self.results}, indent=1))
        print(json.dumps(self.results[-1]), flush=True)

    def shape(self, size: str) -> Shape:
        return TINY if self.args.tiny else QWEN3[size]

    def engine(self, size: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Engine:
        engine = Engine(random_model(self.shape(size), self.args.device, dtype), TOKENIZER, **options)
        engine.end_ids = frozenset()
        return engine


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {name: getattr(shape, name) for name in Shape.__dataclass_fields__}
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(Qwen3Config(**sizes, max_position_embeddings=40960))
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval()


def seconds(run: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prompts(rows: int, length: int) -> list[list[int]]:
    """Rows that have nothing in common."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(10, len(TOKENIZER), (rows, length), generator=draw).tolist()


def write(engine: Engine, rows: list[CacheSlot], tokens: int) -> None:
    greedy = [0.0] * len(rows)
    for _ in range(tokens):
        chosen = sample(engine.forward(rows)[:, -1], temperatures=greedy, uniforms=greedy)
        for row, token in zip(rows, chosen):
            row.ids += [token]


def step_time(engine: Engine, rows: int, prompt: int, tokens: int) -> float:
    """Seconds a token of all rows, with the prompts read before."""
    opened = [engine.open(ids) for ids in prompts(rows, prompt)]
    write(engine, opened, 3)
    took = seconds(lambda: write(engine, opened, tokens)) / tokens
    for row in opened:
        engine.close(row)
    return took


def generate_time(engine: Engine, rows: int, prompt: int, tokens: int) -> float:
    ids = torch.tensor(prompts(rows, prompt), device=engine.device)

    def call(n: int) -> float:
        asked = dict(attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
        return seconds(lambda: engine.model.generate(ids, **asked))

    return (call(tokens + 1) - call(1)) / tokens


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy on the card."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    return median(2 * 4 * 2**30 / seconds(lambda: target.copy_(source)) for _ in range(9))


def engine(bench: Bench) -> None:
    args = bench.args
    if args.device == "cuda":
        bench.note(what="copy", bytes_a_second=copy_bandwidth())
    for size in args.sizes:
        shape, ours = bench.shape(size), bench.engine(size)
        weights = 2 * (shape.parameters - (0 if shape.tie_word_embeddings else shape.embeddings // 2))
        graphs = ours._graphs
        for rows in args.rows:

            def measured(use: Any, rows: int = rows, ours: Engine = ours) -> float:
                ours._graphs = use
                return step_time(ours, rows, args.prompt, args.tokens)

            variants = {
                "graphs": partial(measured, graphs),
                "eager": partial(measured, None),
                "generate": partial(generate_time, ours, rows, args.prompt, args.tokens),
            }
            try:
                for variant in variants.values():
                    variant()
                found = {name: [] for name in variants}
                for _ in range(args.rounds):
                    for name, variant in variants.items():
                        found[name].append(variant())
            except torch.OutOfMemoryError:
                bench.note(what="engine", size=size, rows=rows, error="out of memory")
                for row in ours.slots:
                    ours.close(row)
                continue
            ms = {name: 1000 * median(times) for name, times in found.items()}
            read = weights + rows * (args.prompt + args.tokens // 2) * shape.cache
            bench.note(
                what="engine", size=size, rows=rows, **{f"{name}_ms": value for name, value in ms.items()},
                tokens_a_second=1000 * rows / ms["graphs"], mbu=read / args.bandwidth / ms["graphs"] * 1000,
                to_eager=ms["eager"] / ms["graphs"], to_generate=ms["generate"] / ms["graphs"],
                spread={name: [round(1000 * min(t), 3), round(1000 * max(t), 3)] for name, t in found.items()},
            )  # fmt: skip
        ours._graphs = graphs
        del ours, graphs, variants
        clean()


def clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


CALLS, SPAN, LENGTH = 8, 16, 512  # calls of a row, tokens of each answer, tokens of a row


def relay(bench: Bench) -> None:
    args = bench.args
    student, teacher = bench.engine("0.6B"), bench.engine("8B")
    command = len(student.text.encode(f"<call>{SPAN}</call>"))
    places = {LENGTH * k // CALLS + LENGTH // CALLS // 2: SPAN for k in range(CALLS)}
    for rows in args.rows:
        asked = [[{"role": "user", "content": TOKENIZER.decode(ids)}] for ids in prompts(rows, 128)]
        one = Relay(student, LocalTeacher(teacher), call_rule=CallAt(places), max_tokens=LENGTH, batch_size=rows)

        def parts(engine: Engine, tokens: int, behind: int, rows: int = rows, asked: list = asked) -> float:
            """Seconds for prompts, hand-offs of ``behind`` tokens and single tokens, of one model alone."""
            opened = [engine.open(engine.prompt_ids(m)) for m in asked]

            def work() -> None:
                write(engine, opened, 1)
                for k in range(CALLS):
                    for row in opened:
                        row.ids += [11] * behind
                    write(engine, opened, tokens * (k + 1) // CALLS - tokens * k // CALLS)

            took = seconds(work)
            for row in opened:
                engine.close(row)
            return took

        traces = one.run(asked)
        calls = len(traces[0].answered)
        assert all(len(t.answered) == calls == CALLS for t in traces), [len(t.answered) for t in traces]
        own = LENGTH - CALLS * (SPAN + command)
        ideal = [partial(parts, student, own, SPAN + command), partial(parts, teacher, CALLS * SPAN, own // CALLS)]
        for part in ideal:
            part()
        times = [(seconds(lambda: one.run(asked)), *(part() for part in ideal)) for _ in range(args.rounds)]  # noqa: B023
        measured, alone, helped = (median(column) for column in zip(*times))
        bench.note(
            what="relay", rows=rows, measured_s=measured, student_s=alone, teacher_s=helped,
            efficiency=median((a + b) / t for t, a, b in times), tokens_a_second=rows * LENGTH / measured,
        )  # fmt: skip


def memory(bench: Bench) -> None:
    """Peak memory of the steps on one batch of rollouts, as many and as long as the shipped settings have."""
    from relaylab.training import grpo, rollouts
    from relaylab.training.config import make_config
    from relaylab.training.policy_model import PolicyModel

    class Endless(PolicyModel):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self.engine.end_ids = frozenset()

    teacher = LocalTeacher(bench.engine("8B"))
    grpo.PolicyModel = Endless
    for size, name in (("0.6B", "qwen3/06b-80gb"), ("1.7B", "qwen3/17b-80gb")):
        clean()
        plan = shipped()[name]
        settings = make_config(name, output_dir="none")
        length = bench.args.max_tokens or settings.max_completion_length
        chosen = [p for s in SUITES for p in problems(s, 3, split="train")]
        places = {length * k // 4: 64 for k in range(1, 4)} | {length - 40: 8}
        rollouts.Relay = partial(Relay, call_rule=CallAt(places))
        with tempfile.TemporaryDirectory() as folder:
            student = Path(folder) / "student-model"
            random_model(bench.shape(size), bench.args.device, torch.bfloat16).save_pretrained(student)
            TOKENIZER.save_pretrained(student)
            clean()
            if bench.args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            out = Path(folder) / "run"
            grpo.train(
                name, teachers=[teacher], problems=chosen, student=str(student), output_dir=str(out),
                max_steps=settings.steps_per_batch, max_completion_length=length, filter_threshold=0.0, keep_rollouts=0,
                disable_tqdm=True, use_cpu=bench.args.device == "cpu",
                tf32=settings.tf32 if bench.args.device == "cuda" else None,
            )  # fmt: skip
            lines = read_metrics(out).to_dict("records")
        peak = reserved = 0
        if bench.args.device == "cuda":
            peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        bench.note(
            what="memory", settings=name, tokens=length, rows=settings.decode_batch_size,
            computed_gb=total(plan.terms) / 1e9, allocated_gb=peak / 1e9, reserved_gb=reserved / 1e9,
            terms={t.what: round(t.size / 1e9, 2) for t in plan.terms},
            step_s=[line["seconds"] for line in lines], lengths=[line["tokens"] for line in lines[:1]],
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["engine", "relay", "memory", "all"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="*", default=["0.6B", "1.7B", "8B"])
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, help="of a rollout, in place of the settings'")
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes per second; an H200's")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see whether it runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    for part in (engine, relay, memory):
        if args.what in (part.__name__, "all"):
            part(Bench(args, part.__name__))
            clean()


if __name__ == "__main__":
    main()
