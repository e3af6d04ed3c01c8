"""Figures of an evaluation, from its table: one row per problem, method, student and sample.

A problem's value is the mean over students and samples. The bootstrap draws problems, so comparisons are paired.
Excluded answers (their teacher failed) are missing values: a pair with a missing half is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, wilcoxon

RESAMPLES = 2000
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval (percentile bootstrap over problems) and, of a paired test, its ``p``.

    One problem has no interval: its bounds are NaN.
    """

    value: float
    low: float
    high: float
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g}, {self.high:.3g})"


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The chance that one of k answers is right, unbiased from ``samples`` answers of which ``right`` are right.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, "Evaluating large language models trained on code", equation 1).

    >>> pass_at_k(1, 2, 1), pass_at_k(1, 2, 2), round(pass_at_k(2, 10, 3), 4)
    (0.5, 1.0, 0.5333)
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(f"{right} right of {samples} samples has no pass@{k}")
    return 1.0 - float(np.prod([(samples - right - i) / (samples - i) for i in range(k)]))


def columns(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """(problems, methods): each problem's mean of a column over students and samples; NaN if all were excluded."""
    if "excluded" in table:
        table = table.assign(**{value: table[value].where(table["excluded"] == 0)})
    methods = list(dict.fromkeys(table["method"]))
    wide = table.groupby(["id", "method"], sort=False)[value].mean().unstack("method").reindex(columns=methods)
    counts = table.groupby("method")["id"].nunique()
    if (counts != len(wide)).any():
        raise ValueError(f"the methods answered different problems: {counts.to_dict()}; evaluate them on the same")
    return wide.loc[list(dict.fromkeys(table["id"]))]


def interval(statistic: Callable[[np.ndarray], float], problems: int, *, seed: int = 0) -> Interval:
    """The statistic of an array of problem indices, with its bootstrap interval; NaN without any problem.

    The bounds of a single problem are NaN. Resamples in which it is NaN, as there is no gap in them, are left out.
    """
    if problems == 0:
        return Interval(NAN, NAN, NAN)
    every = np.arange(problems)
    value = float(statistic(every))
    if problems < 2 or np.isnan(value):
        return Interval(value, NAN, NAN)
    drawn = np.random.default_rng(seed).integers(0, problems, (RESAMPLES, problems))
    values = np.array([statistic(indices) for indices in drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(value, NAN, NAN)
    method = "linear" if np.isfinite(values).all() else "nearest"  # nothing lies between a number and infinity
    low, high = np.quantile(values, [0.025, 0.975], method=method)
    return Interval(value, min(float(low), value), max(float(high), value))


def _complete(*values: np.ndarray | pd.Series) -> list[np.ndarray]:
    """The arrays without the problems that miss a value in one of them."""
    arrays = np.array([np.asarray(v, dtype=float) for v in values])
    return list(arrays[:, ~np.isnan(arrays).any(axis=0)])


def mean(values: np.ndarray | pd.Series, *, seed: int = 0) -> Interval:
    """The mean of one value per problem."""
    (v,) = _complete(values)
    return interval(lambda i: v[i].mean(), len(v), seed=seed)


def paired(a: np.ndarray | pd.Series, b: np.ndarray | pd.Series, *, seed: int = 0) -> Interval:
    """The mean of a - b over problems; ``p`` is of Wilcoxon's signed-rank test, 1 if no problem differs.

    >>> paired(np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 1])).value
    0.25
    """
    x, y = _complete(a, b)
    result = mean(x - y, seed=seed)
    p, differences = 1.0, np.round(x - y, 12)  # of means over three students, equal ones differ in their last bits
    if np.any(differences):
        p = float(wilcoxon(differences).pvalue)  # pyright: ignore[reportAttributeAccessIssue] - scipy has no stub for it
    return Interval(result.value, result.low, result.high, p)


def share(part: np.ndarray | pd.Series, whole: np.ndarray | pd.Series, *, seed: int = 0) -> Interval:
    """The sum of ``part`` over the sum of ``whole``, such as teacher tokens of all tokens."""
    x, y = _complete(part, whole)
    return interval(lambda i: x[i].sum() / max(y[i].sum(), 1e-12), len(x), seed=seed)


def gap_recovered(method, student, teacher, *, seed: int = 0) -> Interval:
    """(method - student) / (teacher - student) of accuracies, where all three answered; NaN where there is no gap."""
    m, s, t = _complete(method, student, teacher)
    return interval(lambda i: part_of_gap(m[i].mean(), s[i].mean(), t[i].mean()), len(m), seed=seed)


def part_of_gap(method: float, student: float, teacher: float) -> float:
    """The same of three numbers.

    >>> part_of_gap(0.5, 0.25, 0.75), part_of_gap(0.5, 0.75, 0.75)
    (0.5, nan)
    """
    return (method - student) / (teacher - student) if teacher > student else NAN


def summary(
    table: pd.DataFrame, *, ks: Sequence[int] = (), student: str = "student", teacher: str = "teacher"
) -> pd.DataFrame:
    """One row per method: accuracy (pass@1 greedy, avg@k if sampled), pass@k, ratios, calls, gap recovered.

    Shares are in 0..1. ``low`` and ``high`` bound the accuracy, ``teacher_low`` and ``teacher_high`` the teacher's
    share of all tokens. ``problems`` counts those with an answer. ``gap`` lies between the methods ``student`` and
    ``teacher``.
    """
    if not len(table):
        raise ValueError("the table has no rows; evaluate at least one problem")
    accuracy, written, length = (columns(table, c) for c in ("correct", "teacher_tokens", "tokens"))
    means = {c: columns(table, c).mean() for c in ("call_ratio", "content_ratio", "calls", "tokens")}
    rows = []
    for name in dict.fromkeys(table["method"]):
        own = table[table["method"] == name]
        right, tokens = mean(accuracy[name]), share(written[name], length[name])
        groups = own[own["correct"].notna()].groupby(["id", "student"])["correct"].agg(["sum", "count"]).to_numpy(int)
        gap = Interval(NAN, NAN, NAN)
        if {student, teacher} <= set(accuracy):
            gap = gap_recovered(accuracy[name], accuracy[student], accuracy[teacher])
        row = {"method": name, "students": own["student"].nunique(), "samples": own["sample"].nunique()}
        row |= {"problems": int(accuracy[name].notna().sum())}
        row |= {"accuracy": right.value, "low": right.low, "high": right.high}
        for k in (k for k in ks if k <= row["samples"]):
            chances = [pass_at_k(int(c), n, k) for c, n in groups if n >= k]
            row[f"pass@{k}"] = np.mean(chances) if chances else NAN
        row |= {"teacher_share": tokens.value, "teacher_low": tokens.low, "teacher_high": tokens.high}
        row |= {column: values[name] for column, values in means.items()}
        row |= {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high}
        rows.append(row | {c: int(own[c].sum()) for c in ("excluded", "failed_calls") if c in own})
    return pd.DataFrame(rows)


def unsure_above(values: Sequence[float], posterior: float = 0.5) -> float:
    """A threshold without labels, as STEER has it (2511.06190).

    Two Gaussians are fitted by EM. It is the least value, from the lower mean on, that is of the higher one by
    ``posterior``.

    >>> rng = np.random.default_rng(0)
    >>> values = np.concatenate([rng.normal(0, 1, 4000), rng.normal(8, 1, 1000)])
    >>> 4 < unsure_above(values) < unsure_above(values, 0.9) < 4.6
    True
    """
    if not len(values):
        raise ValueError("there are no values to fit two Gaussians to; give at least one")
    x = np.sort(np.asarray(values, float))
    means, weights = np.quantile(x, [0.25, 0.95]), np.array([0.5, 0.5])
    floor = 1e-3 + 0.01 * x.std()
    sizes = np.full(2, x.std() + floor)
    for _ in range(300):
        joint = weights * norm.pdf(x[:, None], means, sizes) + 1e-300  # (N, 2)
        shares = joint / joint.sum(1, keepdims=True)
        weights = shares.mean(0)
        means = (shares * x[:, None]).sum(0) / shares.sum(0)
        sizes = np.sqrt((shares * (x[:, None] - means) ** 2).sum(0) / shares.sum(0)) + floor
    grid = np.linspace(means.min(), x[-1], 10_001)
    joint = weights * norm.pdf(grid[:, None], means, sizes) + 1e-300
    unsure = joint[:, means.argmax()] / joint.sum(1) > posterior
    return float(grid[unsure.argmax()]) if unsure.any() else float("inf")
