r"""The pictures of the series: each as PNG and SVG, the numbers behind it as CSV, and an index: what, and how made.

    relaylab evaluate ...                      # the command of docs/results.md, into runs/eval
    python figures/make.py runs/eval --run relay=runs/relay --run relay-seed2=runs/relay-seed2 \
        --sweep notebooks/measured/rewards.csv

Reads what the evaluation, the training runs and the sweeps left, and runs no model. Pictures are drawn by plotly and
kaleido, the token strip (PNG and HTML) by the browser itself; both need a Chromium. Where there is none, all pictures
are HTML.
"""

from __future__ import annotations

import html
import json
import os
import platform
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer

from relaylab.doctor import find_browser
from relaylab.evaluation.stats import summary
from relaylab.evaluation.table import only_label, read_table, trace_name
from relaylab.sweep.results import effects, plane, read_results
from relaylab.trace import Trace, read_traces
from relaylab.version import __version__
from relaylab.views.curves import learning_curves
from relaylab.views.evaluation_figures import accuracy_against_share, suite_accuracy, suite_bars
from relaylab.views.figures import call_positions
from relaylab.views.report import first_traces
from relaylab.views.sweep_report import plane_figure
from relaylab.views.theme import html_page
from relaylab.views.trace_view import trace_html, trace_summary

LIMITS = ("max_tokens", "max_calls", "max_call_tokens", "max_teacher_tokens", "fixed_call_tokens")
TRACES = 180  # traces whose calls are drawn: a row is to be seen
SWEPT = ("accuracy", "teacher_share", "alone")  # what of a sweep is told
COLUMNS = ("accuracy", "call_ratio", "calls", "mean_n")  # not the reward: each scheme has its own scale
WIDTH, SCALE = 1000, 1.2  # pixels, and how many of a picture are one of the page: all files together stay small


@dataclass(frozen=True, slots=True)
class Picture:
    """Title, what it shows in words, the numbers behind it, and what writes it as files beside ``stem``."""

    title: str
    alt: str
    numbers: pd.DataFrame
    write: Callable[[Path], list[Path]]
    made_from: str = "the evaluation"
    files: list[str] = field(default_factory=list)


def main(
    evaluation: Annotated[Path, typer.Argument(help="The folder that the command of docs/results.md made.")],
    run: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a training run: a learning curve; several times.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Of the evaluation: whose calls and whose token strip. Default: its only relay.")
    ] = None,
    suite: Annotated[str, typer.Option(help="Of the token strip.")] = "tiles",
    out: Annotated[Path, typer.Option(help="Pictures, numbers and index.")] = Path(__file__).parent,
    sweep: Annotated[list[Path] | None, typer.Option(help="A sweep's results.csv; several times.")] = None,
) -> None:
    """Draw the pictures of the series from an evaluation and training runs."""
    table = read_table(evaluation)
    method = method or only_label(table["method"].unique(), "relay")
    config = json.loads((evaluation / "config.json").read_text())
    makers: dict[str, Callable[[], Picture]] = {
        "accuracy": lambda: accuracy(table),
        "suites": lambda: suites(table),
        "calls": lambda: calls(method_traces(evaluation, method), method),
        "strip": lambda: strip(method_traces(evaluation, method), method, suite),
    }
    if runs := dict(_named(text) for text in run or ()):
        makers["learning"] = lambda: learning(runs)
    makers |= {f"sweep-{path.stem}": partial(swept, path) for path in sweep or ()}
    pictures: dict[str, Picture] = {}
    for name, make in makers.items():
        try:
            pictures[name] = make()
        except ValueError as error:
            print(f"{name} is left out: {error}")
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        for old in out.glob(f"{name}.*"):  # of a browser that is there now, or was
            old.unlink()
        picture.numbers.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
        picture.files.extend(path.name for path in picture.write(out / name))
        print(f"{name}: {', '.join(picture.files)}, {name}.csv")
    command = f"python figures/make.py EVALUATION --method {method} --suite {suite}"
    sweeps = [f"--sweep notebooks/measured/{path.name}" for path in sweep or ()]
    command = " \\\n    ".join([command, *(f"--run {name}=RUN" for name in runs), *sweeps])
    (out / "README.md").write_text(index(pictures, table, config, command), encoding="utf-8")


def accuracy(table: pd.DataFrame) -> Picture:
    """Every method's accuracy against the teacher's share of all tokens."""
    return _plotted(accuracy_against_share(table), summary(table))


def suites(table: pd.DataFrame) -> Picture:
    """Accuracy in each suite, a small picture a method."""
    return _plotted(suite_bars(table), suite_accuracy(table))


def calls(traces: list[Trace], method: str) -> Picture:
    """Where the calls are, of a drawn part of a method's traces."""
    chosen = random.Random(0).sample(traces, min(TRACES, len(traces)))
    fig = call_positions(chosen, relative=True).update_layout(title_text=f"Where the student calls: {method}")
    numbers = [
        {"id": t.id, "suite": t.problem["suite"], "correct": t.correct, "tokens": len(t.source), "start": call.start}
        | {"end": call.end, "requested": call.requested, "delivered": call.delivered, "status": call.status}
        for t in chosen
        for call in t.calls
    ]
    return _plotted(fig, pd.DataFrame(numbers))


def strip(traces: list[Trace], method: str, suite: str) -> Picture:
    """One answer, token by token: the suite's first that is right and has one call."""
    mine = (t for t in traces if t.problem["suite"] == suite and t.correct)
    trace = next((t for t in mine if len(t.answered) == len(t.calls) == 1), None)
    if trace is None:
        raise ValueError(f"{suite!r} has no right answer of {method!r} with one call; name another --suite")
    rows = zip(trace.completion_ids, trace.pieces, trace.source, strict=True)
    numbers = pd.DataFrame(rows, columns=["id", "text", "source"])
    alt = f"A relay: {trace_summary(trace)}. The student: {trace.text}"
    return Picture("One relay, token by token", alt, numbers, lambda stem: _page(trace, stem))


def learning(runs: dict[str, Path]) -> Picture:
    """Learning curves of training runs."""
    from relaylab.training.run_dir import read_metrics

    metrics = {name: read_metrics(folder) for name, folder in runs.items()}
    kept = [frame.reindex(columns=["step", *COLUMNS]).assign(run=name) for name, frame in metrics.items()]
    fig = learning_curves(metrics, columns=COLUMNS, title="How the trainings went")
    fig.data = [line for line in fig.data if line.mode == "lines"]  # the steps themselves are in the CSV
    fig.update_layout(title_subtitle_text="means of the last 10 steps")
    picture = _plotted(fig, pd.concat(kept))
    seeds = {name: json.loads((folder / "config.json").read_text()).get("seed") for name, folder in runs.items()}
    told = ", ".join(f"`{name}` (seed {seed})" for name, seed in seeds.items())
    return replace(picture, made_from=f"the runs that `relaylab zoo train NAME` makes: {told}")


def swept(path: Path) -> Picture:
    """The levels of a sweep's factor in the plane of accuracy and the teacher's share."""
    plan, rows = read_results(path, collect=SWEPT)
    fig = plane_figure(plan, plane(plan, rows))
    fig.update_layout(title_text=f"Sweep {plan.name}: means over seeds, with 95 % intervals")
    fig.update_xaxes(title_text="teacher's share of all tokens", tickformat=".0%")
    fig.update_yaxes(title_text="problems solved", tickformat=".0%")
    picture = _plotted(fig, effects(plan, rows))
    return replace(picture, made_from=f"the {len(plan.points)} points of `relaylab sweep sweeps/{plan.name}.yaml`")


def method_traces(evaluation: Path, method: str) -> list[Trace]:
    """The traces of a method's first student, with the first seed. ValueError where the evaluation has none."""
    known = first_traces(evaluation)
    if (name := trace_name(method)) not in known:
        raise ValueError(f"{evaluation} has no traces of {method!r}; there are {', '.join(known) or 'none'}")
    return list(read_traces(known[name]))


def index(pictures: dict[str, Picture], table: pd.DataFrame, config: dict, command: str) -> str:
    """``README.md``: each picture with what it shows, and how all were made."""
    limits = ", ".join(f"{name} {config[name]}" for name in LIMITS if config.get(name) is not None)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    seed, temperature = config["seed"], config["temperature"]
    lines = [
        "# Figures",
        "",
        f"Made from an evaluation of {table['id'].nunique()} problems by {table['method'].nunique()} methods, for "
        "which [docs/results.md](../docs/results.md#every-system) has the command and the machine, and from training "
        "runs. Do not edit, draw again:",
        "",
        f"```bash\n{command}\n```",
        "",
        f"Evaluation: seed {seed}, temperature {temperature:g}, teacher `{config['teacher']}`, {limits}. Drawn by "
        f"relaylab {__version__} on {machine}.",
    ]
    for name, picture in pictures.items():
        alt = html.escape(" ".join(picture.alt.split()), quote=True)
        shown = next((file for file in picture.files if file.endswith(".png")), None)
        links = ", ".join(f"[{file}]({file})" for file in [*picture.files, f"{name}.csv"])
        lines += ["", f"## {picture.title}", ""]
        lines += [f'<img src="{shown}" width="{WIDTH}" alt="{alt}">'] if shown else [f"{alt}"]
        lines += ["", f"{links}; from {picture.made_from}."]
    if not any(file.endswith(".png") for picture in pictures.values() for file in picture.files):
        lines += ["", "There is no Chromium on this machine, so the figures are the HTML files."]
    return "\n".join(lines) + "\n"


def _plotted(fig: go.Figure, numbers: pd.DataFrame) -> Picture:
    fig.update_layout(width=WIDTH, template="relaylab_light")  # the template gives a picture its background

    def write(stem: Path) -> list[Path]:
        pictures, page = [stem.with_suffix(suffix) for suffix in (".png", ".svg")], stem.with_suffix(".html")
        if _drawn(page, lambda: [_render(fig, path) for path in pictures]):
            return pictures
        fig.write_html(page, include_plotlyjs=True)
        return [page]

    return Picture(fig.layout.title.text, fig.layout.meta["alt"], numbers, write)


def _drawn(page: Path, draw: Callable[[], object]) -> bool:
    """Draw a picture. If that fails, whatever the reason, the page remains, and a warning says so."""
    try:
        draw()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        needs = "relaylab[dev] and a Chromium or Chrome (Debian: apt-get install chromium; or set BROWSER_PATH)"
        warnings.warn(f"{page.name} stays a page: a picture needs {needs}. The reason: {reason}", stacklevel=2)
        return False
    return True


def _render(fig: go.Figure, path: Path) -> None:
    import kaleido

    size = {"format": path.suffix[1:], "width": WIDTH, "height": fig.layout.height or 500, "scale": SCALE}
    # Without mathjax=False kaleido's page loads it from the network.
    kaleido.write_fig_sync(fig, path, opts=size, kopts={"mathjax": False})


def _page(trace: Trace, stem: Path) -> list[Path]:
    """The strip as a page, and as the picture that a browser makes of it."""
    page, picture = stem.with_suffix(".html"), stem.with_suffix(".png")
    page.write_text(html_page("relaylab: a relay", trace_html(trace)), encoding="utf-8")

    def draw() -> None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            running = driver.chromium.launch(executable_path=find_browser() or "chromium")
            window = running.new_context(
                viewport={"width": WIDTH, "height": 400}, device_scale_factor=SCALE, color_scheme="light"
            )
            tab = window.new_page()
            tab.goto(page.resolve().as_uri())
            tab.locator("section.rl-trace").screenshot(path=picture)

    return [picture, page] if _drawn(page, draw) else [page]


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise ValueError(f"--run {text}: write NAME=FOLDER")
    return name, Path(folder)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"make.py: {error}")
