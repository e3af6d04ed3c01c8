"""Steps of worked solutions in answers: which the student gets right alone, and at which it calls."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relaylab.trace import Trace

Traces = Sequence[Trace]
HARD_BELOW = 0.75  # a kind of step is hard if the untouched student gets it right less often


def step_accuracy(traces: Traces) -> dict[str, float]:
    """How often each kind of step has the right result: its line holds ``expression=result`` of the worked solution.

    Lines after a wrong one are left out, since their numbers differ.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for trace in traces:
        for step, line in zip(trace.problem.get("steps", ()), trace.teacher_view.split("\n")):
            right[kind_of_step(step)].append(re.search(written(step), line) is not None)
            if not right[kind_of_step(step)][-1]:
                break
    return {kind: float(np.mean(values)) for kind, values in right.items()}


def kind_of_step(step: Mapping[str, Any]) -> str:
    """Its operation; at a misconception ``fact`` or ``route``."""
    return step.get("trap") or step["kind"]


def written(step: Mapping[str, Any]) -> str:
    """A pattern of the step's right expression and result in a line."""
    return rf"(?<!\d){re.escape(step['expression'])}={step['result']}(?!\d)"


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
        hits.append(any(line < len(steps) and kind_of_step(steps[line]) in kinds for line in lines))
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
