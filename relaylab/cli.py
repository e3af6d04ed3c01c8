"""The command line. Options are in ``options.py``; each command calls one function of the package."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from relaylab import measure_commands as measure
from relaylab import options as opt
from relaylab.defaults import STUDENT, UNTRAINED
from relaylab.files import shard_path
from relaylab.notebook_commands import notebooks_run, sweep
from relaylab.options import command, console, option, say, warn
from relaylab.submissions import grade_command
from relaylab.trace import Trace, read_traces
from relaylab.views.tables import trace_table, zoo_table
from relaylab.views.trace_view import trace_text

SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "no_args_is_help": True}
app = typer.Typer(**SETTINGS, add_completion=False, pretty_exceptions_enable=False, help="Relay decoding.")
zoo_app = typer.Typer(**SETTINGS, help="The embedded models.")
notebooks_app = typer.Typer(**SETTINGS, help="The lessons as programs.")
app.add_typer(zoo_app, name="zoo")
app.add_typer(notebooks_app, name="notebooks")
command(notebooks_app, "run")(notebooks_run)

NO_BOX = (
    r"no answer holds a \boxed{}, and answers are read from it. "
    r"Ask for one: --prompt-suffix 'Put your final answer within \boxed{}.'"
)
# Modules whose errors are about inputs, besides ValueError, OSError, RuntimeError and ImportError.
FOREIGN = ("jinja2", "safetensors", "safetensors_rust", "pyo3_runtime", "openai", "httpx", "yaml")
FULL = ("No space left", "PytorchStreamWriter", "inline_container.cc")  # what libraries say of a full disk


@app.callback()
def _top(
    version: opt.Version = False,
    debug: Annotated[bool, option("Show the traceback of an error; also after a command.", "--debug")] = False,
) -> None:
    pass


@command(app, "solve")
def _solve(
    question: str,
    models: opt.Pairs,
    relay: opt.Relay,
    calls: opt.Calls,
    student: opt.Student = STUDENT,
    prompt_suffix: Annotated[str, option("Put after the question.")] = "",
    system: opt.System = None,
    seed: opt.Seed = 0,
    json_: Annotated[bool, option("Print the trace as JSON.", "--json")] = False,
) -> None:
    """Relay one question and show the trace."""
    if not question.strip():
        raise ValueError("the question is empty")
    text = f"{question}\n{prompt_suffix}" if prompt_suffix else question
    keywords = relay | calls.keywords(models.teacher, relay)
    trace = models.pair(student).solve(text, seed=seed, system=system, **keywords)
    print(trace.to_json() if json_ else trace_text(trace))
    _check_answers([trace])


@command(app, "decode", resumes=True)
def _decode(
    out: Annotated[Path, option("JSON Lines file of traces; the same command resumes.")],
    questions: opt.Questions,
    models: opt.Pairs,
    relay: opt.Relay,
    calls: opt.Calls,
    student: opt.Student = STUDENT,
    system: opt.System = None,
    batch_size: opt.BatchSize = 64,
    shard: opt.Shard = None,
    seed: opt.Seed = 0,
) -> None:
    """Relay and grade many questions. Default: 100 of each suite or benchmark, all rows of a file."""
    _check_output(out, questions.data, "--out", "--data")
    problems = [replace(p, question=p.prompt(questions.suffix)) for p in questions.load(100)]
    from relaylab.relay.pair import notice

    keywords = relay | calls.keywords(models.teacher, relay)
    pair = models.pair(student)
    if hint := notice(pair.student, *(p.question for p in problems)):
        warn(hint)
    traces = pair.decode(problems, out=out, seed=seed, system=system, batch_size=batch_size, shard=shard, **keywords)
    console.print(trace_table(traces))
    say(f"{len(traces)} traces in {shard_path(out, shard)}")
    _check_answers(traces)


@command(app, "show")
def _show(
    traces: Annotated[Path, typer.Argument(help="JSON Lines file of traces.")],
    limit: Annotated[int, option("Traces to show.", min=0)] = 5,
    id_: Annotated[str | None, option("Show this trace only; a page begins with it.", "--id")] = None,
    html: Annotated[Path | None, option("Write a page that plays them instead.")] = None,
) -> None:
    """Show the traces of a file, and a summary of all of them."""
    _check_output(html, traces, "--html", "the file of traces")
    everything = _read(traces)
    chosen = [t for t in everything if t.id == id_] if id_ else everything[:limit]
    if id_ and not chosen:
        raise ValueError(f"{traces} has no trace {id_!r}")
    if html:
        from relaylab.views.player import player

        chosen = sorted(everything, key=lambda t: t.id != id_)[:limit]  # the file's order, behind that one
        player(chosen).save(html)
        return say(f"{len(chosen)} traces in {html}")
    for trace in chosen:
        print(trace_text(trace), end="\n\n")
    console.print(trace_table(everything))


@command(app, "warmup", resumes=True)
def _warmup(
    out: Annotated[Path, option("Folder of the warmed-up student.")],
    questions: opt.Questions,
    models: opt.Models,
    settings: opt.Warmup,
    student: Annotated[str, option("An embedded name, a directory or a hub id.")] = UNTRAINED,
    exponents: Annotated[list[int], option("The k of n = d * 10^k; repeatable.", "--exponent", min=0)] = [0, 1, 2, 3],  # noqa: B006
    check: Annotated[int, option("Test problems per suite to measure accuracy on; 0: none.", min=0)] = 50,
    seed: opt.Seed = 0,
) -> None:
    """Stage 1: teach a student the syntax of a call, on its own responses.

    Default: 400 problems of each suite or benchmark, all rows of a file.
    """
    training = questions.load(400, split="train")
    models.start(student)
    if settings.teacher in models.own:
        raise ValueError(f"--teacher {settings.teacher}: a warm-up takes a name, a folder or a URL; a teacher of your "
                         "own answers in Python (relaylab.training.warmup_data)")  # fmt: skip
    from relaylab.tasks.suites import problems
    from relaylab.training.warmup import warmup

    tests = [p for s in questions.suite or () if check for p in problems(s, check)]
    keywords: dict[str, Any] = vars(settings) | {"teacher": settings.teacher or None} | models.keywords
    keywords |= {"prompt_suffix": questions.suffix, "exponents": exponents, "seed": seed}
    say(str(warmup(student, training, out, check=tests, **keywords)))


@command(app, "train", resumes=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _train(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="A YAML file of settings, or the name of a shipped run.")],
    process: opt.Process,
) -> None:
    """Stage 2: GRPO with the relay. Settings follow the file: --max_steps 300 --output_dir runs/a.

    docs/training.md says where the settings are listed.
    """
    process.import_files()
    from relaylab.training.config import parse_config
    from relaylab.training.grpo import train
    from relaylab.training.run_dir import processes

    settings = parse_config(config, context.args)
    process.set_threads(str(settings.student), *settings.teacher)
    out = train(settings)
    if processes().is_main_process:
        say(f"the trained student is in {out}; try: relaylab solve --student {out} ...")


@command(app, "filter", resumes=True)
def _filter(
    out: Annotated[Path, option("JSON Lines file of pass rates; the same command resumes.")],
    questions: opt.Questions,
    teacher: opt.Teachers,
    samples: opt.Samples = 10,
    threshold: Annotated[float, option("For the summary only: the file has all rates.", min=0, max=1)] = 0.5,
    max_tokens: opt.MaxTokens = 512,
    batch_size: opt.BatchSize = 128,
    shard: opt.Shard = None,
    seed: opt.Seed = 0,
) -> None:
    """The data filter of stage 2: how often does the teacher solve each problem?

    Default: 100 problems of each suite or benchmark, all rows of a file.
    """
    _check_output(out, questions.data, "--out", "--data")
    problems = questions.load(100, split="train")
    teacher.start(teacher.teacher)
    from relaylab.training.data_filter import keep, pass_rates

    rates = pass_rates(
        teacher.load(temperature=1.0), problems, out, samples=samples, max_tokens=max_tokens,
        prompt_suffix=questions.suffix, seed=seed, batch_size=batch_size, shard=shard,
    )  # fmt: skip
    say(f"{len(keep(rates, threshold))} of {len(rates)} problems have a pass rate of at least {threshold}")
    say(f"all rates are in {shard_path(out, shard)}")
    raise typer.Exit(0 if any(rate.samples for rate in rates) else 1)


command(app, "evaluate", resumes=True)(measure.evaluate_command)
command(app, "calibrate", resumes=True)(measure.calibrate_command)
command(app, "map", resumes=True)(measure.map_command)
command(app, "report")(measure.report_command)
command(app, "scorecard")(measure.scorecard_command)
command(app, "sweep", resumes=True)(sweep)


@command(app, "judge", resumes=True)
def _judge(
    traces: Annotated[Path, typer.Argument(help="JSON Lines file of graded traces.")],
    server: Annotated[str, option("URL of an OpenAI-compatible server; the key is OPENAI_API_KEY.")],
    max_requests: Annotated[int, option("The most questions that are sent: each costs money.", min=1)],
    model: Annotated[str, option("As the server calls it.")] = "gpt-4o-mini",
    cache: Annotated[Path | None, option("JSON Lines file of replies, so that none is paid for twice.")] = None,
) -> None:
    """Audit the grader: a chat model judges right and wrong answers alike; where do the two differ?"""
    from relaylab.evaluation.judge import Judge, audit
    from relaylab.relay.api_client import APIClient

    _check_output(cache, traces, "--cache", "the file of traces")
    judge = Judge(APIClient(server), model=model, max_requests=max_requests, cache=cache)
    result = audit(_read(traces), judge)
    say(str(result))
    raise typer.Exit(0 if result.judged else 1)


@command(app, "serve")
def _serve(
    models: opt.Pairs,
    relay: opt.Relay,
    calls: opt.Calls,
    student: opt.Student = STUDENT,
    host: Annotated[str, option("Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen at.", min=1, max=65535)] = 8000,
    name: Annotated[str | None, option("What clients call the pair. Default: student+teacher.")] = None,
    max_batch: Annotated[int, option("Answers decoded together.", min=1)] = 64,
    max_waiting: Annotated[int, option("Answers that may wait for a place; more are refused.", min=0)] = 256,
    max_body: Annotated[int, option("Largest request in bytes.", min=1)] = 2**20,
    drain: Annotated[int, option("Seconds that answers may still take after SIGTERM.", min=0)] = 30,
) -> None:
    """Serve the pair by the API of OpenAI. With RELAYLAB_API_KEY set, requests need that key."""
    if missing := [name for name in ("prometheus_client", "starlette", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f"serving needs {', '.join(missing)}: pip install 'relaylab[serve]'")
    key = os.environ.get("RELAYLAB_API_KEY") or None
    if key is None and host not in ("127.0.0.1", "::1", "localhost"):
        warn(f"everybody who reaches {host} can use this server; set RELAYLAB_API_KEY to ask for a key")
    keywords: dict[str, Any] = {"on_failure": "exclude"} | relay | calls.keywords(models.teacher, relay)
    say(f"loading {student} and its teacher; nobody is answered before the next line")
    pair = models.pair(student)
    from relaylab.server.app import Server, serve

    loop = pair.relay(batch_size=max_batch, **keywords)
    name = name or f"{pair.student.name}+{pair.teacher.name}"
    server = Server(loop, name, api_key=key, max_waiting=max_waiting, max_body=max_body)
    say(f"{server.name} at http://{host}:{port}/v1")
    serve(server, host=host, port=port, drain=drain)


@command(app, "lab")
def _lab(
    folder: Annotated[
        Path | None, typer.Argument(help="Your copy. Default: relaylab-lessons, or relaylab-solutions.")
    ] = None,
    solutions: Annotated[bool, option("For instructors: the lessons with their solutions.", "--solutions")] = False,
    open_: Annotated[bool, option("Open JupyterLab there.", "--open/--no-open")] = True,
    jupyter: Annotated[list[str] | None, option("For JupyterLab: --jupyter=--no-browser; may be repeated.")] = None,
) -> None:
    """Copy the lessons to a folder of your own, and open JupyterLab there. What you changed is never overwritten."""
    from relaylab.lab import open_lab

    folder = folder or Path("relaylab-solutions" if solutions else "relaylab-lessons")
    raise typer.Exit(open_lab(folder, open_=open_, jupyter=jupyter or (), solutions=solutions))


command(app, "grade")(grade_command)


@command(app, "doctor")
def _doctor(api: Annotated[str | None, option("The URL of a server to ask as well.")] = None) -> None:
    """What this machine can run, and why not."""
    from relaylab.doctor import print_diagnosis

    raise typer.Exit(0 if print_diagnosis(api) else 1)


@command(zoo_app, "list")
def _zoo_list(everything: Annotated[bool, option("Further seeds and ablations, too.", "--all")] = False) -> None:
    """The embedded models with their sizes and scores."""
    from relaylab.engine.load import embedded, manifest

    names = [name for name in embedded() if everything or not ("-seed" in name or name.startswith("ablations/"))]
    console.print(zoo_table({name: manifest().get(name, {}) for name in names}))
    if hidden := len(embedded()) - len(names):
        say(f"{hidden} further seeds and ablations, with --all")


@command(zoo_app, "train", resumes=True)
def _zoo_train(
    name: Annotated[str, typer.Argument(help="A name of `zoo list`.")],
    out: Annotated[Path, option("Folder of the model.")],
    device: Annotated[str, option("cpu or cuda.")] = "cpu",
    threads: Annotated[int, option("CPU threads; more are hardly faster.", min=1)] = 1,
    steps: Annotated[int | None, option("Fewer steps than the recipe's, for a try.", min=1)] = None,
) -> None:
    """Make an embedded model from its recipe."""
    opt.Process(threads).start()
    from relaylab.zoo.recipes import make

    make(name, out, device=device, steps=steps)
    say(f"{name} is in {out}; try: relaylab solve --student {out} ...")


@command(zoo_app, "verify")
def _zoo_verify(
    count: Annotated[int, option("Test problems per suite to score; 0 checks files only.", min=0)] = 100,
    write: Annotated[bool, option("Write checksums and scores to the manifest instead.")] = False,
) -> None:
    """Check the embedded models: their files and scores against the manifest, and what is required of the pair."""
    from relaylab.zoo.verify import verify, write_manifest

    if write:
        write_manifest(count=count)
    findings = verify(count=0 if write else count)
    for finding in findings:
        say(("ok    " if finding.ok else "WRONG ") + finding.text)
    raise typer.Exit(0 if all(f.ok for f in findings) else 1)


def _read(path: Path) -> list[Trace]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file of traces")
    if not (traces := list(read_traces(path))):
        raise ValueError(f"{path} has no trace in it")
    return traces


def _check_output(path: Path | None, other: Path | None, name: str, other_name: str) -> None:
    if path and path.is_dir():
        raise ValueError(f"{name} {path} is a folder; name a file")
    if path and other and path.resolve() == other.resolve():
        raise ValueError(f"{name} and {other_name} are both {path}; choose another file")


def _check_answers(traces: list[Trace]) -> None:
    """Say what keeps answers from being read or graded. Exit with 1 if every call or every answer failed."""
    if traces and not any("\\boxed" in t.text for t in traces):
        ended = all(t.stop == "teacher_end" for t in traces)
        warn(r"no answer holds a \boxed{}: the teacher ended each one (finish_reason 'stop')" if ended else NO_BOX)
    if excluded := sum(t.stop == "excluded" for t in traces):
        warn(f"{excluded} of {len(traces)} answers are excluded: a model failed. The same command tries again")
    calls = [c for t in traces for c in t.calls if c.status in ("answered", "failed")]
    if calls and all(c.status == "failed" for c in calls):
        warn(f"every call failed; the last error: {calls[-1].error}")
        raise typer.Exit(1)
    if traces and excluded == len(traces):
        raise typer.Exit(1)


def main() -> None:
    """The entry point. An error that the user can mend is one line, with exit code 2."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is an interrupt, too
    warnings.showwarning = warn
    try:
        app(words, prog_name="relaylab")
    except BaseException as error:  # PanicException of the tokenizers library is none of Exception
        if isinstance(error, SystemExit) or len(words) < len(sys.argv) - 1:
            raise
        foreseen = isinstance(error, (ValueError, OSError, RuntimeError, ImportError))
        text = str(error) or type(error).__name__
        if any(words in text for words in FULL):
            text += "; if the disk is full, free some space and run the same command again"
        if foreseen or type(error).__module__.split(".")[0] in FOREIGN:
            warn(text)
            sys.exit(2)
        name = " ".join(word for word in words[:2] if word.isalpha())
        remedy = "Please report this, with what the same command prints with --debug"
        warn(f"{name}: a fault of relaylab ({type(error).__name__}: {text}). {remedy}")
        sys.exit(1)
