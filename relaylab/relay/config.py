"""``RelayConfig``: everything that decides how a relay decodes, besides its models, prompts and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

OnFailure = Literal["carry_on", "raise", "exclude"]
CallEnd = Literal["tokens", "line", "answer"]
ENDS = ("call_end", "fixed_call_tokens")  # both say where a call ends


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The settings of a relay. A cap that is None caps nothing.

    Args:
        temperature: of the student; 0 is greedy.
        top_p: sample the student from the fewest tokens that hold this much probability.
        top_k: sample the student from its ``top_k`` likeliest tokens; 0 is all.
        max_tokens: completion tokens in all, commands included.
        max_calls: answered calls; later ones are refused and the student goes on.
        max_call_tokens: teacher tokens that one call may be granted.
        max_teacher_tokens: delivered teacher tokens in all.
        fixed_call_tokens: grant every call so many tokens, also that of a fork, whatever it asks for (table 5).
        call_end: where a call ends: after the ``tokens`` asked for, or at the end of the ``line`` or the ``answer``.
            A fork's own call ends after the tokens that it asks for.
        write_call: a call rule's calls are written as commands; if False, the teacher takes over silently.
        forbid_calls: no call can be written (teacher-free decoding, table 4), nor the first token of one: with Qwen's
            tokenizer a ``<`` without a space before it.
        on_failure: of the teacher: ``carry_on`` alone, ``raise`` TeacherFailed, or ``exclude`` the sequence.
            A student on a server that fails excludes it in any case, unless this is ``raise``.

    Raises:
        ValueError: for a value out of range.

    >>> RelayConfig(max_tokens=160, max_calls=2).max_call_tokens is None
    True
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 512
    max_calls: int | None = None
    max_call_tokens: int | None = None
    max_teacher_tokens: int | None = None
    fixed_call_tokens: int | None = None
    call_end: CallEnd = "tokens"
    write_call: bool = True
    forbid_calls: bool = False
    on_failure: OnFailure = "carry_on"

    def __post_init__(self) -> None:
        least = {"max_tokens": 1, "max_calls": 0, "max_call_tokens": 0, "max_teacher_tokens": 0, "fixed_call_tokens": 1}
        for name, minimum in least.items():
            value, needed = getattr(self, name), name == "max_tokens"
            if value is None and not needed:
                continue
            if value is None or value < minimum:
                hint = "" if needed else ", or None (left out) for no cap"
                raise ValueError(f"{name} is {value}; it must be at least {minimum}{hint}")
        sampling = self.temperature, self.top_p, self.top_k
        if None in sampling or not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.top_k >= 0):
            values = f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}"
            raise ValueError(f"{values}: temperature and top_k are finite and not negative, and top_p lies in (0, 1]")
        if self.call_end not in ("tokens", "line", "answer") or (self.call_end != "tokens" and self.fixed_call_tokens):
            raise ValueError("call_end is 'tokens', 'line' or 'answer'; fixed_call_tokens needs 'tokens'")
        if self.on_failure not in ("carry_on", "raise", "exclude"):
            raise ValueError(f"on_failure is {self.on_failure!r}; it must be 'carry_on', 'raise' or 'exclude'")


def with_training(trained: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a student's training that are not given. An end of calls that is given replaces a trained one.

    >>> with_training({"max_calls": 2, "call_end": "line"}, {"fixed_call_tokens": 5})
    {'max_calls': 2}
    """
    ends = ENDS if any(given.get(name) is not None for name in ENDS) else ()
    return {name: value for name, value in trained.items() if name not in {*given, *ends}}
