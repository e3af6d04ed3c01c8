"""What a relay with several teachers costs: ``cost.costs``, with a price for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from relaylab.cost import ADDED, ModelPrices, Prices, costs, hand_offs, usage
from relaylab.trace import Trace


def costs_by_teacher(traces: Sequence[Trace], prices: Prices, teachers: Mapping[str, ModelPrices]) -> pd.DataFrame:
    """``costs`` of relays with several teachers: each reads and writes at its own price; one row per trace.

    Args:
        traces: of a relay with ``NamedTeachers``.
        prices: of the student, and the way to the teachers; its teacher is left out.
        teachers: by the names in the calls.

    Raises:
        ValueError: for a call to a teacher without a price, and for teacher tokens of no named teacher.

    >>> from relaylab.trace import Call
    >>> calls = [Call(0, 0, 1, 1, 1, 1, to="small"), Call(1, 1, 1, 1, 1, 1, to="large")]
    >>> trace = Trace("q", [1, 2], [5, 6], "tt", ["a", "b"], calls)
    >>> small, large = ModelPrices(parameters=10), ModelPrices(parameters=100)
    >>> priced = costs_by_teacher([trace], Prices(student=small, teacher=large), {"small": small, "large": large})
    >>> priced[["teacher_new", "teacher_written", "teacher_flops"]].values.tolist()  # 2 * (10 * 3 + 100 * 4)
    [[5.0, 2.0, 860.0]]
    """
    unknown = {c.to for trace in traces for c in hand_offs(trace)} - set(teachers)
    if None in unknown:
        raise ValueError("a trace has teacher tokens of no named teacher; take costs, with the prices of that one")
    if unknown:
        raise ValueError(f"no price for {', '.join(map(str, unknown))}; there are {', '.join(teachers)}")
    parts = [costs(usage(traces, to=name), replace(prices, teacher=model)) for name, model in teachers.items()]
    whole = parts[0].copy()  # all parts have the same student
    for column in map(str, whole):
        if column in ("hand_offs", "network_seconds", "measured_seconds") or (
            column.startswith("teacher_") and column != "teacher_share"
        ):
            whole[column] = sum(part[column].astype(float) for part in parts)
    for measure in ADDED:
        whole[measure] = whole[f"student_{measure}"] + whole[f"teacher_{measure}"]
    whole["seconds"] += whole["network_seconds"]
    return whole
