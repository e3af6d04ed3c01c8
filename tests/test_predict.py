"""A prediction is noted before the result, and stands in the figure afterwards; without one the figure says so."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots
from test_player import in_browser, widget_page

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


def test_a_number_stands_on_the_axis_of_its_panel_in_that_axis_s_unit():
    panels = make_subplots(rows=2, cols=1)
    panels.add_scatter(x=[1, 100], y=[1, 2], row=1, col=1)
    panels.add_scatter(x=[1, 100], y=[30, 40], row=2, col=1)
    guess = Predict("How many times as much?")
    guess.answer(4)
    (line,) = guess.draw(go.Figure(panels), "y2", scale=10).layout.shapes
    assert (line.yref, line.y0, line.y1, line.xref, line.x0, line.x1) == ("y2", 40, 40, "paper", 0, 1)
    fig = guess.draw(go.Figure(panels).update_xaxes(type="log"), "x", scale=25)
    assert (fig.layout.shapes[0].x0, fig.layout.annotations[0].x) == (100, 2), "a text stands at the logarithm"
    guess.answer(0)
    fig = guess.draw(go.Figure(panels).update_xaxes(type="log"), "x")
    assert (len(fig.layout.shapes), fig.layout.annotations[0].text) == (0, "your prediction: 0")


def test_a_curve_is_a_trace_with_what_was_typed():
    guess = Predict("How many, and where?", unit="%", at=[0, 20, 40])
    fig = guess.draw(figure())
    assert ([a.text for a in fig.layout.annotations], len(fig.data)) == (["no prediction"], 1)
    for wrong in (None, 40, [1, 2], [1, 2, None], [1, 2, "3"], [1, 2, float("inf")], [True, 2, 3]):
        guess._handle_custom_msg({"do": "answer", "value": wrong}, [])
        assert ("type 3 numbers" in guess.message, guess.failed, guess.value) == (True, True, None)
    guess._handle_custom_msg({"do": "answer", "value": [90, 50.5, 10]}, [])
    fig = guess.draw(figure())
    trace = fig.data[-1]
    assert (trace.name, [*trace.x], [*trace.y]) == ("your prediction", [0, 20, 40], [90, 50.5, 10])
    assert (trace.line.dash, trace.mode, len(fig.layout.annotations)) == ("dash", "lines+markers", 0)
    assert show_figure(fig).text == "Two bars. Your prediction: 90 % at 0, 50.5 % at 20, 10 % at 40."


@pytest.mark.parametrize(
    ("choices", "value", "said"),
    [((), None, "type a number"), ((), "40", "type a number"), ((), float("nan"), "number"), (("a",), "b", "none of")],
)
def test_what_is_no_answer_changes_nothing(choices, value, said):
    guess = Predict("<img src=x>", choices)
    guess._handle_custom_msg({"do": "answer", "value": value}, [])
    assert (said in guess.message, guess.failed, guess.value) == (True, True, None)
    assert "<img" not in guess.record().html


NOTED = """
set({ value: [90, null, 10], message: "Noted." });
found.curve = [...document.querySelectorAll("input")].map((field) => field.value);
"""


def test_two_views_of_one_prediction_show_the_same(tmp_path):
    setup = {"question": "q", "choices": [], "unit": "%", "at": [0, 20, 40]}
    page = widget_page("predict", copies=2, setup=setup, value=None)
    assert in_browser(tmp_path, [page], NOTED)["curve"] == ["90", "", "10"] * 2


def test_a_choice_in_a_figure_is_the_text_that_was_chosen():
    guess = Predict("q", ['the "best" & <5> it\'s $x$', "b"])
    guess.answer(guess.setup["choices"][0])
    fig = guess.draw(figure(), None)
    assert fig.layout.annotations[0].text == 'your prediction: the "best" &amp; &lt;5&gt; it\'s &#36;x&#36;'
