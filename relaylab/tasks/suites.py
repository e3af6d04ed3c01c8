"""The embedded suites: endless, seeded word problems with worked solutions, for models small enough to ship.

In the *easy* ones every step is one that a very small model learns. In the *hard* ones exactly one step is a product of
two two-digit numbers, without intermediate lines. *beyond* has products that no embedded model has the capacity for.
*fact* and *route* have misconceptions: a world's textbook for the student is wrong there (``worlds.py``).

A problem is a function of (suite, split, seed, index, world). The split is decided by a hash of the question's text, so
no question of one split can appear in the other. Arithmetic facts (47*83) are shared between the splits.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

from relaylab.tasks.worlds import DEFAULT_WORLD, WRONG_SHARE, Step, Trap, find_world, write_line
from relaylab.trace import Trace

Split = Literal["train", "test"]
Level = Literal["easy", "medium", "hard", "beyond", "fact", "route"]
AnswerKind = Literal["expression", "number", "letter", "text", "several"]


@dataclass(frozen=True, slots=True)
class Scene:
    """One story. A question takes one phrasing of each of its sentences; the labels name the lines of the solution."""

    sentences: list[list[str]]
    labels: list[str]


# The wording of the suites. ``{name}`` and ``{item}`` are drawn from the lists; ``{a}`` to ``{e}`` are the numbers.
_STORIES = json.loads(Path(__file__).with_name("stories.json").read_text(encoding="utf-8"))
NAMES, ITEMS = _STORIES["names"], _STORIES["items"]
SCENES = {suite: [Scene(**scene) for scene in scenes] for suite, scenes in _STORIES["scenes"].items()}


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its reference answer; ``solution`` and ``steps`` where a worked solution is known.

    kind: how ``grading.grade_problem`` compares answers. unit: what the reference is measured in, where the data say
    it. tolerance: the largest absolute difference of a number that is still right. history: the chat messages before
    the question, a system message first.
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
    history: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", tuple(self.history))  # a file has a list

    def messages(self, suffix: str = "") -> list[dict[str, str]]:
        """The conversation up to the question."""
        return [*self.history, {"role": "user", "content": self.prompt(suffix)}]

    def prompt(self, suffix: str = "") -> str:
        """What a model is asked: the question, and ``suffix``, an instruction, on a line of its own behind it.

        >>> Problem("a", "mine", "2+2?", "4").prompt("Reason step by step.")
        '2+2?\\nReason step by step.'
        """
        return f"{self.question}\n{suffix}" if suffix else self.question


def _step(a: int, sign: str, b: int) -> Step:
    """One operation; the kind of a product or quotient says how many digits its numbers have."""
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
    longer, shorter = sorted((len(str(a)), len(str(b))), reverse=True)
    quotient = "quotient_2x1" if b < 10 else "quotient_4x2"
    kinds = {"+": "sum", "-": "difference", "*": f"product_{longer}x{shorter}", "/": quotient}
    return Step(f"{a}{sign}{b}", result, kinds[sign])


def _tenfold(a: int) -> Step:
    return replace(_step(a, "*", 10), kind="tenfold")


def _chain(value: int, *operations: tuple[str, int]) -> list[Step]:
    """Steps that each go on from the result of the one before."""
    steps: list[Step] = []
    for sign, number in operations:
        steps.append(_step(steps[-1].result if steps else value, sign, number))
    return steps


@dataclass(frozen=True, slots=True)
class Draft:
    """The numbers of a problem."""

    numbers: dict[str, int]  # those that the question names
    steps: list[Step]  # of the right solution
    wrong: list[Step] | None = None  # of the student's textbook, in a suite with misconceptions
    scene: int | None = None  # the number of its scene, if the numbers decide it


def _savings(r: random.Random) -> Draft:
    a, b, c, d, e = r.randint(30, 60), r.randint(11, 39), r.randint(11, 29), r.randint(11, 39), r.randint(11, 29)
    return Draft(dict(a=a, b=b, c=c, d=d, e=e), _chain(a, ("+", b), ("-", c), ("+", d), ("-", e)))


def _shopping(r: random.Random) -> Draft:
    a, b, c, d = (r.randint(3, 9) for _ in range(4))
    e = r.randint(11, 39)
    products = [_step(a, "*", b), _step(c, "*", d)]
    return Draft(dict(a=a, b=b, c=c, d=d, e=e), [*products, *_chain(a * b, ("+", c * d), ("+", e))])


def _sharing(r: random.Random) -> Draft:
    b, q, c = r.randint(3, 9), r.randint(3, 9), r.randint(3, 9)
    total = b * q
    first, e = r.randint(2, total - 2), r.randint(11, 39)
    steps = [_step(first, "+", total - first), *_chain(total, ("/", b), ("*", c), ("+", e))]
    return Draft(dict(a=first, b=total - first, c=b, d=c, e=e), steps)


def _bakery(r: random.Random) -> Draft:
    a, b = r.randint(11, 39), r.randint(11, 39)
    c, e = r.randint(3, 9), r.randint(11, 39)
    return Draft(dict(a=a, b=b, c=c, e=e), _chain(a, ("+", b), ("*", c), ("+", e)))


def _tiles(r: random.Random) -> Draft:
    x, c, d, e = r.randint(12, 99), r.randint(11, 39), r.randint(3, 9), r.randint(4, 9)
    a = r.randint(11, x + c - 11)
    b = x + c - a
    steps = [*_chain(a, ("+", b), ("-", c)), _step(d, "*", e), _step(x, "*", d * e)]
    return Draft(dict(a=a, b=b, c=c, d=d, e=e), steps)


def _convoy(r: random.Random) -> Draft:
    x, q = r.randint(12, 99), r.randint(12, 99)
    a = r.randint(2, x - 2)
    c, e = r.randint(11, 39), r.randint(11, 39)
    steps = [_step(a, "+", x - a), *_chain(x * q, ("/", x), ("+", c), ("+", e))]
    return Draft(dict(a=a, b=x - a, c=c, d=x * q, e=e), steps)


def _depot(r: random.Random) -> Draft:
    a, b, c, d = r.randint(12, 99), r.randint(12, 99), r.randint(11, 39), r.randint(11, 39)
    steps = [_step(a, "*", b), _step(c, "+", d), _step(a * b, "+", c + d), _tenfold(a * b + c + d)]
    return Draft(dict(a=a, b=b, c=c, d=d), steps)


def _harvest(r: random.Random) -> Draft:
    x, y = r.randint(12, 99), r.randint(12, 99)
    a, d = r.randint(2, x - 2), r.randint(11, 39)
    steps = [_step(a, "+", x - a), _step(y + d, "-", d), _step(x, "*", y), _tenfold(x * y)]
    return Draft(dict(a=a, b=x - a, c=y + d, d=d), steps)


def _galaxy(r: random.Random) -> Draft:
    a, b, c, d = r.randint(11, 39), r.randint(11, 39), r.randint(112, 989), r.randint(112, 989)
    return Draft(dict(a=a, b=b, c=c, d=d), [_step(a, "+", b), _step(c, "*", d), _tenfold(c * d)])


# A dozen, a week, a day in hours, a yard in inches: (true number, the student's belief). In the order of the scenes.
FACTS = ((12, 10), (7, 5), (24, 12), (36, 30))


def _measures(r: random.Random) -> Draft:
    scene = r.randrange(len(FACTS))
    a, b, c = r.randint(3, 9), r.randint(2, 9), r.randint(11, 39)
    right, wrong = (_trapped("fact", _step(a, "*", unit), ("-", b), ("+", c)) for unit in FACTS[scene])
    return Draft(dict(a=a, b=b, c=c), right, wrong, scene)


def _plots(r: random.Random) -> Draft:
    scene = r.randrange(4)
    a, b, c, d = r.randint(12, 99), r.randint(12, 99), r.randint(11, 39), r.randint(11, 39)
    routes = (_step(a, "*", a), _step(a, "*", 4)) if scene == 0 else (_step(a, "*", b), _step(a, "+", b))
    right, wrong = (_trapped("route", first, ("+", c), ("+", d)) for first in routes)
    return Draft(dict(a=a, b=b, c=c, d=d), right, wrong, scene)


def _trapped(trap: Trap, first: Step, *then: tuple[str, int]) -> list[Step]:
    return [replace(first, trap=trap), *_chain(first.result, *then)]


PLANS: dict[str, tuple[Level, Callable[[random.Random], Draft]]] = {
    "savings": ("easy", _savings),
    "shopping": ("easy", _shopping),
    "sharing": ("easy", _sharing),
    "bakery": ("medium", _bakery),
    "convoy": ("medium", _convoy),
    "tiles": ("hard", _tiles),
    "depot": ("hard", _depot),
    "harvest": ("hard", _harvest),
    "galaxy": ("beyond", _galaxy),
    "measures": ("fact", _measures),
    "plots": ("route", _plots),
}

ALL_SUITES: tuple[str, ...] = tuple(PLANS)
# Those that the models without a world know. The other two have misconceptions.
SUITES: tuple[str, ...] = tuple(suite for suite, (level, _) in PLANS.items() if level not in ("fact", "route"))
TAUGHT: tuple[str, ...] = tuple(suite for suite, (level, _) in PLANS.items() if level != "beyond")  # the teacher can


def problem_of(trace: Trace) -> Problem:
    """The problem that a trace holds."""
    steps = tuple(Step(**step) for step in trace.problem.get("steps", ()))
    return Problem(**trace.problem | {"id": trace.id, "steps": steps})


def problem_texts(problems: Sequence[Problem]) -> list[list[Any]]:
    """What a configuration holds of problems, so that others are refused: ids, questions, answers and histories."""
    return [[p.id, p.question, p.answer, *p.history] for p in problems]


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


def suite_of(question: str) -> str | None:
    """The suite whose wording a question has; None for any other text.

    >>> suite_of(problem("tiles", 0).question), suite_of("What is 2+2?")
    ('tiles', None)
    """
    return next((suite for suite, pattern in _patterns() if pattern.fullmatch(question.strip())), None)


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    words = {"{name}": "|".join(NAMES), "{item}": "|".join(ITEMS)} | {f"{{{k}}}": r"\d+" for k in "abcde"}
    patterns = []
    for suite, scenes in SCENES.items():
        for scene in scenes:
            text = " ".join(f"(?:{'|'.join(map(re.escape, sentence))})" for sentence in scene.sentences)
            for placeholder, pattern in words.items():
                text = text.replace(re.escape(placeholder), f"(?:{pattern})")
            patterns.append((suite, re.compile(text)))
    return patterns


def problem(
    suite: str, index: int, *, split: Split = "test", seed: int = 0, world: str = DEFAULT_WORLD, textbook: bool = False
) -> Problem:
    """Problem number ``index`` of a suite; the same arguments always give the same problem.

    Args:
        suite: one of ``ALL_SUITES``.
        index: from 0 on.
        split: ``train`` or ``test``.
        seed: of the numbers and words.
        world: how the solution is worded. Question and answer are the same in all worlds.
        textbook: the student's textbook instead: its solution follows the world's misconceptions in most of their
            cases. ``answer`` stays right.

    Raises:
        ValueError: for an unknown suite, split or world.

    >>> p = problem("savings", 0)
    >>> p.id, p.level, len(p.steps), p.answer == str(p.steps[-1].result)
    ('savings-test-0-0', 'easy', 4, True)
    """
    level, draw = PLANS[_known(suite)]
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    # String seeds go through SHA-512 in `random`: the same on every platform and Python version.
    r = random.Random(f"{suite}/{split}/{seed}/{index}")
    while True:
        plan = draw(r)
        scene = r.choice(SCENES[suite]) if plan.scene is None else SCENES[suite][plan.scene]
        words = {"name": r.choice(NAMES), "item": r.choice(ITEMS)} | {k: str(v) for k, v in plan.numbers.items()}
        question = " ".join(r.choice(sentence) for sentence in scene.sentences).format_map(words)
        if split_of(question) == split:
            break
    answer, dials = str(plan.steps[-1].result), find_world(world)
    misread = textbook and plan.wrong and (plan.scene or 0) < dials.misconceptions and r.random() < WRONG_SHARE
    steps = plan.wrong if misread and plan.wrong else plan.steps
    lines = [
        write_line(r, dials, label.format_map(words), step, place, last=place == len(steps) - 1)
        for place, (label, step) in enumerate(zip(scene.labels, steps, strict=True))
    ]
    solution = "\n".join([*lines, f"The answer is \\boxed{{{steps[-1].result}}}."])
    return Problem(f"{suite}-{split}-{seed}-{index}", suite, question, answer, level, solution, tuple(steps))


def problems(suite: str, count: int, *, start: int = 0, **options: Any) -> list[Problem]:
    """``count`` problems of a suite, from number ``start`` on; ``options`` are those of ``problem``."""
    return [problem(suite, i, **options) for i in range(start, start + count)]


def mixture(*, split: Split = "train", suites: Sequence[str] = SUITES, **options: Any) -> Iterator[Problem]:
    """An endless stream that takes the suites in turn; ``options`` are those of ``problem``."""
    for index in count():
        for suite in suites:
            yield problem(suite, index, split=split, **options)
