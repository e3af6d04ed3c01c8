"""A student and its teacher, loaded by name: the front door of relay decoding in Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from relaylab.decoding.relay import Done, Relay
from relaylab.decoding.row import Limits
from relaylab.models.engine import Engine
from relaylab.models.local_teacher import LocalTeacher
from relaylab.models.teachers import NoTeacher, Teacher
from relaylab.models.zoo import load_engine, load_tokenizer
from relaylab.tasks.grading import grade
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace, TraceWriter, read_traces

KEEP = 8  # closed rows whose caches wait for a similar question; enough for one person who tries things


class Pair:
    """A student engine and a teacher. ``options`` of its methods are those of ``Relay`` and ``Limits``.

    >>> pair = load_pair()
    >>> trace = pair.solve("Ana has 34 pins. Then 25 more arrive. How many pins does Ana have now?", max_tokens=60)
    >>> len(trace.source) == len(trace.completion_ids) <= 60
    True
    """

    def __init__(self, student: Engine, teacher: Teacher):
        self.student, self.teacher = student, teacher

    def __repr__(self) -> str:
        return f"Pair(student={self.student.name!r}, teacher={self.teacher.name!r})"

    def relay(self, **options: Any) -> Relay:
        """A ``Relay`` of this pair; keywords are those of ``Relay`` and of ``Limits`` together."""
        caps = {k: options.pop(k) for k in list(options) if k in Limits.__dataclass_fields__}
        if caps and "limits" in options:
            raise ValueError(f"give limits or {', '.join(caps)}, not both")
        return Relay(self.student, self.teacher, **({"limits": Limits(**caps)} if caps else {}), **options)

    def solve(self, question: str | Problem, *, seed: int = 0, record: bool = True, **options: Any) -> Trace:
        """Relay one question; a ``Problem`` is graded too."""
        text = question if isinstance(question, str) else question.question
        trace = self.relay(record=record, **options).run([text], seeds=[seed])[0]
        return trace if isinstance(question, str) else graded(trace, question)

    def decode(
        self,
        problems: Sequence[Problem],
        *,
        seed: int = 0,
        out: str | os.PathLike | None = None,
        progress: bool = True,
        **options: Any,
    ) -> list[Trace]:
        """Relay and grade many problems together; their traces, in the problems' order.

        ``out`` is a JSONL file that gets every trace as soon as it is done. Interrupted, the same call goes on where it
        stopped: a problem whose id is in the file is not decoded again. ValueError where the file was made by another
        pair or with other terms.
        """
        relay = self.relay(**options)
        terms = {"student": self.student.name, "teacher": self.teacher.name, "temperature": relay.temperature}
        done = _resume(Path(out), terms) if out is not None and Path(out).exists() else {}
        todo = [(i, p) for i, p in enumerate(problems) if p.id not in done]
        stream = relay.stream([p.question for _, p in todo], seeds=[seed + i for i, _ in todo])
        writer = TraceWriter(out) if out is not None else None
        bar = tqdm(total=len(problems), initial=len(problems) - len(todo), desc="decoding", disable=not progress)
        try:
            for event in stream:
                if isinstance(event, Done):
                    problem = todo[event.row][1]
                    done[problem.id] = graded(event.trace, problem)
                    if writer:
                        writer.write(done[problem.id])
                    bar.update()
        finally:
            stream.close()
            bar.close()
            if writer:
                writer.close()
        return [done[p.id] for p in problems]


def graded(trace: Trace, problem: Problem) -> Trace:
    """The trace with its problem and whether its answer is right."""
    trace.id = problem.id
    trace.problem = asdict(problem)
    trace.correct = grade(trace.teacher_view, problem.answer)
    return trace


def _resume(path: Path, terms: dict[str, Any]) -> dict[str, Trace]:
    done = {}
    for trace in read_traces(path):
        if other := {k: getattr(trace, k) for k, v in terms.items() if getattr(trace, k) != v}:
            raise ValueError(f"{path} was made with {other}, this run has {terms}; choose another file or remove it")
        done[trace.id] = trace
    return done


def load_teacher(name: str, *, tokenizer: str | None = None, temperature: float = 0.0, **options: Any) -> Teacher:
    """A teacher by name: an embedded model, a directory, a hub id, the URL of an OpenAI-compatible server, or ``none``.

    ``tokenizer`` names the model whose tokenizer a server uses; without it the server is spoken to in text.
    """
    if name == "none":
        return NoTeacher()
    if name.startswith(("http://", "https://")):
        from relaylab.models.api_teacher import APITeacher  # the client is slow to import and seldom needed

        own = load_tokenizer(tokenizer) if tokenizer else None
        return APITeacher(name, tokenizer=own, temperature=temperature, **options)
    return LocalTeacher(load_engine(name, keep=KEEP, **options), temperature=temperature)


def load_pair(
    student: str | Path = "warm",
    teacher: str | Path | Teacher = "teacher",
    *,
    teacher_options: Iterable = (),
    **options: Any,
) -> Pair:
    """Load a pair: the embedded one, or any names that ``zoo.resolve`` and ``load_teacher`` know.

    ``options`` (device, dtype) are for the student, and for a local teacher too unless ``teacher_options`` are given.

    >>> load_pair(teacher="none")
    Pair(student='warm', teacher='none')
    """
    engine = load_engine(student, keep=KEEP, **options)
    if isinstance(teacher, (str, Path)):
        local = not str(teacher).startswith(("http://", "https://"))
        teacher = load_teacher(str(teacher), **(dict(teacher_options) or (options if local else {})))
    return Pair(engine, teacher)
