"""The command line, from ``relaylab solve`` to ``relaylab doctor``; what measures is in ``measure.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relaylab import measure
from relaylab.lab import lab
from relaylab.measure import (
    Data,
    MaxTokens,
    Seed,
    Suffix,
    Suite,
    Teacher,
    TeacherTemperature,
    Tokenizer,
    problems_named,
)
from relaylab.notebook_commands import notebooks_run, sweep
from relaylab.trace import Trace, read_traces, to_frame
from relaylab.version import __version__
from relaylab.views.trace_view import trace_text, visible

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
zoo_app = typer.Typer(no_args_is_help=True, help="The embedded models: what they are, how they were made.")
app.add_typer(zoo_app, name="zoo")
notebooks_app = typer.Typer(no_args_is_help=True, help="The lessons as programs.")
app.add_typer(notebooks_app, name="notebooks")
console = Console()

OnFailure = StrEnum("OnFailure", {name: name for name in ("carry_on", "raise", "exclude")})

Student = Annotated[str, typer.Option(help="An embedded name, a directory, or a hub id.")]
Temperature = Annotated[float, typer.Option(min=0, help="The student's; 0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Sample the student from its most probable tokens alone.")]
MaxCalls = Annotated[int | None, typer.Option(min=0, help="Answered calls a response; no cap by default.")]
MaxCallTokens = Annotated[int | None, typer.Option(min=1, help="Tokens a call may be granted; no cap by default.")]
Unsure = Annotated[float | None, typer.Option(help="Call wherever the student's entropy is above this many nats.")]
Every = Annotated[int | None, typer.Option(min=1, help="Call wherever so many tokens have gone by without a call.")]
CallTokens = Annotated[int, typer.Option(min=1, help="Tokens asked for by --call-when-unsure and --call-every.")]
Failure = Annotated[OnFailure, typer.Option(help="Where the teacher fails: go on alone, stop all, or end that row.")]


@contextmanager
def _resumable() -> Iterator[None]:
    """For commands that keep what they have done: an interrupt says so."""
    try:
        yield
    except KeyboardInterrupt:
        text = "interrupted; what was finished is kept, and the same command goes on from there"
        print(f"\n{text}", file=sys.stderr)
        raise typer.Exit(130) from None


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
    student: Student = "relay",
    teacher: Teacher = "teacher",
    tokenizer: Tokenizer = None,
    teacher_temperature: TeacherTemperature = 0.0,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
    max_calls: MaxCalls = None,
    max_call_tokens: MaxCallTokens = None,
    call_when_unsure: Unsure = None,
    call_every: Every = None,
    call_tokens: CallTokens = 4,
    on_failure: Failure = OnFailure.carry_on,
    seed: Seed = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the trace as JSON.")] = False,
) -> None:
    """Relay one question and show the trace."""
    call_rule = _call_rule(call_when_unsure, call_every, call_tokens)
    trace = _pair(student, teacher, tokenizer, teacher_temperature).solve(
        question, seed=seed, temperature=temperature, top_p=top_p, max_tokens=max_tokens, max_calls=max_calls,
        max_call_tokens=max_call_tokens, call_rule=call_rule, on_failure=on_failure.value,
    )  # fmt: skip
    print(trace.to_json() if json_ else trace_text(trace))


@app.command()
@_resumable()
def decode(
    out: Annotated[Path, typer.Option(help="JSONL file of traces; run again to go on after an interrupt.")],
    suite: Suite = None,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Problems of each suite, or of the file.")] = 100,
    student: Student = "relay",
    teacher: Teacher = "teacher",
    tokenizer: Tokenizer = None,
    teacher_temperature: TeacherTemperature = 0.0,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
    max_calls: MaxCalls = None,
    max_call_tokens: MaxCallTokens = None,
    call_when_unsure: Unsure = None,
    call_every: Every = None,
    call_tokens: CallTokens = 4,
    on_failure: Failure = OnFailure.carry_on,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows decoded at a time.")] = 64,
    seed: Seed = 0,
) -> None:
    """Relay and grade many questions; resumes where it stopped."""
    chosen = problems_named(suite, data, limit, "test")
    call_rule = _call_rule(call_when_unsure, call_every, call_tokens)
    traces = _pair(student, teacher, tokenizer, teacher_temperature).decode(
        chosen, out=out, seed=seed, temperature=temperature, top_p=top_p, max_tokens=max_tokens, max_calls=max_calls,
        max_call_tokens=max_call_tokens, call_rule=call_rule, on_failure=on_failure.value, batch_size=batch_size,
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
    from relaylab.views.trace_view import trace_html

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


@app.command()
def warmup(
    out: Annotated[Path, typer.Option(help="Folder of the warmed-up student.")],
    suite: Suite = None,
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, help="Training problems of each suite, or of the file.")] = 400,
    check: Annotated[int, typer.Option(min=0, help="Test problems a suite to measure accuracy on; 0: none.")] = 50,
    student: Student = "student",
    temperature: Annotated[float, typer.Option(min=0, help="At which responses are sampled.")] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Responses of each problem.")] = 1,
    keep_correct: Annotated[bool, typer.Option(help="Leave wrong responses out.")] = False,
    sure: Annotated[float, typer.Option(min=0, max=1, help="Do not learn tokens of a smaller probability.")] = 0.0,
    exponent: Annotated[list[int] | None, typer.Option(help="n = d * 10^k: the k, several times; 0 1 2 3.")] = None,
    max_tokens: MaxTokens = 512,
    suffix: Suffix = "",
    rows_at_a_time: Annotated[int, typer.Option(min=1, help="Responses sampled together.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 250,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses a step.")] = 32,
    gradient_checkpointing: bool = False,
    learning_rate: float = 1e-3,
    full: Annotated[bool, typer.Option(help="Train all weights instead of an adapter.")] = False,
    seed: Seed = 0,
) -> None:
    """Stage 1: teach a student the syntax of a call on its own responses."""
    from relaylab.tasks.suites import problems
    from relaylab.training.warmup import warmup

    tests = [p for s in suite or () for p in problems(s, check)] if check else []
    done = warmup(
        student, problems_named(suite, data, limit, "train"), out, check=tests, steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, full=full, seed=seed, temperature=temperature, samples=samples,
        keep_correct=keep_correct, sure=sure, exponents=exponent or (0, 1, 2, 3), max_tokens=max_tokens, suffix=suffix,
        rows_at_a_time=rows_at_a_time, gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    console.print(str(done), highlight=False, markup=False)


@app.command()
@_resumable()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings; see configs/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="NAME=VALUE, over the file; VALUE is YAML.")
    ] = None,
) -> None:
    """Stage 2: GRPO with the relay; resumes where it stopped."""
    import yaml

    from relaylab.training.run import train
    from relaylab.training.run_dir import processes

    given = {}
    for pair in set_ or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: write NAME=VALUE")
        given[name] = yaml.safe_load(value)
    out = train(config, **given)
    if processes().is_main_process:
        told = f"the trained student is in {out}; try: relaylab solve --student {out} ..."
        console.print(told, highlight=False, markup=False)


@notebooks_app.callback()
def _notebooks() -> None:
    """The lessons as programs."""


notebooks_app.command("run")(notebooks_run)
app.command()(lab)
app.command()(_resumable()(sweep))
app.command("filter")(_resumable()(measure.filter_))
app.command()(_resumable()(measure.evaluate))
app.command()(measure.report)
app.command()(measure.scorecard)
app.command()(_resumable()(measure.judge))


@zoo_app.command("list")
def zoo_list() -> None:
    """The embedded models with their sizes and scores."""
    from relaylab.engine import load as zoo
    from relaylab.zoo.verify import percent

    known = zoo.manifest()
    levels = dict.fromkeys(s["level"] for e in known.values() for s in e.get("scores", {}).values())
    title, told = "Embedded models", "accuracy on test problems; by level: at temperature 1, calls forbidden"
    table = Table("model", title=title, caption=told)
    for column in ("parameters", *levels, "relay, greedy", "teacher tokens"):
        table.add_column(column, justify="right")
    for name in zoo.embedded():
        entry = known.get(name, {})
        by_level = [[s for s in entry.get("scores", {}).values() if s["level"] == level] for level in levels]
        relays = list(entry.get("relay_scores", {}).values())
        table.add_row(
            name,
            f"{entry['parameters']:,}" if "parameters" in entry else "-",
            *(percent(_share(scores, "right", "count")) for scores in by_level),
            percent(_share(relays, "right", "count")),
            percent(_share(relays, "teacher", "tokens")),
        )
    console.print(table)


@zoo_app.command("train")
@_resumable()
def zoo_train(
    name: Annotated[str, typer.Argument(help="A name of `zoo list`.")],
    out: Annotated[Path, typer.Option(help="Where to put the model.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps than the recipe's, for a try.")] = None,
) -> None:
    """Make an embedded model anew; resumes where it stopped."""
    import torch

    from relaylab.zoo.recipes import make

    torch.set_num_threads(threads)
    make(name, out, device=device, steps=steps)
    console.print(f"{name} is in {out}; try: relaylab solve --student {out} ...", highlight=False, markup=False)


@zoo_app.command("verify")
def zoo_verify(
    count: Annotated[int, typer.Option(min=0, help="Test problems a suite to score anew; 0 checks files alone.")] = 100,
    write: Annotated[bool, typer.Option(help="Write checksums and scores to the manifest instead.")] = False,
) -> None:
    """Check the embedded models: checksums, scores against the manifest's, and what is required of the pair."""
    from relaylab.zoo.verify import verify, write_manifest

    if write:
        write_manifest(count=count)
    findings = verify(count=0 if write else count)  # what was scored just now would come out the same
    for finding in findings:
        console.print(
            ("ok    " if finding.ok else "WRONG ") + finding.text, highlight=False, markup=False, soft_wrap=True
        )
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


@app.command()
def doctor(api: Annotated[str | None, typer.Option(help="The URL of a server to ask as well.")] = None) -> None:
    """What this machine can run, and why not."""
    from relaylab.doctor import report

    if not report(api):
        raise typer.Exit(1)


def _share(scores: list[dict[str, int]], part: str, whole: str) -> float | None:
    """Over all suites; None where nothing was scored."""
    total = sum(s[whole] for s in scores)
    return sum(s[part] for s in scores) / total if total else None


def _pair(student: str, teacher: str, tokenizer: str | None, teacher_temperature: float):
    from relaylab.relay.pair import load_pair

    url = teacher.startswith(("http://", "https://"))
    if tokenizer and not url:
        raise ValueError("--tokenizer is for a teacher behind a URL; a local one brings its own")
    return load_pair(student, teacher, teacher_options={"temperature": teacher_temperature, "tokenizer": tokenizer})


def _call_rule(threshold: float | None, every: int | None, n: int):
    from relaylab.relay.call_rules import CallEvery, CallWhenUnsure

    if threshold is not None and every is not None:
        raise ValueError("name --call-when-unsure or --call-every, not both")
    if every is not None:
        return CallEvery(every, n)
    return None if threshold is None else CallWhenUnsure(threshold, n)


def _table(traces: list[Trace]) -> Table:
    """One row a suite: problems, accuracy, call ratio, calls. What a file calls a suite may be anything."""
    table = Table()
    for column in ("suite", "problems", "correct", "teacher tokens", "calls a response", "tokens a response"):
        name = column == "suite"
        table.add_column(column, justify="left" if name else "right", no_wrap=name)
    frame = to_frame(traces)
    frame["suite"] = [visible(str(t.problem.get("suite") or "-")) for t in traces]
    for suite, rows in frame.groupby("suite", sort=False):
        correct = rows["correct"].dropna()
        table.add_row(
            Text(suite),
            str(len(rows)),
            f"{100 * correct.mean():.1f} %" if len(correct) else "-",
            f"{100 * rows['teacher_tokens'].sum() / max(1, rows['tokens'].sum()):.1f} %",
            f"{rows['calls'].mean():.2f}",
            f"{rows['tokens'].mean():.1f}",
        )
    return table


def main() -> None:
    """The entry point: an error that a user can mend is one line on stderr, with exit code 2."""
    try:
        app(prog_name="relaylab")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"relaylab: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
