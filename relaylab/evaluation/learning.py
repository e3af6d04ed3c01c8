"""What a student has learned about calling: is it right more often, and does it call where it must and nowhere else?

Traces of the same problems are compared, all greedy: the trained student with its teacher (*relay*), the untouched
student (*alone*), the *teacher* alone, and the trained student with calls forbidden (*free*).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from relaylab.evaluation.stats import interval
from relaylab.trace import TEACHER, Trace

Traces = Sequence[Trace]
HARD_BELOW = 0.75  # a kind of step is hard if the untouched student gets it right less often


def step_accuracy(traces: Traces) -> dict[str, float]:
    """How often each kind of step has the right result: its line holds ``expression=result`` of the worked solution.

    Lines after a wrong one are left out, since their numbers differ.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for trace in traces:
        for step, line in zip(trace.problem.get("steps", ()), trace.teacher_view.split("\n")):
            right[step["kind"]].append(f"{step['expression']}={step['result']}." in line)
            if not right[step["kind"]][-1]:
                break
    return {kind: float(np.mean(values)) for kind, values in right.items()}


def hard_kinds(alone: Traces) -> set[str]:
    """The kinds of step that the untouched student gets right in less than ``HARD_BELOW`` of the cases."""
    return {kind for kind, share in step_accuracy(alone).items() if share < HARD_BELOW}


def calls_at(trace: Trace, kinds: set[str]) -> list[bool]:
    """For each answered call, whether the teacher wrote at least half of the result of a step of these kinds.

    >>> from relaylab.trace import Call
    >>> t = Trace("q", [1], [1, 2, 3, 4, 5], "scttt", ["7*8=", "<call>3</call>", "5", "6", "."],
    ...           [Call(1, 2, 3, 3, 3, 3)], problem={"steps": [{"kind": "product", "result": 56, "expression": "7*8"}]})
    >>> calls_at(t, {"product"}), calls_at(t, {"sum"})
    ([True], [False])
    """
    steps, digits = trace.problem.get("steps", ()), result_digits(trace)
    hits = []
    for call in trace.answered:
        span = set(range(call.end, call.end + call.delivered))
        lines = [line for line, tokens in digits.items() if 2 * len(tokens & span) >= len(tokens)]
        hits.append(any(line < len(steps) and steps[line]["kind"] in kinds for line in lines))
    return hits


def result_digits(trace: Trace) -> dict[int, set[int]]:
    """Line of the answer -> the tokens that write the digits after its ``=``."""
    line, after, digits = 0, False, defaultdict(set)
    for i, (piece, source) in enumerate(zip(trace.pieces, trace.source)):
        if source == "c":
            continue
        if after and any(c.isdigit() for c in piece):
            digits[line].add(i)
        for c in piece:
            after = c == "=" or (after and (c.isdigit() or c == " "))
            line += c == "\n"
    return digits


def measures(
    relay: Traces | Sequence[Traces], alone: Traces, teacher: Traces, free: Traces | Sequence[Traces], *, seed: int = 0
) -> pd.DataFrame:
    """The figures of a trained student, or of several (one per seed) together: name, value, low, high; shares in 0..1.

    Args:
        relay: traces of one student, or a list of those of several; all traces are of the same problems in one order.
        alone: of the untouched student.
        teacher: of the teacher.
        free: as ``relay``, with calls forbidden.
        seed: of the bootstrap, which draws problems and with each all students' answers.

    Raises:
        ValueError: if the problems differ, or the teacher is not better than the student.
    """
    relays, frees = ([t] if isinstance(t[0], Trace) else list(t) for t in (relay, free))
    ids = [t.id for t in alone]
    if len(relays) != len(frees) or any([t.id for t in other] != ids for other in (*relays, teacher, *frees)):
        raise ValueError("the traces are not of the same problems in the same order")
    kinds = hard_kinds(alone)

    def column(students: Sequence[Traces], value: Callable[[Trace], float]) -> np.ndarray:  # (students, problems)
        return np.array([[value(t) for t in traces] for traces in students], dtype=float)

    a, b, r, f = (column(x, lambda t: bool(t.correct)) for x in ([alone], [teacher], relays, frees))
    written, length = column(relays, lambda t: t.count(TEACHER)), column(relays, lambda t: len(t.completion_ids))
    called, calls = column(relays, lambda t: bool(t.answered)), column(relays, lambda t: len(t.answered))
    hits = column(relays, lambda t: sum(calls_at(t, kinds)))
    if b.mean() <= a.mean():
        raise ValueError("the teacher is not better than the student alone; there is no gap to recover")

    def share(part: np.ndarray, whole: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda i: part[:, i].sum() / max(1, whole[:, i].sum())

    figures = {
        "accuracy, student alone (untouched)": lambda i: a[:, i].mean(),
        "accuracy, trained student with calls forbidden": lambda i: f[:, i].mean(),
        "accuracy, relay": lambda i: r[:, i].mean(),
        "accuracy, teacher alone": lambda i: b[:, i].mean(),
        "gap recovered": lambda i: (r[:, i].mean() - a[:, i].mean()) / (b[:, i].mean() - a[:, i].mean()),
        "teacher tokens of all tokens": share(written, length),
        "mean call ratio of a response": lambda i: (written[:, i] / length[:, i]).mean(),
        "called, of problems that it fails alone": share(called * (1 - f), 1 - f),
        "called, of problems that it solves alone": share(called * f, f),
        "calls at a hard step": share(hits, calls),
    }
    rows = [(name, interval(statistic, len(ids), seed=seed)) for name, statistic in figures.items()]
    return pd.DataFrame([{"name": n, "value": x.value, "low": x.low, "high": x.high} for n, x in rows])
