"""Figures of an evaluation, from its table: one row a problem, method, student and sample.

Everything is a mean over problems. Where a method was run by several students (say, one a training seed) or several
times (avg@k), a problem's value is the mean of those; the bootstrap draws problems, so that a comparison of two methods
is paired: they answered the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, wilcoxon

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % interval (percentile bootstrap over problems); ``p`` of a paired test, where it was one."""

    value: float
    low: float
    high: float
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g}, {self.high:.3g})"


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The chance that one of k answers is right, unbiased from ``samples`` answers of which so many are right.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, "Evaluating large language models trained on code", equation 1).

    >>> pass_at_k(1, 2, 1), pass_at_k(1, 2, 2), round(pass_at_k(2, 10, 3), 4)
    (0.5, 1.0, 0.5333)

    Raises ValueError unless 0 <= right <= samples and 1 <= k <= samples.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(f"{right} right of {samples} samples has no pass@{k}")
    return 1.0 - float(np.prod([(samples - right - i) / (samples - i) for i in range(k)]))


def columns(table: pd.DataFrame, value: str, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """(problems, methods): each problem's mean of a column over students and samples.

    Raises ValueError for a method that the table has not, and where two methods answered different problems.
    """
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    if missing := [m for m in methods if m not in set(table["method"])]:
        raise ValueError(f"the table has no method {missing[0]!r}; it has {', '.join(dict.fromkeys(table['method']))}")
    chosen = table[table["method"].isin(methods)]
    wide = chosen.pivot_table(index="id", columns="method", values=value, aggfunc="mean", sort=False)[methods]
    counts = chosen.groupby("method")["id"].nunique()
    if (counts != len(wide)).any():
        raise ValueError(f"the methods answered different problems: {counts.to_dict()}; evaluate them on the same")
    return wide


def interval(statistic: Callable[[np.ndarray], float], problems: int, *, seed: int = 0) -> Interval:
    """The statistic of an array of problem indices, with its bootstrap interval."""
    every = np.arange(problems)
    value = float(statistic(every))
    if problems < 2:
        return Interval(value, value, value)
    found = bootstrap((every,), statistic, n_resamples=RESAMPLES, method="percentile", vectorized=False, rng=seed)
    low, high = found.confidence_interval
    return Interval(value, float(low), float(high))


def mean(values: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean of one value a problem."""
    values = np.asarray(values, dtype=float)
    return interval(lambda i: values[i].mean(), len(values), seed=seed)


def paired(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean of a - b over problems; ``p`` of Wilcoxon's signed-rank test, 1 where no problem differs.

    >>> paired(np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 1])).value
    0.25
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    found = mean(difference, seed=seed)
    p = float(wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    return Interval(found.value, found.low, found.high, p)


def share(top: np.ndarray, below: np.ndarray, *, seed: int = 0) -> Interval:
    """The sum of ``top`` over that of ``below``, say teacher tokens of all tokens."""
    top, below = np.asarray(top, dtype=float), np.asarray(below, dtype=float)
    return interval(lambda i: top[i].sum() / max(below[i].sum(), 1e-12), len(top), seed=seed)


def gap_recovered(method: np.ndarray, student: np.ndarray, teacher: np.ndarray, *, seed: int = 0) -> Interval:
    """(method - student) / (teacher - student) of accuracies. ValueError where the teacher is not above the student."""
    m, s, t = (np.asarray(x, dtype=float) for x in (method, student, teacher))
    if t.mean() <= s.mean():
        raise ValueError("the teacher is not better than the student; there is no gap to recover")

    def gap(i: np.ndarray) -> float:
        return (m[i].mean() - s[i].mean()) / max(t[i].mean() - s[i].mean(), 1e-12)

    return interval(gap, len(m), seed=seed)


def summary(table: pd.DataFrame, *, ks: Sequence[int] = (), student: str = "student", teacher: str = "teacher"):
    """One row a method: accuracy (pass@1 greedy, avg@k where sampled), pass@k of ``ks``, ratios, calls, gap recovered.

    All shares are in 0..1; ``low`` and ``high`` bound the accuracy, ``teacher_low`` and ``teacher_high`` the teacher's
    share of all tokens. ``gap`` is NaN without the methods ``student`` and ``teacher`` in the table.
    """
    accuracy, written, length = (columns(table, c) for c in ("correct", "teacher_tokens", "tokens"))
    ratio, content, calls = (columns(table, c) for c in ("call_ratio", "content_ratio", "calls"))
    known = student in accuracy and teacher in accuracy and accuracy[teacher].mean() > accuracy[student].mean()
    rows = []
    for name in accuracy:
        right, tokens = mean(accuracy[name]), share(written[name], length[name])
        mine = table[table["method"] == name]
        groups = mine.groupby(["id", "student"])["correct"]
        gap = gap_recovered(accuracy[name], accuracy[student], accuracy[teacher]) if known else None
        rows.append(
            {
                "method": name,
                "students": mine["student"].nunique(),
                "samples": mine["sample"].nunique(),
                "problems": len(accuracy),
                "accuracy": right.value,
                "low": right.low,
                "high": right.high,
                **{
                    f"pass@{k}": float(np.mean([pass_at_k(int(g.sum()), len(g), k) for _, g in groups]))
                    for k in ks
                    if k <= mine["sample"].nunique()
                },
                "teacher_share": tokens.value,
                "teacher_low": tokens.low,
                "teacher_high": tokens.high,
                "call_ratio": ratio[name].mean(),
                "content_ratio": content[name].mean(),
                "calls": calls[name].mean(),
                "tokens": length[name].mean(),
                "gap": gap.value if gap else float("nan"),
                "gap_low": gap.low if gap else float("nan"),
                "gap_high": gap.high if gap else float("nan"),
            }
        )
    return pd.DataFrame(rows)
