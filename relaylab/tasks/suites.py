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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Draft:
    """The numbers of a problem, and how its solution calculates with them: see ``_steps``."""

    numbers: dict[str, int]  # those that the question names
    plan: str
    wrong: str | None = None  # that of the student's textbook, in a suite with misconceptions
    scene: int | None = None  # the number of its scene, if the numbers decide it


def _steps(plan: str, numbers: dict[str, int], trap: Trap) -> tuple[Step, ...]:
    """The lines of a solution; the first has the trap.

    In ``plan`` a letter is a number of the question, ``#`` the result of the line before, ``#2`` that of the second
    line. The kind of a product or quotient says how many digits its numbers have.
    """
    steps: list[Step] = []

    def value(name: str) -> int:
        if name.startswith("#"):
            return steps[int(name[1:] or 0) - 1].result
        return numbers[name] if name in numbers else int(name)

    for line in plan.split():
        first, sign, second = re.split(r"([-+*/])", line)
        a, b = value(first), value(second)
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        longer, shorter = sorted((len(str(a)), len(str(b))), reverse=True)
        product = "tenfold" if line == "#*10" else f"product_{longer}x{shorter}"
        quotient = "quotient_2x1" if b < 10 else "quotient_4x2"
        kind = {"+": "sum", "-": "difference", "*": product, "/": quotient}[sign]
        steps.append(Step(f"{a}{sign}{b}", result, kind, "" if steps else trap))
    return tuple(steps)


def _drawn(r: random.Random, **bounds: tuple[int, int]) -> dict[str, int]:
    return {name: r.randint(*bound) for name, bound in bounds.items()}


DIGIT, TEENS, UP, ANY = (3, 9), (11, 29), (11, 39), (12, 99)  # bounds of numbers


def _savings(r: random.Random) -> Draft:
    return Draft(_drawn(r, a=(30, 60), b=UP, c=TEENS, d=UP, e=TEENS), "a+b #-c #+d #-e")


def _shopping(r: random.Random) -> Draft:
    return Draft(_drawn(r, a=DIGIT, b=DIGIT, c=DIGIT, d=DIGIT, e=UP), "a*b c*d #1+#2 #+e")


def _sharing(r: random.Random) -> Draft:
    people, each, parts = r.randint(*DIGIT), r.randint(*DIGIT), r.randint(*DIGIT)
    a = r.randint(2, people * each - 2)
    return Draft(dict(a=a, b=people * each - a, c=people, d=parts) | _drawn(r, e=UP), "a+b #/c #*d #+e")


def _bakery(r: random.Random) -> Draft:
    return Draft(_drawn(r, a=UP, b=UP, c=DIGIT, e=UP), "a+b #*c #+e")


def _tiles(r: random.Random) -> Draft:
    left, numbers = r.randint(*ANY), _drawn(r, c=UP, d=DIGIT, e=(4, 9))
    whole = left + numbers["c"]
    a = r.randint(11, whole - 11)
    return Draft(numbers | dict(a=a, b=whole - a), "a+b #-c d*e #2*#3")


def _convoy(r: random.Random) -> Draft:
    trucks, each = r.randint(*ANY), r.randint(*ANY)
    a = r.randint(2, trucks - 2)
    return Draft(dict(a=a, b=trucks - a, d=trucks * each) | _drawn(r, c=UP, e=UP), "a+b d/# #+c #+e")


def _depot(r: random.Random) -> Draft:
    return Draft(_drawn(r, a=ANY, b=ANY, c=UP, d=UP), "a*b c+d #1+#2 #*10")


def _harvest(r: random.Random) -> Draft:
    trees, each = r.randint(*ANY), r.randint(*ANY)
    a = r.randint(2, trees - 2)
    d = r.randint(*UP)
    return Draft(dict(a=a, b=trees - a, c=each + d, d=d), "a+b c-d #1*#2 #*10")


def _galaxy(r: random.Random) -> Draft:
    return Draft(_drawn(r, a=UP, b=UP, c=(112, 989), d=(112, 989)), "a+b c*d #*10")


# A dozen, a week, a day in hours, a yard in inches: (true number, the student's belief). In the order of the scenes.
FACTS = ((12, 10), (7, 5), (24, 12), (36, 30))


def _measures(r: random.Random) -> Draft:
    scene = r.randrange(len(FACTS))
    right, wrong = (f"a*{unit} #-b #+c" for unit in FACTS[scene])
    return Draft(_drawn(r, a=DIGIT, b=(2, 9), c=UP), right, wrong, scene)


def _plots(r: random.Random) -> Draft:
    scene = r.randrange(4)
    right, wrong = ("a*a", "a*4") if scene == 0 else ("a*b", "a+b")
    return Draft(_drawn(r, a=ANY, b=ANY, c=UP, d=UP), f"{right} #+c #+d", f"{wrong} #+c #+d", scene)


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
    """What a configuration holds of problems, so that others are refused: what is asked, and how answers are graded."""
    usual = ["expression", "", 0.0]  # most problems' way; it is left out
    ways = ([p.kind, p.unit, p.tolerance] for p in problems)
    return [[p.id, p.question, p.answer, *p.history, *(way if way != usual else [])] for p, way in zip(problems, ways)]


def level_of(suite: str) -> Level:
    """The level of a suite: ``easy``, ``medium``, ``hard``, ``beyond``, ``fact`` or ``route``."""
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
        draft = draw(r)
        scene = r.choice(SCENES[suite]) if draft.scene is None else SCENES[suite][draft.scene]
        words = {"name": r.choice(NAMES), "item": r.choice(ITEMS)} | {k: str(v) for k, v in draft.numbers.items()}
        question = " ".join(r.choice(sentence) for sentence in scene.sentences).format_map(words)
        if split_of(question) == split:
            break
    trap: Trap = level if level in ("fact", "route") else ""
    steps, dials = _steps(draft.plan, draft.numbers, trap), find_world(world)
    answer = str(steps[-1].result)
    if textbook and draft.wrong and (draft.scene or 0) < dials.misconceptions and r.random() < WRONG_SHARE:
        steps = _steps(draft.wrong, draft.numbers, trap)
    lines = [
        write_line(r, dials, label.format_map(words), step, place, last=place == len(steps) - 1)
        for place, (label, step) in enumerate(zip(scene.labels, steps, strict=True))
    ]
    solution = "\n".join([*lines, f"The answer is \\boxed{{{steps[-1].result}}}."])
    return Problem(f"{suite}-{split}-{seed}-{index}", suite, question, answer, level, solution, steps)


def problems(suite: str, count: int, *, start: int = 0, **options: Any) -> list[Problem]:
    """``count`` problems of a suite, from number ``start`` on; ``options`` are those of ``problem``."""
    return [problem(suite, i, **options) for i in range(start, start + count)]


def mixture(*, split: Split = "train", suites: Sequence[str] = SUITES, **options: Any) -> Iterator[Problem]:
    """An endless stream that takes the suites in turn; ``options`` are those of ``problem``."""
    for index in count():
        for suite in suites:
            yield problem(suite, index, split=split, **options)
