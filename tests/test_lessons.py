"""The series as a series: every lesson has its parts, leads to its neighbours, and stays on its feet when copied."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path

import pytest
from nbconvert import SlidesExporter

import lesson as lesson_folder
from relaylab.notebook_commands import smoke_parameters
from relaylab.sweep.notebook import check_values, read_parameters

FOLDER = Path(__file__).parents[1] / "notebooks"
SERIES = sorted(path.stem for path in FOLDER.glob("[0-9]*.ipynb"))
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
# Drives, homes, scratch folders: what is there on one machine alone.
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|mnt|Users|content|work)/|\b[A-Z]:\\\\?\w|file://")
lesson = pytest.mark.parametrize("name", SERIES)
any_notebook = pytest.mark.parametrize("name", ["START", *SERIES])


def cells(name: str, kind: str) -> list[dict]:
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def text(name: str, kind: str) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells(name, kind))


def calls(name: str) -> list[ast.Call]:
    """Every call in the code of a lesson; lines of IPython's own are not Python and hold none."""
    code = re.sub(r"^\s*[%!].*$", "", text(name, "code"), flags=re.MULTILINE)
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]


def asked(name: str) -> set[str]:
    """The exercises that a lesson checks."""
    found = [c for c in calls(name) if ast.unparse(c.func) == "check" and c.args]
    return {arg.value for c in found for arg in c.args[:1] if isinstance(arg, ast.Constant)}


def test_the_series_is_numbered_without_a_doubt():
    numbers = [name[:2] for name in SERIES]
    assert numbers[:3] == ["00", "01", "02"]
    assert len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", name) for name in SERIES)


@any_notebook
def test_a_lesson_is_kept_without_outputs(name):
    code = cells(name, "code")
    assert code
    assert not [c for c in code if c["outputs"] or c["execution_count"] is not None]
    assert not json.loads((FOLDER / f"{name}.ipynb").read_text())["metadata"].get("widgets")


@lesson
def test_a_lesson_has_its_parts(name):
    prose = text(name, "markdown")
    assert prose.startswith(f"# {name[:2]} · ")
    for part in ("you will", "prediction", "surprised us", "## Exercises", "2601.05167"):
        assert part.lower() in prose.lower(), f"{name} has no {part!r}"
    assert re.search(r"sections? \d|table \d|figure \d", prose), "which section of the paper?"


def test_every_parameter_has_a_type_and_is_explained_where_it_first_appears():
    """By a comment in its own lines. One of a lesson may be left to the comment of its neighbour."""
    explained = {"seed"}
    for name in SERIES:
        tagged = [
            c for c in cells(name, "code") if {"parameters", "more-parameters"} & {*c["metadata"].get("tags", ())}
        ]
        assert len(tagged) == 2, name
        lines = [line for cell in tagged for line in "".join(cell["source"]).splitlines()]
        declared = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.AnnAssign)]
        assert {node.target.id for node in declared} == set(read_parameters(FOLDER / f"{name}.ipynb")), "types"
        explained |= {n.target.id for n in declared if "#" in "".join(lines[n.lineno - 1 : n.end_lineno])}
        silent = {node.target.id for node in declared} - explained
        assert len(silent) <= 1, f"{name}: say behind a # what these are: {silent}"


@any_notebook
def test_a_lesson_begins_with_three_parameters_in_sight(name):
    """The others, the imports and the plumbing are folded, in JupyterLab and in pages."""
    first = itertools.takewhile(
        lambda c: c["cell_type"] == "code", json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"][1:4]
    )
    tags = [(c["metadata"].get("tags", []), c["metadata"].get("jupyter", {}).get("source_hidden")) for c in first]
    if name != "START":
        assert tags == [(["more-parameters", "hide-input"], True), (["parameters"], None), (["hide-input"], True)]
        assert len(read_parameters(FOLDER / f"{name}.ipynb")) > 3
    seen = [c for c in cells(name, "code") if "hide-input" not in c["metadata"].get("tags", ())]
    assert not [c for c in seen if re.search(r"^(import|from) ", "".join(c["source"]), re.M)] or name == "START"
    in_sight = [
        n for c in seen if "parameters" in c["metadata"].get("tags", ()) for n in ast.parse("".join(c["source"])).body
    ]
    assert len(in_sight) <= 3


@lesson
def test_a_lesson_hands_over_its_numbers(name):
    """Two came before ``rl.result`` and are read, not swept."""
    found = [c for c in calls(name) if ast.unparse(c.func) in ("rl.result", "result")]
    assert found or name in ("00_first_relay", "03_grpo")
    assert all(c.keywords for c in found)


@lesson
def test_an_evaluation_names_its_untrained_student(name):
    """The default is that of another world than the lessons' teacher. Lesson 17 names it in each system."""
    found = [c for c in calls(name) if ast.unparse(c.func) == "rl.evaluate"]
    assert all("student" in {k.arg for k in c.keywords} for c in found) or name == "17_qwen3_recipe"


@lesson
def test_the_exercises_are_those_of_the_table(name):
    from lesson.checks import EXERCISES

    assert asked(name) == {exercise for exercise, facts in EXERCISES.items() if facts["lesson"] == name[:2]}
    assert asked(name) or name == "00_first_relay"


@lesson
def test_a_lesson_makes_15_to_25_slides(name):
    """As nbconvert counts: a section in a section. What a room need not see is left out."""
    page, _ = SlidesExporter().from_filename(FOLDER / f"{name}.ipynb")
    stacks, sections = (len(re.findall(pattern, page)) for pattern in (r"<section>\s*<section>", "<section>"))
    assert 15 <= sections - stacks <= 25
    assert "setup()" not in page
    assert "# yours" not in page


@lesson
def test_a_prediction_is_typed_before_the_result_and_stands_beside_it(name):
    """Drawn into the figure, or printed where the result is no figure; and the text asks for it."""
    code = ["".join(c["source"]) for c in cells(name, "code")]
    asking = [k for k, source in enumerate(code) if re.match(r"guess = Predict\(", source)]
    shown = [k for k, source in enumerate(code) if re.search(r"guess\.draw\(|print\(.*\bguess\.words\b", source)]
    assert len(asking) == len(shown) == 1
    assert asking[0] < shown[0]
    assert code[asking[0]].endswith("\nguess")
    # A choice may have no place in its figure; a number has one.
    choice = re.match(r'guess = Predict\("[^"]*", \[', code[asking[0]])
    assert choice or not re.search(r"guess\.draw\(.*, None\)", code[shown[0]])


@lesson
def test_heat_maps_have_the_shared_scales(name):
    """On which the page's text can be read (tests/test_figures.py)."""
    code = text(name, "code")
    for start in (match.end() for match in re.finditer(r"(?:px\.imshow|go\.Heatmap)\(", code)):
        assert "HEAT" in code[start : start + 700] or "**looks" in code[start : start + 700]
    assert not re.search(r"scale=\[", code)


@lesson
def test_a_lesson_leads_to_its_neighbours(name):
    linked = set(LINK.findall(text(name, "markdown")))
    neighbours = {other for other in SERIES if abs(int(other[:2]) - int(name[:2])) == 1}
    assert not {f"{other}.ipynb" for other in neighbours} - linked


@any_notebook
def test_links_lead_to_what_a_copy_has_too(name):
    """``relaylab lab`` copies notebooks and docs, and nothing else."""
    local = [link for link in LINK.findall(text(name, "markdown")) if "://" not in link]
    numbers = {other[:2] for other in SERIES}
    later = {link for link in local if re.match(r"\d\d_\w+\.ipynb$", link) and link[:2] not in numbers}
    assert not [link for link in local if not (FOLDER / link).is_file() and link not in later]
    targets = [(FOLDER / link).resolve().relative_to(FOLDER.parent).parts[0] for link in local]
    assert set(targets) <= {"notebooks", "docs"}


@any_notebook
def test_a_lesson_names_no_place_of_one_machine(name):
    found = ABSOLUTE.search(text(name, "markdown") + text(name, "code"))
    assert not found, found


def test_the_table_of_start_knows_every_lesson():
    table = lesson_folder.course().data
    assert sorted(set(LINK.findall(table))) == [f"{name}.ipynb" for name in SERIES]
    assert table.count("\n") == 1 + len(SERIES)


def test_the_check_of_places_sees_them():
    for place in ("open('/mnt/me/x')", "see /tmp/x", r"C:\data", "file:///x", "/Users/me/x"):
        assert ABSOLUTE.search(place)
    for other in ("https://example.org/mnt/x", "../docs/tmp.md", "74/tmp", "a/mnt/b", "Qwen/Qwen3-0.6B"):
        assert not ABSOLUTE.search(other)


def test_every_lesson_has_a_size_for_a_quick_run():
    small = smoke_parameters(FOLDER)
    assert sorted(small) == SERIES, "notebooks/smoke.yaml: one line a lesson"
    for name, given in small.items():
        assert check_values(given, read_parameters(FOLDER / f"{name}.ipynb")) == given
