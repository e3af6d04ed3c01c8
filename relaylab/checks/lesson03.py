"""Lesson 03, reward ablations."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from relaylab.checks.function import Function


def _chances(rng: random.Random) -> Iterator[tuple[float, float, float]]:
    yield 0.0, 0.75, 0.25
    yield 0.9, 1.0, 0.25
    yield 0.0, 0.0, 0.5
    for _ in range(20):
        yield rng.random(), rng.random(), rng.random()


def _answers(rng: random.Random) -> Iterator[tuple[int, int, float]]:
    yield 20, 80, 0.1
    yield 1, 75, 0.01
    yield 7, 40, 0.3
    for _ in range(30):
        teacher = rng.randint(1, 60)
        rho = teacher / (rng.randint(teacher, 400) + 0.5)  # far from whole numbers, where rounding is a matter of luck
        yield teacher, teacher + rng.randint(0, 80), rho


def _stray(teacher: int, total: int, rho: float) -> float:
    """Tokens that are missing to a length of teacher / rho: no whole number yet, and below 0 where none is missing."""
    return teacher / rho - total


CHECKS = {
    # Lesson 03: gain_of_calling(alone, helped, rho) -> the mean simple reward of a call, less that of going alone.
    "gain_of_calling": Function(
        right=lambda alone, helped, rho: helped - rho - alone,
        inputs=_chances,
        mistakes={
            "The simple reward is 1[correct] − ρ: a wrong answer pays for its help, too.": lambda a, h, rho: (
                h * (1 - rho) - a
            ),
            "Less what it would have earned alone: a call that changes nothing gains nothing.": lambda a, h, rho: (
                h - rho
            ),
            "It is upside down: the reward of calling, less the reward of going alone.": lambda a, h, rho: (
                a - (h - rho)
            ),
            "Help is not free: ρ is taken off.": lambda a, h, rho: h - a,
        },
        show=lambda alone, helped, rho: f"right alone {alone:.2f}, right with help {helped:.2f}, ρ = {rho:.2f}",
    ),
    # Lesson 03: stray_tokens(teacher, total, rho) -> the fewest useless tokens that bring ρ down to rho, or below it.
    "stray_tokens": Function(
        right=lambda teacher, total, rho: max(0, math.ceil(_stray(teacher, total, rho))),
        inputs=_answers,
        mistakes={
            "Tokens are whole, and ρ must not be above the wish: round up.": lambda t, n, rho: max(
                0.0, _stray(t, n, rho)
            ),
            "Rounded down, ρ stays a little above the wish.": lambda t, n, rho: max(0, math.floor(_stray(t, n, rho))),
            "Where ρ is low enough already, none is needed: never less than 0.": lambda t, n, rho: math.ceil(
                _stray(t, n, rho)
            ),
            "That is how long the answer must be in all; take off what is there.": lambda t, n, rho: max(
                n, math.ceil(_stray(t, 0, rho))
            ),
            "The total holds the teacher's tokens already.": lambda t, n, rho: max(0, math.ceil(_stray(t, n + t, rho))),
        },
        show=lambda teacher, total, rho: f"{teacher} of {total} tokens are the teacher's, and ρ is to be {rho:.4g}",
    ),
}
