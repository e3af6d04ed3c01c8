"""Teachers: whoever writes the next n tokens of an answer. One protocol for local, API, scripted and no teacher.

A teacher never sees the student's commands. It gets a ``TeacherView``: the chat messages and a growing list of
segments, the student's text and its own. Segments are never rewritten, so a teacher can keep its cache.

A teacher does not raise when it cannot answer. It returns a ``TeacherOutput`` with an ``error``, for that view alone.
What happens then (carry on, raise, exclude) is decided by ``RelayConfig.on_failure``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

FinishReason = Literal["length", "line", "stop", "accepted", "error"]
Message = dict[str, str]  # {"role": ..., "content": ...}
POLL_SECONDS = 0.001  # between two questions to several teachers of which none has an answer


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the completion as the teacher sees it.

    Args:
        text: may end inside a character only where ``ids`` are given.
        ids: its tokens in the teacher's tokenizer where they are known exactly; else the teacher tokenises the text
            once and remembers.
    """

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(slots=True, eq=False)
class TeacherView:
    """What a teacher sees of one sequence. Views are told apart by identity; a teacher keeps its caches by view.

    Args:
        messages: the prompt.
        segments: the completion without commands; it only grows, unless the teacher takes a turn back. When the
            teacher is asked, the last one is the student's latest turn.
        n: tokens asked for at the present turn.
        seed: of the sequence, for a teacher that samples.
        line: the turn ends with the line: after the first token that holds a line break.
        whole_characters: the answer will be tokenised anew, so it must not end inside a character.
        raw: the prompt, if no chat template belongs around it; ``messages`` hold its text, too.
        to: of several teachers, the name of the one asked at the present turn.
    """

    messages: list[Message]
    segments: list[Segment] = field(default_factory=list)
    n: int = 0
    seed: int = 0
    line: bool = False
    whole_characters: bool = False
    raw: Segment | None = None
    to: str | None = None

    @property
    def text(self) -> str:
        """The completion so far, without the prompt."""
        return "".join(s.text for s in self.segments)


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """What a teacher wrote: at most the n tokens asked for, unless it is approximate.

    Args:
        text: the continuation, without an end token.
        finish_reason: ``length`` (more would come), ``line`` (the line ended), ``stop`` (the teacher ended the answer),
            ``accepted`` (the student's turn stands, with nothing added) or ``error``.
        ids: its tokens where the teacher knows them, else None and the text counts.
        tokens: the number of the teacher's own tokens.
        latency: seconds.
        error: why there is nothing usable.
        withdraw: the student's turn before this is taken back, and ``text`` stands in its place.
        approximate: ``text`` is no continuation by the model itself (``api_chat_only.py``), and is cut to n by the
            student's tokenizer.
        teacher: of several teachers, the one that wrote it.
    """

    text: str
    finish_reason: FinishReason
    ids: tuple[int, ...] | None = None
    tokens: int = 0
    latency: float = 0.0
    error: str | None = None
    withdraw: bool = False
    approximate: bool = False
    teacher: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """A stretch of text under the teacher, token by token.

    Args:
        ids: of the text, in the teacher's tokenizer.
        logprobs: of these, at temperature 1, in nats.
        top: the teacher's likeliest token at each of their places.
        entropies: of the teacher's distributions, in nats; None where a server does not tell.
    """

    ids: list[int]
    logprobs: list[float]
    top: list[int]
    entropies: list[float] | None = None

    @property
    def surprise(self) -> float:
        """Mean of the negative log-probabilities; 0 without a token."""
        return -sum(self.logprobs) / max(1, len(self.logprobs))


@runtime_checkable
class Teacher(Protocol):
    """Writes continuations. ``name`` goes into traces (never a key or a password)."""

    name: str

    @property
    def fingerprint(self) -> str | None:
        """Equal for equal tokenizers; None if the tokenizer is unknown."""

    def submit(self, views: Sequence[TeacherView]) -> None:
        """Begin to continue each view by at most ``view.n`` >= 1 tokens. Returns without waiting for the answers."""
        ...

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        """Of these views, those whose answers have become ready.

        A local teacher writes one more token of each. ``wait``: nothing else is left to do, so return only once an
        answer is ready. Views of other relays over the same teacher are left alone.
        """
        ...

    def release(self, views: Sequence[TeacherView]) -> None:
        """These views will not come back: drop their caches, cancel their requests."""
        ...


def complete(teacher: Teacher, views: Sequence[TeacherView]) -> list[TeacherOutput]:
    """The answers to all views, in order.

    >>> complete(ScriptedTeacher(["3901 and more"]), [TeacherView([], n=4)])[0].text
    '3901'
    """
    teacher.submit(views)
    outputs: dict[int, TeacherOutput] = {}
    waiting = list(views)
    while waiting:
        for view, output in teacher.poll(waiting, wait=True):
            outputs[id(view)] = output
        waiting = [v for v in waiting if id(v) not in outputs]
    return [outputs[id(v)] for v in views]


class ScriptedTeacher:
    """Says what a script says; for tests and lessons.

    Args:
        script: outputs used in turn, over and over (a text, or a ``TeacherOutput`` for a finish reason or an error), or
            a function ``(view) -> text | TeacherOutput``. A text is cut to ``view.n`` characters: a script has no
            tokenizer, so a character counts as a token.
        name: for traces.

    ``requests`` lists (completion the teacher saw, n) of every call.
    """

    fingerprint: str | None = None

    def __init__(
        self, script: Sequence[str | TeacherOutput] | Callable[[TeacherView], str | TeacherOutput], name: str = "script"
    ):
        self.name = name
        self._script = script
        self._ready: dict[TeacherView, TeacherOutput] = {}
        self.requests: list[tuple[str, int]] = []

    def submit(self, views: Sequence[TeacherView]) -> None:
        for view in views:
            self.requests.append((view.text, view.n))
            if callable(self._script):
                output = self._script(view)
            else:
                output = self._script[(len(self.requests) - 1) % len(self._script)]
            if isinstance(output, str):
                output = TeacherOutput(output[: view.n], "length", tokens=min(view.n, len(output)))
            self._ready[view] = output

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        return [(view, self._ready.pop(view)) for view in views if view in self._ready]

    def release(self, views: Sequence[TeacherView]) -> None:
        for view in views:
            self._ready.pop(view, None)


class NoTeacher(ScriptedTeacher):
    """Nobody to call: a relay with it forbids calls at the sampler (teacher-free decoding, table 4)."""

    def __init__(self) -> None:
        super().__init__([TeacherOutput("", "error", error="there is no teacher")], name="none")


class NamedTeachers:
    """Several teachers, each with its name: ``<call to=NAME>n</call>`` asks one, ``<call>n</call>`` the first.

    A call for any other name is not answered. Each teacher reads what all of them wrote, as text unless all tokenizers
    are equal.

    Args:
        teachers: by name, of letters, digits, ``_``, ``.`` and ``-``.

    Raises:
        ValueError: without a teacher, for other names, and for a teacher that takes text back (``Verifier``).

    >>> both = NamedTeachers({"small": ScriptedTeacher(["12"]), "large": ScriptedTeacher(["twelve"])})
    >>> complete(both, [TeacherView([], n=6, to="large")])[0].text
    'twelve'
    """

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.teachers, self.names = dict(teachers), tuple(teachers)
        if not teachers or not all(re.fullmatch(r"[\w.-]{1,32}", name, re.ASCII) for name in teachers):
            raise ValueError("names of teachers hold letters, digits, '_', '.' and '-', and there is at least one")
        if any(hasattr(teacher, "threshold") for teacher in teachers.values()):
            raise ValueError("a teacher that takes text back cannot be one of several")
        self.name = " ".join(f"{name}={teacher.name}" for name, teacher in teachers.items())
        prints = {teacher.fingerprint for teacher in teachers.values()}
        self.fingerprint = prints.pop() if len(prints) == 1 else None
        self._asked: dict[TeacherView, str] = {}

    def submit(self, views: Sequence[TeacherView]) -> None:
        self._asked |= {view: view.to or self.names[0] for view in views}
        for name, own in self._by_name(views):
            self.teachers[name].submit(own)

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        groups, ready = self._by_name(views), list[tuple[TeacherView, TeacherOutput]]()
        while groups and not ready:
            for name, own in groups:
                for view, output in self.teachers[name].poll(own, wait=wait and len(groups) == 1):
                    ids = None if self.fingerprint is None else output.ids  # other tokenizers would misread them
                    ready.append((view, replace(output, ids=ids, teacher=self.teachers[name].name)))
            if not wait:
                break
            if not ready:
                time.sleep(POLL_SECONDS)
        for view, _ in ready:
            del self._asked[view]
        return ready

    def release(self, views: Sequence[TeacherView]) -> None:
        for view in views:
            self._asked.pop(view, None)
        for teacher in self.teachers.values():
            teacher.release(views)

    def _by_name(self, views: Collection[TeacherView]) -> list[tuple[str, list[TeacherView]]]:
        """The views that wait for an answer, by the teacher who was asked."""
        groups = [(name, [view for view in views if self._asked.get(view) == name]) for name in self.names]
        return [(name, own) for name, own in groups if own]


def every_teacher(teachers: Iterable[Teacher]) -> list[Teacher]:
    """The teachers, each ``NamedTeachers`` followed by those that it holds."""
    return [one for t in teachers for one in (t, *(t.teachers.values() if isinstance(t, NamedTeachers) else ()))]
