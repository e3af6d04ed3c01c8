"""Checks of the exercises: they run the learner's function or number and hint at the likely mistake.

A function runs on the lesson's own inputs and on random ones. If it differs from the package's, it is compared with
functions that make common mistakes; the one with the same results gives the hint. An exercise that is still open is
no error, so a notebook runs from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lesson.checks import lesson01, lesson02, lesson03, lesson04, lesson05, lesson06, lesson07, lesson08, lesson09
from lesson.checks.function import CHECKS, Exercise, NotYet

LESSONS = (lesson01, lesson02, lesson03, lesson04, lesson05, lesson06, lesson07, lesson08, lesson09)  # fill CHECKS

__all__ = ["CHECKS", "Exercise", "NotYet", "check"]


def check(name: str) -> Callable[[Any], str]:
    """The check of an exercise, to be called with the learner's function or number.

    Raises:
        ValueError: There is no such exercise.
        NotYet: The answer is wrong (raised by the check).

    >>> from relaylab.training.rewards import advantages
    >>> check("group_advantages")(lambda groups: [advantages(g) for g in groups])
    'group_advantages is right.'
    >>> check("largest_k")(None)
    'largest_k is open: it is None, or returns None.'
    >>> check("largest_rho")(0.9)
    Traceback (most recent call last):
    lesson.checks.function.NotYet: largest_rho: at ρ = 0.89 it is negative already: is the bonus of 1.5 in your mean?
    """
    if name not in CHECKS:
        raise ValueError(f"no exercise {name!r}; there are {', '.join(CHECKS)}")

    def run(answer: Any) -> str:
        try:
            done = answer is not None and CHECKS[name](answer)
        except NotYet as hint:
            raise NotYet(f"{name}: {hint}") from None
        return f"{name} is right." if done else f"{name} is open: it is None, or returns None."

    return run
