"""What the systems of an evaluation share: the models, each loaded once, and the problems with their settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relaylab.defaults import CAPS
from relaylab.engine.engine import Engine
from relaylab.engine.load import embedded, fingerprint_weights, relay_defaults
from relaylab.evaluation.table import trace_name
from relaylab.evaluation.token_router import TokenRouter, kept_router, train_token_router
from relaylab.files import Item
from relaylab.relay.call_rules import CallRule
from relaylab.relay.config import CallEnd, RelayConfig, with_training
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.names import is_url
from relaylab.relay.pair import Pair, load_student, load_teacher, local_name
from relaylab.relay.students import Student
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.suites import Problem, problem_texts
from relaylab.trace import Trace, TraceWriter

if TYPE_CHECKING:
    from relaylab.evaluation.systems import System


@dataclass(eq=False)
class ModelCache:
    """The models of a comparison, each loaded once, and what is trained for a baseline."""

    default_teacher: str | Teacher = "teacher"  # of all systems that name no other
    training: Sequence[Problem] = ()  # that a token router may learn from
    max_tokens: int = 512  # of the answers that it learns from
    options: dict[str, Any] = field(default_factory=dict)  # device and dtype of local models
    untrained: str = "student"  # answers as ``student``; see ``model`` for ``relay`` and ``grpo``
    keep: Path | None = None  # a folder for trained routers
    progress: bool = True  # show bars while one is trained
    _made: dict[tuple, Any] = field(default_factory=dict, repr=False)

    def _once(self, key: tuple, make: Callable[[], Item]) -> Item:
        """What ``make`` gives, made when it is asked for first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def teacher(self) -> Teacher:
        teacher = self.default_teacher
        return self.teacher_named(teacher) if isinstance(teacher, str) else teacher

    def teacher_named(self, name: str) -> Teacher:
        """Another teacher, by name or URL."""
        options = {} if is_url(name) else self.options
        return self._once(("teacher", name), lambda: load_teacher(name, **options))

    def model(self, name: str) -> str:
        """The model that a system's name stands for.

        ``relay`` and ``grpo`` are the embedded ones of the student's world. A student of your own that was trained to
        call is the ``relay`` itself.

        Raises:
            ValueError: for the trained model of a student that is not embedded.

        >>> ModelCache(untrained="plain/student").model("relay"), ModelCache().model("relay")
        ('plain/relay', 'relay')
        """
        world, slash, _ = self.untrained.rpartition("/")
        same_world = f"{world}{slash}{name}"
        if name == "student" or (name == "relay" and self._own and relay_defaults(local_name(self.untrained))):
            return self.untrained
        if name in ("relay", "grpo") and self._own:
            raise ValueError(f"no {name} of {self.untrained!r} is known; name its folder: {name}:student=FOLDER")
        return same_world if same_world in embedded() else name

    @property
    def precision(self) -> dict[str, str]:
        """What a configuration holds of how local models are loaded: their type of numbers, where it is given."""
        given = {name: self.options.get(name) for name in ("dtype", "quantize")}
        return {name: str(value).removeprefix("torch.") for name, value in given.items() if value}

    @property
    def _own(self) -> bool:
        return self.untrained not in embedded()

    def student(self, name: str) -> Student:
        """A student by the name that a system has for it, or by the URL of a server."""
        options = {} if is_url(name) else self.options
        return self._once(("student", name), lambda: load_student(self.model(name), **options))

    def engine(self, name: str) -> Engine:
        """A student in this process, for what looks into it."""
        if not isinstance(student := self.student(name), Engine):
            raise ValueError(f"this method needs the student's logits, which {student.name} does not give")
        return student

    def router(self, student: str, *, linear: bool = False, top: int = 0) -> TokenRouter:
        """A token router (an MLP) or a linear probe for a student, trained once. ``top``: as in ``TokenRouter``."""
        if not self.training:
            raise ValueError("the token router (citer) learns from training problems; give some")
        models = self.engine(student), self.local_teacher("citer")
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "width": 0 if linear else 64, "top": top}

        def trained() -> TokenRouter:
            return train_token_router(*models, self.training, progress=self.progress, **options)

        def kept() -> TokenRouter:
            if self.keep is None:
                return trained()
            weights = [fingerprint_weights(engine.model) for engine in (models[0], models[1].engine)]
            config = options | {"weights": weights, "problems": problem_texts(self.training)}
            router = kept_router(self.keep, config, trained)
            router.net.to(models[0].device)
            return router

        return self._once(("router", student, linear, top), kept)

    def line_entropies(self, student: str) -> list[float]:
        """Logarithms of the entropies at the beginnings of lines, in a student's answers to the training problems."""
        if not self.training:
            raise ValueError("steer looks at answers to training problems; give some")

        def entropies() -> list[float]:
            options = {"max_tokens": self.max_tokens, "record": True, "progress": False}
            traces = Pair(self.engine(student), NoTeacher()).decode(self.training, **options)
            begins = ((t, i) for t in traces for i in range(len(t.pieces)) if i == 0 or t.pieces[i - 1].endswith("\n"))
            return [math.log((t.entropies or [])[i] or 1e-9) for t, i in begins]

        return self._once(("entropies", student), entropies)

    def local_teacher(self, system: str) -> LocalTeacher:
        """The teacher of a system that looks into both models; it must not be behind a server."""
        if not isinstance(self.teacher, LocalTeacher):
            raise ValueError(f"{system} needs both models in this process, and the teacher is {self.teacher.name}")
        return self.teacher


@dataclass(eq=False)
class EvalRun:
    """Problems and the settings with which all systems decode them."""

    models: ModelCache
    problems: Sequence[Problem]
    folder: Path  # keeps the traces, one file per system, so that an interrupted run goes on
    config: RelayConfig = field(default_factory=RelayConfig)  # of the relays; silent systems take its sampling
    seed: int = 0  # each problem's own seed is a function of it and of the problem's id
    batch_size: int = 64  # rows decoded together
    shard: str | None = None  # ``i/n`` decodes one part of the problems only
    progress: bool = True
    given: Collection[str] = ()  # settings of ``config`` that win over a training's, even where they are the defaults
    _done: dict[str, list[Trace]] = field(default_factory=dict, repr=False)

    def traces(self, system: System) -> list[Trace]:
        """The graded traces of a system, in the problems' order."""
        if system.label not in self._done:
            self._done[system.label] = system.decode(self)
        return self._done[system.label]

    def path(self, system: System) -> Path:
        """The file of a system's traces."""
        return self.folder / f"{trace_name(system.label)}.jsonl"

    def decode(
        self, system: System, student: str, teacher: Teacher, *, config: RelayConfig | None = None,
        call_rule: CallRule | None = None,
    ) -> list[Trace]:  # fmt: skip
        """``Pair.decode`` with the run's settings, recorded and resumable; failures of a teacher exclude the answer."""
        return Pair(self.models.student(student), teacher).decode(
            self.problems, out=self.path(system), config=replace(config or self.config, on_failure="exclude"),
            call_rule=call_rule, record=True, seed=self.seed, batch_size=self.batch_size, progress=self.progress,
            shard=self.shard,
        )  # fmt: skip

    def relay_config(self, student: str) -> RelayConfig:
        """The run's settings for a trained student. Caps and ends of calls that nobody gave are its training's."""
        trained, default = relay_defaults(local_name(self.models.model(student))), RelayConfig()
        values = asdict(self.config)
        given = {k: values[k] for k in CAPS if k in self.given or values[k] != getattr(default, k)}
        return replace(self.config, **with_training({k: v for k, v in trained.items() if k in CAPS}, given))

    def called(
        self, system: System, student: str, rule: CallRule, *, teacher: Teacher | None = None, write: bool = False,
        max_calls: int | None = None, call_end: CallEnd = "tokens",
    ) -> list[Trace]:  # fmt: skip
        """The teacher takes over where a rule says so, up to ``call_end``; silently, unless ``write``."""
        caps = dict.fromkeys(("max_call_tokens", "max_teacher_tokens", "fixed_call_tokens"))
        config = replace(self.config, max_calls=max_calls, write_call=write, call_end=call_end, **caps)
        return self.decode(system, student, teacher or self.models.teacher, config=config, call_rule=rule)

    def write(self, system: System, traces: list[Trace]) -> list[Trace]:
        """Keep traces that are put together from those of other systems."""
        with TraceWriter(self.path(system)) as out:
            out.replace(traces)
        return traces
