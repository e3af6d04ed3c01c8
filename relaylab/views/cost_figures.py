"""What a relay costs, drawn: cost against the teacher's share of the tokens, and a fleet of students under load.

They draw the frames of ``analysis.cost.sweep`` and ``analysis.fleet.load_curve`` and compute nothing themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from relaylab.views import theme
from relaylab.views.figures import plain

theme.register()

# Of each measure its name, and what is said of it in the text alternative.
NAMES = {
    "flops": "FLOPs",
    "money": "price",
    "seconds": "time to the answer",
    "teacher_busy": "time of the teacher's machine",
}
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "x", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
VARIED = ("cache", "network_delay", "batch", "call_tokens")  # what tells the lines of a sweep apart
EVEN = "#7F7F7F"  # the line on which the cost is the share


def cost_against_share(swept: pd.DataFrame, *, measure: str = "flops") -> go.Figure:
    """Cost against the teacher's share, both in % of the teacher alone, on logarithmic axes; a line a setting.

    ``swept``: of ``analysis.cost.sweep``; along a line the number of calls grows. Solid lines keep the teacher's cache,
    dashed ones do not. On the grey diagonal 1 % of the tokens would be 1 % of the cost. Raises ValueError for a measure
    that is unknown, or has no value because a price or a speed is not set.

    >>> frame = pd.DataFrame({"calls": [1, 2], "call_tokens": 5, "network_delay": 0.0, "cache": True, "batch": 1,
    ...                       "teacher_share": [0.01, 0.02], "flops": [0.7, 0.8]})
    >>> print(cost_against_share(frame).layout.meta["alt"].replace("; ", ";\\n"))
    FLOPs of a relay against the teacher's share of the tokens, both relative to the teacher alone;
    cache kept: 70 % at a share of 1 %, 80 % at 2 %.
    """
    if measure not in NAMES or measure not in swept:
        raise ValueError(f"measure is {measure!r}; there are {', '.join(NAMES)}")
    drawn = swept[(swept.teacher_share > 0) & swept[measure].notna()]
    if drawn.empty:
        raise ValueError(f"no value of {measure} to draw: set its prices or speeds, and sweep at least one call")
    varied = [name for name in VARIED if drawn[name].nunique() > 1 or name == "cache"]
    colors = list(dict.fromkeys(drawn[varied[1:]].itertuples(index=False, name=None)))
    fig, told = go.Figure(), []
    for key, line in drawn.groupby(varied, sort=False):
        line = line.sort_values("teacher_share")
        place, cache = colors.index(key[1:]), bool(key[0])
        name, x, y = _setting(varied, key), 100 * line.teacher_share, 100 * line[measure]
        fig.add_scatter(
            name=name,
            x=x,
            y=y,
            customdata=line[["calls", "call_tokens"]],
            mode="lines+markers",
            line={
                "color": theme.OKABE_ITO[place % 6],  # the seventh is the diagonal's grey
                "dash": "solid" if cache else "dash",
                "width": 2,
            },
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)] + ("" if cache else "-open"), "size": 8},
            hovertemplate="%{customdata[0]} calls of %{customdata[1]} tokens<br>%{x:.3~g} % of the tokens, "
            f"%{{y:.3~g}} % of the {NAMES[measure]}",
        )
        told.append(
            f"{name}: {y.iloc[0]:.3g} % at a share of {x.iloc[0]:.3g} %, {y.iloc[-1]:.3g} % at {x.iloc[-1]:.3g} %"
        )
    ends = [100 * drawn.teacher_share.min(), 100 * drawn.teacher_share.max()]
    fig.add_scatter(
        name="cost = share", x=ends, y=ends, mode="lines", hoverinfo="skip", line={"color": EVEN, "dash": "dot"}
    )
    what = NAMES[measure]
    alt = f"{what} of a relay against the teacher's share of the tokens, both relative to the teacher alone"
    fig.update_layout(
        template="relaylab",
        meta={"alt": "; ".join([alt[0].upper() + alt[1:], *told]) + "."},
        title_text="What a share of the tokens costs",
        xaxis={"title_text": "teacher's share of the tokens (%)", **_log_axis(ends)},
        yaxis={"title_text": f"{what}, relative to the teacher alone (%)"}
        | _log_axis([*ends, *(100 * drawn[measure])]),
        height=480 + 13 * len(fig.data),
        legend={"y": -0.2, "yanchor": "top"},
    )
    return fig


def fleet_load(curve: pd.DataFrame) -> go.Figure:
    """Latency and utilisation of one teacher replica against the requests that are sent to it; a line a system.

    ``curve``: of ``analysis.fleet.load_curve``. Above: seconds that 95 % of the requests stay below, with the median
    fainter. Below: the share of the time in which the replica works. Raises ValueError for an empty frame.
    """
    if curve.empty:
        raise ValueError("there is no simulated load to draw")
    fig, told = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.6, 0.4]), []
    for i, (system, line) in enumerate(curve.groupby("system", sort=False)):
        line, name = line.sort_values("rate"), plain(str(system))
        color, symbol = theme.OKABE_ITO[i % len(theme.OKABE_ITO)], SYMBOLS[i % len(SYMBOLS)]
        mark = {"color": color, "symbol": symbol, "size": 8}
        shared = {"x": line.rate, "legendgroup": name, "line": {"color": color, "dash": DASHES[i % 4]}, "marker": mark}
        for column, opacity, shown in (("p95", 1.0, f"{name}, 95th percentile"), ("p50", 0.5, f"{name}, median")):
            fig.add_scatter(
                y=line[column],
                name=shown,
                mode="lines+markers",
                opacity=opacity,
                hovertemplate="%{x:.3~g} requests/s: %{y:.3~g} s",
                row=1,
                col=1,
                **shared,
            )
        fig.add_scatter(
            y=100 * line.utilisation,
            name=name,
            mode="lines+markers",
            showlegend=False,
            hovertemplate="%{x:.3~g} requests/s: %{y:.3~g} % of the time",
            row=2,
            col=1,
            **shared,
        )
        first, last = line.iloc[0], line.iloc[-1]
        told.append(
            f"{name}: 95th percentile {first.p95:.3g} s at {first.rate:.3g} requests/s and {last.p95:.3g} s at "
            f"{last.rate:.3g}, where the replica works {100 * last.utilisation:.0f} % of the time"
        )
    fig.update_yaxes(title_text="time to the answer (s)", row=1, col=1, **_log_axis([*curve.p50, *curve.p95]))
    fig.update_yaxes(title_text="replica works (% of time)", range=[0, 105], row=2, col=1)
    fig.update_xaxes(**_log_axis(curve.rate))
    fig.update_xaxes(title_text="requests sent to one replica (1/s)", row=2, col=1)
    fig.update_layout(
        template="relaylab",
        meta={"alt": "One teacher replica under load; " + "; ".join(told) + "."},
        title_text="What one teacher carries",
        height=620,
        legend={"y": -0.14, "yanchor": "top"},
    )
    return fig


def _log_axis(values: Iterable[float]) -> dict:
    """Ticks at 1, 2 and 5 of each power of ten, written out: plotly writes a bare 2 and 5 between the powers."""
    values = [v for v in values if v > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{t:,.4g}" for t in ticks]}


def _setting(varied: list[str], key: tuple) -> str:
    values = dict(zip(varied, key, strict=True))
    words = ["cache kept" if values["cache"] else "no cache"]
    words += [f"{values['network_delay']:g} s a hand-off"] if "network_delay" in values else []
    words += [f"batch {values['batch']}"] if "batch" in values else []
    words += [f"{values['call_tokens']} tokens a call"] if "call_tokens" in values else []
    return ", ".join(words)
