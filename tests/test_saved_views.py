"""Views saved as one file each, opened in a browser without a server: pointed at, used by keys, measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from real_jupyterlab import FAINT, Lab, open_chromium, visit

from relaylab.evaluation.score import recorded
from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import problem
from relaylab.trace import Call, Trace
from relaylab.views.atlas import atlas, read_labelled
from relaylab.views.cost_dial import cost_dial
from relaylab.views.counterfactual_view import CounterfactualView
from relaylab.views.player import player, player_state
from relaylab.views.predict import Predict
from relaylab.views.reward_lab import reward_lab
from relaylab.views.theme import Html, show_figure, with_alt_text
from relaylab.views.trace_view import trace_html

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]

# Of a token's longest line, in the window.
MIDDLE = """(token) => {
  token.scrollIntoView({ block: "nearest" });
  const { x, y, width, height } = [...token.getClientRects()].sort((a, b) => b.width - a.width)[0];
  return [x + width / 2, y + height / 2];
}"""


@pytest.fixture(scope="module")
def pair() -> Any:
    return load_pair("relay")


@pytest.fixture(scope="module")
def trace(pair: Any) -> Trace:
    """Two calls, with what the student would have written and what the teacher thinks of it."""
    (seen,) = recorded(pair.teacher, [pair.solve(problem("measures", 5), alternatives=5)], against=pair.student)
    return seen


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def saved(browser: Any, tmp_path: Path) -> Iterator[Callable[[Html], Lab]]:
    """What saves a view and opens its file, without a network."""
    context = browser.new_context(viewport={"width": 1024, "height": 900}, offline=True)

    def open_file(view: Html) -> Lab:
        path = tmp_path / "view.html"
        view.save(path)
        return visit(context.new_page(), path.as_uri(), path.as_uri())

    yield open_file
    context.close()


def test_what_the_student_would_have_written_is_there_by_mouse_and_by_keys(trace: Trace, saved):
    lab = saved(player(trace))
    expected = player_state(trace)["alternatives"]
    strip, likely = lab.page.locator(".rl-strip").nth(0), lab.page.locator(".rl-likely")
    tokens = strip.locator("span")

    def read() -> list[str]:
        return likely.locator("li").all_inner_texts()

    by_mouse = []
    for k in range(tokens.count()):
        lab.page.mouse.move(*tokens.nth(k).evaluate(MIDDLE))
        by_mouse.append(read())
    lab.page.mouse.move(0, 0)
    strip.focus()
    lab.page.keyboard.press("Home")
    for k, likeliest in enumerate(expected):
        lab.page.keyboard.press("ArrowRight")
        assert read() == by_mouse[k], k
        shown = [text.replace("\n", "↵").replace(" ", "␣") or "end" for text, _ in likeliest]
        assert [line.rsplit(" ", 3 if line.endswith("✓") else 2)[0] for line in by_mouse[k]] == shown

    # A command is among them where it begins, and marked as what was written.
    assert [call.start for call in trace.calls] == [21, 52]
    for call in trace.calls:
        assert by_mouse[call.start][0].startswith("<call> ")
        assert by_mouse[call.start][0].endswith(" % ✓")
        assert len(by_mouse[call.start]) == 5
    assert lab.errors == []


LINES = """(tokens) => tokens.map((token) => {
  const range = document.createRange();
  range.selectNodeContents(token);
  return [...range.getClientRects()].map((r) => [Math.round(r.top), Math.round(r.left), Math.round(r.right)]);
})"""


def without_spaces() -> Trace:
    """Four commands in a sum without a place where a line may end."""
    command = ["<call", ">", " 2", "1", "</", "call", ">"]  # a space is not a place within a command
    pieces = ["12345678*", *command, "87654321+"] * 4
    calls = [Call(9 * k + 1, 9 * k + 8, 21, 1, 1) for k in range(4)]
    return Trace("?", [1], list(range(36)), f"s{7 * 'c'}t" * 4, pieces, calls, stop="end")


def test_a_command_stays_in_one_piece_at_every_width(saved):
    """Its tokens stand side by side in one line; a line may end before a command only."""
    trace = without_spaces()
    lab = saved(player(trace))
    tokens = lab.page.locator(".rl-strip").nth(0).locator("span")
    tops = set()
    for width in range(320, 680, 12):
        lab.page.set_viewport_size({"width": width, "height": 900})
        places = tokens.evaluate_all(LINES)
        for call in trace.calls:
            command = places[call.start : call.end]
            assert [len(lines) for lines in command] == [1] * len(command), width
            assert len({top for ((top, _, _),) in command}) == 1, width
            for ((_, _, right),), ((_, left, _),) in pairwise(command):
                assert abs(left - right) <= 2, width
            tops.add(command[0][0][0])
    assert len(tops) > 4, "the widths put commands into other lines"


PATCHES = """<section><p style="color:#777">F plain</p><p style="color:#767676">plain</p>
<h1 style="font-size:24px;color:#949494">large</h1><h1 style="font-size:24px;color:#969696">F large</h1>
<p style="opacity:.5">F half of black</p><b style="opacity:.6">more of black</b>
<div style="background:oklab(0 0 0)"><p style="color:#767676">on black</p><p style="color:#747474">F on black</p>
<p style="background:rgba(255,255,255,.5)"><i style="color:#222">F on grey</i></p></div>
<svg><text y="20" fill="#777">F drawn</text>
<text y="50" fill="#777" style="paint-order:stroke;stroke:#000;stroke-width:3px">on its stroke</text></svg>
<p style="display:none;color:#fff">none</p><p style="visibility:hidden;color:#fff">hidden</p>
<details><summary>folded</summary><p style="color:#eee">F in a fold</p></details>
<style>u::after{content:"F after";color:#777} .p::placeholder{color:#777}</style><u>x</u>
<input value="F field" style="color:#777;background:#fff"><input class="p" placeholder="F hint"></section>"""


def test_what_measures_contrasts_finds_what_is_faint(browser: Any):
    """#767676 on white is the lightest grey of 4.54:1, #777777 has 4.48:1; of large texts #949494 has 3.03:1."""
    page = browser.new_page()
    page.set_content(PATCHES)
    _, faint = page.locator("section").evaluate(FAINT)
    assert page.locator("details[open]").count() == 0
    page.close()
    found = re.findall(r'^[\d.]+: "?(F [a-z ]+?)"? in <', "\n".join(faint), re.M)
    assert sorted(found) == sorted(set(re.findall(r'[">](F [a-z ]+)[<"]', PATCHES)))


def figure() -> Html:
    fig = go.Figure(go.Scatter(x=[0, 20, 40], y=[80, 60, 5], name="measured"))
    guess = Predict("How many?", unit="%", at=[0, 20, 40])
    guess.answer([90, 50, 10])
    return show_figure(guess.draw(with_alt_text(fig, "A line.", "Line", height=300)))


@pytest.fixture(params=["player", "atlas", "movie", "reward_lab", "cost_dial", "trace", "figure", "record"])
def view(request, pair: Any, trace: Trace) -> tuple[Html, str]:
    """A view, and what of it only a script draws; of pages without a script, the page's own."""
    rollouts, steps = read_labelled(ROOT / "notebooks" / "measured" / "rollouts")
    made = {
        "player": lambda: (player(trace), ".rl-strip span.rl-c"),
        "atlas": lambda: (atlas([*rollouts, trace]), "[role=grid] .rl-a6"),
        "movie": lambda: (atlas(rollouts, by=steps, name="training step", movie=True), "[role=grid] [role=row]"),
        "reward_lab": lambda: (reward_lab(), "tbody input"),
        "cost_dial": lambda: (cost_dial(), ".rl-chart .rl-line"),
        "trace": lambda: (Html(trace_html(trace), ""), ".rl-strip .rl-c"),
        "figure": lambda: (figure(), ".main-svg .legendtext"),
        "record": lambda: (CounterfactualView(trace, pair).record(), "h4"),
    }
    return made[request.param]()


def test_a_saved_view_is_whole_and_can_be_read_in_both_colours(view: tuple[Html, str], saved):
    """Opened from its file, with the network off: it asks for nothing, and no text is faint."""
    shown, drawn = view
    lab = saved(shown)
    lab.page.locator(drawn).first.wait_for()
    for scheme in ("light", "dark"):
        lab.page.emulate_media(color_scheme=scheme)
        measured, faint = lab.page.locator("body").evaluate(FAINT)
        assert measured > 5
        assert faint == [], scheme
    assert lab.errors == []
    assert lab.elsewhere == []
