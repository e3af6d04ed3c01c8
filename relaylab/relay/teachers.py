"""Teachers: whoever writes the next n tokens of a context. One protocol; the engine room is elsewhere.

A teacher never sees the student's commands. What it sees of a row is a ``Context``: the chat messages and a growing
list of segments, the student's text and its own, which is never rewritten, so that a teacher can keep its cache.

A teacher does not raise when it cannot answer: it returns a ``TeacherOutput`` with an ``error``, for that row alone.
What to do then (carry on, raise, exclude the rollout) is the relay's policy.

``LocalTeacher`` is in ``local_teacher.py``, ``APITeacher`` in ``api_teacher.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

Finish = Literal["length", "stop", "error"]
Message = dict[str, str]  # {"role": ..., "content": ...}


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the completion as the teacher sees it.

    ``ids`` are tokens of the teacher's tokenizer where they are known exactly; where they are None, the teacher
    tokenises ``text`` once and remembers. ``text`` may end inside a character only where ``ids`` are given.
    """

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(slots=True)
class Context:
    """What a teacher sees of one row. ``row`` names the row for caches; ``segments`` only ever grow.

    ``whole_characters``: the answer will be tokenised anew, so it must not end inside a character.
    """

    row: Hashable
    messages: list[Message]
    segments: list[Segment] = field(default_factory=list)
    seed: int = 0
    whole_characters: bool = False

    @property
    def text(self) -> str:
        """The completion so far, without the prompt."""
        return "".join(s.text for s in self.segments)


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What a teacher wrote: at most the n tokens asked for.

    finish: ``length`` (n tokens written, more would come), ``stop`` (the teacher ended the answer; its end token is not
    part of the text), ``error`` (nothing usable; ``error`` says why). ``tokens`` counts the teacher's own tokens.
    ``ids`` are these tokens where the teacher knows them, else None and the text counts. ``latency`` in seconds.
    """

    text: str
    finish: Finish
    ids: tuple[int, ...] | None = None
    tokens: int = 0
    latency: float = 0.0
    error: str | None = None


@runtime_checkable
class Teacher(Protocol):
    """``name`` goes into traces (never a key or a password). ``fingerprint`` is equal for equal tokenizers, or None."""

    name: str
    fingerprint: str | None

    def continue_(self, contexts: Sequence[Context], n: Sequence[int]) -> list[TeacherOutput]:
        """Continue every context by at most its n >= 1 tokens; one continuation a context, in order."""
        ...

    def release(self, rows: Sequence[Hashable]) -> None:
        """These rows will not come back: their caches may go."""
        ...


@runtime_checkable
class PatientTeacher(Teacher, Protocol):
    """A teacher that can be asked and left alone: the student's other rows go on while it writes."""

    def ask(self, contexts: Sequence[Context], n: Sequence[int]) -> None:
        """As ``continue_``, without an answer yet. A released row gets none."""
        ...

    def answers(self, rows: Collection[Hashable]) -> list[tuple[Hashable, TeacherOutput]]:
        """Of these rows, the continuations that have become ready, by row; perhaps none, and soon. Others' rows, of
        another stream over the same teacher, are left alone."""
        ...


class NoTeacher:
    """Nobody to call: a relay with it forbids calls at the sampler (teacher-free decoding, table 4)."""

    name = "none"
    fingerprint = None

    def continue_(self, contexts: Sequence[Context], n: Sequence[int]) -> list[TeacherOutput]:
        return [TeacherOutput("", "error", error="there is no teacher") for _ in contexts]

    def release(self, rows: Sequence[Hashable]) -> None:
        pass


class ScriptedTeacher:
    """Says what a script says; for tests and lessons.

    ``script`` is a list of continuations used in turn, over and over (a text, or a ``TeacherOutput`` for a finish
    reason or an error), or a function ``(context, n) -> text | TeacherOutput``. A text is cut to n characters unless the
    script says otherwise with a ``TeacherOutput``: a script has no tokenizer, so it counts a character as a token.

    >>> ScriptedTeacher(["3901 and more"]).continue_([Context(0, [])], [4])[0].text
    '3901'
    """

    fingerprint = None

    def __init__(
        self,
        script: Sequence[str | TeacherOutput] | Callable[[Context, int], str | TeacherOutput],
        name: str = "script",
    ):
        self.name = name
        self._script = script
        self._next = 0
        self.asked: list[tuple[str, int]] = []  # (completion the teacher saw, n) of every call

    def continue_(self, contexts: Sequence[Context], n: Sequence[int]) -> list[TeacherOutput]:
        return [self._one(context, count) for context, count in zip(contexts, n, strict=True)]

    def _one(self, context: Context, n: int) -> TeacherOutput:
        self.asked.append((context.text, n))
        if callable(self._script):
            said = self._script(context, n)
        else:
            said = self._script[self._next % len(self._script)]
            self._next += 1
        if isinstance(said, TeacherOutput):
            return said
        return TeacherOutput(said[:n], "length", tokens=min(n, len(said)))

    def release(self, rows: Sequence[Hashable]) -> None:
        pass
