"""The paper's numbers as data, its claims, and the scorecard that puts each claim beside a measurement of ours.

Source: "RelayLLM: Efficient Reasoning via Collaborative Decoding", arXiv 2601.05167v1, tables 1-5 and figure 3. All
accuracies and call ratios are in %, differences in points. What the claims say in figures is computed from the tables,
never typed. Nothing here measures: ``scorecard`` takes measurements with their intervals and says what they decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

SIMPLE, FULL = "Relay simple", "Relay difficulty-aware"
IN_DOMAIN = ("Minerva", "MATH-500", "GSM8K", "Olympiad", "AIME25", "AIME24")
OUT_OF_DOMAIN = ("BBEH", "MMLU-Pro", "SuperGPQA")

# Accuracy on IN_DOMAIN, pass@1 (AIME: avg@32), the paper's own average, and the call ratio where there is one.
# Every row is made of whole counts of right answers but CITER's: those were measured in another way (a test shows it).
TABLE_1 = {
    ("0.6B", "base"): (15.81, 54.00, 64.82, 26.22, 1.04, 1.15, 27.17, None),
    ("0.6B", "GRPO"): (17.65, 58.60, 65.50, 29.04, 5.42, 3.23, 29.91, None),
    ("0.6B", "CITER"): (19.29, 58.80, 67.78, 29.60, 5.93, 3.24, 30.77, 0.98),
    ("0.6B", SIMPLE): (20.96, 60.20, 69.14, 32.15, 7.19, 3.85, 32.25, 0.31),
    ("0.6B", FULL): (23.53, 60.00, 71.95, 32.74, 6.15, 3.85, 33.04, 0.77),
    ("1.7B", "base"): (33.82, 74.60, 82.64, 43.11, 8.75, 12.08, 42.50, None),
    ("1.7B", "GRPO"): (35.66, 75.60, 81.73, 45.04, 10.73, 15.62, 44.06, None),
    ("1.7B", "CITER"): (38.63, 80.24, 82.26, 51.20, 11.96, 16.58, 46.81, 1.34),
    ("1.7B", SIMPLE): (43.01, 83.40, 86.13, 51.56, 13.44, 18.23, 49.30, 0.43),
    ("1.7B", FULL): (43.75, 81.40, 86.28, 55.70, 12.71, 17.29, 49.52, 1.07),
    ("8B", "teacher"): (48.16, 83.20, 93.63, 56.89, 17.92, 24.90, 54.12, 100.0),
}
# Accuracy on OUT_OF_DOMAIN.
TABLE_2 = {
    ("0.6B", "base"): (7.19, 30.03, 17.22),
    ("0.6B", "GRPO"): (7.82, 32.15, 19.91),
    ("0.6B", "CITER"): (8.16, 33.12, 20.34),
    ("0.6B", SIMPLE): (8.32, 35.61, 21.35),
    ("0.6B", FULL): (8.56, 35.87, 20.88),
    ("1.7B", "base"): (9.91, 46.90, 24.46),
    ("1.7B", "GRPO"): (10.89, 49.76, 26.01),
    ("1.7B", "CITER"): (11.67, 53.38, 28.25),
    ("1.7B", SIMPLE): (12.67, 58.76, 29.85),
    ("1.7B", FULL): (12.46, 59.03, 29.93),
    ("8B", "teacher"): (15.31, 66.46, 36.21),
}
# Ablations of 1.7B, table 3, and fixed call lengths, table 5: average accuracy, call ratio.
TABLE_3 = {
    "full": (49.52, 1.07),
    "no filter": (48.76, 3.30),
    "no independence bonus": (49.34, 4.10),
    "no exploration reward": (47.56, 0.65),
}
TABLE_5 = {"n = 20": (49.41, 1.32), "n = 100": (49.56, 2.87), "n = 500": (51.17, 5.37), "learned n": (49.52, 1.07)}
# 1.7B on the easy ones (the first four of IN_DOMAIN) and the hard (both AIME): with the teacher, and calls forbidden.
TABLE_4 = {
    ("GRPO", "without teacher"): (59.51, 13.18),
    (SIMPLE, "with teacher"): (66.03, 15.84),
    (SIMPLE, "without teacher"): (61.12, 13.13),
    (FULL, "with teacher"): (66.78, 15.00),
    (FULL, "without teacher"): (60.26, 11.93),
}
# The teacher swapped at inference, 1.7B; of the curve over none, 0.6B, 1.7B, 8B and 14B only the peak has a number.
FIGURE_3 = {"8B": 49.52}


def published() -> pd.DataFrame:
    """All of it, tidy: source (table or figure), student, system, metric (accuracy, call ratio), set, value in %.

    ``set`` is a benchmark, ``Avg`` (the average that the paper prints), ``Easy`` or ``Hard``.

    >>> frame = published()
    >>> frame[(frame.source == "table 3") & (frame.system == "no filter")][["metric", "value"]].values.tolist()
    [['accuracy', 48.76], ['call ratio', 3.3]]
    """
    rows: list[tuple] = []
    for (student, system), (*accuracies, ratio) in TABLE_1.items():
        rows += [
            ("table 1", student, system, "accuracy", name, value)
            for name, value in zip((*IN_DOMAIN, "Avg"), accuracies, strict=True)
        ]
        rows += [("table 1", student, system, "call ratio", "Avg", ratio)] if ratio is not None else []
    for (student, system), accuracies in TABLE_2.items():
        rows += [
            ("table 2", student, system, "accuracy", name, value)
            for name, value in zip(OUT_OF_DOMAIN, accuracies, strict=True)
        ]
    for source, table in (("table 3", TABLE_3), ("table 5", TABLE_5)):
        for system, values in table.items():
            rows += [
                (source, "1.7B", system, metric, "Avg", value)
                for metric, value in zip(("accuracy", "call ratio"), values, strict=True)
            ]
    for (system, how), values in TABLE_4.items():
        rows += [
            ("table 4", "1.7B", f"{system}, {how}", "accuracy", name, value)
            for name, value in zip(("Easy", "Hard"), values, strict=True)
        ]
    rows += [("figure 3", "1.7B", f"teacher {name}", "accuracy", "Avg", value) for name, value in FIGURE_3.items()]
    return pd.DataFrame(rows, columns=["source", "student", "system", "metric", "set", "value"])


def averages() -> pd.DataFrame:
    """The averages that the paper prints (tables 1 and 4) beside the means of the columns of table 1.

    ``agrees``: within 0.01, which rounding to two digits of columns and average explains.

    >>> bool(averages().agrees.all())
    True
    """
    rows = []
    for (student, system), (*accuracies, printed, _) in TABLE_1.items():
        rows.append((f"table 1, {student} {system}", printed, sum(accuracies) / len(accuracies)))
    same = {("GRPO", "without teacher"): "GRPO", (SIMPLE, "with teacher"): SIMPLE, (FULL, "with teacher"): FULL}
    for key, system in same.items():
        for name, printed, sets in zip(("Easy", "Hard"), TABLE_4[key], (slice(0, 4), slice(4, 6)), strict=True):
            columns = TABLE_1["1.7B", system][sets]
            rows.append((f"table 4, {system} {name}", printed, sum(columns) / len(columns)))
    frame = pd.DataFrame(rows, columns=["entry", "printed", "mean"])
    return frame.assign(agrees=(frame.printed - frame["mean"]).abs() <= 0.01)


def random_router(base: float, teacher: float, p: float) -> float:
    """The accuracy of a router that sends each query whole to the teacher with probability ``p``: a line.

    >>> round(random_router(42.50, 54.12, 0.0107), 2)  # the resource-matched router of 1.7B
    42.62
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; a probability lies in [0, 1]")
    return base + p * (teacher - base)


def matched_p(base: float, teacher: float, accuracy: float) -> float:
    """The probability with which a random router reaches ``accuracy``: its share of the teacher's tokens.

    Raises ValueError where the teacher is no better than the base, or the accuracy not between the two.

    >>> round(matched_p(42.50, 54.12, 49.52), 3)  # the performance-matched router of 1.7B
    0.604
    """
    if teacher <= base:
        raise ValueError(f"the teacher's {teacher} is not above the base's {base}; routing to it gains nothing")
    if not base <= accuracy <= teacher:
        raise ValueError(f"accuracy is {accuracy}; a router reaches what lies between {base} and {teacher}")
    return (accuracy - base) / (teacher - base)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper as a difference that should be above 0.

    ``difference`` says what minus what, ``paper`` is the paper's figure for it (None: claimed, but not published), in
    points of a % or, for a share, in %; ``source`` is where, ``needs`` the measurement on the embedded pair.
    """

    id: str
    text: str
    difference: str
    source: str
    needs: str
    paper: float | None = None
    unit: str = "points"


_ALL = "the test problems of all suites, greedy, paired by problem"
_BOTH = "both adapters, trained alike, on " + _ALL
_FREE = "relay with calls forbidden and GRPO, greedy, paired, on the suites of level "
_CLAIMS = (
    ("relay-above-grpo", "The relay is more accurate than plain GRPO", "relay - GRPO",
     "table 1", f"relay and GRPO adapters on {_ALL}"),
    ("grpo-above-base", "Plain GRPO is more accurate than the base", "GRPO - base",
     "table 1", f"GRPO adapter and untouched student on {_ALL}"),
    ("gap-recovered", "The relay recovers a part of the gap to the teacher", "(relay - base) / (teacher - base)",
     "table 1", f"relay, untouched student and teacher on {_ALL}"),
    ("router-resource", "More accurate than a random router with as many teacher tokens",
     "relay - base - rho (teacher - base)", "abstract", f"relay, untouched student and teacher on {_ALL}"),
    ("router-cost", "Fewer teacher tokens than a random router of the same accuracy",
     "1 - rho / p of the matched router", "abstract", f"relay, untouched student and teacher on {_ALL}"),
    ("citer-accuracy", "More accurate than CITER", "relay - CITER",
     "table 1", f"relay and a token router of CITER's kind on {_ALL}"),
    ("citer-ratio", "Fewer teacher tokens than CITER", "rho of CITER - rho of the relay",
     "table 1", f"relay and a token router of CITER's kind on {_ALL}"),
    ("transfer-base", "On unseen benchmarks the relay is above the base", "relay - base",
     "table 2", "relay and untouched student on suites that training never saw, greedy, paired"),
    ("transfer-grpo", "On unseen benchmarks the relay is above plain GRPO", "relay - GRPO",
     "table 2", "relay and GRPO adapters on suites that training never saw, greedy, paired"),
    ("filter-accuracy", "The data filter raises accuracy", "full - no filter", "table 3", _BOTH),
    ("filter-ratio", "The data filter saves teacher tokens", "rho of no filter - rho of full", "table 3", _BOTH),
    ("bonus-accuracy", "The independence bonus raises accuracy", "full - no bonus", "table 3", _BOTH),
    ("bonus-ratio", "The independence bonus saves teacher tokens", "rho of no bonus - rho of full", "table 3", _BOTH),
    ("exploration-accuracy", "The exploration reward raises accuracy", "full - no exploration", "table 3", _BOTH),
    ("exploration-ratio", "The exploration reward makes the student call more",
     "rho of full - rho of no exploration", "table 3", _BOTH),
    ("difficulty-accuracy", "The difficulty-aware reward is more accurate than the simple one",
     "difficulty-aware - simple", "table 1", _BOTH),
    ("difficulty-ratio", "The difficulty-aware reward calls more than the simple one",
     "rho of difficulty-aware - rho of simple", "table 1", _BOTH),
    ("free-easy", "On easy problems the relay student is above GRPO even without its teacher",
     "relay without teacher - GRPO", "table 4", f"{_FREE}easy"),
    ("free-hard", "On hard problems the relay student needs its teacher", "with teacher - without",
     "table 4", "relay with and without calls, greedy, paired, on the suites of level hard"),
    ("free-hard-grpo", "On hard problems and without its teacher it is below GRPO",
     "GRPO - relay without teacher", "table 4", f"{_FREE}hard"),
    ("swap-peak", "Swapped at inference, the teacher of the training is the best",
     "training teacher - best of the others", "figure 3",
     f"relay with a smaller, the training and a larger teacher on {_ALL}"),
    ("swap-weak", "Even a weak teacher is better than none", "weakest teacher - none", "figure 3",
     f"relay with a smaller teacher and with calls forbidden on {_ALL}"),
    ("length-accuracy", "A learned call length is more accurate than a fixed one of 20", "learned n - n = 20",
     "table 5", f"relay adapter and one with a fixed length, trained alike, on {_ALL}"),
    ("length-ratio", "A learned call length takes fewer teacher tokens than a fixed one of 20",
     "rho of n = 20 - rho of learned n", "table 5",
     f"relay adapter and one with a fixed length, trained alike, on {_ALL}"),
)  # fmt: skip


def claims() -> list[Claim]:
    """What the paper claims, in its order; the figures are those of 1.7B with the 8B teacher, from the tables.

    >>> [round(c.paper, 2) for c in claims() if c.id in ("router-resource", "router-cost", "filter-ratio")]
    [6.9, 98.23, 2.23]
    """
    figures = _figures()
    shares = ("gap-recovered", "router-cost")
    return [Claim(*c, paper=figures.get(c[0]), unit="%" if c[0] in shares else "points") for c in _CLAIMS]


def _figures() -> dict[str, float]:
    """The published difference of each claim that has one."""
    base, grpo, citer, simple, relay = (TABLE_1["1.7B", s] for s in ("base", "GRPO", "CITER", SIMPLE, FULL))
    teacher = TABLE_1["8B", "teacher"]
    whole, no_filter, no_bonus, no_exploration = TABLE_3.values()
    free, helped, plain = (
        TABLE_4[key] for key in ((FULL, "without teacher"), (FULL, "with teacher"), ("GRPO", "without teacher"))
    )
    fixed, learned = TABLE_5["n = 20"], TABLE_5["learned n"]
    unseen_base, unseen_grpo, unseen_relay = (sum(TABLE_2["1.7B", s]) / 3 for s in ("base", "GRPO", FULL))
    matched = 100 * matched_p(base[6], teacher[6], relay[6])
    return {
        "relay-above-grpo": relay[6] - grpo[6],
        "grpo-above-base": grpo[6] - base[6],
        "gap-recovered": matched,  # the same number: a router closes the gap by as much as it routes
        "router-resource": relay[6] - random_router(base[6], teacher[6], relay[7] / 100),
        "router-cost": 100 * (1 - relay[7] / matched),
        "citer-accuracy": relay[6] - citer[6],
        "citer-ratio": citer[7] - relay[7],
        "transfer-base": unseen_relay - unseen_base,
        "transfer-grpo": unseen_relay - unseen_grpo,
        "filter-accuracy": whole[0] - no_filter[0],
        "filter-ratio": no_filter[1] - whole[1],
        "bonus-accuracy": whole[0] - no_bonus[0],
        "bonus-ratio": no_bonus[1] - whole[1],
        "exploration-accuracy": whole[0] - no_exploration[0],
        "exploration-ratio": whole[1] - no_exploration[1],
        "difficulty-accuracy": relay[6] - simple[6],
        "difficulty-ratio": relay[7] - simple[7],
        "free-easy": free[0] - plain[0],
        "free-hard": helped[1] - free[1],
        "free-hard-grpo": plain[1] - free[1],
        "length-accuracy": learned[0] - fixed[0],
        "length-ratio": fixed[1] - learned[1],
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """Our figure for a claim's difference, in the claim's unit, with its 95 % interval; of a paired comparison.

    >>> Measured(2.0, -1.0, 5.0).verdict
    'undecided'
    """

    value: float
    low: float
    high: float
    note: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:  # also where one is NaN
            raise ValueError(f"{self.value} does not lie in its interval ({self.low}, {self.high})")

    @property
    def verdict(self) -> str:
        """``holds`` where the interval lies above 0, ``does not`` where below, ``undecided`` where it spans 0."""
        return "holds" if self.low > 0 else "does not" if self.high < 0 else "undecided"


NOT_TESTED = "not testable here"


def scorecard(measured: Mapping[str, Measured | str]) -> pd.DataFrame:
    """Each claim beside our measurement: claim, paper, ours, verdict, note; one row a claim, in the paper's order.

    ``measured``: claim id -> ``Measured``, or a text that says why it could not be tested. A claim without an entry is
    "not testable here" too, and its note says what it needs. Raises ValueError for an id that is no claim's.

    >>> scorecard({"relay-above-grpo": Measured(9.5, 7.0, 12.1)}).iloc[0][["paper", "ours", "verdict"]].tolist()
    ['+5.46 points', '+9.50 points (+7.00, +12.10)', 'holds']
    """
    known = claims()
    if unknown := sorted(set(measured) - {c.id for c in known}):
        raise ValueError(f"no claim {unknown[0]!r}; there are {', '.join(c.id for c in known)}")
    rows = []
    for claim in known:
        mine = measured.get(claim.id, f"needs {claim.needs}")
        tested = isinstance(mine, Measured)
        ours = f"{_figure(mine.value, claim.unit)} ({mine.low:+.2f}, {mine.high:+.2f})" if tested else "-"
        rows.append(
            {
                "id": claim.id,
                "claim": f"{claim.text}: {claim.difference}",
                "source": claim.source,
                "paper": "above 0" if claim.paper is None else _figure(claim.paper, claim.unit),
                "ours": ours,
                "verdict": mine.verdict if tested else NOT_TESTED,
                "note": mine.note if tested else mine,
            }
        )
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame, *, columns: tuple[str, ...] = ("claim", "paper", "ours", "verdict", "note")) -> str:
    """A frame as a Markdown table; what would break a cell is escaped.

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


def _figure(value: float, unit: str) -> str:
    return f"{value:+.2f} {unit}"
