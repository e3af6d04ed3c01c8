"""What a system's settings reach together: accuracy against teacher tokens as an area, and as the price of a part.

A coin between two settings reaches every point between them. So the frontier of a system is the upper concave hull of
its settings, from the student alone on. The teacher by itself is such a system: the random router.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from relaylab.evaluation.stats import columns

RESAMPLES = 1000


def hull(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """The frontier of (teacher share, gap recovered) points: (V, 2), from (0, 0) to the highest point.

    >>> hull([(0.1, 0.5), (0.02, 0.1), (0.05, 0.4), (0.2, 0.3)]).tolist()
    [[0.0, 0.0], [0.05, 0.4], [0.1, 0.5]]
    """
    corners = [(0.0, 0.0)]
    for x, y in sorted(points):
        if y <= corners[-1][1]:  # no more for more tokens
            continue
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (x1 - x0) * (y - y0) < (y1 - y0) * (x - x0):
                break
            corners.pop()  # it lies below the line of its neighbours
        corners.append((x, y))
    return np.array(corners)


def area(corners: np.ndarray, limit: float) -> float:
    """The mean gap recovered over all budgets of teacher tokens from 0 to ``limit``.

    >>> round(area(hull([(0.05, 0.4)]), 0.1), 3)
    0.3
    """
    inside = corners[corners[:, 0] < limit]
    x, y = np.append(inside[:, 0], limit), np.append(inside[:, 1], np.interp(limit, *corners.T))
    return float(np.trapezoid(y, x) / limit)


def price(corners: np.ndarray, gap: float) -> float:
    """The share of teacher tokens at which so much of the gap is recovered; infinite where it never is.

    >>> price(hull([(0.05, 0.4)]), 0.2), price(hull([(0.05, 0.4)]), 0.5)
    (0.025, inf)
    """
    return float(np.interp(gap, corners[:, 1], corners[:, 0])) if corners[-1, 1] >= gap else float("inf")


def frontiers(
    table: pd.DataFrame, family: Callable[[str], str], *, limit: float = 0.1, gaps: Sequence[float] = (0.5, 0.8)
) -> pd.DataFrame:
    """One row for each family of methods, with 95 % intervals (percentile bootstrap over problems, the same for all).

    Args:
        table: of ``evaluate``, with the methods ``student`` and ``teacher``.
        family: of a method; its settings are one frontier.
        limit: the largest budget of the area, a share of all tokens.
        gaps: parts of the gap whose price is given.

    Returns:
        ``family``, ``area``, ``price_50`` and so on, each with ``_low`` and ``_high``; the largest area first.

    Raises:
        ValueError: without the student or the teacher, where no problem has an answer of every method, and where the
            teacher is not better than the student.
    """
    right, written, length = (columns(table, name) for name in ("correct", "teacher_tokens", "tokens"))
    if lacking := {"student", "teacher"} - set(right):
        raise ValueError(f"the table lacks the method {min(lacking)!r}, an end of the gap; evaluate it, too")
    known = right.notna().all(axis=1)
    if not (n := int(known.sum())):
        least = right.notna().sum().idxmin()
        raise ValueError(f"no problem has an answer of every method; leave out {least!r}, or evaluate it again")
    # 1) Every problem once, then as often as it is drawn: (resamples, problems).
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    counts = np.vstack([np.ones(n), drawn])
    accuracy = pd.DataFrame(counts @ right[known].to_numpy() / n, columns=right.columns)
    tokens = counts @ written[known].to_numpy(), counts @ length[known].to_numpy()
    shares = pd.DataFrame(tokens[0] / tokens[1], columns=right.columns)
    missing = accuracy["teacher"] - accuracy["student"]
    if missing[0] <= 0:
        raise ValueError("the teacher is not better than the student; there is no gap to recover")
    has_gap = missing > 0  # a resample without one is in no interval
    recovered = accuracy.sub(accuracy["student"], axis=0).div(missing, axis=0)
    # 2) The figures of each family's frontier, in each of them.
    rows = []
    for name in dict.fromkeys(map(family, right.columns)):
        own = [method for method in right.columns if family(method) == name]
        points = np.stack([shares.loc[has_gap, own], recovered.loc[has_gap, own]], axis=-1)  # (resamples, methods, 2)
        found = [hull([tuple(point) for point in some]) for some in points]
        figures = {"area": [area(corners, limit) for corners in found]}
        figures |= {f"price_{100 * gap:.0f}": [price(corners, gap) for corners in found] for gap in gaps}
        row: dict[str, object] = {"family": name}
        for figure, values in figures.items():
            low, high = np.quantile(values[1:], [0.025, 0.975], method="nearest")
            row |= {figure: values[0], f"{figure}_low": low, f"{figure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("area", ascending=False, kind="stable", ignore_index=True)
