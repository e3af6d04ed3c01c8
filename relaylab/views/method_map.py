"""The map as a figure: where a student lies, and which way of asking for help wins there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from relaylab.call_tag import visible
from relaylab.evaluation.table import each_row
from relaylab.views.figures import figure_text
from relaylab.views.theme import GREY, OKABE_ITO, with_alt_text

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def map_figure(drawn: pd.DataFrame, measured: Mapping[str, Any] | None = None) -> go.Figure:
    """Each world at its h and c, coloured by the winner at the middle budget; its words say who wins at each.

    Args:
        drawn: from ``evaluation.method_map.draw_map``.
        measured: other pairs of which h and c are known: name -> ``harmless`` and ``confident``, each with ``value``,
            ``low`` and ``high``, as ``dials.json`` has them.

    Raises:
        ValueError: for a frame without rows, and for a pair without these numbers.
    """
    if drawn.empty:
        raise ValueError("no world to draw; measure one first: relaylab map --world lifelike")
    middle = sorted(drawn["budget"].unique())[drawn["budget"].nunique() // 2]
    fig, words = go.Figure(), []
    for place, (winner, rows) in enumerate(drawn[drawn["budget"] == middle].groupby("winner", sort=False)):
        labels = [_label(world, drawn[drawn["world"] == world]) for world in rows["world"]]
        words += [label.replace("<br>", ", ").replace("<b>", "").replace("</b>", "") for label in labels]
        fig.add_scatter(
            x=100 * rows["c"], y=100 * rows["h"], text=labels, mode="markers+text", textposition="bottom center",
            name=f"{figure_text(str(winner))} wins at {100 * middle:.0f} % teacher tokens", textfont_size=11,
            marker=dict(size=18, symbol=SYMBOLS[place % len(SYMBOLS)], color=OKABE_ITO[place % 6]),
            error_x=_bars(rows["c"], rows["c_low"], rows["c_high"]),
            error_y=_bars(rows["h"], rows["h_low"], rows["h_high"]),
        )  # fmt: skip
    for name, dials in (measured or {}).items():
        try:
            c, h = (
                pd.DataFrame([dials[key]])[["value", "low", "high"]].astype(float) for key in ("confident", "harmless")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the pair {name!r} needs harmless and confident, each with value, low, high") from error
        fig.add_scatter(
            x=100 * c["value"], y=100 * h["value"], text=[f"<b>{figure_text(name)}</b>"], mode="markers+text",
            textposition="middle right", name="measured, no winner known", marker=dict(size=14, symbol="x", color=GREY),
            error_x=_bars(c["value"], c["low"], c["high"]), error_y=_bars(h["value"], h["low"], h["high"]),
        )  # fmt: skip
        words.append(f"{visible(name)}, h {100 * h['value'][0]:.0f} %, c {100 * c['value'][0]:.0f} %")
    fig.update_xaxes(title_text="confident errors c (% of the decisive tokens)", range=[-12, 112])
    fig.update_yaxes(title_text="harmless uncertainty h (% of the uncertain tokens)", range=[-12, 112])
    alt = f"Which way of asking for help wins in which world. {'; '.join(words)}."
    return with_alt_text(fig, alt, "When learning to call pays", height=620, legend=dict(orientation="h", y=-0.18))


def _bars(value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    return {"array": 100 * (high - value), "arrayminus": 100 * (value - low), "thickness": 1}


def _label(world: str, rows: pd.DataFrame) -> str:
    won = [f"{100 * r.budget:.0f} %: {figure_text(r.winner)}, {100 * r.gap:.0f} % of the gap" for r in each_row(rows)]
    return "<br>".join([f"<b>{figure_text(world)}</b>", *won])
