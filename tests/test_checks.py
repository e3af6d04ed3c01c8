"""Checks: the package's own functions pass, each known mistake gets its hint, and an open exercise is no error."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lesson.checks import CHECKS, Exercise, NotYet, check
from relaylab.call_tag import format_call
from relaylab.engine.load import embedded_tokenizer
from relaylab.engine.token_text import TokenText
from relaylab.evaluation.counterfactual import call_effects, verdicts
from relaylab.evaluation.learning import calls_at, result_digits
from relaylab.evaluation.placement import calls_frame
from relaylab.evaluation.stats import paired
from relaylab.relay.call_rules import CallAt
from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import Problem, problems
from relaylab.trace import TEACHER, Call, Trace
from relaylab.training.data_filter import Rate, keep
from relaylab.training.warmup_data import insert_calls

FUNCTIONS = {name: c for name, c in CHECKS.items() if isinstance(c, Exercise)}
MISTAKES = [(name, hint) for name, c in FUNCTIONS.items() for hint in c.mistakes]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_right_function_is_right(name):
    assert check(name)(FUNCTIONS[name].right) == f"{name} is right."


@pytest.mark.parametrize(("name", "hint"), MISTAKES)
def test_each_mistake_is_told_by_its_own_hint(name, hint):
    with pytest.raises(NotYet) as told:
        check(name)(FUNCTIONS[name].mistakes[hint])
    assert str(told.value).startswith(f"{name}: {hint}\nFor ")


@pytest.mark.parametrize("name", CHECKS)
def test_an_open_exercise_is_no_error(name):
    assert check(name)(None).startswith(f"{name} is open")
    if name in FUNCTIONS:
        assert check(name)(lambda *_: None).startswith(f"{name} is open")


WRONG_NUMBERS = [
    *(("largest_k", k, hint) for k, hint in ((0, "go further"), (2, "too far"), (7, "one of 0, 1, 2, 3"))),
    ("largest_k", 2.0, "one of 0, 1, 2, 3, not 2.0"),
    ("samples_needed", 2000, "far fewer will do"),
    ("largest_rho", 0.3, "still positive"),
    *(("largest_rho", text, "it is a number") for text in (float("nan"), "0.5", True, [0.5])),
    *(("samples_needed", n, t) for n, t in ((10, "15.0 of 100"), (60, "fewer will do"), (35, "an even number"))),
    ("kept_lead", 10.3, "as a share of 1"),
    ("kept_lead", 0.247, "the easy column of Relay simple"),
    ("kept_lead", -0.69, "the hard column of Relay difficulty-aware"),
    ("kept_lead", 0.75, "in points; divide it"),
    ("kept_lead", 0.5, "divide it by the lead over GRPO with the teacher"),
    *(("fewest_calls", n, text) for n, text in ((9, "not yet as much"), (11, "fewer do"), (0, "from 1 to 1000"))),
    ("fewest_calls", 2.0, "a number of calls"),
    *(("longest_answer", n, t) for n, t in ((3328, "go further"), (3584, "too long"), (1000, "a multiple of 128"))),
]


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG_NUMBERS)
def test_a_wrong_number_gets_a_hint(name, answer, hint):
    with pytest.raises(NotYet, match=hint):
        check(name)(answer)


def test_a_function_that_changes_its_input_is_told():
    def in_place(ids, position, n, encode):
        ids[position:position] = encode(format_call(min(n, len(ids) - 1 - position)))
        return ids

    with pytest.raises(NotYet, match="changed its input"):
        check("insert_one")(in_place)


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        (
            "loss_mask",
            lambda t: [0],
            r"another number of entries than it should.\nFor ssssssssss it gives \[0\], not",
        ),
        ("loss_mask", lambda t: 3, r"must return a list, not a int.\nFor ssssssssss it gives 3"),
        ("loss_mask", lambda t: "1" * len(t.source), "must return a list, not a str"),
        ("loss_mask", lambda t: np.array(1), "must return a list, not a ndarray"),
        ("loss_mask", lambda t: torch.tensor(1), "must return a list, not a Tensor"),
        ("loss_mask", lambda t: [2.5 * (s != TEACHER) for s in t.source], "2.5 times as large"),
        ("loss_mask", lambda t: [-(s != TEACHER) for s in t.source], "sign is reversed"),
        ("loss_mask", lambda t: [1] if "t" not in t.source else None, "another number|returns None"),
        ("loss_mask", lambda t: [7 + 3 * k for k in range(len(t.source))], "It is wrong for 24 of 24 inputs"),
        ("chance_kept", lambda p, n, t: 0, "wrong for"),
        ("chance_kept", 3, "must be a function, not 3"),
    ],
)
def test_mistakes_of_any_exercise_have_hints_too(name, answer, hint):
    with pytest.raises(NotYet, match=hint):
        check(name)(answer)


def test_any_sequence_of_any_kind_of_number_is_right():
    assert check("loss_mask")(lambda trace: tuple(float(s != TEACHER) for s in trace.source)) == "loss_mask is right."


def test_the_learners_own_error_comes_through_with_its_input():
    with pytest.raises(ZeroDivisionError) as told:
        check("group_advantages")(lambda groups: 1 / 0)
    assert told.value.__notes__ == ["Your function stopped for rewards [[1.5, 0.8, 0, 0]]."]


def test_the_inputs_are_the_same_each_time():
    first, second = (list(FUNCTIONS["my_rewards"].inputs(random.Random(0))) for _ in range(2))
    assert first == second


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match=r"no exercise 'my_reward'; there are .*insert_one"):
        check("my_reward")


# References say what the package does ---------------------------------------------------------------------------------


def test_insert_one_is_what_the_warm_up_does():
    ids = list(range(10, 30))
    for seed in range(20):
        made = insert_calls(ids, lambda t: [t], rng=random.Random(seed), counts=(0, 1), numbers=[7])
        position = next(i for i, token in enumerate(made) if isinstance(token, str))
        assert made == FUNCTIONS["insert_one"].right(ids, position, 7, lambda t: [t])


def test_kept_is_the_packages_filter():
    def kept(given, threshold):
        rates = [Rate(Problem(str(i), "mine", "2+2?", "4"), *counts) for i, counts in enumerate(given)]
        return [int(p.id) for p in keep(rates, threshold)]

    assert check("kept")(kept) == "kept is right."


def test_the_ban_is_the_one_of_the_sampler():
    text = TokenText(embedded_tokenizer())
    for turn in (b"", b"3 <", b"3 <c", b"3 <ca", b"3 <cal", b"<<", b"</c", b"<cal "):
        assert CHECKS["banned"].right(text.bytes, turn) == text.forbidden(turn).tolist()


def test_the_paired_error_gives_the_interval_of_the_bootstrap():
    a, b = [1.0, 1, 0, 1, 1, 0, 1, 1] * 25, [1.0, 0, 0, 1, 0, 0, 1, 1] * 25
    found, error = paired(a, b), CHECKS["paired_error"].right(a, b)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_view_is_the_one_of_a_trace():
    pieces = ["7*8=", "<call>2</call>", "5", "<call>1</call>", ".\n"]
    trace = Trace("q", [1], [1, 2, 3, 4, 5], "sctts", pieces, [Call(1, 2, 2, 2, 2)])
    assert CHECKS["my_view"].right(list(trace.segments())) == trace.teacher_view == "7*8=5<call>1</call>.\n"


def test_positions_are_those_of_the_frame():
    trace = next(t for (t,) in CHECKS["relative_positions"].inputs(random.Random(0)) if len(t.answered) > 1)
    frame = calls_frame([trace])
    assert CHECKS["relative_positions"].right(trace) == frame["position"][frame["status"] == "answered"].tolist()


def test_a_call_covers_what_the_goals_count_and_enough_writes_the_result():
    pieces = ["7*8=", "<call>3</call>", "5", "6", "\n", "9+1=", "<call>2</call>", "1", "0", "."]
    steps = [("product", 56, "7*8"), ("sum", 10, "9+1")]
    steps = [{"kind": kind, "result": result, "expression": text} for kind, result, text in steps]
    calls = [Call(1, 2, 3, 3, 3, 3), Call(6, 7, 3, 3, 3, 3)]
    trace = Trace("q", [1], list(range(10)), "sctttscttt", pieces, calls, problem={"steps": steps})
    digits, (covers, enough) = result_digits(trace), (CHECKS[name].right for name in ("covers", "enough"))
    for kinds, lines in (({"product"}, {0}), ({"sum"}, {1}), ({"product", "sum"}, {0, 1}), (set(), set())):
        assert [covers(call, digits, lines) for call in calls] == calls_at(trace, kinds)
    assert [enough(call, digits, k) for k, call in enumerate(calls)] == [2, 2]


def test_the_effect_is_the_mean_difference_of_the_verdicts():
    pair, terms = load_pair("student"), {"call_rule": CallAt({50: 12}), "max_tokens": 100, "max_calls": 1}
    traces = [t for t in pair.decode(problems("tiles", 3), progress=False, **terms) if t.answered]
    found = verdicts(call_effects(traces, pair.relay(**terms), progress=False), against="alone")
    graded = [[Trace("q", [1], correct=share >= 0.5) for share in found[which]] for which in ("with", "against")]
    assert traces
    assert CHECKS["effect"].right(list(zip(*graded))) == pytest.approx(found["difference"].mean())
