"""Figures of traces: where the calls are, and how unsure the student was there. Reads Traces, imports no torch.

Every figure is a plotly ``Figure`` with a text alternative in ``layout.meta["alt"]``; ``theme.described`` shows both.
Token i covers i to i + 1 on the token axes, counted from 0 at the start of the completion.
"""

from __future__ import annotations

import html
import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace
from relaylab.views import theme
from relaylab.views.trace_view import trace_summary, visible

theme.register()

MANY_ROWS, MANY_CALLS = 400, 4000  # above either, calls are thinner than a pixel and only shares are honest
NAMED_ROWS, WORDS = 30, 60  # up to so many rows are named, up to so many tokens written under the axis
LOST = "#7F7F7F"  # calls that nobody answered


def call_positions(traces: Iterable[Trace] | Trace, *, relative: bool = False) -> go.Figure:
    """Where the calls are: one row a trace, the earliest first call on top, traces without calls at the bottom.

    The axis counts completion tokens, or per cent of each completion where ``relative``. Above 400 traces (or 4,000
    calls) a heat map shows the teacher's share of the tokens instead. Raises ValueError without any trace.

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
    rows.sort(key=lambda t: (t.first_call is None, (t.first_call or 0) * scale[id(t)], len(t.source)))
    many = len(rows) > MANY_ROWS or sum(len(t.calls) for t in rows) > MANY_CALLS
    step = min(34.0, 640 / len(rows))  # pixels a row
    fig = _heat_map(rows, relative) if many else _spans(rows, [scale[id(t)] for t in rows], step)
    unit = "position in the completion (% of its tokens)" if relative else "position in the completion (tokens)"
    end = 100 if relative else max(1, *(len(t.source) for t in rows))
    fig.update_layout(
        template="relaylab",
        meta={"alt": _alt(rows)},
        title_text="Where the student calls the teacher",
        xaxis={"title_text": unit, "range": [-0.004 * end, 1.004 * end], "showgrid": not many},
        yaxis={"showgrid": False},
        height=round(150 + max(60, step * len(rows))),
        barmode="overlay",
    )
    return fig


def _spans(rows: list[Trace], scale: list[float], step: float) -> go.Figure:
    """Bars in units of tokens: exact at any zoom, and the mouse finds them anywhere along their length."""
    named = len(rows) <= NAMED_ROWS
    # Of each bar: row, start, length, hover.
    bars: dict[str, list[tuple]] = {key: [] for key in (STUDENT, TEACHER, COMMAND, "lost")}
    for y, (trace, s) in enumerate(zip(rows, scale, strict=True)):
        bars[STUDENT].append((y, 0, len(trace.source) * s, plain(trace_summary(trace), 200)))
        for k, call in enumerate(trace.calls):
            hover, answered = _hover(trace, k, call), call.status == "answered"
            bars[COMMAND if answered else "lost"].append((y, call.start * s, (call.end - call.start) * s, hover))
            if call.delivered:
                bars[TEACHER].append((y, call.end * s, call.delivered * s, hover))
    student, teacher, command = (theme.ROLES[source] for source in (STUDENT, TEACHER, COMMAND))
    fig = go.Figure()
    for key, name, color, thin, thick in (
        (STUDENT, "student tokens", student.mark, 0.5, 0.16),
        (TEACHER, "teacher tokens", teacher.mark, 0.9, 0.72),
        (COMMAND, "command", command.mark, 0.9, 0.45),
        ("lost", "command nobody answered", LOST, 0.9, 0.45),
    ):
        if not bars[key]:
            continue
        y, base, x, hover = zip(*bars[key], strict=True)
        # The outline keeps a bar visible that is thinner than a pixel.
        fig.add_bar(
            name=name,
            orientation="h",
            y=y,
            base=base,
            x=x,
            width=thick if named else thin,
            hovertext=hover,
            hoverinfo="text",
            opacity=0.5 if key == STUDENT else 1,
            showlegend=not named or key in (STUDENT, TEACHER),
            legendgroup=key,
            marker={"color": color, "line": {"width": 0 if key == STUDENT else 0.6, "color": color}},
        )
        if key in (COMMAND, "lost"):
            symbol, size = command.symbol if key == COMMAND else "x", min(10.0, max(3.5, step * 0.5))
            fig.add_scatter(
                name=name,
                mode="markers",
                x=base,
                y=np.array(y) - (0.42 if named else 0),
                hovertext=hover,
                hoverinfo="text",
                showlegend=named,  # thin rows have markers too small for a legend
                legendgroup=key,
                marker={"symbol": symbol, "size": size, "color": color},
            )
    fig.update_yaxes(range=[len(rows) - 0.4, -0.9], **_row_names(rows))
    return fig


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
    cell, per_row = (100 if relative else longest) / width, len(rows) / height
    ink = theme.ROLES[TEACHER].mark
    fig = go.Figure(
        go.Heatmap(
            z=share,
            x0=cell / 2,
            dx=cell,
            y0=per_row / 2,
            dy=per_row,
            customdata=calls,
            zmin=0,
            zmax=100,
            hoverongaps=False,
            # Grows by opacity, so that more looks like more on a light page and on a dark one.
            colorscale=[[0, _faint(theme.ROLES[STUDENT].mark, 0.16)], [0.02, _faint(ink, 0.35)], [1, ink]],
            colorbar={
                "title": {"text": "teacher's share of the tokens (%)", "side": "right", "font": {"size": 14}},
                "thickness": 12,
                "outlinewidth": 0,
            },
            hovertemplate="position %{x:.0f}, trace %{y:.0f}<br>%{z:.1f} % of the tokens are the teacher's"
            "<br>%{customdata} calls start here<extra></extra>",
        )
    )
    fig.update_yaxes(range=[len(rows), 0], title_text="traces, by their first call")
    return fig


def token_entropy(trace: Trace) -> go.Figure:
    """The student's entropy (nats) before each token, with the calls and what the teacher wrote.

    Gaps are tokens without a recorded entropy. Raises ValueError where the trace has none.

    >>> t = Trace("2*3?", [1], [5, 6, 7], "sct", ["=", "<call>1</call>", "6"], [Call(1, 2, 1, 1, 1)])
    >>> t.entropies = [0.5, 2.0, None]
    >>> print(token_entropy(t).layout.meta["alt"].replace("; ", ";\\n"))
    Entropy of the student along 3 tokens: mean 1.25 nats, highest 2.00 at token 1;
    where commands begin, mean 2.00 nats.
    """
    known = {i: e for i, e in enumerate(trace.entropies or ()) if e is not None}
    if not known:
        raise ValueError("the trace has no entropies: record them when you decode")
    n, top = len(trace.source), 1.12 * max(0.1, *known.values())
    middle = np.arange(n) + 0.5
    entropies = [np.nan if e is None else e for e in trace.entropies]
    writers = [theme.ROLES[source].name for source in trace.source]
    hover = [f"“{plain(piece)}” · token {i} · {writers[i]}" for i, piece in enumerate(trace.pieces)]
    student, teacher, command = (theme.ROLES[source] for source in (STUDENT, TEACHER, COMMAND))
    fig = go.Figure()
    given = [(k, c) for k, c in enumerate(trace.calls) if c.delivered]
    fig.add_bar(
        name="teacher writes",
        x=[c.end + c.delivered / 2 for _, c in given],
        y=[top] * len(given),
        width=[c.delivered for _, c in given],
        hovertext=[_hover(trace, k, c) for k, c in given],
        hoverinfo="text",
        marker={"color": teacher.mark, "opacity": 0.25, "line": {"width": 1, "color": teacher.mark}},
    )
    fig.add_scatter(
        name="entropy of the student",
        mode="lines+markers" if n <= 300 else "lines",
        x=middle,
        y=entropies,
        hovertext=hover,
        hovertemplate="%{hovertext}<br>entropy %{y:.3f} nats<extra></extra>",
        line={"color": student.mark, "width": 2 if n <= 300 else 1},
        marker={"size": 5, "symbol": "circle"},
    )
    asked = [(k, c) for k, c in enumerate(trace.calls) if c.start < n]
    fig.add_scatter(
        name="a command begins",
        mode="markers",
        x=[c.start + 0.5 for _, c in asked],
        y=[known.get(c.start, 0) for _, c in asked],
        hovertext=[_hover(trace, k, c) for k, c in asked],
        hoverinfo="text",
        marker={"symbol": command.symbol, "size": 12, "color": command.mark, "line": {"width": 1, "color": LOST}},
    )
    at = max(known, key=known.get)
    starts = [known[c.start] for _, c in asked if c.start in known]
    alt = (
        f"Entropy of the student along {n:,} tokens: mean {statistics.fmean(known.values()):.2f} nats, "
        f"highest {known[at]:.2f} at token {at}"
        + (f"; where commands begin, mean {statistics.fmean(starts):.2f} nats." if starts else "; it makes no call.")
    )
    words = [plain(piece if piece.strip(" ") else "␣" * len(piece), 12) for piece in trace.pieces]
    ticks = {"tickmode": "array", "tickvals": middle, "ticktext": words, "tickangle": -90} if n <= WORDS else {}
    fig.update_layout(
        template="relaylab",
        meta={"alt": alt},
        title_text="How unsure the student is, token by token",
        xaxis={"title_text": "position in the completion (tokens)", "range": [0, n]} | ticks,
        yaxis={"title_text": "entropy of the next token (nats)", "range": [-0.03 * top, top]},
        height=420,
        bargap=0,
    )
    return fig


def save_figure(fig: go.Figure, path: str | Path, *, template: str = "relaylab_light", scale: float = 2) -> Path:
    """Write a figure as PNG, SVG, PDF (kaleido drives a Chromium or Chrome for it) or HTML; returns the file written.

    The ``template`` gives a paper its background. Without a browser it warns and writes HTML beside ``path`` instead.
    Raises ValueError for another suffix.

    >>> import tempfile
    >>> save_figure(go.Figure(), Path(tempfile.mkdtemp()) / "empty.html").name
    'empty.html'
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf", ".html"):
        raise ValueError(f"{path}: a figure is saved as .png, .svg, .pdf or .html")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig = go.Figure(fig).update_layout(template=template)
    if path.suffix != ".html":
        try:
            _render(fig, path, scale)
            return path
        except (ImportError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"{path.name} needs kaleido and a Chromium or Chrome (Debian: apt-get install chromium; or set "
                f"BROWSER_PATH); wrote HTML instead. The reason: {reason}",
                stacklevel=2,
            )
            path = path.with_suffix(".html")
    pio.write_html(fig, path, include_plotlyjs=True)
    return path


def _render(fig: go.Figure, path: Path, scale: float) -> None:
    import kaleido

    size = {"width": fig.layout.width or 900, "height": fig.layout.height or 500, "scale": scale}
    # Without mathjax=False kaleido's page loads it from the network.
    kaleido.write_fig_sync(fig, path, opts={"format": path.suffix[1:]} | size, kopts={"mathjax": False})


def _faint(color: str, opacity: float) -> str:
    return f"rgba({','.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"


def plain(text: str, limit: int = 60) -> str:
    """Text of a model for plotly, which reads tags and, between dollars, TeX."""
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return html.escape(visible(text), quote=False).replace("$", "&#36;")


def _hover(trace: Trace, k: int, call: Call) -> str:
    n = "no number" if call.requested is None else f"{call.requested:,}"
    wrote = "".join(trace.pieces[call.end : call.end + call.delivered])
    lines = [
        f"<b>call {k + 1}</b>{f' of {plain(trace.id)}' if trace.id else ''}, at token {call.start:,}",
        f"asked {n}, granted {call.granted:,}, delivered {call.delivered:,}",
        f"wrote “{plain(wrote)}”" if wrote else plain(call.status),
        plain(call.error) if call.error else "",
    ]
    return "<br>".join(filter(None, lines))


def _row_names(rows: list[Trace]) -> dict:
    if len(rows) > NAMED_ROWS:
        return {"title_text": f"{len(rows):,} traces, by their first call", "showticklabels": False, "ticks": ""}
    outcome = {True: "✓ ", False: "✗ ", None: ""}
    names = [plain(outcome[t.correct] + (t.id or f"trace {i + 1}"), 28) for i, t in enumerate(rows)]
    return {"tickmode": "array", "tickvals": list(range(len(rows))), "ticktext": names, "ticks": ""}


def _alt(rows: list[Trace]) -> str:
    firsts = [t.first_call for t in rows if t.first_call is not None]
    calls, tokens = sum(len(t.calls) for t in rows), sum(len(t.source) for t in rows)
    share = 100 * sum(t.count(TEACHER) for t in rows) / max(1, tokens)
    return (
        f"Where {len(rows):,} trace{'s call' if len(rows) > 1 else ' calls'} the teacher: {len(firsts):,} of them "
        f"call{'s' if len(firsts) == 1 else ''}, {calls:,} call{'' if calls == 1 else 's'} in all"
        + (f"; half of the first calls come by token {statistics.median_low(firsts):,}" if firsts else "")
        + f"; the teacher wrote {share:.1f} % of all tokens."
    )
