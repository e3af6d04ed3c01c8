"""The paper's numbers and claims as data, and the scorecard that puts each claim beside our measurement.

Source: "RelayLLM: Efficient Reasoning via Collaborative Decoding", arXiv 2601.05167v1, tables 1-5 and figure 3, in
``paper_tables.csv``. A claim is one formula that should be above 0. It is evaluated twice: on the paper's tables and on
the table of our evaluation, there with a bootstrap interval over problems. Accuracies and ratios are in %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from relaylab.evaluation.stats import columns, interval

NOT_TESTED = "not testable here"


@cache
def paper_tables() -> pd.DataFrame:
    """All published numbers: source, student, system, key, metric (accuracy or call ratio), set, value in %.

    ``set`` is a benchmark, ``Avg`` (the average that the paper prints), ``Easy`` or ``Hard``. ``key`` is the system's
    field in ``Names``.

    >>> paper_tables().query("source == 'table 3' and key == 'no_filter'")[["metric", "value"]].values.tolist()
    [['accuracy', 48.76], ['call ratio', 3.3]]
    """
    return pd.read_csv(Path(__file__).with_name("paper_tables.csv"))


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

    Raises:
        ValueError: if the teacher is not better than the base, or the accuracy not between the two.

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
    """The label of each system in our table.

    ``relay`` and ``free`` are the full method with and without its teacher. ``weak``, ``small`` and ``strong`` are the
    relay with another teacher: the untouched student, a smaller and a larger model. ``transfer`` and ``transfer_grpo``
    are trained without the suites ``unseen``.
    """

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


Value = Callable[[str], float]  # a system of ``Names`` -> its accuracy, or its mean call ratio, in %


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper: a difference that should be above 0.

    Args:
        id: short name.
        text: what is claimed.
        difference: what is subtracted from what.
        source: table or figure of the paper.
        value: the difference, a function of accuracies and call ratios of systems.
        part: of the problems: ``all``, ``easy``, ``hard`` or ``unseen``.
        unit: ``points``, or ``%`` for a share.
        published: whether the paper has a number for it.
    """

    id: str
    text: str
    difference: str
    source: str
    value: Callable[[Value, Value], float]
    part: str = "all"
    unit: str = "points"
    published: bool = True

    @property
    def paper(self) -> float | None:
        """The paper's value for 1.7B with the 8B teacher, computed from its tables."""
        if not self.published:
            return None
        return self.value(
            lambda s: _published(s, self.part, "accuracy"), lambda s: _published(s, self.part, "call ratio")
        )

    @property
    def needs(self) -> list[str]:
        """The systems of ``Names`` that it compares."""
        names: dict[str, None] = {}

        def note(system: str) -> float:
            names.setdefault(system)
            return 1.0

        self.value(note, note)
        return list(names)


def _published(system: str, part: str, metric: str) -> float:
    """Of 1.7B; the mean over benchmarks for what training never saw."""
    key = {"transfer": "relay", "transfer_grpo": "grpo"}.get(system, system)
    sets = {"all": ["Avg"], "easy": ["Easy"], "hard": ["Hard"], "unseen": ["BBEH", "MMLU-Pro", "SuperGPQA"]}[part]
    table = paper_tables()
    table = table[(table.key == key) & (table.metric == metric) & table.set.isin(sets) & (table.student != "0.6B")]
    return table.drop_duplicates("set")["value"].mean()


def _less(a: str, b: str) -> Callable[[Value, Value], float]:
    return lambda accuracy, ratio: accuracy(a) - accuracy(b)


def _fewer(a: str, b: str) -> Callable[[Value, Value], float]:
    return lambda accuracy, ratio: ratio(b) - ratio(a)


def _gap(accuracy: Value, ratio: Value) -> float:
    base, teacher, relay = (accuracy(s) for s in ("base", "teacher", "relay"))
    return 100 * (relay - base) / max(teacher - base, 1e-7)


def _resource(accuracy: Value, ratio: Value) -> float:
    base, teacher, relay = (accuracy(s) for s in ("base", "teacher", "relay"))
    return relay - base - ratio("relay") / 100 * (teacher - base)


def _router_cost(accuracy: Value, ratio: Value) -> float:
    return 100 * (1 - ratio("relay") / max(_gap(accuracy, ratio), 1e-9))


def _peak(accuracy: Value, ratio: Value) -> float:
    return accuracy("relay") - max(accuracy(s) for s in ("weak", "small", "strong"))


CLAIMS = (
    Claim("relay-above-grpo", "The relay is more accurate than plain GRPO", "relay - GRPO",
          "table 1", _less("relay", "grpo")),
    Claim("grpo-above-base", "Plain GRPO is more accurate than the base", "GRPO - base",
          "table 1", _less("grpo", "base")),
    Claim("gap-recovered", "The relay recovers a part of the gap to the teacher", "(relay - base) / (teacher - base)",
          "table 1", _gap, unit="%"),
    Claim("router-resource", "More accurate than a random router with as many teacher tokens",
          "relay - base - rho (teacher - base)", "abstract", _resource),
    Claim("router-cost", "Fewer teacher tokens than a random router of the same accuracy",
          "1 - rho / p of the matched router", "abstract", _router_cost, unit="%"),
    Claim("citer-accuracy", "More accurate than CITER", "relay - CITER", "table 1", _less("relay", "citer")),
    Claim("citer-ratio", "Fewer teacher tokens than CITER", "rho of CITER - rho of the relay",
          "table 1", _fewer("relay", "citer")),
    Claim("transfer-base", "On unseen benchmarks the relay is above the base", "relay - base",
          "table 2", _less("transfer", "base"), part="unseen"),
    Claim("transfer-grpo", "On unseen benchmarks the relay is above plain GRPO", "relay - GRPO",
          "table 2", _less("transfer", "transfer_grpo"), part="unseen"),
    Claim("filter-accuracy", "The data filter raises accuracy", "full - no filter",
          "table 3", _less("relay", "no_filter")),
    Claim("filter-ratio", "The data filter saves teacher tokens", "rho of no filter - rho of full",
          "table 3", _fewer("relay", "no_filter")),
    Claim("bonus-accuracy", "The independence bonus raises accuracy", "full - no bonus",
          "table 3", _less("relay", "no_bonus")),
    Claim("bonus-ratio", "The independence bonus saves teacher tokens", "rho of no bonus - rho of full",
          "table 3", _fewer("relay", "no_bonus")),
    Claim("exploration-accuracy", "The exploration reward raises accuracy", "full - no exploration",
          "table 3", _less("relay", "no_exploration")),
    Claim("exploration-ratio", "The exploration reward makes the student call more",
          "rho of full - rho of no exploration", "table 3", _fewer("no_exploration", "relay")),
    Claim("difficulty-accuracy", "The difficulty-aware reward is more accurate than the simple one",
          "difficulty-aware - simple", "table 1", _less("relay", "simple")),
    Claim("difficulty-ratio", "The difficulty-aware reward calls more than the simple one",
          "rho of difficulty-aware - rho of simple", "table 1", _fewer("simple", "relay")),
    Claim("free-easy", "On easy problems the relay student is above GRPO even without its teacher",
          "relay without teacher - GRPO", "table 4", _less("free", "grpo"), part="easy"),
    Claim("free-hard", "On hard problems the relay student needs its teacher", "with teacher - without",
          "table 4", _less("relay", "free"), part="hard"),
    Claim("free-hard-grpo", "On hard problems and without its teacher it is below GRPO",
          "GRPO - relay without teacher", "table 4", _less("grpo", "free"), part="hard"),
    Claim("swap-peak", "Swapped at inference, the teacher of the training is the best",
          "training teacher - best of the others", "figure 3", _peak, published=False),
    Claim("swap-weak", "Even a weak teacher is better than none", "weakest teacher - none",
          "figure 3", _less("weak", "free"), published=False),
    Claim("length-accuracy", "A learned call length is more accurate than a fixed one of 20", "learned n - n = 20",
          "table 5", _less("relay", "fixed")),
    Claim("length-ratio", "A learned call length takes fewer teacher tokens than a fixed one of 20",
          "rho of n = 20 - rho of learned n", "table 5", _fewer("relay", "fixed")),
)  # fmt: skip


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
    """Claim id -> our measurement, or a text that says which systems are missing.

    A system's value on a problem is the mean over its students, such as three training seeds.

    Args:
        table: of ``evaluate``.
        names: the systems' labels in it.
        seed: of the bootstrap.

    Raises:
        ValueError: if the systems answered different problems.
    """
    names = names or Names()
    right, ratio = columns(table, "correct"), columns(table, "call_ratio")
    problems = table.drop_duplicates("id").set_index("id").loc[right.index]
    parts = {"all": np.ones(len(problems), bool), "unseen": problems["suite"].isin(names.unseen).to_numpy()}
    parts |= {level: (problems["level"] == level).to_numpy() for level in ("easy", "hard")}
    students = table.groupby("method")["student"].nunique()
    return {c.id: _measure(c, right, ratio, parts[c.part], names, students, seed) for c in CLAIMS}


def _measure(
    claim: Claim,
    right: pd.DataFrame,
    ratio: pd.DataFrame,
    part: np.ndarray,
    names: Names,
    students: pd.Series,
    seed: int,
) -> Measured | str:
    labels = [getattr(names, system) for system in claim.needs]
    if missing := [label for label in labels if label not in right]:
        return f"not evaluated: {', '.join(missing)}"
    part = part & right[labels].notna().all(axis=1).to_numpy()  # an excluded answer takes its problem out of the pair
    if not part.any():
        return "no problem of these suites was evaluated"
    tables = [{label: 100 * frame[label].to_numpy()[part] for label in labels} for frame in (right, ratio)]

    def value(i: np.ndarray) -> float:
        accuracy, share = ((lambda system, t=t: t[getattr(names, system)][i].mean()) for t in tables)
        return claim.value(accuracy, share)

    result = interval(value, int(part.sum()), seed=seed)
    counts = ", ".join(f"{students[m]} students of {m}" for m in labels if students.get(m, 1) > 1)
    return Measured(result.value, result.low, result.high, f"{part.sum()} problems" + (f", {counts}" if counts else ""))


def scorecard(measurements: Mapping[str, Measured | str]) -> pd.DataFrame:
    """Each claim beside our measurement: claim, paper, ours, verdict, note; one row per claim, in the paper's order.

    Args:
        measurements: claim id -> ``Measured``, or a text that says why it could not be tested.

    Raises:
        ValueError: for an id that is no claim's.

    >>> scorecard({"relay-above-grpo": Measured(9.5, 7.0, 12.1)}).iloc[0][["paper", "ours", "verdict"]].tolist()
    ['+5.46 points', '+9.50 points (+7.00, +12.10)', 'holds']
    """
    if unknown := sorted(set(measurements) - {c.id for c in CLAIMS}):
        raise ValueError(f"no claim {unknown[0]!r}; there are {', '.join(c.id for c in CLAIMS)}")
    rows = []
    for claim in CLAIMS:
        ours = measurements.get(claim.id, f"needs {', '.join(claim.needs)}")
        tested = isinstance(ours, Measured)
        rows.append(
            {
                "id": claim.id,
                "claim": f"{claim.text}: {claim.difference}",
                "source": claim.source,
                "paper": "above 0" if claim.paper is None else f"{claim.paper:+.2f} {claim.unit}",
                "ours": f"{ours.value:+.2f} {claim.unit} ({ours.low:+.2f}, {ours.high:+.2f})" if tested else "-",
                "verdict": ours.verdict if tested else NOT_TESTED,
                "note": ours.note if tested else ours,
            }
        )
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame, *, columns: tuple[str, ...] = ("claim", "paper", "ours", "verdict", "note")) -> str:
    """A frame as a Markdown table, cells escaped.

    >>> print(markdown(pd.DataFrame({"claim": ["a|b"], "ours": ["-"]}), columns=("claim", "ours")))
    | claim | ours |
    |---|---|
    | a\\|b | - |
    """
    if missing := [c for c in columns if c not in frame]:
        raise ValueError(f"no column {missing[0]!r} in the frame; there are {', '.join(frame)}")
    lines = [columns, *frame[list(columns)].itertuples(index=False)]
    cells = [[" ".join(str(c).replace("\\", "\\\\").replace("|", "\\|").split()) for c in line] for line in lines]
    table = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([table[0], "|---" * len(columns) + "|", *table[1:]])
