r"""The benchmarks of the paper, and the embedded suites, behind one function: ``load_benchmark``.

Questions come from a local file if one is given, else from the Hugging Face hub, which needs a network once. A subset
is a function of (seed, id): the same for every method, file or download, and a larger one holds the smaller. Ids begin
with the benchmark's name, so any benchmarks can share a file of traces.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from relaylab.tasks.data import ANSWER, QUESTION, read_row, read_rows, text_of
from relaylab.tasks.suites import SUITES, AnswerKind, Problem, mixture, problems

SUFFIX = r"Please reason step by step, and put your final answer within \boxed{}."  # the paper's, section 4
LETTER_SUFFIX = r"Please reason step by step, and put the letter of your final answer within \boxed{}."
ENDLESS = 200  # problems of an embedded suite where no limit is given


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where a benchmark is and how it is put and graded. ``load_benchmark`` takes one of your own, too.

    hub, config, split: of ``datasets.load_dataset``; no hub: an embedded suite, or local files only. question, answer,
    id, level, options: columns; question and answer may be named otherwise in a local file (see ``tasks/data.py``),
    id "" is a hash of the question, options those of a multiple choice. only: a column that says which rows count, if
    it is there. suffix: what is put behind a question. kind: of its answers (``compare.py``). relative:
    tolerance of a number, a share of it. samples: the k of avg@k; 1 is greedy pass@1. training: not for testing.
    """

    name: str
    title: str
    hub: str = ""
    config: str | None = None
    split: str = "test"
    question: str = "question"
    answer: str = "answer"
    id: str = ""
    level: str = ""
    options: str = ""
    only: str = ""
    suffix: str = SUFFIX
    kind: AnswerKind = "expression"
    relative: float = 0.0
    samples: int = 1
    training: bool = False


_GSM8K: dict[str, Any] = dict(hub="openai/gsm8k", config="main", kind="number")
_AVG32: dict[str, Any] = dict(id="id", kind="number", samples=32)
_BBEH: dict[str, Any] = dict(hub="BBEH/bbeh", split="train", level="task", kind="text")
_CHOICE: dict[str, Any] = dict(options="options", suffix=LETTER_SUFFIX, kind="letter")
_OLYMPIAD: dict[str, Any] = dict(config="OE_TO_maths_en_COMP", split="train", id="id", level="subfield")
_SUPERGPQA: dict[str, Any] = dict(split="train", answer="answer_letter", id="uuid", level="difficulty")
_DAPO = "open-r1/DAPO-Math-17k-Processed"  # BytedTsinghua-SIA/DAPO-Math-17k with every question once

BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark("math500", "MATH-500", "HuggingFaceH4/MATH-500", id="unique_id", level="level"),
        Benchmark("gsm8k", "GSM8K", **_GSM8K),
        # Physics and mathematics; the relative tolerance is that of Qwen2.5-Math's evaluation.
        Benchmark("minerva_math", "Minerva", "math-ai/minervamath", level="type", kind="number", relative=1e-4),
        Benchmark("olympiadbench", "OlympiadBench", "Hothan/OlympiadBench", **_OLYMPIAD),
        Benchmark("aime24", "AIME-2024", "HuggingFaceH4/aime_2024", split="train", **_AVG32),
        Benchmark("aime25", "AIME-2025", "math-ai/aime25", **_AVG32),
        Benchmark("amc23", "AMC-23", "math-ai/amc23", **_AVG32),
        Benchmark("bbeh", "BBEH", **_BBEH),
        Benchmark("bbeh_mini", "BBEH mini", only="mini", **_BBEH),
        Benchmark("mmlu_pro", "MMLU-Pro", "TIGER-Lab/MMLU-Pro", id="question_id", level="category", **_CHOICE),
        Benchmark("supergpqa", "SuperGPQA", "m-a-p/SuperGPQA", **_SUPERGPQA, **_CHOICE),
        Benchmark("gsm8k_train", "GSM8K train", split="train", training=True, **_GSM8K),
        Benchmark("dapo17k", "DAPO-17k", _DAPO, "all", "train", answer="solution", training=True),
        *(Benchmark(suite, suite, suffix="") for suite in SUITES),
    )
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name or a title, whatever its case, hyphens and spaces.

    >>> benchmark("MATH-500").name, benchmark("AIME-2025").samples, benchmark("mmlu-pro").kind
    ('math500', 32, 'letter')

    Raises ValueError, which lists all names, for an unknown one.
    """
    known = {_squeezed(key): b for b in BENCHMARKS.values() for key in (b.name, b.title)}
    if _squeezed(name) not in known:
        raise ValueError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return known[_squeezed(name)]


def load_benchmark(
    name: str | Benchmark, *, path: str | os.PathLike | None = None, limit: int | None = None, seed: int = 0
) -> list[Problem]:
    r"""The problems of a benchmark, in its own order, or ``limit`` of them, drawn with ``seed``.

    ``path`` is a ``.jsonl``, ``.json`` or ``.csv`` file, or a folder that holds such a file by the benchmark's name;
    without it the hub is asked. Of an embedded suite, which is endless, ``seed`` makes the test problems themselves,
    200 where no limit is given. Questions that come twice with one answer are taken once.

    >>> [p.id for p in load_benchmark("savings", limit=2)]
    ['savings-test-0-0', 'savings-test-0-1']
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mmlu_pro.jsonl"
    >>> _ = path.write_text('{"question_id": 7, "question": "2+2?", "options": ["3", "4"], "answer": "B"}')
    >>> [(p.id, p.question, p.kind) for p in load_benchmark("MMLU-Pro", path=path.parent)]
    [('mmlu_pro-7', '2+2?\nA. 3\nB. 4', 'letter')]

    Raises ValueError for an unknown name, a limit below 1, a path for an embedded suite, and, with its place, for a row
    that does not fit; ConnectionError where the hub cannot be reached; OSError where a file cannot be read.
    """
    bench = name if isinstance(name, Benchmark) else benchmark(name)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1, or None for all problems")
    if bench.name in SUITES:
        if path is not None:
            raise ValueError(f"{bench.name} is an embedded suite, made and not read; leave path out")
        return problems(bench.name, limit or ENDLESS, seed=seed)
    rows = _local(bench, Path(path)) if path is not None else _hub(bench)
    found: dict[str, Problem] = {}
    for where, row in rows:
        if bench.only and isinstance(row, dict) and not _true(row.get(bench.only, True)):
            continue
        problem = _problem(bench, row, where)
        other = found.setdefault(problem.id, problem)
        if (other.question, other.answer) != (problem.question, problem.answer):
            raise ValueError(f"{where}: the id {problem.id!r} came before, with another question or answer; remove one")
    if not found:
        raise ValueError(f"{path or bench.hub}: no questions in it; write one row for each question")

    def draw(problem: Problem) -> bytes:
        return hashlib.blake2b(f"{seed}/{problem.id}".encode(errors="surrogatepass"), digest_size=16).digest()

    chosen = {p.id for p in sorted(found.values(), key=draw)[:limit]}
    return [p for p in found.values() if p.id in chosen]


def training_problems(name: str | None, count: int, *, path: Path | None = None, seed: int = 0) -> list[Problem]:
    """Problems for a method that learns, drawn with ``seed``.

    Args:
        name: a benchmark that is for training; None takes the embedded suites.
        count: how many.
        path: the folder with the benchmarks' files, as for ``load_benchmark``.
        seed: of the draw.

    Raises:
        ValueError: for a benchmark that is for testing, and for a path that would be read for both.
    """
    if name is None or not count:
        return list(islice(mixture(seed=seed + 5), count))
    if not benchmark(name).training:
        raise ValueError(f"{name} is for testing; training problems come from gsm8k_train or dapo17k")
    if path is not None and not path.is_dir():
        raise ValueError(f"{path} would be read for testing and for training; give a folder with both files")
    return load_benchmark(name, path=path, limit=count, seed=seed)


def _squeezed(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


# Rows -----------------------------------------------------------------------------------------------------------------

Rows = Iterator[tuple[str, Any]]  # each with its place, for errors


def _local(bench: Benchmark, path: Path) -> Rows:
    if path.is_dir():
        files = [path / f"{bench.name}{ending}" for ending in (".jsonl", ".json", ".csv")]
        path = next((file for file in files if file.exists()), files[0])
        if not path.exists():
            raise FileNotFoundError(f"{path.parent} holds no {path.name}, .json or .csv; name the file itself")
    return ((where, row) for where, _, row in read_rows(path))


def _hub(bench: Benchmark) -> Rows:
    if not bench.hub:
        raise ValueError(f"{bench.name} names no data set on the hub; give path, a local file")
    import datasets

    try:
        rows = datasets.load_dataset(bench.hub, bench.config, split=bench.split)
    except Exception as error:  # of the hub, of its HTTP library, of the cache: what helps is the same
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "go online once (it is cached then)"
        if re.search(r"(?i)gated|\b40[13]\b|restricted|authenticat", f"{type(error).__name__} {error}"):
            page = f"https://huggingface.co/datasets/{bench.hub}"
            remedy = f"it is gated: accept its terms at {page} and log in with `hf auth login`"
        raise ConnectionError(
            f"{bench.title}: {bench.hub} could not be loaded from the hub ({reason}); {remedy}, or give path, "
            f"a local file with {bench.question}, {bench.answer}"
        ) from error
    return ((f"{bench.hub}, row {number}", row) for number, row in enumerate(rows))


def _true(value: Any) -> bool:
    """Whether a cell says yes; those of a CSV file are texts."""
    return str(value).strip().lower() not in ("", "0", "0.0", "false", "no", "none", "nan")


def _problem(bench: Benchmark, row: Any, where: str) -> Problem:
    columns = {"question": (bench.question, *QUESTION), "answer": (bench.answer, *ANSWER)}
    question, answer, solution = read_row(row, where, **columns)
    if bench.options:
        question = _with_options(bench, row, question, answer, where)
    kind, error = bench.kind, text_of(row.get("error"))
    if "is_multiple_answer" in row:  # OlympiadBench says of each row what its answer is
        numerical = row.get("answer_type") == "Numerical"
        kind = "several" if _true(row["is_multiple_answer"]) else "number" if numerical else "expression"
    if error and not math.isfinite(_float(error)):
        raise ValueError(f"{where}: the column error holds {error!r}; it must be a number or empty")
    share = bench.relative * abs(_float(answer)) if bench.relative else 0.0
    own = text_of(row.get(bench.id)) if bench.id else ""
    return Problem(
        id=f"{bench.name}-{own or hashlib.blake2b(question.encode(errors='surrogatepass'), digest_size=6).hexdigest()}",
        suite=bench.name,
        question=question,
        answer=answer,
        level=text_of(row.get(bench.level)),
        solution="" if bench.answer == "solution" else solution,
        kind=kind,
        unit=text_of(row.get("unit")).strip("$"),
        tolerance=float(error) if error else share if math.isfinite(share) else 0.0,
    )


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _with_options(bench: Benchmark, row: dict, question: str, answer: str, where: str) -> str:
    options = row.get(bench.options)
    if not isinstance(options, list) or not 1 < len(options) <= 26:
        raise ValueError(f"{where}: the column {bench.options} must be a list of 2 to 26 options")
    letters = string.ascii_uppercase[: len(options)]
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"{where}: the answer is {answer!r}; it must be one of the letters {letters}")
    return "\n".join([question, *(f"{a}. {text_of(option)}" for a, option in zip(letters, options, strict=True))])
