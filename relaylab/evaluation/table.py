"""The table of an evaluation, one row per problem, method, student and sample, and the files beside it. No torch."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from relaylab.files import write_whole
from relaylab.trace import PROBLEMS, UNFINISHED, Trace, to_frame

NAMES = ("id", "suite", "level", "method", "student", "teacher")  # texts, also where they look like numbers
NEEDED = ("method", "student", "sample", "id", "correct", "tokens", "teacher_tokens")


def rows_of(traces: Sequence[Trace], label: str, student: str, sample: int) -> pd.DataFrame:
    """The rows of some traces in the table. An excluded answer is no wrong one: its ``correct`` is missing."""
    frame = to_frame(traces)
    frame["excluded"] = frame["stop"].isin(UNFINISHED).astype(int)
    frame["correct"] = frame["correct"].astype(float).where(frame["excluded"] == 0)
    frame["level"] = [t.problem.get("level", "") for t in traces]
    frame["content_ratio"] = [t.content_ratio for t in traces]
    frame["malformed_calls"] = [sum(c.status in PROBLEMS for c in t.calls) for t in traces]
    frame["failed_calls"] = [sum(c.status == "failed" for c in t.calls) for t in traces]
    frame = frame.drop(columns=["student", "seed", "temperature", "unanswered_calls"])
    for name, value in {"sample": sample, "student": student, "method": label}.items():
        frame.insert(0, name, value)
    return frame


def read_table(out: str | Path) -> pd.DataFrame:
    """The table of an evaluation. A missing or damaged one is a ValueError that names the file."""
    path = Path(out) / "table.csv"
    if not path.exists():
        raise ValueError(f"{out} holds no evaluation: {path.name} is not there; run relaylab evaluate --out {out}")
    missing = {name: [""] for name in ("mean_n", "first_call", "correct")}
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=missing)
        if lacking := [c for c in NEEDED if c not in table]:
            raise ValueError(f"it has no column {lacking[0]!r}")
        return table.astype({"sample": int, "correct": float, "tokens": int, "teacher_tokens": int})
    except ValueError as error:  # those of pandas' parsers and of UnicodeDecodeError are of this kind
        raise ValueError(f"{path} is empty or damaged ({error}); remove it and run the evaluation again") from None


def each_row(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples. Type checkers do not know what a cell holds."""
    return iter(frame.itertuples())


def dial_columns(dials: Mapping[str, Any]) -> dict[str, float]:
    """Where a world lies on the map: h and c with the ends of their intervals, from ``measure_dials``."""
    ends, letters = {"": "value", "_low": "low", "_high": "high"}, {"h": "harmless", "c": "confident"}
    return {f"{letter}{end}": dials[name][key] for letter, name in letters.items() for end, key in ends.items()}


def only_label(methods: Iterable[str], name: str) -> str:
    """The label of the one method ``NAME:student=...``; the name itself if it is a method, or there are several.

    >>> only_label(["student", "relay:student=mine"], "relay")
    'relay:student=mine'
    """
    own = [label for label in methods if label == name or re.fullmatch(rf"{name}:student=[^,]+", label)]
    return own[0] if len(own) == 1 else name


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV file, whole or not at all."""
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if "\r" in text:  # pandas would read it as the end of a line, since it writes no quotes around it
        text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n", quoting=csv.QUOTE_ALL)
    write_whole(path, text)


def trace_name(label: str) -> str:
    """The name of the file of a system's traces, without its suffix; different labels have different names.

    >>> trace_name("relay:student=mine"), trace_name("relay:student=plain/relay")
    ('relay student=mine', 'relay student=plain_relay 34000d24')
    """
    name = label.replace(":", " ", 1)
    plain = re.sub(r"[^\w=,.+\- ]", "_", name)[:150]
    return name if plain == name else f"{plain} {hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def trace_files(out: str | Path) -> Iterator[tuple[str, Path]]:
    """(seed, file) of every whole file of traces of an evaluation, without those of shards."""
    for path in sorted((Path(out) / "traces").glob("*/*.jsonl")):
        if not re.search(r"\.\d+-of-\d+$", path.stem):
            yield path.parent.name, path


def excluded_methods(table: pd.DataFrame) -> list[str]:
    """The methods of which every answer was excluded; a command that has one should fail."""
    every = table.groupby("method", sort=False)["excluded"].min()
    return list(every.index[every == 1])
