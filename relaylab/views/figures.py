"""Figures of traces: where the calls are, and how unsure the student was.

Every figure is a plotly ``Figure`` with a text alternative (``theme.with_alt_text``); ``theme.show_figure`` shows both.
Token i covers i to i + 1 on the token axes, counted from 0 at the start of the completion.
"""

from __future__ import annotations

import html
import statistics
from collections import Counter
from collections.abc import Iterable
from itertools import chain, count
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from relaylab.call_tag import visible
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace
from relaylab.views.theme import GREY, ROLES, register_templates, with_alt_text
from relaylab.views.trace_view import cut, plural, trace_summary

register_templates()

MANY_ROWS, MANY_CALLS = 400, 4000  # above either, calls are thinner than a pixel and only shares are honest
NAMED_ROWS, WORDS = 30, 60  # rows that have names; tokens that are written under the axis
LOST = "command nobody answered"
# How the bars of ``call_positions`` look: colour, thickness of a row without a name, and with a name.
BARS = {
    "student tokens": (ROLES[STUDENT].mark, 0.5, 0.16),
    "teacher tokens": (ROLES[TEACHER].mark, 0.9, 0.72),
    "command": (ROLES[COMMAND].mark, 0.9, 0.45),
    LOST: (GREY, 0.9, 0.45),
}


def figure_text(text: str, limit: int = 60) -> str:
    """The text of a model for plotly, which reads tags and, between dollars, TeX."""
    return html.escape(visible(cut(text, limit)), quote=False).replace("$", "&#36;")


def figure_names(names: Iterable[str], limit: int = 60) -> dict[str, str]:
    """``figure_text`` of each name, by which plotly groups: no two are alike.

    Names that begin alike keep their ends; those that end alike, too, get a number.

    >>> list(figure_names(["runs/2026/step-100", "runs/2026/step-200", "relay"], 12).values())
    ['…26/step-100', '…26/step-200', 'relay']
    """
    different = list(dict.fromkeys(names))
    begins = Counter(cut(name, limit) for name in different)
    shown: dict[str, str] = {}
    for name in different:
        alike = begins[cut(name, limit)] > 1
        text, others = figure_text(f"…{name[1 - limit :]}" if alike else name, limit), set(shown.values())
        shown[name] = next(t for t in chain([text], (f"{text} ({n})" for n in count(2))) if t not in others)
    return shown


def error_bars(axis: str, value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    """Arguments of ``plotly.express`` for the interval low..high around a value; none where it is not known."""
    return {f"error_{axis}": (high - value).fillna(0), f"error_{axis}_minus": (value - low).fillna(0)}


def name_panels(fig: go.Figure) -> None:
    """Panels are called by their values alone; plotly.express writes ``column=value``."""
    fig.for_each_annotation(lambda a: a.update(text=a.text.partition("=")[2], font_size=14))


def call_positions(traces: Iterable[Trace] | Trace, *, relative: bool = False) -> go.Figure:
    """Where the calls are: one row per trace, the earliest first call on top, traces without calls at the bottom.

    Above 400 traces or 4,000 calls, a heat map shows the teacher's share of the tokens instead.

    Args:
        traces: One trace or several.
        relative: Count per cent of each completion instead of tokens.

    Raises:
        ValueError: There is no trace.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)], stop="end")
    >>> print(call_positions([t, t]).layout.meta["alt"].replace("; ", ";\\n"))
    Where 2 traces call the teacher: 2 of them call, 2 calls in all;
    half of the first calls come by token 1;
    the teacher wrote 33.3 % of all tokens.
    """
    rows = [traces] if isinstance(traces, Trace) else list(traces)
    if not rows:
        raise ValueError("there is no trace to draw")
    scale = {id(t): 100 / max(1, len(t.source)) if relative else 1.0 for t in rows}
    rows.sort(key=lambda t: (not t.calls, *(call * scale[id(t)] for call in _first(t)), len(t.source)))
    many = len(rows) > MANY_ROWS or sum(len(t.calls) for t in rows) > MANY_CALLS
    height = min(34.0, 640 / len(rows))  # pixels per row
    fig = _heat_map(rows, relative) if many else _spans(rows, [scale[id(t)] for t in rows], height)
    end = 100 if relative else max(1, *(len(t.source) for t in rows))
    unit = "% of its tokens" if relative else "tokens"
    fig.update_xaxes(title_text=f"position in the completion ({unit})", range=[-0.004 * end, 1.004 * end])
    fig.update_xaxes(showgrid=not many)
    fig.update_yaxes(showgrid=False)
    layout = {"height": round(150 + max(60, height * len(rows))), "barmode": "overlay"}
    return with_alt_text(fig, _positions_alt(rows), "Where the student calls the teacher", **layout)


def _spans(rows: list[Trace], scale: list[float], height: float) -> go.Figure:
    """Bars in units of tokens: exact at any zoom, and the mouse finds them anywhere along their length."""
    bars: list[tuple] = []
    for y, (trace, s) in enumerate(zip(rows, scale, strict=True)):
        bars.append(("student tokens", y, 0, len(trace.source) * s, figure_text(trace_summary(trace), 200)))
        for k, call in enumerate(trace.calls):
            name, hover = "command" if call.status == "answered" else LOST, _hover(trace, k, call)
            bars.append((name, y, call.start * s, (call.end - call.start) * s, hover))
            if call.delivered:
                bars.append(("teacher tokens", y, call.end * s, call.delivered * s, hover))
    frame, named = pd.DataFrame(bars, columns=["name", "y", "start", "length", "hover"]), len(rows) <= NAMED_ROWS
    fig = px.bar(frame, x="length", y="y", base="start", color="name", orientation="h", custom_data="hover",
                 category_orders={"name": list(BARS)}, color_discrete_map={k: v[0] for k, v in BARS.items()},
                 template="relaylab")  # fmt: skip
    for name, (color, thin, thick) in BARS.items():
        student = name == "student tokens"
        # The outline keeps a bar visible that is thinner than a pixel.
        fig.update_traces(
            selector={"name": name}, width=thick if named else thin, opacity=0.5 if student else 1,
            hovertemplate="%{customdata[0]}", marker_line={"width": 0 if student else 0.6, "color": color},
            showlegend=not named or "tokens" in name,
        )  # fmt: skip
    marks = frame[frame["name"].isin(["command", LOST])]
    for name, f in ((str(name), f) for name, f in marks.groupby("name")):
        symbol = "x" if name == LOST else ROLES[COMMAND].symbol
        fig.add_scatter(
            name=name, mode="markers", x=f["start"], y=f["y"] - (0.42 if named else 0), legendgroup=name,
            hovertext=f["hover"], hoverinfo="text", showlegend=named,  # thin rows have markers too small for a legend
            marker={"symbol": symbol, "size": min(10.0, max(3.5, height * 0.5)), "color": BARS[name][0]},
        )  # fmt: skip
    axis: dict[str, Any] = {"title_text": f"{len(rows):,} traces, by their first call", "showticklabels": False}
    if named:
        outcome = {True: "✓ ", False: "✗ ", None: ""}
        names = [figure_text(outcome[t.correct] + (t.id or f"trace {i + 1}"), 28) for i, t in enumerate(rows)]
        axis = {"title_text": None, "tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": names}
    return fig.update_yaxes(range=[len(rows) - 0.4, -0.9], ticks="", **axis)


def _heat_map(rows: list[Trace], relative: bool) -> go.Figure:
    """The teacher's share of the tokens in each cell of up to 320 groups of neighbouring traces by 240 positions."""
    longest = max(1, *(len(t.source) for t in rows))
    height, width = min(320, len(rows)), min(240, 100 if relative else longest)
    teacher, total, calls = (np.zeros((height, width)) for _ in range(3))
    for y, trace in enumerate(rows):
        n = len(trace.source)
        row, column = y * height // len(rows), np.arange(n) * width // max(1, n if relative else longest)
        is_teacher = np.frombuffer(trace.source.encode(), np.uint8) == ord(TEACHER)
        teacher[row] += np.bincount(column[is_teacher], minlength=width)
        total[row] += np.bincount(column, minlength=width)
        starts = np.array([min(c.start, n - 1) for c in trace.calls], int) if n else np.zeros(0, int)
        calls[row] += np.bincount(column[starts], minlength=width)
    share = np.divide(100 * teacher, total, out=np.full_like(total, np.nan), where=total > 0)
    # Colours grow by opacity, so that more looks like more on a light page and on a dark one.
    student, mark = ROLES[STUDENT].mark, ROLES[TEACHER].mark
    faint = ((0, student, 0.16), (0.02, mark, 0.35))
    colors = [*((at, f"rgba{(*hex_to_rgb(color), opacity)}") for at, color, opacity in faint), (1, mark)]
    cell, per_row = (100 if relative else longest) / width, len(rows) / height
    x, y = (np.arange(width) + 0.5) * cell, (np.arange(height) + 0.5) * per_row
    fig = px.imshow(share, x=x, y=y, zmin=0, zmax=100, color_continuous_scale=colors, aspect="auto", origin="upper",
                    labels={"color": "teacher's share of the tokens (%)", "y": "traces, by their first call"},
                    template="relaylab")  # fmt: skip
    fig.update_traces(
        customdata=calls, hoverongaps=False,
        hovertemplate="position %{x:.0f}, trace %{y:.0f}<br>%{z:.1f} % of the tokens are the teacher's"
        "<br>%{customdata} calls start here<extra></extra>",
    )  # fmt: skip
    fig.update_coloraxes(colorbar={"title_side": "right", "thickness": 12, "outlinewidth": 0})
    return fig.update_yaxes(range=[len(rows), 0])


def token_entropy(trace: Trace) -> go.Figure:
    """The student's entropy (nats) before each token, with the calls and what the teacher wrote.

    Tokens without a recorded entropy are gaps.

    Raises:
        ValueError: The trace has no entropies.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)])
    >>> t.entropies = [0.5, 2.0, None]
    >>> print(token_entropy(t).layout.meta["alt"].replace("; ", ";\\n"))
    Entropy of the student along 3 tokens: mean 1.25 nats, highest 2.00 at token 1;
    where commands begin, mean 2.00 nats.
    """
    values = {i: e for i, e in enumerate(trace.entropies or ()) if e is not None}
    if not values:
        raise ValueError("the trace has no entropies: record them when you decode")
    n, top = len(trace.source), 1.12 * max(0.1, *values.values())
    tokens = pd.DataFrame({"position": np.arange(n) + 0.5, "entropy": [values.get(i, np.nan) for i in range(n)]})
    words = (
        f"“{figure_text(p)}” · token {i} · {ROLES[s].name}" for i, (p, s) in enumerate(zip(trace.pieces, trace.source))
    )
    fig = px.line(tokens, x="position", y="entropy", markers=n <= 300, hover_name=list(words), template="relaylab",
                  labels={"position": "position in the completion (tokens)"})  # fmt: skip
    hover = "%{hovertext}<br>entropy %{y:.3f} nats<extra></extra>"
    fig.update_traces(name="entropy of the student", showlegend=True, hovertemplate=hover, marker_size=5)
    fig.update_traces(line={"color": ROLES[STUDENT].mark, "width": 2 if n <= 300 else 1})
    mark, command = ROLES[TEACHER].mark, ROLES[COMMAND]
    answered = [(k, c) for k, c in enumerate(trace.calls) if c.delivered]
    fig.add_bar(
        name="teacher writes", x=[c.end + c.delivered / 2 for _, c in answered], y=[top] * len(answered),
        width=[c.delivered for _, c in answered], hovertext=[_hover(trace, k, c) for k, c in answered],
        hoverinfo="text", marker={"color": mark, "opacity": 0.25, "line": {"width": 1, "color": mark}},
    )  # fmt: skip
    begins = [(k, c) for k, c in enumerate(trace.calls) if c.start < n]
    fig.add_scatter(
        name="a command begins", mode="markers", x=[c.start + 0.5 for _, c in begins],
        y=[values.get(c.start, 0) for _, c in begins], hovertext=[_hover(trace, k, c) for k, c in begins],
        hoverinfo="text", marker={"symbol": command.symbol, "size": 12, "color": command.mark, "line_width": 1},
    )  # fmt: skip
    at = max(values, key=lambda i: values[i])
    starts = [values[c.start] for _, c in begins if c.start in values]
    alt = (
        f"Entropy of the student along {n:,} tokens: mean {statistics.fmean(values.values()):.2f} nats, "
        f"highest {values[at]:.2f} at token {at}"
        + (f"; where commands begin, mean {statistics.fmean(starts):.2f} nats" if starts else "")
        + ("." if trace.calls else "; it makes no call.")
    )
    if n <= WORDS:
        pieces = [figure_text(piece if piece.strip(" ") else "␣" * len(piece), 12) for piece in trace.pieces]
        fig.update_xaxes(tickmode="array", tickvals=tokens["position"], ticktext=pieces, tickangle=-90)
    fig.update_xaxes(range=[0, n])
    fig.update_yaxes(title_text="entropy of the next token (nats)", range=[-0.03 * top, top])
    return with_alt_text(fig, alt, "How unsure the student is, token by token", height=420, bargap=0)


def _hover(trace: Trace, k: int, call: Call) -> str:
    n = "no number" if call.requested is None else f"{call.requested:,}"
    wrote = "".join(trace.pieces[call.end : call.end + call.delivered])
    lines = [
        f"<b>call {k + 1}</b>{f' of {figure_text(trace.id)}' if trace.id else ''}, at token {call.start:,}",
        f"requested {n}, granted {call.granted:,}, delivered {call.delivered:,}",
        f"wrote “{figure_text(wrote)}”" if wrote else figure_text(call.status),
        figure_text(call.error) if call.error else "",
    ]
    return "<br>".join(filter(None, lines))


def _first(trace: Trace) -> list[int]:
    """Where its first call begins, answered or not; empty without one."""
    return [min(c.start for c in trace.calls)] if trace.calls else []


def _positions_alt(rows: list[Trace]) -> str:
    firsts = [first for t in rows for first in _first(t)]
    calls, tokens = sum(len(t.calls) for t in rows), sum(len(t.source) for t in rows)
    share = 100 * sum(t.count(TEACHER) for t in rows) / max(1, tokens)
    return (
        f"Where {plural(len(rows), 'trace')} call{'s' if len(rows) == 1 else ''} the teacher: {len(firsts):,} of them "
        f"call{'s' if len(firsts) == 1 else ''}, {plural(calls, 'call')} in all"
        + (f"; half of the first calls come by token {statistics.median_low(firsts):,}" if firsts else "")
        + f"; the teacher wrote {share:.1f} % of all tokens."
    )
