"""What a check is: a function of the learner's held against the package's, and against the mistakes of others."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


class NotYet(AssertionError):
    """The answer is wrong; its text says where, and what may be the matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The check of a function: what is ``right``, inputs to try, and of each likely mistake its hint and its function.

    tolerance: of numbers. show: an input, for the learner to read.
    """

    right: Callable
    inputs: Callable[[random.Random], Iterator[tuple]]
    mistakes: Mapping[str, Callable]
    show: Callable[..., str]
    tolerance: float = 1e-9

    def __call__(self, answer: Callable) -> bool:
        """Whether it is right; False where it returns None. Raises NotYet where it is wrong."""
        inputs, found = list(self.inputs(random.Random(0))), []
        for given in inputs:
            handed = deepcopy(given)
            found.append(answer(*handed))
            if found[-1] is None and len(found) == 1:
                return False
            if _visible(handed) != _visible(given):
                raise NotYet("your function changed what it was given; build a new list instead")
        wrong = [k for k, given in enumerate(inputs) if not self._same(found[k], self.right(*given))]
        if not wrong:
            return True
        first = inputs[wrong[0]]
        said = f"for {self.show(*first)} it gives {short(found[wrong[0]])}, not {short(self.right(*first))}."
        for hint, mistake in self.mistakes.items():
            if all(self._same(got, mistake(*given)) for got, given in zip(found, inputs)):
                raise NotYet(f"{said} {hint}")
        raise NotYet(f"{said} It is wrong for {len(wrong)} of {len(inputs)} inputs.")

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


def _visible(value: Any) -> Any:
    """What of an input can be compared: functions are what they were."""
    return [_visible(v) for v in value] if isinstance(value, (list, tuple)) else None if callable(value) else value


def short(value: Any) -> str:
    """A result in a line: numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(short, value))}]"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
