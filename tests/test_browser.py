"""The views in a real JupyterLab: notebooks run from the menu; each view clicked, used by keys alone, and looked at.

Lesson 11, small, has the player and the atlas, as a learner meets them. A notebook of the test's own has the reward
lab, the cost dial and the two live views: typed into, stopped, saved, exported. What a click does without JupyterLab is
in test_player.py and test_atlas.py. Screenshots, light and dark, in several widths, are in ``runs/browser``.

The console must be empty of errors, and JupyterLab's own are not excused: none was seen, once it looks for no news.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from nbconvert import HTMLExporter
from real_jupyterlab import SECONDS, Lab, open_jupyter, write_notebook

from relaylab.lab import START, copy_lessons
from relaylab.notebook_commands import smoke_parameters

# One Lab for all, and each test finds what the one before has left: the file runs in one worker (--dist loadfile).
pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "runs" / "browser"
LESSON = "11_call_positions"
CELLS = (
    """import relaylab as rl
from relaylab.views.cost_dial import cost_dial
from relaylab.views.counterfactual_view import CounterfactualView
from relaylab.views.player import player
from relaylab.views.playground import Playground
from relaylab.views.reward_lab import reward_lab

pair = rl.load_pair("relay")
task = rl.problem("measures", 5)  # with two calls""",
    """playground = Playground(
    students=[pair.student, "student"], teachers=[pair.teacher, "none"], suites=["savings", "tiles"]
)
playground""",
    """what_if = CounterfactualView(pair.solve(task), pair)
what_if""",
    "reward_lab()",
    "cost_dial()",
    """trace = rl.Trace("Ann has $5 and Bob has $7", [1], [2], "s", [r"It is $\\color{red}{5}$ or \\(7\\)."])
trace.problem = {"question": "Ann has $5 and Bob has $7. $x^2$ \\\\[y\\\\]"}
trace""",
    "player(trace)",
    """from IPython.display import HTML
HTML("<p>$z^2$</p>")""",
)
SHOWN_LATER = (
    """import plotly.graph_objects as go
from relaylab.views.atlas import atlas, read_labelled
from relaylab.views.predict import Predict
from relaylab.views.theme import load_plotly, show_figure, with_alt_text
guess = Predict("How many of the answers are right?", unit="%")
guess""",
    "load_plotly()",
    'show_figure(guess.draw(with_alt_text(go.Figure(go.Bar(x=["a", "b"], y=[30, 60])), "Bars.", "Bars", height=300)))',
    f"""traces, steps = read_labelled({str(ROOT / "notebooks" / "measured" / "rollouts")!r})
atlas(traces, by=steps, name="training step", movie=True)""",
    """curve = Predict("And where?", unit="%", at=[0, 20, 40])
curve""",
    """measured = go.Figure(go.Scatter(x=[0, 20, 40], y=[80, 60, 5], name="measured"))
show_figure(curve.draw(with_alt_text(measured, "A line.", "Line", height=300)))""",
)
VIEWS = {  # how their names begin
    "player": "Relay player",
    "atlas": "Call atlas",
    "counterfactual": "Counterfactuals",
    "playground": "Playground",
    "reward_lab": "Reward lab",
    "cost_dial": "Cost dial",
}
OF_THE_LESSON, OWN = list(VIEWS)[:2], list(VIEWS)[2:]
WAIT = SECONDS * 1000
FOCUSED = "document.activeElement.ariaLabel ?? document.activeElement.textContent"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def jupyter(folder: Path):
    (folder / "home").mkdir()
    with open_jupyter(folder, folder / "home") as jupyter:
        yield jupyter


@pytest.fixture(scope="module")
def lesson(jupyter, folder: Path) -> Lab:
    """Lesson 11 with the parameters of a quick run, in a cell of their own as papermill writes it."""
    small = smoke_parameters(ROOT / "notebooks")[LESSON]
    copy = folder / f"{LESSON}.ipynb"
    for path in ("lesson", "measured"):
        shutil.copytree(ROOT / "notebooks" / path, folder / path, dirs_exist_ok=True)
    shutil.copy(ROOT / "notebooks" / "exercises.yaml", folder)
    papermill.execute_notebook(ROOT / "notebooks" / copy.name, copy, small, prepare_only=True)
    return opened(jupyter, copy.name)


def opened(jupyter, name: str) -> Lab:
    """A notebook of which all cells were run."""
    lab = jupyter(name)
    lab.run_all()
    lab.wait_idle()
    return lab


@pytest.fixture(scope="module")
def lab(jupyter, folder: Path) -> Lab:
    """The notebook of the test's own."""
    return opened(jupyter, write_notebook(folder / "live.ipynb", *CELLS).name)


@pytest.fixture(scope="module")
def start(jupyter, folder: Path) -> Lab:
    """What `relaylab lab` opens, in a copy as it makes it."""
    copy_lessons(folder / "course")
    return opened(jupyter, f"course/{START}")


def find(lab: Lab, name: str):
    return lab.page.locator(f"section[aria-label^='{VIEWS[name]}']")


def says(lab: Lab, view, text: str) -> None:
    """Wait until the view's status line says this; with its full stop: until then the answer is being written."""
    view.locator(".rl-status", has_text=text).wait_for(timeout=WAIT)


def focused(lab: Lab) -> str:
    """The name of what has the focus."""
    return lab.page.evaluate(FOCUSED)


def gets_focus(lab: Lab, name: str) -> None:
    """Wait until what has this name has the focus. A view's state arrives after its status line."""
    lab.page.wait_for_function(f"name => ({FOCUSED}) === name", arg=name, timeout=WAIT)


# START ----------------------------------------------------------------------------------------------------------------


def test_start_answers_and_follows_a_change(start: Lab):
    playground, press = find(start, "playground"), start.page.keyboard.press
    runs = playground.locator(".rl-run")
    assert "Run 1: relay with teacher. Correct" in playground.locator(".rl-status").inner_text()
    assert not playground.get_by_role("combobox", name="student").is_visible()  # the settings are folded
    assert "Call 1 asked for 6" in playground.inner_text()  # the first call is chosen

    # A shorter call, by dragging: several steps are one change.
    drag = playground.get_by_role("slider", name="n, by dragging")
    drag.focus()
    for key in ("Home", "ArrowRight"):
        press(key)
    says(start, playground, "Fork 2: call 1 asks for 2, not 6.")
    gets_focus(start, "n, by dragging")
    playground.get_by_role("button", name="Forbid this call").click()
    says(start, playground, "Fork 3: call 1 forbidden.")
    playground.get_by_role("button", name="Force a call here").click()  # where the forbidden one was
    says(start, playground, "Fork 4: a call for 2 at token 77.")
    heads = [head.split(":")[0] for head in runs.locator("h4").all_inner_texts()]
    assert heads == ["Fork 4", "Fork 3", "Fork 2", "Run 1"]  # the newest on top
    texts = [runs.nth(k).locator(".rl-strip").text_content() for k in range(4)]
    assert texts[0] == texts[2] != texts[3] != texts[1]

    # What the student would have written: by the mouse, and by keys.
    tokens, likely = runs.nth(3).get_by_role("option"), runs.nth(3).locator(".rl-likely")
    tokens.nth(76).hover()
    first = likely.inner_text()
    assert re.search(r"<call> \d+ % ✓", first)
    assert 2 <= likely.locator("li").count() <= 6
    tokens.nth(75).focus()
    press("ArrowLeft")
    start.page.wait_for_function(
        "([e, was]) => e.innerText !== was", arg=[likely.element_handle(), first], timeout=WAIT
    )
    assert "<call>" in likely.inner_text()


def test_start_has_the_table_of_the_course(start: Lab):
    table = start.page.locator(".jp-RenderedMarkdown table").last
    assert table.locator("tbody tr").count() == len(list((ROOT / "notebooks").glob("[0-9]*.ipynb")))
    table.get_by_role("link", name="A first relay").click()
    start.page.locator(".lm-TabBar-tabLabel", has_text="00_first_relay.ipynb").first.wait_for(timeout=WAIT)
    start.page.locator(".lm-TabBar-tabLabel", has_text="START.ipynb").first.click()


def test_pictures_of_start(start: Lab):
    start.screenshots(SCREENSHOTS, {"start": find(start, "playground")}, widths=(1366, 1024))
    assert start.errors == []
    assert start.elsewhere == [], "no request leaves this machine"
    start.page.close()


# A prediction and a movie ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later(jupyter, folder: Path) -> Lab:
    return opened(jupyter, write_notebook(folder / "later.ipynb", *SHOWN_LATER).name)


def run_cell(lab: Lab, number: int) -> None:
    lab.page.locator(".jp-CodeCell .jp-InputArea-editor").nth(number).click()
    lab.page.keyboard.press("Shift+Enter")


def test_a_prediction_is_typed_before_its_figure(later: Lab):
    page, guess = later.page, later.page.locator("section[aria-label^='Prediction: How many of']")
    figure = page.locator(".rl-fig").nth(0).locator(".annotation-text")
    figure.wait_for(timeout=WAIT)
    assert figure.all_text_contents() == ["no prediction"]  # Run All leaves it open
    assert guess.locator(".rl-status").inner_text() == "No prediction yet."
    guess.get_by_role("spinbutton").fill("40")
    page.keyboard.press("Enter")
    says(later, guess, "Noted, your prediction: 40 %.")
    run_cell(later, 2)
    page.locator(".rl-fig .annotation-text", has_text="your prediction: 40 %").wait_for(timeout=WAIT)


def test_a_curve_is_predicted_by_keys_alone(later: Lab):
    page, guess = later.page, later.page.locator("section[aria-label^='Prediction: And where']")
    figure, press = page.locator(".rl-fig").nth(1), later.page.keyboard.press
    figure.locator(".annotation-text").wait_for(timeout=WAIT)
    assert figure.locator(".annotation-text").all_text_contents() == ["no prediction"]
    assert figure.locator(".scatterlayer .js-line").count() == 1  # what was measured
    fields = guess.get_by_role("spinbutton")
    assert [fields.nth(k).evaluate("(e) => e.labels[0].innerText.trim()") for k in range(fields.count())] == [
        "at 0\n%", "at 20\n%", "at 40\n%"
    ]  # fmt: skip

    # Two of three numbers are no curve. Enter in any field notes all.
    fields.nth(0).focus()
    page.keyboard.type("90")
    press("Tab")
    page.keyboard.type("50.5")
    press("Enter")
    says(later, guess, "✗ type 3 numbers, one at each of 0, 20, 40")
    press("Tab")
    page.keyboard.type("10")
    press("Tab")
    assert focused(later) == "Note this prediction"
    press("Enter")
    said = "our prediction: 90 % at 0, 50.5 % at 20, 10 % at 40."
    says(later, guess, f"Noted, y{said}")

    run_cell(later, 5)
    legend = figure.locator(".legendtext", has_text="your prediction")
    legend.wait_for(timeout=WAIT)
    lines = figure.locator(".scatterlayer .js-line")
    dashes = lines.evaluate_all("(all) => all.map((e) => getComputedStyle(e).strokeDasharray)")
    assert (dashes[0], dashes[1] != "none", len(dashes)) == ("none", True, 2)
    assert figure.locator(".scatterlayer .trace").nth(1).locator(".point").count() == 3
    assert figure.locator(".annotation-text").count() == 0
    assert f"Y{said}" in figure.text_content()  # the figure in words


def test_a_training_is_a_movie(later: Lab):
    lab, page = later, later.page
    movie = find(lab, "atlas")
    slider, where = movie.get_by_role("slider", name="training step"), movie.locator("output")
    row = movie.get_by_role("row").nth(1)
    assert where.inner_text() == "training step 0"
    first = row.inner_text()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert where.inner_text() == slider.get_attribute("aria-valuetext") == "training step 16"
    assert row.inner_text() != first
    assert movie.get_by_role("combobox", name="training step").input_value() == "1"  # the filter goes along
    page.keyboard.press("End")
    last = where.inner_text()
    movie.get_by_role("button", name="Play", exact=True).click()  # from the beginning, to the end
    page.wait_for_function("([e, was]) => e.innerText !== was", arg=[where.element_handle(), last], timeout=WAIT)
    movie.locator("output", has_text=last).wait_for(timeout=WAIT)
    movie.get_by_role("searchbox", name="words").fill("calls>1")
    assert re.fullmatch(r"\d+ of \d+ traces", movie.locator("fieldset .rl-muted").inner_text())
    lab.tab_through(movie)
    lab.screenshots(
        SCREENSHOTS,
        {
            "predict": page.locator("section[aria-label^='Prediction: How many of']"),
            "prediction": page.locator(".rl-fig").nth(0),
            "predict-curve": page.locator("section[aria-label^='Prediction: And where']"),
            "prediction-curve": page.locator(".rl-fig").nth(1),
            "movie": movie,
        },
        (1366, 1024),
    )
    assert lab.errors == []
    assert lab.elsewhere == [], "no request leaves this machine"
    page.close()


# Lessons -------------------------------------------------------------------------------------------------------------


def test_each_view_of_the_lesson_appears(lesson: Lab):
    views = {name: find(lesson, name) for name in OF_THE_LESSON}
    found = {name: view.count() for name, view in views.items()}
    assert found == {"player": 1, "atlas": 3}
    for view in views.values():
        assert all(one.is_visible() for one in view.all())
        assert not any(one.is_visible() for one in view.locator("details.rl-words > :not(summary)").all())


def test_the_player_of_the_lesson(lesson: Lab):
    player, press = find(lesson, "player"), lesson.page.keyboard.press
    token, call, strips = player.locator(".rl-token"), player.locator(".rl-callwords"), player.locator(".rl-strip")
    tokens = strips.nth(0).locator("span").count()
    hidden = strips.nth(0).locator(".rl-later")

    strips.nth(0).locator("span[data-call='1']").hover()
    likeliest = player.locator(".rl-likely li").all_inner_texts()
    assert len(likeliest) >= 5
    assert any(re.fullmatch(r"<call> \S+ % ✓", line) for line in likeliest)
    strips.nth(0).locator("span").nth(4).click()
    assert token.inner_text().startswith(f"token 5 of {tokens} · student")
    assert hidden.count() == tokens - 5
    strips.nth(0).locator("span").nth(2).hover()
    assert token.inner_text().startswith("token 3 of")

    # By keys alone.
    lesson.tab_through(player)
    strips.nth(1).focus()
    for keys, out in (("Home", 0), ("ArrowRight", 1), ("Shift+ArrowRight", 11), ("ArrowLeft", 10), ("End", tokens)):
        press(keys)
        assert hidden.count() == tokens - out, keys
    press("Home")
    press("c")
    assert call.inner_text().startswith("Call 1, at token ")
    assert player.locator(".rl-likely li").all_inner_texts() == likeliest
    press(" ")
    assert player.get_by_role("button", name="Pause").count() == 1
    lesson.page.wait_for_function(
        "([token, was]) => token.textContent !== was", arg=[token.element_handle(), token.inner_text()], timeout=WAIT
    )
    press(" ")
    assert player.get_by_role("button", name="Play", exact=True).count() == 1
    player.get_by_role("slider").focus()
    press("Home")
    press("ArrowRight")
    assert token.inner_text().startswith("token 1 of")


def test_the_atlas_of_the_lesson(lesson: Lab):
    systems, suites, _ = find(lesson, "atlas").all()
    press = lesson.page.keyboard.press
    grid, readout = systems.get_by_role("grid"), systems.locator(".rl-atlas-readout")
    listed = systems.locator(".rl-atlas-list li")
    rows = grid.get_by_role("rowheader").all_text_contents()
    assert rows == ["after the warm-up, sampled", "rule, greedy", "trained, greedy", "trained, sampled"]
    heads = grid.get_by_role("columnheader")
    assert heads.nth(5).inner_text() == "5"  # percent
    systems.get_by_role("combobox", name="columns").select_option("line")
    assert heads.nth(5).inner_text() == "2"  # the second line
    systems.get_by_role("combobox", name="numbers").select_option("calls")
    assert re.match(r"number of calls: (≤ \d+\s*)+ · none", systems.locator(".rl-atlas-legend").inner_text())

    # By keys alone: to a cell with calls, to its first trace, into the player and back.
    lesson.tab_through(systems)
    systems.get_by_role("button", name="Show all traces").click()  # a b in the list of suites chose one
    grid.locator("[tabindex='0']").focus()
    for key in ("Control+Home", "ArrowDown", "ArrowRight"):
        press(key)
    for _ in range(8):
        if "0 of" not in readout.inner_text() and re.search(r", [1-9]\d* calls?, ", readout.inner_text()):
            break
        press("ArrowRight")
    press("Enter")
    assert listed.count() > 0
    press("Tab")  # the order of the list
    press("Tab")
    assert focused(lesson).startswith("Open ")
    press("Enter")
    assert systems.locator(".rl-callwords").inner_text().startswith("Call ")
    close = systems.get_by_role("button", name="Close the player")
    for _ in range(listed.count() + 1):
        if focused(lesson) == "Close the player":
            break
        press("Tab")
    press("Enter")
    assert close.count() == 0
    assert focused(lesson).startswith("Open ")  # where one was before

    # Those of the trained student, by suite: a filter, and all again.
    passed = suites.locator("fieldset .rl-muted")
    assert passed.inner_text() == "18 of 18 traces"
    suites.get_by_role("combobox", name="suite").focus()
    press("ArrowDown")
    assert passed.inner_text() == "2 of 18 traces"
    suites.get_by_role("button", name="Show all traces").focus()
    press(" ")
    assert passed.inner_text() == "18 of 18 traces"


def test_pictures_of_the_lesson(lesson: Lab):
    views = {f"lesson-{name}": find(lesson, name).first for name in OF_THE_LESSON}
    views["lesson-atlas-by-suite"] = find(lesson, "atlas").nth(1)
    views["lesson-atlas"].get_by_role("button", name="Open ").first.click()  # with a player in it
    lesson.screenshots(SCREENSHOTS, views)
    assert lesson.errors == []  # of all that was done above
    assert lesson.elsewhere == [], "no request leaves this machine"
    lesson.page.close()


# A notebook of its own ------------------------------------------------------------------------------------------------


def test_the_playground(lab: Lab):
    playground = find(lab, "playground")
    question = playground.get_by_label("question, picked or typed")
    first = question.input_value()
    playground.get_by_role("button", name="Pick the next question of this suite").click()
    lab.page.wait_for_function("([e, was]) => e.value !== was", arg=[question.element_handle(), first], timeout=WAIT)
    assert "tiles, number 1: will be graded against" in playground.inner_text()

    playground.get_by_role("button", name="Ask this question").click()
    says(lab, playground, "Run 1: relay with teacher.")
    run = playground.locator(".rl-run")
    assert run.count() == 1
    assert re.search(r"✓ correct|✗ wrong", run.inner_text())
    assert run.locator(".rl-strip .rl-t").count() > 0

    # Another student, alone, beside it.
    playground.locator("summary").first.click()
    playground.get_by_role("combobox", name="student").select_option("student")
    playground.get_by_role("combobox", name="teacher").select_option("none")
    question.press("Control+Enter")
    says(lab, playground, "Run 2: student with no teacher.")
    assert run.count() == 2
    boxes = [run.nth(k).bounding_box() for k in range(2)]
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2  # side by side

    # Slowly, a question that is hostile; stopped half way, by the keyboard.
    question.fill("<img src=x onerror=alert(1)> What is 61+28?")
    assert "not graded" in playground.inner_text()
    playground.get_by_role("combobox", name="pace").select_option("5")
    playground.get_by_role("button", name="Ask this question").focus()
    lab.page.keyboard.press("Enter")
    growing = playground.locator(".rl-run[aria-busy=true] .rl-strip > span")
    growing.nth(2).wait_for(timeout=WAIT)
    gets_focus(lab, "Stop the answer that is being written")  # the focus came along
    lab.page.keyboard.press("Enter")
    says(lab, playground, "interrupted")
    gets_focus(lab, "Ask this question")
    assert playground.locator(".rl-run").nth(0).locator(".rl-question").inner_text().startswith("<img src=x")
    assert playground.locator("img").count() == 0

    limit = playground.get_by_role("spinbutton", name="tokens at most")
    limit.fill("0")
    playground.get_by_role("button", name="Ask this question").click()
    says(lab, playground, "✗ max_tokens is 0")
    limit.fill("256")
    lab.tab_through(playground)

    playground.get_by_role("button", name="Remove Run 3: student with no teacher").focus()
    lab.page.keyboard.press("Enter")
    says(lab, playground, "Removed.")
    assert run.count() == 2
    gets_focus(lab, "Remove Run 2: student with no teacher")  # the next one that can go


def test_the_counterfactual(lab: Lab):
    view = find(lab, "counterfactual")
    runs = view.locator(".rl-run")
    tokens = runs.nth(0).get_by_role("option")
    chosen = view.locator("[aria-selected=true]")
    force, change, forbid = (
        view.get_by_role("button", name=name)
        for name in ("Force a call here", "Let this call ask for n tokens instead", "Forbid this call")
    )
    assert force.is_disabled()
    assert tokens.count() == 96

    # By the keyboard: one token has the tab stop, arrows move it, Enter chooses.
    assert runs.nth(0).locator("[role=option][tabindex='0']").count() == 1
    tokens.nth(0).focus()
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowLeft", "Enter"):
        lab.page.keyboard.press(key)
    assert tokens.evaluate_all("(all) => all.findIndex((e) => e.ariaSelected === 'true')") == 10
    assert "Chosen in Original: token 11 of 96 · student" in view.inner_text()
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
    tokens.nth(55).click()
    assert chosen.count() == 1
    assert "Call 2 asked for 6" in view.inner_text()
    assert (force.is_disabled(), change.is_enabled()) == (True, True)
    n = view.get_by_role("spinbutton")
    assert n.input_value() == "6"
    n.fill("4")
    change.click()
    says(lab, view, "Fork 2: call 2 asks for 4, not 6.")
    forbid.click()
    says(lab, view, "Fork 3: call 2 forbidden.")
    assert runs.count() == 4
    for k in range(4):
        assert re.search(r"✓ correct|✗ wrong", runs.nth(k).inner_text())
    lab.tab_through(view)


def test_the_reward_lab(lab: Lab):
    view = find(lab, "reward_lab")
    press, rows, add = (
        lab.page.keyboard.press,
        view.locator("tbody tr"),
        view.get_by_role("button", name="Add a rollout"),
    )
    kind = view.get_by_text("The group is ")

    def paid(row: int) -> list[str]:
        """Rewards of a rollout under outcome, simple and difficulty-aware."""
        return [rows.nth(row).locator("td").nth(6 + k).inner_text().split()[0] for k in range(3)]

    # By the mouse: the only one that was right alone is wrong, and so those that never called are punished.
    assert (rows.count(), add.is_disabled()) == (8, True)
    assert view.get_by_text("8 rollouts are the most").is_visible()
    assert (paid(0), paid(4)) == (["1.00", "1.00", "1.50"], ["0.00", "0.00", "0.00"])
    view.get_by_role("checkbox", name="rollout 1 is right").click()
    assert "The group is dependent" in kind.inner_text()
    assert (paid(0), paid(4)) == (["0.00", "0.00", "−1.00"], ["0.00", "0.00", "−1.00"])

    # By keys alone.
    lab.tab_through(view)
    view.get_by_role("checkbox", name="rollout 1 is right").focus()
    press(" ")
    assert paid(4) == ["0.00", "0.00", "0.00"]
    before = paid(1)
    view.get_by_role("spinbutton", name="rollout 2, teacher tokens").focus()
    press("ArrowUp")
    assert view.get_by_role("spinbutton", name="rollout 2, teacher tokens").input_value() == "5"
    assert paid(1)[0] == before[0]
    assert paid(1)[1] < before[1]  # a token more to pay for
    view.get_by_role("combobox", name="ρ by").focus()
    press("ArrowUp")
    assert view.get_by_role("combobox", name="ρ by").input_value() == "content"
    view.get_by_role("button", name="Remove rollout 8").focus()
    press("Enter")
    assert (rows.count(), add.is_enabled(), focused(lab)) == (7, True, "Remove rollout 7")
    add.focus()
    press("Enter")
    assert (rows.count(), add.is_disabled(), focused(lab)) == (8, True, "rollout 8 is right")


def test_the_cost_dial(lab: Lab):
    view = find(lab, "cost_dial")
    press = lab.page.keyboard.press
    line, shares = view.locator(".rl-line").nth(0), view.locator("tbody td:last-child")

    def drawn() -> tuple[str, list[str]]:
        return line.get_attribute("d"), shares.all_inner_texts()

    assert drawn()[1] == ["115 %", "59.1 %", "34.2 %", "1.35 %"]  # as docs/cost.md has them
    first, cache = drawn(), view.get_by_role("checkbox")
    cache.click()
    assert drawn()[0] != first[0]
    assert drawn()[1][0] == "588 %"

    # By keys alone.
    lab.tab_through(view)
    cache.focus()
    press(" ")
    assert drawn() == first
    delay = view.get_by_role("slider", name="delay, s")
    delay.focus()
    press("ArrowRight")
    assert delay.get_attribute("aria-valuetext") == "0.055"
    assert drawn()[1][2] > "34.2 %"
    view.get_by_role("combobox", name="cost in").focus()
    press("ArrowDown")
    assert "price: 59.1 % of the teacher alone" in view.locator("[aria-live]").inner_text()
    assert drawn()[0] != first[0]
    calls = view.get_by_role("spinbutton", name="calls")
    calls.focus()
    press("ArrowUp")
    assert "11 calls of 1 token" in view.locator("[aria-live]").inner_text()


def test_dollars_of_models_and_questions_are_no_mathematics(lab: Lab):
    """JupyterLab typesets what stands between dollars, unless an output says that it must not."""
    trace = lab.page.locator("section[aria-label^='Relay trace. not graded, 1 token']")
    assert "Ann has $5 and Bob has $7. $x^2$" in trace.inner_text()
    assert "It is $\\color{red}{5}$ or \\(7\\)." in trace.locator(".rl-strip").text_content()
    assert "It is $\\color{red}{5}$ or \\(7\\)." in find(lab, "player").locator(".rl-strip").first.text_content()
    formulas = lab.page.locator("mjx-container, .MathJax")
    formulas.first.wait_for(timeout=WAIT)  # of the last cell, whose HTML is not ours
    assert formulas.count() == 1


def test_what_is_saved_shows_the_runs_without_a_kernel_and_pictures(lab: Lab, folder: Path):
    records = lab.page.locator("[data-rl-record]")
    assert records.count() == 2
    assert not any(records.nth(k).is_visible() for k in range(2))  # the live views show it all already
    lab.save()
    saved = nbformat.read(folder / "live.ipynb", 4)
    page = HTMLExporter().from_notebook_node(saved)[0]
    for heading in ("Run 1: relay with teacher", "Original", "Fork 2: call 2 asks for 4, not 6"):
        assert f"<h4>{heading}</h4>" in page
    assert not re.search(r"widget-(view|state)\+json", page)
    lab.screenshots(SCREENSHOTS, {name: find(lab, name) for name in OWN})
    assert lab.errors == []  # of all that was done above
    assert lab.elsewhere == [], "no request leaves this machine"
