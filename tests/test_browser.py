"""The live views in a real JupyterLab: run from the menu, clicked, typed into, stopped, saved, exported.

Screenshots of both themes at two widths go to the folder that RELAYLAB_SCREENSHOTS names, else to the test's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from real_jupyterlab import SECONDS, Lab, open_lab, write_notebook

# One Lab for all, and each test finds what the one before has left: the file runs in one worker (--dist loadfile).
pytestmark = pytest.mark.browser

CELLS = (
    """import relaylab as rl
from relaylab.live import Counterfactual, LiveBench

pair = rl.load_pair()
task = rl.problem("tiles", 0)""",
    """bench = LiveBench(
    students=[pair.student, "student"], teachers=[pair.teacher, "none"], suites=["savings", "tiles"]
)
bench""",
    """what_if = Counterfactual(pair.solve(task), pair)
what_if""",
)
WAIT = SECONDS * 1000


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "home").mkdir()
    notebook = write_notebook(folder / "live.ipynb", *CELLS)
    with open_lab(notebook, folder / "home") as lab:
        lab.folder = folder
        lab.run_all()
        yield lab


@pytest.fixture
def screenshots(lab: Lab) -> Path:
    return Path(os.environ.get("RELAYLAB_SCREENSHOTS") or lab.folder / "screenshots")


def says(lab: Lab, view, text: str) -> None:
    """Wait until the view's status line says this."""
    view.locator(".rl-said", has_text=text).wait_for(timeout=WAIT)


def test_the_live_bench(lab: Lab, screenshots: Path):
    bench = lab.page.locator("section[aria-label='Live bench']")
    bench.wait_for(timeout=WAIT)
    lab.wait_idle()
    question = bench.get_by_label("question, picked or typed")
    first = question.input_value()
    bench.get_by_role("button", name="Pick the next question of this suite").click()
    lab.page.wait_for_function("([e, was]) => e.value !== was", arg=[question.element_handle(), first], timeout=WAIT)
    assert "tiles, number 1: will be graded against" in bench.inner_text()

    bench.get_by_role("button", name="Ask this question").click()
    says(lab, bench, "Run 1: relay with teacher.")
    run = bench.locator(".rl-run")
    assert run.count() == 1
    assert re.search(r"✓ correct|✗ wrong", run.inner_text())
    assert run.locator(".rl-strip .rl-t").count() > 0

    # Another student, alone, beside it.
    bench.get_by_role("combobox", name="student").select_option("student")
    bench.get_by_role("combobox", name="teacher").select_option("none")
    question.press("Control+Enter")
    says(lab, bench, "Run 2: student with no teacher.")
    assert run.count() == 2
    boxes = [run.nth(k).bounding_box() for k in range(2)]
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2  # side by side

    # Slowly, a question that is hostile; stopped half way, by the keyboard.
    question.fill("<img src=x onerror=alert(1)> What is 61+28?")
    assert "not graded" in bench.inner_text()
    bench.get_by_role("combobox", name="pace").select_option("5")
    bench.get_by_role("button", name="Ask this question").focus()
    lab.page.keyboard.press("Enter")
    growing = bench.locator(".rl-run[aria-busy=true] .rl-strip > span")
    growing.nth(2).wait_for(timeout=WAIT)
    assert lab.page.evaluate("document.activeElement.textContent") == "Stop"  # the focus came along
    lab.page.keyboard.press("Enter")
    says(lab, bench, "interrupted")
    assert lab.page.evaluate("document.activeElement.textContent") == "Ask"
    assert bench.locator(".rl-run").nth(2).locator(".rl-question").inner_text().startswith("<img src=x")
    assert bench.locator("img").count() == 0

    limit = bench.get_by_role("spinbutton", name="tokens at most")
    limit.fill("0")
    bench.get_by_role("button", name="Ask this question").click()
    says(lab, bench, "✗ max_tokens is 0")
    limit.fill("256")
    lab.screenshots(screenshots, "bench", bench)

    bench.get_by_role("button", name="Remove Run 3: student with no teacher").click()
    says(lab, bench, "Removed.")
    assert run.count() == 2


def test_the_counterfactual(lab: Lab, screenshots: Path):
    view = lab.page.locator("section[aria-label^='Counterfactual']")
    view.wait_for(timeout=WAIT)
    lab.wait_idle()
    runs = view.locator(".rl-run")
    tokens = runs.nth(0).get_by_role("option")
    chosen = view.locator("[aria-selected=true]")
    force, change, forbid = (
        view.get_by_role("button", name=name)
        for name in ("Force a call here", "Let this call ask for n tokens instead", "Forbid this call")
    )
    assert force.is_disabled()
    assert tokens.count() == 92

    # By the keyboard: one token has the tab stop, arrows move it, Enter chooses.
    assert runs.nth(0).locator("[role=option][tabindex='0']").count() == 1
    tokens.nth(0).focus()
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowLeft", "Enter"):
        lab.page.keyboard.press(key)
    assert tokens.evaluate_all("(all) => all.findIndex((e) => e.ariaSelected === 'true')") == 10
    assert "Chosen in Original: token 11 of 92 · student" in view.inner_text()
    assert force.is_enabled()
    assert forbid.is_disabled()
    lab.page.keyboard.press("Control+A")  # the focus is in the field for n
    lab.page.keyboard.type("3")
    force.focus()
    lab.page.keyboard.press("Enter")
    says(lab, view, "Fork 1: a call for 3 at token 11.")
    assert runs.count() == 2
    fork = runs.nth(1).get_by_role("option")
    assert fork.nth(10).evaluate("(e) => e.classList.contains('rl-fork') && e.classList.contains('rl-c')")
    before = "(all) => all.slice(0, 10).map((e) => e.textContent).join('')"
    assert fork.evaluate_all(before) == tokens.evaluate_all(before)

    # By the mouse: a call of the student, resized and forbidden.
    tokens.nth(62).click()
    assert chosen.count() == 1
    assert "Call 2 asked for 20" in view.inner_text()
    assert (force.is_disabled(), change.is_enabled()) == (True, True)
    n = view.get_by_role("spinbutton")
    assert n.input_value() == "20"
    n.fill("4")
    change.click()
    says(lab, view, "Fork 2: call 2 asks for 4, not 20.")
    forbid.click()
    says(lab, view, "Fork 3: call 2 forbidden.")
    assert runs.count() == 4
    for k in range(4):
        assert re.search(r"✓ correct|✗ wrong", runs.nth(k).inner_text())
    lab.screenshots(screenshots, "counterfactual", view)
    lab.theme("light")


def test_what_is_saved_shows_the_runs_without_a_kernel(lab: Lab):
    records = lab.page.locator("[data-rl-record]")
    assert records.count() == 2
    assert not any(records.nth(k).is_visible() for k in range(2))  # the live views show it all already
    lab.save()
    saved = nbformat.read(lab.folder / "live.ipynb", 4)
    page = HTMLExporter().from_notebook_node(saved)[0]
    for heading in ("Run 1: relay with teacher", "Original", "Fork 2: call 2 asks for 4, not 20"):
        assert f"<h4>{heading}</h4>" in page
    assert not re.search(r"widget-(view|state)\+json", page)


def test_no_error_in_the_console(lab: Lab):
    """Runs last: of all that was done above."""
    assert lab.errors == []
