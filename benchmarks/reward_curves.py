"""Runs of one training with several seeds each, side by side: their curves, and what their students do with calls.

    relaylab train embedded/relay --max_steps 240 --seed 1 --output_dir runs/plain-1    # and seeds 2 and 3
    python benchmarks/reward_curves.py plain=runs/plain-1,runs/plain-2,runs/plain-3 credit=runs/credit-1,... \
        --out runs/curves

The curves stand over the tokens that a training sampled, forks included, because forks cost tokens, too. Then each
trained student answers test problems, greedily and with its own caps. A fork forbids each answered call. A call is
needless if the answer is right with it and right without it. It writes ``curves.csv``, ``curves.html`` and
``students.csv``, and with ``--picture docs/assets/NAME`` the figure as SVG and its numbers (kaleido and a Chromium).
Intervals: 95 %, from a bootstrap over problems, with all seeds' answers to a problem drawn together.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from relaylab.evaluation.counterfactual import call_effects
from relaylab.evaluation.stats import Interval, interval
from relaylab.files import write_whole
from relaylab.pages import write_svg
from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import TAUGHT, problems
from relaylab.trace import TEACHER
from relaylab.training.run_dir import read_metrics
from relaylab.views.theme import html_page, register_templates, show_figure, with_alt_text

PANELS = {
    "accuracy": ("right (% of rollouts)", 100.0),
    "call_ratio": ("teacher tokens (% of a rollout)", 100.0),
    "calls": ("answered calls per rollout", 1.0),
    "mean_n": ("tokens delivered a call", 1.0),
}
BIN = 0.25  # million tokens


def curve(run: Path) -> pd.DataFrame:
    """Means of each metric in bins of sampled tokens: ``tokens`` (millions, its middle), ``panel``, ``value``.

    Of a run in one process. The metrics of a batch of rollouts stand at its first optimiser step.
    """
    metrics, config = read_metrics(run), json.loads((run / "config.json").read_text("utf-8"))
    micro_batches = config.get("steps_per_generation") or config.get("gradient_accumulation_steps", 1)
    rollouts = config["per_device_train_batch_size"] * micro_batches
    sampled = metrics["tokens"] + metrics.get("fork_tokens", 0)
    at = BIN * ((sampled.cumsum() * rollouts / 1e6) // BIN + 0.5)
    means = metrics.groupby(at)[list(PANELS)].mean().rename_axis("tokens").reset_index()
    return means.melt("tokens", var_name="panel")


def curves(arms: dict[str, list[Path]]) -> pd.DataFrame:
    """A row an arm, bin and panel: the mean over seeds, with the least and the most."""
    parts = [curve(run).assign(arm=arm, seed=k) for arm, runs in arms.items() for k, run in enumerate(runs)]
    rows = pd.concat(parts).groupby(["arm", "panel", "tokens"], sort=False)["value"].agg(["mean", "min", "max", "size"])
    whole = rows.reset_index()
    return whole[whole["size"] == whole["arm"].map({arm: len(runs) for arm, runs in arms.items()})]


def figure(rows: pd.DataFrame) -> go.Figure:
    """The curves, a panel a metric; bars reach from the least to the most of the seeds."""
    register_templates()
    f = rows.assign(label=rows["panel"].map({name: label for name, (label, _) in PANELS.items()}))
    scale = f["panel"].map({name: scale for name, (_, scale) in PANELS.items()})
    f[["mean", "min", "max"]] = f[["mean", "min", "max"]].mul(scale, axis=0)
    fig = px.line(
        f, x="tokens", y="mean", color="arm", symbol="arm", line_dash="arm", markers=True, facet_col="label",
        facet_col_wrap=1, facet_row_spacing=0.06, template="relaylab", error_y=f["max"] - f["mean"],
        error_y_minus=f["mean"] - f["min"], category_orders={"label": [label for label, _ in PANELS.values()]},
    )  # fmt: skip
    fig.for_each_annotation(lambda a: a.update(text=a.text.split("=")[-1], x=0, xanchor="left"))
    fig.update_traces(error_y_thickness=1).update_yaxes(matches=None, title="", rangemode="tozero")
    fig.update_xaxes(title_text="tokens sampled in the training (millions)", row=1)
    fig.update_layout(legend={"y": -0.08, "yanchor": "top"})
    last = f[f["tokens"] == f.groupby("arm")["tokens"].transform("max")]
    told = [f"{r.arm}, {r.label}: {r.mean:.3g} ({r.min:.3g} to {r.max:.3g})" for r in last.itertuples()]
    return with_alt_text(
        fig, f"At the end, {'; '.join(told)}.", "What the trainings learn, means of the seeds", height=900
    )


def student(run: Path, teacher: str, count: int) -> pd.DataFrame:
    """A row a test problem: is it right, tokens, teacher tokens, calls, asked n, and how many calls are needless."""
    pair = load_pair(run / "student", teacher)
    tests = [p for suite in TAUGHT for p in problems(suite, count)]
    traces = pair.decode(tests, max_tokens=160)
    forks = call_effects(traces, pair.relay(max_tokens=160)).pivot(
        index=["trace", "call"], columns="arm", values="accuracy"
    )
    forks = forks.reindex(columns=["with", "without"])  # of a student that never calls there are none
    needless = ((forks["with"] > 0.5) & (forks["without"] > 0.5)).groupby("trace").sum()
    rows = [
        {"right": bool(t.correct), "tokens": len(t.source), "teacher": t.count(TEACHER), "calls": len(t.answered),
         "asked": sum(c.requested or 0 for c in t.answered), "delivered": sum(c.delivered for c in t.answered)}
        for t in traces
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(needless=needless.reindex(range(len(rows)), fill_value=0)).astype(float)


def measures(tables: list[pd.DataFrame]) -> dict[str, Interval]:
    """Of an arm's students together."""
    a = {name: np.array([table[name] for table in tables]) for name in tables[0]}  # (seeds, problems)

    def share(part: str, whole: str) -> Interval:
        # Without a call there is no share: such a draw of problems is left out.
        return interval(lambda i: a[part][:, i].sum() / (a[whole][:, i].sum() or np.nan), len(tables[0]))

    return {
        "right": interval(lambda i: a["right"][:, i].mean(), len(tables[0])),
        "teacher tokens": share("teacher", "tokens"),
        "calls per answer": interval(lambda i: a["calls"][:, i].mean(), len(tables[0])),
        "asked n": share("asked", "calls"),
        "delivered": share("delivered", "calls"),
        "needless calls": share("needless", "calls"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", help="NAME=RUN,RUN,...: the runs of one training, a seed each")
    parser.add_argument("--teacher", default="teacher")
    parser.add_argument("--count", type=int, default=50, help="test problems of each of ten suites; 0 for curves alone")
    parser.add_argument("--out", type=Path, default=Path("runs/reward-curves"))
    parser.add_argument("--picture", type=Path, help="the figure as SVG and its numbers as CSV, without a suffix")
    args = parser.parse_args()
    arms = {name: [Path(run) for run in runs.split(",")] for name, runs in (arm.split("=") for arm in args.arms)}
    args.out.mkdir(parents=True, exist_ok=True)
    rows = curves(arms)
    rows.to_csv(args.out / "curves.csv", index=False, float_format="%.4g")
    fig = figure(rows)
    write_whole(args.out / "curves.html", html_page("What the trainings learn", show_figure(fig).html))
    if args.picture:
        write_svg(fig, args.picture.with_suffix(".svg"))
        shutil.copy(args.out / "curves.csv", args.picture.with_suffix(".csv"))
    if args.count:
        found = []
        for arm, runs in arms.items():
            tables = [student(run, args.teacher, args.count) for run in runs]
            each = [(str(run), measures([table])) for run, table in zip(runs, tables)]
            for name, values in [(arm, measures(tables)), *each]:
                found.append({"students": name} | {key: str(value) for key, value in values.items()})
        pd.DataFrame(found).to_csv(args.out / "students.csv", index=False)
        print(pd.DataFrame(found).to_string(index=False))


if __name__ == "__main__":
    main()
