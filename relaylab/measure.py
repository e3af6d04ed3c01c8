"""The commands that measure: ``relaylab evaluate | report | scorecard | judge``; ``cli.py`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from relaylab.viz.view import visible

console = Console()

METHODS = "student teacher relay"


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of traces and tables; run again to go on, or to add methods.")],
    methods: Annotated[
        str, typer.Option(help="Names with options, a space between: 'student router:p=0.3 relay:student=a+b'.")
    ] = METHODS,
    suites: Annotated[str, typer.Option(help="Embedded suites, a space between; 'all' for the nine.")] = "",
    benchmarks: Annotated[str, typer.Option(help="Benchmarks, a space between: 'gsm8k math500'.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmarks' files, instead of the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems of each; a drawn part of a benchmark.")] = None,
    teacher: Annotated[str, typer.Option(help="A name, a folder, a hub id, or the URL of a server.")] = "teacher",
    samples: Annotated[int, typer.Option(min=1, help="Answers a problem and method: the k of avg@k.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="The student's; 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Completion tokens in all.")] = 512,
    max_calls: Annotated[int | None, typer.Option(min=0, help="Answered calls of a trained student.")] = None,
    max_call_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that such a call may be granted.")] = None,
    training: Annotated[int, typer.Option(min=0, help="Training problems for what a baseline learns (citer).")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded at a time.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of answers, coins and drawn subsets.")] = 0,
) -> None:
    """Every method on the same problems: traces, a table and a summary; resumes where it stopped."""
    from itertools import islice

    from relaylab.analysis.evaluate import evaluate
    from relaylab.analysis.statistics import summary
    from relaylab.decoding.row import Limits
    from relaylab.tasks.benchmarks import load_benchmark
    from relaylab.tasks.suites import SUITES, mixture

    if bool(suites) == bool(benchmarks):
        raise ValueError("name either --suites or --benchmarks")
    named = (list(SUITES) if suites == "all" else suites.split()) or benchmarks.split()
    suffixes = {p.suffix for p in map(_benchmark, named)}
    if len(suffixes) > 1:
        raise ValueError(f"{', '.join(named)} put their questions differently; evaluate them in folders of their own")
    problems = [p for name in named for p in load_benchmark(name, path=data, limit=limit, seed=seed)]
    table = evaluate(
        methods.split(), problems, out, teacher=teacher, samples=samples, temperature=temperature, seed=seed,
        limits=Limits(max_tokens=max_tokens, max_calls=max_calls, max_call_tokens=max_call_tokens),
        training=list(islice(mixture(seed=seed + 5), training)), batch_size=batch_size, suffix=suffixes.pop(),
    )  # fmt: skip
    shown = Table()
    for column in ("method", "correct", "95 % interval", "teacher tokens", "calls a response", "gap recovered"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for row in summary(table).itertuples():
        shown.add_row(
            visible(row.method),
            f"{100 * row.accuracy:.1f} %",
            f"{100 * row.low:.1f}, {100 * row.high:.1f}",
            f"{100 * row.teacher_share:.2f} %",
            f"{row.calls:.2f}",
            "-" if row.gap != row.gap else f"{100 * row.gap:.1f} %",
        )
    console.print(shown)
    console.print(
        f"{len(table)} rows in {out / 'table.csv'}; next: relaylab report {out}", highlight=False, markup=False
    )


def report(folder: Annotated[Path, typer.Argument(help="Of an evaluation.")]) -> None:
    """One HTML page of an evaluation, and its figures."""
    from relaylab.viz.report import report

    console.print(f"the report is {report(folder)}", highlight=False, markup=False)


def scorecard(folder: Annotated[Path, typer.Argument(help="Of an evaluation of the embedded systems.")]) -> None:
    """The paper's claims beside our measurements, as a Markdown table; also in the folder, as scorecard.csv."""
    from relaylab.analysis.published import markdown, scorecard
    from relaylab.analysis.scorecard import measured
    from relaylab.analysis.table import read_table

    card = scorecard(measured(read_table(folder)))
    card.to_csv(folder / "scorecard.csv", index=False)
    print(markdown(card))


def judge(
    traces: Annotated[Path, typer.Argument(help="JSONL file of graded traces.")],
    server: Annotated[str, typer.Option(help="URL of an OpenAI-compatible server; the key is OPENAI_API_KEY.")],
    max_requests: Annotated[int, typer.Option(min=1, help="The most questions that are sent: each costs money.")],
    model: Annotated[str, typer.Option(help="As the server calls it.")] = "gpt-4o-mini",
    cache: Annotated[Path | None, typer.Option(help="JSONL file of replies, so that none is paid for twice.")] = None,
) -> None:
    """Audit the grader: a chat model judges right and wrong answers alike; where do the two differ?"""
    from relaylab.analysis.judge import Judge, audit
    from relaylab.models.api_client import APIClient
    from relaylab.trace import read_traces

    found = audit(read_traces(traces), Judge(APIClient(server), model=model, max_requests=max_requests, cache=cache))
    console.print(str(found), highlight=False, markup=False)


def _benchmark(name: str):
    from relaylab.tasks.benchmarks import benchmark

    return benchmark(name)
