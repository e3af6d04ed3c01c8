"""Figures of evaluations: accuracy, cost, where calls are, what they delegate, and which of them mattered.

Each takes a tidy frame of ``evaluation/``. All raise ValueError for a frame without rows to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from relaylab.call_tag import visible
from relaylab.evaluation.scorecard import random_router
from relaylab.evaluation.stats import mean, summary
from relaylab.evaluation.table import each_row
from relaylab.views.figures import error_bars, figure_names, figure_text, name_panels
from relaylab.views.theme import GREY, HEAT, OKABE_ITO, with_alt_text
from relaylab.views.trace_view import plural

MEASURE_NAMES = {
    "flops": "FLOPs",
    "money": "price",
    "seconds": "time to the answer",
    "teacher_busy": "time of the teacher's machine",
}
NO_RESULT = "no result"  # a call in which the teacher wrote no digit of any step's result
BIN = 5  # per cent of a response
_GROUPED: dict[str, Any] = {"scattermode": "group", "scattergap": 0.4}  # marks of one group stand side by side
_NUMBER = r"[:,](?!student=|teacher=)\w+=[-+]?[\d.]+(?:e[-+]?\d+)?(?=,|$)"  # an option of a method that is a number
_BELOW: dict[str, Any] = {"y": -0.2, "yanchor": "top"}  # a legend below the axes, for many or long names
# Ticks at 1, 2 and 5 of each power of ten, written out: plotly writes a bare 2 and 5 between the powers.
_LOG_TICKS: dict[str, Any] = {
    "type": "log", "tickmode": "array", "tickvals": [d * 10.0**power for power in range(-6, 7) for d in (1, 2, 5)],
    "tickformat": ",.4~g",
}  # fmt: skip


def accuracy_against_share(table: pd.DataFrame, *, student: str = "student", teacher: str = "teacher") -> go.Figure:
    """Every method's accuracy against the teacher's share of its tokens, both with 95 % intervals.

    Methods that differ only in numbers (``router:p=0.3``, ``router:p=0.5``) are joined by a line. If ``student`` and
    ``teacher`` are in the table, a dashed line shows what a random router reaches.
    """
    frame = summary(table)
    plain, hover = frame["method"].str.replace(_NUMBER, "", regex=True), figure_names(frame["method"])
    frame["kind"] = plain.map(figure_names(plain))
    kinds = list(dict.fromkeys(frame["kind"]))
    frame = frame.sort_values("teacher_share", kind="stable")
    accuracy, share = frame["accuracy"], frame["teacher_share"]
    fig = px.line(
        frame.assign(share=100 * share, solved=100 * accuracy, method=frame["method"].map(hover)),
        x="share", y="solved", color="kind", symbol="kind", markers=True, hover_name="method", template="relaylab",
        **error_bars("x", 100 * share, 100 * frame["teacher_low"], 100 * frame["teacher_high"]),
        **error_bars("y", 100 * accuracy, 100 * frame["low"], 100 * frame["high"]),
        color_discrete_sequence=OKABE_ITO[:6], category_orders={"kind": kinds},
        labels={"share": "teacher tokens of all tokens (%)", "solved": "problems solved (%)"},
    )  # fmt: skip
    fig.update_traces(marker_size=10, line_width=1, error_x_thickness=1, error_y_thickness=1)
    fig.update_traces(hovertemplate="%{hovertext}<br>%{y:.1f} % right, %{x:.1f} % teacher tokens<extra></extra>")
    ends = frame.set_index("method")["accuracy"]
    if {student, teacher} <= set(ends.index):
        router = np.linspace(0, 1, 21)
        line = [100 * random_router(ends[student], ends[teacher], s) for s in router]
        _reference(fig, "random router (expected)", 100 * router, line)
    best = frame.sort_values("accuracy", ascending=False)
    points = zip(best["method"], 100 * best["accuracy"], 100 * best["teacher_share"])
    words = "; ".join(f"{visible(m)}: {_known(a, '{:.1f} % right')} at {s:.1f} %" for m, a, s in points)
    alt = f"Accuracy against the teacher's share of all tokens, {table['id'].nunique()} problems. {words}."
    return with_alt_text(fig, alt, "Accuracy against the teacher's share", height=640, legend=_BELOW | {"y": -0.16})


def suite_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Solved problems (%) of each method in each suite, with their 95 % interval low..high."""
    rows = []
    if "excluded" in table:  # their teacher failed: missing values
        table = table.assign(correct=table["correct"].where(table["excluded"] == 0))
    for (method, suite), f in table.groupby(["method", "suite"], sort=False):
        found = mean(f.groupby("id")["correct"].mean().to_numpy())
        rows.append((method, suite, 100 * found.value, 100 * found.low, 100 * found.high))
    return pd.DataFrame(rows, columns=["method", "suite", "solved %", "low", "high"])


def suite_bars(table: pd.DataFrame) -> go.Figure:
    """Accuracy in each suite, with 95 % intervals: a small panel per method."""
    frame = suite_accuracy(table)
    methods, across = list(dict.fromkeys(frame["method"])), min(3, frame["method"].nunique())
    words = "; ".join(
        f"{visible(str(m))}: "
        + ", ".join(f"{visible(s)} {_known(v, '{:.0f} %')}" for s, v in zip(f["suite"], f["solved %"]))
        for m, f in frame.groupby("method", sort=False)
    )
    frame = frame.assign(**{name: frame[name].map(figure_names(frame[name])) for name in ("method", "suite")})
    fig = px.bar(
        frame, x="suite", y="solved %", facet_col="method", facet_col_wrap=across, template="relaylab",
        labels={"suite": ""}, **error_bars("y", frame["solved %"], frame["low"], frame["high"]),
    )  # fmt: skip
    name_panels(fig)
    fig.update_traces(hovertemplate="%{x}: %{y:.1f} %<extra></extra>", error_y_thickness=1)
    fig.update_yaxes(range=[0, 105], title_text="").update_yaxes(title_text="solved (%)", col=1)
    fig.update_xaxes(tickangle=-60)
    height = 160 + 190 * -(-len(methods) // across)
    return with_alt_text(fig, f"Accuracy by suite. {words}.", "Accuracy by suite", showlegend=False, height=height)


def position_figure(calls: pd.DataFrame) -> go.Figure:
    """How far into the response calls begin, by what they delegate; from ``placement.calls_frame``.

    >>> frame = pd.DataFrame({"status": ["answered"] * 2, "position": [0.1, 0.6], "kind": ["sum", None]})
    >>> print(position_figure(frame).layout.meta["alt"])
    Where 2 answered calls begin: half of them by 35 % of the response. Delegated: no result 1, sum 1.
    """
    calls = _answered(calls)
    at = (100 * calls["position"] // BIN).clip(upper=100 // BIN - 1) * BIN + BIN / 2
    fig = _counts(calls.assign(at=at), "at", "kind", "start of the call (% of the response's tokens)")
    alt = (
        f"Where {plural(len(calls), 'answered call')} begin{'s' if len(calls) == 1 else ''}: half of them by "
        f"{100 * calls['position'].median():.0f} % of the response. Delegated: {_counted(calls['kind'])}."
    )
    fig.update_xaxes(range=[0, 100])
    return with_alt_text(fig, alt, "How far into the response calls begin", height=460, bargap=0.08)


def delegation_figure(calls: pd.DataFrame) -> go.Figure:
    """What kinds of step are delegated, and where in the line such calls begin; from ``placement.calls_frame``."""
    calls = _answered(calls)
    fig = _counts(calls, "kind", "place", "kind of step", order=_order(calls["kind"]))
    share = calls["share"][calls["kind"] != NO_RESULT]
    written = f"; where it writes a result, the teacher writes {100 * share.mean():.0f} % of it" if len(share) else ""
    places = _counted(calls["place"].astype(str))
    kinds = f"{plural(len(calls), 'answered call')}: {_counted(calls['kind'])}{written}"
    alt = f"What is delegated in {kinds}. Places in the line: {places}."
    return with_alt_text(fig, alt, "What is delegated, and where in the line the call begins", height=460)


def window_figure(windows: pd.DataFrame, *, value: str = "entropy") -> go.Figure:
    """The student's ``entropy`` or ``logprob`` around its calls and at similar places without one.

    From ``placement.windows_frame``. Points are means, bars are 1.96 standard errors.
    """
    if value not in ("entropy", "logprob"):
        raise ValueError(f"value is {value!r}; it must be 'entropy' or 'logprob'")
    known = _some(windows.dropna(subset=value), "values around a call")
    name = "entropy" if value == "entropy" else "log-probability"
    phases = {"before": "up to the call", "teacher": "the teacher's tokens", "after": "after the answer"}
    stats = known.astype({"phase": str}).groupby(["group", "phase", "offset"])[value].agg(["mean", "sem", "count"])
    stats = stats.reset_index().assign(phase=lambda f: f["phase"].map(phases))
    fig = px.line(
        stats, x="offset", y="mean", error_y=1.96 * stats["sem"].fillna(0), facet_col="phase", color="group",
        line_dash="group", symbol="group", markers=True, hover_data=["count"], template="relaylab",
        category_orders={"phase": list(phases.values())},
        labels={"offset": "tokens from the edge", "mean": f"{name} (nats)"},
    )  # fmt: skip
    name_panels(fig)
    fig.update_xaxes(matches=None, tick0=0, dtick=1 if stats["offset"].nunique() <= 25 else 5)
    words = []
    for group, f in known.groupby("group"):
        at = f[(f["phase"] == "before") & (f["offset"] == 0)][value]
        place = "where a call begins" if group == "call" else "at similar places without a call"
        words += [f"{at.mean():.2f} nats {place} (n = {len(at)})"] if len(at) else []
        written = f[f["phase"] == "teacher"][value]
        words += [f"{written.mean():.2f} over the teacher's first tokens"] if len(written) else []
    alt = f"Mean {name} of the student's next token: {', '.join(words)}."
    return with_alt_text(fig, alt, f"The student's {name} around a call", height=460, legend=_BELOW)


def delivery_figure(calls: pd.DataFrame) -> go.Figure:
    """Requested tokens against delivered tokens, one mark for all calls of a kind; from ``placement.calls_frame``.

    The scales are logarithmic if a call requests more than 100; nothing delivered is then drawn at 0.5.
    """
    calls = _some(calls.dropna(subset="requested"), "calls that request a number of tokens")
    log = bool(calls["requested"].max() > 100)
    counts = calls.groupby(["outcome", "requested", "delivered"], observed=True).size().rename("calls").reset_index()
    counts["outcome"] = counts["outcome"].astype(str).map(figure_text)
    counts["requested"] = counts["requested"].astype(float)
    drawn = counts.assign(y=counts["delivered"].clip(lower=0.5) if log else counts["delivered"])
    fig = px.scatter(
        drawn, x="requested", y="y", color="outcome", symbol="outcome", size="calls", log_x=log, log_y=log,
        opacity=0.8, hover_data={"delivered": True, "y": False}, template="relaylab",
        labels={"requested": "requested (tokens)", "y": "delivered (tokens)"},
    )  # fmt: skip
    top = int(max(calls["requested"].max(), calls["delivered"].max()))
    _reference(fig, "delivered = requested", [1, top], [1, top])
    means = [f"{calls[name].mean():.1f}" for name in ("requested", "granted", "delivered")]
    alt = (
        f"{plural(len(calls), 'call')}: {means[0]} tokens requested on average, {means[1]} granted, {means[2]} "
        f"delivered. Outcomes: {_counted(calls['outcome'].astype(str))}."
    )
    return with_alt_text(fig, alt, "Tokens requested and delivered", height=460)


def verdict_figure(verdicts: pd.DataFrame, *, by: str = "suite") -> go.Figure:
    """Which calls were needed, wasted or harmful, one bar per group; from ``counterfactual.verdicts``."""
    fig = _counts(_some(verdicts, "calls"), by, "verdict", by, order=list(dict.fromkeys(verdicts[by].astype(str))))
    accuracy = [f"{100 * verdicts[name].mean():.1f} %" for name in ("with", "against")]
    counts = f"{plural(len(verdicts), 'call')}: {_counted(verdicts['verdict'].astype(str))}"
    alt = f"{counts}. Mean accuracy {accuracy[0]} with the call, {accuracy[1]} otherwise."
    return with_alt_text(fig, alt, "Calls that mattered", height=460)


def effects_figure(effects: pd.DataFrame, *, by: str = "suite") -> go.Figure:
    """What a call adds over each alternative, in points of accuracy with 95 % intervals; from
    ``counterfactual.effects_by`` with the same ``by``."""
    f = _some(effects[effects["arm"] != "with"], "arms beside the calls as they were")
    f = f.assign(**{by: f[by].astype(object).fillna("none").astype(str)})
    f = f.assign(arm=f["arm"].astype(str), gain=100 * f["gain"], low=100 * f["low"], high=100 * f["high"])
    fig = _grouped(f, by, "gain", "arm", {by: figure_text(by), "gain": "gain of the call (points of accuracy)"})
    fig.add_hline(y=0, line={"color": GREY, "dash": "dot", "width": 1})
    parts = [
        f"over {visible(str(arm))} "
        + ", ".join(f"{_known(r.gain, '{:+.0f}')} in {visible(str(getattr(r, by)))}" for r in each_row(rows))
        for arm, rows in f.groupby("arm", sort=False)
    ]
    alt = f"Points of accuracy that a call adds: {'; '.join(parts)}."
    return with_alt_text(fig, alt, "What a call adds over its alternatives", height=460, **_GROUPED)


def transfer_figure(transfer: pd.DataFrame, *, by: str | None = None) -> go.Figure:
    """Accuracy and the teacher's share of the tokens with each teacher, with 95 % intervals; from
    ``placement.transfer_frame`` with the same ``by``."""
    group = transfer[by].astype(object).fillna("none").astype(str) if by else "all problems"
    f = _some(transfer, "teachers").assign(group=group)
    names = {"accuracy": "accuracy (% of problems)", "teacher_share": "teacher tokens (% of all)"}
    long = f.melt(["teacher", "group", "low", "high"], list(names), var_name="panel")
    long[["value", "low", "high"]] *= 100
    long.loc[long["panel"] == "teacher_share", ["low", "high"]] = np.nan  # its interval is not in the frame
    long["panel"] = long["panel"].map(names)
    fig = _grouped(long, "teacher", "value", "group", {}, facet_row="panel", facet_row_spacing=0.09)
    fig.layout.annotations = ()
    fig.update_yaxes(matches=None, title_text=names["accuracy"], range=[-3, 103])
    fig.update_yaxes(title_text=names["teacher_share"], range=None, rangemode="tozero", row=1)
    words = "; ".join(
        f"{visible(str(r.teacher))}{f' in {visible(r.group)}' if by else ''} "
        f"{_known(100 * r.accuracy, '{:.1f} % right')}, {100 * r.teacher_share:.1f} % of the tokens"
        for r in each_row(f)
    )
    alt = f"One student with other teachers: {words}."
    return with_alt_text(fig, alt, "Transfer between teachers", height=560, showlegend=by is not None, **_GROUPED)


def agreement_figure(agreement: pd.DataFrame) -> go.Figure:
    """The share of the lines with a call after the first one in which both teachers' answers have one; from
    ``placement.agreement_frame``."""
    _some(agreement, "pairs of teachers")
    both = pd.concat([agreement, agreement.rename(columns={"a": "b", "b": "a"})])
    names = list(dict.fromkeys(both["a"]))
    share = 100 * both.pivot(index="a", columns="b", values="same_later").reindex(index=names, columns=names)
    words = []
    for r in each_row(agreement):
        later = "none" if math.isnan(r.same_later) else f"{100 * r.same_later:.0f} %"
        first = f"(first calls alike in {100 * r.same_first:.0f} % of {r.either} problems)"
        first = first if r.either else "(no problem has a call)"
        words.append(f"{visible(r.a)} and {visible(r.b)} {later} of {r.later} lines {first}")
    shown = figure_names(names)
    fig = px.imshow(
        share.rename(index=shown, columns=shown), zmin=0, zmax=100, aspect="auto", template="relaylab",
        color_continuous_scale=HEAT,
        labels={"x": "teacher", "y": "teacher", "color": "lines with a call in both (%)"},
    ).update_traces(hoverongaps=False, texttemplate="%{z:.0f}")  # fmt: skip
    fig.update_coloraxes(colorbar={"title_side": "right", "thickness": 12})
    alt = f"Agreement on where to call after a first answer: {'; '.join(words)}."
    return with_alt_text(fig, alt, "Do other teachers move the later calls?", height=460)


def fleet_load(curve: pd.DataFrame) -> go.Figure:
    """Latency and utilisation of one teacher replica against the requests sent to it; one line per system.

    ``curve`` has ``system``, ``rate`` (requests per second), ``p50`` and ``p95`` (seconds) and ``utilisation`` (0..1).
    """
    _some(curve, "simulated load")
    panels = dict.fromkeys(("p95", "p50"), "time to the answer (s)") | {"utilisation": "replica works (% of time)"}
    systems = curve["system"].map(str)
    long = curve.assign(utilisation=100 * curve["utilisation"], system=systems.map(figure_names(systems)))
    long = long.melt(["system", "rate"], list(panels), var_name="quantity").sort_values("rate", kind="stable")
    long["panel"] = long["quantity"].map(panels)
    long["quantity"] = (long["quantity"] == "p50").map({True: "median", False: "95th percentile or share"})
    fig = px.line(
        long, x="rate", y="value", color="system", symbol="system", line_dash="quantity", facet_row="panel",
        markers=True, log_x=True, facet_row_spacing=0.09, template="relaylab",
        labels={"rate": "requests sent to one replica (1/s)"},
        category_orders={"panel": list(dict.fromkeys(panels.values())), "system": list(dict.fromkeys(long["system"]))},
    )  # fmt: skip
    fig.layout.annotations = ()
    fig.update_yaxes(matches=None, title_text=panels["utilisation"], range=[0, 105])
    fig.update_yaxes(title_text=panels["p95"], range=None, **_LOG_TICKS, row=2).update_xaxes(**_LOG_TICKS)
    words = []
    for system, line in curve.sort_values("rate").groupby("system", sort=False):
        a, b = line.iloc[0], line.iloc[-1]
        first = f"{visible(str(system))}: 95th percentile {a.p95:.3g} s at {a.rate:.3g} requests/s and"
        busy = f"where the replica works {100 * b.utilisation:.0f} % of the time"
        words.append(f"{first} {b.p95:.3g} s at {b.rate:.3g}, {busy}")
    alt = f"One teacher replica under load; {'; '.join(words)}."
    return with_alt_text(fig, alt, "What one teacher carries", height=620, legend=_BELOW | {"y": -0.14})


def _reference(fig: go.Figure, name: str, x: Iterable[float], y: Iterable[float]) -> None:
    """A grey dotted line to compare with."""
    style = {"mode": "lines", "hoverinfo": "skip", "line": {"color": GREY, "dash": "dot"}}
    fig.add_scatter(name=name, x=list(x), y=list(y), **style)


def _counts(frame: pd.DataFrame, x: str, color: str, title: str, *, order: Iterable[str] = ()) -> go.Figure:
    """Stacked bars of the number of calls, by ``x`` and by ``color``, which has a pattern, too."""
    categories = frame[color].cat.categories if hasattr(frame[color], "cat") else _order(frame[color])
    texts = {name: frame[name].astype(str) for name in (x, color) if name != "at"}
    known = {x: [*order], color: [*map(str, categories)]}
    shown = {name: figure_names([*known[name], *text]) for name, text in texts.items()}
    used = frame.assign(**{name: text.map(shown[name]) for name, text in texts.items()})
    counts = used.groupby([color, x], sort=False).size().rename("count").reset_index()
    orders = {name: [shown[name][one] for one in ordered] for name, ordered in known.items()}
    fig = px.bar(counts, x=x, y="count", color=color, pattern_shape=color, category_orders=orders, template="relaylab",
                 labels={x: figure_text(title), "count": "calls"})  # fmt: skip
    fig.update_traces(marker_pattern_solidity=0.25)
    return fig.for_each_trace(lambda bar: bar.update(marker_line={"width": 1, "color": bar.marker.color}))


def _grouped(f: pd.DataFrame, x: str, y: str, color: str, labels: dict[str, str], **facets: Any) -> go.Figure:
    """Marks with intervals low..high, side by side in each group of ``x``."""
    texts = {name: f[name].astype(str) for name in (x, color)}
    f = f.assign(**{name: text.map(figure_names(text)) for name, text in texts.items()})
    orders = {x: list(dict.fromkeys(f[x])), color: list(dict.fromkeys(f[color]))}
    fig = px.scatter(f, x=x, y=y, color=color, symbol=color, labels=labels, category_orders=orders,
                     template="relaylab", **error_bars("y", f[y], f["low"], f["high"]), **facets)  # fmt: skip
    fig.update_traces(marker_size=10, error_y_thickness=1.5)
    return fig.for_each_trace(lambda marks: marks.update(offsetgroup=marks.name))


def _known(value: float, form: str) -> str:
    """A number in words, or that it is not known."""
    return "unknown" if math.isnan(value) else form.format(value)


def _answered(calls: pd.DataFrame) -> pd.DataFrame:
    calls = _some(calls[calls["status"] == "answered"], "answered calls")
    return calls.assign(kind=calls["kind"].astype(object).where(calls["kind"].notna(), NO_RESULT))


def _some(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    if frame.empty:
        raise ValueError(f"there are no {what} to draw")
    return frame


def _order(names: pd.Series) -> list[str]:
    """The most frequent first, by name if equal."""
    counts = names.value_counts()
    return sorted(counts.index, key=lambda name: (-counts[name], name))


def _counted(names: pd.Series) -> str:
    return ", ".join(f"{visible(name)} {(names == name).sum()}" for name in _order(names))
