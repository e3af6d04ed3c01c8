"""Checks of the exercises: they run the learner's function or number and hint at the likely mistake.

A function runs on the lesson's own inputs and on random ones. If it differs from the package's, it is compared with
functions that make common mistakes; the one with the same results gives the hint. An exercise that is still open is
no error, so a notebook runs from top to bottom. With ``RELAYLAB_STRICT=1`` it is one: for autograders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lesson.checks import function
from lesson.checks.function import Exercise, NotYet
from relaylab.settings import read_yaml

__all__ = ["CHECKS", "EXERCISES", "Exercise", "NotYet", "check"]

_TABLE = Path(__file__).parents[2] / "exercises.yaml"
EXERCISES: dict[str, dict[str, Any]] = {  # name -> lesson, points, difficulty, minutes
    name: {"lesson": lesson, **facts}
    for lesson, exercises in read_yaml(_TABLE.read_text(encoding="utf-8"), str(_TABLE)).items()
    for name, facts in exercises.items()
}


_MODULES = {  # of the checks: one per topic; those of the capstone are in no learner's copy
    "solutions.capstone": "capstone",
    "warmup": "01 02", "grpo": "03", "rewards": "04", "data_filter": "05", "teacher_free": "06 07 08",
    "teacher_swap": "09 10", "placement": "11 12 13", "cost": "14 15", "qwen3": "16 17",
}  # fmt: skip


class _Checks(Mapping[str, Callable[..., bool]]):
    """The checks by name. The module of a topic is imported when one of its checks is used."""

    def __getitem__(self, name: str) -> Callable[..., bool]:
        lesson = EXERCISES[name]["lesson"]
        module = next(m for m, lessons in _MODULES.items() if lesson in lessons)
        import_module(module if "." in module else f"lesson.checks.{module}")
        return function.CHECKS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(EXERCISES)

    def __len__(self) -> int:
        return len(EXERCISES)


CHECKS = _Checks()


def check(name: str, *, seed: int = 0, strict: bool | None = None) -> Callable[[Any], str]:
    """The check of an exercise, to be called with the learner's function or number.

    Args:
        name: The exercise.
        seed: Of the random inputs.
        strict: Whether an open exercise is an error. Default: if ``RELAYLAB_STRICT`` is set.

    Raises:
        ValueError: There is no such exercise.
        NotYet: The answer is wrong, or open although ``strict`` (raised by the check).

    >>> from relaylab.training.rewards import advantages
    >>> check("group_advantages")(lambda groups: [advantages(g) for g in groups])
    'group_advantages is right.'
    >>> check("largest_k", strict=False)(None)
    'largest_k is open: it is None, or returns None.'
    >>> check("largest_rho")(0.9)
    Traceback (most recent call last):
    lesson.checks.function.NotYet: largest_rho: at ρ = 0.89 it is negative already: is the bonus of 1.5 in your mean?
    """
    if name not in CHECKS:
        raise ValueError(f"no exercise {name!r}; there are {', '.join(CHECKS)}")

    def run(answer: Any) -> str:
        __tracebackhide__ = True  # an error of the learner's function shows the learner's lines alone
        try:
            done = answer is not None and CHECKS[name](answer, seed)
        except NotYet as hint:
            raise NotYet(f"{name}: {hint}") from None
        if done:
            return f"{name} is right."
        text = f"{name} is open: it is None, or returns None."
        if bool(os.environ.get("RELAYLAB_STRICT")) if strict is None else strict:
            raise NotYet(text)
        return text

    return run
