"""Checks: the package's own functions pass, each known mistake gets its hint, and an open exercise is no error."""

from __future__ import annotations

import random

import pytest

from lesson.checks import CHECKS, Exercise, NotYet, check
from relaylab.call_tag import format_call
from relaylab.trace import TEACHER
from relaylab.training.rewards import advantages

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


def test_a_solution_written_by_hand_is_right():
    def insert_one(ids, position, n, encode):
        left = len(ids) - 1 - position
        return ids[:position] + encode(format_call(min(n, left))) + ids[position:]

    def mask(trace):
        return tuple(float(s != TEACHER) for s in trace.source)  # any sequence, any kind of number

    def without_eps(groups):
        mean = [sum(g) / len(g) for g in groups]
        std = [(sum((r - m) ** 2 for r in g) / (len(g) - 1)) ** 0.5 or 1 for g, m in zip(groups, mean)]
        return [[(r - m) / s for r in g] for g, m, s in zip(groups, mean, std)]

    assert check("insert_one")(insert_one)
    assert check("loss_mask")(mask) == "loss_mask is right."
    assert check("group_advantages")(without_eps)


def test_a_function_that_changes_its_input_is_told():
    def in_place(ids, position, n, encode):
        ids[position:position] = encode(format_call(min(n, len(ids) - 1 - position)))
        return ids

    with pytest.raises(NotYet, match="changed its input"):
        check("insert_one")(in_place)


def test_mistakes_of_any_exercise_have_hints_too():
    for answer, hint in (
        (lambda trace: [0], r"another number of entries than it should.\nFor ssssssssss it gives \[0\], not \[1, "),
        (lambda trace: 3, r"must return a list, not a int.\nFor ssssssssss it gives 3"),
        (lambda trace: "1" * len(trace.source), "must return a list, not a str"),
        (lambda trace: [2.5 * (s != TEACHER) for s in trace.source], "2.5 times as large"),
        (lambda trace: [-(s != TEACHER) for s in trace.source], "sign is reversed"),
        (lambda trace: [1] if "t" not in trace.source else None, "another number|returns None"),
    ):
        with pytest.raises(NotYet, match=hint):
            check("loss_mask")(answer)
    with pytest.raises(NotYet, match="It is wrong for 24 of 24 inputs"):
        check("loss_mask")(lambda trace: [7 + 3 * k for k in range(len(trace.source))])
    for answer, hint in ((lambda p, n, t: 0, "wrong for"), (3, "must be a function, not 3")):
        with pytest.raises(NotYet, match=hint):
            check("chance_kept")(answer)
    for answer in (float("nan"), "0.5", True, [0.5]):
        with pytest.raises(NotYet, match="it is a number"):
            check("largest_rho")(answer)


def test_the_learners_own_error_comes_through_with_its_input():
    with pytest.raises(ZeroDivisionError) as told:
        check("group_advantages")(lambda groups: 1 / 0)
    assert told.value.__notes__ == ["Your function stopped for rewards [[1.5, 0.8, 0, 0]]."]


def test_the_inputs_are_the_same_each_time():
    first, second = (list(FUNCTIONS["my_rewards"].inputs(random.Random(0))) for _ in range(2))
    assert first == second


def test_largest_rho_is_where_the_advantage_changes_its_sign():
    assert advantages([1.5, 0.5, 0, 0])[1] == pytest.approx(0)  # 1 - rho = (1.5 + 1 - rho) / 4 at rho = 0.5
    assert check("largest_rho")(0.5) == "largest_rho is right."
    with pytest.raises(NotYet, match="still positive"):
        check("largest_rho")(0.3)


def test_largest_k():
    assert check("largest_k")(1) == "largest_k is right."
    for wrong, hint in ((0, "go further"), (2, "too far"), (7, "one of 0, 1, 2, 3")):
        with pytest.raises(NotYet, match=hint):
            check("largest_k")(wrong)


def test_the_reference_of_insert_one_is_what_the_warm_up_does():
    from relaylab.training.warmup_data import insert_calls

    ids = list(range(10, 30))
    for seed in range(20):
        made = insert_calls(ids, lambda t: [t], rng=random.Random(seed), counts=(0, 1), numbers=[7])
        position = next(i for i, token in enumerate(made) if isinstance(token, str))
        assert made == FUNCTIONS["insert_one"].right(ids, position, 7, lambda t: [t])


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match=r"no exercise 'my_reward'; there are .*insert_one"):
        check("my_reward")
