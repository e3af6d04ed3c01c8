"""What a student has learned about calling: is it right more often, does it call where it must, and nowhere else?

Three sets of traces of the same problems are compared, all greedy: the *relay* (the trained student with its teacher),
the *alone* ones of the untouched student, and the *teacher*'s. ``free`` are the trained student's with calls forbidden.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from relaylab.evaluation.stats import interval
from relaylab.trace import TEACHER, Trace

Traces = Sequence[Trace]
HARD_BELOW = 0.75  # a kind of step that the untouched student gets right less often is a hard one


@dataclass(frozen=True, slots=True)
class Measure:
    """A share in 0..1 with its 95 % interval (bootstrap over problems, percentile)."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name}: {100 * self.value:.1f} % ({100 * self.low:.1f}, {100 * self.high:.1f})"


def step_accuracy(traces: Traces) -> dict[str, float]:
    """Of each kind of step in the worked solutions: how often its line holds the right result in these answers.

    A line is right where its own arithmetic is: ``expression=result`` as the problem's solution has it. Lines that come
    after a wrong one are left out, since their numbers are others.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for trace in traces:
        for step, line in zip(trace.problem.get("steps", ()), trace.teacher_view.split("\n")):
            right[step["kind"]].append(f"{step['expression']}={step['result']}." in line)
            if not right[step["kind"]][-1]:
                break
    return {kind: float(np.mean(found)) for kind, found in right.items()}


def hard_kinds(alone: Traces) -> set[str]:
    """The kinds of step that the untouched student gets right in less than ``HARD_BELOW`` of the cases."""
    return {kind for kind, share in step_accuracy(alone).items() if share < HARD_BELOW}


def calls_at(trace: Trace, kinds: set[str]) -> list[bool]:
    """For each answered call: did the teacher write at least half of the result of a step of these kinds?

    >>> from relaylab.trace import Call
    >>> t = Trace("q", [1], [1, 2, 3, 4, 5], "scttt", ["7*8=", "<call>3</call>", "5", "6", "."],
    ...           [Call(1, 2, 3, 3, 3, 3)], problem={"steps": [{"kind": "product", "result": 56, "expression": "7*8"}]})
    >>> calls_at(t, {"product"}), calls_at(t, {"sum"})
    ([True], [False])
    """
    steps, digits = trace.problem.get("steps", ()), result_digits(trace)
    found = []
    for call in trace.answered:
        span = range(call.end, call.end + call.delivered)
        lines = {line for line, tokens in digits.items() if 2 * len(tokens & set(span)) >= len(tokens)}
        found.append(any(line < len(steps) and steps[line]["kind"] in kinds for line in lines))
    return found


def result_digits(trace: Trace) -> dict[int, set[int]]:
    """Line of the answer -> the tokens that write the digits behind its ``=``."""
    line, after, found = 0, False, defaultdict(set)
    for i, (piece, source) in enumerate(zip(trace.pieces, trace.source)):
        if source == "c":
            continue
        if after and any(c.isdigit() for c in piece):
            found[line].add(i)
        for c in piece:
            after = c == "=" or (after and (c.isdigit() or c == " "))
            line += c == "\n"
    return found


def measures(
    relay: Traces | Sequence[Traces], alone: Traces, teacher: Traces, free: Traces | Sequence[Traces], *, seed: int = 0
) -> list[Measure]:
    """The figures of a trained student, each with its interval; or of several, say one a seed, taken together.

    All traces are of the same problems in the same order. ``relay`` and ``free`` are the traces of one student or a
    list of those of several; the bootstrap draws problems, and with each all students' answers to it.

    Raises ValueError where the problems differ, or where the teacher is not better than the student alone.
    """
    relays, frees = ([t] if isinstance(t[0], Trace) else list(t) for t in (relay, free))
    names = [t.id for t in alone]
    if len(relays) != len(frees) or any([t.id for t in other] != names for other in (*relays, teacher, *frees)):
        raise ValueError("the traces are not of the same problems in the same order")
    a, b = _column([alone], _right)[0], _column([teacher], _right)[0]  # (problems,)
    r, f = _column(relays, _right), _column(frees, _right)  # (students, problems)
    if b.mean() <= a.mean():
        raise ValueError("the teacher is not better than the student alone; there is no gap to recover")
    kinds = hard_kinds(alone)
    written, length = _column(relays, lambda t: t.count(TEACHER)), _column(relays, lambda t: len(t.completion_ids))
    called = _column(relays, lambda t: bool(t.answered))
    hits, calls = _column(relays, lambda t: sum(calls_at(t, kinds))), _column(relays, lambda t: len(t.answered))
    every = np.arange(len(names))

    def share(name: str, top: np.ndarray, below: np.ndarray) -> Measure:
        return _interval(name, lambda i: top[..., i].sum() / max(1, below[..., i].sum()), every, seed)

    def gap(i: np.ndarray) -> float:
        return (r[:, i].mean() - a[i].mean()) / (b[i].mean() - a[i].mean())

    return [
        share("accuracy, student alone (untouched)", a, np.ones_like(a)),
        share("accuracy, trained student with calls forbidden", f, np.ones_like(f)),
        share("accuracy, relay", r, np.ones_like(r)),
        share("accuracy, teacher alone", b, np.ones_like(b)),
        _interval("gap recovered", gap, every, seed),
        share("teacher tokens of all tokens", written, length),
        _interval("mean call ratio of a response", lambda i: (written[:, i] / length[:, i]).mean(), every, seed),
        share("called, of problems that it fails alone", called * (1 - f), 1 - f),
        share("called, of problems that it solves alone", called * f, f),
        share("calls at a hard step", hits, calls),
    ]


def _right(trace: Trace) -> float:
    return float(bool(trace.correct))


def _column(students: Sequence[Traces], value: Callable[[Trace], float]) -> np.ndarray:
    """(students, problems)"""
    return np.array([[value(t) for t in traces] for traces in students], dtype=float)


def _interval(name: str, statistic: Callable[[np.ndarray], float], index: np.ndarray, seed: int) -> Measure:
    found = interval(statistic, len(index), seed=seed)
    return Measure(name, found.value, found.low, found.high)
