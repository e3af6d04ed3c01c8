"""``relaylab grade``: run the answers of submitted lessons and count their points.

Only import statements and answer cells run. Each submission has a process of its own (``lesson.answers``) with limits
on time and memory, in an empty temporary folder, without this process's environment. An answer that ends its process
loses its points, and the others run again without it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from relaylab.call_tag import visible
from relaylab.files import check_own_file, write_whole
from relaylab.notebook_commands import find_notebook, lessons_home
from relaylab.options import console, option, say, warn

ADAPTERS = "adapters.py"  # of a capstone in several files
START_SECONDS = 300.0  # to import the checks, on a busy machine
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")
# Each thread's stack counts as memory.
SET_TO_1 = ("HF_HUB_OFFLINE", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Mark(NamedTuple):
    """What an answer is worth."""

    right: bool
    remark: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is graded: the lesson of the instructor, not the copy of a learner."""

    path: Path  # a notebook, or the capstone's module
    points: Mapping[str, int]  # by exercise
    cells: Sequence[tuple[str, str]]  # (grade id, source) of the code cells
    given: Sequence[str]  # sources of cells whose variables an answer may use


def read_lesson(name: str, folder: str | Path | None = None) -> Lesson:
    """A lesson and the points of its exercises.

    Args:
        name: Its number, name or file; or ``capstone``.
        folder: Of the lessons. Default: the shipped ones.

    Raises:
        ValueError: There is no such lesson, or none of its exercises has a check.

    >>> read_lesson("05").points
    {'kept': 2, 'chance_kept': 3, 'samples_needed': 1}
    """
    folder = Path(folder or lessons_home() / "notebooks")
    path = folder / "capstone" / "my_relay.py" if name == "capstone" else find_notebook(name, folder)
    table = folder / "exercises.yaml"
    from relaylab.settings import read_yaml  # `relaylab -h` reads no YAML

    number = "capstone" if path.suffix == ".py" else path.stem[:2]
    exercises = read_yaml(table.read_text(encoding="utf-8"), str(table)).get(number)
    if not exercises:
        raise ValueError(f"no exercise of {path.stem} has a check ({table}); choose another --lesson")
    cells = [] if path.suffix == ".py" else json.loads(path.read_text(encoding="utf-8"))["cells"]
    given = ["".join(c["source"]) for c in cells if "given" in c["metadata"].get("tags", ())]
    return Lesson(path, {name: facts["points"] for name, facts in exercises.items()}, code_cells_of(path), given)


def code_cells_of(path: Path) -> list[tuple[str, str]]:
    """The (nbgrader's grade id or "", source) of each code cell; a module is one. ValueError for another file."""
    try:
        if path.suffix == ".py":
            return [("", path.read_text(encoding="utf-8"))]
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [(c["metadata"].get("nbgrader", {}).get("grade_id", ""), "".join(c["source"])) for c in code]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a notebook of format 4 ({type(error).__name__}: {error})") from None


def find_submissions(folder: str | Path, lesson: Lesson) -> dict[str, Path | str]:
    """The notebook of each student by name, or why there is none.

    The folder holds notebooks named after their students, or folders of students, or both. In a student's folder of
    several notebooks, the one with the lesson's file name counts; of a capstone in several files, ``adapters.py``.

    Raises:
        ValueError: The folder holds no submission, or two of one name.
    """
    folder, found, kind = Path(folder), {}, lesson.path.suffix
    entries = [p for p in sorted(folder.iterdir()) if p.is_dir() or p.suffix == kind] if folder.is_dir() else []
    for path in (p for p in entries if not _passed_over(p.name)):
        name = path.stem if path.suffix == kind else path.name
        if name in found:
            raise ValueError(f"{folder} holds {name!r} as a notebook and as a folder; remove one")
        found[name] = path
        if path.is_dir():
            books = [p for p in sorted(path.rglob(f"*{kind}")) if not any(map(_passed_over, p.relative_to(path).parts))]
            named = [p for p in books if p.name == ADAPTERS] if kind == ".py" else []
            named = named or [p for p in books if p.name == lesson.path.name] or books
            found[name] = named[0] if len(named) == 1 else f"{len(named)} notebooks; one must be {lesson.path.name}"
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give its folder")
    if not found:
        raise ValueError(f"{folder} holds no notebooks and no folders; give the folder of the submissions")
    return found


def _passed_over(name: str) -> bool:
    """Hidden files and folders, and those that no student wrote, as of an environment or of a macOS archive."""
    return name.startswith(".") or name in ("__MACOSX", "__pycache__", "site-packages", "node_modules")


def answer_cells(cells: Sequence[tuple[str, str]], lesson: Lesson) -> list[tuple[str, str]]:
    """The (exercise, source) of the cells that answer one: marked as its answer, or defining its name anew."""
    shipped, found = {source for _, source in lesson.cells}, []
    if lesson.path.suffix == ".py":
        return [(name, source) for name in lesson.points for _, source in cells]
    for grade_id, source in cells:
        for name in lesson.points:
            defined = re.search(rf"^(def\s+{name}\b|{name}\s*(:[^=\n]*)?=[^=])", source, re.MULTILINE)
            if grade_id == name or (defined and source not in shipped):
                found.append((name, source))
    return found


def mark_answers(
    path: Path, lesson: Lesson, *, seed: int = 1, seconds: float = 10.0, memory: int = 1 << 30
) -> dict[str, Mark]:
    """The mark of each exercise of a submitted notebook.

    Args:
        seed: Of the inputs of the checks; the lessons use 0.
        seconds: Processor time of an answer. On the clock it may take a minute more than three times as long.
        memory: Bytes that the answers of a submission may take.

    Raises:
        RuntimeError: The program that runs answers does not start.
    """
    try:
        cells = code_cells_of(path)
    except ValueError as error:
        return dict.fromkeys(lesson.points, Mark(False, str(error)))
    answers, marks, broken = answer_cells(cells, lesson), {}, set()
    job: dict[str, Any] = {"cells": [source for _, source in (*lesson.cells, *cells)], "given": lesson.given}
    file = lesson.path.suffix == ".py"
    job |= {"module": lesson.path.stem if file else "__main__", "seed": seed, "seconds": seconds, "memory": memory}
    if path.name == ADAPTERS:  # it imports what lies beside it
        job |= {"module": path.stem, "modules": str(path.parent.resolve())}
    home = lesson.path.parents[1 if file else 0]
    while left := [name for name in lesson.points if name not in marks]:
        job |= {"exercises": left, "answers": [answer for answer in answers if answer[0] not in broken]}
        lines, ended = _run(job, home, START_SECONDS + 2 * (60 + 3 * seconds) * len(left))
        marks |= {line["name"]: Mark(line["right"], line["remark"]) for line in lines if "remark" in line}
        if begun := lines[-1].get("name") if "remark" not in lines[-1] else None:  # it did not come back from this one
            broken.add(begun)
            marks[begun] = Mark(False, ended)
        elif len(marks) < len(lesson.points):  # it ended between two answers
            marks |= {name: Mark(False, ended) for name in left if name not in marks}
    return marks


def _run(job: dict[str, Any], folder: Path, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The lines that the program wrote, and how it ended."""
    assert sys.platform != "win32", "grade_command says so"
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        path = os.pathsep.join([str(folder.resolve()), *(os.path.abspath(p) for p in sys.path if p)])
        environment = kept | {"PYTHONPATH": path, "HOME": empty, "TMPDIR": empty} | dict.fromkeys(SET_TO_1, "1")
        environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own one reserves gigabytes
        with tempfile.TemporaryFile() as task:
            task.write(json.dumps(job).encode())
            task.seek(0)
            command = [sys.executable, "-P", "-m", "lesson.answers"]
            process = subprocess.Popen(
                command, cwd=empty, env=environment, stdin=task, stdout=out, stderr=errors, start_new_session=True
            )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read(1 << 20).decode(errors="replace"))
    lines = [json.loads(line) for line in texts[0].splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        raise RuntimeError(f"the program that runs answers did not start: {texts[1][-500:] or code}")
    if code in {-signal.SIGPROF, -signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL}:
        return lines, f"stopped: it ran longer than {job['seconds']:g} s"
    return lines, f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended the program (exit code {code})"


# The command ----------------------------------------------------------------------------------------------------------


def grade_command(
    submissions: Annotated[
        Path, typer.Argument(help="A folder of notebooks (or modules), or of one folder per student.")
    ],
    lesson: Annotated[str, option("Its number, such as 03; or capstone.")],
    csv_: Annotated[Path | None, option("Write points and remarks to this file.", "--csv")] = None,
    folder: Annotated[Path | None, option("Of the lessons and their checks. Default: the shipped ones.")] = None,
    seed: Annotated[int, option("Of the checks' inputs; the lessons use 0.", min=0)] = 1,
    timeout: Annotated[float, option("Seconds of processor time per answer.", min=0.1)] = 10.0,
    memory_gb: Annotated[float, option("Memory of a submission's answers.", min=0.1)] = 1.0,
    workers: Annotated[int, option("Submissions at a time. Default: one per core.", min=1)] = os.cpu_count() or 1,
) -> None:
    """Grade submitted lessons: run their answers, and count the points."""
    if os.name != "posix":
        raise RuntimeError("grade needs the limits of Linux or macOS; on Windows, run it in WSL or a container")
    task = read_lesson(lesson, folder)
    found = find_submissions(submissions, task)
    if csv_:
        check_own_file(csv_, as_csv({}, task.points).encode())  # the first line, which names the lesson's exercises

    answered = 0
    for name, source in found.items():
        try:
            answered += isinstance(source, Path) and bool(answer_cells(code_cells_of(source), task))
        except ValueError as error:
            found[name] = str(error)

    def mark(source: Path | str) -> dict[str, Mark]:
        if isinstance(source, str):
            return dict.fromkeys(task.points, Mark(False, source))
        return mark_answers(source, task, seed=seed, seconds=timeout, memory=int(memory_gb * (1 << 30)))

    with ThreadPoolExecutor(workers) as pool:
        marks = dict(zip(found, pool.map(mark, found.values())))
    _show(marks, task.points)
    unread = [f"{name}: {reason}" for name, reason in found.items() if isinstance(reason, str)]
    if unread:
        warn(f"not read, so without points: {'; '.join(unread)}")
    if not answered and len(unread) < len(found):
        warn(f"no submission has an answer cell of {task.path.stem}; is --lesson {lesson} right?")
    if csv_:
        write_whole(csv_, as_csv(marks, task.points))
        say(f"points and remarks are in {csv_}")


def as_csv(marks: Mapping[str, Mapping[str, Mark]], points: Mapping[str, int]) -> str:
    """One row per submission: its name, the points and a remark of each exercise, the total and the highest total."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["submission", *(column for name in points for column in (name, f"{name} remark")), "total", "of"])
    for student, own in marks.items():
        cells = [cell for name in points for cell in (points[name] * own[name].right, _safe(own[name].remark))]
        rows.writerow([_safe(student), *cells, _total(own, points), sum(points.values())])
    return out.getvalue()


def _safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = visible(text)
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def _total(marks: Mapping[str, Mark], points: Mapping[str, int]) -> int:
    return sum(points[name] * marks[name].right for name in points)


def _show(marks: Mapping[str, Mapping[str, Mark]], points: Mapping[str, int]) -> None:
    from rich.markup import escape

    from relaylab.views.tables import text_table

    most = sum(points.values())
    exercises = [f"{name.replace('_', '_ ')} ({p})" for name, p in points.items()]  # a space breaks the line
    table = text_table("submission", *exercises, f"total ({most})", "%")
    for student, own in marks.items():
        cells = [str(points[name] * own[name].right) for name in points]
        total = _total(own, points)
        table.add_row(escape(visible(student)), *cells, str(total), f"{100 * total / most:.0f}")
    console.print(table)
