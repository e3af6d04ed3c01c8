"""The data filter in shards: ``training.filtering.pass_rates`` on parts of the problems, one file of rates.

The file is the same, byte for byte, as one process would write. Beside it ``OUT.shards/`` has the parts; once all is
done it can go. A filter that was begun in one process goes on in shards, and the other way round.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relaylab.sweep.shards import Asked, Spread, digest, in_shards, last_words, whole_lines, write_lines
from relaylab.tasks.suites import Problem
from relaylab.training.data_filter import Rate, load_rates, pass_rates


def rate(
    asked: Asked,
    problems: Sequence[Problem],
    out: str | Path,
    spread: Spread | None = None,
    *,
    progress: bool = True,
    batch_size: int = 128,
    **options: Any,
) -> list[Rate]:
    """The ``Rate`` of every problem, in their order; ``options`` are those of ``pass_rates``.

    spread: None for this process. Interrupted, killed, or with a shard that failed: the same call goes on, also with
    another spread. A warning says how many samples failed.

    Raises RuntimeError where a shard failed in the end, and ValueError as ``pass_rates`` does.
    """
    options |= {"batch_size": batch_size}
    if spread is None:
        return pass_rates(asked.load(), problems, out, progress=progress, **options)
    out = Path(out).resolve()
    home = out.with_name(f"{out.name}.shards")
    settings = [asked.name, asked.temperature, asked.tokenizer, {k: v for k, v in options.items() if k != "batch_size"}]
    work = Rating(asked, out, home / "parts" / digest(settings), options)
    merge(out, work.parts, problems)  # what a killed one has left
    failures = {}
    try:
        failures = in_shards(work, problems, home, spread, name="filter", settings=settings, progress=progress)
    finally:
        merge(out, work.parts, problems)
    if failures:
        told = f"{len(failures)} shards failed; the same command goes on"
        raise RuntimeError(f"{told}. The last error: {last_words(failures)}")
    known = {r.problem.id: r for r in load_rates(out)}
    rates = [known[p.id] for p in problems]
    if lost := sum(r.failed for r in rates):
        told = f"{lost} samples failed and do not count; the same call asks those problems again that have no answer"
        warnings.warn(f"{told}; logs are in {home}", stacklevel=2)
    return rates


@dataclass(frozen=True)
class Rating:
    """The work of a shard: rates of its problems into a file of ``parts``, beginning with what ``out`` has of them."""

    asked: Asked
    out: Path
    parts: Path
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, problems: list[Problem]) -> str | None:
        ids = [p.id for p in problems]
        part = self.parts / f"{digest(ids)}.jsonl"
        header, *done = whole_lines(self.out) or [b""]
        if begun := bool(header) and not part.exists():
            mine = set(ids)
            write_lines(part, [header, *(line for line in done if _told(line)[0] in mine)])
        try:
            rates = pass_rates(self.asked.load(), problems, part, **self.options)
        except ValueError:
            if begun:  # what ``out`` has is of other terms: it must not stay here
                part.unlink(missing_ok=True)
            raise
        silent = sum(not r.samples for r in rates)
        return f"{silent} of {len(rates)} problems have no answer at all; its log says why" if silent else None


def merge(out: Path, parts: Path, problems: Sequence[Problem]) -> None:
    """All that parts have, into ``out``: what it has stays as it is, new problems follow in their order.

    Raises ValueError where ``out`` was made on other terms.
    """
    found: dict[str, bytes] = {}
    headers = set()
    for file in sorted(parts.glob("*.jsonl")):
        header, *lines = whole_lines(file) or [b""]
        headers |= {header} - {b""}
        for line in lines:
            name, answered = _told(line)
            if answered or name not in found:
                found[name] = line
    if not headers:
        return
    before, *lines = whole_lines(out) or [b""]
    if headers != {before or next(iter(headers))}:
        raise ValueError(f"{out} was made on other terms than these; choose another file or remove it")
    # As pass_rates does: those without an answer go, and come again at the end.
    kept = {name: line for line in lines for name, answered in [_told(line)] if answered or name not in found}
    order = [*(p.id for p in problems), *found]
    new = {name: found[name] for name in order if name in found and name not in kept}
    write_lines(out, [*headers, *kept.values(), *new.values()])


def _told(line: bytes) -> tuple[str, bool]:
    """Of a line of rates: the problem's id, and whether it has an answer."""
    data = json.loads(line)
    return data["id"], data["samples"] > 0
