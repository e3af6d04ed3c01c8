"""Executed notebooks as pages: formulas without a library, figures without a script, nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import nbformat
import plotly.graph_objects as go
import pytest
from IPython.core.interactiveshell import InteractiveShell
from latex2mathml.converter import convert

from relaylab import pages
from relaylab.pages import LessonPage, write_page
from relaylab.views import theme
from relaylab.views.theme import NO_MATH, show_figure, with_alt_text

LESSONS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+)\$", re.S)
ELSEWHERE = re.compile(r"""(src|href)\s*=\s*["']?(https?:)?//|import\(\s*["'](https?:)?//|url\(["']?https?:""")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def figure() -> str:
    fig = with_alt_text(go.Figure(go.Bar(x=["easy", "hard"], y=[95.0, 5.25], name="right")), "Hard: 5 %.", "Right")
    return show_figure(fig).html


def book(*outputs: str, text: str = "$x$") -> nbformat.NotebookNode:
    """A notebook with a text and a cell of HTML outputs."""
    made = [nbformat.v4.new_output("display_data", {"text/html": output}) for output in outputs]
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("view", outputs=made)]
    return nbformat.v4.new_notebook(cells=cells)


def page_of(notebook: nbformat.NotebookNode) -> str:
    return LessonPage().from_notebook_node(notebook)[0]


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_a_page_asks_no_server():
    view = {"application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": "m"}}
    notebook = book("<p>x</p>")
    notebook.cells[1].outputs.append(nbformat.v4.new_output("display_data", view))
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"m": {}}}}
    page = page_of(notebook)
    assert not ELSEWHERE.search(page)
    assert "html-manager" not in page
    assert "plotly.js v" not in page, "only pages with figures hold it"


def test_plumbing_is_folded_and_the_rest_is_in_sight():
    cells = [
        nbformat.v4.new_code_cell("hidden = 1", metadata={"tags": ["hide-input"]}),
        nbformat.v4.new_code_cell("seen"),
    ]
    folds = re.findall(r"<details class=.folded.>.*?</details>", page_of(nbformat.v4.new_notebook(cells=cells)), re.S)
    assert len(folds) == 1
    assert "hidden" in folds[0]
    assert "seen" not in folds[0]


def test_formulas_are_in_the_page_and_dollars_of_a_question_stay():
    question = f'<p class="{NO_MATH}">Ann has $5 and Bob has $7.</p>'
    page = page_of(book(question, text="Text $a_i$.\n\n$$\\frac{1}{2}$$\n\n`$x$` stays code."))
    assert page.count("<math") == 2
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in page
    assert "Ann has $5 and Bob has $7." in page
    assert "<code>$x$</code>" in page


@pytest.mark.parametrize("formula", ["x_i_j", "a^b^c", r"\frac", "<b>_i_j"])
def test_a_formula_that_is_none_is_shown_as_it_is(formula):
    page = page_of(book("", text=f"Text ${formula}$ goes on.\n\n$$\n{formula}\n$$"))
    assert page.count(f"<code>{html.escape(formula)}</code>") >= 1
    assert "goes on." in page


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_formulas_of_the_lessons_are_formulas(path):
    """Each dollar in a text belongs to a formula, and each formula can be drawn: no command is left over."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    for text in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"):
        text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
        for display, inline in FORMULA.findall(text):
            assert "\\" not in convert(display or inline)
        assert "$" not in FORMULA.sub("", text)


def test_each_formula_of_the_method_stands_once_and_before_the_line_of_code_that_is_it():
    lines = {
        r"J(\theta)": "torch.min(ratio * advantage[k], ratio.clip(0.8, 1.2) * advantage[k])",
        "w_{i,t}": "ratio = (logp - old).exp()",
        r"A_i^{\text{batch}}": "(max(rewards) - np.mean(rewards)) / spread",
        "A_i": "(r - mean) / (spread + 1e-4)",
        r"\rho =": 't.source.count("t") / len(t.source)',
        "r =": "r - cost",
        "r_i": "assert aware_by_hand == difficulty_aware(list(four.values()))",
        r"\hat p": "keep(rates, t)",
        r"L(\theta)": "(plain.exp() * (plain - kept)).sum(-1)",
        r"\text{pass@}k": "comb(samples - right, k) / comb(samples, k)",
        r"\bar d": "np.percentile(d[drawn].mean(axis=1), [2.5, 97.5])",
    }
    found = []
    for path in LESSONS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        for cell, after in pairwise(cells):
            shown = FORMULA.findall("".join(cell["source"])) if cell["cell_type"] == "markdown" else []
            for formula in (display for display, _ in shown if display):
                found.append(next(begin for begin in lines if formula.startswith(begin)))
                assert after["cell_type"] == "code", formula
                assert lines[found[-1]] in "".join(after["source"]), formula
    assert sorted(found) == sorted(lines)


def test_a_figure_without_scripts_is_words_and_numbers():
    shown = without_scripts(page_of(book(figure())))
    assert re.search('<details open(="")?><summary>The figure in words</summary><p>Hard: 5 %.</p>', shown)
    assert "<tr><th>right</th><td>easy: 95; hard: 5.25</td></tr>" in shown
    # Numbers are left out where an axis is a drawing of its own.
    fig = with_alt_text(go.Figure(go.Bar(x=[3], y=[0])), "One row.", "x")
    assert "<table>" in show_figure(fig).html
    fig.update_yaxes(tickvals=[0], ticktext=["tiles-0"])
    assert "<table>" not in show_figure(fig).html


@pytest.mark.skipif(not BROWSER, reason="needs a Chromium")
def test_pictures_and_a_pdf(tmp_path):
    pytest.importorskip("kaleido")
    notebook = tmp_path / "lesson.ipynb"
    nbformat.write(book(figure(), "<p>between</p>", figure()), notebook)
    for _ in range(2):  # an earlier picture is replaced
        files = write_page(notebook, tmp_path / "lesson.html", pdf=True)
    assert [file.name for file in files] == ["lesson.html", "lesson.pdf"]
    assert files[1].read_bytes()[:5] == b"%PDF-"
    page = without_scripts(files[0].read_text("utf-8"))
    pictures = re.findall(r'<img alt="Hard: 5 %\." class="rl-picture" src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 2
    svg = base64.b64decode(pictures[0]).decode()
    assert svg.startswith("<svg")
    assert "easy" in svg
    assert notebook.read_text("utf-8").count('rl-picture\\"') == 2, "the notebook has them, too"
    assert notebook.stat().st_size < 100_000


def test_without_a_browser_words_stay_and_a_pdf_says_what_is_missing(tmp_path, monkeypatch):
    async def none(figures):
        raise RuntimeError("no Chrome\nlong story")

    monkeypatch.setattr(pages, "_draw", none)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    nbformat.write(book(figure()), tmp_path / "n.ipynb")
    with pytest.warns(UserWarning, match="without pictures.*apt-get install chromium.*no Chrome$"):
        write_page(tmp_path / "n.ipynb", tmp_path / "n.html")
    assert "Hard: 5 %." in without_scripts((tmp_path / "n.html").read_text("utf-8"))
    with pytest.raises(RuntimeError, match="--pdf needs a Chromium"):
        write_page(tmp_path / "n.ipynb", tmp_path / "n.html", pdf=True)


def test_a_saved_notebook_does_not_hold_plotly(monkeypatch):
    shell, shown = InteractiveShell(), []
    output = SimpleNamespace(update=lambda page: shown.append(page.html))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", lambda page, display_id: output.update(page) or output)
    theme.load_plotly()
    for code in "12":
        shell.run_cell(code)
    assert ("plotly.js v" in shown[0][:200], len(shown), len(shown[1]) < 200) == (True, 2, True)
