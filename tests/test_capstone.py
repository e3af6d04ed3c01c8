"""The capstone: its template gets nothing, its solution everything, and what breaks or loops harms itself alone."""

from __future__ import annotations

import ast
import doctest
import os
from pathlib import Path

import pytest

from relaylab.lab import copy_lessons
from relaylab.submissions import find_submissions, mark_answers, read_lesson
from solutions import my_relay as solution

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits are those of Linux and macOS")
LESSON = read_lesson("capstone")
SOLUTION = Path(solution.__file__).read_text("utf-8")
EXAMPLES = doctest.DocTestParser().get_examples


def marks(path: Path, source: str, **options) -> dict[str, str]:
    """The remark of each function of a module that is handed in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, "utf-8")
    return {name: mark.remark for name, mark in mark_answers(path, LESSON, **options).items()}


def test_the_template_gets_nothing_and_no_copy_holds_the_solution(tmp_path):
    copy_lessons(tmp_path)
    template = (tmp_path / "notebooks" / "capstone" / "my_relay.py").read_text("utf-8")
    found = marks(tmp_path / "in" / "ada.py", template)
    assert set(found) == set(LESSON.points)
    assert all(remark.startswith("open") for remark in found.values()), found
    assert not list(tmp_path.rglob("solutions"))


def test_the_solution_gets_all_and_the_examples_of_the_template_are_right(tmp_path):
    assert set(marks(tmp_path / "ada.py", SOLUTION).values()) == {"right."}
    assert all(mark.right for mark in mark_answers(tmp_path / "ada.py", LESSON).values())
    functions = [node for node in ast.parse(LESSON.path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
    examples = [example for node in functions for example in EXAMPLES(ast.get_docstring(node) or "")]
    assert len(examples) == 6
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(doctest.DocTest(examples, vars(solution).copy(), "template", None, None, None))
    assert runner.failures == 0


def test_modules_of_ones_own_are_found_by_the_adapters(tmp_path):
    """The loop lies in a module of another name; the other functions in the one of the template."""
    adapters = (LESSON.path.parent / "adapters.py").read_text("utf-8")
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "my_relay.py").write_text(SOLUTION, "utf-8")
    assert set(marks(tmp_path / "eve" / "adapters.py", adapters).values()) == {"right."}
    (tmp_path / "eve" / "loop.py").write_text(
        f"{SOLUTION}\n\nclass Loop:\n    answer = staticmethod(my_relay)\n", "utf-8"
    )
    (tmp_path / "eve" / "my_relay.py").write_text(SOLUTION.replace("def my_relay(", "def other("), "utf-8")
    own = adapters.replace(
        "group_rewards, my_relay\n", "group_rewards\nfrom loop import Loop\nmy_relay = Loop().answer\n", 1
    )
    assert set(marks(tmp_path / "eve" / "adapters.py", own).values()) == {"right."}
    assert find_submissions(tmp_path, LESSON) == {"eve": tmp_path / "eve" / "adapters.py"}


def test_a_module_that_harms_is_stopped_while_it_is_imported(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "mal").mkdir()
    (tmp_path / "mal" / "my_relay.py").write_text(f"{SOLUTION}\nimport os\nos.remove({str(victim)!r})\n", "utf-8")
    adapters = (LESSON.path.parent / "adapters.py").read_text("utf-8")
    found = marks(tmp_path / "mal" / "adapters.py", adapters)
    assert all("must not write, delete or start" in remark for remark in found.values()), found
    assert victim.read_text() == "kept"


def test_what_loops_or_breaks_loses_its_own_points(tmp_path):
    loops = SOLUTION.replace("    answer, begin, calls = [], 0, 0", "    while True:\n        pass\n    answer = []", 1)
    found = marks(tmp_path / "bob" / "my_relay.py", loops, seconds=2)
    assert "ran longer than 2 s" in found.pop("my_relay")
    assert set(found.values()) == {"right."}
    assert all("SyntaxError" in remark for remark in marks(tmp_path / "cyd.py", "def my_relay(*a) return 3").values())
    assert set(find_submissions(tmp_path, LESSON)) == {"bob", "cyd"}
