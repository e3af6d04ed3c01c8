"""Grade a class: 60 submissions of one lesson, right, wrong, broken and hostile, as ``relaylab grade`` does.

    python benchmarks/grade.py [--lesson 03] [--count 60] [--every-mistake]

It checks that untouched notebooks get 0 and solutions all points, that each plausible mistake of
``tests/wrong_answers.md`` loses its points and no others, and that a file outside stays. ``--every-mistake`` does the
last two for all lessons. It prints the seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from relaylab.lab import copy_lessons
from relaylab.submissions import Lesson, Mark, find_submissions, mark_answers, read_lesson

sys.path.append(str(Path(__file__).parents[1] / "notebooks"))
from lesson.checks import EXERCISES

PAGE = Path(__file__).parents[1] / "tests" / "wrong_answers.md"


def mistakes() -> dict[str, list[str]]:
    """The wrong answers of each exercise."""
    parts = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for name, part in parts}


def submit(folder: Path, name: str, book: dict, answers: dict[str, str] | None = None) -> None:
    """Write a notebook in which some answers are replaced."""
    cells = [dict(cell) for cell in book["cells"]]
    for cell in cells:
        exercise = cell["metadata"].get("nbgrader", {}).get("grade_id")
        cell["source"] = (answers or {}).get(exercise, cell["source"])
    (folder / f"{name}.ipynb").write_text(json.dumps(book | {"cells": cells}), "utf-8")


def hostile(first: str, victim: Path) -> dict[str, str]:
    """Answers to one exercise that loop, delete, exit, or are no Python."""
    return {
        "loop": f"def {first}(*a):\n    while True:\n        pass",
        "deletes": f"import shutil\ndef {first}(*a):\n    shutil.rmtree({str(victim)!r})",
        "syntax": f"def {first}(*a) return 3",
        "exits": "import os\nos._exit(0)",
        "memory": f"def {first}(*a):\n    return [0] * 10**11",
    }


def mark_all(folder: Path, lesson: Lesson) -> dict[str, dict[str, Mark]]:
    found = find_submissions(folder, lesson)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(found, pool.map(lambda path: mark_answers(Path(path), lesson), found.values())))


def run(number: str, count: int, home: Path) -> list[str]:
    """Grade a class and return what is wrong with the marks."""
    lesson, wrong = read_lesson(number), mistakes()
    solved = json.loads((home / "notebooks" / lesson.path.name).read_text("utf-8"))
    untouched = json.loads(lesson.path.read_text("utf-8"))
    faults, names = [], list(lesson.points)
    with tempfile.TemporaryDirectory() as place:
        folder, victim = Path(place) / "in", Path(place) / "victim"
        folder.mkdir()
        victim.mkdir()
        (victim / "file").write_text("here")
        expected = {"untouched": dict.fromkeys(names, False)}
        submit(folder, "untouched", untouched)
        for name, code in hostile(names[0], victim).items():
            submit(folder, name, solved, {names[0]: code})
            expected[name] = {n: n != names[0] for n in names}
        for exercise in names:
            for k, code in enumerate(wrong[exercise]):
                submit(folder, f"{exercise}-{k}", solved, {exercise: code})
                expected[f"{exercise}-{k}"] = {n: n != exercise for n in names}
        for k in range(max(1, count - len(expected))):
            submit(folder, f"solved-{k:02}", solved)
            expected[f"solved-{k:02}"] = dict.fromkeys(names, True)
        start = time.perf_counter()
        marks = mark_all(folder, lesson)
        seconds = time.perf_counter() - start
        for student, own in marks.items():
            differing = {n: m for n, m in own.items() if m.right != expected[student][n]}
            # samples_needed may use chance_kept, so a wrong one costs both
            if student.startswith("chance_kept"):
                differing.pop("samples_needed", None)
            faults += [f"lesson {number}, {student}, {n}: {m}" for n, m in differing.items()]
            if student in hostile(names[0], victim):
                print(f"  {student}: {own[names[0]].remark}")
        if not (victim / "file").exists():
            faults.append(f"lesson {number}: a file was deleted")
    print(f"lesson {number}: {len(marks)} submissions in {seconds:.0f} s, two at a time; {len(faults)} faults")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lesson", default="03")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--every-mistake", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        copy_lessons(home, solutions=True)
        every = sorted({facts["lesson"] for facts in EXERCISES.values()} - {"capstone"})
        lessons = every if options.every_mistake else [options.lesson]
        count = 0 if options.every_mistake else options.count
        faults = [fault for number in lessons for fault in run(number, count, Path(home))]
    print(*faults, sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
