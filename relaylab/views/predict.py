"""A prediction: typed before a result is shown, and drawn into the figure of the result afterwards."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import traitlets as t

from relaylab.call_tag import visible
from relaylab.views.theme import GREY, Html
from relaylab.views.widget import Widget

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Predict(Widget):
    """A question with a field for a number, or with choices. It may stay open; figures then say so.

    Args:
        question: What is to be predicted.
        choices: Texts to choose from; a number without them.
        unit: Of the number, such as "%".

    >>> guess = Predict("How many of the answers are right?", unit="%")
    >>> guess.words
    'no prediction'
    >>> guess.answer(40)
    >>> guess.words
    'your prediction: 40 %'
    """

    view = "predict"
    actions = ("answer",)
    value = t.Any(None, allow_none=True).tag(sync=True)  # None, a number or a choice

    def __init__(self, question: str, choices: Sequence[str] = (), *, unit: str = ""):
        setup = {"question": visible(question), "choices": [visible(c) for c in choices], "unit": unit}
        super().__init__(setup=setup, message="No prediction yet.")

    def answer(self, value: float | str) -> None:
        """Note a prediction; a later one replaces it.

        Raises:
            ValueError: It is none of the choices, or no number.
        """
        choices = self.setup["choices"]
        if choices and value not in choices:
            raise ValueError(f"{value!r} is none of the choices: {', '.join(choices)}")
        if not choices and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
            raise ValueError("type a number")
        self.value = value
        self.report(f"Noted, {self.words}. Now run the next cell.")
        self.update_record()

    @property
    def words(self) -> str:
        """The prediction in words."""
        if self.value is None:
            return "no prediction"
        number = self.value if isinstance(self.value, str) else f"{self.value:g} {self.setup['unit']}"
        return f"your prediction: {number}".rstrip()

    def draw(self, fig: Figure, axis: Literal["x", "y"] | None = "y") -> Figure:
        """Draw the prediction into a figure as a dashed line, and add it to the text alternative.

        Args:
            fig: A plotly figure; it is changed.
            axis: Where the value stands; with None, the figure only says it.

        Returns:
            The same figure.
        """
        place: dict[str, Any] = {"xref": "paper", "yref": "paper", "x": 1, "y": 1, "xanchor": "right"}
        if self.value is not None and axis:
            other = "y" if axis == "x" else "x"
            line = {f"{axis}ref": axis, f"{other}ref": "paper", f"{axis}0": self.value, f"{axis}1": self.value}
            fig.add_shape(type="line", **{f"{other}0": 0, f"{other}1": 1}, **line, line={"dash": "dash", "color": GREY})
            place |= {f"{axis}ref": axis, axis: self.value} | ({"xanchor": "center"} if axis == "x" else {})
        fig.add_annotation(text=html.escape(self.words), showarrow=False, yanchor="bottom", **place)
        layout: Any = fig.layout
        meta = layout.meta or {}
        layout.meta = meta | {"alt": f"{meta.get('alt', '')} {self.words[0].upper()}{self.words[1:]}.".strip()}
        return fig

    def record_html(self) -> Html:
        text = f"{self.setup['question']}: {self.words}"
        return Html(f"<p>{html.escape(text)}</p>", text)
