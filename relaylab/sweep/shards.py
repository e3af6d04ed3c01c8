"""A large measurement in parts: its problems handed out by the shard, on the engines of sweeps.

A shard is a point (``point.py``) whose run is a Python function instead of a notebook: locks, attempts, and what a
killed worker or a lost node costs are the sweep's. What a shard has found it keeps by itself, row for row, in a file
that its next attempt goes on with. ``large_filter.py`` and ``large_evaluation.py`` say what that is, and put the parts
together.

Problems are dealt out in turn, so that every shard has its share of the long ones. Rows do not depend on the batch, and
so not on the shard either.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from relaylab.sweep.command import EngineName
from relaylab.sweep.drive import State, drive
from relaylab.sweep.engines import Engine, LocalEngine, RayEngine
from relaylab.sweep.plan import Plan, Point, code_version
from relaylab.sweep.point import Job, Outcome
from relaylab.tasks.suites import Problem, Step

Work = Callable[[list[Problem]], str | None]  # does a shard; why it is to be asked again some time, None if it is whole
INCOMPLETE = "incomplete: "  # how the error of such a shard begins

Server = Annotated[list[str] | None, typer.Option(help="Instead of --teacher: a server; several, the least busy one.")]
Shards = Annotated[int | None, typer.Option(min=1, help="Parts the problems are dealt into; one a worker by default.")]
Workers = Annotated[int, typer.Option(min=1, help="Parts at a time (local), each with models of its own.")]
EngineOption = Annotated[EngineName, typer.Option(help="Processes of this machine, or a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster; 'auto' for the one of this machine.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of a part.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of a part, for Ray.")]


@dataclass(frozen=True, slots=True)
class Spread:
    """On what a measurement is spread: an engine, how many shards (None: one a worker), threads of each."""

    engine: Engine
    shards: int | None = None
    threads: int = 1


def spread_over(
    engine: str, workers: int, shards: int | None, address: str | None, threads: int, gpus: float
) -> Spread | None:
    """What the options of the command line mean; None where they mean this process.

    >>> spread_over("local", 1, None, None, 1, 0.0), spread_over("local", 3, None, None, 2, 0.0).engine.workers
    (None, 3)
    """
    if engine == "ray":
        return Spread(RayEngine(address, cpus=threads, gpus=gpus), shards, threads)
    if address or gpus:
        raise ValueError("--address and --gpus are for --engine ray")
    return None if workers == 1 and shards is None else Spread(LocalEngine(workers), shards, threads)


@dataclass(frozen=True)
class Asked:
    """A teacher by name, loaded where it is needed; or ``servers``, a fleet. URLs may hold a password: not in the repr.

    >>> Asked("teacher").name, Asked("-", servers=("http://127.0.0.1:8000/v1",)).name
    ('teacher', 'model@fleet')
    """

    teacher: str
    servers: tuple[str, ...] = field(default=(), repr=False)
    tokenizer: str | None = None
    temperature: float = 0.0

    @property
    def name(self) -> str:
        """In the terms of a fleet are no addresses: servers may come and go."""
        return "model@fleet" if self.servers else self.teacher

    def load(self) -> Any:
        """The ``Teacher``."""
        if self.servers:
            from relaylab.engine.load import load_tokenizer
            from relaylab.relay.fleet_teacher import fleet

            own = load_tokenizer(self.tokenizer) if self.tokenizer else None
            return fleet(self.servers, tokenizer=own, temperature=self.temperature)
        from relaylab.relay.pair import load_teacher

        options = {"tokenizer": self.tokenizer} if self.tokenizer else {}
        return load_teacher(self.teacher, temperature=self.temperature, **options)


def deal(problems: Sequence[Problem], shards: int) -> list[list[Problem]]:
    """The problems in so many parts, dealt out in turn; none is empty.

    >>> [[p.id for p in part] for part in deal([Problem(i, "s", "q", "a") for i in "abcde"], 2)]
    [['a', 'c', 'e'], ['b', 'd']]

    Raises ValueError for no problems, and for an id that comes twice: it would be two rows of one name.
    """
    if not problems:
        raise ValueError("there are no problems; give at least one")
    if twice := [name for name, count in Counter(p.id for p in problems).items() if count > 1]:
        raise ValueError(f"the problem {twice[0]!r} comes twice; ids must differ")
    return [list(problems[i::shards]) for i in range(min(shards, len(problems)))]


def in_shards(
    work: Work, problems: Sequence[Problem], home: Path, spread: Spread, *, name: str, settings: Any, progress: bool
) -> dict[str, Outcome]:
    """Do ``work`` on every shard of the problems that is not whole yet; the outcomes of those that broke, by key.

    home: the folder of the shards' states and logs, which all workers see. settings: what besides the problems decides
    the work, as JSON can hold it. A shard that breaks or is incomplete is tried once more, and by the next call.
    """
    points = []
    for i, part in enumerate(deal(problems, spread.shards or spread.engine.workers)):
        given = {"problems": [asdict(p) for p in part]}
        points.append(Point(digest([settings, given]), given, {"shard": str(i)}))
    plan = Plan(name, Path(name), code_version(), tuple(points), {}, retries=1)
    job = Job.of(plan, home, threads=spread.threads, run=_Run(work))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(f"{name}, shards", total=len(points))

        def watch(state: State) -> None:
            told = f"{name}: {state.running} shards running, {state.failed} failed"
            bar.update(task, completed=state.done, description=told)

        failed = drive(plan, spread.engine, job, watch=watch)
    return {key: outcome for key, outcome in failed.items() if not (outcome.error or "").startswith(INCOMPLETE)}


def digest(value: Any) -> str:
    """A name for what JSON can hold: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def last_words(failures: Mapping[str, Outcome]) -> str:
    """Of several failures, the last line of the last one."""
    error = next(reversed(failures.values())).error or "it died"
    return error.strip().splitlines()[-1]


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without their ends and without a torn last one; none where there is no file."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def write_lines(path: Path, lines: Sequence[bytes]) -> None:
    """Whole or not at all, also where two processes do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        draft.write_bytes(b"".join(line + b"\n" for line in lines))
        draft.replace(path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


@dataclass(frozen=True)
class _Run:
    """``work`` with the signature of ``relaylab.sweep.notebook.execute``, as a ``Job`` calls it."""

    work: Work

    def __call__(
        self,
        notebook: Path,
        folder: Path,
        parameters: Mapping[str, Any],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        os.environ.update(env or {})  # the process is the shard's own: libraries that it has not loaded yet read this
        if "torch" in sys.modules and env:
            sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))
        began = time.monotonic()
        lacking = self.work([_problem(p) for p in parameters["problems"]])
        seconds = round(time.monotonic() - began, 3)
        status, error = ("failed", f"{INCOMPLETE}{lacking}") if lacking else ("done", None)
        return {"status": status, "seconds": seconds, "values": {}, "error": error}


def _problem(data: Mapping[str, Any]) -> Problem:
    return Problem(**{**data, "steps": tuple(Step(**step) for step in data["steps"])})
