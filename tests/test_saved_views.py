"""Views saved as one file each, opened in a browser without a server: pointed at, used by keys, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from real_jupyterlab import Lab, open_chromium, visit

from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import problem
from relaylab.trace import Call, Trace
from relaylab.views.player import player, player_state
from relaylab.views.theme import Html

pytestmark = pytest.mark.browser

# Of a token's first line, in the window.
MIDDLE = """(token) => {
  token.scrollIntoView({ block: "nearest" });
  const { x, y, width, height } = token.getClientRects()[0];
  return [x + width / 2, y + height / 2];
}"""


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Two calls of the embedded pair, with what the student would have written."""
    return load_pair("relay").solve(problem("tiles", 0), alternatives=5)


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
    assert [call.start for call in trace.calls] == [33, 61]
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
