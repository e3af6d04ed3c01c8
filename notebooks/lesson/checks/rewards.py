"""Lesson 04, rewards."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from lesson.checks.function import exercise


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


@exercise(
    inputs=_chances,
    show=lambda alone, helped, rho: f"right alone {alone:.2f}, right with help {helped:.2f}, ρ = {rho:.2f}",
)
def gain_of_calling(alone, helped, rho):
    """The mean simple reward of a call, less that of going alone."""
    return helped - rho - alone


@gain_of_calling.mistake("The simple reward is 1[correct] − ρ: a wrong answer pays for its help, too.")
def wrong_answers_are_free(a, h, rho):
    return h * (1 - rho) - a


@gain_of_calling.mistake("Less what it would have earned alone: a call that changes nothing gains nothing.")
def not_compared(a, h, rho):
    return h - rho


@gain_of_calling.mistake("It is upside down: the reward of calling, less the reward of going alone.")
def reversed_sign(a, h, rho):
    return a - (h - rho)


@gain_of_calling.mistake("Help is not free: ρ is taken off.")
def no_price(a, h, rho):
    return h - a


@exercise(
    inputs=_answers,
    show=lambda teacher, total, rho: f"{teacher} of {total} tokens are the teacher's, and ρ is to be {rho:.4g}",
)
def stray_tokens(teacher, total, rho):
    """The fewest useless tokens that bring ρ down to rho, or below it."""
    return max(0, math.ceil(_stray(teacher, total, rho)))


@stray_tokens.mistake("Tokens are whole, and ρ must not be above the wish: round up.")
def not_rounded(t, n, rho):
    return max(0.0, _stray(t, n, rho))


@stray_tokens.mistake("Rounded down, ρ stays a little above the wish.")
def rounded_down(t, n, rho):
    return max(0, math.floor(_stray(t, n, rho)))


@stray_tokens.mistake("Where ρ is low enough already, none is needed: never less than 0.")
def negative(t, n, rho):
    return math.ceil(_stray(t, n, rho))


@stray_tokens.mistake("That is how long the answer must be in all; take off what is there.")
def total_length(t, n, rho):
    return max(n, math.ceil(_stray(t, 0, rho)))


@stray_tokens.mistake("The total holds the teacher's tokens already.")
def teacher_counted_twice(t, n, rho):
    return max(0, math.ceil(_stray(t, n + t, rho)))


@gain_of_calling.mistake("A price is subtracted, not added.")
def price_added(a, h, rho):
    return h - a + rho


@gain_of_calling.mistake(
    "The price ρ is subtracted, not a factor: each answer that was helped pays it, a wrong one as well."
)
def price_as_a_factor(a, h, rho):
    return (h - a) * (1 - rho)


@gain_of_calling.mistake("A call can cost more than it brings: then the gain is negative.")
def never_negative(a, h, rho):
    return max(0.0, h - rho - a)


@stray_tokens.mistake("Rounded to the nearest number, ρ can stay above the wish: round up.")
def rounded(t, n, rho):
    return max(0, round(_stray(t, n, rho)))


@stray_tokens.mistake("Where the division leaves no remainder, that is one too many.")
def one_more(t, n, rho):
    return max(0, math.floor(_stray(t, n, rho)) + 1)


@stray_tokens.mistake(
    "That is how many teacher tokens are too many. Useless tokens make the total larger: solve for the total."
)
def tokens_too_many(t, n, rho):
    return max(0, math.ceil(t - rho * n))
