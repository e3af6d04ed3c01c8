"""The page of a sweep: what each factor does, one result against the other, failures, and the executed notebooks.

It reads the folder of a sweep and runs nothing. The page holds plotly.js and needs no network; what notebooks and
models wrote is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from relaylab.sweep.notebook import DONE, FAILED
from relaylab.sweep.plan import Plan
from relaylab.sweep.results import effects, plane
from relaylab.sweep.run import Store
from relaylab.views import theme
from relaylab.views.figures import plain
from relaylab.views.trace_view import visible

theme.register_templates()

STYLE = (
    "body{font:15px/1.5 var(--rl-sans);background:var(--rl-paper);color:var(--rl-ink);max-width:1100px;margin:2em auto;"
    "padding:0 1em}a{color:inherit}table{border-collapse:collapse}td,th{padding:.25em .7em;text-align:left;"
    "border-bottom:1px solid var(--rl-line);vertical-align:top}pre{white-space:pre-wrap;overflow-wrap:anywhere}"
)
INTERVALS = (
    "<h2>What each factor does</h2><p>Means over the points of a level, and differences between points that differ in "
    "this factor alone. In brackets: 95 % bootstrap intervals over seeds. With two or three seeds they are too narrow; "
    "with one there are none.</p>"
)


def report(plan: Plan, table: pd.DataFrame, out: str | Path, failures: Mapping[str, dict] | None = None) -> str:
    """Write ``report.html`` and ``effects.csv`` into the folder or URL of a sweep.

    Args:
        plan: the sweep.
        table: of ``collect``.
        out: its folder or URL.
        failures: of this run, by key; they may be missing in the folder, say on a full disk.

    Returns:
        The page's path or URL.
    """
    store, rows = Store(out), effects(plan, table)
    store.write("effects.csv", rows.to_csv(index=False))
    finished, failed = store.records(DONE), {**(failures or {}), **store.records(FAILED)}
    bad = [p for p in plan.points if p.key in failed and p.key not in finished]
    done = [p for p in plan.points if p.key in finished]
    name = plan.notebook.name
    parts = [
        f"<h1>{_text(plan.name)}</h1><p>{len(done)} of {len(plan.points)} points finished, {len(bad)} failed. "
        f"Notebook <code>{_text(name)}</code>.</p>"
    ]
    if len(rows):
        parts += [INTERVALS, _effects_table(rows), *(theme.show_figure(fig).html for fig in effect_figures(rows))]
    if len(corners := plane(plan, table)):
        parts.append(theme.show_figure(plane_figure(plan, corners)).html)
    if bad:
        lines = [(_named(p.levels), _seed(p.seed), _failure(failed[p.key], p.key, name)) for p in bad]
        parts += ["<h2>Failures</h2>", _table(("point", "seed", "what happened"), lines)]
    lines = [
        (_link(p.key, name, p.key), *map(_text, p.levels.values()), _seed(p.seed), f"{finished[p.key]['seconds']:.1f}")
        for p in done
    ]
    parts += ["<h2>Finished points</h2>", _table(("notebook", *map(_text, plan.factors), "seed", "seconds"), lines)]
    head = f'<meta charset="utf-8"><title>{_text(plan.name)}</title><style>{theme.page_css("body")}{STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}<script>{get_plotlyjs()}</script></head><body>'
    return store.write("report.html", f"{page}{''.join(parts)}</body></html>\n")


def effect_figures(rows: pd.DataFrame) -> list[go.Figure]:
    """One figure per factor and result: the mean of each level with its interval."""
    figures = []
    for (factor, result), group in rows.groupby(["factor", "result"], sort=False):
        x = [plain(level, 40) for level in group["level"]]
        fig = px.scatter(x=x, y=group["mean"], **_bars(group, y="mean"), template="relaylab", height=380)
        text = "; ".join(f"{r.level}: {_number(r.mean, r.low, r.high)}" for r in group.itertuples())
        alt = f"{visible(result)} by {visible(factor)}, with 95 % intervals over seeds. {visible(text)}."
        fig.update_layout(meta={"alt": alt}, title_text=f"{plain(result)} by {plain(factor)}")
        fig.update_xaxes(title_text=plain(factor), type="category")
        fig.update_yaxes(title_text=plain(result))
        figures.append(fig.update_traces(marker_size=10))
    return figures


def plane_figure(plan: Plan, corners: pd.DataFrame) -> go.Figure:
    """All combinations of levels in the plane of two results; the first factor has colours and shapes."""
    (x, y), first = plan.plane, next(iter(plan.factors), "")
    level = [plain(value, 40) for value in corners[first]] if first else ["all"] * len(corners)
    names = [plain(", ".join(f"{f}={row[f]}" for f in plan.factors), 200) for _, row in corners.iterrows()]
    frame = corners.assign(level=level, name=names)
    fig = px.scatter(
        frame, x="x", y="y", color="level", symbol="level", hover_name="name", template="relaylab", height=520,
        color_discrete_sequence=theme.OKABE_ITO, **_bars(corners, x="x", y="y"),
    )  # fmt: skip
    best = corners["y"].to_numpy().argmax()
    alt = (
        f"{visible(y)} against {visible(x)} of {len(corners)} combinations, means over seeds. Highest {visible(y)}: "
        f"{corners['y'].iloc[best]:.4g} at {corners['x'].iloc[best]:.4g}, {names[best]}."
    )
    fig.update_layout(meta={"alt": alt}, title_text=f"{plain(y)} against {plain(x)}", legend_title_text=plain(first))
    fig.update_xaxes(title_text=plain(x))
    return fig.update_yaxes(title_text=plain(y)).update_traces(marker_size=10, showlegend=True)


def effects_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The ``effects`` of one factor as a table for people, in %: each result's mean, and its difference in points.

    >>> row = {"level": "b", "result": "accuracy", "mean": 0.5, "seeds": 2, "against": "a"}
    >>> row |= {"difference": -0.1, "difference_low": -0.2, "difference_high": 0.0}
    >>> effects_shown(pd.DataFrame([row])).loc["b"].tolist()
    ['50.0 (2 seeds)', '-10.0 (-20.0, +0.0)']
    """

    def difference(r) -> str:
        points = [100 * v for v in (r.difference, r.difference_low, r.difference_high)]
        return "–" if r.level == r.against else "{:+.1f} ({:+.1f}, {:+.1f})".format(*points)

    columns = {}
    for name, group in rows.groupby("result", sort=False):
        columns[name, "%"] = [f"{100 * r.mean:.1f} ({r.seeds} seeds)" for r in group.itertuples()]
        columns[name, f"points against {group['against'].iloc[0]}"] = [difference(r) for r in group.itertuples()]
    return pd.DataFrame(columns, index=list(dict.fromkeys(rows["level"])))


def _bars(rows: pd.DataFrame, **axes: str) -> dict[str, pd.Series]:
    bars = {}
    for axis, name in axes.items():
        low, high = (f"{name}_low", f"{name}_high") if name == axis else ("low", "high")
        bars |= {f"error_{axis}": (rows[high] - rows[name]).fillna(0)}
        bars |= {f"error_{axis}_minus": (rows[name] - rows[low]).fillna(0)}
    return bars


def _effects_table(rows: pd.DataFrame) -> str:
    head = ("factor", "level", "result", "points", "seeds", "mean", "difference", "to")
    lines = []
    for r in rows.itertuples():
        difference = _number(r.difference, r.difference_low, r.difference_high), _text(r.against)
        texts = _text(r.factor), _text(r.level), _text(r.result), str(r.points), str(r.seeds)
        lines.append((*texts, _number(r.mean, r.low, r.high), *(("", "") if r.level == r.against else difference)))
    return _table(head, lines)


def _failure(record: Mapping, key: str, notebook: str) -> str:
    error = visible(record.get("error") or "", keep="\n\t")
    last = next((line for line in reversed(error.splitlines()) if line.strip()), "")
    link = "" if record["status"] == "lost" else f" {_link(key, notebook, 'notebook')}"  # a lost one has no copy
    return f"{_text(record['status'])}: {_text(last)}{link}<details><pre>{_text(error)}</pre></details>"


def _link(key: str, notebook: str, text: str) -> str:
    return f'<a href="points/{key}/{_text(notebook)}">{_text(text)}</a>'


def _named(levels: Mapping[str, str]) -> str:
    return _text(", ".join(f"{factor}={level}" for factor, level in levels.items()))


def _seed(seed: int | None) -> str:
    return "" if seed is None else str(seed)


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Of cells that are HTML already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"


def _number(value: float, low: float, high: float) -> str:
    if value != value:
        return ""
    return f"{value:.4g}" if low != low else f"{value:.4g} ({low:.4g}, {high:.4g})"


def _text(value: object) -> str:
    return html.escape(visible(str(value), keep="\n\t"))
