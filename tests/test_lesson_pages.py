"""Executed lessons as pages: no solution in them, and whole in a browser without a network and without scripts.

The pages are those of ``make notebooks``, where it has run. Elsewhere lesson 01 is executed at the size of a quick run.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from real_jupyterlab import open_chromium, visit
from test_exercises import blocks
from test_pages import FORMULA, page_of
from typer.testing import CliRunner

from relaylab.cli import app
from relaylab.lab import with_solutions

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
LESSONS, EXECUTED = ROOT / "notebooks", ROOT / "runs" / "notebooks"
# Of what a page shows without scripts: its formulas and its pictures, each with its width and height.
SIZES = """(all) => all.map((e) => {
  const { width, height } = e.getBoundingClientRect();
  return [width, height, e.tagName === "IMG" ? e.naturalWidth : null];
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[Path]:
    """Pages of lessons, with pictures if there is a Chromium."""
    if done := sorted(EXECUTED.glob("[0-9]*.html")):
        return done
    folder = tmp_path_factory.mktemp("executed")
    words = ["notebooks", "run", "01_command", "--smoke", "--html", "--folder", str(LESSONS), "--out", str(folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output[-3000:]
    return [folder / "01_command.html"]


@pytest.fixture(scope="module")
def browser(pages: list[Path]) -> Iterator[Any]:
    """Opened when the pages are there: beside it, no picture could be drawn in this process."""
    with open_chromium() as browser:
        yield browser


def said(text: str) -> str:
    """The text of a page or of its Markdown source, without what sets it: tags, spaces, stars and backticks."""
    text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    return re.sub(r"[\s*`\\]", "", html.unescape(re.sub(r"<[a-zA-Z/!][^>]*>", "", text)))


def found_in(shown: str, solutions: Path) -> list[str]:
    """The exercises whose answers a page shows, and the lines of the solutions' prose that it shows."""
    codes = {name: code[0] for name, code in blocks(solutions).items()}  # as they stand in a solved lesson's cells
    bodies = {name: code.partition("\n")[2] if code.startswith("def ") else code for name, code in codes.items()}
    prose = re.sub(r"^```python\n.*?^```|^#.*?$", "", solutions.read_text("utf-8"), flags=re.S | re.M)
    lines = {line: line for line in prose.splitlines() if len(said(line)) > 30}
    return [name for name, text in (bodies | lines).items() if said(html.escape(text)) in shown]


def test_no_page_holds_a_solution(pages: list[Path]):
    for page in pages:
        solutions = LESSONS / "solutions" / f"{page.stem[:2]}.md"
        if solutions.exists():  # lesson 00 has no exercise
            assert found_in(said(page.read_text("utf-8")), solutions) == [], page.stem


@pytest.mark.parametrize("solutions", sorted(LESSONS.glob("solutions/*.md")), ids=lambda path: path.stem)
def test_a_page_of_a_solved_lesson_would_be_found(solutions: Path):
    (path,) = LESSONS.glob(f"{solutions.stem}_*.ipynb")
    solved = nbformat.reads(with_solutions(path.read_bytes(), solutions.read_text("utf-8")).decode(), 4)
    assert found_in(said(page_of(solved)), solutions) == list(blocks(solutions))


def test_without_scripts_and_network_formulas_and_pictures_are_there(browser: Any, pages: list[Path]):
    context = browser.new_context(java_script_enabled=False, offline=True)
    seen = []
    for path in pages:
        book = json.loads((path.parent / path.stem / f"{path.stem}.ipynb").read_text("utf-8"))
        text = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")
        data = [o.get("data", {}) for cell in book["cells"] for o in cell.get("outputs", ())]
        figures = sum("".join(d.get("text/html", "")).count('<figure class="rl-fig ') for d in data)
        formulas = FORMULA.findall(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S))
        lab = visit(context.new_page(), path.as_uri(), path.as_uri())
        drawn = lab.page.locator("math").evaluate_all(SIZES)
        assert len(drawn) >= len(formulas), path.stem
        assert all(width > 2 and height > 5 for width, height, _ in drawn), path.stem
        pictures = lab.page.locator("figure.rl-fig > img.rl-picture[src^='data:image/svg+xml;base64,']")
        sizes = pictures.evaluate_all(SIZES)
        assert len(sizes) == figures, path.stem
        assert all(width > 100 and height > 50 and own > 100 for width, height, own in sizes), path.stem
        assert lab.elsewhere == []
        seen.append((len(drawn), figures))
        lab.page.close()
    context.close()
    assert max(formulas for formulas, _ in seen) > 0 < max(figures for _, figures in seen)


def test_with_scripts_figures_are_drawn_and_nothing_is_asked_for(browser: Any, pages: list[Path]):
    context = browser.new_context(offline=True)
    for path in pages:
        lab = visit(context.new_page(), path.as_uri(), path.as_uri())
        figures = lab.page.locator("figure.rl-fig")
        for k in range(figures.count()):
            figures.nth(k).locator(".main-svg").first.wait_for()
            assert not figures.nth(k).locator("img.rl-picture").is_visible()  # the drawn one stands for it
        assert (lab.errors, lab.elsewhere) == ([], []), path.stem
        lab.page.close()
    context.close()


def test_on_paper_code_wraps_and_nothing_is_cut(browser: Any, pages: list[Path]):
    page = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 less its margins
    page.emulate_media(media="print")
    for path in pages:
        page.goto(path.as_uri())
        code = page.locator(".highlight pre").evaluate_all("(all) => all.map((e) => e.scrollWidth - e.clientWidth)")
        assert code, path.stem
        assert max(code) <= 1, path.stem
        bars = page.locator(".modebar").evaluate_all("(all) => all.filter((e) => e.offsetHeight).length")
        prompts = page.locator(".jp-InputPrompt").evaluate_all("(all) => all.filter((e) => e.offsetHeight).length")
        assert (bars, prompts) == (0, 0), path.stem
    page.close()


def test_a_saved_lesson_is_small(pages: list[Path]):
    saved = [path.parent / path.stem / f"{path.stem}.ipynb" for path in pages]
    assert max(path.stat().st_size for path in saved) <= 1_500_000
