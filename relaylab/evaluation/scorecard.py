"""The paper's numbers and claims as data, and the scorecard that puts each claim beside our measurement.

Source: "RelayLLM: Efficient Reasoning via Collaborative Decoding", arXiv 2601.05167v1, tables 1-5 and figure 3, in
``paper_tables.csv``. A claim of ``claims.csv`` is one formula that should be above 0. It is evaluated twice: on the
paper's tables and on the table of our evaluation, there with a bootstrap interval over problems. Accuracies and ratios
are in %.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from relaylab.evaluation.stats import columns, interval, part_of_gap
from relaylab.evaluation.table import only_label

FOLDER = Path(__file__).parent
NOT_TESTED = "not testable here"


@cache
def paper_tables() -> pd.DataFrame:
    """All published numbers: source, student, system, key, metric (accuracy or call ratio), set, value in %.

    ``set`` is a benchmark, ``Avg`` (as printed), ``Easy`` or ``Hard``; ``key`` is the system's field in ``Names``.
    """
    return pd.read_csv(FOLDER / "paper_tables.csv")


def random_router(base: float, teacher: float, p: float) -> float:
    """The accuracy of a router that sends each question whole to the teacher with probability ``p``.

    >>> round(random_router(42.50, 54.12, 0.0107), 2)  # as many teacher tokens as the 1.7B relay
    42.62
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; a probability lies in [0, 1]")
    return base + p * (teacher - base)


def matched_p(base: float, teacher: float, accuracy: float) -> float:
    """The probability with which a random router reaches ``accuracy``; it is its share of teacher tokens.

    >>> round(matched_p(42.50, 54.12, 49.52), 3)  # as accurate as the 1.7B relay
    0.604
    """
    if teacher <= base:
        raise ValueError(f"the teacher's {teacher} is not above the base's {base}; routing to it gains nothing")
    if not base <= accuracy <= teacher:
        raise ValueError(f"accuracy is {accuracy}; a router reaches what lies between {base} and {teacher}")
    return (accuracy - base) / (teacher - base)


# Claims ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """The label of each system in our table. ``relay`` and ``free``: the full method with and without its teacher."""

    base: str = "student"
    teacher: str = "teacher"
    relay: str = "relay"
    free: str = "teacher-free"
    grpo: str = "grpo"
    citer: str = "citer"
    simple: str = "relay:student=ablations/simple"
    no_filter: str = "relay:student=ablations/no-filter"
    no_bonus: str = "relay:student=ablations/no-bonus"
    no_exploration: str = "relay:student=ablations/no-exploration"
    fixed: str = "fixed"
    weak: str = "relay:teacher=student"  # the relay with the untouched student as its teacher,
    small: str = "relay:teacher=teacher-small"  # with a smaller one than in training,
    strong: str = "relay:teacher=teacher-large"  # with a larger one
    transfer: str = "relay:student=ablations/relay-six"  # trained without the suites ``unseen``
    transfer_grpo: str = "grpo:student=ablations/grpo-six"
    unseen: tuple[str, ...] = ("sharing", "convoy", "harvest")


def _gap(accuracy: Callable, ratio: Callable, relay: str, base: str, teacher: str) -> float:
    return 100 * part_of_gap(accuracy(relay), accuracy(base), accuracy(teacher))


def _router_cost(accuracy: Callable, ratio: Callable, relay: str, base: str, teacher: str) -> float:
    p = _gap(accuracy, ratio, relay, base, teacher)
    return -math.inf if p <= 0 else 100 * (1 - ratio(relay) / p)  # at p = 0 the router needs no teacher


# What a claim says is above 0: for people, and a function of accuracy and mean call ratio in %, both of a system.
FORMULAS: dict[str, tuple[str, Callable[..., float]]] = {
    "better": ("{0} - {1}", lambda accuracy, ratio, a, b: accuracy(a) - accuracy(b)),
    "calls_more": ("rho of {0} - rho of {1}", lambda accuracy, ratio, a, b: ratio(a) - ratio(b)),
    "gap": ("({0} - {1}) / ({2} - {1})", _gap),
    "router_accuracy": (
        "{0} - {1} - rho ({2} - {1})",
        lambda acc, ratio, relay, base, teacher: (
            acc(relay) - acc(base) - ratio(relay) / 100 * (acc(teacher) - acc(base))
        ),
    ),
    "router_cost": ("1 - rho / p of the matched router", _router_cost),
    "peak": (
        "{0} - best of the other teachers",
        lambda accuracy, ratio, relay, *others: accuracy(relay) - max(map(accuracy, others)),
    ),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim: a formula of some systems (of ``Names``) that should be above 0 on a part of the problems."""

    id: str
    source: str
    text: str
    formula: str  # of ``FORMULAS``
    systems: tuple[str, ...]
    part: str
    unit: str

    def value(self, accuracy: Callable, ratio: Callable) -> float:
        """The formula, of functions from a system to its accuracy and its mean call ratio in %."""
        return FORMULAS[self.formula][1](accuracy, ratio, *self.systems)

    @property
    def paper(self) -> float | None:
        """The paper's value for 1.7B with the 8B teacher, computed from its tables; None if it prints none."""
        if self.source == "figure 3":
            return None
        return self.value(*(partial(_published, part=self.part, metric=m) for m in ("accuracy", "call ratio")))


def _published(system: str, part: str, metric: str) -> float:
    """Of 1.7B; the mean over benchmarks for what training never saw."""
    key = {"transfer": "relay", "transfer_grpo": "grpo"}.get(system, system)
    sets = {"all": ["Avg"], "easy": ["Easy"], "hard": ["Hard"], "unseen": ["BBEH", "MMLU-Pro", "SuperGPQA"]}[part]
    table = paper_tables()
    table = table[(table.key == key) & (table.metric == metric) & table.set.isin(sets) & (table.student != "0.6B")]
    return table.drop_duplicates("set")["value"].mean()


_ROWS = csv.DictReader((FOLDER / "claims.csv").read_text(encoding="utf-8").splitlines())
CLAIMS = tuple(
    Claim(r["id"], r["source"], r["text"], r["formula"], tuple(r["systems"].split()), r["part"], r["unit"])
    for r in _ROWS
)


# Measurements ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """Our value of a claim, in its unit, with its 95 % interval.

    >>> Measured(2.0, -1.0, 5.0).verdict
    'undecided'
    """

    value: float
    low: float
    high: float
    note: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:  # also if one is NaN
            raise ValueError(f"{self.value} does not lie in its interval ({self.low}, {self.high})")

    @property
    def verdict(self) -> str:
        """``holds`` if the interval lies above 0, ``does not`` if below, ``undecided`` if it spans 0."""
        return "holds" if self.low > 0 else "does not" if self.high < 0 else "undecided"


def measured(table: pd.DataFrame, names: Names | None = None, *, seed: int = 0) -> dict[str, Measured | str]:
    """Claim id -> our measurement, or a text that says what the table of an evaluation lacks for it.

    A system's value on a problem is the mean over its students, such as three training seeds. Without ``names``, the
    only relay, ``teacher-free`` and ``grpo`` stand for these, whichever student of your own they name.
    """
    right, ratio = columns(table, "correct"), columns(table, "call_ratio")
    usual = Names()
    others = {str(label) for label in right} - {label for label in astuple(usual) if ":" in label}
    names = names or replace(usual, **{k: only_label(others, getattr(usual, k)) for k in ("relay", "free", "grpo")})
    problems = table.drop_duplicates("id").set_index("id").loc[right.index]
    parts = {"all": np.ones(len(problems), bool), "unseen": problems["suite"].isin(names.unseen).to_numpy()}
    parts |= {level: (problems["level"] == level).to_numpy() for level in ("easy", "hard")}
    students = table.groupby("method")["student"].nunique()
    result: dict[str, Measured | str] = {}
    for claim in CLAIMS:
        labels = {system: getattr(names, system) for system in claim.systems}
        if missing := [label for label in labels.values() if label not in right]:
            result[claim.id] = f"not evaluated: {', '.join(missing)}"
            continue
        # Excluded answers are left out with their pairs.
        part = parts[claim.part] & right[[*labels.values()]].notna().all(axis=1).to_numpy()
        if not part.any():
            result[claim.id] = "no problem of these suites was evaluated"
            continue
        values = [{s: 100 * frame[label].to_numpy()[part] for s, label in labels.items()} for frame in (right, ratio)]
        ours = interval(partial(_drawn, claim, *values), int(part.sum()), seed=seed)
        if math.isnan(ours.value):
            result[claim.id] = f"the teacher is not better than the student on these {part.sum()} problems"
            continue
        if math.isnan(ours.low):
            result[claim.id] = "one problem has no interval; evaluate more of them"
            continue
        counts = [f"{students[m]} students of {m}" for m in labels.values() if students[m] > 1]
        note = ", ".join([f"{part.sum()} problems", *counts])
        result[claim.id] = Measured(ours.value, ours.low, ours.high, note)
    return result


def _drawn(claim: Claim, accuracy: dict[str, np.ndarray], ratio: dict[str, np.ndarray], drawn: np.ndarray) -> float:
    """The claim's formula on some problems, drawn with repetition."""
    return claim.value(lambda s: accuracy[s][drawn].mean(), lambda s: ratio[s][drawn].mean())


def scorecard(measurements: Mapping[str, Measured | str]) -> pd.DataFrame:
    """Each claim beside our measurement: claim, paper, ours, verdict, note; one row per claim, in the paper's order.

    ``measurements`` is claim id -> ``Measured``, or a text that says why it could not be tested.

    >>> scorecard({"relay-above-grpo": Measured(9.5, 7.0, 12.1)}).iloc[0][["paper", "ours", "verdict"]].tolist()
    ['+5.46 points', '+9.50 points (+7.00, +12.10)', 'holds']
    """
    if unknown := sorted(set(measurements) - {c.id for c in CLAIMS}):
        raise ValueError(f"no claim {unknown[0]!r}; there are {', '.join(c.id for c in CLAIMS)}")
    rows = []
    for claim in CLAIMS:
        ours = measurements.get(claim.id, f"needs {', '.join(claim.systems)}")
        value, verdict, note = "-", NOT_TESTED, ours
        if isinstance(ours, Measured):
            value = f"{ours.value:+.2f} {claim.unit} ({ours.low:+.2f}, {ours.high:+.2f})"
            verdict, note = ours.verdict, ours.note
        text = f"{claim.text}: {FORMULAS[claim.formula][0].format(*claim.systems)}"
        paper = "above 0" if claim.paper is None else f"{claim.paper:+.2f} {claim.unit}"
        rows.append((claim.id, text, claim.source, paper, value, verdict, note))
    return pd.DataFrame(rows, columns=["id", "claim", "source", "paper", "ours", "verdict", "note"])


def markdown(frame: pd.DataFrame, *, columns: tuple[str, ...] = ("claim", "paper", "ours", "verdict", "note")) -> str:
    """A frame as a Markdown table, cells escaped.

    >>> print(markdown(pd.DataFrame({"claim": ["a|b"], "ours": ["-"]}), columns=("claim", "ours")))
    | claim | ours |
    |---|---|
    | a\\|b | - |
    """
    if missing := [c for c in columns if c not in frame]:
        raise ValueError(f"no column {missing[0]!r} in the frame; there are {', '.join(map(str, frame))}")
    lines = [columns, *frame[list(columns)].itertuples(index=False)]
    cells = [[" ".join(str(c).replace("\\", "\\\\").replace("|", "\\|").split()) for c in line] for line in lines]
    table = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([table[0], "|---" * len(columns) + "|", *table[1:]])
