"""Every system of `relaylab map` in one picture: right answers against teacher tokens, a panel a world.

    relaylab map --count 50 --training 10 --out runs/map
    python benchmarks/frontier.py runs/map lifelike plain --picture docs/assets/frontier

It reads ``methods.csv`` of each world. A line joins a system's budgets; bars are 95 % intervals over problems. The
picture needs kaleido and a Chromium.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from relaylab.pages import write_svg
from relaylab.views.figures import error_bars
from relaylab.views.theme import OKABE_ITO, register_templates, with_alt_text

SHOWN = 12  # % teacher tokens


def figure(rows: pd.DataFrame) -> go.Figure:
    """``rows``: those of ``methods.csv`` with their ``world``."""
    register_templates()
    shares = ["accuracy", "low", "high", "teacher_share", "teacher_low", "teacher_high"]
    f = rows.assign(**{name: 100 * rows[name] for name in shares}).query("teacher_share <= @SHOWN")
    f = f.sort_values(["world", "family", "teacher_share"], kind="stable").drop_duplicates(["world", "method"])
    fig = px.line(
        f, x="teacher_share", y="accuracy", color="family", symbol="family", line_dash="family", markers=True,
        facet_col="world", facet_col_wrap=1, facet_row_spacing=0.08, template="relaylab",
        color_discrete_sequence=OKABE_ITO[:6], labels={"accuracy": "right (% of problems)", "family": ""},
        **error_bars("y", f["accuracy"], f["low"], f["high"]),
        **error_bars("x", f["teacher_share"], f["teacher_low"], f["teacher_high"]),
    )  # fmt: skip
    fig.update_traces(marker_size=9, error_x_thickness=1, error_y_thickness=1)
    fig.update_xaxes(title_text="teacher tokens (% of all)", row=1).update_layout(legend={"y": -0.08, "yanchor": "top"})
    fig.for_each_annotation(lambda panel: panel.update(text=panel.text.removeprefix("world=")))
    best = f.loc[f.groupby("world")["accuracy"].idxmax()]
    told = "; ".join(f"{r.world}: {r.method} {r.accuracy:.1f} % at {r.teacher_share:.1f} %" for r in best.itertuples())
    return with_alt_text(fig, f"The most right answers, {told}.", "Right answers against teacher tokens", height=900)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `relaylab map` wrote")
    parser.add_argument("worlds", nargs="+")
    parser.add_argument("--picture", type=Path, required=True, help="an SVG, without its suffix")
    args = parser.parse_args()
    rows = pd.concat(pd.read_csv(args.folder / w / "methods.csv").assign(world=w) for w in args.worlds)
    fig = figure(rows)
    write_svg(fig, args.picture.with_suffix(".svg"))
    print(fig.layout.meta["alt"])


if __name__ == "__main__":
    main()
