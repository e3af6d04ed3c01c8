"""The guides: the code that they show runs, from top to bottom, and what they link to and name is there."""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from relaylab.cli import app
from relaylab.notebook_commands import find_notebook
from relaylab.relay.pair import load_pair
from relaylab.sweep.notebook import read_parameters
from relaylab.tasks.suites import problems

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = ("researchers-guide.md", "instructors-guide.md")


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_code_of_the_researchers_guide_runs(tmp_path, monkeypatch):
    from relaylab.training.rewards import SCHEMES

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relaylab.training.rewards.SCHEMES", SCHEMES.copy())
    blocks = re.findall(r"^```python\n(.*?)^```", read("researchers-guide.md"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    scope: dict = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "guide", "exec", dont_inherit=True), scope)
    calculated = scope["rl"].load_pair("relay", scope["Calculator"]())
    helped = calculated.decode(problems("tiles", 20), progress=False)
    share = sum(t.count("t") for t in helped) / sum(len(t.completion_ids) for t in helped)
    assert (sum(t.correct for t in helped), round(100 * share, 1)) == (20, 3.9), "as the page says"
    assert (tmp_path / "runs" / "thrifty" / "student" / "adapter_model.safetensors").exists()
    assert len(scope["done"].trace.answered) >= 1
    assert scope["done"].trace.answered[0].requested == 2


def test_the_page_of_serving_shows_what_the_pair_answers():
    page, scope = read("serving.md"), {}
    exec(re.search(r"^question = \(.*?^\)", page, re.DOTALL | re.MULTILINE)[0], scope)
    trace = load_pair("relay", "teacher").solve(scope["question"])
    (call,) = trace.calls
    said = {"asked": call.requested, "granted": call.granted, "delivered": call.delivered}
    said |= {"start": call.start, "end": call.end, "status": call.status, "error": call.error}
    assert f"{trace.teacher_view} {[said]}\n" in page


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide):
    numbers = {path.name[:2] for path in (DOCS.parent / "notebooks").glob("*.ipynb")}
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", read(guide)):
        lesson = re.match(r"\.\./notebooks/(\d\d)_", link)
        if "://" not in link and not (lesson and lesson[1] not in numbers):  # a lesson that is still to come
            assert (DOCS / link).exists(), link


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_exist(guide):
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    named = set(re.findall(r"^relaylab ([a-z]+)", read(guide), re.MULTILINE))
    named |= set(re.findall(r"`relaylab ([a-z]+)", read(guide)))
    assert named
    assert named <= known, named - known


def test_parameters_in_commands_are_those_of_their_notebooks():
    """In the README, in every page of the docs, and in the lessons."""
    root, seen = DOCS.parent, 0
    pages = [p.read_text("utf-8") for p in (root / "README.md", *DOCS.glob("*.md"))]
    for book in (root / "notebooks").glob("*.ipynb"):
        pages += ["".join(cell["source"]) for cell in json.loads(book.read_text("utf-8"))["cells"]]
    for command in re.findall(r"relaylab notebooks run (\S+ -p (?:[^\n\\]|\\\n)*)", "\n".join(pages)):
        name, *words = command.replace("\\\n", " ").split()
        named = {value.partition("=")[0] for option, value in itertools.pairwise(words) if option == "-p"}
        known = read_parameters(find_notebook(name, root / "notebooks"))
        assert named <= {*known}, command
        seen += len(named)
    assert seen >= 12


def test_the_instructors_guide_knows_every_lesson():
    text = read("instructors-guide.md")
    lessons = sorted(path.stem for path in (DOCS.parent / "notebooks").glob("*.ipynb"))
    assert not [name for name in lessons if f"../notebooks/{name}.ipynb" not in text]


def test_the_minutes_of_the_lessons_are_counted():
    spec = importlib.util.spec_from_file_location("minutes", DOCS.parent / "benchmarks" / "lesson_minutes.py")
    counting = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = counting  # a dataclass looks its module up
    spec.loader.exec_module(counting)
    assert doctest.testmod(counting).attempted == 2
    assert doctest.testmod(counting).failed == 0
    rows = re.findall(r"\(\.\./notebooks/(\w+)\.ipynb\) \| (\d+) \|", read("instructors-guide.md"))
    lessons = sorted((DOCS.parent / "notebooks").glob("[0-9]*.ipynb"))
    assert rows == [(path.stem, str(counting.minutes(path))) for path in lessons]
    exact = {path.stem: round(sum(counting.sections(path).values(), counting.Counts()).minutes) for path in lessons}
    assert all(20 <= minutes <= 30 for minutes in exact.values()), exact


def test_files_that_pages_name_are_there():
    """Those in folders of ours; a page may also name files of other projects, and of a run."""
    root = DOCS.parent
    places = [root, root / "relaylab", root / "notebooks"]
    named = re.compile(r"`([\w.-]+)(/[\w./-]+\.(?:py|js|css|yaml|yml|json|csv|jsonl))`")
    pages = [*sorted(DOCS.glob("*.md")), *root.glob("*.md")]
    found = [(page.name, m[1] + m[2]) for page in pages for m in named.finditer(page.read_text(encoding="utf-8"))]
    ours = [(page, name) for page, name in found if any((p / name.split("/")[0]).is_dir() for p in places)]
    assert len(ours) > 40
    assert [
        named for named in ours if "runs/" not in named[1] and not any((p / named[1]).exists() for p in places)
    ] == []
