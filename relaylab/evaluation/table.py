"""The table of an evaluation, one row a problem, method, student and sample, and the files beside it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from relaylab.trace import Trace, to_frame


def rows_of(traces: Sequence[Trace], label: str, student: str, sample: int) -> pd.DataFrame:
    """The rows of some traces in the table."""
    frame = to_frame(traces)
    frame["correct"] = frame["correct"].astype(float)
    frame["level"] = [t.problem.get("level", "") for t in traces]
    frame["content_ratio"] = [t.content_ratio for t in traces]
    frame["malformed_calls"] = [sum(c.status != "answered" for c in t.calls) for t in traces]
    frame = frame.drop(columns=["student", "seed", "temperature", "unanswered_calls"])
    frame.insert(0, "sample", sample)
    frame.insert(0, "student", student)
    frame.insert(0, "method", label)
    return frame


def read_table(out: str | Path) -> pd.DataFrame:
    """The table of an evaluation. ValueError where the folder has none."""
    path = Path(out) / "table.csv"
    if not path.exists():
        raise ValueError(f"{out} holds no evaluation: {path.name} is not there; run relaylab evaluate --out {out}")
    return pd.read_csv(path, keep_default_na=False, na_values={"mean_n": "", "first_call": ""})


def trace_files(out: str | Path) -> Iterator[tuple[str, Path]]:
    """(seed, file) of every file of traces of an evaluation."""
    for path in sorted((Path(out) / "traces").glob("*/*.jsonl")):
        yield path.parent.name, path


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Whole or not at all."""
    rest = path.with_suffix(".tmp")
    frame.to_csv(rest, index=False, float_format="%.6g")
    rest.replace(path)
