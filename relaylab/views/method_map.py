"""The map as a figure: where a student lies, and which way of asking for help wins there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from relaylab.call_tag import visible
from relaylab.evaluation.table import dial_columns, each_row
from relaylab.views.figures import error_bars, figure_text
from relaylab.views.theme import GREY, OKABE_ITO, with_alt_text

PLACE = [f"{dial}{end}" for dial in "hc" for end in ("", "_low", "_high")]
MEASURED = "measured, no winner known"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def pair_place(name: str, dials: Any) -> dict[str, float]:
    """Where a measured pair lies on the map. ValueError if it has not h and c."""
    try:
        return {dial: float(value) for dial, value in dial_columns(dials).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the pair {name!r} needs harmless and confident, each with value, low, high") from error


def map_figure(drawn: pd.DataFrame, measured: Mapping[str, Any] | None = None) -> go.Figure:
    """Each world at its h and c, coloured by the winner at the middle budget; at each budget on hover and in words.

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
    at = drawn[drawn["budget"] == middle]
    labels = [_label(world, drawn[drawn["world"] == world]) for world in at["world"]]
    words = [re.sub("</?b>", "", label.replace("<br>", ", ")) for label in labels]
    wins = [f"{figure_text(str(winner))} wins at {100 * middle:.0f} % teacher tokens" for winner in at["winner"]]
    parts = [at.assign(label=labels, name=[label.partition("<br>")[0] for label in labels], marks=wins)]
    for name, dials in (measured or {}).items():
        place = pair_place(name, dials)
        label = f"<b>{figure_text(name)}</b>"
        parts.append(pd.DataFrame([place | {"label": label, "name": label, "marks": MEASURED}]))
        words.append(f"{visible(name)}, h {100 * place['h']:.0f} %, c {100 * place['c']:.0f} %")
    f = pd.concat(parts)
    f[PLACE] *= 100
    bars = error_bars("x", f["c"], f["c_low"], f["c_high"]) | error_bars("y", f["h"], f["h_low"], f["h_high"])
    names = dict(text="name", hover_name="label", color="marks", symbol="marks", template="relaylab")
    fig = px.scatter(f, x="c", y="h", **names, **bars,
                     color_discrete_sequence=OKABE_ITO[:6], symbol_sequence=SYMBOLS)  # fmt: skip
    fig.update_traces(
        marker_size=18, textposition="top right", textfont_size=14, error_x_thickness=1, error_y_thickness=1
    )
    fig.update_traces(hovertemplate="%{hovertext}<extra></extra>")
    known = {"marker": dict(size=14, symbol="x", color=GREY), "textposition": "bottom right"}
    fig.update_traces(selector={"name": MEASURED}, **known)
    fig.update_xaxes(title_text="confident errors c (% of the decisive tokens)", range=[-12, 112])
    fig.update_yaxes(title_text="harmless uncertainty h (% of the uncertain tokens)", range=[-12, 112])
    alt = f"Which way of asking for help wins in which world. {'; '.join(words)}."
    return with_alt_text(
        fig, alt, "When learning to call pays", height=620, legend=dict(orientation="h", y=-0.2, yanchor="top")
    )


def _label(world: str, rows: pd.DataFrame) -> str:
    won = [f"{100 * r.budget:.0f} %: {figure_text(r.winner)}, {100 * r.gap:.0f} % of the gap" for r in each_row(rows)]
    return "<br>".join([f"<b>{figure_text(world)}</b>", *won])
