"""The commands that execute notebooks: ``relaylab notebooks run`` and ``relaylab sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relaylab.call_tag import visible
from relaylab.options import option

if TYPE_CHECKING:
    from rich.console import Console

    from relaylab.sweep.notebook import Parameter
    from relaylab.sweep.plan import Plan

# What executes notebooks is imported when a command runs: `relaylab -h` needs none of it.

SMOKE = "smoke.yaml"  # beside the notebooks: for each, the parameters with which it takes seconds
SHIPPED = Path(__file__).parent / "lessons"  # in an installed package; a checkout has them around the package
SHOWN = 30  # points of a dry run that are listed


def lessons_home() -> Path:
    """The folder whose ``notebooks`` and ``docs`` are the shipped ones. ValueError if they are missing."""
    home = SHIPPED if SHIPPED.is_dir() else SHIPPED.parents[1]
    if not any((home / "notebooks").glob("*.ipynb")):
        raise ValueError(f"this installation of relaylab has no lessons: {home / 'notebooks'} is empty; reinstall it")
    return home


def lesson_folder() -> Path:
    """The folder ``notebooks`` here if it has some, else the shipped one."""
    return Path("notebooks") if any(Path("notebooks").glob("*.ipynb")) else lessons_home() / "notebooks"


def smoke_parameters(folder: Path) -> dict[str, dict[str, Any]]:
    """The parameters in the folder's ``smoke.yaml``, by notebook. ValueError if it is missing or something else."""
    from relaylab.settings import read_yaml

    path = folder / SMOKE
    if not path.exists():
        raise ValueError(f"{folder} has no {SMOKE}: one line per notebook, 'name: {{parameter: value}}'")
    small = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(small, dict) or not all(isinstance(values, dict) for values in small.values()):
        raise ValueError(f"{path}: write one line per notebook, 'name: {{parameter: value}}'")
    return small


def find_notebook(name: str, folder: Path) -> Path:
    """The notebook with this file name, name, or beginning of a name (``02``). ValueError for none or several."""
    from relaylab.settings import nearest

    if name.endswith(".ipynb"):
        return Path(name)
    names = sorted(path.stem for path in folder.glob("*.ipynb"))
    matches = [stem for stem in names if stem == name] or [stem for stem in names if stem.startswith(name)]
    if len(matches) != 1:
        hint = ", ".join(matches) or nearest(name, names)
        raise ValueError(f"{folder} has {len(matches) or 'no'} notebooks {name!r}; {hint}")
    return folder / f"{matches[0]}.ipynb"


def notebooks_run(
    names: Annotated[list[str] | None, typer.Argument(help="Names in the folder, or files. Default: all.")] = None,
    parameter: Annotated[
        list[str] | None, option("NAME=VALUE, for every notebook. VALUE is YAML.", "--parameter", "-p")
    ] = None,
    out: Annotated[Path, option("Each notebook gets a folder here.")] = Path("runs/notebooks"),
    folder: Annotated[Path | None, option("Default: 'notebooks' here, or the shipped lessons.")] = None,
    timeout: Annotated[float | None, option("Seconds per notebook. Default: no limit.", min=1)] = None,
    smoke: Annotated[bool, option(f"Use the parameters of {SMOKE}: seconds each.", "--smoke")] = False,
    html: Annotated[bool, option("Also write each as a page that needs no network.", "--html")] = False,
    pdf: Annotated[bool, option("Also print each page to a PDF; needs a Chromium.", "--pdf")] = False,
) -> None:
    """Execute notebooks with other parameters and save their results as JSON."""
    from relaylab.sweep.notebook import check_folder, check_values, execute, read_parameters

    folder = folder or lesson_folder()
    small = smoke_parameters(folder) if smoke else {}
    paths = [find_notebook(name, folder) for name in names or ()] or sorted(folder.glob("*.ipynb"))
    if not paths:
        raise ValueError(f"{folder} has no notebooks; choose another --folder")
    jobs = {}
    for path in paths:  # check all of them before the first one runs
        parameters = read_parameters(path)
        options = dict(_option(text, parameters) for text in parameter or ())
        jobs[path] = check_values(small.get(path.stem, {}) | options, parameters)
    stems = [path.stem for path in jobs]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise ValueError(f"two notebooks are called {twice!r} and would both write to {out / twice}; run them apart")
    for path in jobs:
        check_folder(path, out / path.stem)
    if html or pdf:
        from relaylab.pages import browser, write_page

        if pdf:
            browser()  # a missing one fails now, not after the notebooks
    failed = []
    for path, values in jobs.items():
        record = execute(path, out / path.stem, values, timeout=timeout)
        print(f"{path.stem}: {record['status']} in {record['seconds']:.0f} s, {out / path.stem}")
        if record["error"]:
            print(record["error"])
            failed.append(path.stem)
        elif html or pdf:
            print(*write_page(out / path.stem / path.name, out / f"{path.stem}.html", pdf=pdf))
    if failed:
        raise RuntimeError(f"{', '.join(failed)} did not finish; the executed copies show how far they came")


def _option(text: str, parameters: Mapping[str, Parameter]) -> tuple[str, Any]:
    """NAME=VALUE of the command line. For a text, 8B, 007 and no are texts; quotes are YAML's."""
    from relaylab.settings import read_yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"-p {text}: write NAME=VALUE")
    types = parameters[name].types if name in parameters else []
    if "str" in types and value[:1] not in tuple("'\""):
        return name, None if value == "null" and "None" in types else value
    return name, read_yaml(value, f"-p {name}")


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="What varies; see sweeps/ and docs/sweeps.md.")],
    out: Annotated[str | None, option("Folder or URL (s3://...). Default: runs/sweeps/NAME.")] = None,
    size: Annotated[str | None, option("One of the file's sizes. Default: its first.")] = None,
    dry_run: Annotated[bool, option("Check all, list the points, estimate the time.", "--dry-run")] = False,
    limit: Annotated[int | None, option("Run at most so many points.", min=1)] = None,
    workers: Annotated[int, option("Points at a time on this machine.", min=1)] = 1,
    threads: Annotated[int, option("CPU threads of each point.", min=1)] = 1,
    ray: Annotated[
        str | None, option("Run on Ray: a cluster's address, 'auto', or 'local' for one of its own.")
    ] = None,
) -> None:
    """Run a notebook at many parameters. Run it again to resume."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from relaylab.sweep.plan import read_plan
    from relaylab.sweep.run import Store, run_sweep

    console, plan = Console(), read_plan(file, size)
    out = out or str(Path("runs/sweeps") / plan.name)
    if dry_run:
        return _show(console, plan, Store(out).records(), workers)
    from relaylab.sweep.results import collect
    from relaylab.views.sweep_report import sweep_page

    failures: dict[str, Any] = {}
    try:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(plan.name, total=len(plan.points))

            def watch(done: int, running: int, failed: int, left: float | None) -> None:
                text = f"{plan.name}: {running} running, {failed} failed, {_duration(left)} left"
                bar.update(task, completed=done, description=text)

            failures = run_sweep(plan, out, workers=workers, threads=threads, ray=ray, limit=limit, watch=watch)
    finally:  # after an interrupt, too: what is finished can be looked at
        table = collect(plan, out)
        page = sweep_page(plan, table, out, failures)
        done = f"{int(table['planned'].sum())} of {len(plan.points)} points finished"
        text = f"{plan.name}: {done}, {len(failures)} failed; the report is {page}"
        console.print(text, highlight=False, markup=False)
    if failures:
        raise typer.Exit(1)


def _show(console: Console, plan: Plan, finished: Mapping[str, dict], workers: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from relaylab.sweep.run import remaining

    table = Table(*(escape(visible(name)) for name in ("key", *plan.factors, "seed", "finished")))
    for p in plan.points[:SHOWN]:
        seed, done = "" if p.seed is None else str(p.seed), "yes" if p.key in finished else ""
        table.add_row(p.key, *(escape(visible(level)) for level in p.levels.values()), seed, done)
    console.print(table)
    if len(plan.points) > SHOWN:
        console.print(f"... and {len(plan.points) - SHOWN} more")
    left, seconds = sum(p.key not in finished for p in plan.points), [r["seconds"] for r in finished.values()]
    time = f"about {_duration(remaining(seconds, left, workers))} with {workers} at a time"
    time = time if seconds else "--limit 1 runs one, to measure the time"
    console.print(f"{len(plan.points)} points, {left} to run; {time}", highlight=False, markup=False)


def _duration(seconds: float | None) -> str:
    """A duration for people.

    >>> _duration(None), _duration(8.2), _duration(600), _duration(9000)
    ('?', '8 s', '10 min', '2.5 h')
    """
    if seconds is None or seconds < 90:
        return "?" if seconds is None else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
