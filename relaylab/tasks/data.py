"""Questions from a user's own file: JSON Lines, JSON or CSV, with the column names that public benchmarks use.

The question is taken from the first of the columns ``question``, ``problem``, ``input``, ``prompt`` and ``messages``
that the row has; it may be a list of chat messages. If these end with the assistant's, that is the solution.
The answer is taken from ``answer``, ``target`` or ``final_answer``, or from the last box of ``solution``. An answer
that ends in ``#### n`` (GSM8K) is n, and what stands before it is the solution.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from relaylab.tasks.grading import extract_boxed
from relaylab.tasks.suites import Problem

QUESTION = ("question", "problem", "input", "prompt", "messages")
ANSWER = ("answer", "target", "final_answer")
ID = ("id", "unique_id", "idx")
MAX_CHARACTERS = 1_000_000  # of a question, an answer or a solution: beyond it tokenizers run out of memory


def load_problems(
    path: str | os.PathLike, *, limit: int | None = None, question_field: str = "", answer_field: str = ""
) -> list[Problem]:
    r"""The problems of a ``.jsonl``, ``.json`` (a list of objects) or ``.csv`` file (with a header), in its order.

    ``suite`` is the file's name without its ending; ``id`` the row's ``id``, ``unique_id`` or ``idx``, or else the
    suite and the line.

    Args:
        path: of the file.
        limit: read no more problems.
        question_field: the column of the question, instead of the usual names.
        answer_field: the column of the answer.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.jsonl"
    >>> _ = path.write_text('{"question": "2+2?", "answer": "2+2=4\\n#### 4"}\n')
    >>> [(p.id, p.question, p.answer, p.solution) for p in load_problems(path)]
    [('mine-1', '2+2?', '4', '2+2=4')]

    Raises:
        ValueError: with file, line and remedy, for a row that is broken or has no question or no answer, for an id that
            comes twice, and for a file without rows.
        OSError: for a file that it cannot read.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1, or None for all rows")
    questions, answers = (question_field,) if question_field else QUESTION, (answer_field,) if answer_field else ANSWER
    found: dict[str, Problem] = {}
    for where, number, row in islice(read_rows(path), limit):
        row, history = _conversation(row, where, questions)
        question, answer, solution = read_row(row, where, question=questions, answer=answers)
        id, level = _first(row, ID) or f"{path.stem}-{number}", text_of(row.get("level"))
        if id in found:
            raise ValueError(f"{where}: the id {id!r} comes twice; make the ids unique")
        found[id] = Problem(id, path.stem, question, answer, level, solution, history=history)
    if not found:
        raise ValueError(f"{path}: no questions in it; write one row for each question")
    return list(found.values())


def _conversation(row: Any, where: str, names: Sequence[str]) -> tuple[Any, tuple[dict[str, str], ...]]:
    """The row with the last question of its conversation as text, and the messages before it."""
    name = next((n for n in names if row.get(n)), "") if isinstance(row, dict) else ""
    messages = list(row[name]) if name and isinstance(row[name], list) else []
    if not any(isinstance(m, dict) for m in messages):
        return row, ()
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
               for m in messages):  # fmt: skip
        raise ValueError(f"{where}: each message in {name} needs a role and a content, both text")
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    if messages[-1]["role"] == "assistant":
        text = messages.pop()["content"]
        row = {"answer" if "####" in text else "solution": text} | row
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(f"{where}: the conversation in {name} must end with the user's question, or its answer")
    return row | {name: messages[-1]["content"]}, tuple(messages[:-1])


Row = tuple[str, int, Any]  # the place of a row in words, its number, the row


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a ``.jsonl``, ``.json`` or ``.csv`` file as they stand, each with its place.

    Raises:
        ValueError: for another ending and for a file that cannot be parsed.
        OSError: for a file that it cannot read.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.jsonl"
    >>> _ = path.write_text('{"a": 1}')
    >>> [(number, row) for where, number, row in read_rows(path)]
    [(1, {'a': 1})]
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; use one of {', '.join(_READERS)}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for unit, number, row in read(file, str(path)):
                yield f"{path}, {unit} {number}", number, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save the file as UTF-8") from error


def _jsonl(file: TextIO, path: str) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield "line", number, _parse(line, f"{path}, line {number}", "each line must be one JSON object")


def _json(file: TextIO, path: str) -> Iterator[Row]:
    remedy = "the file must be one JSON list of objects"
    rows = _parse(file.read(), path, remedy)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds a JSON {type(rows).__name__}; {remedy}")
    yield from (("item", number, row) for number, row in enumerate(rows, 1))


def _csv(file: TextIO, path: str) -> Iterator[Row]:
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
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); {remedy}") from error
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise ValueError(f"{where}: {half} is half of a surrogate pair; write both halves or remove it") from None
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON; write the value or remove the row")


def read_row(
    row: Any, where: str, *, question: Sequence[str] = QUESTION, answer: Sequence[str] = ANSWER
) -> tuple[str, str, str]:
    r"""Question, answer and worked solution of a row.

    Args:
        row: an object with named columns.
        where: the place of the row, for errors.
        question: columns; the first that has text counts.
        answer: columns, likewise.

    >>> read_row({"problem": "2+2?", "solution": r"It is \boxed{4}."}, "line 1")
    ('2+2?', '4', 'It is \\boxed{4}.')

    Raises:
        ValueError: for a row without question or answer, or with a text that is too long.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}; each row must be an object with named columns")
    columns = f"(it has {', '.join(row) or 'no columns'})"
    text, reference, solution = _first(row, question), _first(row, answer), text_of(row.get("solution"))
    if not text:
        raise ValueError(f"{where}: no question; name its column {_one_of(question)} {columns}")
    if (longest := max(map(len, (text, reference, solution)))) > MAX_CHARACTERS:
        raise ValueError(f"{where}: a text of {longest:,} characters; at most {MAX_CHARACTERS:,}, or remove the row")
    if "####" in reference:
        worked, _, reference = reference.rpartition("####")
        solution, reference = solution or worked.strip(), reference.strip()
    reference = reference or (extract_boxed(solution) or "").strip()
    if not reference:
        remedy = f"name its column {_one_of(answer)}, or put it into \\boxed{{}} in the column solution"
        raise ValueError(f"{where}: no answer; {remedy} {columns}")
    return text, reference, solution


def _one_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def _first(row: dict, names: Sequence[str]) -> str:
    return next((text for name in names if (text := text_of(row.get(name)))), "")


def text_of(value: Any) -> str:
    """Text of a cell: numbers as people write them (27.0 is 27), a list as its entries and commas, all else empty.

    NaN and infinities are missing values: empty, too.
    """
    if isinstance(value, list):
        parts = [text_of(part) for part in value]
        return ", ".join(parts) if all(parts) else ""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value if math.isfinite(value) else ""
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
