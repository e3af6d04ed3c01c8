"""A student and its teacher, loaded by name: the front door of relay decoding in Python."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine, load_tokenizer
from relaylab.relay.events import Done
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.answers import grade_problem
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace, TraceWriter, read_traces

UNFINISHED = ("excluded", "interrupted")  # how traces stop that are decoded anew on resuming
KEEP = 8  # closed rows whose caches wait for a similar question; enough for one person who tries things


class Pair:
    """A student engine and a teacher. ``options`` of its methods are those of ``Relay`` and ``RelayConfig``.

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
        """A ``Relay`` of this pair; keywords are those of ``Relay`` and of ``RelayConfig`` together."""
        return Relay(self.student, self.teacher, **options)

    def solve(self, question: str | Problem, *, seed: int = 0, record: bool = True, **options: Any) -> Trace:
        """Relay one question with this very ``seed``; a ``Problem`` is graded too."""
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

        Each problem has a seed of its own, a function of ``seed`` and its id. ``out`` is a JSONL file that gets every
        trace as soon as it is done. Interrupted, the same call goes on where it stopped: a problem whose id is in the
        file is not decoded again, unless it was excluded after a teacher failure; then its old line goes.

        Raises ValueError where two problems share an id, and where the file was made by another pair, with other config
        (all that decide a trace: see ``Trace.config``), or has another question or answer under the same id.
        """
        if twice := [name for name, count in Counter(p.id for p in problems).items() if count > 1]:
            raise ValueError(f"the problem {twice[0]!r} comes twice; ids must differ")
        relay = self.relay(**options)
        config = _relay_config(relay, seed)
        done = _resume(Path(out), config, problems) if out is not None and Path(out).exists() else {}
        todo = [p for p in problems if p.id not in done]
        stream = relay.stream([p.question for p in todo], seeds=[problem_seed(seed, p.id) for p in todo])
        writer = TraceWriter(out) if out is not None else None
        bar = tqdm(total=len(problems), initial=len(problems) - len(todo), desc="decoding", disable=not progress)
        try:
            for event in stream:
                if isinstance(event, Done):
                    problem = todo[event.row]
                    event.trace.config = dict(config)
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
    """The trace with its problem, as a file gives it back, and whether its answer is right."""
    trace.id = problem.id
    trace.problem = asdict(problem) | {"steps": [asdict(step) for step in problem.steps]}
    trace.correct = grade_problem(trace.teacher_view, problem)
    return trace


def problem_seed(seed: int, name: str) -> int:
    """The seed of the problem with this id in a run with this seed: below 2^63, the same whatever else is decoded.

    >>> problem_seed(0, "savings-test-0-0")
    3626896153702499980
    """
    text = f"{seed}/{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def _relay_config(relay: Relay, seed: int) -> dict[str, Any]:
    """All that decides the traces of a relay, as JSON can hold it; of the teacher, what it tells of itself."""
    teacher = {k: getattr(relay.teacher, k, None) for k in ("temperature", "top_p", "top_k", "fingerprint")}
    return {
        "student": relay.student.name,
        "teacher": relay.teacher.name,
        "seed": seed,
        **asdict(relay.config),
        # Where an object has no repr of its own, its address is not the same in the next run.
        "call_rule": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(relay.call_rule)),
        "record": relay.record,
        **{f"teacher_{k}": v for k, v in teacher.items()},
    }


def _resume(path: Path, config: dict[str, Any], problems: Sequence[Problem]) -> dict[str, Trace]:
    """The traces of a file that are done, by id; those that are not are taken out of the file."""
    known, found = {p.id: p for p in problems}, list(read_traces(path))
    for trace in found:
        if other := sorted(k for k in config.keys() | trace.config.keys() if config.get(k) != trace.config.get(k)):
            was, now = ({k: t.get(k) for k in other} for t in (trace.config, config))
            raise ValueError(f"{path} was made with {was}, this run has {now}; choose another file or remove it")
        for name in ("question", "answer") if trace.id in known else ():
            if trace.problem.get(name) != getattr(known[trace.id], name):
                raise ValueError(f"{path} has another {name} under the id {trace.id!r}; choose another file")
    done = {t.id: t for t in found if not (t.stop in UNFINISHED and t.id in known)}
    if len(done) < len(found):
        rest = path.with_name(f"{path.name}.tmp")
        rest.unlink(missing_ok=True)
        with TraceWriter(rest) as writer:
            for trace in done.values():
                writer.write(trace)
        rest.replace(path)
    return done


def load_teacher(name: str, *, tokenizer: str | None = None, temperature: float = 0.0, **options: Any) -> Teacher:
    """A teacher by name: an embedded model, a directory, a hub id, the URL of an OpenAI-compatible server, or ``none``.

    ``tokenizer`` names the model whose tokenizer a server uses; without it the server is spoken to in text.
    """
    if name == "none":
        return NoTeacher()
    if name.startswith(("http://", "https://")):
        from relaylab.relay.api_teacher import APITeacher  # the client is slow to import and seldom needed

        own = load_tokenizer(tokenizer) if tokenizer else None
        return APITeacher(name, tokenizer=own, temperature=temperature, **options)
    return LocalTeacher(load_engine(name, keep=KEEP, **options), temperature=temperature)


def load_pair(
    student: str | Path = "relay",
    teacher: str | Path | Teacher = "teacher",
    *,
    teacher_options: dict[str, Any] | None = None,
    **options: Any,
) -> Pair:
    """Load a pair: the embedded one, or any names that ``zoo.resolve`` and ``load_teacher`` know.

    ``options`` (device, dtype) are for the student and for a local teacher, ``teacher_options`` for the teacher alone.

    >>> load_pair(teacher="none")
    Pair(student='relay', teacher='none')
    """
    engine = load_engine(student, keep=KEEP, **options)
    if isinstance(teacher, (str, Path)):
        local = not str(teacher).startswith(("http://", "https://"))
        teacher = load_teacher(str(teacher), **(options if local else {}) | (teacher_options or {}))
    elif teacher_options:
        raise ValueError("teacher_options are for a teacher that is loaded by name; this one is made already")
    return Pair(engine, teacher)
