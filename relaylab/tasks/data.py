"""Questions from a user's own file: JSON Lines, JSON or CSV, with the column names that public benchmarks use.

The question is taken from the first of the columns ``question``, ``problem``, ``input`` and ``prompt`` that the row
has; the answer from ``answer``, ``target`` or ``final_answer``, or from the last box of ``solution``. An answer that
ends in ``#### n`` (GSM8K) is n, and what stands before it is the solution.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from relaylab.tasks.grading import extract_boxed
from relaylab.tasks.suites import Problem

QUESTION = ("question", "problem", "input", "prompt")
ANSWER = ("answer", "target", "final_answer")
ID = ("id", "unique_id", "idx")


def load_problems(path: str | os.PathLike, *, limit: int | None = None) -> list[Problem]:
    r"""The problems of a ``.jsonl``, ``.json`` (a list of objects) or ``.csv`` file (with a header), in its order.

    ``suite`` is the file's name without its ending; ``id`` the row's ``id``, ``unique_id`` or ``idx``, or else the
    suite and the line. ``limit`` stops after so many problems, and reads no further.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.jsonl"
    >>> _ = path.write_text('{"question": "2+2?", "answer": "2+2=4\\n#### 4"}\n')
    >>> load_problems(path)[0]
    Problem(id='mine-1', suite='mine', question='2+2?', answer='4', level='', solution='2+2=4', steps=())

    Raises ValueError, with file, line and remedy, for a row that is broken or has no question or no answer, for an id
    that comes twice, and for a file without rows; OSError where the file cannot be read.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; use one of {', '.join(_READERS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1, or None for all rows")
    found: dict[str, Problem] = {}
    try:
        for where, number, row in islice(read(path), limit):
            problem = _problem(row, f"{path}, {where} {number}", path.stem, number)
            if problem.id in found:
                raise ValueError(f"{path}, {where} {number}: the id {problem.id!r} comes twice; make the ids unique")
            found[problem.id] = problem
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save the file as UTF-8") from error
    if not found:
        raise ValueError(f"{path}: no questions in it; write one row for each question")
    return list(found.values())


Row = tuple[str, int, Any]  # what the number counts, the number, the row


def _jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield "line", number, _parse(line, f"{path}, line {number}", "each line must be one JSON object")


def _json(path: Path) -> Iterator[Row]:
    rows = _parse(path.read_text(encoding="utf-8-sig"), str(path), "the file must be one JSON list of objects")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds a JSON {type(rows).__name__}; the file must be one JSON list of objects")
    for number, row in enumerate(rows, 1):
        yield "item", number, row


def _csv(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row:
                    more = "more fields than the header; put fields with commas in double quotes"
                    raise ValueError(f"{path}, line {reader.line_num}: {more}")
                yield "line", reader.line_num, row
        except csv.Error as error:
            remedy = "put fields with commas, quotes or line breaks in double quotes, and double the quotes within"
            raise ValueError(f"{path}, after line {reader.line_num}: not CSV ({error}); {remedy}") from error


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}


def _parse(text: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); {remedy}") from error


def _problem(row: Any, where: str, suite: str, number: int) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}; each row must be an object with named columns")
    question, answer, solution = _first(row, QUESTION), _first(row, ANSWER), _text(row.get("solution"))
    if not question:
        raise ValueError(f"{where}: no question; name its column one of {', '.join(QUESTION)} (it has {_names(row)})")
    if "####" in answer:
        worked, _, answer = answer.rpartition("####")
        solution, answer = solution or worked.strip(), answer.strip()
    answer = answer or (extract_boxed(solution) or "").strip()
    if not answer:
        columns = f"name its column one of {', '.join(ANSWER)}, or put it into \\boxed{{}} in the column solution"
        raise ValueError(f"{where}: no answer; {columns} (it has {_names(row)})")
    name = _first(row, ID) or f"{suite}-{number}"
    return Problem(name, suite, question, answer, level=_text(row.get("level")), solution=solution)


def _names(row: dict) -> str:
    return ", ".join(row) or "no columns"


def _first(row: dict, names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := _text(row.get(name)))), "")


def _text(value: Any) -> str:
    """Text of a cell: numbers as people write them (27.0 is 27), a list as its entries and commas, all else empty."""
    if isinstance(value, list):
        parts = [_text(part) for part in value]
        return ", ".join(parts) if all(parts) else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
