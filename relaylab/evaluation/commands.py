"""``relaylab evaluate``, ``scorecard`` and ``judge`` as functions: each prints, and returns an exit code."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from relaylab.tasks.suites import Problem

console = Console(highlight=False, markup=False)


def run_evaluation(
    out: Path,
    methods: str = "student teacher relay",
    *,
    suites: str = "",
    benchmarks: str = "",
    data: Path | None = None,
    limit: int | None = None,
    training: int = 300,
    training_benchmark: str | None = None,
    seed: int = 0,
    **options: Any,
) -> int:
    """Evaluate methods on embedded suites or benchmarks, and print the summary.

    Args:
        out: folder of traces and tables.
        methods: texts of systems, separated by spaces.
        suites: embedded suites, separated by spaces; ``all`` for the nine.
        benchmarks: names of benchmarks, instead of suites.
        data: folder with the benchmarks' files; without it they come from the hub.
        limit: problems of each.
        training: training problems for what a baseline learns.
        training_benchmark: whose problems these are; otherwise those of the embedded suites.
        seed: random seed.
        options: further keywords of ``evaluate``.

    Returns:
        1 if every answer of a method was excluded because its teacher failed, else 0.
    """
    from relaylab.evaluation.evaluate import evaluate
    from relaylab.evaluation.stats import summary
    from relaylab.evaluation.table import excluded_methods
    from relaylab.tasks.benchmarks import benchmark, load_benchmark
    from relaylab.tasks.suites import SUITES

    if bool(suites) == bool(benchmarks):
        raise ValueError("name either --suites or --benchmarks")
    names = (list(SUITES) if suites == "all" else suites.split()) or benchmarks.split()
    suffixes = {benchmark(name).suffix for name in names}
    if len(suffixes) > 1:
        raise ValueError(f"{', '.join(names)} put their questions differently; evaluate them in folders of their own")
    problems = [p for name in names for p in load_benchmark(name, path=data, limit=limit, seed=seed)]
    learned = _training(training_benchmark, data, training, seed)
    table = evaluate(methods.split(), problems, out, training=learned, suffix=suffixes.pop(), seed=seed, **options)
    lost = excluded_methods(table)
    for name in lost:
        console.print(f"{name}: every answer was excluded because the teacher failed")
    if shard := options.get("shard"):
        console.print(f"{len(table)} answers of shard {shard}; without --shard the same command makes the tables")
        return int(bool(lost))
    shown = Table("method")
    for column in ("correct", "95 % interval", "teacher tokens", "calls a response", "gap recovered", "excluded"):
        shown.add_column(column, justify="right")
    for row in summary(table).itertuples():
        gap = "-" if row.gap != row.gap else f"{100 * row.gap:.1f} %"
        accuracy = f"{100 * row.accuracy:.1f} %", f"{100 * row.low:.1f}, {100 * row.high:.1f}"
        share = f"{100 * row.teacher_share:.2f} %", f"{row.calls:.2f}"
        shown.add_row(row.method, *accuracy, *share, gap, str(row.excluded or ""))
    console.print(shown)
    console.print(f"{len(table)} rows in {out / 'table.csv'}; next: relaylab report {out}")
    return int(bool(lost))


def _training(name: str | None, data: Path | None, count: int, seed: int) -> list[Problem]:
    """Training problems: those of a benchmark, or the embedded suites'."""
    from relaylab.tasks.benchmarks import benchmark, load_benchmark
    from relaylab.tasks.suites import mixture

    if name is None or not count:
        return list(islice(mixture(seed=seed + 5), count))
    if not benchmark(name).training:
        raise ValueError(f"{name} is for testing; --training-benchmark takes gsm8k_train or dapo17k")
    if data is not None and not data.is_dir():
        raise ValueError(f"{data} would be read for testing and for training; --data must be a folder with both files")
    return load_benchmark(name, path=data, limit=count, seed=seed)


def show_scorecard(folder: Path) -> int:
    """Print the paper's claims beside our measurements as Markdown; also in the folder, as scorecard.csv."""
    from relaylab.evaluation.scorecard import markdown, measured, scorecard
    from relaylab.evaluation.table import read_table, write_table

    card = scorecard(measured(read_table(folder)))
    write_table(card, folder / "scorecard.csv")
    print(markdown(card))
    return 0


def run_judge(traces: Path, server: str, *, max_requests: int, model: str, cache: Path | None = None) -> int:
    """Let a chat model judge the answers of a trace file. Returns 1 if no answer got a verdict, else 0."""
    from relaylab.evaluation.judge import Judge, audit
    from relaylab.relay.api_client import APIClient
    from relaylab.trace import read_traces

    if cache is not None and cache.resolve() == traces.resolve():
        raise ValueError(f"{cache} holds the traces; name another file for the cache")
    graded = list(read_traces(traces))
    if not graded:
        raise ValueError(f"{traces} holds no trace")
    result = audit(graded, Judge(APIClient(server), model=model, max_requests=max_requests, cache=cache))
    console.print(str(result))
    return int(not result.judged)
