"""``relaylab sweep``: plan, execute, collect, report. Run again it goes on; ``cli.py`` shows it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from relaylab.views.trace_view import visible

console = Console()
SHOWN = 30  # points of a dry run that are listed
EngineName = StrEnum("EngineName", {name: name for name in ("local", "ray")})


def sweep(
    plan: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="What to vary; see sweeps/ and docs/sweeps.md.")],
    out: Annotated[str | None, typer.Option(help="Folder or URL (s3://...); runs/sweeps/NAME by default.")] = None,
    size: Annotated[str | None, typer.Option(help="One of the file's sizes; its first by default.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the points, how many are left and how long they take.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Execute so many points, say 1 to measure the time.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Processes of this machine, or a Ray cluster.")] = EngineName.local,
    workers: Annotated[int, typer.Option(min=1, help="Points at a time (local).")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a point.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; 'auto' for the one of this machine.")] = None,
) -> None:
    """Execute a notebook at many parameters; resumes where it stopped."""
    from relaylab.sweep.drive import State, drive
    from relaylab.sweep.engines import LocalEngine, RayEngine
    from relaylab.sweep.plan import read_plan
    from relaylab.sweep.point import Job

    found = read_plan(plan, size)
    out = out or str(Path("runs/sweeps") / found.name)
    job = Job.of(found, out, threads=threads)
    if dry_run:
        _show(found, job, workers)
        return
    from relaylab.sweep.collect import collect, summary
    from relaylab.sweep.report import report

    if engine == "local":
        chosen = LocalEngine(workers)
    else:
        needs = found.resources
        chosen = RayEngine(address, cpus=needs["cpus"], gpus=needs["gpus"], memory_gb=needs["memory_gb"])
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    failures = {}
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(found.name, total=len(found.points))

            def watch(state: State) -> None:
                told = f"{found.name}: {state.running} running, {state.failed} failed, {_duration(state.left)} left"
                bar.update(task, completed=state.done, description=told)

            failures = drive(found, chosen, job, limit=limit, watch=watch)
    finally:  # also after Ctrl-C: what is finished can be looked at
        table = collect(found, out)
        page = report(found, table, out, failures)
        console.print(f"{summary(found, table, failures)}; the report is {page}", highlight=False, markup=False)
    if failures:
        raise typer.Exit(1)


def _show(plan, job, workers: int) -> None:
    from relaylab.sweep.drive import remaining

    finished = {record["key"]: record["seconds"] for record in job.store.records("points")}
    shown = Table()
    for name in ("key", *plan.factors, "seed", "finished"):
        shown.add_column(_cell(name))
    for point in plan.points[:SHOWN]:
        levels, seed = map(_cell, point.levels.values()), "" if point.seed is None else str(point.seed)
        shown.add_row(point.key, *levels, seed, "yes" if point.key in finished else "")
    console.print(shown)
    if len(plan.points) > SHOWN:
        console.print(f"... and {len(plan.points) - SHOWN} more")
    left, times = sum(p.key not in finished for p in plan.points), list(finished.values())
    told = f"about {_duration(remaining(times, left, workers))} with {workers} at a time, by the median of {len(times)}"
    unknown = "--limit 1 executes one, to measure how long they take"
    text = f"{len(plan.points)} points, {left} to execute; {told if times else unknown}"
    console.print(text, highlight=False, markup=False)


def _cell(text: str) -> Text:
    return Text(visible(text))


def _duration(seconds: float | None) -> str:
    """A duration for people.

    >>> _duration(None), _duration(8.2), _duration(600), _duration(9000)
    ('?', '8 s', '10 min', '2.5 h')
    """
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
