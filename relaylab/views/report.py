"""The report of an evaluation: accuracy against the teacher's share, suites, calls, cost; one page, and each figure.

It reads the folder that ``relaylab evaluate`` left (``evaluation/evaluate.py``) and runs no model. The page holds
plotly.js and needs no network; what models wrote is escaped.
"""

from __future__ import annotations

import html
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from relaylab.evaluation.scorecard import random_router
from relaylab.evaluation.stats import columns, mean, paired, summary
from relaylab.evaluation.table import read_table, trace_files
from relaylab.files import read_json
from relaylab.trace import Trace, read_traces
from relaylab.version import __version__
from relaylab.views import theme
from relaylab.views.figures import call_positions
from relaylab.views.trace_view import visible

theme.register()

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x", "cross", "star", "pentagon", "hexagon")
POSITIONS = 300  # traces whose call positions are drawn


def accuracy_against_share(table: pd.DataFrame, *, student: str = "student", teacher: str = "teacher") -> go.Figure:
    """Every method's accuracy against the teacher's share of its tokens, both with 95 % intervals.

    Methods that differ in numbers alone (``router:p=0.3``, ``router:p=0.5``) are joined: their frontier. Where
    ``student`` and ``teacher`` are in the table, the line between them is what a random router reaches.
    """
    found = summary(table)
    fig = go.Figure()
    known = {student, teacher} <= set(found["method"])
    if known:
        ends = found.set_index("method").loc[[student, teacher]]
        low, high = ends["accuracy"]
        share = np.linspace(0, 1, 21)
        line = [random_router(low, high, s) for s in share]
        fig.add_scatter(
            x=100 * share,
            y=100 * np.array(line),
            mode="lines",
            name="random router (expected)",
            line={"color": theme.OKABE_ITO[6], "dash": "dash"},
            hoverinfo="skip",
        )
    kinds = found["method"].str.replace(r"[:,]\w+=[\d.]+", "", regex=True)
    for i, (kind, rows) in enumerate(found.groupby(kinds, sort=False)):
        rows = rows.sort_values("teacher_share")
        fig.add_scatter(
            x=100 * rows["teacher_share"],
            y=100 * rows["accuracy"],
            mode="lines+markers" if len(rows) > 1 else "markers",
            name=str(kind),
            text=rows["method"],
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 10, "color": theme.OKABE_ITO[i % 6]},
            line={"color": theme.OKABE_ITO[i % 6], "width": 1},
            error_y=_bars(rows, "accuracy", "low", "high"),
            error_x=_bars(rows, "teacher_share", "teacher_low", "teacher_high"),
            hovertemplate="%{text}<br>%{y:.1f} % right, %{x:.1f} % teacher tokens<extra></extra>",
        )
    best = found.sort_values("accuracy", ascending=False)
    told = "; ".join(
        f"{m}: {100 * a:.1f} % right at {100 * s:.1f} %"
        for m, a, s in best[["method", "accuracy", "teacher_share"]].itertuples(index=False)
    )
    fig.update_layout(
        template="relaylab",
        meta={
            "alt": f"Accuracy against the teacher's share of all tokens, {len(table['id'].unique())} problems. {told}."
        },
        title_text="Accuracy against the teacher's share",
        xaxis_title_text="teacher tokens of all tokens (%)",
        yaxis_title_text="problems solved (%)",
        legend={"y": -0.16, "yanchor": "top"},  # it has many rows
        height=640,
    )
    return fig


def suite_bars(table: pd.DataFrame) -> go.Figure:
    """Accuracy in each suite, with 95 % intervals: a small picture a method."""
    suites, methods = list(dict.fromkeys(table["suite"])), list(dict.fromkeys(table["method"]))
    across = min(3, len(methods))
    down = -(-len(methods) // across)
    fig = make_subplots(
        down, across, shared_xaxes=True, shared_yaxes=True, subplot_titles=[visible(m) for m in methods]
    )
    told = []
    for i, name in enumerate(methods):
        mine = table[table["method"] == name]
        found = [mean(mine[mine["suite"] == s].groupby("id")["correct"].mean().to_numpy()) for s in suites]
        bars = pd.DataFrame([{"value": f.value, "low": f.low, "high": f.high} for f in found])
        fig.add_bar(
            row=i // across + 1,
            col=i % across + 1,
            name=name,
            x=suites,
            y=100 * bars["value"],
            error_y=_bars(bars, "value", "low", "high"),
            marker={"color": theme.OKABE_ITO[0]},
            hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
        )
        told.append(f"{name}: " + ", ".join(f"{s} {100 * f.value:.0f} %" for s, f in zip(suites, found)))
    fig.update_yaxes(range=[0, 105])
    fig.update_yaxes(title_text="solved (%)", col=1)
    fig.update_xaxes(tickangle=-60)
    fig.update_layout(
        template="relaylab",
        meta={"alt": f"Accuracy by suite. {'; '.join(told)}."},
        title_text="Accuracy by suite",
        showlegend=False,
        height=160 + 190 * down,
    )
    return fig


def report(out: str | Path, *, student: str = "student", teacher: str = "teacher") -> Path:
    """Write ``report.html`` and ``figures/`` (HTML, and the numbers as CSV) into an evaluation's folder; the page.

    Every method is compared with ``relay``, or the first one that is neither ``student`` nor ``teacher``, in pairs of
    the same problems. Raises ValueError where the folder holds no evaluation.
    """
    out = Path(out)
    table = read_table(out)
    terms = read_json(out / "config.json")
    figures = {
        "accuracy": accuracy_against_share(table, student=student, teacher=teacher),
        "suites": suite_bars(table),
    }
    names = list(dict.fromkeys(table["method"]))
    main = next((m for m in ("relay", *names) if m in names and m not in (student, teacher)), names[0])
    figures |= {f"calls-{name}": fig for name, fig in _positions(out, table).items()}
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for name, fig in figures.items():
        (folder / f"{_safe(name)}.html").write_text(theme.described(fig, library=True).html, encoding="utf-8")
    found = summary(table)
    found.to_csv(folder / "accuracy.csv", index=False, float_format="%.6g")
    versus = comparisons(table, main)
    versus.to_csv(folder / "comparisons.csv", index=False, float_format="%.6g")
    told = {k: v for k, v in terms.items() if k != "problems"}
    parts = [
        "<h1>Evaluation</h1>",
        f"<p>{len(terms['problems'])} problems, {len(found)} methods; relaylab {__version__}; "
        f"<code>{html.escape(json.dumps(told))}</code></p>",
        _html(_shown(found)),
        f"<h2>Against {html.escape(main)}</h2><p>Differences of accuracy in points, paired by problem: 95 % interval "
        "from a bootstrap over problems, p of Wilcoxon's signed-rank test.</p>",
        _html(versus),
        *(theme.described(fig).html for fig in figures.values()),
    ]
    style = theme.page_css("body") + (
        "body{font:15px/1.5 var(--rl-sans);background:var(--rl-paper);color:var(--rl-ink);max-width:1240px;"
        "margin:2em auto;padding:0 1em}table{border-collapse:collapse;font-size:13px}"
        "td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid var(--rl-line)}"
        "td:first-child,th:first-child{text-align:left}td{white-space:nowrap}"
    )
    page = out / "report.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>relaylab: evaluation</title><style>{style}</style>{theme.plotly_library().html}"
        f"<body>{''.join(parts)}</body></html>",
        encoding="utf-8",
    )
    return page


def comparisons(table: pd.DataFrame, main: str) -> pd.DataFrame:
    """``main`` less every other method, paired by problem: difference in points, 95 % interval, p."""
    wide = columns(table, "correct")
    rows = []
    for other in wide.columns.drop(main):
        found = paired(wide[main].to_numpy(), wide[other].to_numpy())
        rows.append({"other": other, "difference": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high})
        rows[-1]["p"] = found.p
    return pd.DataFrame(rows, columns=["other", "difference", "low", "high", "p"])


def _positions(out: Path, table: pd.DataFrame) -> dict[str, go.Figure]:
    """Where the calls are, of each file of traces with calls; of many traces a drawn part."""
    found = {}
    for seed, path in trace_files(out):
        traces: list[Trace] = list(read_traces(path))
        if seed != str(min(int(s) for s, _ in trace_files(out))) or not any(0 < t.call_ratio < 1 for t in traces):
            continue
        chosen = random.Random(0).sample(traces, min(POSITIONS, len(traces)))
        fig = call_positions(chosen, relative=True)
        fig.update_layout(title_text=f"Where the student calls: {visible(path.stem)}")
        found[path.stem] = fig
    return found


def _shown(found: pd.DataFrame) -> pd.DataFrame:
    """The summary with percentages for people."""
    shown = found[["method", "students", "samples", "problems"]].copy()
    shown["accuracy %"] = [
        f"{100 * v:.1f} ({100 * a:.1f}, {100 * b:.1f})" for v, a, b in found[["accuracy", "low", "high"]].to_numpy()
    ]
    for name in (c for c in found if c.startswith("pass@")):
        shown[f"{name} %"] = (100 * found[name]).round(1)
    shown["teacher tokens %"] = (100 * found["teacher_share"]).round(2)
    shown["call ratio %"] = (100 * found["call_ratio"]).round(2)
    shown["undilutable %"] = (100 * found["content_ratio"]).round(2)
    shown["calls"], shown["tokens"] = found["calls"].round(2), found["tokens"].round(1)
    shown["gap recovered %"] = (100 * found["gap"]).round(1)
    return shown


def _html(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, na_rep="", float_format=lambda x: f"{x:.3g}", escape=True)


def _bars(rows: pd.DataFrame, value: str, low: str, high: str) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": 100 * (rows[high] - rows[value]),
        "arrayminus": 100 * (rows[value] - rows[low]),
        "thickness": 1,
    }


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_=." else "-" for c in name)
