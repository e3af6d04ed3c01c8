"""A prediction is noted before the result, and stands in the figure afterwards; without one the figure says so."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from relaylab.views.predict import Predict
from relaylab.views.theme import show_figure, with_alt_text


def figure() -> go.Figure:
    return with_alt_text(go.Figure(go.Bar(x=["0.1", "0.2"], y=[30, 60])), "Two bars.", "Bars")


def test_a_figure_says_the_prediction_or_that_there_is_none():
    guess = Predict("How many?", unit="%")
    fig = guess.draw(figure())
    assert ([a.text for a in fig.layout.annotations], len(fig.layout.shapes)) == (["no prediction"], 0)
    assert show_figure(fig).text == "Two bars. No prediction."
    assert "How many?: no prediction" in guess.record().html
    guess._handle_custom_msg({"do": "answer", "value": 40}, [])
    assert guess.message == "Noted, your prediction: 40 %. Now run the next cell."
    fig = guess.draw(figure())
    (line,) = fig.layout.shapes
    assert (line.yref, line.y0, line.y1, line.xref, line.x0, line.x1) == ("y", 40, 40, "paper", 0, 1)
    assert fig.layout.annotations[0].text == "your prediction: 40 %"
    assert show_figure(fig).text.endswith("Your prediction: 40 %.")


def test_a_choice_is_a_line_at_its_category():
    guess = Predict("From where?", ["0.1", "0.2"])
    guess.answer("0.2")
    (line,) = guess.draw(figure(), "x").layout.shapes
    assert (line.xref, line.x0, line.yref) == ("x", "0.2", "paper")
    assert not guess.draw(figure(), None).layout.shapes


@pytest.mark.parametrize(
    ("choices", "value", "said"),
    [((), None, "type a number"), ((), "40", "type a number"), ((), float("nan"), "number"), (("a",), "b", "none of")],
)
def test_what_is_no_answer_changes_nothing(choices, value, said):
    guess = Predict("<img src=x>", choices)
    guess._handle_custom_msg({"do": "answer", "value": value}, [])
    assert (said in guess.message, guess.failed, guess.value) == (True, True, None)
    assert "<img" not in guess.record().html
