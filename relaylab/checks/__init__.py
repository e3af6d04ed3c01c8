"""Checks of the lessons' exercises: they take the learner's function and hint at the likely mistake.

    from relaylab.checks import check
    check("my_rewards")(my_rewards)

In the manner of ARENA's ``tests.py``. A function is run on the lesson's own inputs and on random ones, beside the
package's. Where it differs, it is compared with functions that make the mistakes others have made: the one that says
the same as the learner's gives the hint. An exercise that is still open is said to be open and is no error, so that a
notebook runs from top to bottom. Checks teach; they are no exam, and a wrong function can be right on every input here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relaylab.checks import lesson01, lesson02, lesson03, lesson04, lesson05, lesson06, lesson07, lesson08, lesson09
from relaylab.checks.function import Function, NotYet

__all__ = ["CHECKS", "Function", "NotYet", "check"]

# By the name of the learner's function or number: what returns whether it is there, and raises NotYet if it is wrong.
CHECKS: dict[str, Callable[[Any], bool]] = {
    name: found
    for lesson in (lesson01, lesson02, lesson03, lesson04, lesson05, lesson06, lesson07, lesson08, lesson09)
    for name, found in lesson.CHECKS.items()
}


def check(name: str) -> Callable[[Any], str]:
    """The check of an exercise: call it with the learner's function or number.

    >>> from relaylab.training.rewards import advantages
    >>> check("group_advantages")(lambda groups: [advantages(g) for g in groups])
    'group_advantages is right.'
    >>> check("largest_k")(None)
    'largest_k is open: it is None, or returns None.'
    >>> check("largest_rho")(0.9)
    Traceback (most recent call last):
    relaylab.checks.function.NotYet: largest_rho: at ρ = 0.89 it is negative already: is the bonus of 1.5 in your mean?

    The check raises ``NotYet`` for a wrong answer, and lets the learner's own errors through. ``check`` raises
    ValueError for an exercise that it does not know.
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
