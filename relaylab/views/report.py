"""The report of an evaluation: accuracy against the teacher's share, suites, calls; one page, and each figure."""

from __future__ import annotations

import html
import json
import random
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from relaylab.call_tag import visible
from relaylab.evaluation.stats import columns, paired, summary
from relaylab.evaluation.table import read_table, trace_files, trace_name, write_table
from relaylab.files import check_own_file, read_json, write_whole
from relaylab.trace import read_traces
from relaylab.version import __version__
from relaylab.views.evaluation_figures import accuracy_against_share, suite_bars
from relaylab.views.figures import call_positions, figure_text
from relaylab.views.theme import PAGE, html_page, html_table, show_figure

SAMPLE = 300  # traces whose call positions are drawn


def report(out: str | Path) -> Path:
    """Write ``report.html`` and ``figures/`` (HTML, and the numbers as CSV) into the folder of an evaluation.

    Every method is compared with ``relay``, or else the first one that is neither ``student`` nor ``teacher``, in pairs
    of the same problems.

    Args:
        out: The folder.

    Returns:
        The page.

    Raises:
        ValueError: The folder holds no evaluation, or its ``report.html`` is no page of ours.
    """
    out = Path(out)
    table = read_table(out)
    config = read_json(out / "config.json")
    names = list(dict.fromkeys(table["method"]))
    main = next((m for m in ("relay", *names) if m in names and m not in ("student", "teacher")), names[0])
    figures = {"accuracy": accuracy_against_share(table), "suites": suite_bars(table)}
    figures |= {f"calls-{name}": fig for name, fig in _positions(out, names).items()}
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for name, fig in figures.items():
        stem = "".join(c if c.isalnum() or c in "-_=." else "-" for c in name)
        show_figure(fig).save(folder / f"{stem}.html")
    methods, versus = summary(table), comparisons(table, main)
    write_table(methods, folder / "accuracy.csv")
    write_table(versus, folder / "comparisons.csv")
    settings = html.escape(visible(json.dumps({k: v for k, v in config.items() if k != "problems"})))
    parts = [
        f"<h1>Evaluation</h1><p>{len(config['problems'])} problems, {len(methods)} methods; relaylab {__version__}; "
        f"<code>{settings}</code></p>",
        html_table(_for_people(methods)),
        f"<h2>Compared with {html.escape(visible(main))}</h2><p>Differences of accuracy in points, paired by problem: "
        "95 % interval from a bootstrap over problems, p of Wilcoxon's signed-rank test.</p>",
        html_table(versus),
        *(show_figure(fig).html for fig in figures.values()),
    ]
    path = out / "report.html"
    check_own_file(path, PAGE.encode())
    write_whole(path, html_page("relaylab: evaluation", "".join(parts), "report.css"))
    return path


def comparisons(table: pd.DataFrame, main: str) -> pd.DataFrame:
    """``main`` minus every other method, paired by problem: difference in points, 95 % interval, p."""
    wide, rows = columns(table, "correct"), []
    for other in wide.columns.drop(main):
        d = paired(wide[main].to_numpy(), wide[other].to_numpy())
        rows.append((other, 100 * d.value, 100 * d.low, 100 * d.high, d.p))
    return pd.DataFrame(rows, columns=["other", "difference", "low", "high", "p"])


def _positions(out: Path, methods: list[str]) -> dict[str, go.Figure]:
    """Where the calls are, for each method that calls; of many traces a sample. By the names of files."""
    figures, labels = {}, {trace_name(method): method for method in methods}
    for name, path in first_traces(out).items():
        traces = list(read_traces(path))
        if any(0 < t.call_ratio < 1 for t in traces):
            fig = call_positions(random.Random(0).sample(traces, min(SAMPLE, len(traces))), relative=True)
            figures[name] = fig.update_layout(
                title_text=f"Where the student calls: {figure_text(labels.get(name, name))}"
            )
    return figures


def first_traces(out: str | Path) -> dict[str, Path]:
    """The files of traces of an evaluation's first seed, by method."""
    files = list(trace_files(out))
    first = min((int(seed) for seed, _ in files), default=0)
    return {path.stem: path for seed, path in files if int(seed) == first}


def _for_people(methods: pd.DataFrame) -> pd.DataFrame:
    """The summary in per cent."""
    shown = methods[["method", "students", "samples", "problems"]].copy()
    intervals = methods[["accuracy", "low", "high"]].to_numpy()
    shown["accuracy %"] = [
        f"{100 * v:.1f} ({100 * a:.1f}, {100 * b:.1f})" if pd.notna(a) else f"{100 * v:.1f}" for v, a, b in intervals
    ]
    for name in (c for c in map(str, methods) if c.startswith("pass@")):
        shown[f"{name} %"] = (100 * methods[name]).round(1)
    shown["teacher tokens %"] = (100 * methods["teacher_share"]).round(2)
    shown["call ratio %"] = (100 * methods["call_ratio"]).round(2)
    shown["undilutable %"] = (100 * methods["content_ratio"]).round(2)
    shown["calls"], shown["tokens"] = methods["calls"].round(2), methods["tokens"].round(1)
    shown["gap recovered %"] = (100 * methods["gap"]).round(1)
    return shown
