"""Speed of the relay engine, as ratios of two things measured in one run, interleaved.

    python benchmarks/engine.py                        # the embedded pair
    python benchmarks/engine.py --student DIR --teacher DIR --batch 4 --rounds 2    # any other pair

1. Plain decoding, no calls: the engine against ``model.generate`` with the same batch and the same number of tokens.
2. A relay with 8 calls over 256 tokens: the relay against the algorithm of the paper's released code, which runs the
   whole context of both models again at every turn (here through ``model.generate``, batched, so that it is not
   slowed by anything else). Longer prompts make its work longer, so several lengths are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers.utils import logging

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.engine.sampling import sample
from relaylab.relay.call_rules import CallAt
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.tasks.suites import SUITES, problem


def interleaved(a: Callable[[], object], b: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds of a and b, measured in turn after a warm-up of each, and the median of the ratios b / a."""
    a(), b()
    pairs = []
    for _ in range(rounds):
        times = []
        for run in (a, b):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        pairs.append(times)
    ratios = sorted(y / x for x, y in pairs)
    return {"ours_s": median(x for x, _ in pairs), "theirs_s": median(y for _, y in pairs),
            "ratio": median(ratios), "lowest": ratios[0], "highest": ratios[-1]}  # fmt: skip


def generate(engine: Engine, contexts: list[list[int]], n: int) -> list[list[int]]:
    """n tokens per row by ``model.generate``, greedy, end tokens ignored; contexts left-padded."""
    width = max(map(len, contexts))
    ids = torch.tensor([[0] * (width - len(c)) + c for c in contexts], device=engine.device)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=engine.device)
    out = engine.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=n, do_sample=False, repetition_penalty=1.0
    )
    return out[:, width:].tolist()


def plain(engine: Engine, batch: int, tokens: int, rounds: int) -> dict[str, float]:
    prompts = [
        engine.prompt_ids([{"role": "user", "content": problem(SUITES[i % 9], i).question}]) for i in range(batch)
    ]

    def ours() -> list[list[int]]:
        rows = [engine.open(p) for p in prompts]
        for _ in range(tokens):
            chosen = sample(engine.forward(rows)[:, -1], temperatures=[0.0] * batch, uniforms=[0.0] * batch)
            for row, token in zip(rows, chosen):
                row.ids += [token]
        for row in rows:
            engine.close(row)
        return [row.ids[-tokens:] for row in rows]

    def theirs() -> list[list[int]]:
        return generate(engine, prompts, tokens)

    same = sum(a == b for a, b in zip(ours(), theirs()))
    return {"batch": batch, "tokens": tokens, "same_rows": same, **interleaved(ours, theirs, rounds)}


def with_calls(
    student: Engine, teacher: Engine, batch: int, prompt: int, rounds: int, calls: int = 8, n: int = 4
) -> dict:
    """``calls`` calls for ``n`` tokens in 256, at the same places in both algorithms."""
    command = student.text.encode(format_call(n))
    own = 256 // calls - len(command) - n
    places = {k * 256 // calls + own: n for k in range(calls)}
    texts = [" ".join(problem("savings", 100 * i + k).question for k in range(prompt // 20 + 1)) for i in range(batch)]
    messages = [[{"role": "user", "content": cut(student, text, prompt)}] for text in texts]
    relay = Relay(
        student, LocalTeacher(teacher), call_rule=CallAt(places), config=RelayConfig(max_tokens=256), batch_size=batch
    )

    def ours() -> list[list[int]]:
        return [t.completion_ids for t in relay.run(messages)]

    def theirs() -> list[list[int]]:
        prompts = [student.prompt_ids(m) for m in messages]
        seen = [list(p) for p in prompts]  # what the student sees, and what the teacher does
        view = [list(p) for p in prompts]
        for _ in range(calls):
            for row, new in enumerate(generate(student, seen, own)):
                seen[row] += new + command
                view[row] += new
            for row, new in enumerate(generate(teacher, view, n)):
                seen[row] += new
                view[row] += new
        return [s[len(p) :] for s, p in zip(seen, prompts)]

    same = sum(a == b for a, b in zip(ours(), theirs()))
    return {"batch": batch, "prompt": prompt, "calls": calls, "same_rows": same, **interleaved(ours, theirs, rounds)}


def cut(engine: Engine, text: str, tokens: int) -> str:
    return engine.tokenizer.decode(engine.text.encode(text)[:tokens])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="student")
    parser.add_argument("--teacher", default="teacher")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--relay-batch", type=int, help="rows of the relay; at most 16 where it is not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    engines = [load_engine(name) for name in (args.student, args.teacher)]
    for engine in engines:  # neither algorithm may stop early: both write the same number of tokens
        engine.end_ids = frozenset()
        engine.model.generation_config.eos_token_id = None
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}",
        "device": str(engines[0].device),
        "plain": plain(engines[0], args.batch, args.tokens, args.rounds),
    }
    rows = args.relay_batch or min(args.batch, 16)
    results["relay"] = [with_calls(*engines, rows, p, args.rounds) for p in args.prompts]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
