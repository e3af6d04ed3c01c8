"""What a student has learned, on traces made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relaylab.evaluation.learning import calls_at, hard_kinds, result_digits, step_accuracy
from relaylab.trace import Call, Trace

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from learning import measures

STEPS = [{"expression": "12+3", "result": 15, "kind": "sum"}, {"expression": "15*47", "result": 705, "kind": "product"}]


def trace(name: str, first: str, second: str, *, teacher: slice | None = None, correct: bool = False) -> Trace:
    """An answer of one token a character; the teacher wrote a slice of it, behind a command of one token."""
    text, source = f"12+3={first}.\n15*47={second}.\n", ""
    pieces, calls = list(text), []
    source = "s" * len(text)
    if teacher is not None:
        at, n = teacher.start, teacher.stop - teacher.start
        pieces = [*text[:at], f"<call>{n}</call>", *text[at:]]
        source = "s" * at + "c" + "t" * n + "s" * (len(text) - at - n)
        calls = [Call(at, at + 1, n, n, n, n)]
    ids = list(range(len(pieces)))
    return Trace("q", [1], ids, source, pieces, calls, correct=correct, id=name, problem={"steps": STEPS})


def test_step_accuracy_counts_no_line_behind_a_wrong_one():
    traces = [trace("a", "15", "705"), trace("b", "15", "700"), trace("c", "14", "705")]
    assert step_accuracy(traces) == {"sum": pytest.approx(2 / 3), "product": 0.5}
    assert hard_kinds(traces) == {"sum", "product"}
    assert hard_kinds([traces[0]] * 4 + [traces[1]]) == set()


@pytest.mark.parametrize(("result", "right"), [("15", 1.0), ("15.5", 0.0), ("15,000", 0.0), ("15, 5", 1.0)])
def test_a_longer_number_that_begins_with_the_result_is_another(result, right):
    assert step_accuracy([trace("a", result, "705")])["sum"] == right


def test_digits_of_a_result_are_found_in_tokens_of_several_characters():
    found = Trace("q", [1], [1, 2, 3, 4], "ssss", ["7*8", "=56", ". So 3", "\n1+1= 2"])
    assert result_digits(found) == {0: {1}, 1: {3}}


@pytest.mark.parametrize(
    ("begin", "end", "at_hard"),
    [
        (15, 18, True),  # the whole result, "705"
        (16, 18, True),  # two of its three digits
        (17, 20, False),  # one digit, and what follows
        (5, 7, False),  # the sum's result
        (9, 15, False),  # the expression of the product alone
        (0, 20, True),  # everything
    ],
)
def test_a_call_is_at_the_step_whose_result_it_writes(begin, end, at_hard):
    assert calls_at(trace("a", "15", "705", teacher=slice(begin, end)), {"product"}) == [at_hard]


def test_the_figures_of_a_trained_student():
    alone, teacher, relay = [], [], []
    for i in range(10):
        a, b, c, d = (f"{n}{i}" for n in "abcd")
        alone += [trace(n, "15", "700" if n in (a, b) else "705", correct=n not in (a, b)) for n in (a, b, c, d)]
        teacher += [trace(n, "15", "705", correct=True) for n in (a, b, c, d)]
        relay += [
            trace(a, "15", "705", teacher=slice(15, 18), correct=True),
            trace(b, "15", "700"),  # it should have called
            trace(c, "15", "705", correct=True),
            trace(d, "15", "705", teacher=slice(5, 7), correct=True),  # a call that was not needed
        ]
    found = {m.name.split(",")[-1].strip(): m for m in measures(relay, alone, teacher, alone).itertuples()}
    assert found["relay"].value == 0.75
    assert found["teacher alone"].value == 1
    assert found["gap recovered"].value == 0.5
    assert found["teacher tokens of all tokens"].value == pytest.approx(5 / (4 * 20 + 2))
    assert found["of problems that it fails alone"].value == 0.5
    assert found["of problems that it solves alone"].value == 0.5
    assert found["calls at a hard step"].value == 0.5
    assert all(m.low <= m.value <= m.high for m in found.values())
    assert 0.25 < found["gap recovered"].low < 0.45
    assert 0.55 < found["gap recovered"].high < 0.75


def test_traces_of_other_problems_and_a_teacher_without_an_edge_are_refused():
    a, b = [trace("a", "15", "705", correct=True)], [trace("b", "15", "705", correct=True)]
    with pytest.raises(ValueError, match="same problems"):
        measures(a, a, b, a)
    with pytest.raises(ValueError, match="no gap"):
        measures(a, a, a, a)
