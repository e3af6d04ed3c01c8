"""A check compares the learner's function with the package's, and with functions that make a likely mistake."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any


class NotYet(AssertionError):
    """The answer is wrong. The message says what the mistake may be, and for which input it shows."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone. The lines of a check tell a learner nothing."""
        return [str(self)]


CHECKS: dict[str, Callable[..., bool]] = {}  # name of an exercise -> its check, which is False while it is open


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

    def __call__(self, answer: Callable, seed: int = 0) -> bool:
        """Check a function; False if it returns None.

        Raises:
            NotYet: The function is wrong for one of the inputs.
        """
        __tracebackhide__ = True
        if not callable(answer):
            raise NotYet(f"it must be a function, not {short(answer)}")
        inputs, results = list(self.inputs(random.Random(seed))), []
        for arguments in inputs:
            copied = deepcopy(arguments)
            try:
                results.append(answer(*copied))
            except Exception as error:
                error.add_note(f"Your function stopped for {self.show(*arguments)}.")
                raise
            if results[-1] is None and len(results) == 1:
                return False
            if _visible(copied) != _visible(arguments):
                raise NotYet("your function changed its input; build a new list instead")
        expected = [self.right(*arguments) for arguments in inputs]
        wrong = [k for k, (a, b) in enumerate(zip(results, expected)) if not self._same(a, b)]
        if not wrong:
            return True
        same = lambda mistake: all(self._same(a, mistake(*arguments)) for a, arguments in zip(results, inputs))  # noqa: E731
        hint = next((text for text, mistake in self.mistakes.items() if same(mistake)), None)
        hint, k = hint or usual(results, expected) or f"It is wrong for {len(wrong)} of {len(inputs)} inputs.", wrong[0]
        raise NotYet(f"{hint}\nFor {self.show(*inputs[k])} it gives {short(results[k])}, not {short(expected[k])}.")

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
        return isinstance(a, type(b)) and a == b


def exercise(
    *, inputs: Callable[[random.Random], Iterator[tuple]], show: Callable[..., str], tolerance: float = 1e-5
) -> Callable[[Callable], Exercise]:
    """Decorator that turns the reference solution of an exercise into its check, under the function's name.

    Args:
        inputs: Gives inputs to try, from a random generator.
        show: One input as text for the learner.
        tolerance: Largest difference of two numbers that count as equal; float32 has seven digits.
    """

    def make(right: Callable) -> Exercise:
        CHECKS[right.__name__] = made = Exercise(right, inputs, show, tolerance)
        return made

    return make


def number(check: Callable[[Any], bool]) -> Callable[..., bool]:
    """Decorator of the check of an exercise that asks for a number, under the function's name."""

    def run(answer: Any, seed: int = 0) -> bool:
        __tracebackhide__ = True
        answer = answer.item() if hasattr(answer, "item") else answer  # numpy and torch
        if not isinstance(answer, (int, float)) or isinstance(answer, bool) or not math.isfinite(answer):
            raise NotYet(f"it is a number, not {short(answer)}")
        return check(answer)

    CHECKS[check.__name__] = run
    return run


def usual(results: list, expected: list) -> str | None:
    """The hint for a mistake that can happen in any exercise, or None.

    >>> usual([[1, 2]], [[1, 2, 3]])
    'It has another number of entries than it should.'
    >>> usual([25.0, 50.0], [0.25, 0.5])
    'It is 100 times as large as it should be, for every input.'
    """
    for result, value in zip(results, expected):
        if result is None:
            return "For some inputs it returns None: does every path end in a return?"
        if _kind(result) != _kind(value):
            return f"It must return a {type(value).__name__}, not a {type(result).__name__}."
        if _kind(value) == "list" and len(list(result)) != len(value):
            return "It has another number of entries than it should."
    pairs = list(zip(_numbers(results), _numbers(expected)))
    if len(pairs) != len(_numbers(expected)) or not (first := next((pair for pair in pairs if pair[1]), None)):
        return None
    factor, offset = first[0] / first[1], first[0] - first[1]
    if _close(pairs, lambda b: -b):
        return "The sign is reversed."
    if _close(pairs, lambda b: 1 - b):
        return "That is the other part: 1 minus what is asked for."
    if math.isclose(factor, 1, rel_tol=1e-3):
        return None
    if factor and _close(pairs, lambda b: factor * b):
        return f"It is {factor:.4g} times as large as it should be, for every input."
    if _close(pairs, lambda b: b + offset):
        return f"It is {abs(offset):.4g} too {'large' if offset > 0 else 'small'} for every input."
    if all(abs(a - b) <= 0.51 and a == round(a) for a, b in pairs):
        return "Do not round."
    return None


def _kind(value: Any) -> str:
    kinds = {"bool": bool, "text": (str, bytes), "mapping": dict, "number": (int, float)}
    name = next((name for name, kind in kinds.items() if isinstance(value, kind)), None)
    several = hasattr(value, "__iter__") and getattr(value, "shape", None) != ()  # an array may be one number
    return name or ("list" if several else "number" if hasattr(value, "__float__") else "other")


def _close(pairs: list[tuple[float, float]], expected: Callable[[float], float]) -> bool:
    return all(math.isclose(a, expected(b), rel_tol=1e-3, abs_tol=1e-6) for a, b in pairs)


def _numbers(value: Any) -> list[float]:
    """All numbers in nested lists, in order."""
    if isinstance(value, (list, tuple)):
        return [n for v in value for n in _numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) and math.isfinite(value) else []


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
