"""A prediction: typed before a result is shown, and drawn into the figure of the result afterwards."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import traitlets as t

from relaylab.call_tag import visible
from relaylab.views.theme import GREY, Html
from relaylab.views.widget import Widget

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def is_number(value: Any) -> bool:
    """Finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Predict(Widget):
    """A question with a field for a number, with choices, or with a field a point of a curve. It may stay open; figures
    then say so.

    Args:
        question: What is to be predicted.
        choices: Texts to choose from; a number without them.
        unit: Of the number, such as "%".
        at: The places of a curve, a few: a number is asked for at each.

    >>> guess = Predict("How many of the answers are right?", unit="%")
    >>> guess.words
    'no prediction'
    >>> guess.answer(40)
    >>> guess.words
    'your prediction: 40 %'
    >>> curve = Predict("How many with a call at this token?", unit="%", at=[0, 20])
    >>> curve.answer([90, 50])
    >>> curve.words
    'your prediction: 90 % at 0, 50 % at 20'
    """

    view = "predict"
    actions = ("answer",)
    value = t.Any(None, allow_none=True).tag(sync=True)  # None, a number, a choice or a curve's numbers

    def __init__(self, question: str, choices: Sequence[str] = (), *, unit: str = "", at: Sequence[float] = ()):
        setup = {"question": visible(question), "choices": [visible(c) for c in choices], "unit": unit, "at": [*at]}
        super().__init__(setup=setup, message="No prediction yet.")

    def answer(self, value: float | str | Sequence[float]) -> None:
        """Note a prediction; a later one replaces it.

        Raises:
            ValueError: It is none of the choices, no number, or not a number for each point of the curve.
        """
        choices, at = self.setup["choices"], self.setup["at"]
        if choices and value not in choices:
            raise ValueError(f"{value!r} is none of the choices: {', '.join(choices)}")
        if at and not (isinstance(value, list | tuple) and len(value) == len(at) and all(map(is_number, value))):
            raise ValueError(f"type {len(at)} numbers, one at each of {', '.join(map(str, at))}")
        if not choices and not at and not is_number(value):
            raise ValueError("type a number")
        self.value = value
        self.report(f"Noted, {self.words}. Now run the next cell.")
        self.update_record()

    @property
    def words(self) -> str:
        """The prediction in words."""
        value: Any = self.value
        if value is None:
            return "no prediction"
        if isinstance(value, str):
            return f"your prediction: {value}"
        at, unit = self.setup["at"], self.setup["unit"]
        numbers = [f"{number:g} {unit}".rstrip() for number in (value if at else [value])]
        places = [f" at {x}" for x in at] or [""]
        return "your prediction: " + ", ".join(map("".join, zip(numbers, places)))

    def draw(self, fig: Figure, axis: str | None = "y", *, scale: float = 1.0) -> Figure:
        """Draw the prediction into a figure as a dashed line, a curve with markers, and add it to the text alternative.

        Args:
            fig: A plotly figure; it is changed.
            axis: Where the value stands, "x" or "y" or that of a panel, such as "y2". With None, the figure only says
                it. A curve's numbers are heights.
            scale: What one of the number is on that axis.

        Returns:
            The same figure.
        """
        place: dict[str, Any] = {"xref": "paper", "yref": "paper", "x": 1, "y": 1, "xanchor": "right"}
        layout: Any = fig.layout
        drawn = axis if self.value is not None else None
        if drawn and self.setup["at"]:
            looks = {"line": {"dash": "dash", "color": GREY}, "name": "your prediction", "showlegend": True}
            fig.add_scatter(x=self.setup["at"], y=self.value, mode="lines+markers", **looks)
        elif drawn:
            along, across = ("x", "y") if drawn[0] == "x" else ("y", "x")
            value: Any = self.value
            at = value if self.setup["choices"] else scale * value
            log = layout[f"{along}axis{drawn[1:]}"].type == "log"
            if not log or at > 0:
                line = {f"{along}ref": drawn, f"{along}0": at, f"{along}1": at}
                line |= {f"{across}ref": "paper", f"{across}0": 0, f"{across}1": 1}
                fig.add_shape(type="line", **line, line={"dash": "dash", "color": GREY})
                # On a log axis a line stands at its number, and a text at the logarithm.
                place |= {f"{along}ref": drawn, along: math.log10(at) if log else at}
                place |= {"xanchor": "center"} if along == "x" else {}
        if not (drawn and self.setup["at"]):  # of a curve, the legend says what it is
            from relaylab.views.figures import figure_text  # imports plotly

            fig.add_annotation(
                text=figure_text(self.words, len(self.words)), showarrow=False, yanchor="bottom", **place
            )
        meta = layout.meta or {}
        layout.meta = meta | {"alt": f"{meta.get('alt', '')} {self.words[0].upper()}{self.words[1:]}.".strip()}
        return fig

    def record_html(self) -> Html:
        text = f"{self.setup['question']}: {self.words}"
        return Html(f"<p>{html.escape(text)}</p>", text)
