"""A sweep's table away from its sweep: what was measured earlier, for a lesson that shows it.

``results.csv`` of a sweep's folder can be copied to where neither the folder nor the code that made it is. ``effects``,
``plane`` and the figures of ``report`` take a plan; ``read_results`` makes one from the table. It plans nothing and
runs nothing: such a plan's keys are those of the code that measured, and its points have no parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from relaylab.sweep.plan import Plan, Point

NAMED = ("key", "seed", "code", "planned")


def read_results(
    path: str | Path, *, collect: Sequence[str], plane: tuple[str, str] = ("teacher_share", "accuracy")
) -> tuple[Plan, pd.DataFrame]:
    """The plan of a ``results.csv`` with one factor, as far as the table tells it, and its planned rows.

    The factor is the first column that varies; its levels are texts in the order of the file, an empty one ``none``.
    collect: the results to be shown, columns of numbers. plane: the two of them that span a picture.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "results.csv"
    >>> _ = file.write_text("key,beta,seed,code,planned,accuracy\\na,0.0,0,1,True,0.5\\nb,0.1,0,1,True,0.7\\n")
    >>> plan, table = read_results(file, collect=["accuracy"])
    >>> plan.factors, table["accuracy"].tolist()
    ({'beta': ['0.0', '0.1']}, [0.5, 0.7])

    Raises ValueError where it is no such table, has not the results, or nothing in it varies.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file {path}; it is the results.csv of a sweep's folder")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    wanted = list(dict.fromkeys((*collect, *(name for name in plane if name in table))))
    if missing := [name for name in (*NAMED, *collect) if name not in table]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it must be a sweep's results.csv with {list(collect)}")
    table = table[table["planned"] == "True"].reset_index(drop=True)
    factor = next((c for c in table if c not in (*NAMED, *wanted) and table[c].nunique() > 1), None)
    if factor is None:
        raise ValueError(f"nothing varies in the planned rows of {path}; a sweep compares at least two levels")
    table[factor] = table[factor].replace("", "none")
    table[wanted] = table[wanted].apply(pd.to_numeric, errors="coerce")
    rows = zip(table["key"], table[factor], table["seed"], strict=True)
    points = tuple(Point(key, {}, {factor: level}, int(seed) if seed else None) for key, level, seed in rows)
    levels = list(dict.fromkeys(table[factor]))
    code = ", ".join(dict.fromkeys(table["code"]))
    return Plan(path.stem, path, code, points, {factor: levels}, tuple(collect), plane), table


def effects_shown(found: pd.DataFrame) -> pd.DataFrame:
    """The ``effects`` of results that are shares, for people: in %, one row a level of the one factor.

    Of each result its mean, and the difference to the first level in points with its 95 % interval over seeds.

    >>> row = {"level": "b", "result": "accuracy", "mean": 0.5, "seeds": 2, "against": "a"}
    >>> row |= {"difference": -0.1, "difference_low": -0.2, "difference_high": 0.0}
    >>> effects_shown(pd.DataFrame([row])).loc["b"].tolist()
    ['50.0 (2 seeds)', '-10.0 (-20.0, +0.0)']
    """

    def difference(r) -> str:
        points = [100 * v for v in (r.difference, r.difference_low, r.difference_high)]
        return "–" if r.level == r.against else "{:+.1f} ({:+.1f}, {:+.1f})".format(*points)

    columns = {}
    for result, rows in found.groupby("result", sort=False):
        columns[result, "%"] = [f"{100 * r.mean:.1f} ({r.seeds} seeds)" for r in rows.itertuples()]
        columns[result, f"points against {rows['against'].iloc[0]}"] = [difference(r) for r in rows.itertuples()]
    return pd.DataFrame(columns, index=list(dict.fromkeys(found["level"])))
