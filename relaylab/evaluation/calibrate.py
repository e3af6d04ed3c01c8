"""Fair thresholds: every trigger gets the setting that is best for it on training problems at a budget.

A trigger's candidates are all pairs of a threshold and a call length; a call for a line or an answer has no length.
Thresholds are quantiles of the signal in the student's own answers. Of the candidates whose share of teacher tokens
stays within the budget, the most accurate one is chosen. The choice is a method text that ``evaluate`` reads, such as
``entropy:threshold=1.42,n=8``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from relaylab import defaults
from relaylab.engine.load import fingerprint_weights
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.systems import SYSTEMS, Citer, system
from relaylab.evaluation.token_router import margins
from relaylab.files import bind_folder, plain
from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import Problem, problem_texts
from relaylab.trace import TEACHER, UNFINISHED, Trace

BUDGETS = (0.02, 0.05, 0.1)  # teacher tokens of all tokens
TRIGGERS = ("entropy", "line", "margin", "probe", "citer", "r2r", "glimp", "offload", "specreason")
LENGTHS = (3, 8, 16)
QUANTILES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)  # of the signal; a larger one calls less


def calibrate(
    problems: Sequence[Problem], out: str | Path, *, student: str = defaults.UNTRAINED,
    teacher: str | Teacher = defaults.TEACHER,
    router_problems: Sequence[Problem] = (), triggers: Sequence[str] = TRIGGERS, budgets: Sequence[float] = BUDGETS,
    lengths: Sequence[int] = LENGTHS, quantiles: Sequence[float] = QUANTILES, max_tokens: int = 160, seed: int = 0,
    write: bool = False, batch_size: int = 128, routers: str | Path | None = None, progress: bool = True,
    **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """Choose each trigger's threshold and call length at each budget. Interrupted, the same call goes on.

    Args:
        problems: to choose on; training problems, and none of those to evaluate on.
        out: a folder for the candidates' traces, and for ``thresholds.csv``, which is what is returned.
        student: the untrained one.
        teacher: a name, a folder, a URL or a ``Teacher``; by default that of the student's world.
        router_problems: to train the probe and the router on; other ones than ``problems``.
        triggers: names of ``systems.SYSTEMS``.
        budgets: shares of teacher tokens, of all tokens of the answers.
        lengths: tokens of a call.
        quantiles: of the signal, at its highest where the student is least sure.
        max_tokens: of an answer.
        seed: random seed.
        batch_size: rows decoded together.
        routers: the folder that keeps trained routers; by default ``out``.
        write: the calls write their command into the answer; a folder is for one form of them.
        progress: show a bar.
        options: device and dtype of local models.

    Returns:
        One row per trigger and budget: ``trigger``, ``budget``, ``method``, ``accuracy``, ``teacher_share``. A trigger
        that no candidate brings within a budget has no row there. Where a model failed in a candidate's answer, the
        problem counts for no candidate, and a warning says of how many that is so.

    Raises:
        ValueError: for a trigger without a threshold, or without a command where one is asked for, for a router without
            problems, and if ``out`` is of other problems, models or settings.
        RuntimeError: where a model failed in an answer to every problem.
    """
    if unknown := [t for t in triggers if not hasattr(SYSTEMS.get(t), "threshold")]:
        raise ValueError(f"{unknown[0]!r} has no threshold to calibrate; there are {', '.join(TRIGGERS)}")
    if write and (silent := [t for t in triggers if not hasattr(SYSTEMS[t], "write")]):
        raise ValueError(f"{silent[0]!r} writes no command; leave it out, or calibrate without write=True")
    given = {"problems": problems, "triggers": triggers, "budgets": budgets}
    if empty := [name for name, values in given.items() if not len(values)]:
        raise ValueError(f"there are no {empty[0]} to calibrate with; give at least one")
    models = ModelCache(teacher, router_problems, max_tokens, options, untrained=student)
    config = {"student": student, "weights": fingerprint_weights(student), "teacher": models.teacher.name}
    config |= {"seed": seed, "max_tokens": max_tokens, "problems": problem_texts(problems)}
    config |= {"router_problems": problem_texts(router_problems)} | models.precision
    if write:
        config["write"] = True
    folder = bind_folder(out, plain(config))
    models.keep, models.progress = Path(routers or folder), progress
    run = EvalRun(models, problems, folder, RelayConfig(max_tokens=max_tokens), seed, batch_size, progress=False)
    alone = run.traces(SYSTEMS["student"])
    form = ",write=1" if write else ""
    candidates = [
        (trigger, system(f"{trigger}:threshold={threshold:.4g}{length}{',recall=0' if trigger == 'r2r' else ''}{form}"))
        for trigger in triggers
        for threshold in thresholds(trigger, run, alone, quantiles)
        for length in ([f",n={n}" for n in lengths] if _counts(trigger) else [""])
    ]
    bar = tqdm(candidates, desc="calibrating", disable=not progress)
    decoded = [(trigger, candidate.label, run.traces(candidate)) for trigger, candidate in bar]
    if lost := {t.id for *_, traces in decoded for t in traces if t.stop in UNFINISHED}:
        text = f"a model failed in answers to {len(lost)} of {len(problems)} problems, which count for no candidate"
        if len(lost) == len(problems):
            raise RuntimeError(f"{text}; nothing is left to choose on, and the same call tries them again")
        warnings.warn(f"{text}; the same call tries them again", stacklevel=2)
    rows = []
    for trigger, label, traces in decoded:
        kept = [t for t in traces if t.id not in lost]
        written, tokens = sum(t.count(TEACHER) for t in kept), sum(len(t.completion_ids) for t in kept)
        rows.append((trigger, label, np.mean([bool(t.correct) for t in kept]), written / max(tokens, 1e-12)))
    every = pd.DataFrame(rows, columns=["trigger", "method", "accuracy", "teacher_share"])
    every = every.drop_duplicates("method").sort_values(["accuracy", "teacher_share"], ascending=[False, True])
    best = [every[every["teacher_share"] <= b].groupby("trigger").first().assign(budget=b) for b in budgets]
    chosen = pd.concat(best).reset_index()[["trigger", "budget", "method", "accuracy", "teacher_share"]]
    chosen = chosen.sort_values(["trigger", "budget"], ignore_index=True)
    chosen.to_csv(folder / "thresholds.csv", index=False)
    return chosen


def _counts(trigger: str) -> bool:
    """Whether a trigger's calls are for a number of tokens."""
    return hasattr(SYSTEMS[trigger], "n") and getattr(SYSTEMS[trigger], "call_end", "tokens") == "tokens"


def thresholds(trigger: str, run: EvalRun, alone: Sequence[Trace], quantiles: Sequence[float]) -> list[float]:
    """Quantiles of a trigger's signal over the tokens that it looks at, in the student's own answers.

    What hands an answer over once looks at the highest entropy of each answer, what verifies at whole lines. Without
    any such token there are none, and a warning says so.
    """
    default, student = SYSTEMS[trigger], run.models.engine("student")
    read = (student.read(t.prompt_ids, t.completion_ids) for t in alone)
    if trigger == "specreason":
        values = [surprise for trace in alone for surprise in _surprises(run, trace)]
    elif isinstance(default, Citer):
        router = run.models.router("student", linear=default.linear, top=default.top)
        values = np.concatenate([router.probability(hidden, logits).cpu().numpy() for logits, hidden in read])
    elif getattr(default, "margin", False):
        values = np.concatenate([margins(logits) for logits, _ in read])
        quantiles = [1 - q for q in quantiles]
    else:
        begins = [[i for i in range(len(t.pieces)) if i == 0 or "\n" in t.pieces[i - 1]] for t in alone]
        looked_at = begins if getattr(default, "line", False) else [range(len(t.pieces)) for t in alone]
        seen = [[t.entropies[i] or 0.0 for i in places] for t, places in zip(alone, looked_at) if t.entropies]
        once = getattr(default, "call_end", "") == "answer"
        values = [max(v) for v in seen if v] if once else [e for v in seen for e in v]
    if not len(values):
        warnings.warn(f"{trigger} has no candidates: no answer of the student has what it looks at", stacklevel=3)
        return []
    return sorted({float(v) for v in np.quantile(values, quantiles)})


def _surprises(run: EvalRun, trace: Trace) -> list[float]:
    """Mean surprise (nats) of the teacher at each line that the student ended."""
    logits, _ = run.models.local_teacher("specreason").engine.read(trace.prompt_ids, trace.completion_ids)
    chosen = -logits.log_softmax(-1).cpu().numpy()[np.arange(len(logits)), trace.completion_ids]
    ends = [i for i, piece in enumerate(trace.pieces, 1) if piece.endswith("\n")]
    return [float(chosen[a:b].mean()) for a, b in zip([0, *ends], ends)]
