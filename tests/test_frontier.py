"""A system's settings as one frontier: its corners, its area, and the price of a part of the gap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaylab.evaluation.frontier import area, frontiers, hull, price
from relaylab.evaluation.method_map import family

POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(-0.5, 1.2)), max_size=8)


def mixed(points: list[tuple[float, float]], budget: float) -> float:
    """The slow reference: the best coin between any two settings, or the student alone, within a budget."""
    every, best = [(0.0, 0.0), *points], 0.0
    for x0, y0 in every:
        for x1, y1 in every:
            for p in (0.0, 1.0, *([(budget - x0) / (x1 - x0)] if x1 != x0 else [])):
                if 0 <= p <= 1 and (1 - p) * x0 + p * x1 <= budget + 1e-12:
                    best = max(best, (1 - p) * y0 + p * y1)
    return best


@given(POINTS, st.floats(0.01, 1))
def test_a_frontier_is_the_best_coin_between_two_settings(points, budget):
    corners = hull(points)
    assert np.interp(budget, *corners.T) == pytest.approx(mixed(points, budget), abs=1e-6)
    assert (np.diff(corners[:, 1]) > 0).all()


@given(POINTS, st.floats(0.02, 1))
def test_the_area_is_the_mean_over_budgets(points, limit):
    corners = hull(points)
    grid = np.linspace(0, limit, 20_001)[1:]  # a jump at 0 has no width
    assert area(corners, limit) == pytest.approx(np.interp(grid, *corners.T).mean(), abs=2e-3)


@given(POINTS, st.floats(0.05, 1))
def test_a_price_buys_its_part_of_the_gap(points, gap):
    corners = hull(points)
    share = price(corners, gap)
    assert np.isinf(share) == (corners[-1, 1] < gap)
    if np.isfinite(share) and share > 0:
        assert np.interp(share, *corners.T) >= gap - 1e-9


def test_the_frontiers_of_an_evaluation():
    """40 problems of 100 tokens: the student solves 10, the teacher 40; right answers and teacher tokens by method."""
    methods = {"student": (10, 0), "teacher": (40, 100), "relay:student=a": (34, 4), "student:student=c": (16, 0)}
    methods |= {"entropy:threshold=2": (16, 2), "entropy:threshold=1": (28, 8), "entropy:threshold=3": (13, 5)}
    rows = [
        {"id": str(i), "method": m, "student": m, "sample": 0, "correct": float(i < right), "tokens": 100}
        | {"teacher_tokens": written}
        for m, (right, written) in methods.items()
        for i in range(40)
    ]
    found = frontiers(pd.DataFrame(rows), family).set_index("family")
    assert found.index.tolist() == ["relay", "entropy", "plain GRPO", "teacher", "student"]
    # relay: 0.8 of the gap at 4 %; from 0 to 4 % half of that on average, then all of it
    assert found.loc["relay", "area"] == pytest.approx(0.8 * (0.4 * 0.5 + 0.6))
    assert found.loc["relay", "price_50"] == pytest.approx(0.025)
    # entropy: 0.2 at 2 %, 0.6 at 8 %; the line from 0 to 8 % passes 0.15 at 2 %, so both are corners
    assert found.loc["entropy", "price_50"] == pytest.approx(0.02 + 0.06 * 0.3 / 0.4)
    assert np.isinf(found.loc["entropy", "price_80"])
    assert found.loc["plain GRPO", "area"] == pytest.approx(0.2)
    assert found.loc["teacher", ["area", "price_50", "price_80"]].tolist() == pytest.approx([0.05, 0.5, 0.8])
    assert (found["area_low"] <= found["area"]).all()
    assert (found["area"] <= found["area_high"]).all()
    with pytest.raises(ValueError, match="no gap"):
        frontiers(pd.DataFrame(rows).query("method != 'teacher'").replace({"relay:student=a": "teacher"}).assign(
            correct=0.0), family)  # fmt: skip


def evaluated(right: dict[str, list[float]]) -> pd.DataFrame:
    """Right answers by method; the teacher writes all of its tokens, the relay a tenth."""
    written = {"student": 0, "teacher": 100, "relay": 10}
    rows = [
        {"id": str(i), "method": m, "student": m, "sample": 0, "correct": one, "tokens": 100}
        | {"teacher_tokens": written[m]}
        for m, values in right.items()
        for i, one in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_a_resample_without_a_gap_is_in_no_interval():
    """The teacher solves one problem of four more. Where it is not drawn there is no gap, and no frontier of 0."""
    right = {"student": [0, 0, 1, 1], "teacher": [1, 0, 1, 1], "relay": [1, 0, 1, 1]}
    found = frontiers(evaluated(right), str).set_index("family").loc["relay"]
    assert found[["area", "area_low", "area_high"]].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert found[["price_50", "price_50_low", "price_50_high"]].tolist() == pytest.approx([0.05, 0.05, 0.05])


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ({"student": [0, 1], "relay": [1, 1]}, "the table lacks the method 'teacher', an end of the gap; evaluate it"),
        ({"student": [0, 1], "teacher": [1, 1], "relay": [np.nan] * 2}, "answer of every method; leave out 'relay'"),
    ],
)
def test_a_table_without_a_frontier_is_refused(right, words):
    with pytest.raises(ValueError, match=words):
        frontiers(evaluated(right), str)
