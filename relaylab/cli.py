"""The command line: ``relaylab solve | decode | show | zoo | doctor``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from relaylab.trace import Trace, read_traces, to_frame
from relaylab.version import __version__
from relaylab.viz.view import trace_text

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
zoo_app = typer.Typer(no_args_is_help=True, help="The embedded models: what they are, how they were made.")
app.add_typer(zoo_app, name="zoo")
console = Console()

Student = Annotated[str, typer.Option(help="An embedded name, a directory, or a hub id.")]
Teacher = Annotated[str, typer.Option(help="The same, the URL of an OpenAI-compatible server, or 'none'.")]
Tokenizer = Annotated[str | None, typer.Option(help="For a URL: the model whose tokenizer the server uses.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Completion tokens in all.")]
MaxCalls = Annotated[int | None, typer.Option(min=0, help="Answered calls a response; no cap by default.")]
MaxCallTokens = Annotated[int | None, typer.Option(min=1, help="Tokens a call may be granted; no cap by default.")]
Unsure = Annotated[float | None, typer.Option(help="Call wherever the student's entropy is above this many nats.")]
CallTokens = Annotated[int, typer.Option(min=1, help="Tokens asked for by --call-when-unsure.")]
Seed = Annotated[int, typer.Option(min=0, help="The first row's seed; matters when sampling.")]


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


@app.command()
def solve(
    question: str,
    student: Student = "warm",
    teacher: Teacher = "teacher",
    tokenizer: Tokenizer = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
    max_calls: MaxCalls = None,
    max_call_tokens: MaxCallTokens = None,
    call_when_unsure: Unsure = None,
    call_tokens: CallTokens = 4,
    seed: Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the trace as JSON.")] = False,
) -> None:
    """Relay one question and show the trace."""
    trace = _pair(student, teacher, tokenizer, temperature).solve(
        question, seed=seed, temperature=temperature, max_tokens=max_tokens, max_calls=max_calls,
        max_call_tokens=max_call_tokens, policy=_policy(call_when_unsure, call_tokens),
    )  # fmt: skip
    print(trace.to_json() if json_ else trace_text(trace))


@app.command()
def decode(
    out: Annotated[Path, typer.Option(help="JSONL file of traces; run again to go on after an interrupt.")],
    suite: Annotated[list[str] | None, typer.Option(help="An embedded suite; several times for several.")] = None,
    data: Annotated[Path | None, typer.Option(help="A JSONL, JSON or CSV file of questions and answers.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Problems of each suite, or of the file.")] = 100,
    student: Student = "warm",
    teacher: Teacher = "teacher",
    tokenizer: Tokenizer = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
    max_calls: MaxCalls = None,
    max_call_tokens: MaxCallTokens = None,
    call_when_unsure: Unsure = None,
    call_tokens: CallTokens = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded at a time.")] = 64,
    seed: Seed = 0,
) -> None:
    """Relay and grade many questions; resumes where it stopped."""
    from relaylab.tasks.data import load_problems
    from relaylab.tasks.suites import problems

    if bool(suite) == bool(data):
        raise ValueError("name either --suite or --data")
    chosen = load_problems(data, limit=limit) if data else [p for s in suite for p in problems(s, limit)]
    traces = _pair(student, teacher, tokenizer, temperature).decode(
        chosen, out=out, seed=seed, temperature=temperature, max_tokens=max_tokens, max_calls=max_calls,
        max_call_tokens=max_call_tokens, policy=_policy(call_when_unsure, call_tokens), batch_size=batch_size,
    )  # fmt: skip
    console.print(_table(traces))
    console.print(f"{len(traces)} traces in {out}", highlight=False, markup=False)


@app.command()
def show(
    traces: Path,
    limit: Annotated[int, typer.Option(min=0, help="Traces to show.")] = 5,
    id_: Annotated[str | None, typer.Option("--id", help="Show this trace alone.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write them as a page instead.")] = None,
) -> None:
    """Show the traces of a file, and a summary of all of them."""
    from relaylab.viz.view import trace_html

    found = list(read_traces(traces))
    chosen = [t for t in found if t.id == id_] if id_ else found[:limit]
    if id_ and not chosen:
        raise ValueError(f"{traces} has no trace {id_!r}")
    if html:
        head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        body = "\n".join(trace_html(t) for t in chosen)
        html.write_text(f"{head}<title>relaylab</title>{body}", encoding="utf-8")
        console.print(f"{len(chosen)} traces in {html}", highlight=False, markup=False)
        return
    for trace in chosen:
        print(trace_text(trace), end="\n\n")
    console.print(_table(found))


@zoo_app.command("list")
def zoo_list() -> None:
    """The embedded models with their sizes and scores."""
    from relaylab.models import zoo

    table = Table(title="Embedded models", caption="accuracy at temperature 1 on test problems, calls forbidden")
    known = zoo.manifest()
    suites = list(next((m["scores"] for m in known.values() if m.get("scores")), {}))
    for column in ("model", "parameters", *suites):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in zoo.embedded():
        entry = known.get(name, {})
        scores = [f"{100 * s['right'] / s['count']:.0f} %" for s in entry.get("scores", {}).values()]
        table.add_row(name, f"{entry.get('parameters', 0):,}", *scores)
    console.print(table)


@zoo_app.command("train")
def zoo_train(
    name: Annotated[str, typer.Argument(help="student, teacher or warm")],
    out: Annotated[Path, typer.Option(help="Where to put the model.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps than the recipe's, for a try.")] = None,
) -> None:
    """Make an embedded model anew; resumes where it stopped."""
    import torch

    from relaylab.training.recipes import make

    torch.set_num_threads(threads)
    make(name, out, device=device, steps=steps)
    console.print(f"{name} is in {out}; try: relaylab solve --student {out} ...", highlight=False, markup=False)


@zoo_app.command("verify")
def zoo_verify(
    count: Annotated[int, typer.Option(min=0, help="Test problems a suite to score anew; 0 checks files alone.")] = 100,
    write: Annotated[bool, typer.Option(help="Write checksums and scores to the manifest instead.")] = False,
) -> None:
    """Check the embedded models' checksums, and their scores against the manifest's."""
    from relaylab.analysis.verify import verify, write_manifest

    if write:
        write_manifest(count=count)
    findings = verify(count=count)
    for finding in findings:
        console.print(("ok    " if finding.ok else "WRONG ") + finding.text, highlight=False, markup=False)
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


@app.command()
def doctor(api: Annotated[str | None, typer.Option(help="The URL of a server to ask as well.")] = None) -> None:
    """What this machine can run, and why not."""
    from relaylab.doctor import report

    if not report(api):
        raise typer.Exit(1)


def _pair(student: str, teacher: str, tokenizer: str | None, temperature: float):
    from relaylab.decoding.pair import load_pair

    url = teacher.startswith(("http://", "https://"))
    if tokenizer and not url:
        raise ValueError("--tokenizer is for a teacher behind a URL; a local one brings its own")
    options = {"temperature": temperature} | ({"tokenizer": tokenizer} if tokenizer else {})
    return load_pair(student, teacher, teacher_options={} if teacher == "none" else options)


def _policy(threshold: float | None, n: int):
    from relaylab.decoding.policies import CallWhenUnsure

    return None if threshold is None else CallWhenUnsure(threshold, n)


def _table(traces: list[Trace]) -> Table:
    """One row a suite: problems, accuracy, call ratio, calls."""
    table = Table()
    for column in ("suite", "problems", "correct", "teacher tokens", "calls a response", "tokens a response"):
        table.add_column(column, justify="left" if column == "suite" else "right")
    frame = to_frame(traces)
    frame["suite"] = frame["suite"].fillna("-")
    for suite, rows in frame.groupby("suite", sort=False):
        correct = rows["correct"].dropna()
        table.add_row(
            str(suite),
            str(len(rows)),
            f"{100 * correct.mean():.1f} %" if len(correct) else "-",
            f"{100 * rows['teacher_tokens'].sum() / max(1, rows['tokens'].sum()):.1f} %",
            f"{rows['calls'].mean():.2f}",
            f"{rows['tokens'].mean():.1f}",
        )
    return table


def main() -> None:
    """The entry point: errors a user can mend are one line, an interrupt says how to go on."""
    try:
        app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"relaylab: {error}", file=sys.stderr)
        sys.exit(2)
