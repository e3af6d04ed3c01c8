"""Answers by their kind: what is right is accepted, what is wrong is not, and no text raises or hangs."""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from relaylab.tasks import verifier
from relaylab.tasks.compare import _as_set, _based, _brackets, _congruence, _letter, _named, _text, split_answers
from relaylab.tasks.grading import MAX_LENGTH, grade_details
from relaylab.tasks.normalise import normalise
from relaylab.tasks.quantities import read_quantity, read_unit, unit_ratio

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from grading_forms import fuzz, read_forms

SLACK = 15.0  # seconds that a busy machine may add to a bounded time


def right(written: str, answer: str, kind: str, **more) -> bool:
    return grade_details(rf"So \boxed{{{written}}}.", answer, kind=kind, **more).correct


KNOWN = {("(6,31,-1)", "P(6,31,-1)"), (r"(-\infty,-1)\cup(1,\infty)", "|x|>1")}  # right, and missed


@pytest.mark.parametrize(
    ("kind", "step", "count"),
    [
        ("number", 1, 230),
        ("several", 1, 50),
        ("letter", 1, 25),
        ("text", 1, 40),
        ("expression", 8, 50),
        pytest.param("expression", 1, 420, marks=pytest.mark.slow),
    ],
)
def test_ways_of_writing_are_graded_as_a_reader_would(kind, step, count):
    pairs = [pair for pair in read_forms() if pair.kind == kind][::step]
    assert len(pairs) > count
    assert {(p.answer, p.written) for p in pairs if p.grade().correct != p.right} <= KNOWN


def test_overlapping_tolerances_are_paired_off():
    assert right("1.05, 1.2", "1.1, 1.0", "several", tolerance=0.1)  # 1.05 is near both, 1.2 near one
    assert not right("1.2, 1.15", "1.1, 1.0", "several", tolerance=0.1)


@pytest.mark.parametrize(
    ("written", "answer", "equal"),
    [
        ("100,200", "100, 200", True),
        ("100, 200", "100,200", True),
        ("100,200,300", "300, 200, 100", True),
        ("100,200 and 300", "100, 200, 300", True),
        ("1,000,2,000", "1,000, 2,000", True),
        ("100,200", "(100, 200)", True),
        ("x = 100,200", "100, 200", True),
        ("100,200", "100200", True),
        ("100, 200", "100200", False),
        ("200, 1", "1,200", False),
        ("1 or 200", "1,200", False),
        ("0, 1", "1,000", False),
        ("100,200", "100, 201", False),
        ("100,200", "100, 20", False),
    ],
)
def test_a_comma_beside_a_list_is_that_of_a_list(written, answer, equal):
    for kind in ("expression", "several"):
        assert right(written, answer, kind) == equal


@pytest.mark.parametrize("written", ["1, 200", "200, 1", "1 and 200"])
def test_two_numbers_are_not_one_with_groups(written):
    assert not right(written, "1,200", "number")


@pytest.mark.parametrize("written", [r"90 \text{ min}", "90 min", r"x = 90\,\mathrm{min}.", "1 h 30 min"])
def test_minutes_are_a_unit_and_no_minimum(written):
    assert all(right(written, answer, "expression") for answer in ("90", "1.5 hours", "90 minutes"))
    assert right(written, "90", "number", unit="min")
    assert not right(written, "91 minutes", "expression")


@pytest.mark.parametrize(
    ("written", "answer", "equal"),
    [
        ("30 sec", "30", True),
        ("1 min 30 sec", "90 seconds", True),
        (r"9.8 \text{ m}/\text{sec}^2", "9.8", True),
        (r"\frac{3}{2} \text{ min}", "90 seconds", True),
        ("30 min", "30 seconds", False),
    ],
)
def test_short_names_of_times(written, answer, equal):
    assert right(written, answer, "expression") == equal


@pytest.mark.parametrize(
    ("written", "answer", "equal"),
    [
        ("1.6 km", "1600 m", True),
        ("2 kg", "2000 g", True),
        ("1000 mL", "1 L", True),
        ("10.8 km/h", "3 m/s", True),
        ("(1.6 km, 2 kg)", "(1600 m, 2000 g)", True),
        ("1600 km", "1600 m", False),
        ("3000 g", "3 m", False),
        ("3m", "3 m", True),  # the letter may be a variable
        ("m + 2m", "3 m", True),
        ("3", "3 m", False),
    ],
)
def test_a_letter_of_a_reference_is_a_unit_beside_a_known_unit(written, answer, equal):
    assert right(written, answer, "expression") == equal
    assert right(written, answer, "number") == equal


def test_a_percentage_whose_unit_stands_apart_is_asked_for_by_its_number():
    assert [right(written, "50", "number", unit="%") for written in ("50", r"50\%", "0.5")] == [True, True, False]
    assert [right(written, r"50\%", "number") for written in ("50", r"50\%", "0.5")] == [False, True, True]


QUANTITIES = {
    "-0.50": [Fraction(-1, 2)],
    r"-\frac{3}{6}": [Fraction(-1, 2)],
    "3/4": [Fraction(3, 4)],
    r"3.2\times 10^{4}": [32000],
    r"5 \times 1000000 dollars": [5000000],
    "10^{-2}": [Fraction(1, 100)],
    "3 hours 30 minutes": [Fraction(7, 2), 210],
    "5 metres per second": [5],
}
NONE = ["1/0", r"\frac{1}{0}", "2x", "5xy", r"5 \pi", r"5 \sqrt{2}", "2^{10}", "3 hours 30 cm", "1, 2", "", "1e99999"]


@pytest.mark.parametrize(("text", "values"), [*QUANTITIES.items(), *((text, None) for text in NONE)])
def test_read_quantity(text, values):
    quantity = read_quantity(text)
    assert (quantity and list(quantity.values)) == values


@pytest.mark.parametrize(
    ("written", "answer", "ratio"),
    [
        ("cm", "m", Fraction(1, 100)),
        (r"\text{square cm}", r"cm^2", 1),
        ("sq. in", r"\text{inches}^2", 1),
        ("km/h", r"\text{metres per second}", Fraction(1000, 3600)),
        ("cents", r"\$", Fraction(1, 100)),
        (r"\$", r"\text{dollars per month}", 1),
        ("m", "m/s", None),
        ("cm^2", "cm", None),
        ("%", r"^\circ", None),
        ("\u20ac", r"\$", None),
        ("apples", r"\text{red apples}", 1),
        ("apples", "oranges", None),
        ("apples", "cm", 1),
        ("", "cm", 1),
    ],
)
def test_units(written, answer, ratio):
    assert unit_ratio(read_unit(written), read_unit(answer)) == ratio


def test_split_answers():
    assert split_answers("(1,2), [3,4); {5}") == ["(1,2)", "[3,4)", "{5}"]
    assert split_answers("nor, band and Oregon") == ["nor", "band", "Oregon"]
    assert split_answers(r"(0,\pm 2)") == ["(0,2)", "(0,- 2)"]
    assert split_answers(r"1,\ldots,4") == ["1", "2", "3", "4"]
    assert split_answers(r"2,4,6,\ldots,2n") == ["2", "4", r"\ldots", "2n"]
    assert split_answers("") == []


PIECES = r"""
9 aaa a \text{ x_x= \left , ( \pm 1, 5_kg \ e5 \circ $ / { } \frac{ ^{-1} A_{} or_ where_ for_all_ answer_ \\[ 1_h_ 1_
** sqrt( x< \cup[1, \equiv base_ \dot{ million ... \{ . _
""".split()  # noqa: SIM905 - as a list it fills a screen


@pytest.mark.parametrize("begin", ["", "5", "\\text{"])
@pytest.mark.parametrize("piece", PIECES)
def test_reading_an_answer_takes_no_time(piece, begin):
    written = begin + piece.replace("_", " ") * (MAX_LENGTH // len(piece)) + "!"
    start = time.process_time()
    text = normalise(written)
    read_quantity(text)
    split_answers(text)
    for step in (_named, _congruence, _based, _brackets):
        step(text)
    _as_set(text, "(1, 2)")
    _letter(written, "B")
    _text(written, "B")
    assert time.process_time() - start < 1


def test_several_hostile_answers_end(impatient):
    start = time.monotonic()
    hostile = ", ".join(rf"\sum_{{i=1}}^{{10^{{1{k}}}}} \frac{{1}}{{i^2}}" for k in range(10))
    assert not right(hostile, ", ".join(map(str, range(10))), "several")
    assert time.monotonic() - start < SLACK


def test_many_comparisons_have_a_bound_together(monkeypatch):
    monkeypatch.setattr(verifier, "WALL_SECONDS", 0.0)
    assert grade_details(r"\boxed{x+1, y+2}", "y+3, x+4", kind="several").reason == "timeout"


def test_fuzzed_answers(impatient):
    reasons, _ = fuzz(400)
    assert sum(reasons.values()) == 400
    assert set(reasons) <= {"equal", "unequal", "no_box", "unparsable", "too_long", "timeout"}
