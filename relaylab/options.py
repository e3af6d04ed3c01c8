"""What the commands share: groups of options, and what the options name.

``command`` registers a function. A parameter whose type is a dataclass of this module becomes one option per field.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console

from relaylab.call_tag import visible
from relaylab.defaults import TEACHER
from relaylab.relay.config import RelayConfig
from relaylab.version import __version__

if TYPE_CHECKING:
    from relaylab.relay.pair import Pair
    from relaylab.relay.teachers import Teacher
    from relaylab.tasks.suites import Problem

console = Console()
SMALL = 40e6  # bytes of weights: 10 M parameters in float32
KEPT = "what was finished is kept, and the same command goes on from there"
LOST = "this command does not resume: the same command starts again"


def option(help: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, **settings)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


Version = Annotated[bool, option("Print the version.", "--version", callback=_print_version, is_eager=True)]
BatchSize = Annotated[int, option("Sequences decoded together.", min=1)]
Seed = Annotated[int, option("Random seed.", min=0)]
Shard = Annotated[str | None, option("Do only part I of N. The command without it merges the parts.", metavar="I/N")]
Student = Annotated[str, option("An embedded name, a directory, a hub id, or a URL.")]
System = Annotated[str | None, option("A system message before each question.")]
Samples = Annotated[int, option("Responses per problem.", min=1)]
MaxTokens = Annotated[int, option("Tokens of a response.", min=1)]


Relay = Annotated[dict, RelayConfig]  # the fields of a RelayConfig that were given


def _options_of(kind: Any) -> list[inspect.Parameter]:
    """The options of a group. Those of a ``RelayConfig`` have its docstring's help, and are None if not given."""
    if kind != Relay:
        return [*inspect.signature(cast(type, kind), eval_str=True).parameters.values()] if is_dataclass(kind) else []
    help_of = dict(re.findall(r"^ +(\w+): (.+)$", RelayConfig.__doc__ or "", re.MULTILINE))
    options = []
    for p in inspect.signature(RelayConfig, eval_str=True).parameters.values():
        own = "; solve, decode and serve: the student's own cap, if it has one" if p.name == "max_tokens" else ""
        default = "" if p.default in (None, False, True) else f" Default: {p.default}{own}."
        names = ["--write-call/--silent"] if p.name == "write_call" else []
        text = help_of[p.name].replace("``", "").rstrip(".")
        info = option(f"{text[0].upper()}{text[1:]}.{default}", *names, rich_help_panel="Relay")
        options.append(p.replace(annotation=Annotated[p.annotation | None, info], default=None))
    return options


def command(app: typer.Typer, name: str, *, resumes: bool = False, **settings: Any) -> Callable[[Callable], Callable]:
    """Register a function as a command of ``app``, with ``settings`` of typer. ``resumes``: what an interrupt says."""

    def register(function: Callable) -> Callable:
        signature = inspect.signature(function, eval_str=True).parameters.values()
        groups = {p.name: (p.annotation, options) for p in signature if (options := _options_of(p.annotation))}
        flat = [option for p in signature for option in (groups[p.name][1] if p.name in groups else [p])]

        @wraps(function)
        def run(**values: Any) -> None:
            for parameter, (kind, options) in groups.items():
                given = {o.name: values.pop(o.name) for o in options}
                values[parameter] = given_only(**given) if kind == Relay else kind(**given)
            try:
                function(**values)
            except KeyboardInterrupt:
                print(f"\ninterrupted; {KEPT if resumes else LOST}", file=sys.stderr)
                raise typer.Exit(130) from None

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in flat]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        app.command(name, **settings)(run)
        return function

    return register


def say(text: str) -> None:
    console.print(visible(text, keep="\n"), highlight=False, markup=False, soft_wrap=True)


def warn(message: object, *_: object, **__: object) -> None:
    print(f"relaylab: {visible(' '.join(str(message).split()))}", file=sys.stderr)


def given_only(**values: Any) -> dict[str, Any]:
    """The values that are not None: an option that was not given must not override a default."""
    return {name: value for name, value in values.items() if value is not None}


@dataclass
class Process:
    """How models are run, and the user's own code."""

    threads: Annotated[int | None, option("CPU threads. Default: 1 for models below 10 M parameters.", min=1)] = None
    import_: Annotated[list[Path] | None, option("A file with your own rewards, systems, teachers.", "--import")] = None
    own: dict[str, Any] = field(default_factory=dict, init=False)  # the names in these files

    def start(self, *models: str) -> None:
        self.import_files()
        self.set_threads(*models)

    def import_files(self) -> None:
        for path in self.import_ or ():
            self.own |= vars(_import_file(path))

    def set_threads(self, *models: str) -> None:
        import torch

        from relaylab.relay.names import models_of

        every = [model for name in models for model in models_of(name).values()]
        small = "OMP_NUM_THREADS" not in os.environ and all(_is_small(m) for m in every if self.is_local(m))
        if threads := self.threads or (1 if small else None):
            torch.set_num_threads(threads)

    def is_local(self, name: str) -> bool:
        """Whether the model of this name is loaded here, or all of several teachers are."""
        from relaylab.relay.names import is_url, models_of

        return name != "none" and name not in self.own and not any(map(is_url, models_of(name).values()))


@dataclass
class Models(Process):
    """Where and how local models are loaded."""

    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, option("Of local models.")] = None
    device: Annotated[str | None, option("Of local models. Default: cuda if there is one, else cpu.")] = None

    @property
    def keywords(self) -> dict[str, Any]:
        import torch

        return given_only(device=self.device, dtype=getattr(torch, self.dtype) if self.dtype else None)


@dataclass
class Teachers(Models):
    """The teacher, and how models are loaded and run."""

    teacher: Annotated[str, option("An embedded name, a directory, a hub id, a URL, or 'none'.")] = TEACHER
    teacher_model: Annotated[str | None, option("The server's model; or write URL#model.")] = None
    tokenizer: Annotated[str | None, option("The model whose tokenizer the server uses.")] = None
    chat_only: Annotated[bool, option("The server only chats: ask for the continuation.", "--chat-only")] = False
    teacher_temperature: Annotated[float | None, option("Default: 0, which is greedy; filter: 1.", min=0)] = None

    @property
    def named_only(self) -> bool:
        """Whether the name says all of the teacher: a model here, without further options."""
        options = self.tokenizer, self.teacher_model, self.chat_only, self.teacher_temperature is not None
        return self.is_local(self.teacher) and not any(options)

    def load(self, *, temperature: float = 0.0) -> Teacher:
        """The teacher. A server is probed, so that a command does not start on one that is down or misnamed."""
        from relaylab.relay.names import is_url, models_of
        from relaylab.relay.pair import load_teacher
        from relaylab.relay.teachers import every_teacher

        if own := self.own.get(self.teacher):
            return cast("Teacher", own() if inspect.isroutine(own) or inspect.isclass(own) else own)
        served = all(map(is_url, models_of(self.teacher).values()))
        if not served and (self.tokenizer or self.teacher_model or self.chat_only):
            raise ValueError("--tokenizer, --teacher-model and --chat-only are for a teacher behind a URL")
        mode = "chat_only" if self.chat_only else None
        options = given_only(model=self.teacher_model, tokenizer=self.tokenizer, mode=mode)
        options |= {} if served else self.keywords  # several teachers take those of their kind
        temperature = temperature if self.teacher_temperature is None else self.teacher_temperature
        teacher = load_teacher(self.teacher, temperature=temperature, **options)
        for one in every_teacher([teacher]):
            probe = getattr(one, "probe", None)
            if probe and not (server := probe()).reachable:
                raise ConnectionError(f"the teacher does not answer: {server}")
        return teacher


@dataclass
class Pairs(Teachers):
    """The two models of a relay, and how they are loaded and run."""

    student_model: Annotated[str | None, option("The student's server's model; or write URL#model.")] = None
    student_tokenizer: Annotated[str | None, option("The model whose tokenizer it uses. Default: that model.")] = None

    def pair(self, student: str) -> Pair:
        """The student and the teacher. The teacher comes first: a server that is down is noticed at once."""
        from relaylab.relay.pair import load_pair

        served = given_only(model=self.student_model, tokenizer=self.student_tokenizer)
        if served and self.is_local(student):
            raise ValueError("--student-model and --student-tokenizer are for a student behind a URL")
        self.start(student, self.teacher)
        return load_pair(student, self.load(), student_options=served, **self.keywords)


@dataclass
class Calls:
    """Calls that the student does not write by itself."""

    call_when_unsure: Annotated[
        float | None, option("Call where the student's entropy exceeds this (nats).", min=0)
    ] = None
    call_every: Annotated[int | None, option("Call after this many tokens without a call.", min=1)] = None
    call_tokens: Annotated[int | None, option("Tokens that these two options ask for. Default: 4.", min=1)] = None
    record: Annotated[bool | None, option("Keep log-probabilities and entropies.", "--record/--no-record")] = None

    def keywords(self, teacher: str, relay: dict[str, Any]) -> dict[str, Any]:
        """The call rule and ``record``. A ValueError where a rule asks nobody, or calls are forbidden."""
        from relaylab.relay.call_rules import CallEvery, CallWhenUnsure

        unsure, every = self.call_when_unsure, self.call_every
        if unsure is not None and every is not None:
            raise ValueError("name --call-when-unsure or --call-every, not both")
        against = "--teacher none" if teacher == "none" else "--forbid-calls" if relay.get("forbid_calls") else None
        if against and (unsure is not None or every is not None):
            given = "--call-every" if unsure is None else "--call-when-unsure"
            raise ValueError(f"{given} asks a teacher, and {against} lets nobody be asked; leave out one of them")
        if self.call_tokens and unsure is None and every is None:
            raise ValueError("--call-tokens is for --call-when-unsure or --call-every; name one of them")
        tokens = self.call_tokens or 4
        rule = CallEvery(every, tokens) if every is not None else None
        rule = CallWhenUnsure(unsure, tokens) if unsure is not None else rule
        return given_only(call_rule=rule, record=self.record)


@dataclass
class Warmup:
    """How responses are sampled, where commands stand, and how the student learns them: keywords of ``warmup``."""

    teacher: Annotated[str, option("Writes what the commands ask for; several: 'small=A large=B'.")] = ""
    temperature: Annotated[float, option("At which responses are sampled.", min=0)] = 1.0
    samples: Samples = 1
    keep_correct: Annotated[bool, option("Leave wrong responses out.")] = False
    uniform: Annotated[float, option("The share of even places of commands; else by entropy.", min=0, max=1)] = 1.0
    whole_words: Annotated[bool, option("With a teacher: no command inside a word or a number.")] = False
    max_tokens: MaxTokens = 512
    decode_batch_size: BatchSize = 128
    max_steps: Annotated[int, option("Optimiser steps.", min=1)] = 250
    per_device_train_batch_size: Annotated[int, option("Responses per step.", min=1)] = 32
    activation_checkpointing: Annotated[bool, option("Compute activations again instead of keeping them.")] = False
    learning_rate: Annotated[float, option("At its highest.", min=0)] = 1e-3
    full: Annotated[bool, option("Train all weights instead of an adapter.")] = False


@dataclass
class Questions:
    """Which questions, and how they are put."""

    suite: Annotated[list[str] | None, option("A suite, 'all', or 'lifelike' (all but galaxy); repeatable.")] = None
    benchmark: Annotated[list[str] | None, option("A benchmark, such as gsm8k; may be repeated.")] = None
    data: Annotated[Path | None, option("A JSONL, JSON or CSV file; with --benchmark, its file or a folder.")] = None
    limit: Annotated[int | None, option("Problems of each suite or benchmark, or of the file.", min=1)] = None
    prompt_suffix: Annotated[str | None, option("Put after each question. A benchmark brings its own.")] = None
    question_field: Annotated[str, option("The column of --data with the question.")] = ""
    answer_field: Annotated[str, option("The column of --data with the answer.")] = ""

    @property
    def suffix(self) -> str:
        from relaylab.tasks.benchmarks import benchmark

        suffixes = {benchmark(name).suffix for name in self.benchmark or ()} or {""}
        if self.prompt_suffix is None and len(suffixes) > 1:
            raise ValueError(f"{', '.join(self.benchmark or ())} have different suffixes; give one by --prompt-suffix")
        return suffixes.pop() if self.prompt_suffix is None else self.prompt_suffix

    def load(self, default: int | None, *, split: Literal["train", "test"] = "test", seed: int = 0) -> list[Problem]:
        """The problems, without the suffix.

        Without ``--limit`` there are ``default`` of each suite and benchmark, and all of a file.
        """
        from relaylab.tasks.benchmarks import load_benchmark
        from relaylab.tasks.data import load_problems
        from relaylab.tasks.suites import ALL_SUITES, TAUGHT, problems

        limit = self.limit or default
        if bool(self.suite) + bool(self.benchmark or self.data) != 1:
            raise ValueError(f"name one of --suite, --benchmark or --data{', not several' if self.suite else ''}")
        if (self.question_field or self.answer_field) and (self.benchmark or not self.data):
            raise ValueError("--question-field and --answer-field are for --data without --benchmark")
        if self.suite:
            groups = {"all": ALL_SUITES, "lifelike": TAUGHT}
            self.suite = [one for name in self.suite for one in groups.get(name, (name,))]
            return [p for s in self.suite for p in problems(s, limit or 200, split=split, seed=seed)]
        if self.benchmark:
            return [p for b in self.benchmark for p in load_benchmark(b, path=self.data, limit=limit, seed=seed)]
        fields = {"question_field": self.question_field, "answer_field": self.answer_field}
        return load_problems(self.data or "", limit=self.limit, **fields)

    def load_apart(
        self, default: int, *, split: Literal["train", "test"], seed: int
    ) -> tuple[list[Problem], list[Problem]]:
        """Two lists of problems, each as ``load`` has them. They share none."""
        if self.suite:
            return self.load(default, split=split, seed=seed), self.load(default, split=split, seed=seed + 1)
        rows = replace(self, limit=2 * (self.limit or default)).load(None, split=split, seed=seed)
        return rows[::2], rows[1::2]


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or path.stem in {*sys.modules, *sys.stdlib_module_names}:
        raise ValueError(f"--import {path}: give a Python file whose name is not that of another module")
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise ValueError(f"--import {path}: {type(error).__name__}: {error}") from error
    return module


def _is_small(name: str) -> bool:
    """Whether the files of a model say that it has fewer than 10 M parameters."""
    from relaylab.engine.load import base_of, resolve

    folder = Path(resolve(name))
    if (folder / "adapter_config.json").exists():
        folder = Path(resolve(base_of(folder)))
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return bool(sizes) and sum(sizes) < SMALL
