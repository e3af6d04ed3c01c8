"""The commands that measure: ``relaylab filter | evaluate | report | scorecard | judge``; ``cli.py`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from relaylab.views.trace_view import visible

if TYPE_CHECKING:
    from relaylab.tasks.suites import Problem

console = Console()

METHODS = "student teacher relay"

Teacher = Annotated[str, typer.Option(help="An embedded name, a directory, a hub id, a server's URL, or 'none'.")]
Tokenizer = Annotated[str | None, typer.Option(help="For a URL: the model whose tokenizer the server uses.")]
TeacherTemperature = Annotated[float, typer.Option(min=0, help="The teacher's; 0 is greedy.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Completion tokens in all.")]
Suite = Annotated[list[str] | None, typer.Option(help="An embedded suite; several times for several.")]
Data = Annotated[Path | None, typer.Option(help="A JSONL, JSON or CSV file of questions and answers.")]
Suffix = Annotated[str, typer.Option(help="Put behind each question.")]
Seed = Annotated[int, typer.Option(min=0, help="Matters when sampling.")]


def filter_(
    out: Annotated[Path, typer.Option(help="JSONL file of rates; run again to go on after an interrupt.")],
    suite: Suite = None,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Training problems of each suite, or of the file.")] = 100,
    teacher: Teacher = "teacher",
    tokenizer: Tokenizer = None,
    teacher_temperature: TeacherTemperature = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Responses of each problem.")] = 10,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Only for the summary: rates are kept whole.")] = 0.5,
    suffix: Suffix = "",
    max_tokens: MaxTokens = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses written at a time.")] = 128,
    seed: Seed = 0,
) -> None:
    """Stage 2, first half: how often the teacher solves each problem, for the data filter."""
    from relaylab.relay.pair import load_teacher
    from relaylab.training.data_filter import keep, pass_rates

    options = {"tokenizer": tokenizer} if tokenizer else {}
    asked = load_teacher(teacher, temperature=teacher_temperature, **options)
    options = dict(samples=samples, max_tokens=max_tokens, suffix=suffix, seed=seed, batch_size=batch_size)
    rates = pass_rates(asked, problems_named(suite, data, limit, "train"), out, **options)
    told = f"{len(keep(rates, threshold))} of {len(rates)} problems have a pass rate of at least {threshold}"
    console.print(f"{told}; all rates are in {out}", highlight=False, markup=False)


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of traces and tables; run again to go on, or to add methods.")],
    methods: Annotated[
        str, typer.Option(help="Names with options, a space between: 'student router:p=0.3 relay:student=a+b'.")
    ] = METHODS,
    suites: Annotated[str, typer.Option(help="Embedded suites, a space between; 'all' for the nine.")] = "",
    benchmarks: Annotated[str, typer.Option(help="Benchmarks, a space between: 'gsm8k math500'.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmarks' files, instead of the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems of each; a drawn part of a benchmark.")] = None,
    student: Annotated[str, typer.Option(help="The untrained one, where a method names no other.")] = "student",
    teacher: Annotated[str, typer.Option(help="A name, a folder, a hub id, or the URL of a server.")] = "teacher",
    samples: Annotated[int, typer.Option(min=1, help="Answers a problem and method: the k of avg@k.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="The student's; 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Completion tokens in all.")] = 512,
    max_calls: Annotated[int | None, typer.Option(min=0, help="Answered calls of a trained student.")] = None,
    max_call_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that such a call may be granted.")] = None,
    training: Annotated[int, typer.Option(min=0, help="Training problems for what a baseline learns (citer).")] = 300,
    training_benchmark: Annotated[
        str | None, typer.Option(help="Whose problems these are: 'gsm8k_train'. Otherwise the embedded suites'.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded at a time.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of answers, coins and drawn subsets.")] = 0,
) -> None:
    """Every method on the same problems: traces, a table and a summary; resumes where it stopped."""
    from relaylab.evaluation.evaluate import evaluate as run
    from relaylab.evaluation.stats import summary
    from relaylab.relay.config import RelayConfig
    from relaylab.tasks.benchmarks import load_benchmark
    from relaylab.tasks.suites import SUITES

    if bool(suites) == bool(benchmarks):
        raise ValueError("name either --suites or --benchmarks")
    named = (list(SUITES) if suites == "all" else suites.split()) or benchmarks.split()
    suffixes = {p.suffix for p in map(_benchmark, named)}
    if len(suffixes) > 1:
        raise ValueError(f"{', '.join(named)} put their questions differently; evaluate them in folders of their own")
    problems = [p for name in named for p in load_benchmark(name, path=data, limit=limit, seed=seed)]
    learned = _learned_from(training_benchmark, data, training, seed)
    table = run(
        methods.split(), problems, out, teacher=teacher, student=student, samples=samples, seed=seed,
        temperature=temperature,
        config=RelayConfig(max_tokens=max_tokens, max_calls=max_calls, max_call_tokens=max_call_tokens),
        training=learned, batch_size=batch_size, suffix=suffixes.pop(),
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


def _learned_from(name: str | None, data: Path | None, count: int, seed: int) -> list[Problem]:
    """Training problems: those of a benchmark, or the embedded suites'."""
    from itertools import islice

    from relaylab.tasks.benchmarks import load_benchmark
    from relaylab.tasks.suites import mixture

    if name is None or not count:
        return list(islice(mixture(seed=seed + 5), count))
    if not _benchmark(name).training:
        raise ValueError(f"{name} is for testing; --training-benchmark takes gsm8k_train or dapo17k")
    if data is not None and not data.is_dir():
        raise ValueError(f"{data} would be read for testing and for training; --data must be a folder with both files")
    return load_benchmark(name, path=data, limit=count, seed=seed)


def report(folder: Annotated[Path, typer.Argument(help="Of an evaluation.")]) -> None:
    """One HTML page of an evaluation, and its figures."""
    from relaylab.views.report import report

    console.print(f"the report is {report(folder)}", highlight=False, markup=False)


def scorecard(folder: Annotated[Path, typer.Argument(help="Of an evaluation of the embedded systems.")]) -> None:
    """The paper's claims beside our measurements, as a Markdown table; also in the folder, as scorecard.csv."""
    from relaylab.evaluation.published import markdown, scorecard
    from relaylab.evaluation.scorecard import measured
    from relaylab.evaluation.table import read_table

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
    from relaylab.evaluation.judge import Judge, audit
    from relaylab.relay.api_client import APIClient
    from relaylab.trace import read_traces

    found = audit(read_traces(traces), Judge(APIClient(server), model=model, max_requests=max_requests, cache=cache))
    console.print(str(found), highlight=False, markup=False)


def problems_named(suite: list[str] | None, data: Path | None, limit: int, split: str) -> list:
    """The problems that --suite or --data name; ``limit`` of each suite, or of the file."""
    from relaylab.tasks.data import load_problems
    from relaylab.tasks.suites import problems

    if bool(suite) == bool(data):
        raise ValueError("name either --suite or --data")
    return load_problems(data, limit=limit) if data else [p for s in suite for p in problems(s, limit, split=split)]


def _benchmark(name: str):
    from relaylab.tasks.benchmarks import benchmark

    return benchmark(name)
