"""The scorecard's arithmetic, on a table small enough to reckon by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from relaylab.training.run import read_config

from relaylab.evaluation.published import Measured, claims, scorecard
from relaylab.evaluation.scorecard import Names, measured
from relaylab.tasks.suites import SUITES
from relaylab.zoo.recipes import SIX

LEVELS = ["easy"] * 20 + ["hard"] * 20


def rows(method, right, ratio, student="", levels=LEVELS):
    return pd.DataFrame(
        {
            "method": method,
            "student": student,
            "sample": 0,
            "id": [f"p{i}" for i in range(40)],
            "level": levels,
            "suite": levels,
            "correct": [float(x) for x in right],
            "call_ratio": ratio,
        }
    )


@pytest.fixture
def table():
    easy, half, none = [1] * 20, [1] * 10 + [0] * 10, [0] * 20
    return pd.concat(
        [
            rows("student", easy + none, 0.0),
            rows("teacher", easy + easy, 1.0),
            rows("relay", easy + half, 0.1, "a"),
            rows("relay", easy + easy, 0.1, "b"),  # a second seed: it solves all
            rows("teacher-free", easy + none, 0.0),
            rows("grpo", half + none, 0.0),
            rows("fixed", easy + half, 0.3),
        ]
    )


def test_every_claim_has_an_answer_and_the_figures_are_the_definitions(table):
    found = measured(table)
    assert set(found) == {c.id for c in claims()}
    # relay: 20 easy right, of the hard ones 10 by both students and 10 by one: (20 + 10 + 5) / 40
    assert found["gap-recovered"].value == pytest.approx(75.0)  # (87.5 - 50) / (100 - 50)
    assert found["relay-above-grpo"].value == pytest.approx(87.5 - 25)
    assert found["grpo-above-base"].value == pytest.approx(-25.0)
    assert found["router-resource"].value == pytest.approx(87.5 - 50 - 0.1 * 50)
    assert found["router-cost"].value == pytest.approx(100 * (1 - 0.1 / 0.75))
    assert found["free-easy"].value == pytest.approx(50.0)
    assert found["free-hard"].value == pytest.approx(75.0)
    assert found["length-accuracy"].value == pytest.approx(87.5 - 75)
    assert found["length-ratio"].value == pytest.approx(20.0)
    assert "2 students of relay" in found["relay-above-grpo"].note
    assert found["grpo-above-base"].verdict == "does not"
    for name, told in (("filter-accuracy", "relay-no-filter"), ("swap-peak", "relay:teacher=teacher-large"),
                       ("transfer-base", "relay:student=relay-six")):  # fmt: skip
        assert told in found[name]


def test_a_peak_is_over_the_best_of_the_other_teachers(table):
    """relay: 87.5 % right. Of the others the weakest is right in none, the larger in 75 %, the smaller in 80 %."""
    swaps = [
        rows("relay:teacher=student", [0] * 40, 0.1),
        rows("relay:teacher=teacher-large", [1] * 30 + [0] * 10, 0.1),
        rows("relay:teacher=teacher-small", [0] * 8 + [1] * 32, 0.1),
    ]
    peak = measured(pd.concat([table, *swaps]))["swap-peak"]
    assert peak.value == pytest.approx(87.5 - 80)
    assert peak.low < 7.5 < peak.high


def test_transfer_counts_the_suites_that_training_never_saw(table):
    seen, new = ["savings"] * 20, ["sharing"] * 5 + ["convoy"] * 5 + ["harvest"] * 10
    table = pd.concat(
        [
            rows("student", [1] * 20 + [0] * 20, 0.0),
            rows("relay:student=relay-six", [0] * 20 + [1] * 15 + [0] * 5, 0.1),
            rows("grpo:student=grpo-six", [1] * 20 + [1] * 5 + [0] * 15, 0.0),
        ]
    ).assign(suite=(seen + new) * 3)
    found = measured(table)
    assert found["transfer-base"].value == pytest.approx(75.0)
    assert found["transfer-grpo"].value == pytest.approx(50.0)
    assert "20 problems" in found["transfer-base"].note


def test_the_unseen_suites_are_those_that_these_students_do_not_have_in_their_settings():
    for name in ("relay-six", "grpo-six"):
        assert set(read_config(f"embedded/{name}")["suites"]) == set(SUITES) - set(Names().unseen) == set(SIX)


def test_the_interval_is_of_pairs(table):
    """20 of 40 problems differ by 1 or 0.5: the spread is that of the differences."""
    gap = measured(table)["free-hard"]
    assert isinstance(gap, Measured)
    assert 100 * 0.5 < gap.low < 75 < gap.high < 100
    card = scorecard(measured(table)).set_index("id")
    assert card.loc["relay-above-grpo", "verdict"] == "holds"
    assert card.loc["swap-peak", "verdict"] == "not testable here"
