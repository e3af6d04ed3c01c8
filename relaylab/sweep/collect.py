"""The folder of a sweep to tables: every finished point a row; and what each factor does, with intervals over seeds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from relaylab.evaluation.stats import RESAMPLES, Interval
from relaylab.sweep.plan import Plan, label
from relaylab.sweep.store import store_at


def collect(plan: Plan, out: str | Path) -> pd.DataFrame:
    """Every finished point of a folder or URL, written to ``results.parquet`` and ``results.csv`` and returned.

    One row a point: key, levels of lists and zips, parameters, seed, code version, ``planned`` (whether it is of this
    plan, and not of an earlier one or of other code), and the notebook's results. The plan's order, then the rest by
    key. No times: the same sweep gives the same files on any machine that computes the same.
    """
    store = store_at(out)
    order = {point.key: i for i, point in enumerate(plan.points)}
    found = sorted(store.records("points"), key=lambda r: (order.get(r["key"], len(order)), r["key"]))
    rows = []
    for record in found:
        row = {"key": record["key"]} | record["levels"] | record["parameters"]
        row |= {"seed": record["seed"], "code": record["code"], "planned": record["key"] in order}
        rows.append(row | {name if name not in row else f"result.{name}": v for name, v in record["values"].items()})
    table = pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)) or ["key"])
    for name in table:
        # A column of one type is what parquet holds: lists, and texts among numbers, are written as JSON.
        if table[name].map(lambda v: isinstance(v, list | dict)).any() or _mixed(table[name]):
            table[name] = [None if _missing(v) else label(v) for v in table[name]]
    for name, write in {"results.parquet": table.to_parquet, "results.csv": table.to_csv}.items():
        data = io.BytesIO()
        write(data, index=False)
        store.write(name, data.getvalue())
    return table


def numbers(plan: Plan, table: pd.DataFrame) -> list[str]:
    """The results that are numbers: those that the plan collects, or all."""
    settings = {"key", "seed", "code", "planned", *plan.factors}
    settings |= {name for point in plan.points for name in point.parameters}
    names = [n for n in plan.collect if n in table] or [n for n in table if n not in settings]
    return [n for n in names if pd.api.types.is_numeric_dtype(table[n]) and table[n].notna().any()]


def labelled(plan: Plan, table: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """The plan's finished points with a column for each factor's level (a text), the seed and these results."""
    levels = [{"key": p.key, "seed": p.seed if p.seed is not None else 0, **p.levels} for p in plan.points]
    return pd.DataFrame(levels).merge(table[["key", *values]].astype(dict.fromkeys(values, float)), on="key")


def effects(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """One row a factor, level and result: the mean, and the difference to the factor's first level, with intervals.

    A seed's value is its mean over the points of that level; 95 % percentile bootstrap over seeds, NaN with fewer
    than two. ``difference`` compares points that differ in this factor alone, NaN where there are none.
    """
    values = numbers(plan, table)
    points = labelled(plan, table, values)
    rows = []
    for factor in (f for f, levels in plan.factors.items() if len(levels) > 1):
        others = [*(f for f in plan.factors if f != factor), "seed"]
        for value in values:
            wide = points.pivot_table(index=others, columns=factor, values=value, aggfunc="mean", observed=True)
            first = next((x for x in plan.factors[factor] if x in wide), None)
            for level in (x for x in plan.factors[factor] if x in wide):
                own = over_seeds(wide[level].dropna())
                change = over_seeds((wide[level] - wide[first]).dropna())
                rows.append(
                    {"factor": factor, "level": level, "result": value}
                    | {"points": int(wide[level].notna().sum()), "seeds": own[1]}
                    | {"mean": own[0].value, "low": own[0].low, "high": own[0].high, "against": first}
                    | {"difference": change[0].value, "difference_low": change[0].low}
                    | {"difference_high": change[0].high}
                )
    return pd.DataFrame(rows)


def plane(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """One row a combination of levels: mean and interval over seeds of ``plan.plane``'s two results, ``x`` and ``y``.

    Empty where the notebook does not give both.
    """
    if not set(plan.plane) <= set(table.columns) or not table["planned"].any():
        return pd.DataFrame()
    points, rows = labelled(plan, table, list(dict.fromkeys(plan.plane))).assign(all=""), []
    for levels, group in points.groupby([*plan.factors, "all"], sort=False):
        row: dict[str, Any] = dict(zip(plan.factors, levels[:-1], strict=True))
        for axis, value in zip("xy", plan.plane, strict=True):
            found, seeds = over_seeds(group.set_index("seed")[value].dropna())
            row |= {axis: found.value, f"{axis}_low": found.low, f"{axis}_high": found.high, "seeds": seeds}
        rows.append(row)
    return pd.DataFrame(rows)


def over_seeds(values: pd.Series) -> tuple[Interval, int]:
    """The mean of one value a seed, and how many seeds; the index has a level ``seed``. No interval below two seeds.

    >>> over_seeds(pd.Series([0.5, 0.7], index=pd.Index([0, 0], name="seed")))
    (Interval(value=0.6, low=nan, high=nan, p=None), 1)
    """
    seeds = values.groupby(level="seed").mean().to_numpy()
    if len(seeds) < 2:
        value = float(seeds[0]) if len(seeds) else float("nan")
        return Interval(value, float("nan"), float("nan")), len(seeds)
    if np.ptp(seeds) == 0:
        return Interval(float(seeds[0]), float(seeds[0]), float(seeds[0])), len(seeds)
    # All resamples at once: a report has hundreds of these.
    found = bootstrap((seeds,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    return Interval(float(seeds.mean()), float(found.low), float(found.high)), len(seeds)


def summary(plan: Plan, table: pd.DataFrame, failures: Mapping[str, Any]) -> str:
    """One line: how much of the plan is there.

    >>> summary(Plan("rewards", Path("n.ipynb"), "1", (), {}), pd.DataFrame({"planned": [True]}), {})
    'rewards: 1 of 0 points finished, 0 failed'
    """
    done = int(table["planned"].sum()) if "planned" in table else 0
    return f"{plan.name}: {done} of {len(plan.points)} points finished, {len(failures)} failed"


def _mixed(column: pd.Series) -> bool:
    kinds = {type(v) for v in column if not _missing(v)}
    return len(kinds - {int, float}) + bool(kinds & {int, float}) > 1


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
