"""Answers by their kind: what is right is accepted, what is wrong is not, and no text raises or hangs."""

from __future__ import annotations

import importlib.util
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaylab.tasks import answers, grading
from relaylab.tasks.answers import grade_problem, grade_problem_details, read_number, split_answers
from relaylab.tasks.grading import Grade
from relaylab.tasks.suites import Problem

ROOT = Path(__file__).parents[1]
SLACK = 15.0  # seconds that a busy machine may add to a bounded time


@pytest.fixture(scope="module")
def forms():
    """The script that makes the table of docs/grading.md."""
    spec = importlib.util.spec_from_file_location("grading_forms", ROOT / "benchmarks" / "grading_forms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problem(answer: str, kind: str, **more) -> Problem:
    return Problem("a", "mine", "?", answer, kind=kind, **more)


def right(written: str, answer: str, kind: str, **more) -> bool:
    return grade_problem(rf"So \boxed{{{written}}}.", problem(answer, kind, **more))


@pytest.mark.parametrize("kind", ["number", "letter", "text"])
def test_forms_are_graded_as_the_documentation_says(forms, kind):
    docs = (ROOT / "docs" / "grading.md").read_text()
    table = forms.rows([f for f in forms.FORMS if f[0]["kind"] == kind])
    assert len(table) > 10
    for row in table:
        assert forms.line(*row) in docs


@pytest.mark.parametrize(
    ("written", "answer", "kind", "expected"),
    [
        ("52_9", "52_8", "expression", False),
        ("6-5 i", "6 - 5i", "expression", True),
        ("1,1,3,16", "16,3,1,1", "several", True),
        ("16,3,1", "16,3,1,1", "several", False),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", "several", True),
        (r"x=2 \text{ or } x=1", "1,2", "several", True),
        (r"\sqrt{2} \times 10^{-19}", "2.88e-19", "number", False),
        (r"\frac{288}{100} \cdot 10^{-19}", "2.88e-19", "number", True),
    ],
)
def test_what_math_verify_alone_gets_wrong(written, answer, kind, expected):
    assert right(written, answer, kind) is expected


def test_overlapping_tolerances_are_paired_off():
    assert right("1.05, 1.2", "1.1, 1.0", "several", tolerance=0.1)  # 1.05 is near both, 1.2 near one
    assert not right("1.2, 1.15", "1.1, 1.0", "several", tolerance=0.1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-0.50", Fraction(-1, 2)),
        ("\u22125", -5),
        ("1,234,567", 1234567),
        (r"11,\! 111,\! 111,\! 100", 11111111100),
        (r"\frac{3}{6}", Fraction(1, 2)),
        (r"-\dfrac12", Fraction(-1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1e-3", Fraction(1, 1000)),
        (r"3.2\times10^{4}", 32000),
        ("10^{-2}", Fraction(1, 100)),
        (r"12.5\%", Fraction(1, 8)),
        (r"\text{5}", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("2x", None),
        ("5xy", None),
        ("5 pi", None),
        ("5 million", None),
        ("5 metres per second", 5),
        ("5 sqrt(2)", None),
        ("2^{10}", None),
        (r"1\frac{3}{4}", None),
        ("1, 2", None),
        ("", None),
        ("1e99999", None),
    ],
)
def test_read_number(text, value):
    assert read_number(text) == value


def test_split_answers():
    assert split_answers("(1,2), [3,4); {5}") == ["(1,2)", "[3,4)", "{5}"]
    assert split_answers("nor, band and Oregon") == ["nor", "band", "Oregon"]
    assert split_answers(r"(0,\pm 2)") == ["(0,2)", "(0,- 2)"]
    assert split_answers("") == []


def test_reasons():
    assert grade_problem_details("It is B.", problem("B", "letter")) == Grade(False, None, "no_box")
    assert grade_problem_details(r"\boxed{12 m}", problem("B", "letter")).reason == "unparsable"
    assert grade_problem_details(rf"\boxed{{{'9' * 3000}}}", problem("5", "number")).reason == "too_long"
    assert grade_problem_details(r"\boxed{B} or \boxed{C}", problem("B", "letter")).reason == "unequal"


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"a: unknown kind of answer 'essay'; it is one of expression, number"):
        grade_problem(r"\boxed{5}", problem("5", "essay"))


PIECES = [
    "9",
    "aaa",
    "a",
    "\\text{",
    "x_x=",
    "\\left",
    ",",
    "(",
    "\\pm",
    "1,",
    "5 kg",
    "\\ ",
    "~ ",
    " ",
    "e5",
    "\\circ",
    "$",
]


@pytest.mark.parametrize("begin", ["", "5", "x=", "\\text{", "A"])
@pytest.mark.parametrize("piece", PIECES)
def test_reading_an_answer_takes_no_time(piece, begin):
    written = begin + piece * (grading.MAX_LENGTH // len(piece)) + "!"
    start = time.process_time()
    read_number(written)
    split_answers(written)
    answers._letter(written, problem("B", "letter"))
    answers._text(written, problem("B", "text"))
    assert time.process_time() - start < 0.5


def test_several_hostile_answers_end(impatient):
    start = time.monotonic()
    hostile = ", ".join(rf"\sum_{{i=1}}^{{10^{{1{k}}}}} \frac{{1}}{{i^2}}" for k in range(10))
    assert not right(hostile, ", ".join(map(str, range(10))), "several")
    assert time.monotonic() - start < SLACK


def test_many_comparisons_have_a_bound_together(monkeypatch):
    monkeypatch.setattr(answers, "WALL_SECONDS", 0.0)
    assert grade_problem_details(r"\boxed{x+1, y+2}", problem("y+3, x+4", "several")).reason == "timeout"


def test_fuzzed_answers(forms, impatient):
    reasons, _ = forms.fuzz(400)
    assert sum(reasons.values()) == 400
    assert set(reasons) <= {"equal", "unequal", "no_box", "unparsable", "too_long", "timeout"}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=8), st.sampled_from(["number", "letter", "text"]))
def test_any_answer_against_any_reference(written, answer, kind):
    result = grade_problem_details(rf"\boxed{{{written}}}", problem(answer, kind))
    assert result.correct == (result.reason == "equal")
