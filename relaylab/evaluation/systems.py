"""Every system that a relay is compared with, behind one interface: problems in, graded traces out.

A ``System`` decodes the problems of an ``EvalRun``. What several systems need (the student alone, the teacher alone) is
decoded once. ``system("cascade:share=0.3")`` makes one from text. Teacher tokens are marked as such in all of them, so
ratio and cost mean the same everywhere.

docs/evaluation.md describes each of them. The untrained student never saw a command, so systems without training call
silently.

A system of your own is a class with one method, named by ``module:Class`` with ``--import module.py``:

    class Twice(System):
        def decode(self, run):
            return run.called(self, "student", CallAt({10: 4, 30: 4}))
"""

from __future__ import annotations

import math
import pkgutil
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, ClassVar, Literal, get_args

import torch
from tqdm.auto import tqdm

from relaylab.engine.engine import Engine
from relaylab.evaluation.eval_run import EvalRun
from relaylab.evaluation.stats import unsure_above
from relaylab.files import check_config
from relaylab.relay.call_rules import CallAt, CallEvery, CallWhenUnsure
from relaylab.relay.config import CallEnd
from relaylab.relay.local_teacher import Verifier
from relaylab.relay.names import without_secrets
from relaylab.relay.pair import graded, problem_seed
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Trace, TraceWriter, read_traces

FLAGS = {"1": True, "True": True, "0": False, "False": False}
RANGES: dict[str, tuple[float, float]] = dict.fromkeys(("p", "share", "posterior", "recall"), (0, 1))
RANGES |= {"n": (1, math.inf), "draft": (1, math.inf), "threshold": (0, math.inf)}


@dataclass(frozen=True)
class System(ABC):
    """One system. ``label`` is its text: the name and the options that differ from the default.

    Raises:
        ValueError: for an option out of range.
    """

    name: str = ""
    whole: ClassVar[bool] = False  # it takes all problems together, so no shard can decode it

    def __post_init__(self) -> None:
        for option, (low, high) in RANGES.items():
            value = getattr(self, option, low)
            default = getattr(type(self), option, None)
            if not low <= value <= high and value != default:
                bounds = f"must be at least {low}" if high == math.inf else f"lies in {low} to {high}"
                raise ValueError(f"{self.name}: {option} is {value}; it {bounds}")
        if (end := getattr(self, "call_end", None)) and end not in get_args(CallEnd):
            raise ValueError(f"{self.name}: call_end is {end!r}; it is one of {', '.join(get_args(CallEnd))}")

    @property
    def label(self) -> str:
        default = SYSTEMS[self.name]
        options = [(f.name, getattr(self, f.name)) for f in fields(self)]
        changed = [f"{k}={without_secrets(v)}" for k, v in options if v != getattr(default, k)]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @abstractmethod
    def decode(self, run: EvalRun) -> list[Trace]:
        """The graded traces of the run's problems, in their order."""


@dataclass(frozen=True)
class StudentOnly(System):
    """A student without a teacher; it cannot call."""

    student: str = "student"

    def decode(self, run: EvalRun) -> list[Trace]:
        return run.decode(self, self.student, NoTeacher())


@dataclass(frozen=True)
class TeacherOnly(System):
    """The teacher takes over before the first token."""

    def decode(self, run: EvalRun) -> list[Trace]:
        return run.called(self, "student", CallAt({0: run.config.max_tokens}), max_calls=1)


@dataclass(frozen=True)
class RelaySystem(System):
    """A trained student with its teacher, or another ``teacher`` (figure 3); ``n`` fixes the length of every call.

    ``call_end``: as in ``RelayConfig``; empty is that of the training.
    """

    student: str = "relay"
    n: int = 0
    teacher: str = ""
    call_end: CallEnd | Literal[""] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n and self.call_end not in ("", "tokens"):
            text = f"{self.name}: n={self.n} fixes the length of calls, and call_end={self.call_end} leaves it open"
            raise ValueError(f"{text}; leave out call_end, or say n=0")

    def decode(self, run: EvalRun) -> list[Trace]:
        config = run.relay_config(self.student)
        config = replace(config, call_end=self.call_end, fixed_call_tokens=None) if self.call_end else config
        config = replace(config, fixed_call_tokens=self.n, call_end="tokens") if self.n else config
        teacher = run.models.teacher_named(self.teacher) if self.teacher else run.models.teacher
        return run.decode(self, self.student, teacher, config=config)


@dataclass(frozen=True)
class TeacherFirst(System):
    """The teacher writes the first ``n`` tokens, the student the rest."""

    student: str = "student"
    n: int = 20

    def decode(self, run: EvalRun) -> list[Trace]:
        return run.called(self, self.student, CallAt({0: self.n}), max_calls=1)


@dataclass(frozen=True)
class EntropyCalls(System):
    """``n`` tokens of the teacher wherever the student's entropy is above ``threshold`` nats.

    ``line`` and ``margin``: see ``CallWhenUnsure``. ``write``: write the command, for a student that knows it.
    ``call_end``: the teacher writes to the end of the line, or of the answer, whatever ``n`` is.
    """

    student: str = "student"
    threshold: float = 0.6
    n: int = 8
    line: bool = False
    margin: bool = False
    write: bool = False
    call_end: CallEnd = "tokens"

    def decode(self, run: EvalRun) -> list[Trace]:
        rule = CallWhenUnsure(self.threshold, self.n, line=self.line, margin=self.margin)
        return run.called(self, self.student, rule, write=self.write, call_end=self.call_end)


@dataclass(frozen=True)
class Steer(System):
    """The teacher writes a line whose first token belongs to the unsure ones, with more than this ``posterior``.

    Two Gaussians are fitted to the logarithms of the entropies at the beginnings of lines, in the student's answers to
    training problems. It takes neither labels nor a budget.
    """

    student: str = "student"
    posterior: float = 0.5

    def decode(self, run: EvalRun) -> list[Trace]:
        threshold = math.exp(unsure_above(run.models.line_entropies(self.student), self.posterior))
        return run.called(self, self.student, CallWhenUnsure(threshold, 1, line=True), call_end="line")


@dataclass(frozen=True)
class SpecReason(System):
    """The teacher reads each line that the student has ended, and accepts it or writes another in its place.

    It accepts a line whose tokens surprise it by at most ``threshold`` nats on average. Calls of the student's own are
    such questions, too. What ends the answer is not read.
    """

    student: str = "student"
    threshold: float = 0.3

    def decode(self, run: EvalRun) -> list[Trace]:
        usual = run.models.local_teacher("specreason")
        sampling = {name: getattr(usual, name) for name in ("temperature", "top_p", "top_k", "name")}
        verifier = Verifier(usual.engine, threshold=self.threshold, **sampling)
        return run.called(self, self.student, CallEvery(1, 1, line=True), teacher=verifier, call_end="line")


@dataclass(frozen=True)
class Citer(System):
    """A trained MLP routes ``n`` tokens to the teacher if its probability of needing it is above ``threshold``.

    ``linear``: a linear probe instead. ``top``: it sees so many of the largest logits, too. ``recall``: above the
    threshold that finds this share of the tokens which need the teacher. ``write``: as of ``EntropyCalls``.
    """

    student: str = "student"
    threshold: float = 0.5
    n: int = 1
    linear: bool = False
    top: int = 0
    recall: float = 0.0
    write: bool = False

    def decode(self, run: EvalRun) -> list[Trace]:
        router = run.models.router(self.student, linear=self.linear, top=self.top)
        threshold = router.threshold_for(self.recall) if self.recall else self.threshold
        return run.called(self, self.student, replace(router, threshold=threshold, n=self.n), write=self.write)


@dataclass(frozen=True)
class Router(System):
    """A coin per question, the same for every ``p``: the teacher answers with probability ``p``, else the student."""

    student: str = "student"
    p: float = 0.1
    whole = True

    def decode(self, run: EvalRun) -> list[Trace]:
        student, teacher = run.traces(_student_only(self.student)), run.traces(SYSTEMS["teacher"])
        coins = [random.Random(problem_seed(run.seed, f"router/{t.id}")).random() for t in student]
        return run.write(self, [b if u < self.p else a for u, a, b in zip(coins, student, teacher)])


@dataclass(frozen=True)
class Cascade(System):
    """The teacher answers anew the ``share`` of questions whose answer the student is least sure of.

    The measure is the mean log-probability of the student's tokens. Its discarded answer is paid for too:
    ``config["discarded_tokens"]``.
    """

    student: str = "student"
    share: float = 0.1
    whole = True

    def decode(self, run: EvalRun) -> list[Trace]:
        student, teacher = run.traces(_student_only(self.student)), run.traces(SYSTEMS["teacher"])
        order = sorted(range(len(student)), key=lambda i: (confidence(student[i]), student[i].id))
        traces = list(student)
        for i in order[: round(self.share * len(student))]:
            discarded = {"discarded_tokens": len(student[i].completion_ids)}
            traces[i] = replace(teacher[i], config=teacher[i].config | discarded)
        return run.write(self, traces)


def confidence(trace: Trace) -> float:
    """Mean log-probability in nats of the student's own tokens; minus infinity without any.

    >>> confidence(Trace("q", [1], [5, 6], "ss", ["x", "y"], logprobs=[-0.5, -1.5]))
    -1.0
    """
    own = [p for p, s in zip(trace.logprobs or [], trace.source) if p is not None and s != TEACHER]
    return fmean(own) if own else float("-inf")


@dataclass(frozen=True)
class Speculative(System):
    """transformers' assisted generation: the student drafts ``draft`` tokens, the teacher accepts what it agrees with.

    The answers are the teacher's, with its own temperature, ``top_p`` and ``top_k``.
    Every token counts as the teacher's; ``config["counts"]`` has the passes of both models. One question at a time,
    since transformers assists no batches.
    """

    student: str = "student"
    draft: int = 5
    whole = True

    def decode(self, run: EvalRun) -> list[Trace]:
        teacher, student = run.models.local_teacher("speculative"), run.models.engine(self.student)
        if teacher.fingerprint != student.text.fingerprint:
            raise ValueError("speculative decoding compares tokens: student and teacher must have one tokenizer")
        if (own := student.model.config.vocab_size) != (other := teacher.engine.model.config.vocab_size):
            sizes = f"{own} rows in {student.name} and {other} in {teacher.name}"
            raise ValueError(f"speculative decoding in transformers needs embeddings of one size; there are {sizes}")
        config = {"method": "speculative", "draft": self.draft, "seed": run.seed}
        config |= {"temperature": teacher.temperature, "max_tokens": run.config.max_tokens}
        config |= {"student": student.name, "teacher": teacher.name}
        config |= {"top_p": teacher.top_p, "top_k": teacher.top_k} if teacher.temperature > 0 else {}
        done = {t.id: t for t in read_traces(run.path(self))} if run.path(self).exists() else {}
        for trace in done.values():
            check_config(run.path(self), {k: v for k, v in trace.config.items() if k != "counts"}, config)
        with TraceWriter(run.path(self)) as out:
            for problem in tqdm(run.problems, desc="speculative", disable=not run.progress):
                if problem.id not in done:
                    done[problem.id] = _assisted(problem, student, teacher.engine, run, config)
                    out.write(done[problem.id])
        return [done[p.id] for p in run.problems]


def _assisted(problem: Problem, student: Engine, teacher: Engine, run: EvalRun, config: dict) -> Trace:
    """The graded answer of the teacher with the student's drafts; ``config`` is the trace's."""
    prompt = teacher.prompt_ids(problem.messages())
    counts = {"teacher_passes": 0, "student_passes": 0}
    hooks = [
        model.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
        for model, name in ((teacher.model, "teacher_passes"), (student.model, "student_passes"))
    ]
    seed, temperature = problem_seed(run.seed, problem.id), config["temperature"]
    sampling = {name: config[name] for name in ("temperature", "top_p", "top_k")} if temperature > 0 else {}
    generation = student.model.generation_config
    before = generation.num_assistant_tokens, generation.num_assistant_tokens_schedule
    generation.num_assistant_tokens, generation.num_assistant_tokens_schedule = config["draft"], "constant"
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            ids = torch.tensor([prompt], device=teacher.device)
            model: Any = teacher.model
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), assistant_model=student.model, do_sample=temperature > 0,
                max_new_tokens=run.config.max_tokens, eos_token_id=sorted(teacher.end_ids), **sampling,
            )[0, len(prompt) :].tolist()  # fmt: skip
    finally:
        generation.num_assistant_tokens, generation.num_assistant_tokens_schedule = before
        for hook in hooks:
            hook.remove()
    ended = bool(written) and written[-1] in teacher.end_ids
    pieces = [*teacher.text.pieces(written[:-1]), ""] if ended else teacher.text.pieces(written)
    trace = Trace(
        problem.question, prompt, written, TEACHER * len(written), pieces, stop="teacher_end" if ended else "length",
        seed=seed, temperature=temperature, student=student.name, teacher=config["teacher"],
        config=config | {"counts": counts}, history=[*problem.history] or None,
    )  # fmt: skip
    return graded(trace, problem)


ALL = (
    StudentOnly("student"), StudentOnly("grpo", student="grpo"), StudentOnly("teacher-free", student="relay"),
    TeacherOnly("teacher"), RelaySystem("relay"), RelaySystem("fixed", student="ablations/fixed", n=20),
    Router("router"), Cascade("cascade"), TeacherFirst("plan"),
    EntropyCalls("entropy"), EntropyCalls("line", line=True), EntropyCalls("glimp", line=True, call_end="line"),
    EntropyCalls("offload", call_end="answer"), EntropyCalls("margin", margin=True, threshold=0.3),
    Steer("steer"), SpecReason("specreason"), Speculative("speculative"),
    Citer("citer"), Citer("probe", linear=True), Citer("r2r", top=100, recall=0.95),
)  # fmt: skip
ASKING = tuple({type(system) for system in ALL} - {StudentOnly})  # classes of ours that need a teacher
SYSTEMS: dict[str, System] = {system.name: system for system in ALL}


def system(text: str) -> System:
    """A system by its text: a name of ``SYSTEMS`` or ``module:Class``, and options after a colon.

    Raises:
        ValueError: for an unknown name or option, a class that is no ``System``, or a bad value.

    >>> system("cascade:share=0.3")
    Cascade(name='cascade', student='student', share=0.3)
    >>> system("router:p=0.1").label  # the default is not named
    'router'
    """
    name, _, options = text.partition(":")
    own, _, rest = options.partition(":")
    if name not in SYSTEMS and own and "=" not in own:
        name, options = f"{name}:{own}", rest
        SYSTEMS.setdefault(name, _imported(name))
    if name not in SYSTEMS:
        hint = "separate methods by spaces" if "," in name else f"there are {', '.join(SYSTEMS)}"
        raise ValueError(f"no method {name!r}; {hint}")
    default = SYSTEMS[name]
    kinds = {f.name: type(getattr(default, f.name)) for f in fields(default) if f.name != "name"}
    changed = {}
    for part in filter(None, options.split(",")):
        key, equals, value = part.partition("=")
        if key not in kinds or not equals:
            raise ValueError(f"{text!r}: {part!r} is no option of {name}; it has {', '.join(kinds) or 'none'}")
        if key in changed:
            raise ValueError(f"{text!r}: {key} is set twice")
        try:
            changed[key] = FLAGS[value] if kinds[key] is bool else kinds[key](value)
        except (ValueError, KeyError):
            raise ValueError(f"{text!r}: {value!r} is no {kinds[key].__name__}") from None
    return replace(default, **changed)


def _imported(name: str) -> System:
    """The system of a class of the user's own, named ``module:Class``."""
    try:
        made = pkgutil.resolve_name(name)(name)
    except Exception as error:  # whatever an import of the user's code raises
        raise ValueError(f"no method {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(made, System):
        raise ValueError(f"{name!r} is no method; derive it from relaylab.evaluation.systems.System")
    return made


def _student_only(student: str) -> System:
    return replace(SYSTEMS["student"], student=student)
