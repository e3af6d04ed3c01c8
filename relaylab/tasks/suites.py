"""The embedded suites: endless, seeded word problems with worked solutions, for models small enough to ship.

Nine suites, graded by the arithmetic they need. In the *easy* ones every step is one that a very small model learns; in
the *hard* ones exactly one step is a product of two two-digit numbers, written down without intermediate lines, while
everything around it stays easy; *beyond* asks for products that neither embedded model has
the capacity for. All suites are in the training data of both models in the same proportions: what a model cannot do, it
could not learn.

A problem is a function of (suite, split, seed, index). The split is decided by a hash of the question's text, so no
question of one split can appear in the other. Arithmetic facts (47*83) are shared between the splits; questions are
not.

This module does not grade (``grading.py``) and does not know any model.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from relaylab.tasks.stories import ITEMS, NAMES, SCENES, Scene

Split = Literal["train", "test"]
Level = Literal["easy", "medium", "hard", "beyond"]
AnswerKind = Literal["expression", "number", "letter", "text", "several"]

HARD_KINDS = frozenset({"product_2x2", "product_3x3"})


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a worked solution: ``expression`` = ``result``; ``kind`` names the operation."""

    expression: str
    result: int
    kind: str

    @property
    def hard(self) -> bool:
        """Whether the step is one of those that the student is not meant to manage alone."""
        return self.kind in HARD_KINDS


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its reference answer; ``solution`` and ``steps`` where a worked solution is known.

    kind: how ``answers.grade_problem`` compares answers. unit: what the reference is measured in, where the data say
    it. tolerance: the largest absolute difference of a number that is still right.
    """

    id: str
    suite: str
    question: str
    answer: str
    level: str = ""
    solution: str = ""
    steps: tuple[Step, ...] = ()
    kind: AnswerKind = "expression"
    unit: str = ""
    tolerance: float = 0.0

    def prompt(self, suffix: str = "") -> str:
        """What a model is asked: the question, and ``suffix``, an instruction, on a line of its own behind it.

        >>> Problem("a", "mine", "2+2?", "4").prompt("Reason step by step.")
        '2+2?\\nReason step by step.'
        """
        return f"{self.question}\n{suffix}" if suffix else self.question


def _add(a: int, b: int) -> Step:
    return Step(f"{a}+{b}", a + b, "sum")


def _sub(a: int, b: int) -> Step:
    return Step(f"{a}-{b}", a - b, "difference")


def _mul(a: int, b: int) -> Step:
    digits = sorted((len(str(a)), len(str(b))), reverse=True)
    kind = {(1, 1): "product_1x1", (2, 1): "product_2x1", (2, 2): "product_2x2", (3, 3): "product_3x3"}[tuple(digits)]
    return Step(f"{a}*{b}", a * b, kind)


def _div(a: int, b: int) -> Step:
    return Step(f"{a}/{b}", a // b, "quotient_2x1" if b < 10 else "quotient_4x2")


def _tenfold(a: int) -> Step:
    return Step(f"{a}*10", a * 10, "tenfold")


# Each plan draws the numbers of a problem and returns (numbers named in the question, steps of the solution).
Plan = tuple[dict[str, int], list[Step]]


def _savings(r: random.Random) -> Plan:
    a, b, c, d, e = r.randint(30, 60), r.randint(11, 39), r.randint(11, 29), r.randint(11, 39), r.randint(11, 29)
    s1 = _add(a, b)
    s2 = _sub(s1.result, c)
    s3 = _add(s2.result, d)
    s4 = _sub(s3.result, e)
    return dict(a=a, b=b, c=c, d=d, e=e), [s1, s2, s3, s4]


def _shopping(r: random.Random) -> Plan:
    a, b, c, d = (r.randint(3, 9) for _ in range(4))
    e = r.randint(11, 39)
    s1, s2 = _mul(a, b), _mul(c, d)
    s3 = _add(s1.result, s2.result)
    s4 = _add(s3.result, e)
    return dict(a=a, b=b, c=c, d=d, e=e), [s1, s2, s3, s4]


def _sharing(r: random.Random) -> Plan:
    b, q, c = r.randint(3, 9), r.randint(3, 9), r.randint(3, 9)
    total = b * q
    first = r.randint(2, total - 2)
    s1 = _add(first, total - first)
    s2 = _div(total, b)
    s3 = _mul(q, c)
    e = r.randint(11, 39)
    s4 = _add(s3.result, e)
    return dict(a=first, b=total - first, c=b, d=c, e=e), [s1, s2, s3, s4]


def _bakery(r: random.Random) -> Plan:
    a, b = r.randint(11, 39), r.randint(11, 39)
    c, e = r.randint(3, 9), r.randint(11, 39)
    s1 = _add(a, b)
    s2 = _mul(s1.result, c)
    s3 = _add(s2.result, e)
    return dict(a=a, b=b, c=c, e=e), [s1, s2, s3]


def _tiles(r: random.Random) -> Plan:
    x, c, d, e = r.randint(12, 99), r.randint(11, 39), r.randint(3, 9), r.randint(4, 9)
    a = r.randint(11, x + c - 11)
    s1 = _add(a, x + c - a)
    s2 = _sub(s1.result, c)
    s3 = _mul(d, e)
    return dict(a=a, b=x + c - a, c=c, d=d, e=e), [s1, s2, s3, _mul(x, s3.result)]


def _convoy(r: random.Random) -> Plan:
    x, q = r.randint(12, 99), r.randint(12, 99)
    a = r.randint(2, x - 2)
    c, e = r.randint(11, 39), r.randint(11, 39)
    s3 = _add(q, c)
    return dict(a=a, b=x - a, c=c, d=x * q, e=e), [_add(a, x - a), _div(x * q, x), s3, _add(s3.result, e)]


def _depot(r: random.Random) -> Plan:
    a, b, c, d = r.randint(12, 99), r.randint(12, 99), r.randint(11, 39), r.randint(11, 39)
    s1, s2 = _mul(a, b), _add(c, d)
    s3 = _add(s1.result, s2.result)
    return dict(a=a, b=b, c=c, d=d), [s1, s2, s3, _tenfold(s3.result)]


def _harvest(r: random.Random) -> Plan:
    x, y = r.randint(12, 99), r.randint(12, 99)
    a, d = r.randint(2, x - 2), r.randint(11, 39)
    p = _mul(x, y)
    return dict(a=a, b=x - a, c=y + d, d=d), [_add(a, x - a), _sub(y + d, d), p, _tenfold(p.result)]


def _galaxy(r: random.Random) -> Plan:
    a, b, c, d = r.randint(11, 39), r.randint(11, 39), r.randint(112, 989), r.randint(112, 989)
    s1 = _add(a, b)
    p = _mul(c, d)
    return dict(a=a, b=b, c=c, d=d), [s1, p, _tenfold(p.result)]


PLANS = {
    "savings": ("easy", _savings),
    "shopping": ("easy", _shopping),
    "sharing": ("easy", _sharing),
    "bakery": ("medium", _bakery),
    "convoy": ("medium", _convoy),
    "tiles": ("hard", _tiles),
    "depot": ("hard", _depot),
    "harvest": ("hard", _harvest),
    "galaxy": ("beyond", _galaxy),
}

SUITES: tuple[str, ...] = tuple(PLANS)


def level_of(suite: str) -> Level:
    """The level of a suite: ``easy``, ``medium``, ``hard`` or ``beyond``."""
    return PLANS[_known(suite)][0]


def _known(suite: str) -> str:
    if suite not in PLANS:
        raise ValueError(f"unknown suite {suite!r}; the embedded suites are {', '.join(PLANS)}")
    return suite


def split_of(question: str) -> Split:
    """The split a question belongs to, by a hash of its text: about one in eight is a test question."""
    return "test" if hashlib.blake2b(question.encode(), digest_size=1).digest()[0] < 32 else "train"


def problem(suite: str, index: int, *, split: Split = "test", seed: int = 0) -> Problem:
    """Problem number ``index`` of a suite; the same arguments always give the same problem.

    >>> p = problem("savings", 0)
    >>> p.id, p.level, len(p.steps), p.answer == str(p.steps[-1].result)
    ('savings-test-0-0', 'easy', 4, True)
    """
    level, plan = PLANS[_known(suite)]
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    # String seeds go through SHA-512 in `random`: the same on every platform and Python version.
    r = random.Random(f"{suite}/{split}/{seed}/{index}")
    while True:
        numbers, steps = plan(r)
        question, solution = _tell(r, r.choice(SCENES[suite]), numbers, steps)
        if split_of(question) == split:
            break
    answer = str(steps[-1].result)
    return Problem(f"{suite}-{split}-{seed}-{index}", suite, question, answer, level, solution, tuple(steps))


def problems(suite: str, count: int, *, split: Split = "test", seed: int = 0, start: int = 0) -> list[Problem]:
    """``count`` problems of a suite, from number ``start`` on."""
    return [problem(suite, i, split=split, seed=seed) for i in range(start, start + count)]


def mixture(*, split: Split = "train", seed: int = 0, suites: tuple[str, ...] = SUITES) -> Iterator[Problem]:
    """An endless stream that takes the suites in turn."""
    index = 0
    while True:
        for suite in suites:
            yield problem(suite, index, split=split, seed=seed)
        index += 1


def _tell(r: random.Random, scene: Scene, numbers: dict[str, int], steps: list[Step]) -> tuple[str, str]:
    """The question and the worked solution of one scene."""
    words = {"name": r.choice(NAMES), "item": r.choice(ITEMS)} | {k: str(v) for k, v in numbers.items()}
    question = " ".join(r.choice(sentence) for sentence in scene.sentences).format_map(words)
    lines = [
        f"{label.format_map(words)}: {step.expression}={step.result}."
        for label, step in zip(scene.labels, steps, strict=True)
    ]
    return question, "\n".join([*lines, f"The answer is \\boxed{{{steps[-1].result}}}."])
