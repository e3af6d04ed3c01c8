"""Exercises as a course assigns them: points in one place, nbgrader's metadata, solutions apart, hints."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import lesson
from lesson.checks import EXERCISES, NotYet, check
from relaylab.lab import copy_lessons, with_solutions
from relaylab.submissions import read_lesson

HOME = Path(__file__).parents[1]
FOLDER = HOME / "notebooks"
BOOKS = {path.stem[:2]: json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.ipynb")}
LESSONS = {facts["lesson"] for facts in EXERCISES.values()} - {"capstone"}
NAMES = [name for name, facts in EXERCISES.items() if facts["lesson"] != "capstone"]  # of the exercises in lessons
WORDS = {1: "easy", 2: "medium", 3: "hard"}
ANSWER = {"schema_version": 3, "grade": False, "solution": True, "locked": False, "task": False}
CHECK = {"schema_version": 3, "grade": True, "solution": False, "locked": True, "task": False}


def blocks(path: Path) -> dict[str, list[str]]:
    """The blocks of code of each section of a page."""
    parts = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for name, part in parts}


WRONG = blocks(Path(__file__).parent / "wrong_answers.md")
SOLUTIONS = {name: code for path in sorted(FOLDER.glob("solutions/*.md")) for name, code in blocks(path).items()}


@pytest.fixture(scope="module")
def solved() -> dict:
    """What all solutions define, in the order of the lessons, which they may use."""
    names = ["GB", "PROMPT", "format_call", "paper_tables", "shipped", "strip_calls", "total"]
    scope = {"statistics": statistics, "replace": dataclasses.replace} | {n: getattr(lesson, n) for n in names}
    for code in (*read_lesson("07").given, *(code for code, *_ in SOLUTIONS.values())):
        exec(code, scope)
    return scope


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right(name, solved):
    assert check(name)(solved[name]) == f"{name} is right."


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_shows_the_points_and_has_them_for_nbgrader(name):
    facts = EXERCISES[name]
    cells = BOOKS[facts["lesson"]]["cells"]
    ids = [cell["metadata"].get("nbgrader", {}).get("grade_id") for cell in cells]
    k = ids.index(name)
    points, s = facts["points"], "s" if facts["points"] > 1 else ""
    shown = f"*{points} point{s} · {WORDS[facts['difficulty']]} · {facts['minutes']} minutes*"
    assert shown in "".join(cells[k - 1]["source"])
    assert cells[k]["metadata"]["nbgrader"] == ANSWER | {"grade_id": name}
    assert cells[k + 1]["metadata"]["nbgrader"] == CHECK | {"grade_id": f"{name}-check", "points": points}
    assert "".join(cells[k + 1]["source"]) == f'check("{name}")({name})'


@pytest.mark.parametrize("number", BOOKS)
def test_cells_are_told_apart_and_nbgrader_takes_the_notebook(number):
    cells = BOOKS[number]["cells"]
    marked = [c["metadata"]["nbgrader"]["grade_id"] for c in cells if "nbgrader" in c["metadata"]]
    assert len(marked) == len(set(marked)) == 2 * sum(facts["lesson"] == number for facts in EXERCISES.values())
    ids = [cell["id"] for cell in cells]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)


def test_no_solution_stands_in_a_lesson_or_in_a_learners_copy(tmp_path):
    copy_lessons(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".ipynb", ".md")]
    texts = "\n".join(
        "\n".join("".join(c["source"]) for c in json.loads(p.read_text("utf-8"))["cells"])
        if p.suffix == ".ipynb"
        else p.read_text("utf-8")
        for p in files
    )
    assert len(files) > 20
    assert "<details>" not in texts
    assert not list(tmp_path.rglob("solutions"))
    for name, (code, *_) in SOLUTIONS.items():
        last = code.strip().splitlines()[-1].strip()
        assert last not in texts, f"{name}: {last}"


def test_each_exercise_has_a_solution_that_copies_for_instructors_hold(tmp_path):
    assert {name for name, code in SOLUTIONS.items() if code} == set(NAMES)
    copy_lessons(tmp_path, solutions=True)
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        answers = [c for c in cells if c["metadata"].get("nbgrader", {}).get("solution")]
        for cell in answers:
            source = "".join(cell["source"])
            assert "# yours" not in source
            assert source.count("### BEGIN SOLUTION") == source.count("### END SOLUTION") == 1
            compile(source, path.name, "exec")
    assert len(list(tmp_path.glob("notebooks/solutions/*.md"))) == len(LESSONS)
    assert {f.state for f in copy_lessons(tmp_path)} == {"current", "kept"}, "a learner's copy replaces no solution"


def test_a_solution_keeps_the_names_and_types_of_its_cell():
    cell = {"cell_type": "code", "metadata": {"nbgrader": ANSWER | {"grade_id": "double"}}}
    cell["source"] = ["def double(x: int) -> int:\n", '    """Twice x."""\n', "    # yours"]
    page = "## double\n\n```python\ndef double(x):\n    y = x\n\n    return y + y\n```\n\nOr 2 * x.\n"
    made = json.loads(with_solutions(json.dumps({"cells": [cell]}).encode(), page))["cells"]
    assert "".join(made[0]["source"]) == (
        'def double(x: int) -> int:\n    """Twice x."""\n    ### BEGIN SOLUTION\n    y = x\n\n    return y + y\n'
        "    ### END SOLUTION"
    )


@pytest.mark.parametrize(("name", "code"), [(name, code) for name, codes in WRONG.items() for code in codes])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_plausible_mistake_is_wrong_and_gets_a_hint(name, code, seed):
    scope = {"statistics": statistics, "format_call": lesson.format_call, "strip_calls": lesson.strip_calls}
    exec(code, scope)
    with pytest.raises(NotYet) as told:
        check(name, seed=seed)(scope[name])
    assert "It is wrong for" not in str(told.value), "a counterexample is no hint"
    assert str(told.value) != f"{name}: "


def test_each_exercise_has_two_plausible_mistakes():
    assert {name for name, codes in WRONG.items() if len(codes) >= 2} == set(EXERCISES)


def test_strict_mode_makes_an_open_exercise_an_error(monkeypatch):
    assert "is open" in check("coin", strict=False)(None)
    with pytest.raises(NotYet, match="coin is open"):
        check("coin", strict=True)(None)
    monkeypatch.setenv("RELAYLAB_STRICT", "1")
    with pytest.raises(NotYet, match="coin is open"):
        check("coin")(lambda *_: None)
    assert "is open" in check("coin", strict=False)(None)


def test_a_wrong_answer_shows_the_hint_and_no_traceback():
    """In IPython, as in a notebook."""
    program = (
        "from IPython.core.interactiveshell import InteractiveShell as S; s = S.instance(colors='nocolor')\n"
        "s.run_cell('from lesson.checks import check')\n"
        "s.run_cell('check(\"coin\")(lambda s, t, a: a - s)')\n"
        "print('SECOND')\n"
        "s.run_cell('def coin(s, t, a):\\n    return 1 / 0\\ncheck(\"coin\")(coin)')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, timeout=300)
    hint, own = done.stdout.split("SECOND")
    assert hint.strip().startswith("coin: These are points; p is a share of the gap.\nFor 42.5, ")
    assert "Traceback" not in hint
    assert "return 1 / 0" in own
    assert "Your function stopped for 42.5" in own
    assert "function.py" not in own, "the lines of the check are hidden"


def test_one_lessons_checks_load_no_other_lessons():
    program = (
        "import sys; from lesson.checks import check\n"
        "print(check('loss_mask')(lambda t: [int(s != 't') for s in t.source]))\n"
        "print([m for m in ('pandas', 'scipy', 'torch', 'lesson.checks.teacher_free') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, timeout=300)
    assert done.stdout == "loss_mask is right.\n[]\n"
