"""Every system that a relay is compared with, behind one interface: problems in, graded traces out.

A ``Method`` decodes the problems of a ``Bench``; what several of them need (the student alone, the teacher alone) is
decoded once. ``method("cascade:share=0.3")`` makes one from text. In all of them teacher tokens are marked as such, so
that ratio and cost mean the same everywhere.

    student, grpo, teacher-free   a student alone; teacher-free is the trained one with calls forbidden (table 4)
    teacher                       the teacher alone
    relay                         the trained student with its teacher
    fixed                         the same, every call granted n tokens (table 5: trained so)
    router                        a coin sends the whole question to the teacher with probability p
    cascade                       the share of answers that the student is least sure of is answered anew by the teacher
    plan                          the teacher writes the first n tokens
    entropy                       the teacher writes n tokens where the student's entropy is high; no training
    citer                         an MLP on the student's hidden state routes single tokens (``token_router.py``)
    speculative                   the teacher's own answer, drafted by the student: nothing lost, so a measure of cost

Methods without training hand over silently: their student never saw a command.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm.auto import tqdm

from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.evaluation.token_router import TokenRouter, train_token_router
from relaylab.relay.call_rules import CallAt, CallRule, CallWhenUnsure
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair, graded, load_teacher, problem_seed
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Trace, TraceWriter, read_traces


@dataclass(eq=False)
class Models:
    """The models of a comparison, each loaded once, and what is trained for a baseline."""

    teacher_name: str | Teacher = "teacher"
    training: Sequence[Problem] = ()  # problems that a token router may learn from
    max_tokens: int = 512
    options: dict[str, Any] = field(default_factory=dict)  # device and dtype of local models
    untrained: str = "student"  # who answers as ``student``, that of all methods without training
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False)
    _teachers: dict[str, Teacher] = field(default_factory=dict, repr=False)
    _routers: dict[str, TokenRouter] = field(default_factory=dict, repr=False)

    @cached_property
    def teacher(self) -> Teacher:
        return self.teacher_called(self.teacher_name) if isinstance(self.teacher_name, str) else self.teacher_name

    def teacher_called(self, name: str) -> Teacher:
        """Another teacher, by name or URL."""
        if name not in self._teachers:
            served = name.startswith(("http://", "https://"))
            self._teachers[name] = load_teacher(name, **({} if served else self.options))
        return self._teachers[name]

    def engine(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = load_engine(self.untrained if name == "student" else name, **self.options)
        return self._engines[name]

    def router(self, student: str) -> TokenRouter:
        if student not in self._routers:
            if not self.training:
                raise ValueError("the token router (citer) learns from training problems, and none were given")
            self._routers[student] = train_token_router(
                self.engine(student), self.local_teacher("citer"), self.training, max_tokens=self.max_tokens
            )
        return self._routers[student]

    def local_teacher(self, method: str) -> LocalTeacher:
        """ValueError where the teacher is behind a server: the method looks into both models."""
        if not isinstance(self.teacher, LocalTeacher):
            raise ValueError(f"{method} needs both models in this process, and the teacher is {self.teacher.name}")
        return self.teacher


@dataclass(eq=False)
class Bench:
    """Problems and the terms on which all methods decode them. ``folder`` keeps the traces, a file a method, so that
    an interrupted comparison goes on where it stopped."""

    models: Models
    problems: Sequence[Problem]
    folder: Path
    config: RelayConfig = field(default_factory=RelayConfig)
    seed: int = 0
    temperature: float = 0.0
    batch_size: int = 64
    progress: bool = True
    _done: dict[str, list[Trace]] = field(default_factory=dict, repr=False)

    def traces(self, method: Method) -> list[Trace]:
        """The graded traces of a method, in the problems' order."""
        if method.label not in self._done:
            self._done[method.label] = method.decode(self)
        return self._done[method.label]

    def path(self, method: Method) -> Path:
        return self.folder / f"{method.label.replace('/', '_').replace(':', ' ')}.jsonl"

    def pair_decode(self, method: Method, student: str, teacher: Teacher, **options: Any) -> list[Trace]:
        """``Pair.decode`` on the bench's terms, recorded and resumable."""
        terms = {"temperature": self.temperature, "config": self.config, "on_failure": "exclude", "record": True}
        self.folder.mkdir(parents=True, exist_ok=True)
        return Pair(self.models.engine(student), teacher).decode(
            self.problems,
            seed=self.seed,
            out=self.path(method),
            progress=self.progress,
            batch_size=self.batch_size,
            **terms | options,
        )

    def silent(self, method: Method, student: str, call_rule: CallRule, *, max_calls: int | None = None) -> list[Trace]:
        """The teacher takes over where a call rule says so, and no command is written."""
        config = RelayConfig(max_tokens=self.config.max_tokens, max_calls=max_calls)
        return self.pair_decode(
            method, student, self.models.teacher, call_rule=call_rule, write_call=False, config=config
        )

    def write(self, method: Method, traces: list[Trace]) -> list[Trace]:
        """Keep traces that were put together from others'."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path(method).unlink(missing_ok=True)
        with TraceWriter(self.path(method)) as out:
            for trace in traces:
                out.write(trace)
        return traces


@dataclass(frozen=True)
class Method(ABC):
    """One system. ``label`` is its text: the name and those options that are not the default."""

    name: str = ""

    @property
    def label(self) -> str:
        usual = METHODS[self.name]
        told = [f"{f.name}={v}" for f in fields(self) if (v := getattr(self, f.name)) != getattr(usual, f.name)]
        return f"{self.name}:{','.join(told)}" if told else self.name

    @abstractmethod
    def decode(self, bench: Bench) -> list[Trace]:
        """The graded traces of the bench's problems, in their order."""


@dataclass(frozen=True)
class Alone(Method):
    """A student that no teacher helps; calls cannot be written."""

    student: str = "student"

    def decode(self, bench: Bench) -> list[Trace]:
        return bench.pair_decode(self, self.student, NoTeacher())


@dataclass(frozen=True)
class TeacherAlone(Method):
    """The teacher answers by itself: it takes over before the first token."""

    def decode(self, bench: Bench) -> list[Trace]:
        return bench.silent(self, "student", CallAt({0: bench.config.max_tokens}), max_calls=1)


@dataclass(frozen=True)
class Relayed(Method):
    """A trained student with its teacher, or with another ``teacher`` by name (figure 3); ``n`` is the length of every
    call, 0 for the student's own choice."""

    student: str = "relay"
    n: int = 0
    teacher: str = ""

    def decode(self, bench: Bench) -> list[Trace]:
        config = replace(bench.config, fixed_call_tokens=self.n) if self.n else bench.config
        teacher = bench.models.teacher_called(self.teacher) if self.teacher else bench.models.teacher
        return bench.pair_decode(self, self.student, teacher, config=config)


@dataclass(frozen=True)
class Plan(Method):
    """The teacher writes the first ``n`` tokens, the student the rest."""

    student: str = "student"
    n: int = 20

    def decode(self, bench: Bench) -> list[Trace]:
        return bench.silent(self, self.student, CallAt({0: self.n}), max_calls=1)


@dataclass(frozen=True)
class Entropy(Method):
    """``n`` tokens of the teacher wherever the student's entropy is above ``threshold`` nats."""

    student: str = "student"
    threshold: float = 0.6
    n: int = 8

    def decode(self, bench: Bench) -> list[Trace]:
        return bench.silent(self, self.student, CallWhenUnsure(self.threshold, self.n))


@dataclass(frozen=True)
class Citer(Method):
    """An MLP routes single tokens: ``n`` of them where it gives more than ``threshold`` to needing the teacher."""

    student: str = "student"
    threshold: float = 0.5
    n: int = 1

    def decode(self, bench: Bench) -> list[Trace]:
        return bench.silent(
            self, self.student, replace(bench.models.router(self.student), threshold=self.threshold, n=self.n)
        )


@dataclass(frozen=True)
class Router(Method):
    """A coin for each question, the same for every ``p``: with probability ``p`` the teacher's answer, else the
    student's. Put together from the answers of the two."""

    student: str = "student"
    p: float = 0.1

    def decode(self, bench: Bench) -> list[Trace]:
        alone, teacher = bench.traces(_alone(self.student)), bench.traces(METHODS["teacher"])
        coins = [random.Random(problem_seed(bench.seed, f"router/{t.id}")).random() for t in alone]
        return bench.write(self, [b if u < self.p else a for u, a, b in zip(coins, alone, teacher)])


@dataclass(frozen=True)
class Cascade(Method):
    """The ``share`` of questions whose answer the student is least sure of, by the mean log-probability of its tokens,
    is answered anew by the teacher. What the student wrote there is paid for too: ``config["discarded_tokens"]``."""

    student: str = "student"
    share: float = 0.1

    def decode(self, bench: Bench) -> list[Trace]:
        alone, teacher = bench.traces(_alone(self.student)), bench.traces(METHODS["teacher"])
        order = sorted(range(len(alone)), key=lambda i: (confidence(alone[i]), alone[i].id))
        unsure = set(order[: round(self.share * len(alone))])
        return bench.write(
            self,
            [
                replace(b, config=b.config | {"discarded_tokens": len(a.completion_ids)}) if i in unsure else a
                for i, (a, b) in enumerate(zip(alone, teacher))
            ],
        )


def confidence(trace: Trace) -> float:
    """Mean log-probability in nats of the student's own tokens; of none, minus infinity.

    >>> confidence(Trace("q", [1], [5, 6], "ss", ["x", "y"], logprobs=[-0.5, -1.5]))
    -1.0
    """
    own = [p for p, s in zip(trace.logprobs or [], trace.source) if p is not None and s != TEACHER]
    return fmean(own) if own else float("-inf")


@dataclass(frozen=True)
class Speculative(Method):
    """transformers' assisted generation: the student drafts ``draft`` tokens, the teacher accepts what it would have
    written itself. Every token counts as the teacher's; ``config["counts"]`` has the passes of both models.

    One question at a time, since transformers assists no batches.
    """

    student: str = "student"
    draft: int = 5

    def decode(self, bench: Bench) -> list[Trace]:
        teacher, student = bench.models.local_teacher("speculative"), bench.models.engine(self.student)
        if teacher.fingerprint != student.text.fingerprint:
            raise ValueError("speculative decoding compares tokens: student and teacher must have one tokenizer")
        terms = {"method": "speculative", "draft": self.draft, "seed": bench.seed, "temperature": bench.temperature}
        terms |= {"student": student.name, "teacher": teacher.name, "max_tokens": bench.config.max_tokens}
        bench.folder.mkdir(parents=True, exist_ok=True)
        done = {t.id: t for t in read_traces(bench.path(self))} if bench.path(self).exists() else {}
        for trace in done.values():
            if {k: v for k, v in trace.config.items() if k != "counts"} != terms:
                raise ValueError(f"{bench.path(self)} was made with {trace.config}; choose another folder or remove it")
        todo = [p for p in bench.problems if p.id not in done]
        bar = tqdm(todo, desc="speculative", disable=not bench.progress)
        with TraceWriter(bench.path(self)) as out:
            for problem in bar:
                done[problem.id] = self._one(problem, student, teacher.engine, bench, terms)
                out.write(done[problem.id])
        return [done[p.id] for p in bench.problems]

    def _one(self, problem: Problem, student: Engine, teacher: Engine, bench: Bench, terms: dict) -> Trace:
        prompt = teacher.prompt_ids([{"role": "user", "content": problem.question}])
        seed, counts = problem_seed(bench.seed, problem.id), {"teacher_passes": 0, "student_passes": 0}
        hooks = [
            model.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
            for model, name in ((teacher.model, "teacher_passes"), (student.model, "student_passes"))
        ]
        sampling = {"temperature": bench.temperature, "top_k": 0, "top_p": 1.0} if bench.temperature > 0 else {}
        drafted = student.model.generation_config
        before = drafted.num_assistant_tokens, drafted.num_assistant_tokens_schedule
        drafted.num_assistant_tokens, drafted.num_assistant_tokens_schedule = self.draft, "constant"
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode():
                torch.manual_seed(seed)
                ids = torch.tensor([prompt], device=teacher.device)
                written = teacher.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    assistant_model=student.model,
                    max_new_tokens=bench.config.max_tokens,
                    do_sample=bench.temperature > 0,
                    eos_token_id=sorted(teacher.end_ids),
                    **sampling,
                )[0, len(prompt) :].tolist()
        finally:
            drafted.num_assistant_tokens, drafted.num_assistant_tokens_schedule = before
            for hook in hooks:
                hook.remove()
        ended = bool(written) and written[-1] in teacher.end_ids
        trace = Trace(
            prompt=problem.question,
            prompt_ids=prompt,
            completion_ids=written,
            source=TEACHER * len(written),
            pieces=[*teacher.text.pieces(written[:-1]), ""] if ended else teacher.text.pieces(written),
            stop="teacher_end" if ended else "length",
            seed=seed,
            temperature=bench.temperature,
            student=student.name,
            teacher=teacher.name,
            config=terms | {"counts": counts},
        )
        return graded(trace, problem)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Alone("student"),
        Alone("grpo", student="grpo"),
        Alone("teacher-free", student="relay"),
        TeacherAlone("teacher"),
        Relayed("relay"),
        Relayed("fixed", student="relay-fixed", n=20),
        Router("router"),
        Cascade("cascade"),
        Plan("plan"),
        Entropy("entropy"),
        Citer("citer"),
        Speculative("speculative"),
    )
}


def method(text: str) -> Method:
    """A method by its text: a name of ``METHODS``, and options behind a colon.

    >>> method("cascade:share=0.3")
    Cascade(name='cascade', student='student', share=0.3)
    >>> method("router:p=0.1").label  # the default is not named
    'router'

    Raises ValueError for an unknown name or option, and for a value that is none.
    """
    name, _, told = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")
    usual, changed = METHODS[name], {}
    known: dict[str, Callable[[str], Any]] = {f.name: type(getattr(usual, f.name)) for f in fields(usual)}
    del known["name"]
    for part in filter(None, told.split(",")):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise ValueError(f"{text!r}: {part!r} is no option of {name}; it has {', '.join(known) or 'none'}")
        try:
            changed[key] = known[key](value)
        except ValueError as error:
            raise ValueError(f"{text!r}: {value!r} is no {known[key].__name__}") from error
    return replace(usual, **changed)


def _alone(student: str) -> Method:
    return replace(METHODS["student"], student=student)
