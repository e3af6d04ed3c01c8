"""How fast a pretrained model writes on a CPU, by the type of its weights and the rows of a batch.

    python benchmarks/cpu_speed.py $STUDENT --rows 1 8 34
    python benchmarks/cpu_speed.py $TEACHER --rows 1 8 --server http://127.0.0.1:8000/v1    # beside a llama.cpp server
    python benchmarks/cpu_speed.py $STUDENT --types bfloat16 float32 int8 --answers 34

All types take turns in every round, so that other work on the machine slows all of them. Types: float32, bfloat16, and
int8, which is PyTorch's dynamic quantisation of linear layers. The prompt is a question of the study of a real pair
(docs/real-models.md). The warm-up reads it. All types are in memory at once; --types leaves some out. A server answers
as many requests at once as there are rows. With --answers the types answer the study's questions instead.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from openai import OpenAI
from real_study import suite_questions

import relaylab as rl
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.evaluation.stats import mean, paired
from relaylab.trace import Trace

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


def loaded(model: Path, name: str) -> Engine:
    engine = load_engine(model, dtype=TYPES[name], device="cpu")
    if name == "int8":
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated", category=DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(engine.model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return engine


def by_engine(engine: Engine, prompts: Sequence[list[int]], tokens: int) -> Callable[[], float]:
    """What writes the next ``tokens`` of a batch, greedily, and says in which seconds; the first time after prompts."""
    slots = engine.open_many(prompts)

    def write() -> float:
        started = time.perf_counter()
        for _ in range(tokens):
            logits = engine.forward(slots)[:, -1]
            for slot, token in zip(slots, logits.argmax(-1).tolist()):
                slot.ids += [token]
        return time.perf_counter() - started

    return write


def by_server(url: str, prompts: Sequence[list[int]], tokens: int) -> float:
    """Seconds of a request each for ``tokens`` tokens, all at once; the server has the prompts in its caches."""
    client = OpenAI(base_url=url, api_key="none", timeout=600)
    model = client.models.list().data[0].id
    ignore = {"ignore_eos": True, "cache_prompt": True}

    def ask(prompt: list[int], most: int) -> int:
        answer = client.completions.create(
            model=model, prompt=prompt, max_tokens=most, temperature=0, extra_body=ignore
        )
        assert answer.usage
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(ask, prompts, [1] * len(prompts)))
        started = time.perf_counter()
        written = sum(pool.map(ask, prompts, [tokens] * len(prompts)))
        took = time.perf_counter() - started
    if written != tokens * len(prompts):
        raise ValueError(f"the server wrote {written} tokens instead of {tokens * len(prompts)}")
    return took


def answer(engines: dict[str, Engine], count: int) -> None:
    """How often each type is right, and how often it gives the answer of the first one, token for token."""
    first: list[Trace] = []
    for name, engine in engines.items():
        traces = rl.Pair(engine, rl.NoTeacher()).decode(suite_questions(range(count)), max_tokens=128, batch_size=34)
        first = first or traces
        right, before = (np.array([float(bool(t.correct)) for t in some]) for some in (traces, first))
        ended = np.mean([t.stop == "end" for t in traces])
        same = np.mean([t.completion_ids == u.completion_ids for t, u in zip(traces, first)])
        print(
            f"{name}: right {mean(right)}, minus the first {paired(right, before)}, {ended=:.3f}, {same=:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 34])
    parser.add_argument("--tokens", type=int, default=24, help="of a row")
    parser.add_argument("--answers", type=int, help="questions of each of three suites, instead of the speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", help="one that writes with the same model, as http://127.0.0.1:8000/v1")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {asked.threads} threads, torch {torch.__version__}")
    engines = {name: loaded(asked.model, name) for name in asked.types}
    if asked.answers:
        return answer(engines, asked.answers)
    measured = []
    for rows in asked.rows:
        some = [p.messages() for p in suite_questions(range(-(-rows // 3)))[:rows]]
        prompts = [engines[asked.types[0]].prompt_ids(messages) for messages in some]
        ways = {name: by_engine(engine, prompts, asked.tokens) for name, engine in engines.items()}
        if asked.server:
            ways["server"] = partial(by_server, asked.server, prompts, asked.tokens)
        for number in range(asked.rounds + 1):  # the first is a warm-up
            seconds = {name: way() for name, way in ways.items()}
            if number:
                first, written = seconds[asked.types[0]], rows * asked.tokens
                measured += [(rows, name, written / s, first / s) for name, s in seconds.items()]
        table = pd.DataFrame(measured, columns=["rows", "type", "tokens/s", "against the first"])
        table = table.query("rows == @rows").groupby(["rows", "type"], sort=False)
        print(table.agg(["median", "min", "max"]).round(2).to_string(), flush=True)


if __name__ == "__main__":
    main()
