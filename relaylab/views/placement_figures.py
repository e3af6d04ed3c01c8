"""Figures of call placement: where calls are, what they delegate, and which of them mattered. Imports no torch.

Each takes a frame of ``evaluation/placement.py`` or ``evaluation/counterfactual.py`` and returns a plotly ``Figure``
with a text alternative in ``layout.meta["alt"]``; ``theme.described`` shows both. All raise ValueError on an empty frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from relaylab.views import theme
from relaylab.views.figures import plain
from relaylab.views.trace_view import visible

theme.register()

# Beside its colour every series has a pattern, a symbol and a dash of its own.
PATTERNS = ("", "/", ".", "x", "-", "\\", "+")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
NO_RESULT = "no result"  # a call in which the teacher wrote no digit of any step's result
BINS = 20  # of the positions in a response


def position_figure(calls: pd.DataFrame) -> go.Figure:
    """How far into the response calls begin, by what they delegate; from ``placement.calls_frame``.

    >>> frame = pd.DataFrame({"status": ["answered"] * 2, "position": [0.1, 0.6], "kind": ["sum", None]})
    >>> print(position_figure(frame).layout.meta["alt"])
    Where 2 answered calls begin: half of them by 35 % of the response. Delegated: no result 1, sum 1.
    """
    calls = _answered(calls)
    edges, kinds = np.linspace(0, 100, BINS + 1), _kinds(calls)
    fig = go.Figure()
    for i, kind in enumerate(_order(kinds)):
        counts, _ = np.histogram(100 * calls["position"][kinds == kind], bins=edges)
        _bars(fig, kind, (edges[:-1] + edges[1:]) / 2, counts, i, "around %{x} % of the response")
    median = 100 * calls["position"].median()
    alt = (
        f"Where {_count(len(calls), 'answered call')} begin{'s' if len(calls) == 1 else ''}: half of them by "
        f"{median:.0f} % of the response. Delegated: {_counted(kinds)}."
    )
    _finish(
        fig, alt, "How far into the response calls begin", "start of the call (% of the response's tokens)", "calls"
    )
    return fig.update_layout(barmode="stack", bargap=0.08, xaxis_range=[0, 100])


def delegation_figure(calls: pd.DataFrame) -> go.Figure:
    """What kinds of step are delegated, and where in the line such calls begin; from ``placement.calls_frame``."""
    calls = _answered(calls)
    kinds, places = _kinds(calls), calls["place"].astype("category")
    order = _order(kinds)
    fig = go.Figure()
    for i, name in enumerate(places.cat.categories):
        if (places == name).any():
            counts = [int(((kinds == kind) & (places == name)).sum()) for kind in order]
            _bars(fig, name, [plain(kind) for kind in order], counts, i, "%{x}")
    share = calls["share"][kinds != NO_RESULT]
    written = f"; where it writes a result, the teacher writes {100 * share.mean():.0f} % of it" if len(share) else ""
    alt = (
        f"What is delegated in {_count(len(calls), 'answered call')}: {_counted(kinds)}{written}. "
        f"Places in the line: {_counted(places.astype(str))}."
    )
    _finish(fig, alt, "What is delegated, and where in the line the call begins", "kind of step", "calls")
    return fig.update_layout(barmode="stack")


def window_figure(windows: pd.DataFrame, *, value: str = "entropy") -> go.Figure:
    """The student's ``entropy`` or ``logprob`` around its calls and at like places without one; from
    ``placement.windows_frame``. Means, with bars of 1.96 standard errors."""
    if value not in ("entropy", "logprob"):
        raise ValueError(f"value is {value!r}; it must be 'entropy' or 'logprob'")
    known = windows.dropna(subset=value)
    _needs(known, "values around a call")
    titles = {"before": "up to the call", "teacher": "the teacher's tokens", "after": "behind the answer"}
    widths = [1 + known["offset"][known["phase"] == phase].nunique() for phase in titles]
    fig = make_subplots(
        cols=3, shared_yaxes=True, column_widths=widths, horizontal_spacing=0.03, subplot_titles=list(titles.values())
    )
    told = []
    for i, (group, f) in enumerate(known.groupby("group", sort=True)):
        for col, phase in enumerate(titles, 1):
            stats = f[f["phase"] == phase].groupby("offset")[value].agg(["mean", "sem", "count"])
            if stats.empty:
                continue
            fig.add_scatter(
                row=1,
                col=col,
                name=group,
                legendgroup=group,
                showlegend=col == 1,
                mode="lines+markers",
                x=stats.index,
                y=stats["mean"],
                error_y={"type": "data", "array": 1.96 * stats["sem"].fillna(0), "thickness": 1, "width": 2},
                customdata=stats["count"],
                hovertemplate="offset %{x}: %{y:.3f} nats, mean of %{customdata}<extra>" + group + "</extra>",
                line={"color": theme.OKABE_ITO[i], "dash": ("solid", "dash")[i % 2], "width": 2},
                marker={"symbol": SYMBOLS[i], "size": 7},
            )
        at = f[(f["phase"] == "before") & (f["offset"] == 0)][value]
        place = "where a call begins" if group == "call" else "at like places without a call"
        told += [f"{at.mean():.2f} nats {place} (n = {len(at)})"] if len(at) else []
        said = f[f["phase"] == "teacher"][value]
        told += [f"{said.mean():.2f} over the teacher's first tokens"] if len(said) else []
    name = "entropy" if value == "entropy" else "log-probability"
    alt = f"Mean {name} of the student's next token: {', '.join(told)}."
    _finish(fig, alt, f"The student's {name} around a call", None, None)
    fig.update_yaxes(title_text=f"{name} (nats)", col=1)
    fig.update_xaxes(title_text="tokens from the edge", tickformat="d")
    return fig.update_annotations(font_size=14).update_layout(legend={"y": -0.2, "yanchor": "top"})


def delivery_figure(calls: pd.DataFrame) -> go.Figure:
    """Tokens requested against tokens delivered, a mark for all calls of one kind; from ``placement.calls_frame``.

    The scales are logarithmic where some call asks for more than 100; nothing delivered is then drawn at 0.5.
    """
    calls = calls.dropna(subset="requested")
    _needs(calls, "calls that ask for a number of tokens")
    log = calls["requested"].max() > 100
    counts = calls.groupby(["outcome", "requested", "delivered"], sort=True).size().rename("calls").reset_index()
    top = int(max(calls["requested"].max(), calls["delivered"].max()))
    fig = go.Figure()
    fig.add_scatter(
        name="delivered = requested", mode="lines", x=[1, top], y=[1, top], hoverinfo="skip",
        line={"color": "#7F7F7F", "dash": "dot", "width": 1},
    )  # fmt: skip
    for i, (name, f) in enumerate(counts.groupby("outcome")):
        fig.add_scatter(
            name=plain(name),
            mode="markers",
            x=f["requested"].astype(float),
            y=f["delivered"].clip(lower=0.5) if log else f["delivered"],
            customdata=f[["calls", "delivered"]],
            hovertemplate="asked %{x}, got %{customdata[1]}: %{customdata[0]} calls<extra>" + plain(name) + "</extra>",
            marker=_mark(i) | {"size": 8 + 20 * np.sqrt(f["calls"] / counts["calls"].max()), "opacity": 0.8},
        )
    alt = (
        f"{_count(len(calls), 'call')}: {calls['requested'].mean():.1f} tokens requested on average, "
        f"{calls['granted'].mean():.1f} granted, {calls['delivered'].mean():.1f} delivered. "
        f"Outcomes: {_counted(calls['outcome'])}."
    )
    _finish(fig, alt, "What is asked for, and what comes", "requested (tokens)", "delivered (tokens)")
    if log:
        fig.update_xaxes(type="log")
        fig.update_yaxes(type="log")
    return fig


def verdict_figure(verdicts: pd.DataFrame, *, by: str = "suite") -> go.Figure:
    """Which calls were needed, wasted or harmful, a bar a group; from ``counterfactual.verdicts``."""
    _needs(verdicts, "calls")
    groups = verdicts[by].astype(str)
    order = list(dict.fromkeys(groups))
    fig = go.Figure()
    for i, name in enumerate(verdicts["verdict"].cat.categories):
        counts = [int(((groups == group) & (verdicts["verdict"] == name)).sum()) for group in order]
        _bars(fig, name, [plain(group) for group in order], counts, i, "%{x}")
    alt = (
        f"{_count(len(verdicts), 'call')}: {_counted(verdicts['verdict'].astype(str))}. Mean accuracy "
        f"{100 * verdicts['with'].mean():.1f} % with the call, {100 * verdicts['against'].mean():.1f} % otherwise."
    )
    _finish(fig, alt, "Calls that mattered", by, "calls")
    return fig.update_layout(barmode="stack")


def effects_figure(effects: pd.DataFrame, *, by: str = "suite") -> go.Figure:
    """What a call adds over each alternative, in points of accuracy with 95 % intervals; from
    ``counterfactual.effects_by``, whose ``by`` it is."""
    found = effects[effects["arm"] != "with"]
    _needs(found, "arms beside the calls as they were")
    fig, order = go.Figure(), list(dict.fromkeys(found[by].astype(str)))
    arms = [arm for arm in found["arm"].cat.categories if (found["arm"] == arm).any()]
    told = []
    for i, arm in enumerate(arms):
        f = found[found["arm"] == arm]
        gain = 100 * f["gain"]
        x = [order.index(str(group)) + _beside(i, len(arms)) for group in f[by]]
        fig.add_scatter(
            name=plain(arm),
            mode="markers",
            x=x,
            y=gain,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (100 * f["high"] - gain).fillna(0),
                "arrayminus": (gain - 100 * f["low"]).fillna(0),
                "thickness": 1.5,
            },
            customdata=np.column_stack([f["calls"], 100 * f["accuracy"]]),
            hovertemplate="%{y:+.1f} points over %{customdata[1]:.1f} %, %{customdata[0]} calls"
            f"<extra>{plain(arm)}</extra>",
            marker=_mark(i) | {"size": 10},
        )
        told.append(f"over {visible(arm)} " + ", ".join(f"{g:+.0f} in {visible(str(s))}" for g, s in zip(gain, f[by])))
    fig.add_hline(y=0, line={"color": "#7F7F7F", "dash": "dot", "width": 1})
    alt = f"Points of accuracy that a call adds: {'; '.join(told)}."
    _finish(fig, alt, "What a call adds over its alternatives", by, "gain of the call (points of accuracy)")
    return fig.update_xaxes(tickvals=list(range(len(order))), ticktext=[plain(group) for group in order])


def transfer_figure(transfer: pd.DataFrame, *, by: str | None = None) -> go.Figure:
    """Accuracy and the teacher's share of the tokens with each teacher, with 95 % intervals; from
    ``placement.transfer_frame``, whose ``by`` it is."""
    _needs(transfer, "teachers")
    fig = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.09)
    names = list(dict.fromkeys(transfer["teacher"]))
    groups = list(transfer.groupby(by, sort=False)) if by else [("all problems", transfer)]
    for i, (group, f) in enumerate(groups):
        style = {
            "name": plain(str(group)),
            "legendgroup": str(i),
            "mode": "markers",
            "x": [names.index(name) + _beside(i, len(groups)) for name in f["teacher"]],
            "hovertemplate": f"%{{y:.1f}} %<extra>{plain(str(group))}</extra>",
            "marker": _mark(i) | {"size": 9},
        }
        error = {"type": "data", "symmetric": False, "thickness": 1.5}
        error |= {"array": 100 * (f["high"] - f["accuracy"]), "arrayminus": 100 * (f["accuracy"] - f["low"])}
        fig.add_scatter(row=1, col=1, y=100 * f["accuracy"], error_y=error, showlegend=by is not None, **style)
        fig.add_scatter(row=2, col=1, y=100 * f["teacher_share"], showlegend=False, **style)
    told = [
        f"{visible(r.teacher)}{f' in {visible(str(getattr(r, by)))}' if by else ''} {100 * r.accuracy:.1f} % right, "
        f"{100 * r.teacher_share:.1f} % of the tokens"
        for r in transfer.itertuples()
    ]
    _finish(fig, f"One student with other teachers: {'; '.join(told)}.", "Transfer between teachers", None, None)
    fig.update_yaxes(title_text="accuracy (% of problems)", row=1, range=[-3, 103])
    fig.update_yaxes(title_text="teacher tokens (% of all)", row=2, rangemode="tozero")
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=[plain(name) for name in names])
    fig.update_xaxes(title_text="teacher", row=2)
    return fig.update_layout(height=560)


def agreement_figure(agreement: pd.DataFrame) -> go.Figure:
    """Of the lines with a call behind the first, the share in which both teachers' answers have one; from
    ``placement.agreement_frame``."""
    _needs(agreement, "pairs of teachers")
    names = list(dict.fromkeys([*agreement["a"], *agreement["b"]]))
    share = np.full((len(names), len(names)), np.nan)
    for r in agreement.itertuples():
        i, j = names.index(r.a), names.index(r.b)
        share[i, j] = share[j, i] = 100 * r.same_later
    ink = theme.OKABE_ITO[0]
    fig = go.Figure(
        go.Heatmap(
            z=share,
            x=[plain(name) for name in names],
            y=[plain(name) for name in names],
            zmin=0,
            zmax=100,
            text=np.where(np.isnan(share), "", np.char.add(np.char.mod("%.0f", share), " %")),
            texttemplate="%{text}",
            hoverongaps=False,
            colorscale=[[0, "rgba(0,114,178,.1)"], [1, ink]],
            colorbar={"title": {"text": "lines with a call in both (%)", "side": "right"}, "thickness": 12},
            hovertemplate="%{x} and %{y}: %{z:.1f} %<extra></extra>",
        )
    )
    told = [
        f"{visible(r.a)} and {visible(r.b)} {'none' if np.isnan(r.same_later) else f'{100 * r.same_later:.0f} %'} "
        f"of {r.later} lines (first calls alike in {100 * r.same_first:.0f} % of {r.either} problems)"
        for r in agreement.itertuples()
    ]
    alt = f"Agreement on where to call after a first answer: {'; '.join(told)}."
    return _finish(fig, alt, "Do other teachers move the later calls?", "teacher", "teacher")


def _bars(fig: go.Figure, name: str, x: Sequence, counts: Sequence[int], i: int, where: str) -> None:
    name = plain(name)
    color = theme.OKABE_ITO[i % 7]
    marker = {
        "color": color,
        "pattern": {"shape": PATTERNS[i % 7], "solidity": 0.25},
        "line": {"width": 1, "color": color},
    }
    fig.add_bar(name=name, x=x, y=counts, marker=marker, hovertemplate=f"{where}: %{{y}} calls<extra>{name}</extra>")


def _mark(i: int) -> dict[str, str]:
    """Colour and symbol of series i; beyond seven, colours meet other symbols."""
    return {"color": theme.OKABE_ITO[i % 7], "symbol": SYMBOLS[(i + i // 7) % 7]}


def _beside(i: int, n: int) -> float:
    """How far series i of n stands from the middle of its group on an axis with a group at every whole number."""
    return (i - (n - 1) / 2) * 0.6 / n


def _finish(fig: go.Figure, alt: str, title: str, x: str | None, y: str | None) -> go.Figure:
    fig.update_layout(template="relaylab", meta={"alt": alt}, title_text=title, height=460, legend_traceorder="normal")
    if x:
        fig.update_xaxes(title_text=x)
        fig.update_yaxes(title_text=y)
    return fig


def _answered(calls: pd.DataFrame) -> pd.DataFrame:
    calls = calls[calls["status"] == "answered"]
    _needs(calls, "answered calls")
    return calls


def _needs(frame: pd.DataFrame, what: str) -> None:
    if frame.empty:
        raise ValueError(f"there are no {what} to draw")


def _kinds(calls: pd.DataFrame) -> pd.Series:
    return calls["kind"].astype(object).where(calls["kind"].notna(), NO_RESULT)


def _order(names: pd.Series) -> list[str]:
    """The most frequent first, by name where equal."""
    counts = names.value_counts()
    return sorted(counts.index, key=lambda name: (-counts[name], name))


def _counted(names: pd.Series) -> str:
    return ", ".join(f"{visible(name)} {(names == name).sum()}" for name in _order(names))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
