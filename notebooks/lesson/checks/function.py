"""A check compares the learner's function with the package's, and with functions that make a likely mistake."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any


class NotYet(AssertionError):
    """The answer is wrong. The message says for which input, and what the mistake may be."""


CHECKS: dict[str, Callable[[Any], bool]] = {}  # name of an exercise -> its check, which is False while it is open


@dataclass(frozen=True, slots=True)
class Exercise:
    """The check of an exercise that asks for a function; ``exercise`` makes it."""

    right: Callable
    inputs: Callable[[random.Random], Iterator[tuple]]
    show: Callable[..., str]
    tolerance: float
    mistakes: dict[str, Callable] = field(default_factory=dict)

    def mistake(self, hint: str) -> Callable[[Callable], Callable]:
        """Decorator of a function that makes a likely mistake; whoever makes the same gets the hint."""

        def add(function: Callable) -> Callable:
            self.mistakes[hint] = function
            return function

        return add

    def __call__(self, answer: Callable) -> bool:
        """Check a function; False if it returns None.

        Raises:
            NotYet: The function is wrong for one of the inputs.
        """
        inputs, results = list(self.inputs(random.Random(0))), []
        for arguments in inputs:
            copied = deepcopy(arguments)
            results.append(answer(*copied))
            if results[-1] is None and len(results) == 1:
                return False
            if _visible(copied) != _visible(arguments):
                raise NotYet("your function changed its input; build a new list instead")
        wrong = [k for k, arguments in enumerate(inputs) if not self._same(results[k], self.right(*arguments))]
        if not wrong:
            return True
        first = inputs[wrong[0]]
        message = f"for {self.show(*first)} it gives {short(results[wrong[0]])}, not {short(self.right(*first))}."
        for hint, mistake in self.mistakes.items():
            if all(self._same(result, mistake(*arguments)) for result, arguments in zip(results, inputs)):
                raise NotYet(f"{message} {hint}")
        raise NotYet(f"{message} It is wrong for {len(wrong)} of {len(inputs)} inputs.")

    def _same(self, a: Any, b: Any) -> bool:
        if isinstance(b, (list, tuple)):
            try:
                a = list(a)
            except TypeError:
                return False
            return len(a) == len(b) and all(map(self._same, a, b))
        if isinstance(b, (int, float)):
            try:
                return math.isclose(a, b, rel_tol=self.tolerance, abs_tol=self.tolerance)
            except TypeError:
                return False
        return a == b


def exercise(
    *, inputs: Callable[[random.Random], Iterator[tuple]], show: Callable[..., str], tolerance: float = 1e-9
) -> Callable[[Callable], Exercise]:
    """Decorator that turns the reference solution of an exercise into its check, under the function's name.

    Args:
        inputs: Gives inputs to try, from a random generator.
        show: One input as text for the learner.
        tolerance: Largest difference of two numbers that count as equal.
    """

    def make(right: Callable) -> Exercise:
        CHECKS[right.__name__] = made = Exercise(right, inputs, show, tolerance)
        return made

    return make


def number(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Decorator of the check of an exercise that asks for a number, under the function's name."""
    CHECKS[check.__name__] = check
    return check


def _visible(value: Any) -> Any:
    """What can be compared of an input; functions cannot."""
    return [_visible(v) for v in value] if isinstance(value, (list, tuple)) else None if callable(value) else value


def short(value: Any) -> str:
    """A result on one line, numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(short, value))}]"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
