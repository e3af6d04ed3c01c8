"""A student and its teacher, loaded by name: the front door of relay decoding in Python."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tqdm.auto import tqdm

from relaylab import files
from relaylab.defaults import STUDENT, TEACHER
from relaylab.engine.engine import Engine
from relaylab.engine.load import (
    embedded,
    fingerprint_weights,
    load_end_ids,
    load_engine,
    load_tokenizer,
    relay_defaults,
)
from relaylab.relay.config import RelayConfig, with_training
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.names import is_url, models_of
from relaylab.relay.relay import Prompt, Relay
from relaylab.relay.sequence import Done
from relaylab.relay.students import Student
from relaylab.relay.teachers import Message, NamedTeachers, NoTeacher, Teacher
from relaylab.tasks.grading import grade_problem
from relaylab.tasks.suites import Problem, suite_of
from relaylab.trace import UNFINISHED, Trace, TraceWriter, read_traces

LOADING = ("device", "dtype", "quantize")  # options of a model in this process


class Pair:
    """A student and a teacher.

    Args:
        student: an engine, or an ``APIStudent``.
        teacher: whoever answers its calls.
        defaults: fields of ``RelayConfig`` that hold unless a keyword says otherwise, such as the caps of a training.

    >>> from relaylab.tasks.suites import problem
    >>> pair = load_pair()
    >>> trace = pair.solve(problem("tiles", 0), max_tokens=60)
    >>> len(trace.source) == len(trace.completion_ids) <= 60
    True
    """

    def __init__(self, student: Student, teacher: Teacher, defaults: dict[str, Any] | None = None):
        self.student, self.teacher, self.defaults = student, teacher, defaults or {}

    def __repr__(self) -> str:
        return f"Pair(student={self.student.name!r}, teacher={self.teacher.name!r})"

    def relay(self, config: RelayConfig | None = None, **options: Any) -> Relay:
        """A ``Relay`` of this pair. ``options`` are those of ``Relay`` and the fields of ``RelayConfig`` by name."""
        own = {} if config else with_training(self.defaults, options)
        return Relay(self.student, self.teacher, config, **own | options)

    def solve(
        self, question: str | Problem | list[Message], *, seed: int = 0, system: str | None = None,
        record: bool = True, **options: Any,
    ) -> Trace:  # fmt: skip
        """Relay one question with this very ``seed``, after a ``system`` message; a ``Problem`` is graded, too.

        A list of chat messages ends in the question: ``[{"role": "system", "content": "Be short."}, ...]``.

        Warns if the student is an embedded model and the question is not of its suites.
        """
        problem = _problem(question, "")
        if hint := notice(self.student, problem.question):
            warnings.warn(hint, stacklevel=2)
        trace = self.relay(record=record, **options).run([_prompt(problem, system)], seeds=[seed])[0]
        return graded(trace, problem) if problem is question else trace

    def decode(
        self, problems: Sequence[Problem | str | list[Message]], *, seed: int = 0, system: str | None = None,
        out: str | os.PathLike | None = None, shard: str | None = None, progress: bool = True, **options: Any,
    ) -> list[Trace]:  # fmt: skip
        """Relay and grade many problems together. Interrupted, the same call goes on where it stopped.

        Args:
            problems: texts and lists of chat messages are questions without an answer, and are not graded.
            seed: each problem has a seed of its own, a function of ``seed`` and its id.
            system: a system message before each question.
            out: a JSON Lines file that gets every trace as soon as it is done. A problem whose id is in the file is not
                decoded again, unless it was excluded or one of its calls failed; then its old line goes.
            shard: "i/n" decodes only part i of n, into a file of its own beside ``out``. The call without a shard takes
                the shards' traces in.
            progress: show a bar.
            options: as for ``relay``.

        Returns:
            The traces, in the problems' order (of the shard, if one is given).

        Raises:
            ValueError: where two problems share an id, and where the file was made by another pair, with another
                configuration (see ``Trace.config``), or has under the same id another question, another answer, or
                another way to grade it.
        """
        chosen = [_problem(p, f"question-{i}") for i, p in enumerate(problems)]
        if twice := [name for name, count in Counter(p.id for p in chosen).items() if count > 1]:
            raise ValueError(f"the problem {twice[0]!r} comes twice; ids must differ")
        chosen = files.shard(chosen, shard)
        relay = self.relay(**options)
        config = files.plain(relay_config(relay, seed) | ({"system": system} if system else {}))
        done: dict[str, Trace] = {}
        with ExitStack() as stack:
            writer = None
            if out is not None:
                path = files.shard_path(out, shard)
                writer = stack.enter_context(TraceWriter(path))
                done = _resume(path, [] if shard else files.shard_files(out), writer, config, chosen)
            todo = [p for p in chosen if p.id not in done]
            bar = tqdm(total=len(chosen), initial=len(chosen) - len(todo), desc="decoding", disable=not progress)
            stack.callback(bar.close)
            stream = relay.stream([_prompt(p, system) for p in todo], seeds=[problem_seed(seed, p.id) for p in todo])
            stack.callback(stream.close)
            for event in stream:
                if isinstance(event, Done):
                    problem = todo[event.row]
                    event.trace.config = dict(config)
                    done[problem.id] = graded(event.trace, problem)
                    if writer:
                        writer.write(done[problem.id])
                    bar.update()
        return [done[p.id] for p in chosen]


def notice(student: Student | str, *questions: str) -> str | None:
    """What to tell a user who asks an embedded student what none of its suites asks; None otherwise."""
    # A folder ``runs/relay`` gives its student the name ``relay``; the source tells it from the embedded one.
    name = student if isinstance(student, str) else getattr(student, "source", None) or student.name
    if name not in embedded():
        return None
    if not (foreign := sum(not suite_of(q.partition("\n")[0]) for q in questions)):  # behind a line break is a suffix
        return None
    which = "this question is" if len(questions) == 1 else f"{foreign} of {len(questions)} questions are"
    return (
        f"{which} of no embedded suite, and the embedded models know nothing else: such an answer means nothing. Take "
        "questions of a suite (decode --suite; in Python problem('tiles', 0) draws a question), or real models "
        "(--student and --teacher; load_pair(student, teacher))"
    )


def _problem(question: Problem | str | list[Message], name: str) -> Problem:
    if isinstance(question, Problem):
        return question
    messages: Any = [{"role": "user", "content": question}] if isinstance(question, str) else question
    shape = "a conversation is a list of dicts with the texts 'role' and 'content'"
    if not isinstance(messages, list):
        raise ValueError(f"{shape}, not {messages!r}")
    for m in messages:
        if not isinstance(m, dict) or not all(isinstance(m.get(name), str) for name in ("role", "content")):
            raise ValueError(f"{shape}; this is none: {m!r}")
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("a conversation ends with a message of the user, the question")
    *history, last = messages
    return Problem(name, "", last["content"], "", history=tuple(history))


def _prompt(problem: Problem, system: str | None) -> Prompt:
    messages = problem.messages()
    if system is not None and messages[0]["role"] == "system":
        raise ValueError(f"the problem {problem.id!r} has a system message of its own; leave out system")
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def graded(trace: Trace, problem: Problem) -> Trace:
    """The trace with its problem, as a file gives it back, and whether it is right (None without a reference)."""
    trace.id = problem.id
    trace.problem = asdict(problem) | {"steps": [asdict(step) for step in problem.steps]}
    history = trace.problem.pop("history")  # most problems have none
    trace.problem |= {"history": [*history]} if history else {}
    trace.correct = grade_problem(trace.teacher_view, problem) if problem.answer else None
    return trace


def problem_seed(seed: int, name: str) -> int:
    """The seed of the problem with this id in a run with this seed: below 2^63, the same whatever else is decoded.

    >>> problem_seed(0, "savings-test-0-0")
    3626896153702499980
    """
    text = f"{seed}/{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def relay_config(relay: Relay, seed: int) -> dict[str, Any]:
    """All that decides the traces of a relay, as JSON can hold it; of the teacher, what it tells of itself."""
    several = relay.teacher.teachers if isinstance(relay.teacher, NamedTeachers) else {}
    own_code = files.own_code(relay.teacher, relay.call_rule, *several.values())
    return {
        "student": relay.student.name,
        "student_weights": fingerprint_weights(relay.student) if isinstance(relay.student, Engine) else None,
        **{f"student_{name}": value for name, value in request_fields(relay.student).items()},
        **_teacher_config(relay.teacher),
        **({"teachers": {name: _teacher_config(teacher) for name, teacher in several.items()}} if several else {}),
        "seed": seed,
        **asdict(relay.config),
        "call_rule": _rule_text(relay.call_rule),
        "record": relay.record,
        **({"alternatives": relay.alternatives} if relay.alternatives else {}),
        **({"own_code": own_code} if own_code else {}),
    }


def _teacher_config(teacher: Teacher) -> dict[str, Any]:
    engine = getattr(teacher, "engine", None)
    sampling = ("temperature", "top_p", "top_k", "threshold", "fingerprint")
    return {
        "teacher": teacher.name,
        "teacher_weights": engine and fingerprint_weights(engine),
        **{f"teacher_{k}": getattr(teacher, k, None) for k in sampling},
        **{f"teacher_{name}": value for name, value in request_fields(teacher).items()},
    }


def request_fields(model: Any) -> dict[str, str]:
    """What else decides the answers of a server: its mode, and a digest of further fields, which may hold a key."""
    body, mode = getattr(model, "extra_body", None), getattr(model, "mode", "auto")
    text = json.dumps(body, sort_keys=True, default=str).encode()
    digest = {"extra_body": hashlib.blake2b(text, digest_size=8).hexdigest()} if body else {}
    return digest | ({"mode": mode} if mode != "auto" else {})


def _rule_text(rule: Any) -> str:
    """A rule as text. Of one without a repr of its own, it has the values that it holds, as of a closure."""
    told = _repr(rule)
    if not inspect.isfunction(rule) and repr(rule) != object.__repr__(rule):
        return told
    held = dict(getattr(rule, "__dict__", {}))
    if inspect.isfunction(rule):
        signature = inspect.signature(rule).parameters.values()
        held |= inspect.getclosurevars(rule).nonlocals
        held |= {p.name: p.default for p in signature if p.default is not p.empty}
    values = ", ".join(f"{name}={_repr(held[name], 200)}" for name in sorted(held))
    return f"{values} in {told}" if held else told


def _repr(value: Any, most: int | None = None) -> str:
    """The text of an object without its address, which is another in the next run; a digest ends a long one."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    if most is None or len(text) <= most:
        return text
    return f"{text[:most]}... {hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"


def _resume(
    path: Path, shards: list[Path], writer: TraceWriter, config: dict[str, Any], problems: Sequence[Problem]
) -> dict[str, Trace]:
    """The traces that are done, by id. The file is left with these, and with what it holds of other problems."""
    by_id = {p.id: p for p in problems}
    kept: dict[str, Trace] = {}
    lines = 0
    for file in [path, *shards]:
        for trace in read_traces(file):
            lines += file == path
            files.check_config(file, trace.config, config)
            for name in ("question", "answer", "kind", "unit", "tolerance") if trace.id in by_id else ():
                if trace.problem.get(name) != getattr(by_id[trace.id], name):
                    raise ValueError(f"{file} has another {name} under the id {trace.id!r}; choose another file")
            if trace.id in by_id and tuple(trace.problem.get("history", ())) != by_id[trace.id].history:
                raise ValueError(f"{file} has another conversation under the id {trace.id!r}; choose another file")
            failed = trace.stop in UNFINISHED or any(c.status == "failed" for c in trace.calls)
            if not (failed and trace.id in by_id):
                kept[trace.id] = trace
    if shards or len(kept) < lines:
        writer.replace(kept.values())
    return kept


def load_teacher(
    name: str, /, *, model: str | None = None, tokenizer: str | None = None, temperature: float = 0.0, **options: Any
) -> Teacher:
    """A teacher by name: an embedded model, a directory, a hub id, the URL of an OpenAI-compatible server, or ``none``.

    Several are written with names of their own, ``"small=student large=teacher"``, and become ``NamedTeachers``.

    Args:
        name: ``URL#model`` names one model of a server that has several.
        model: the same, apart.
        tokenizer: the model whose tokenizer a server uses; without it the server is spoken to in text.
        temperature: 0 is greedy.
        options: of ``APITeacher`` for a URL, else of ``load_engine``. Of several, each takes those of its kind.
    """
    if name == "none":
        return NoTeacher()
    if len(models := models_of(name)) > 1:
        shared: dict[str, Any] = dict(model=model, tokenizer=tokenizer, temperature=temperature)
        kinds = {is_url(model) for model in models.values()}
        if foreign := [k for k in options if (k not in LOADING) not in kinds]:
            raise TypeError(f"none of the teachers {name!r} takes {foreign[0]!r}")
        of_kind = {url: {k: v for k, v in options.items() if url != (k in LOADING)} for url in kinds}
        return NamedTeachers({k: load_teacher(v, **shared, **of_kind[is_url(v)]) for k, v in models.items()})
    if is_url(name):
        from relaylab.relay.api_teacher import APITeacher  # the client is slow to import and seldom needed

        own = load_tokenizer(tokenizer) if tokenizer else None
        return APITeacher(name, model, tokenizer=own, temperature=temperature, **options)
    return LocalTeacher(load_engine(name, **options), temperature=temperature)


def load_student(name: str | Path, /, **options: Any) -> Student:
    """A student by name: an embedded model, a directory, a hub id, or the URL of an OpenAI-compatible server.

    Args:
        name: ``URL#model`` names one model of a server that has several.
        options: ``model``, ``tokenizer`` and those of ``APIStudent`` for a URL, else those of ``load_engine``. The
            tokenizer is that of a model by name, by default of the one that the server calls so.

    Raises:
        ValueError: for a server whose tokenizer nobody names.
    """
    if not is_url(str(name)):
        return load_engine(name, **options)
    from relaylab.relay.api_student import APIStudent  # the client is slow to import and seldom needed

    local = local_name(name, **options)
    tokenizer = load_tokenizer(local)
    options = options | {"tokenizer": tokenizer, "end_ids": load_end_ids(local, tokenizer)}
    return APIStudent(str(name), **options)


def local_name(name: str | Path, /, *, model: str | None = None, tokenizer: str | None = None, **_: Any) -> str | Path:
    """Of a student, the model whose files are here: its own name, or that which a server's tokenizer is known by."""
    here = (tokenizer or model or unquote(str(name).partition("#")[2])) if is_url(str(name)) else name
    if not here:
        raise ValueError("a student behind a URL needs a tokenizer: name the model that it is of (--student-tokenizer)")
    return here


def load_pair(
    student: str | Path = STUDENT, teacher: str | Path | Teacher = TEACHER, *,
    student_options: dict[str, Any] | None = None, teacher_options: dict[str, Any] | None = None, **options: Any,
) -> Pair:  # fmt: skip
    """Load a pair by names: embedded models, directories, hub ids, URLs; for the teacher also ``none`` or an object.

    The caps that the student was trained with (``relay_config.json`` beside it, or beside its tokenizer) are the pair's
    defaults.

    Args:
        student: as for ``load_student``.
        teacher: as for ``load_teacher``.
        student_options: for the student alone.
        teacher_options: for the teacher alone.
        options: ``device`` and ``dtype`` of the student and of a local teacher.

    >>> load_pair(teacher="none")
    Pair(student='relay', teacher='none')
    """
    shared = {} if is_url(str(student)) else options
    model = load_student(student, **shared | (student_options or {}))
    local = local_name(student, **student_options or {})
    if isinstance(teacher, (str, Path)):
        served = all(map(is_url, models_of(str(teacher)).values()))
        shared = {} if served or teacher == "none" else options
        teacher = load_teacher(str(teacher), **shared | (teacher_options or {}))
    elif teacher_options:
        raise ValueError("teacher_options are for a teacher that is loaded by name; this one is made already")
    return Pair(model, teacher, relay_defaults(local))
