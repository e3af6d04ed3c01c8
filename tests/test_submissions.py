"""``relaylab grade``: real submissions, run by the real program. What breaks one harms no other and no file."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from test_exercises import WRONG
from typer.testing import CliRunner

from relaylab import cli, submissions
from relaylab.lab import copy_lessons
from relaylab.submissions import Mark, answer_cells, as_csv, find_submissions, mark_answers, read_lesson

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits are those of Linux and macOS")
LESSON = read_lesson("05")
NAMES = list(LESSON.points)  # kept, chance_kept, samples_needed


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> dict:
    """Lesson 05 with its solutions."""
    folder = tmp_path_factory.mktemp("solved")
    copy_lessons(folder, solutions=True)
    return json.loads((folder / "notebooks" / LESSON.path.name).read_text("utf-8"))


def submit(path: Path, book: dict, **answers: str) -> Path:
    """A submission with other answers than the book's."""
    book = json.loads(json.dumps(book))
    for cell in book["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if name in answers:
            cell["source"] = answers[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(book), "utf-8")
    return path


def test_a_class_is_graded_by_the_command(solved, tmp_path):
    untouched = json.loads(LESSON.path.read_text("utf-8"))
    handed_in = tmp_path / "in"
    submit(handed_in / "ada.ipynb", solved)
    submit(handed_in / "bob" / LESSON.path.name, untouched)
    submit(handed_in / "=cyd.ipynb", solved, kept=WRONG["kept"][1], samples_needed="samples_needed = 10")
    (handed_in / "dan").mkdir()
    (handed_in / "eve.ipynb").write_text("no notebook")
    table = tmp_path / "out.csv"
    done = CliRunner().invoke(cli.app, ["grade", str(handed_in), "--lesson", "05", "--csv", str(table)])
    assert done.exit_code == 0, done.output
    rows = {row["submission"]: row for row in csv.DictReader(table.open(encoding="utf-8"))}
    points = {"ada": "6", "bob": "0", "'=cyd": "3", "dan": "0", "eve": "0"}
    assert {name: (row["total"], row["of"]) for name, row in rows.items()} == {n: (p, "6") for n, p in points.items()}
    assert [rows["ada"][f"{name} remark"] for name in NAMES] == ["right."] * 3
    assert rows["bob"]["kept remark"].startswith("open")
    assert rows["'=cyd"]["kept remark"].startswith("It is upside down")
    assert rows["'=cyd"]["samples_needed remark"] == "with 10 samples such a problem is still kept in 15.0 of 100 cases"
    assert rows["dan"]["kept remark"] == f"0 notebooks; one must be {LESSON.path.name}"
    assert rows["eve"]["kept remark"].startswith("not a notebook")
    assert f"dan: 0 notebooks; one must be {LESSON.path.name}; eve: not a notebook of format 4" in done.stderr
    assert "ada" in done.stdout
    assert "bob" not in done.stderr
    assert "is --lesson" not in done.stderr
    for name in ("ada.ipynb", "=cyd.ipynb", "bob"):
        (handed_in / name).rename(tmp_path / name)
    submit(handed_in / "fay.ipynb", json.loads((LESSON.path.parent / "06_ablations.ipynb").read_text("utf-8")))
    done = CliRunner().invoke(cli.app, ["grade", str(handed_in), "--lesson", "05"])
    assert f"no submission has an answer cell of {LESSON.path.stem}; is --lesson 05 right?" in done.stderr


def test_a_table_of_marks_replaces_one_of_the_same_lesson_alone(solved, tmp_path, monkeypatch):
    submit(tmp_path / "in" / "ada.ipynb", solved)
    monkeypatch.setattr(
        "relaylab.submissions.mark_answers", lambda *_, **__: dict.fromkeys(NAMES, Mark(True, "right."))
    )
    words = ["grade", str(tmp_path / "in"), "--lesson", "05", "--csv", str(table := tmp_path / "marks.csv")]
    for before in ("import os\n", as_csv({}, {"digit_entropy": 2})):  # a program, and the marks of another lesson
        table.write_text(before)
        done = CliRunner().invoke(cli.app, words)
        assert "marks.csv holds something else than relaylab writes there; choose another" in str(done.exception)
        assert table.read_text() == before
    table.write_text(as_csv({"ada": dict.fromkeys(NAMES, Mark(False, "open"))}, LESSON.points))
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert table.read_text().splitlines()[1].startswith("ada,2,right.")


@pytest.mark.parametrize(
    ("code", "remark"),
    [
        ("def kept(rates, threshold):\n    while True:\n        pass", "stopped: it ran longer than 1 s"),
        ("def kept(rates, threshold):\n    try:\n        while True: pass\n    except: return []", "stopped"),
        ("sum(range(10**15))\nkept = 3", "stopped"),
        ("def kept(rates, threshold) return 3", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended the program (exit code 0)"),
        ("import os, signal\nos.abort()", "crashed (SIGABRT)"),
        ("def kept(rates, threshold):\n    return [0] * 10**10", "MemoryError"),
        ("def kept(rates, threshold):\n    return kept(rates, threshold)", "RecursionError"),
        ("def kept(rates, threshold):\n    return helper(rates)", "NameError: name 'helper' is not defined"),
        ("kept = input()", "EOFError"),
        ("import subprocess\nsubprocess.run(['touch', 'x'])", "PermissionError: an answer must not"),
        ("import os\nif os.fork() == 0:\n    while True: pass", "PermissionError: an answer must not"),
        ("import os\nkept = os.environ['A_KEY']", "KeyError"),
        ("class Kept:\n    def __call__(self, *a): return [0]\nkept = Kept()", "It has another number of entries"),
    ],
)
def test_what_breaks_an_answer_costs_its_points_alone(code, remark, solved, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    marks = mark_answers(submit(tmp_path / "a.ipynb", solved, kept=code), LESSON, seconds=1)
    assert not marks["kept"].right
    assert marks["kept"].remark.startswith(remark)
    assert marks["chance_kept"] == marks["samples_needed"] == Mark(True, "right.")


def test_no_file_is_deleted_or_written(solved, tmp_path):
    keep = tmp_path / "keep" / "file"
    keep.parent.mkdir()
    keep.write_text("here")
    attempts = {
        "kept": f"import shutil\nshutil.rmtree({str(keep.parent)!r})",
        "chance_kept": f"from pathlib import Path\nPath({str(keep)!r}).unlink()",
        "samples_needed": f"open({str(keep)!r}, 'w').write('gone')\nsamples_needed = 36",
    }
    marks = mark_answers(submit(tmp_path / "a.ipynb", solved, **attempts), LESSON)
    assert all(mark.remark.startswith("PermissionError: an answer must not write, delete") for mark in marks.values())
    assert keep.read_text() == "here"
    code = "import os\ndef kept(rates, threshold):\n    raise ValueError(f'{os.listdir()} {os.getcwd()}')"
    marks = mark_answers(submit(tmp_path / "a.ipynb", solved, kept=code), LESSON)
    assert marks["kept"].remark.startswith("ValueError: [] /"), "an empty folder"
    assert not Path(marks["kept"].remark.split()[-1]).exists(), "which is gone"


def test_answers_are_found_without_metadata_and_only_they_run(solved, tmp_path):
    book = json.loads(json.dumps(solved))
    for cell in book["cells"]:
        cell["metadata"] = {}
    book["cells"].insert(0, {"cell_type": "code", "metadata": {}, "source": "import math\nraise SystemExit('ran')"})
    assert mark_answers(submit(tmp_path / "a.ipynb", book), LESSON) == dict.fromkeys(NAMES, Mark(True, "right."))
    cells = [("", "kept(3)"), ("", "x = kept == 3"), ("kept", "1"), ("", "kept: int = 2"), ("", LESSON.cells[0][1])]
    assert answer_cells(cells, LESSON) == [("kept", "1"), ("kept", "kept: int = 2")]
    earlier = {"cell_type": "code", "metadata": {}, "source": "kept = nothing_of_this_name"}
    book["cells"].insert(0, earlier)
    assert mark_answers(submit(tmp_path / "b.ipynb", book), LESSON)["kept"] == Mark(True, "right."), "a later try"


def test_the_inputs_are_not_those_of_the_lesson(solved, tmp_path):
    """An answer that learned the results of the lesson's check by heart."""
    code = """
from lesson.checks import CHECKS
import random
KNOWN = {repr(given): CHECKS["kept"].right(*given) for given in CHECKS["kept"].inputs(random.Random(0))}
def kept(rates, threshold):
    return KNOWN.get(repr((rates, threshold)), [])
"""
    path = submit(tmp_path / "a.ipynb", solved, kept=code)
    assert mark_answers(path, LESSON, seed=0)["kept"].right
    assert not mark_answers(path, LESSON)["kept"].right


def test_variables_of_the_lesson_that_an_answer_may_use(tmp_path):
    task = read_lesson("07")
    copy_lessons(tmp_path, solutions=True)
    code = "".join(task.given)
    assert code.startswith("published = ")
    assert mark_answers(tmp_path / "notebooks" / task.path.name, task)["kept_lead"].right


def test_a_narrow_terminal_shows_every_exercise_and_its_points(monkeypatch):
    points, console = read_lesson("03").points, Console(width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(submissions, "console", console)
    submissions._show({"ada": {name: Mark(True, "right.") for name in points}}, points)
    head, body = console.export_text().split("┡")
    assert {"group_", "advantages", "loss_", "mask", "undilutable", "(3)"} <= {*head.split()}
    assert [*body.splitlines()[1].replace("│", "").split()] == ["ada", "2", "1", "4", "2", "3", "12", "100"]


def test_folders_and_names(tmp_path):
    named = tmp_path / "ada/x/05_data_filter.ipynb"
    for path in (
        named,
        *(tmp_path / name for name in ("ada/old.ipynb", "bob/any.ipynb", "cyd/a.ipynb", "cyd/b.ipynb")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    several = f"2 notebooks; one must be {LESSON.path.name}"
    found = find_submissions(tmp_path, LESSON)
    assert found == {"ada": named, "bob": tmp_path / "bob/any.ipynb", "cyd": several}
    (tmp_path / "ada.ipynb").touch()
    with pytest.raises(ValueError, match="'ada' as a notebook and as a folder"):
        find_submissions(tmp_path, LESSON)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        with pytest.raises(ValueError, match="holds no notebooks"):
            find_submissions(tmp_path / folder, LESSON)
    with pytest.raises(ValueError, match=r"ada\.ipynb is a file; give its folder"):
        find_submissions(tmp_path / "ada.ipynb", LESSON)
    with pytest.raises(ValueError, match="no exercise of 00_first_relay has a check"):
        read_lesson("00")


def test_a_remark_is_no_formula_and_no_control_character():
    text = as_csv({"+ada": {"kept": Mark(False, "=HYPERLINK(1)\x1b[2J")}}, {"kept": 2})
    row = next(csv.DictReader(text.splitlines()))
    assert row["submission"] == "'+ada"
    assert row["kept remark"].startswith("'=HYPERLINK")
    assert "\x1b" not in text


def test_files_that_no_student_wrote_are_passed_over(tmp_path):
    for path in (
        "anna/05_anna.ipynb", "anna/__MACOSX/._05_anna.ipynb", "__MACOSX/anna/._05_anna.ipynb",
        "ben/05.ipynb", "ben/.ipynb_checkpoints/05-checkpoint.ipynb", "ben/.venv/lib/site-packages/x/demo.ipynb",
        "__pycache__/x.ipynb", "._cleo.ipynb",
    ):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    found = find_submissions(tmp_path, LESSON)
    assert found == {"anna": tmp_path / "anna" / "05_anna.ipynb", "ben": tmp_path / "ben" / "05.ipynb"}
