"""The exercises of lessons 11 to 13: their references say what the package's own analyses say."""

from __future__ import annotations

import random

import pytest

from lesson.checks import CHECKS
from relaylab.evaluation.counterfactual import call_effects, verdicts
from relaylab.evaluation.learning import calls_at, result_digits
from relaylab.evaluation.placement import calls_frame
from relaylab.relay.call_rules import CallAt
from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import problems
from relaylab.trace import Call, Trace

covers, enough, effect = (CHECKS[name].right for name in ("covers", "enough", "effect"))
PIECES = ["7*8=", "<call>3</call>", "5", "6", "\n", "9+1=", "<call>2</call>", "1", "0", "."]
TRACE = Trace(
    "q",
    [1],
    list(range(10)),
    "sctttscttt",
    PIECES,
    [Call(1, 2, 3, 3, 3, 3), Call(6, 7, 3, 3, 3, 3)],
    problem={
        "steps": [
            {"kind": "product", "result": 56, "expression": "7*8"},
            {"kind": "sum", "result": 10, "expression": "9+1"},
        ]
    },
)


def test_positions_are_those_of_the_frame():
    trace = next(t for (t,) in CHECKS["relative_positions"].inputs(random.Random(0)) if len(t.answered) > 1)
    frame = calls_frame([trace])
    assert CHECKS["relative_positions"].right(trace) == frame["position"][frame["status"] == "answered"].tolist()


def test_what_a_call_covers_is_what_the_goals_count():
    digits = result_digits(TRACE)
    for kinds, lines in (({"product"}, {0}), ({"sum"}, {1}), ({"product", "sum"}, {0, 1}), (set(), set())):
        assert [covers(call, digits, lines) for call in TRACE.calls] == calls_at(TRACE, kinds)


def test_enough_is_the_shortest_call_that_writes_the_result():
    assert [enough(call, result_digits(TRACE), k) for k, call in enumerate(TRACE.calls)] == [2, 2]


def test_the_effect_is_the_mean_difference_of_the_verdicts():
    pair, terms = load_pair("student"), {"call_rule": CallAt({50: 12}), "max_tokens": 100, "max_calls": 1}
    traces = [t for t in pair.decode(problems("tiles", 3), progress=False, **terms) if t.answered]
    found = verdicts(call_effects(traces, pair.relay(**terms), progress=False), against="alone")
    pairs = [
        (Trace("q", [1], correct=a >= 0.5), Trace("q", [1], correct=b >= 0.5))
        for a, b in zip(found["with"], found["against"])
    ]
    assert traces
    assert effect(pairs) == pytest.approx(found["difference"].mean())
