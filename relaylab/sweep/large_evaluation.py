"""An evaluation in shards: ``analysis.evaluate`` on parts of the problems, one folder of traces, one table.

Shards decode; the table is then made by ``evaluate`` itself, from traces that are all there, without any model. So it
is the same, byte for byte, as one process would write, also for a cascade, whose share is one of all problems. Beside
the tables ``OUT/shards/`` has the parts; once all is done it can go.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from relaylab.evaluation.evaluate import evaluate, variants
from relaylab.evaluation.systems import Bench, Cascade, Method, Router
from relaylab.evaluation.table import trace_files
from relaylab.relay.pair import UNFINISHED
from relaylab.sweep.shards import Asked, Spread, digest, in_shards, last_words, whole_lines, write_lines
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace, read_traces

ASSEMBLED = (Router, Cascade)  # of the answers of the student alone and of the teacher alone


def evaluated(
    methods: Sequence[str],
    problems: Sequence[Problem],
    out: str | Path,
    asked: Asked,
    spread: Spread | None = None,
    *,
    progress: bool = True,
    batch_size: int = 64,
    **options: Any,
) -> pd.DataFrame:
    """The table of an evaluation, also in ``out``; ``options`` are those of ``analysis.evaluate``.

    spread: None for this process. Interrupted, killed, or with a shard that failed: the same call goes on, also with
    another spread. A warning says how many answers were excluded since their teacher failed; the same call tries again.

    Raises RuntimeError where a shard failed in the end, and ValueError as ``evaluate`` does.
    """
    if spread is None:
        teacher = asked.load() if asked.servers else asked.teacher
        return evaluate(methods, problems, out, teacher=teacher, batch_size=batch_size, progress=progress, **options)
    out = Path(out).resolve()
    assemble = partial(evaluate, methods, problems, out, teacher=asked.name, progress=False, **options)
    settings = json.loads(json.dumps([asked.name, asked.tokenizer, options], default=str))
    parts, names = out / "shards" / "parts" / digest(settings), assembled(methods)
    merge(out, parts, problems, names)  # what a killed one has left
    try:
        return assemble(bench=Decoded)  # refuses a folder with other terms before anything is decoded
    except NotDecodedError:
        pass
    work = Decoding(asked, out, parts, tuple(methods), options | {"batch_size": batch_size})
    failures = {}
    try:
        failures = in_shards(
            work, problems, out / "shards", spread, name="evaluate", settings=[settings, methods], progress=progress
        )
    finally:
        merge(out, parts, problems, names)
    if failures:
        told = f"{len(failures)} shards failed; the same command goes on"
        raise RuntimeError(f"{told}. The last error: {last_words(failures)}")
    table = assemble(bench=partial(Decoded, lenient=True))
    if excluded := int(table["stop"].isin(UNFINISHED).sum()):
        told = f"{excluded} answers were excluded, since their teacher failed; the same call tries them again"
        warnings.warn(f"{told}; logs are in {out / 'shards'}", stacklevel=2)
    return table


@dataclass(frozen=True)
class Decoding:
    """The work of a shard: an evaluation of its problems in a folder of ``parts``, beginning with what ``out`` has."""

    asked: Asked
    out: Path
    parts: Path
    methods: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, problems: list[Problem]) -> str | None:
        mine = {p.id for p in problems}
        part, names = self.parts / digest(sorted(mine)), assembled(self.methods)
        if not part.exists():
            for seed, file in trace_files(self.out):
                lines = [line for line in whole_lines(file) if _told(line)[0] in mine]
                if lines and file.name not in names:
                    write_lines(part / "traces" / seed / file.name, lines)
        teacher = self.asked.load() if self.asked.servers else self.asked.teacher
        table = evaluate(self.methods, problems, part, teacher=teacher, **self.options)
        excluded = int(table["stop"].isin(UNFINISHED).sum())
        return f"{excluded} of {len(table)} answers were excluded, since their teacher failed" if excluded else None


class NotDecodedError(ValueError):
    """Traces are missing."""


@dataclass(eq=False)
class Decoded(Bench):
    """A bench on which everything is decoded: it reads, and puts together what is put together of others' answers.

    lenient: answers that were excluded will do.
    """

    lenient: bool = False

    def traces(self, method: Method) -> list[Trace]:
        if isinstance(method, ASSEMBLED):
            return super().traces(method)
        path = self.path(method)
        found = {t.id: t for t in read_traces(path)} if path.exists() else {}
        found = {name: t for name, t in found.items() if self.lenient or t.stop not in UNFINISHED}
        if missing := sum(p.id not in found for p in self.problems):
            raise NotDecodedError(f"{missing} of {len(self.problems)} answers of {method.label} are missing")
        return [found[p.id] for p in self.problems]


def assembled(methods: Sequence[str]) -> set[str]:
    """The file names of those of these methods that are put together of all answers of others.

    >>> assembled(["student", "cascade:share=0.3"])
    {'cascade share=0.3.jsonl'}
    """
    found = (m for text in methods for _, m in variants(text) if isinstance(m, ASSEMBLED))
    return {Bench(None, (), Path()).path(m).name for m in found}


def merge(out: Path, parts: Path, problems: Sequence[Problem], names: set[str]) -> None:
    """The traces of all parts, but of files with these names, into ``out``: what it has stays, new ones follow."""
    found: dict[tuple[str, str], dict[str, bytes]] = {}
    for part in sorted(parts.glob("*")):
        for seed, file in trace_files(part):
            if file.name not in names:
                _add(found.setdefault((seed, file.name), {}), whole_lines(file))
    order = [p.id for p in problems]
    for (seed, name), new in found.items():
        path = out / "traces" / seed / name
        lines: dict[str, bytes] = {}
        _add(lines, whole_lines(path))
        _add(lines, [new[i] for i in order if i in new])
        write_lines(path, list(lines.values()))


def _add(lines: dict[str, bytes], more: Sequence[bytes]) -> None:
    """By id; one that is there stays, unless it is unfinished."""
    for line in more:
        name, _ = _told(line)
        if name not in lines or _told(lines[name])[1] in UNFINISHED:
            lines[name] = line


def _told(line: bytes) -> tuple[str, str]:
    """Of a trace's line: the problem's id, and how it stopped."""
    data = json.loads(line)
    return data["id"], data["stop"]
