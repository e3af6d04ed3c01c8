"""The page of a sweep: what each factor does, accuracy against the teacher's share, failures, and every notebook.

It reads the folder of a sweep and runs nothing. The page holds plotly.js and needs no network; what notebooks and
models wrote is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from relaylab.sweep.collect import effects, plane
from relaylab.sweep.plan import Plan
from relaylab.sweep.point import Outcome
from relaylab.sweep.store import store_at
from relaylab.views import theme
from relaylab.views.figures import plain
from relaylab.views.trace_view import visible

theme.register_templates()

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x", "cross", "star", "pentagon", "hexagon")
STYLE = (
    "body{font:15px/1.5 var(--rl-sans);background:var(--rl-paper);color:var(--rl-ink);max-width:1100px;margin:2em auto;"
    "padding:0 1em}a{color:inherit}table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:left;"
    "border-bottom:1px solid var(--rl-line);vertical-align:top}pre{white-space:pre-wrap;overflow-wrap:anywhere;"
    "background:var(--rl-panel);padding:.6em;font:12px/1.45 var(--rl-mono)}"
)


def report(
    plan: Plan, table: pd.DataFrame, out: str | Path, failures: Mapping[str, Outcome] | None = None
) -> Path | str:
    """Write ``report.html`` and ``effects.csv`` into the folder of a sweep, or to its URL; the page.

    table: of ``collect``. failures: of this run, by key, for those that could not be written to the folder.
    """
    store, found = store_at(out), effects(plan, table)
    store.write("effects.csv", found.to_csv(index=False).encode())
    finished = {r["key"]: r for r in store.records("points")}
    failed = {r["key"]: r for r in store.records("failed")}
    unwritten = {k: {"status": o.status, "error": o.error} for k, o in (failures or {}).items() if k not in failed}
    bad = [p for p in plan.points if p.key not in finished and p.key in failed | unwritten]
    done = [p for p in plan.points if p.key in finished]
    parts = [
        f"<h1>{_text(plan.name)}</h1>",
        f"<p>{len(done)} of {len(plan.points)} points finished, {len(bad)} failed. Notebook "
        f"<code>{_text(plan.notebook.name)}</code>, code <code>{_text(plan.code)}</code>.</p>",
    ]
    if len(found):
        parts += [
            "<h2>What each factor does</h2><p>Means over the points of a level, and differences between points that "
            "differ in this factor alone. In brackets: 95 % intervals from a bootstrap over seeds; of two or three "
            "seeds they tell the spread and are narrower than the truth. One seed has no interval.</p>",
            _effects_table(found),
            *(theme.show_figure(f).html for f in effect_figures(found)),
        ]
    corners = plane(plan, table)
    if len(corners):
        parts.append(theme.show_figure(plane_figure(plan, corners)).html)
    if bad:
        rows = [
            (
                _text(_named(p.levels)),
                _text("" if p.seed is None else p.seed),
                _failure(plan, p.key, failed | unwritten),
            )
            for p in bad
        ]
        parts += ["<h2>Failures</h2>", _table(("point", "seed", "what happened"), rows)]
    rows = [
        (
            f'<a href="points/{p.key}/{_text(plan.notebook.name)}">{p.key}</a>',
            *(_text(p.levels[f]) for f in plan.factors),
            _text("" if p.seed is None else p.seed),
            f"{finished[p.key]['seconds']:.1f}",
        )
        for p in done
    ]
    parts += ["<h2>Finished points</h2>", _table(("notebook", *map(_text, plan.factors), "seed", "seconds"), rows)]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>relaylab: {_text(plan.name)}</title><style>{theme.page_css('body')}{STYLE}</style>"
        f"{theme.load_plotly().html}<body>{''.join(parts)}</body></html>"
    )
    return store.write("report.html", page.encode())


def effect_figures(found: pd.DataFrame) -> list[go.Figure]:
    """One figure a factor and result: the mean of each level, with its interval."""
    figures = []
    for (factor, result), rows in found.groupby(["factor", "result"], sort=False):
        fig = go.Figure()
        fig.add_scatter(
            x=[plain(level, 40) for level in rows["level"]],
            y=rows["mean"],
            mode="markers",
            marker={"size": 10, "color": theme.OKABE_ITO[0]},
            error_y=_bars(rows, "mean", "low", "high"),
        )
        told = "; ".join(f"{r.level}: {_number(r.mean, r.low, r.high)}" for r in rows.itertuples())
        fig.update_layout(
            template="relaylab",
            meta={"alt": f"{visible(result)} by {visible(factor)}, with 95 % intervals over seeds. {visible(told)}."},
            title_text=f"{plain(result)} by {plain(factor)}",
            xaxis={"title_text": plain(factor), "type": "category"},
            yaxis_title_text=plain(result),
            height=380,
        )
        figures.append(fig)
    return figures


def plane_figure(plan: Plan, corners: pd.DataFrame) -> go.Figure:
    """Every combination of levels in the plane of two results, the first factor told apart by colour and shape."""
    fig, first = go.Figure(), next(iter(plan.factors), None)
    groups = corners.groupby(first, sort=False) if first else [("all", corners)]
    for i, (level, rows) in enumerate(groups):
        names = [_named(r[list(plan.factors)]) for _, r in rows.iterrows()]
        fig.add_scatter(
            x=rows["x"],
            y=rows["y"],
            mode="markers",
            name=plain(level, 40),
            hovertext=[plain(name, 200) for name in names],
            hovertemplate="%{hovertext}<br>%{y:.4g} at %{x:.4g}<extra></extra>",
            marker={"size": 10, "symbol": SYMBOLS[i % len(SYMBOLS)], "color": theme.OKABE_ITO[i % 7]},
            error_x=_bars(rows, "x", "x_low", "x_high"),
            error_y=_bars(rows, "y", "y_low", "y_high"),
        )
    x, y = plan.plane
    best = corners.loc[corners["y"].idxmax()]
    name = _named(best[list(plan.factors)])
    fig.update_layout(
        template="relaylab",
        meta={
            "alt": f"{visible(y)} against {visible(x)} of {len(corners)} combinations, means over seeds. The highest "
            f"{visible(y)}: {best['y']:.4g} at {best['x']:.4g}, {visible(name)}."
        },
        title_text=f"{plain(y)} against {plain(x)}",
        xaxis_title_text=plain(x),
        yaxis_title_text=plain(y),
        legend_title_text=plain(first or ""),
        showlegend=True,
        height=520,
    )
    return fig


def _effects_table(found: pd.DataFrame) -> str:
    rows = [
        (
            _text(r.factor), _text(r.level), _text(r.result), str(r.points), str(r.seeds),
            _number(r.mean, r.low, r.high),
            "" if r.level == r.against else _number(r.difference, r.difference_low, r.difference_high),
            _text("" if r.level == r.against else r.against),
        )
        for r in found.itertuples()
    ]  # fmt: skip
    return _table(("factor", "level", "result", "points", "seeds", "mean", "difference", "to"), rows)


def _failure(plan: Plan, key: str, found: Mapping[str, dict]) -> str:
    record = found[key]
    told = visible(record["error"] or "", keep="\n\t")
    last = next((line for line in reversed(told.splitlines()) if line.strip()), record["status"])
    # A worker that died took its notebook with it.
    link = f' <a href="failed/{key}/{_text(plan.notebook.name)}">notebook</a>' if "seconds" in record else ""
    whole = f"<details><summary>all of it</summary><pre>{_text(told)}</pre></details>"
    return f"{_text(record['status'])}: {_text(last)}{link}{whole}"


def _named(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{factor}={level}" for factor, level in levels.items())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Of cells that are HTML already."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{lines}</table>"


def _number(value: float, low: float, high: float) -> str:
    if value != value:
        return ""
    return f"{value:.4g}" if low != low else f"{value:.4g} ({low:.4g}, {high:.4g})"


def _bars(rows: pd.DataFrame, value: str, low: str, high: str) -> dict:
    up, down = (rows[high] - rows[value]).fillna(0), (rows[value] - rows[low]).fillna(0)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}


def _text(value: object) -> str:
    return html.escape(visible(str(value), keep="\n\t"))
