"""The page of a sweep: what each factor does, one result against the other, failures, and the executed notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from relaylab.call_tag import visible
from relaylab.evaluation.table import each_row
from relaylab.sweep.notebook import DONE, FAILED
from relaylab.sweep.plan import Plan
from relaylab.sweep.results import effects, plane
from relaylab.sweep.run import Store
from relaylab.views.figures import error_bars, figure_names, figure_text
from relaylab.views.theme import OKABE_ITO, html_page, html_table, show_figure, with_alt_text

INTERVALS = (
    "<h2>What each factor does</h2><p>Means over the points of a level, and differences between points that differ in "
    "this factor alone. In brackets: 95 % bootstrap intervals over seeds. With two or three seeds they are too narrow; "
    "with one there are none.</p>"
)


def sweep_page(plan: Plan, table: pd.DataFrame, out: str | Path, failures: Mapping[str, dict] | None = None) -> str:
    """Write ``report.html`` and ``effects.csv`` into the folder or URL of a sweep.

    Args:
        plan: The sweep.
        table: Of ``collect``.
        out: Its folder or URL.
        failures: Of this run, by key; they may be missing in the folder, say on a full disk.

    Returns:
        The page's path or URL.
    """
    store, rows = Store(out), effects(plan, table)
    store.write("effects.csv", rows.to_csv(index=False))
    finished, failed = store.records(DONE), {**(failures or {}), **store.records(FAILED)}
    done = [p for p in plan.points if p.key in finished]
    bad = [p for p in plan.points if p.key in failed and p.key not in finished]
    name = plan.notebook.name
    parts = [
        f"<h1>{_text(plan.name)}</h1><p>{len(done)} of {len(plan.points)} points finished, {len(bad)} failed. "
        f"Notebook <code>{_text(name)}</code>.</p>"
    ]
    if len(rows):
        shown = rows[["factor", "level", "result", "points", "seeds"]].assign(
            mean=[_number(r.mean, r.low, r.high) for r in each_row(rows)],
            difference=[_number(r.difference, r.difference_low, r.difference_high) for r in each_row(rows)],
            to=rows["against"],
        )
        shown.loc[shown["level"] == shown["to"], "difference"] = ""
        parts += [INTERVALS, html_table(shown.astype(str)), *(show_figure(fig).html for fig in effect_figures(rows))]
    if len(corners := plane(plan, table)):
        parts.append(show_figure(plane_figure(plan, corners)).html)
    for title, points in (("Failures", bad), ("Finished points", done)):
        lines: list[dict[str, str]] = []  # of cells that are HTML already
        for p in points:
            levels = {_text(name): _text(level) for name, level in p.levels.items()}
            levels["seed"] = "" if p.seed is None else str(p.seed)
            record = finished.get(p.key) or failed[p.key]
            link = f'<a href="points/{p.key}/{quote(name)}">{p.key}</a>'
            last = f"{record['seconds']:.1f} s" if points is done else _failure(record)
            lines.append({"notebook": link} | levels | {"": last})
        parts += (
            [f"<h2>{title}</h2>", pd.DataFrame(lines).to_html(index=False, escape=False, border=0)] if lines else []
        )
    return store.write("report.html", html_page(plan.name, "".join(parts), "report.css"))


def effect_figures(rows: pd.DataFrame) -> list[go.Figure]:
    """One figure per factor and result of ``effects``: the mean of each level with its interval."""
    figures = []
    for keys, group in rows.groupby(["factor", "result"], sort=False):
        factor, result = map(str, keys)
        bars = error_bars("y", group["mean"], group["low"], group["high"])
        fig = px.scatter(x=group["level"].map(figure_names(group["level"], 40)), y=group["mean"], **bars)
        fig.update_traces(marker_size=10)
        fig.update_xaxes(title_text=figure_text(factor), type="category").update_yaxes(title_text=figure_text(result))
        means = "; ".join(f"{r.level}: {_number(r.mean, r.low, r.high)}" for r in each_row(group))
        alt = f"{visible(result)} by {visible(factor)}, with 95 % intervals over seeds. {visible(means)}."
        figures.append(with_alt_text(fig, alt, f"{figure_text(result)} by {figure_text(factor)}", height=380))
    return figures


def plane_figure(plan: Plan, corners: pd.DataFrame) -> go.Figure:
    """All combinations of levels in the plane of two results; the first factor has colours and shapes.

    Args:
        plan: The sweep.
        corners: Of ``plane``.
    """
    (x, y), first = plan.plane, next(iter(plan.factors), "")
    names = [", ".join(f"{f}={row[f]}" for f in plan.factors) for _, row in corners.iterrows()]
    frame = corners.assign(level=corners[first].map(figure_names(corners[first], 40)) if first else "all")
    x_bars, y_bars = (error_bars(a, frame[a], frame[f"{a}_low"], frame[f"{a}_high"]) for a in "xy")
    fig = px.scatter(
        frame, x="x", y="y", color="level", symbol="level", hover_name=[figure_text(name, 200) for name in names],
        color_discrete_sequence=OKABE_ITO,
        labels={"x": figure_text(x), "y": figure_text(y), "level": figure_text(first)},
        **x_bars, **y_bars,
    )  # fmt: skip
    alt = f"{y} against {x} of {len(frame)} combinations, means over seeds."
    for best in each_row(frame.assign(words=names).dropna(subset=["x", "y"]).nlargest(1, "y")):
        alt += f" Highest {y}: {best.y:.4g} at {best.x:.4g}, {best.words}."
    fig.update_traces(marker_size=10, showlegend=True)
    title = f"{figure_text(y)} against {figure_text(x)}"
    return with_alt_text(fig, visible(alt), title, height=520, legend={"y": -0.2, "yanchor": "top"})


def effects_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The ``effects`` of one factor as a table for people, in %: each result's mean, and its difference in points.

    >>> row = {"level": "b", "result": "accuracy", "mean": 0.5, "seeds": 2, "against": "a"}
    >>> row |= {"difference": -0.1, "difference_low": -0.2, "difference_high": 0.0}
    >>> effects_shown(pd.DataFrame([row])).loc["b"].tolist()
    ['50.0 (2 seeds)', '-10.0 (-20.0, +0.0)']
    """

    def difference(r: Any) -> str:
        points = [100 * v for v in (r.difference, r.difference_low, r.difference_high)]
        return "–" if r.level == r.against else "{:+.1f} ({:+.1f}, {:+.1f})".format(*points)

    columns = {}
    for name, group in rows.groupby("result", sort=False):  # a level may lack a result
        means = [f"{100 * r.mean:.1f} ({r.seeds} seeds)" for r in each_row(group)]
        columns[name, "%"] = pd.Series(means, group["level"])
        differences = [difference(r) for r in each_row(group)]
        columns[name, f"points against {group['against'].iloc[0]}"] = pd.Series(differences, group["level"])
    return pd.DataFrame(columns, index=list(dict.fromkeys(rows["level"]))).fillna("")


def _failure(record: Mapping[str, Any]) -> str:
    error = visible(record.get("error") or "", keep="\n\t")
    last = next((line for line in reversed(error.splitlines()) if line.strip()), "")
    return f"{_text(record['status'])}: {_text(last)}<details><pre>{_text(error)}</pre></details>"


def _number(value: float, low: float, high: float) -> str:
    if value != value:
        return ""
    return f"{value:.4g}" if low != low else f"{value:.4g} ({low:.4g}, {high:.4g})"


def _text(value: object) -> str:
    return html.escape(visible(str(value), keep="\n\t"))
