"""Our measurements for the paper's claims, from the table of an evaluation (``published.claims`` says what each needs).

All are differences that the claim says are above 0, with bootstrap intervals over problems; a method's value on a
problem is the mean over its students, say three training seeds. rho is the mean call ratio of a response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from relaylab.evaluation.published import Measured
from relaylab.evaluation.stats import columns, interval


@dataclass(frozen=True, slots=True)
class Names:
    """The labels of the systems in the table. ``relay`` and ``free`` are the full method with and without its teacher;
    ``weak`` is the relay with the weakest teacher (the untouched student), ``small`` and ``strong`` with a smaller and
    a larger one than in its training. GRPO of ``transfer`` and ``transfer_grpo`` never saw the suites ``unseen``."""

    base: str = "student"
    teacher: str = "teacher"
    relay: str = "relay"
    free: str = "teacher-free"
    grpo: str = "grpo"
    citer: str = "citer"
    simple: str = "relay:student=relay-simple"
    no_filter: str = "relay:student=relay-no-filter"
    no_bonus: str = "relay:student=relay-no-bonus"
    no_exploration: str = "relay:student=relay-no-exploration"
    fixed: str = "fixed"
    weak: str = "relay:teacher=student"
    small: str = "relay:teacher=teacher-small"
    strong: str = "relay:teacher=teacher-large"
    transfer: str = "relay:student=relay-six"
    transfer_grpo: str = "grpo:student=grpo-six"
    unseen: tuple[str, ...] = ("sharing", "convoy", "harvest")


Values = Mapping[str, np.ndarray]  # method -> one value a problem


def measured(table: pd.DataFrame, names: Names | None = None, *, seed: int = 0) -> dict[str, Measured | str]:
    """Claim id -> our measurement where its systems are in the table; else a text that says what is missing.

    Raises ValueError where the methods answered different problems.
    """
    names = names or Names()
    right, ratio = columns(table, "correct"), columns(table, "call_ratio")
    problems = table.drop_duplicates("id").set_index("id").loc[right.index]
    level = problems["level"].to_numpy()
    every, easy, hard = np.ones(len(level), bool), level == "easy", level == "hard"
    unseen = problems["suite"].isin(names.unseen).to_numpy()
    students = table.groupby("method")["student"].nunique()

    def difference(values: pd.DataFrame, a: str, b: str, where: np.ndarray = every) -> Measured | str:
        return _measured([a, b], where, lambda v, i: 100 * (v[a][i].mean() - v[b][i].mean()), values)

    def _measured(
        needed: list[str], where: np.ndarray, statistic: Callable[[Values, np.ndarray], float], values: pd.DataFrame
    ) -> Measured | str:
        if missing := [m for m in needed if m not in values]:
            return f"not evaluated: {', '.join(missing)}"
        if not where.any():
            return "no problem of these suites was evaluated"
        found = {m: values[m].to_numpy()[where] for m in needed}
        got = interval(lambda i: statistic(found, i), int(where.sum()), seed=seed)
        counts = ", ".join(f"{students[m]} students of {m}" for m in needed if students.get(m, 1) > 1)
        note = f"{int(where.sum())} problems" + (f", {counts}" if counts else "")
        return Measured(got.value, got.low, got.high, note)

    n = names
    both = pd.concat({"right": right, "ratio": ratio}, axis=1)
    both.columns = [m if kind == "right" else f"rho {m}" for kind, m in both.columns]

    def routed(v: Values, i: np.ndarray) -> tuple[float, float, float, float]:
        base, teacher, relay = (v[m][i].mean() for m in (n.base, n.teacher, n.relay))
        return base, teacher, relay, v[f"rho {n.relay}"][i].mean()

    def gap(v: Values, i: np.ndarray) -> float:
        base, teacher, relay, _ = routed(v, i)
        return 100 * (relay - base) / max(teacher - base, 1e-9)

    def resource(v: Values, i: np.ndarray) -> float:
        base, teacher, relay, rho = routed(v, i)
        return 100 * (relay - base - rho * (teacher - base))

    def cost(v: Values, i: np.ndarray) -> float:
        return 100 * (1 - 100 * routed(v, i)[3] / max(gap(v, i), 1e-9))

    def peak(v: Values, i: np.ndarray) -> float:
        return 100 * (v[n.relay][i].mean() - max(v[m][i].mean() for m in (n.weak, n.small, n.strong)))

    three = [n.base, n.teacher, n.relay, f"rho {n.relay}"]

    def ablation(other: str) -> tuple[Measured | str, Measured | str]:
        return difference(right, n.relay, other), difference(ratio, other, n.relay)

    filter_, bonus, exploration, simple, fixed = (
        ablation(other) for other in (n.no_filter, n.no_bonus, n.no_exploration, n.simple, n.fixed)
    )
    return {
        "relay-above-grpo": difference(right, n.relay, n.grpo),
        "grpo-above-base": difference(right, n.grpo, n.base),
        "gap-recovered": _measured(three, every, gap, both),
        "router-resource": _measured(three, every, resource, both),
        "router-cost": _measured(three, every, cost, both),
        "citer-accuracy": difference(right, n.relay, n.citer),
        "citer-ratio": difference(ratio, n.citer, n.relay),
        "transfer-base": difference(right, n.transfer, n.base, unseen),
        "transfer-grpo": difference(right, n.transfer, n.transfer_grpo, unseen),
        "filter-accuracy": filter_[0],
        "filter-ratio": filter_[1],
        "bonus-accuracy": bonus[0],
        "bonus-ratio": bonus[1],
        "exploration-accuracy": exploration[0],
        "exploration-ratio": difference(ratio, n.relay, n.no_exploration),
        "difficulty-accuracy": simple[0],
        "difficulty-ratio": difference(ratio, n.relay, n.simple),
        "free-easy": difference(right, n.free, n.grpo, easy),
        "free-hard": difference(right, n.relay, n.free, hard),
        "free-hard-grpo": difference(right, n.grpo, n.free, hard),
        "swap-peak": _measured([n.relay, n.weak, n.small, n.strong], every, peak, right),
        "swap-weak": difference(right, n.weak, n.free),
        "length-accuracy": fixed[0],
        "length-ratio": fixed[1],
    }
