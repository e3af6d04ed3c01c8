"""The worlds of the embedded testbed: two dials, and how a solution is worded in each.

Most uncertain tokens of real models are harmless, and some of their errors are confident. Each has a dial:

- ``choices`` (h, harmless uncertainty): how many places of a solution's line have several right wordings.
- ``misconceptions`` (c, confident errors): in how many scenes of a suite the student's textbook is wrong. It takes a
  dozen as 10, or the area of a square as four times its side. The teacher's textbook is right.

Questions and answers are the same in all worlds.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

OPENINGS = (
    ("First", "At first", "Now", "To start"),
    ("Then", "Next", "Now", "So", "Here", "Also", "After that", "In turn"),
    ("So", "At last", "In the end"),
)  # of the first line, of those between, of the last
# Between label and expression: for a singular label, for a plural one, weight.
JOINTS = ((":", ":", 4), (" is", " are", 3), (" comes to", " come to", 2), (" makes", " make", 1))
CLOSINGS = ((".", 5), (" now.", 2), (" in all.", 2), (" then.", 1))  # with weights
SINGULAR = re.compile(r"the (cost|number|part|whole|first|weight|area|larger)\b", re.IGNORECASE)

Trap = Literal["", "fact", "route"]
HARD_KINDS = frozenset({"product_2x2", "product_3x3"})


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a worked solution: ``expression`` = ``result``.

    ``trap`` is the misconception that the student's textbook may have here: of a ``fact``, which practice alone
    repairs, or of a ``route``, whose right way leads through a step that the student cannot do.
    """

    expression: str
    result: int
    kind: str  # the operation, such as ``sum`` or ``product_2x2``
    trap: Trap = ""

    @property
    def hard(self) -> bool:
        """Whether the step is one of those that the student is not meant to manage alone."""
        return self.kind in HARD_KINDS


@dataclass(frozen=True, slots=True)
class World:
    """One setting of the dials."""

    choices: int  # kinds of choice points of a line, 0 to 3: opening, joint, closing
    misconceptions: int  # wrong scenes of each suite that has any, 0 to 4
    formal: bool = False  # teacher-large's style: numbered lines, and spaces around operators


WORLDS = {
    "plain": World(0, 0),
    "wordy": World(3, 0),
    "stubborn": World(0, 4),
    "lifelike": World(3, 4),
    "formal": World(0, 0, formal=True),
}
DEFAULT_WORLD = "plain"  # of the models whose names have no world
# Of the cases of a misconception, how many the student's textbook has wrong. The rest lets RL alone repair a fact.
WRONG_SHARE = 0.93


def find_world(name: str) -> World:
    """The world of a name: one of ``WORLDS``, or ``h2c4`` for 2 kinds of choices and 4 misconceptions.

    Raises:
        ValueError: for any other name.

    >>> find_world("h2c1")
    World(choices=2, misconceptions=1, formal=False)
    """
    if name in WORLDS:
        return WORLDS[name]
    if match := re.fullmatch(r"h([0-3])c([0-4])", name):
        return World(int(match[1]), int(match[2]))
    raise ValueError(f"unknown world {name!r}; there are {', '.join(WORLDS)}, and h0c0 to h3c4")


def write_line(r: random.Random, world: World, label: str, step: Step, place: int, *, last: bool) -> str:
    """One line of a worked solution.

    Args:
        r: draws at the choice points.
        world: of the wording.
        label: what the line computes.
        step: its expression and result.
        place: number of the line, from 0 on.
        last: whether it is the last line before the answer.

    >>> line = ("The tiles of a row", Step("23+45", 68, "sum"), 0)
    >>> write_line(random.Random(0), WORLDS["plain"], *line, last=False)
    'The tiles of a row: 23+45=68.'
    >>> write_line(random.Random(1), WORLDS["lifelike"], *line, last=False)
    'At first, the tiles of a row are 23+45=68 in all.'
    """
    if world.formal:
        spaced = re.sub(r"([+\-*/])", r" \1 ", step.expression)
        return f"({place + 1}) {label} -> {spaced} = {step.result}."
    opening, joint, closing = "", ":", "."
    if world.choices >= 1:
        opening = f"{r.choice(OPENINGS[2 if last else min(place, 1)])}, "
        label = label[0].lower() + label[1:]
    if world.choices >= 2:
        singular, plural, _ = r.choices(JOINTS, [weight for _, _, weight in JOINTS])[0]
        joint = singular if SINGULAR.match(label) else plural
    if world.choices >= 3:
        closing, _ = r.choices(CLOSINGS, [weight for _, weight in CLOSINGS])[0]
    return f"{opening}{label}{joint} {step.expression}={step.result}{closing}"
