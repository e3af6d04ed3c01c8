"""The numbers of the package as hashes, to compare before and after a refactoring.

    python benchmarks/golden.py write benchmarks/golden.json       # before the change
    python benchmarks/golden.py compare benchmarks/golden.json     # after each step of it
    python benchmarks/golden.py compare benchmarks/golden.json --only forks --only server

``compare`` prints what differs and exits with 1. It tells two kinds of difference apart:

    CHANGED    tokens, sources, calls, grades, counts or names are others, or floats moved: by 1e-4 of their norm
    ROUNDING   floats moved by less than that: another order of additions. ``--noise`` accepts these.

How to adapt it after a renaming: edit the section ADAPTER and nothing below it. Its functions take and return plain
things: the option names in their signatures (max_tokens, max_calls, ...) and the keys of ``plain_trace`` and
``plain_call`` are this file's own, and stay. Models, teachers, relays, problems and traces are opaque to the rest of
the file. Columns and metrics that got another name go into ``RENAMED``; values that did (a status, a source letter, an
arm, a notebook's parameter) are translated back in the function that returns or takes them.

Each part runs alone with ``--only``. ``write --only`` replaces that part of the file and keeps the others. The file
belongs to one machine and one version of torch: write it from the old code where the new one is to be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # also of the notebooks' kernels: other threads, another order of additions
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout beside this file, whatever is installed

import torch  # noqa: E402 - after the variables that it reads

# ADAPTER ==============================================================================================================
# All that this file knows of the package. After a renaming only this section changes, down to the line END OF ADAPTER.

# Columns of tables, metrics and fields of results: their name in the package -> their name in the golden file.
RENAMED: dict[str, str] = {}

SUITE_NAMES = ("savings", "shopping", "sharing", "bakery", "tiles", "convoy", "depot", "harvest", "galaxy")


@cache
def load_model(name: str) -> Any:
    """An embedded model, ready to decode (student or teacher)."""
    from relaylab.engine.load import load_engine

    return load_engine(name, device="cpu")


def embedded_tokenizer() -> Any:
    """The transformers tokenizer of the embedded models."""
    from relaylab.engine.load import embedded_tokenizer

    return embedded_tokenizer()


def wrap_model(model: Any, tokenizer: Any, name: str) -> Any:
    """A transformers model and its tokenizer as what ``load_model`` returns."""
    from relaylab.engine.engine import Engine

    return Engine(model, tokenizer, name=name)


def local_teacher(model: Any, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> Any:
    """A teacher in this process over a model of ``load_model`` or ``wrap_model``."""
    from relaylab.relay.local_teacher import LocalTeacher

    return LocalTeacher(model, temperature=temperature, top_p=top_p, top_k=top_k)


def no_teacher() -> Any:
    from relaylab.relay.teachers import NoTeacher

    return NoTeacher()


def scripted_teacher(script: Callable[[str, int, int], dict[str, Any]]) -> Any:
    """A teacher that says ``script(text so far without commands, n, seed)``: a dict with text and tokens, or error, and
    with ended=True where it ends the answer. Its tokenizer is nobody's."""
    from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput

    def say(view):
        said = script(view.text, view.n, view.seed)
        if "error" in said:
            return TeacherOutput("", "error", error=said["error"])
        return TeacherOutput(said["text"], "stop" if said.get("ended") else "length", tokens=said["tokens"])

    return ScriptedTeacher(say)


def api_teacher(url: str, *, tokenizer: Any = None, mode: str = "auto", temperature: float = 0.0) -> Any:
    """A teacher behind an OpenAI-compatible server; its name in traces is "served". mode: auto, completions or chat."""
    from relaylab.relay.api_teacher import APITeacher

    return APITeacher(url, model="m", tokenizer=tokenizer, mode=mode, temperature=temperature, retries=0, name="served")


def call_at(calls: dict[int, int]) -> Any:
    """A rule that calls for n tokens at given positions of the completion."""
    from relaylab.relay.call_rules import CallAt

    return CallAt(calls)


def call_every(every: int, n: int) -> Any:
    from relaylab.relay.call_rules import CallEvery

    return CallEvery(every, n)


def call_when_unsure(threshold: float, n: int, most: int | None = None) -> Any:
    from relaylab.relay.call_rules import CallWhenUnsure

    return CallWhenUnsure(threshold, n, most)


def make_relay(
    student: Any,
    teacher: Any,
    *,
    rule: Any = None,
    silent: bool = False,
    forbid_calls: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    record: bool = False,
    on_failure: str = "carry_on",
    batch_size: int = 64,
    max_tokens: int = 160,
    **caps: int | None,
) -> Any:
    """A relay. silent: the teacher takes over without a command. caps: max_calls, max_call_tokens, max_teacher_tokens,
    call_tokens (every call is granted so many)."""
    from relaylab.relay.relay import Relay

    if "call_tokens" in caps:
        caps["fixed_call_tokens"] = caps.pop("call_tokens")
    return Relay(
        student, teacher, max_tokens=max_tokens, **caps, temperature=temperature, top_p=top_p, top_k=top_k,
        call_rule=rule, write_call=not silent, forbid_calls=forbid_calls, on_failure=on_failure, record=record,
        batch_size=batch_size,
    )  # fmt: skip


def run(relay: Any, questions: Sequence[str], seeds: Sequence[int] | None = None) -> list[Any]:
    """The traces of some questions, decoded together; seeds are 0, 1, 2 ... where not given."""
    return relay.run(list(questions), seeds=seeds)


def run_raising(relay: Any, questions: Sequence[str]) -> list[Any] | None:
    """The traces that come with the error of a relay that raises where its teacher fails; None where it did not."""
    from relaylab.relay.relay import TeacherFailed

    try:
        relay.run(list(questions))
    except TeacherFailed as error:
        return error.traces
    return None


def decode(student: Any, teacher: Any, problems: Sequence[Any], *, seed: int = 0, **options: Any) -> list[Any]:
    """The graded traces of problems, each with a seed of its own, a function of ``seed`` and its id. options: those of
    ``make_relay``."""
    from relaylab.relay.pair import Pair

    if "rule" in options:
        options["call_rule"] = options.pop("rule")
    if "call_tokens" in options:
        options["fixed_call_tokens"] = options.pop("call_tokens")
    if "silent" in options:
        options["write_call"] = not options.pop("silent")
    return Pair(student, teacher).decode(problems, seed=seed, progress=False, **{"max_tokens": 160} | options)


def solve(student: Any, teacher: Any, problem: Any, *, seed: int = 0, **options: Any) -> Any:
    """The graded trace of one problem with this very seed."""
    from relaylab.relay.pair import Pair

    return Pair(student, teacher).solve(problem, seed=seed, **{"max_tokens": 160} | options)


def fork(relay: Any, trace: Any, at: int, **change: Any) -> Any:
    """The trace from completion position ``at`` on. change: call=n, forbid=True, seed=s, or nothing."""
    return forks(relay, [trace], [at], **change)[0]


def forks(relay: Any, traces: Sequence[Any], at: Sequence[int], **change: Any) -> list[Any]:
    """Forks of many traces, decoded together."""
    stream = relay.forks(list(traces), list(at), **change)
    for _ in stream:
        pass
    return stream.traces


def plain_call(call: Any) -> dict[str, Any]:
    """A call as a dict; all but its latency."""
    return {
        "start": call.start,
        "end": call.end,
        "requested": call.requested,
        "granted": call.granted,
        "delivered": call.delivered,
        "written": call.written,
        "status": call.status,
        "finish": call.finish_reason,
        "teacher": call.teacher,
        "error": call.error,
        "forced": call.forced,
    }


def plain_trace(trace: Any) -> dict[str, Any]:
    """A trace as a dict."""
    return {
        "prompt_ids": list(trace.prompt_ids),
        "ids": list(trace.completion_ids),
        "sources": trace.source,
        "pieces": list(trace.pieces),
        "calls": [plain_call(c) for c in trace.calls],
        "stop": trace.stop,
        "seed": trace.seed,
        "temperature": trace.temperature,
        "student": trace.student,
        "teacher": trace.teacher,
        "correct": trace.correct,
        "teacher_view": trace.teacher_view,
        "ratio": trace.call_ratio,
        "content_ratio": trace.content_ratio,
        "logprobs": trace.logprobs,
        "entropies": trace.entropies,
    }


def find_calls(text: str) -> list[tuple[int, int, int | None, str | None]]:
    """The calls in a text: start, end, n, and what is wrong with it."""
    from relaylab.call_tag import find_calls

    return [(c.start, c.end, c.n, c.problem) for c in find_calls(text)]


def problems(suite: str, count: int, split: str = "test") -> list[Any]:
    """The first problems of an embedded suite."""
    from relaylab.tasks.suites import problems

    return problems(suite, count, split=split)


def plain_problem(problem: Any) -> dict[str, Any]:
    names = ("id", "suite", "question", "answer", "level", "solution")
    steps = [(s.expression, s.result, s.kind) for s in problem.steps]
    return {name: getattr(problem, name) for name in names} | {"steps": steps}


def grade(text: str, answer: str) -> bool:
    from relaylab.tasks.grading import grade

    return grade(text, answer)


def evaluate(systems: Sequence[str], problems: Sequence[Any], folder: Path, *, training: Sequence[Any] = (), **options):
    """An evaluation: (table, summary, {system: its traces}). The names of systems are texts as ``router:p=0.5``.

    options: temperature, samples, seed, max_tokens, max_calls.
    """
    from relaylab.evaluation.evaluate import evaluate
    from relaylab.evaluation.stats import summary
    from relaylab.relay.config import RelayConfig
    from relaylab.trace import read_traces

    limits = RelayConfig(max_tokens=options.pop("max_tokens", 160), max_calls=options.pop("max_calls", None))
    table = evaluate(systems, problems, folder, config=limits, training=training, progress=False, **options)
    seed = options.get("seed", 0)
    traces = {s: list(read_traces(folder / "traces" / str(seed) / f"{s.replace(':', ' ')}.jsonl")) for s in systems}
    return table, summary(table, ks=[2] if options.get("samples", 1) > 1 else []), traces


def statistics(a: Sequence[float], b: Sequence[float], c: Sequence[float]) -> dict[str, Any]:
    """Intervals with their seeds: a mean, a paired difference, a share, the gap recovered, pass@k."""
    import numpy as np

    from relaylab.evaluation import stats as s

    a, b, c = (np.array(x, dtype=float) for x in (a, b, c))
    found = {"mean": s.mean(a, seed=3), "paired": s.paired(b, a, seed=3), "share": s.share(a, b + 1, seed=3)}
    found["gap"] = s.gap_recovered(b, a, c, seed=3)
    plain = {k: [v.value, v.low, v.high, v.p] for k, v in found.items()}
    return plain | {"pass@k": [s.pass_at_k(r, 8, k) for r in (0, 3, 8) for k in (1, 2, 8)]}


def scorecard(table: Any) -> tuple[dict[str, Any], Any]:
    """(each claim's figure with its interval and verdict, or what it lacks; the card as a table) of an evaluation."""
    from relaylab.evaluation.scorecard import measured
    from relaylab.evaluation.scorecard import scorecard as card_of

    found = measured(table)
    plain = {k: v if isinstance(v, str) else [v.value, v.low, v.high, v.verdict] for k, v in found.items()}
    card = card_of(found)
    return plain, card[["id", "paper", "verdict"]]


def published_tables() -> list[Any]:
    """The paper's numbers are data now (``evaluation/paper_tables.csv``), in another shape than before."""
    return []


def cost(traces: Sequence[Any], alone: Sequence[Any], student: dict, teacher: dict, **terms: Any) -> list[Any]:
    """(usage, costs, summary) of relays beside the teacher alone, as tables, and numbers of the break-even.

    student, teacher: parameters, attention_width, prices and rates. terms: network_delay, cache.
    """
    from relaylab import cost as c

    terms = c.Prices(student=c.ModelPrices(**student), teacher=c.ModelPrices(**teacher), **terms)
    used = c.usage(traces).drop(columns="measured_seconds")
    shape = dict(call_tokens=4, tokens=200, prompt=60, command_tokens=5)
    even = [c.breakeven_calls(terms, m, **shape) for m in ("flops", "money", "seconds")]
    summary = c.cost_summary(traces, terms, teacher_alone=alone)
    swept = c.cost_sweep(
        terms, prompt=60, tokens=200, command_tokens=5, calls=[1, 4], call_tokens=[2, 20], network_delays=[0.0, 0.1],
        batches=[1, 8],
    )  # fmt: skip
    costs = c.costs(used, terms)[["student_flops", "teacher_flops", *c.MEASURES]]
    return [used, costs, summary, swept, [*even, c.breakeven_delay(used, terms)], c.against_router(summary, 0.3)]


def placement(traces: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Tables of where calls are: calls, windows (of recorded traces), transfer and agreement of two teachers."""
    from relaylab.evaluation import placement as p

    runs = {"teacher": traces, "other": others}
    return [
        p.calls_frame(traces),
        p.windows_frame(traces, width=4, seed=1),
        p.transfer_frame(runs, by="suite"),
        p.agreement_frame(runs),
    ]


def learning(relay: Sequence[Any], alone: Sequence[Any], teacher: Sequence[Any], free: Sequence[Any]) -> list[Any]:
    """The figures of a trained student: (value, low, high) each, and the accuracy of each kind of step."""
    from relaylab.evaluation import learning as n

    sys.path.insert(0, str(Path(__file__).parent))
    from learning import measures

    frame = measures(relay, alone, teacher, free)
    found = list(frame[["value", "low", "high"]].itertuples(index=False, name=None))
    return [found, sorted(n.step_accuracy(alone).items())]


def counterfactuals(
    traces: Sequence[Any], relay: Any, *, lengths: Sequence[int], teacher: Any, student: Any, **options
) -> list[Any]:
    """(effects, verdicts, effects by suite) of every call of the traces, as tables. options: samples, seed."""
    from relaylab.evaluation import counterfactual as c

    found = c.call_effects(
        traces, relay, lengths=lengths, teachers=[teacher], students=[student], progress=False, **options
    )
    return [found, c.verdicts(found), c.effects_by(found, "suite", seed=1)]


def reward_table(groups: Sequence[Sequence[Any]]) -> dict[str, list[list[float]]]:
    """The rewards of graded traces, a group a prompt, under every scheme and ratio, and their advantages."""
    from relaylab.training import rewards as r

    found = {"outcome": r.score(groups, "outcome"), "released code": r.score(groups, released_code=True)}
    for ratio in ("paper", "content", "group"):
        found[f"ratio {ratio}"] = [r.ratios(g, ratio) for g in groups]
        found[f"simple {ratio}"] = r.score(groups, "simple", ratio=ratio)
        for name, options in {
            "": {}, ", no bonus": {"bonus": 1.0}, ", no exploration": {"exploration_cap": 0.0},
            ", cap 0.1": {"exploration_cap": 0.1},
            ", penalty -0.5": {"penalty": -0.5},
        }.items():  # fmt: skip
            found[f"difficulty {ratio}{name}"] = r.score(groups, "difficulty_aware", ratio=ratio, **options)
    found["advantages"] = [r.advantages(g) for g in found["difficulty group"]]
    found["kinds"] = [[r.kind_of(g)] for g in groups]
    return found


def pass_rates(teacher: Any, problems: Sequence[Any], folder: Path, *, samples: int, threshold: float) -> list[Any]:
    """(passed, answered, failed) of each problem, and the ids of those that are kept."""
    from relaylab.training.data_filter import keep, pass_rates

    rates = pass_rates(teacher, problems, folder / "rates.jsonl", samples=samples, max_tokens=160, progress=False)
    kept = [p.id for p in keep(rates, threshold)]
    return [[(r.passed, r.samples, r.failed) for r in rates], kept]


def warmup_rows(student: Any, problems: Sequence[Any], **options: Any) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of warm-up data. options: counts, exponents, numbers, min_prob (smaller ones are not learned),
    temperature."""
    from relaylab.training.warmup_data import warmup_data

    options["min_token_prob"] = options.pop("min_prob", 0.0)
    rows = warmup_data(student, problems, max_tokens=160, progress=False, **options)
    return [(row["input_ids"], row["labels"]) for row in rows]


def warmup(student: str, problems: Sequence[Any], folder: Path, *, steps: int, full: bool, **options: Any) -> dict:
    """A warm-up; the tensors that were trained. options: batch_size, learning_rate, counts, numbers."""
    from safetensors.torch import load_file

    from relaylab.training.warmup import warmup

    options |= {"max_tokens": 160, "device": "cpu", "progress": False}
    options["per_device_train_batch_size"] = options.pop("batch_size")
    warmup(student, problems, folder, max_steps=steps, full=full, **options)
    return load_file(folder / ("model.safetensors" if full else "adapter_model.safetensors"))


def train(
    student: str,
    teacher: Any,
    problems: Sequence[Any],
    folder: Path,
    *,
    steps: int,
    prompts: int,
    group: int,
    learning_rate: float,
    max_tokens: int,
    max_calls: int | None = None,
    updates: int = 1,
    micro_batch: int | None = None,
    reward: str = "difficulty_aware",
    ratio: str | None = None,
    mask_teacher: bool = True,
    first: tuple[int, dict[str, int]] | None = None,
    full: bool = False,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], list[list[Any]]]:
    """GRPO; (saved tensors, metrics of each optimiser step, traces of each step). first: steps with other caps."""
    from safetensors.torch import load_file

    from relaylab.trace import read_traces
    from relaylab.training.grpo import train
    from relaylab.training.run_dir import read_metrics

    micro = micro_batch or prompts * group // updates
    accumulate = prompts * group // updates // micro
    options: dict[str, Any] = {"ratio": ratio} if ratio else {}
    if first:
        caps = {"max_tokens": "max_completion_length", "call_tokens": "fixed_call_tokens"}
        stage = {"steps": first[0] * updates} | {caps.get(k, k): v for k, v in first[1].items()}
        options["call_curriculum"] = [stage]
    out = train(
        student=student, output_dir=str(folder), teachers=[teacher], problems=problems, max_steps=steps * updates,
        num_generations=group, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate,
        steps_per_generation=accumulate * updates, learning_rate=learning_rate, max_completion_length=max_tokens,
        max_calls=max_calls, reward=reward, mask_teacher=mask_teacher, full=full, seed=seed, keep_rollouts=1,
        save_steps=50 * updates, disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    saved = load_file(out / ("model.safetensors" if full else "adapter_model.safetensors"))
    rollouts = [list(read_traces(path)) for path in sorted((folder / "rollouts").glob("*.jsonl"))]
    return saved, read_metrics(folder).to_dict("records"), rollouts


def run_notebook(name: str, folder: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Execute a notebook of the repository (``notebooks/07_teacher_free.ipynb``) as a sweep's point; what it found."""
    from relaylab.sweep.notebook import execute

    record = execute(ROOT / name, folder, parameters)
    if record["status"] != "done":
        raise RuntimeError(record["error"])
    return record["values"]


# END OF ADAPTER =======================================================================================================

CLOSE = 1e-4  # of their norm: floats whose sums differ by less are noise
SHOWN = 60  # characters of a text in the file


class Book:
    """Entries by name: a hash and a digest for people; of floats also four numbers that tell noise from a change."""

    def __init__(self, part: str):
        self.part, self.entries = part, dict[str, dict[str, Any]]()

    def exact(self, name: str, value: Any, digest: str = "") -> None:
        """What must not change in any bit."""
        self._put(name, {"sha": _sha(value), "digest": digest or _short(json.dumps(_canonical(value)))})

    def floats(self, name: str, values: Iterable[float | None], decimals: int = 6) -> None:
        """Numbers that another order of additions may move."""
        values = list(values)
        known = [float(v) for v in values if v is not None and math.isfinite(v)]
        rounded = [None if v is None else _rounded(v, decimals) for v in values]
        numbers = [
            float(len(known)),
            sum(known),
            math.sqrt(sum(v * v for v in known)),
            sum(v * math.cos(i) for i, v in enumerate(known)),
        ]
        digest = _short(", ".join("-" if v is None else f"{v:.4g}" for v in values[:8]))
        self._put(f"{name} (floats)", {"sha": _sha(rounded), "digest": digest, "numbers": numbers})

    def traces(self, name: str, traces: Sequence[Any]) -> None:
        """Traces: all but the statistics must be equal; log-probabilities and entropies are floats."""
        rows = [plain_trace(t) for t in traces]
        stats = [row.pop(k) for row in rows for k in ("logprobs", "entropies")]
        right = "".join("-" if r["correct"] is None else str(int(r["correct"])) for r in rows)
        counts = f"tokens {','.join(str(len(r['ids'])) for r in rows[:6])} calls {sum(len(r['calls']) for r in rows)}"
        text = "".join(rows[0]["pieces"])[:SHOWN] if rows else ""
        self.exact(name, rows, f"{counts} right {right[:12]} {text!r}")
        if any(s is not None for s in stats):
            self.floats(name, [v for s in stats for v in s or ()], decimals=4)

    def table(self, name: str, frame: Any) -> None:
        """A table, a column an entry."""
        frame = frame.to_frame().T if hasattr(frame, "to_frame") else frame
        for column in frame.columns:
            values = frame[column].astype(object).where(frame[column].notna(), None).tolist()
            self.mixed(f"{name} {RENAMED.get(column, column)}", values)

    def mixed(self, name: str, values: Any) -> None:
        """A list of anything: floats where there are any, else exact."""
        flat = list(_flat(values))
        if any(isinstance(v, float) for v in flat):
            self.floats(name, [v for v in flat if v is None or isinstance(v, int | float)])
            flat = [v for v in flat if not (v is None or isinstance(v, int | float))]
            if not flat:
                return
        self.exact(name, flat)

    def tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Weights: names and shapes, and the values."""
        self.exact(f"{name}, shapes", sorted((k, list(t.shape), str(t.dtype)) for k, t in tensors.items()))
        whole = torch.cat([tensors[k].double().flatten() for k in sorted(tensors)])
        self.floats(name, whole.tolist(), decimals=7)

    def _put(self, name: str, entry: dict[str, Any]) -> None:
        name = f"{self.part}/{name}"
        assert name not in self.entries, f"two entries named {name}"
        self.entries[name] = entry


def _rounded(value: float, decimals: int) -> float | str:
    if not math.isfinite(value):
        return str(value)
    return round(float(f"{value:.7g}"), decimals) + 0.0  # no minus zero


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        value = sorted((str(k), v) for k, v in value.items())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        value = value.item() if hasattr(value, "item") else value  # of numpy
        yield None if isinstance(value, float) and math.isnan(value) else value


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return value.item() if hasattr(value, "item") else value


def _sha(value: Any) -> str:
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


# What the parts share -------------------------------------------------------------------------------------------------


@cache
def teacher(name: str = "teacher", temperature: float = 0.0) -> Any:
    return local_teacher(load_model(name), temperature=temperature)


def some(suites: Sequence[str], count: int, split: str = "test") -> list[Any]:
    return [p for s in suites for p in problems(s, count, split)]


def questions(count: int = 8) -> list[str]:
    """One question of each suite in turn."""
    return [plain_problem(problems(SUITE_NAMES[i % 9], i // 9 + 1)[-1])["question"] for i in range(count)]


def calling(suites: Sequence[str] = ("tiles", "depot"), count: int = 3, **options: Any) -> list[Any]:
    """Graded and recorded traces of a student that calls by itself."""
    return decode(load_model("relay"), teacher(), some(suites, count), record=True, max_calls=2, **options)


# 1. Traces ------------------------------------------------------------------------------------------------------------


def part_traces(book: Book) -> None:
    everything = some(SUITE_NAMES, 4)
    for suite in SUITE_NAMES:
        for split in ("train", "test"):
            book.exact(f"problems {suite} {split}", [plain_problem(p) for p in problems(suite, 12, split)])
    texts = (
        "a <call> 12 </call> b <call></call> <call>3", "<call>0</call>", "<call>x</call><call>7</call>", "</call>",
        "<call>1000000000000</call>", "<call>999999999999</call>", "<call><call>4</call>",
        "<call>" + "1" * 40 + "</call>", "<call>-3</call>", "<call>3\n</call>", "<call>٣</call>", "<cal<call>5</call",
    )  # fmt: skip
    book.exact("commands in texts", [find_calls(t) for t in texts])
    graded = [
        (r"\boxed{12}", "12"), ("12", "12"), ("The answer is 12.", "12"), (r"\boxed{\frac{1}{2}}", "0.5"), ("", "3"),
        (r"\boxed{1,200}", "1200"), (r"\boxed{x^2+1}", "1+x^2"), (r"\boxed{3}\boxed{4}", "4"), ("Answer: 7", "8"),
    ]  # fmt: skip
    book.exact("grades", [grade(t, a) for t, a in graded])
    for student in ("student", "relay", "relay-once", "warm"):
        for temperature in (0.0, 1.0):
            found = decode(load_model(student), teacher(), everything, temperature=temperature, record=True)
            for i, suite in enumerate(SUITE_NAMES):
                book.traces(f"{student} T={temperature:g} {suite}", found[4 * i : 4 * i + 4])
    few = some(("savings", "tiles", "depot", "galaxy"), 2)
    warm, relay = load_model("warm"), load_model("relay")
    one = [solve(relay, teacher(), p, seed=7, temperature=0.8) for p in few[::2]]
    book.traces("one at a time", one)
    book.traces("without record", decode(relay, teacher(), few, temperature=1.0))
    book.traces("batches of 3", decode(relay, teacher(), few, temperature=1.0, batch_size=3))
    book.traces("broken commands, T=2.5", decode(warm, teacher(), few, temperature=2.5, record=True))
    for name, caps in {
        "max_tokens 25": dict(max_tokens=25), "max_calls 0": dict(max_calls=0), "max_calls 1": dict(max_calls=1),
        "max_call_tokens 3": dict(max_call_tokens=3), "max_teacher_tokens 5": dict(max_teacher_tokens=5),
        "call_tokens 4": dict(call_tokens=4), "call_tokens 30, max_tokens 60": dict(call_tokens=30, max_tokens=60),
        "all caps": dict(max_tokens=80, max_calls=3, max_call_tokens=6, max_teacher_tokens=13),
    }.items():  # fmt: skip
        for temperature in (0.0, 1.0) if name == "all caps" else (1.0,):
            book.traces(f"{name} T={temperature:g}", decode(warm, teacher(), few, temperature=temperature, **caps))
        book.traces(f"{name} forced", decode(warm, teacher(), few, rule=call_every(6, 8), **caps))
        book.traces(f"{name} silent", decode(warm, teacher(), few, rule=call_every(6, 8), silent=True, **caps))
    rules = {
        "at": lambda: call_at({0: 3, 12: 4, 13: 2, 40: 25}), "every": lambda: call_every(9, 4),
        "unsure": lambda: call_when_unsure(0.5, 3, most=4), "unsure, always": lambda: call_when_unsure(0.3, 6),
        "all": lambda: call_at({0: 160}),
    }  # fmt: skip
    for name, rule in rules.items():
        for student in ("student", "warm"):
            for silent in (False, True):
                for record in (False, True) if student == "warm" else (True,):
                    title = f"rule {name}, {student}{', silent' * silent}{', recorded' * record}"
                    options = dict(rule=rule(), silent=silent, record=record)
                    found = decode(load_model(student), teacher(), few, temperature=0.7 * record, **options)
                    book.traces(title, found)
    for temperature in (0.0, 1.0, 3.0):
        for name, who, options in (("no teacher", no_teacher(), {}), ("forbidden", teacher(), {"forbid_calls": True})):
            found = decode(relay, who, few, temperature=temperature, record=True, **options)
            book.traces(f"{name} T={temperature:g}", found)
    book.traces("no teacher, a rule", decode(relay, no_teacher(), few, rule=call_every(9, 4)))
    for options in (dict(top_p=0.8), dict(top_k=3), dict(top_p=0.9, top_k=5)):
        name = " ".join(f"{k}={v}" for k, v in options.items())
        book.traces(f"student {name}", decode(relay, teacher(), few, temperature=1.2, record=True, **options))
        who = local_teacher(load_model("teacher"), temperature=1.2, **options)
        book.traces(f"teacher {name}", decode(warm, who, few, rule=call_every(10, 8), record=True))
    book.traces("teacher T=1", decode(relay, teacher(temperature=1.0), few, temperature=1.0, record=True))
    for name in ("warm", "relay"):
        own = local_teacher(load_model(name))
        for silent in (False, True):
            found = decode(load_model(name), own, few, rule=call_every(11, 5), silent=silent, record=True)
            book.traces(f"one model in both roles, {name}{', silent' * silent}", found)
    long = run(make_relay(warm, teacher(), rule=call_every(20, 5), record=True), ["word " * 3000, *questions(2)])
    book.traces("a full context", long)
    book.traces("20 rows that call at once", run(make_relay(warm, teacher(), rule=call_every(7, 3)), questions(20)))


# 2. Forks -------------------------------------------------------------------------------------------------------------


def part_forks(book: Book) -> None:
    def forked(name: str, relay: Any, trace: Any, positions: Iterable[int], **change: Any) -> None:
        positions = list(positions)
        try:
            found = forks(relay, [trace] * len(positions), positions, **change)
        except ValueError:  # at one of them the answer has ended: which one
            refused = [at for at in positions if _refused(lambda at=at: fork(relay, trace, at, **change)) == "refused"]
            book.exact(f"{name}, refused at", refused)
            positions = [at for at in positions if at not in refused]
            found = forks(relay, [trace] * len(positions), positions, **change)
        book.traces(name, found)

    student, asked = load_model("warm"), questions(9)
    for record in (False, True):
        options = dict(max_tokens=90, temperature=0.7, record=record)
        relay, free = (
            make_relay(student, teacher(), rule=call_at({20: 5, 50: 4}), **options),
            make_relay(student, teacher(), **options),
        )
        for k, trace in enumerate(run(relay, [asked[1], asked[4], asked[6]], seeds=[3, 4, 5])):
            plain = plain_trace(trace)
            calls, end = [c for c in plain["calls"] if c["status"] == "answered"], len(plain["ids"])
            around = {c[w] + d for c in calls for w in ("start", "end") for d in (-1, 0, 1)}
            around |= {c["end"] + c["delivered"] + d for c in calls for d in (-1, 0, 1)}
            every = sorted(i for i in {0, 3, 9, end - 1, end} | around if 0 <= i <= end)
            name = f"trace {k}{', recorded' * record}"
            forked(f"{name}, nothing changed", relay, trace, every)
            forked(f"{name}, no rule", free, trace, every)
            forked(f"{name}, forbid", free, trace, every, forbid=True)
            forked(f"{name}, another seed", free, trace, every[::3], seed=99)
            starts = [c["start"] for c in calls]
            for n in (1, 2, 40):
                forked(f"{name}, call for {n}", free, trace, sorted({*starts, 7, 31, end - 2}), call=n)
            book.exact(f"{name}, past the end", _refused(lambda r=free, t=trace: fork(r, t, 10_000)))
    for rule, name in ((call_when_unsure(0.3, 4, most=3), "unsure"), (call_at({5: 3, 20: 6}), "at")):
        for record in (False, True):
            relay = make_relay(student, teacher(), rule=rule, silent=True, max_tokens=90, record=record)
            for k, trace in enumerate(run(relay, asked[3:5])):
                plain = plain_trace(trace)
                places = {c["start"] + d for c in plain["calls"] for d in (0, 1, 2)} | {0, len(plain["ids"]) - 1}
                title = f"silent {name} {k}{', recorded' * record}"
                forked(title, relay, trace, sorted(p for p in places if 0 <= p <= len(plain["ids"])))
    alone = make_relay(load_model("relay"), no_teacher(), max_tokens=90)
    relay = make_relay(load_model("relay"), teacher(), max_tokens=90)
    ours = run(relay, asked)
    firsts = [next((c["start"] for c in plain_trace(t)["calls"]), 10) for t in ours]
    book.traces("many, no teacher", forks(alone, ours, firsts, forbid=True))
    book.traces("many, nothing changed", forks(relay, ours, firsts))
    book.traces("many, forbid", forks(relay, ours, firsts, forbid=True))
    book.traces("many, call for 6", forks(relay, ours, firsts, call=6))
    book.traces("many, halves", forks(relay, ours, [len(plain_trace(t)["ids"]) // 2 for t in ours], seed=5))
    capped = make_relay(load_model("relay"), teacher(), max_tokens=90, max_calls=1, call_tokens=3)
    book.traces("many, caps", forks(capped, ours, firsts))
    book.exact("a forced call without a teacher", _refused(lambda: fork(alone, ours[0], 3, call=2)))
    again = fork(relay, fork(relay, ours[4], 12, call=4), 30, call=3)
    book.traces("a fork of a fork", [again, fork(relay, again, 40, forbid=True)])


def _refused(action: Callable[[], Any]) -> str:
    try:
        action()
    except ValueError:
        return "refused"
    return "accepted"


# 3. Tokenizers and scripts --------------------------------------------------------------------------------------------


@cache
def other_tokenizer() -> Any:
    """Bytes and a few words, some of which hold a command and its neighbours: a vocabulary unlike the embedded one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["(<", "</", ">=", ">x", "call", "<call>5</call>", "</call>7", "=<call>1</call>x", "ĠThe", "Ġare", "Ã©"]
    vocab = {w: i for i, w in enumerate([*map(chr, range(33, 127)), "Ġ", "Ċ", "Ã", "©", *words])}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|end|>"])
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", chat_template=template)


@cache
def random_model(kind: str, tokenizer: str, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    chosen = other_tokenizer() if tokenizer == "other" else embedded_tokenizer()
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=len(chosen), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, eos_token_id=chosen.eos_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    if kind == "qwen3":
        return wrap_model(Qwen3ForCausalLM(Qwen3Config(**sizes)).eval(), chosen, f"{kind}-{tokenizer}-{seed}")
    config = LlamaConfig(**sizes | {"num_key_value_heads": 4})
    return wrap_model(LlamaForCausalLM(config).eval(), chosen, f"{kind}-{tokenizer}-{seed}")


def part_tokenizers(book: Book) -> None:
    asked = questions(9)
    for kind in ("qwen3", "llama"):
        student, helper = random_model(kind, "embedded", 0), local_teacher(random_model(kind, "embedded", 1))
        for temperature in (0.0, 1.0):
            options = dict(rule=call_every(9, 4), temperature=temperature, max_tokens=60, record=True)
            book.traces(f"{kind} T={temperature:g}", run(make_relay(student, helper, **options), asked))
    pairs = {
        "another teacher": (load_model("warm"), local_teacher(random_model("qwen3", "other", 2))),
        "another teacher T=1": (load_model("warm"), local_teacher(random_model("qwen3", "other", 2), temperature=1.0)),
        "another student": (random_model("llama", "other", 3), teacher()),
        "both others": (random_model("llama", "other", 3), local_teacher(random_model("qwen3", "other", 2))),
    }
    for name, (student, helper) in pairs.items():
        for silent in (False, True):
            options = dict(rule=call_every(8, 5), silent=silent, temperature=0.7, max_tokens=70, record=True)
            relay = make_relay(student, helper, **options)
            found = run(relay, asked)
            book.traces(f"{name}{', silent' * silent}", found)
            places = [len(plain_trace(t)["ids"]) // 2 for t in found]
            book.traces(f"{name}{', silent' * silent}, forks", forks(relay, found, places))
        capped = make_relay(student, helper, rule=call_every(5, 9), max_tokens=60, max_teacher_tokens=14, max_calls=3)
        book.traces(f"{name}, caps", run(capped, asked))

    def say(text: str, n: int, seed: int) -> dict[str, Any]:
        said = f"é<call>9</call>x{_sha(text)[:9]} = 7.\n"[:n]
        return {"text": said, "tokens": len(said)}

    def end(text: str, n: int, seed: int) -> dict[str, Any]:
        said = "" if seed % 2 else "so 7"[:n]  # a silent call that gets no token and no end would be repeated for ever
        return {"text": said, "tokens": len(said), "ended": not said or seed % 3 == 0}

    def fail(text: str, n: int, seed: int) -> dict[str, Any]:
        if seed % 3 == 0 or (seed % 3 == 1 and len(text) > 60):
            return {"error": "on fire"}
        return {"text": "12"[:n], "tokens": min(2, n)}

    for student in ("student", "warm"):
        for silent in (False, True):
            name = f"{student}{', silent' * silent}"
            options = dict(rule=call_at({4: 30, 25: 2, 45: 3}), silent=silent, max_tokens=90, record=True)
            model = load_model(student)
            book.traces(f"script, {name}", run(make_relay(model, scripted_teacher(say), **options), asked))
            ended = make_relay(model, scripted_teacher(end), **options)
            book.traces(f"script that ends, {name}", found := run(ended, asked))
            ends = [len(plain_trace(t)["ids"]) for t in found]
            book.traces(f"script that ends, {name}, forks", forks(ended, found, ends))
            for failure in ("carry_on", "exclude"):
                relay = make_relay(model, scripted_teacher(fail), on_failure=failure, **options)
                book.traces(f"failing, {failure}, {name}", run(relay, asked))
            raising = run_raising(make_relay(model, scripted_teacher(fail), on_failure="raise", **options), asked)
            book.exact(f"failing, raise, {name}", len(raising) if raising else raising)
            fine = run_raising(make_relay(model, scripted_teacher(say), on_failure="raise", **options), asked)
            book.exact(f"not failing, raise, {name}", fine)
    unsure = make_relay(load_model("student"), scripted_teacher(fail), rule=call_when_unsure(0.0, 3, 5), max_tokens=90)
    book.traces("failing, unsure of all", run(unsure, asked))


# 4. A server ----------------------------------------------------------------------------------------------------------


class Server:
    """An OpenAI-compatible server on the loopback. What it says is a function of the prompt, the seed and nothing else.

    It counts in the tokenizer of the embedded models. ids: takes prompts as token ids and gives ids back where asked.
    chat: it continues a begun answer; completions: it has that endpoint.
    """

    def __init__(self, tokenizer: Any, *, ids: bool, chat: bool = True, completions: bool = True):
        self.tokenizer, self.ids, self.chat, self.completions = tokenizer, ids, chat, completions
        self.lock = threading.Lock()  # a tokenizer is one thread's at a time
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 2048}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer.lock:
                    self._send(*outer.answer(self.path, body))

            def _send(self, status: int, body: dict) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict) -> tuple[int, dict]:
        if path.endswith("/chat/completions"):
            if not self.chat:
                return 404, {"error": {"message": "Not Found"}}
            last = body["messages"][-1]
            text = "\n".join(f"{m['role']}: {m['content']}" for m in body["messages"])
            if not (last["role"] == "assistant" and body.get("continue_final_message")):
                text += "\nassistant: "
            return 200, self._said(body, text, self._encode(text), chat=True)
        if not self.completions:
            return 404, {"error": {"message": "Not Found"}}
        prompt = body["prompt"]
        if isinstance(prompt, list):
            if not self.ids:
                return 400, {"error": {"message": "prompt must be a string"}}
            return 200, self._said(body, self._decode(prompt), prompt)
        return 200, self._said(body, prompt, self._encode(prompt))

    def _said(self, body: dict, prompt: str, ids: list[int], *, chat: bool = False) -> dict:
        seed = body.get("seed", 0) if body.get("temperature") else 0
        code = int(_sha([prompt, seed]), 16)
        text = f"{code % 97}+{code % 89}={code % 83}. There are {code % 79} tiles.\n" * (1 + code % 3)
        whole = self._encode(text)
        own, ended = whole[: body["max_tokens"]], len(whole) < body["max_tokens"]
        given = [*own, self.tokenizer.eos_token_id] if ended else own
        said = self._decode(own)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if ended else "length"}
        choice |= {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        if self.ids and body.get("return_token_ids"):
            choice["token_ids"] = given
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(given), "total_tokens": len(ids) + len(given)}
        return {"object": "chat.completion" if chat else "text_completion", "choices": [choice], "usage": usage}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def part_server(book: Book) -> None:
    asked, own = questions(9), embedded_tokenizer()
    kinds = {
        "token ids": (dict(ids=True), dict(tokenizer=embedded_tokenizer())),
        "text": (dict(ids=False), dict(tokenizer=embedded_tokenizer())),
        "text, no tokenizer": (dict(ids=False, chat=False), {}),
        "chat": (dict(ids=False, completions=False), {}),
        "chat, forced": (dict(ids=True), dict(mode="chat")),
        "another tokenizer": (dict(ids=True, chat=False), {"mode": "completions"}),
    }
    for name, (has, options) in kinds.items():
        server = Server(own, **has)
        try:
            for temperature in (0.0, 1.0):
                helper = api_teacher(server.url, temperature=temperature, **options)
                for student, silent in (("warm", False), ("student", True)):
                    terms = dict(silent=silent, temperature=temperature, record=True, max_tokens=110)
                    relay = make_relay(load_model(student), helper, rule=call_at({4: 6, 30: 3, 50: 40}), **terms)
                    book.traces(f"{name}, {student} T={temperature:g}", run(relay, asked))
            found = decode(load_model("relay"), helper, some(("tiles", "depot"), 3), max_calls=2)
            book.traces(f"{name}, relay", found)
        finally:
            server.stop()
    down = api_teacher(server.url)  # nobody listens there any more
    relay = make_relay(load_model("student"), down, rule=call_at({4: 6, 30: 3}), max_tokens=60)
    for k, trace in enumerate(map(plain_trace, run(relay, asked[:3]))):
        calls = [(c["start"], c["end"], c["status"]) for c in trace["calls"]]
        book.exact(f"server down {k}", [trace["ids"], trace["sources"], calls])


# 5. Baselines ---------------------------------------------------------------------------------------------------------

SYSTEMS = (
    "student", "grpo", "teacher-free", "teacher", "relay", "relay:n=3", "relay:student=warm", "relay:teacher=student",
    "fixed", "router", "router:p=0.5", "cascade", "cascade:share=0.5", "plan", "plan:n=6", "entropy",
    "entropy:threshold=0.3,n=4", "citer", "citer:threshold=0.2,n=3", "speculative", "speculative:draft=3",
)  # fmt: skip


def part_baselines(book: Book) -> None:
    asked, training = some(("savings", "tiles", "depot"), 2), some(("savings", "tiles"), 6, "train")
    for temperature in (0.0, 1.0):
        with tempfile.TemporaryDirectory() as folder:
            systems = SYSTEMS if temperature == 0 else [s for s in SYSTEMS if ":" not in s]
            options = dict(training=training, temperature=temperature, max_tokens=120, max_calls=2)
            table, _, traces = evaluate(systems, asked, Path(folder), **options)
            for system in systems:
                book.traces(f"{system} T={temperature:g}", traces[system])
            book.table(f"table T={temperature:g}:", table)


# 6. Training ----------------------------------------------------------------------------------------------------------


def part_training(book: Book) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, train_set = Path(name), some(("savings", "tiles"), 8, "train")
        student = load_model("student")
        for title, options in {
            "half without": {}, "one each": dict(counts=(0, 1), exponents=(0,)), "numbers": dict(numbers=[4, 9, 24]),
            "sure": dict(counts=(0, 1), min_prob=0.5, temperature=0.7),
        }.items():  # fmt: skip
            book.exact(f"warm-up rows, {title}", warmup_rows(student, train_set, **options))
        for full in (True, False):
            options = dict(steps=3, batch_size=8, learning_rate=3e-3, counts=(0, 1), numbers=[4, 9])
            book.tensors(f"warm-up, {'full' if full else 'LoRA'}", warmup(
                "student", train_set, folder / f"warm{full}", full=full, **options
            ))  # fmt: skip
        sampling = teacher(temperature=1.0)
        rates = pass_rates(sampling, some(("tiles", "galaxy"), 2, "train"), folder, samples=3, threshold=0.5)
        book.exact("pass rates", rates)
        runs: dict[str, tuple[str, Any, dict[str, Any]]] = {
            "GRPO": ("warm", teacher(), dict(steps=3)),
            "GRPO, settings": ("warm", teacher(), dict(
                steps=3, updates=2, micro_batch=2, reward="simple", ratio="paper", mask_teacher=False, max_calls=2,
                first=(1, {"max_tokens": 40, "call_tokens": 3}), seed=4,
            )),
            "GRPO, all weights": ("warm", teacher(), dict(steps=2, full=True, seed=1)),
            "GRPO, no teacher": ("warm", no_teacher(), dict(steps=2, reward="outcome", seed=2)),
        }  # fmt: skip
        small = dict(prompts=2, group=4, learning_rate=1e-3, max_tokens=48)
        for title, (start, helper, options) in runs.items():
            out = folder / title.replace(", ", "-")
            tensors, metrics, rollouts = train(start, helper, problems("depot", 4, "train"), out, **small | options)
            book.tensors(title, tensors)
            for step, traces in enumerate(rollouts):
                book.traces(f"{title}, rollouts {step}", traces)
            timed = ("second", "time", "runtime", "memory")
            for key in sorted({k for m in metrics for k in m if not any(t in k for t in timed)}):
                book.floats(f"{title}, {RENAMED.get(key, key)}", [m.get(key) for m in metrics], decimals=5)
    options = dict(temperature=1.0, max_tokens=160, seed=1)
    groups = []
    for suite in ("savings", "tiles", "depot", "galaxy"):
        for model in ("relay", "warm"):
            asked = problems(suite, 1)
            groups.append([decode(load_model(model), teacher(), asked, **options | {"seed": k})[0] for k in range(4)])
    book.traces("rewarded traces", [t for g in groups for t in g])
    for title, values in reward_table(groups).items():
        book.mixed(f"rewards, {title}", values)


# 7. Evaluation --------------------------------------------------------------------------------------------------------


def part_evaluation(book: Book) -> None:
    import pandas as pd

    asked = some(("savings", "tiles"), 4)
    with tempfile.TemporaryDirectory() as folder:
        systems = ["student", "teacher", "relay", "entropy", "router"]
        table, summary, traces = evaluate(systems, asked, Path(folder), max_calls=2)
        book.table("table:", table)
        book.table("summary:", summary)
        for system in systems:
            book.traces(f"traces {system}", traces[system])
    with tempfile.TemporaryDirectory() as folder:
        options = dict(temperature=1.0, samples=3, seed=5, max_calls=2)
        table, summary, _ = evaluate(["student", "teacher", "relay"], asked[::2], Path(folder), **options)
        book.table("sampled table:", table)
        book.table("sampled summary:", summary)
    easy, half, none = [1] * 20, [1] * 10 + [0] * 10, [0] * 20
    suites = ["savings"] * 10 + ["sharing"] * 10 + ["tiles"] * 8 + ["convoy"] * 6 + ["harvest"] * 6
    rows = [
        ("student", easy + none, 0.0, ""), ("teacher", easy + easy, 1.0, ""), ("relay", easy + half, 0.1, "a"),
        ("relay", easy + easy, 0.12, "b"), ("teacher-free", easy + none, 0.0, ""), ("grpo", half + none, 0.0, ""),
        ("fixed", easy + half, 0.3, ""), ("citer", half + half, 0.2, ""),
        ("relay:student=relay-simple", easy + half, 0.05, ""), ("relay:student=relay-no-filter", half + half, 0.15, ""),
        ("relay:student=relay-no-bonus", easy + half, 0.4, ""),
        ("relay:student=relay-no-exploration", easy + none, 0.02, ""), ("relay:teacher=student", half + none, 0.1, ""),
        ("relay:teacher=teacher-small", easy + half, 0.1, ""), ("relay:teacher=teacher-large", half + easy, 0.1, ""),
        ("relay:student=relay-six", easy + half, 0.1, ""), ("grpo:student=grpo-six", easy + none, 0.0, ""),
    ]  # fmt: skip
    made = pd.concat(
        pd.DataFrame({
            "method": method, "student": student, "sample": 0, "id": [f"p{i}" for i in range(40)],
            "level": ["easy"] * 20 + ["hard"] * 20, "suite": suites, "correct": [float(x) for x in right],
            "call_ratio": [ratio * (1 + i % 3) / 2 for i in range(40)],
        })
        for method, right, ratio, student in rows
    )  # fmt: skip
    for title, frame in (("whole", made), ("half", made[made["method"].isin(["student", "teacher", "relay", "grpo"])])):
        figures, card = scorecard(frame)
        for claim, figure in figures.items():
            if isinstance(figure, str):
                book.exact(f"scorecard {title}: {claim}", "not evaluated")
            else:
                book.mixed(f"scorecard {title}: {claim}", figure)
        book.table(f"scorecard {title}, card:", card)
    for i, frame in enumerate(published_tables()):
        book.table(f"published {i}:", frame)
    a, b, c = ([int(k * m % 7 < w) for k in range(40)] for m, w in ((3, 2), (5, 4), (2, 6)))
    for title, values in statistics(a, b, c).items():
        book.mixed(f"statistics {title}", values)

    ours, alone = calling(), decode(load_model("student"), no_teacher(), some(("tiles", "depot"), 3))
    helper = local_teacher(load_model("teacher"))
    whole = decode(load_model("student"), helper, some(("tiles", "depot"), 3), rule=call_at({0: 160}), silent=True)
    free = decode(load_model("relay"), no_teacher(), some(("tiles", "depot"), 3))
    others = decode(load_model("relay"), teacher("teacher-small"), some(("tiles", "depot"), 3), max_calls=2)
    priced = dict(
        student=dict(
            parameters=0.6e9, attention_width=28672, input_price=0.02, output_price=0.08, prefill_rate=9000.0,
            decode_rate=150.0,
        ),
        teacher=dict(
            parameters=8e9, attention_width=147456, input_price=0.2, cached_price=0.05, output_price=0.6,
            prefill_rate=5000.0, decode_rate=60.0, row_share=0.02, batch=4,
        ),
    )  # fmt: skip
    for cached in (True, False):
        names = ("usage", "costs", "summary", "sweep", "break-even", "against a router")
        for title, found in zip(names, cost(ours, whole, **priced, network_delay=0.05, cache=cached)):
            put = book.mixed if isinstance(found, list) else book.table
            put(f"cost {title}{', cached' * cached}:", found)
    for title, frame in zip(("calls", "windows", "transfer", "agreement"), placement(ours, others)):
        book.table(f"placement {title}:", frame)
    for title, found in zip(("measures", "steps"), learning(ours, alone, whole, free)):
        book.mixed(f"learning {title}", found)
    for title, options, terms in (("greedy", {}, {}), ("sampled", dict(samples=2, seed=3), dict(temperature=1.0))):
        relay = make_relay(load_model("relay"), teacher(), max_tokens=160, max_calls=2, **terms)
        options |= dict(lengths=[2, 12], teacher=teacher("teacher-small"), student=load_model("student"))
        for kind, frame in zip(("effects", "verdicts", "by suite"), counterfactuals(ours, relay, **options)):
            book.table(f"counterfactual {title} {kind}:", frame)


# 8. Notebooks and sweeps ----------------------------------------------------------------------------------------------

RUNS = {
    "lesson 07": ("notebooks/07_teacher_free.ipynb", {"relays": ["relay"], "problems_a_suite": 2}),
    "lesson 08": ("notebooks/08_plan_b.ipynb", {"relays": ["relay"], "problems_a_suite": 2, "forked_a_suite": 1}),
    "sweep point": (
        "sweeps/relay.ipynb",
        {"num_problems": 18, "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4}
        | {"problems_a_suite": 1, "seed": 1},
    ),
}  # fmt: skip


def part_notebooks(book: Book) -> None:
    for title, (notebook, parameters) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            values = run_notebook(notebook, Path(folder), parameters)
        for name, value in sorted(values.items()):
            book.mixed(f"{title} {RENAMED.get(name, name)}", [value])


# Command line ---------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Book], None]] = {
    name.removeprefix("part_"): action for name, action in list(globals().items()) if name.startswith("part_")
}


def close(was: Sequence[float], now: Sequence[float]) -> bool:
    size = max(0.01, was[2])  # the norm of all values
    return was[0] == now[0] and all(abs(a - b) <= CLOSE * size for a, b in zip(was[1:], now[1:]))


def differences(was: dict[str, dict], now: dict[str, dict]) -> tuple[list[str], list[str]]:
    """(lines on what changed, lines on what is noise)."""
    changed, noise = [], []
    for name in [*was, *(n for n in now if n not in was)]:
        old, new = was.get(name), now.get(name)
        if old is None or new is None:
            changed.append(f"{'MISSING' if new is None else 'NEW    '}  {name}")
        elif old["sha"] != new["sha"]:
            same = "numbers" in old and "numbers" in new and close(old["numbers"], new["numbers"])
            kind, lines = ("ROUNDING", noise) if same else ("CHANGED ", changed)
            lines.append(f"{kind} {name}\n    was {old['digest']}\n    is  {new['digest']}")
    return changed, noise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "compare"], nargs="?", default="compare")
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_name("golden.json"))
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part, several times for several")
    parser.add_argument("--noise", action="store_true", help="accept what differs in rounding only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.action == "compare" and not args.file.exists():
        parser.error(f"there is no {args.file}; write it from the old code first")
    known = json.loads(args.file.read_text()) if args.file.exists() else {}
    changed, noise, began = 0, 0, time.perf_counter()
    for part in args.only or PARTS:
        book, at = Book(part), time.perf_counter()
        PARTS[part](book)
        was = {name: entry for name, entry in known.items() if name.startswith(f"{part}/")}
        told = f"{part}: {len(book.entries)} entries"
        if args.action == "write":
            known = {name: entry for name, entry in known.items() if name not in was} | book.entries
        else:
            worse, other = differences(was, book.entries)
            print(*worse, *other, sep="\n", end="\n" if worse or other else "")
            changed, noise = changed + len(worse), noise + len(other)
            told += f", {len(worse)} changed, {len(other)} differ in rounding"
        print(f"{told}, {time.perf_counter() - at:.0f} s", flush=True)
    if args.action == "write":
        lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(known.items()))
        args.file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{len(known)} entries in {args.file}, {time.perf_counter() - began:.0f} s")
        return 0
    verdict = "equal" if not changed + noise else f"{changed} changed, {noise} differ in rounding"
    print(f"{verdict}, {time.perf_counter() - began:.0f} s")
    return 1 if changed or (noise and not args.noise) else 0


if __name__ == "__main__":
    sys.exit(main())
