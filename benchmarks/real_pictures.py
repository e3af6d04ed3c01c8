"""The pictures of the study of a real pair (docs/real-models.md): the map with it, and how its trainings went.

    python benchmarks/real_pictures.py --out docs/assets --run "with help=runs/real-training/run" \
        --run "at most two calls=runs/two-calls/run" --run "no teacher=runs/control/run"

Reads what is in notebooks/measured, and the folders of the runs; runs no model. Needs kaleido and a Chromium. It writes
``real-map.svg``, and of the runs ``real-training.svg`` with its numbers, ``real-training.csv``; --name names these two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from relaylab.evaluation.table import write_table
from relaylab.files import read_json
from relaylab.pages import write_svg
from relaylab.training.run_dir import read_metrics
from relaylab.views.curves import learning_curves
from relaylab.views.method_map import map_figure

MEASURED = Path(__file__).parents[1] / "notebooks" / "measured"
COLUMNS = ("accuracy", "reward", "calls", "call_ratio", "ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="NAME=FOLDER of a training run; several times")
    parser.add_argument("--name", default="real-training", help="of the files of the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    figures = {"real-map": map_figure(pd.read_csv(MEASURED / "map.csv"), read_json(MEASURED / "real_pair.json"))}
    if runs := dict(run.split("=", 1) for run in asked.run):
        metrics = {name: read_metrics(folder) for name, folder in runs.items()}
        told = [frame[["step", *COLUMNS]].assign(run=name) for name, frame in metrics.items()]
        write_table(pd.concat(told), asked.out / f"{asked.name}.csv")
        figures[asked.name] = learning_curves(metrics, columns=COLUMNS, smooth=4, title="GRPO on the real pair")
    for name, fig in figures.items():
        write_svg(fig, asked.out / f"{name}.svg")
        print(name, fig.layout.meta["alt"])


if __name__ == "__main__":
    main()
