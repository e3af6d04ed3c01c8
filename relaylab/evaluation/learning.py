"""Steps of worked solutions in answers: which the student gets right alone, and at which it calls."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from relaylab.call_tag import find_calls
from relaylab.trace import STUDENT, Trace

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
    return rf"(?<!\d){re.escape(step['expression'])}={step['result']}(?!\d|[.,]\d)"


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
        for c in piece:
            if after and c.isdigit():
                digits[line].add(i)
            after = c == "=" or (after and (c.isdigit() or c == " "))
            line += c == "\n"
    return digits


def answer_text(trace: Trace) -> tuple[str, list[int], list[int]]:
    """The answer without commands; where in it each token begins, and the last one ends; where each call begins.

    A token can hold the end of a command and the text after it, so commands are cut out by characters.

    >>> from relaylab.trace import Call
    >>> answer_text(Trace("q", [1], [5, 6, 7], "sct", ["=", "<call>1</call>.", "6"], [Call(1, 2, 1, 1, 1)]))
    ('=.6', [0, 1, 2, 3], [1])
    """
    ends, commands, at = list(accumulate(map(len, trace.pieces), initial=0)), [], 0
    for source, text in trace.segments():
        if source == STUDENT:
            commands += [(at + c.start, at + c.end) for c in find_calls(text, named=trace.named) if c.closed]
        at += len(text)
    keep, begins = np.ones(at, bool), []
    for start, end in commands:
        keep[start:end] = False
    for call in trace.calls:  # an unclosed tag is text, and a silent call has no command
        k = bisect_left(commands, (ends[call.start], 0))
        has_command = k < len(commands) and commands[k][0] < ends[call.end]
        begins.append(commands[k][0] if has_command else ends[call.start])
    kept = np.concatenate([[0], np.cumsum(keep)])
    return trace.teacher_view, kept[ends].tolist(), kept[begins].tolist()
