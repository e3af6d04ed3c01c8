"""The tables of a sweep: one row per finished point, and what each factor does, with intervals over seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from relaylab.evaluation.stats import RESAMPLES, Interval
from relaylab.sweep.plan import COLUMNS, Plan, Point, label
from relaylab.sweep.run import Store


def collect(plan: Plan, out: str | Path) -> pd.DataFrame:
    """Collect the finished points of a folder or URL into ``results.csv`` and ``results.parquet``.

    One row per point: key, levels, parameters, seed, version, commit, ``planned`` (whether it is of this plan and not
    of an earlier one), and the results. The order is the plan's, then the key's. There are no times in it. A result
    that is called as a setting of any point is ``result.NAME``.
    """
    store = Store(out)
    order = {point.key: i for i, point in enumerate(plan.points)}
    records = sorted(store.records().items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    settings = dict.fromkeys(name for _, record in records for name in record["levels"] | record["parameters"])
    columns, rows = list(dict.fromkeys(["key", *settings, *COLUMNS])), []
    for key, record in records:
        row = record["levels"] | record["parameters"] | {name: record.get(name) for name in COLUMNS}
        row |= {"key": key, "planned": key in order}
        row["seed"] = record["parameters"].get("seed") if row["seed"] is None else row["seed"]
        row |= {n if n not in columns else f"result.{n}": v for n, v in record["values"].items()}
        rows.append({name: _cell(value) for name, value in row.items()})
    columns += dict.fromkeys(name for row in rows for name in row if name not in columns)
    table = pd.DataFrame(rows, columns=columns)
    for name in table:
        # Parquet takes one type per column: lists, and texts among numbers, are written as JSON.
        kinds = {float if type(v) is int else type(v) for v in table[name] if not _missing(v)}
        if len(kinds) > 1 or kinds & {list, dict}:
            table[name] = [None if _missing(v) else label(v) for v in table[name]]
    table["seed"] = table["seed"].astype("Int64")  # whole numbers also where a point has none
    for name, write in {"results.parquet": table.to_parquet, "results.csv": table.to_csv}.items():
        data = io.BytesIO()
        write(data, index=False)
        store.write(name, data.getvalue())
    return table


def effects(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """What each level of each factor does, from the table of ``collect`` or of ``read_results``.

    One row per factor, level and result: mean, and difference to the factor's first level. A seed's value is its mean
    over the points of the level; the intervals are 95 % bootstrap over seeds, NaN with fewer than two. A difference
    compares points that differ in this factor alone.
    """
    names = _results(table)
    names = [name for name in plan.collect if name in names] or names
    points = _labelled(plan, table, names)
    rows = []
    for factor in (f for f, levels in plan.factors.items() if len(levels) > 1):
        others = [*(f for f in plan.factors if f != factor), "seed"]
        for name in names:
            wide = points.pivot_table(index=others, columns=factor, values=name, aggfunc="mean", observed=True)
            levels = [level for level in plan.factors[factor] if level in wide]
            for level in levels:
                own, seeds = _over_seeds(wide[level].dropna())
                change, _ = _over_seeds((wide[level] - wide[levels[0]]).dropna())
                rows.append(
                    {"factor": factor, "level": level, "result": name}
                    | {"points": int(wide[level].notna().sum()), "seeds": seeds}
                    | {"mean": own.value, "low": own.low, "high": own.high, "against": levels[0]}
                    | {"difference": change.value, "difference_low": change.low, "difference_high": change.high}
                )
    return pd.DataFrame(rows)


def plane(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """One row per combination of levels: mean and interval of the plan's two results, ``x`` and ``y``, over seeds.

    Empty if the notebook does not give both.
    """
    if not set(plan.plane) <= set(_results(table)) or not table["planned"].any():
        return pd.DataFrame()
    points, rows = _labelled(plan, table, list(dict.fromkeys(plan.plane))).assign(all=""), []
    for levels, group in points.groupby([*plan.factors, "all"], sort=False):
        row: dict[str, Any] = dict(zip(plan.factors, levels[:-1], strict=True))
        for axis, name in zip("xy", plan.plane, strict=True):
            mean, seeds = _over_seeds(group.set_index("seed")[name].dropna())
            row |= {axis: mean.value, f"{axis}_low": mean.low, f"{axis}_high": mean.high, "seeds": seeds}
        rows.append(row)
    return pd.DataFrame(rows)


def read_results(path: str | Path, *, collect: Sequence[str]) -> tuple[Plan, pd.DataFrame]:
    """Read a ``results.csv`` with one factor, away from its sweep's folder.

    Args:
        path: the file.
        collect: its results, columns of numbers.

    Returns:
        A plan that ``effects`` and ``plane`` take, and its planned rows. The factor is the first setting that varies;
        its levels are in the order of the file, an empty one is ``none``.

    Raises:
        ValueError: if it is no such table, has not these results or two rows of one key, or nothing in it varies.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "results.csv"
    >>> _ = file.write_text("key,beta,seed,planned,accuracy\\na,0.0,0,True,0.5\\nb,0.1,0,True,0.7\\n")
    >>> plan, table = read_results(file, collect=["accuracy"])
    >>> plan.factors, table["accuracy"].tolist()
    ({'beta': ['0.0', '0.1']}, [0.5, 0.7])
    """
    path, plane = Path(path), ("teacher_share", "accuracy")
    if not path.exists():
        raise ValueError(f"there is no file {path}; it is the results.csv of a sweep's folder")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # those of pandas' parsers are of this kind
        raise ValueError(f"{path} is no table ({error}); it must be the results.csv of a sweep's folder") from None
    wanted = list(dict.fromkeys((*collect, *(name for name in plane if name in table))))
    if missing := [name for name in ("key", "seed", "planned", *collect) if name not in table]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it must be a sweep's results.csv with {list(collect)}")
    table = table[table["planned"] == "True"].reset_index(drop=True)
    if (twice := table["key"].duplicated()).any():
        raise ValueError(f"{path} has the key {table['key'][twice].iloc[0]!r} twice; leave one row for each point")
    settings = [str(name) for name in table.loc[:, :"planned"] if name not in (*COLUMNS, "code", *wanted)]
    factor = next((name for name in settings if table[name].nunique() > 1), None)
    if factor is None:
        raise ValueError(f"nothing varies in the planned rows of {path}; a sweep compares at least two levels")
    table[factor] = table[factor].replace("", "none")
    table[wanted] = table[wanted].replace({"True": "1", "False": "0"}).apply(pd.to_numeric, errors="coerce")
    if empty := [name for name in collect if not table[name].notna().any()]:
        raise ValueError(f"the column {empty[0]!r} of {path} has no number in a planned row; collect another one")
    rows = zip(table["key"], table[factor], table["seed"], strict=True)
    try:  # an older file has seeds such as 1.0
        points = tuple(Point(key, {}, {factor: level}, _seed(seed) if seed else None) for key, level, seed in rows)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"a seed in {path} is no number ({error}); seeds are whole numbers, or empty") from None
    return Plan(path.stem, path, points, {factor: list(dict.fromkeys(table[factor]))}, tuple(collect), plane), table


def _cell(value: Any) -> Any:
    """What a table cannot hold as it is: integers of more than 64 bits, and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if type(value) is int and not -(2**63) <= value < 2**63:
        return float(value) if abs(value) < 2**1023 else str(value)
    return value


def _seed(text: str) -> int:
    """Exact, unlike a float: seeds may be large."""
    if (seed := Fraction(text)).denominator != 1:
        raise ValueError(text)
    return int(seed)


def _results(table: pd.DataFrame) -> list[str]:
    """The columns that are results and numbers: all results stand behind ``planned``."""
    results = [str(name) for name in table.loc[:, "planned":]][1:]
    return [n for n in results if pd.api.types.is_numeric_dtype(table[n]) and table[n].notna().any()]


def _labelled(plan: Plan, table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The plan's finished points: a column per factor with the level's name, the seed, and these results."""
    levels = [{"key": p.key, "seed": p.seed if p.seed is not None else 0, **p.levels} for p in plan.points]
    return pd.DataFrame(levels).merge(table[["key", *names]].astype(dict.fromkeys(names, float)), on="key")


def _over_seeds(values: pd.Series) -> tuple[Interval, int]:
    """The mean of one value per seed (an index level), and the number of seeds. Below two seeds, no interval."""
    seeds = values.groupby(level="seed").mean().to_numpy()
    mean = float(seeds.mean()) if len(seeds) else float("nan")
    low = high = mean if len(seeds) > 1 else float("nan")
    if len(seeds) > 1 and np.ptp(seeds):  # all resamples at once: a report has hundreds of intervals
        low, high = bootstrap((seeds,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    return Interval(mean, float(low), float(high)), len(seeds)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
