"""The commands that measure: ``relaylab evaluate``, ``calibrate``, ``map``, ``report`` and ``scorecard``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from relaylab import options as opt
from relaylab.defaults import UNTRAINED
from relaylab.options import console, option, say, warn
from relaylab.views.tables import method_table

# What measures is imported when a command runs: `relaylab -h` needs none of it.


def evaluate_command(
    out: Annotated[Path, option("Folder of traces and tables; the same command resumes, or adds methods.")],
    questions: opt.Questions,
    teacher: opt.Teachers,
    relay: opt.Relay,
    methods: Annotated[
        str, option("'router:p=0.3 relay:student=a+b'; docs/evaluation.md lists them.")
    ] = "student teacher relay",
    student: Annotated[str, option("The untrained one, for methods that name no other.")] = UNTRAINED,
    samples: opt.Samples = 1,
    training: Annotated[int, option("Training problems for methods that learn (citer, r2r, steer).", min=0)] = 300,
    training_benchmark: Annotated[str | None, option("Their source, such as gsm8k_train.")] = None,
    batch_size: opt.BatchSize = 64,
    shard: opt.Shard = None,
    seed: opt.Seed = 0,
) -> None:
    """Decode the same problems with every method: traces, a table and a summary.

    Default: 200 problems of each suite, all of a benchmark or of a file.
    """
    problems = questions.load(None, seed=seed)
    teacher.start(student, teacher.teacher)
    from relaylab.evaluation.evaluate import evaluate
    from relaylab.evaluation.stats import summary
    from relaylab.evaluation.table import excluded_methods
    from relaylab.tasks.benchmarks import training_problems

    table = evaluate(
        methods.split(), problems, out, student=student, samples=samples, seed=seed, batch_size=batch_size, shard=shard,
        teacher=teacher.teacher if teacher.named_only else teacher.load(), suffix=questions.suffix,
        training=training_problems(training_benchmark, training, path=questions.data, seed=seed),
        **relay, **teacher.keywords,
    )  # fmt: skip
    if shard:
        say(f"{len(table)} answers of shard {shard}; without --shard the same command makes the tables")
    else:
        console.print(method_table(summary(table)))
        say(f"{len(table)} rows in {out / 'table.csv'}; next: relaylab report {out}")
    if lost := excluded_methods(table):
        warn(f"{', '.join(lost)}: every answer is excluded, because a model failed")
        raise typer.Exit(1)


def calibrate_command(
    out: Annotated[Path, option("Folder of the candidates' traces and of thresholds.csv; the same command resumes.")],
    questions: opt.Questions,
    teacher: opt.Teachers,
    student: Annotated[str, option("The untrained one.")] = UNTRAINED,
    budget: Annotated[list[float], option("Largest share of teacher tokens; may be repeated.")] = [0.02, 0.05, 0.1],  # noqa: B006
    max_tokens: opt.MaxTokens = 160,
    seed: opt.Seed = 0,
) -> None:
    """Choose each trigger's threshold and call length on training problems, at budgets of teacher tokens.

    Default: 20 problems of each suite or benchmark, or of the file, and as many others to train routers on.
    """
    problems, router_problems = questions.load_apart(20, split="train", seed=seed)
    teacher.start(student, teacher.teacher)
    from relaylab.evaluation.calibrate import TRIGGERS, calibrate

    chosen = calibrate(
        problems, out, student=student, teacher=teacher.load(), budgets=budget, max_tokens=max_tokens, seed=seed,
        router_problems=router_problems, **teacher.keywords,
    )  # fmt: skip
    print(chosen.round(4).to_string(index=False))
    found = set(zip(chosen["trigger"], chosen["budget"]))
    if lacking := [f"{t} at {b:g}" for t in TRIGGERS for b in budget if (t, b) not in found]:
        say(f"no candidate is within the budget: {', '.join(lacking)}")
    say(f'next: relaylab evaluate ... --methods "student teacher {" ".join(chosen["method"].drop_duplicates())}"')


def map_command(
    out: Annotated[Path, option("Folder of the worlds, map.csv and map.html; the same command resumes.")] = Path(
        "runs/map"
    ),
    world: Annotated[list[str], option("A world; may be repeated. Default: all that have a student.")] = [],  # noqa: B006
    count: Annotated[int, option("Test problems of each suite.", min=1)] = 200,
    training: Annotated[int, option("Training problems of each suite; as many for h and c.", min=1)] = 20,
    quick: Annotated[bool, option("A look: three triggers, few candidates.")] = False,
    models: Annotated[
        Path | None, option("Folder of models by `zoo train`, as MODELS/h2c1-relay; else shipped.")
    ] = None,
    measured: Annotated[Path | None, option("JSON of other pairs: name -> what dials.json has of a world.")] = None,
) -> None:
    """Which way of asking for help wins in which world, at 2, 5 and 10 % teacher tokens.

    A student takes part where the lower end of the interval of its share is within the budget.
    """
    from relaylab.evaluation import method_map as maps
    from relaylab.evaluation.frontier import frontiers
    from relaylab.evaluation.stats import summary
    from relaylab.evaluation.table import write_table
    from relaylab.files import write_whole
    from relaylab.views.evaluation_figures import accuracy_against_share
    from relaylab.views.method_map import map_figure
    from relaylab.views.theme import html_page, show_figure

    others, found, planes = _pairs_of(measured) if measured else {}, {}, []
    if not (names := world or maps.worlds(models)):
        remedy = f"make one: relaylab zoo train h2c1/student --out {models}/h2c1-student"
        raise ValueError(f"no world has a student in {models}; {remedy}")
    for name in names:
        dials = maps.measure_dials(name, out / name, per_suite=training, models=models)
        table, chosen = maps.measure_world(
            name, out / name, count=count, per_suite=training, quick=quick, models=models
        )
        found[name] = dials, maps.winners(table, chosen)
        write_table(maps.at_budgets(table, chosen), out / name / "methods.csv")
        plane = accuracy_against_share(table).update_layout(title_text=f"Accuracy against the teacher's share: {name}")
        planes.append(plane.update_xaxes(range=[-0.5, 12]))  # the teacher alone stands at 100 %
        say(f"{name}: h {dials['harmless']['value']:.2f}, c {dials['confident']['value']:.2f}")
        console.print(method_table(summary(table)))
        print(maps.compared(table, chosen).round(3).to_string(index=False))
        whole = frontiers(table, maps.family)
        write_table(whole, out / name / "frontier.csv")
        print(whole.round(3).to_string(index=False))
    drawn = maps.draw_map(found)
    write_table(drawn, out / "map.csv")
    figures = "".join(show_figure(fig).html for fig in (map_figure(drawn, others), *planes))
    write_whole(out / "map.html", html_page("When learning to call pays", figures, "report.css"))
    print(drawn.drop(columns=["low", "high", "gap_low", "gap_high"]).round(3).to_string(index=False))
    say("a student takes part where the lower end of the interval of its share is within the budget")
    say(f"the map is {out / 'map.html'}")


def _pairs_of(path: Path) -> dict[str, Any]:
    """The pairs of a file of ``--measured``, before anything is measured."""
    from relaylab.views.method_map import pair_place

    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); write name -> what dials.json has of a world") from None
    if not isinstance(pairs, dict):
        raise ValueError(f"{path} holds a {type(pairs).__name__}; write name -> what dials.json has of a world")
    for name, dials in pairs.items():
        pair_place(name, dials)
    return pairs


EvaluationFolder = Annotated[Path, typer.Argument(help="Folder of an evaluation.")]


def report_command(folder: EvaluationFolder) -> None:
    """One HTML page of an evaluation, and its figures."""
    from relaylab.views.report import report

    say(f"the report is {report(folder)}")


def scorecard_command(folder: EvaluationFolder) -> None:
    """The paper's claims beside our measurements, as a Markdown table and as scorecard.csv in the folder."""
    from relaylab.evaluation.scorecard import markdown, measured, scorecard
    from relaylab.evaluation.table import read_table, write_table

    card = scorecard(measured(read_table(folder)))
    write_table(card, folder / "scorecard.csv")
    print(markdown(card))
