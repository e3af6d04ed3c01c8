"""Learning curves: the metrics of training runs, afterwards and while they run.

A frame has one row per logged optimiser step, as ``training.run_dir.read_metrics`` returns it: ``step`` and numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from relaylab.call_tag import visible
from relaylab.views.figures import figure_names, figure_text, name_panels
from relaylab.views.theme import GREY, OKABE_ITO, show_figure, with_alt_text

# The name and the unit of each metric of training. Shares are drawn in per cent.
METRICS = {
    "reward": ("reward", "mean of rollouts"), "accuracy": ("accuracy", "% of rollouts"),
    "call_ratio": ("call ratio", "% of tokens"), "group_ratio": ("group ratio", "% of others' tokens"),
    "helped": ("share of helped rollouts", "% of rollouts"), "ended": ("share of ended rollouts", "% of rollouts"),
    "excluded": ("share of excluded rollouts", "% of rollouts"), "seconds": ("time", "seconds per step"),
    **{c: (f"number of {c.replace('_', ' ')}", "calls per rollout") for c in ("malformed_calls", "failed_calls")},
    "calls": ("number of answered calls", "calls per rollout"),
    "mean_n": ("length of an answer", "tokens per call"), "tokens": ("length of a completion", "tokens per rollout"),
    "tag_tokens": ("length of commands", "tokens per rollout"), "entropy": ("entropy of the student", "nats per token"),
    "kl": ("KL divergence from the reference", "nats per token"),
    **{f"groups_{k}": (f"share of {k} groups", "% of groups") for k in ("solvable", "dependent", "unsolvable")},
}  # fmt: skip
COLUMNS = ("reward", "accuracy", "call_ratio")
NO_STEP = "no step has been logged yet"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # 6, and 7 colours: 42 runs all differ
PANEL, GAP, TOP, BOTTOM = 130, 46, 108, 60  # pixels


def learning_curves(
    metrics: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    columns: Sequence[str] = COLUMNS,
    smooth: int = 10,
    title: str = "How the training goes",
) -> go.Figure:
    """The metrics of one training run or of several, one panel per column and one line per run.

    Faint dots are the logged steps. Lines are means of the last steps, so that no point knows a later one.

    Args:
        metrics: A frame with ``step`` and numbers, as ``read_metrics`` returns it, or several by name.
        columns: The metrics to draw. A run that lacks one has no line in its panel.
        smooth: The number of logged steps in a mean.
        title: The title of the figure.

    Raises:
        ValueError: All runs lack a column, or no step has been logged.

    >>> frame = pd.DataFrame({"step": [1, 2, 3], "accuracy": [0.25, 0.5, 1.0]})
    >>> print(learning_curves(frame, columns=["accuracy"], smooth=2).layout.meta["alt"])
    Accuracy rises from 25 % to 75 % between steps 1 and 3. Each number is a mean of up to 2 logged steps.
    """
    runs = [("", metrics)] if isinstance(metrics, pd.DataFrame) else [(str(k), f) for k, f in metrics.items()]
    if not any(len(frame) for _, frame in runs):
        raise ValueError(NO_STEP)
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}; a mean needs at least 1 step")
    present = list(dict.fromkeys(column for _, frame in runs for column in frame))
    if missing := [c for c in ("step", *columns) if c not in present]:
        raise ValueError(f"no column {missing[0]!r} in the metrics; there are {', '.join(map(str, present))}")
    known = [METRICS.get(c, (c.replace("_", " "), "as logged")) for c in columns]
    labels, units = [label for label, _ in known], [unit for _, unit in known]
    shown = figure_names(name for name, _ in runs)
    parts, sentences, names = [], [], [shown[name] for name, _ in runs]
    for (name, frame), shown_name in zip(runs, names):
        means = {}
        for column, label, unit in zip(columns, labels, units):
            if column in frame and len(frame):
                values = frame[column].astype(float) * (100 if unit.startswith("%") else 1)
                means[label] = values.rolling(smooth, min_periods=1).mean()
                part = {"run": shown_name, "panel": figure_text(label), "step": frame["step"], "logged": values}
                parts.append(pd.DataFrame(part | {"mean": means[label]}))
        if means:
            sentences.append(_curves_alt(name, frame["step"], means, dict(known)))
    sentences += [f"Each number is a mean of up to {smooth} logged steps."] if smooth > 1 else []
    several = len(runs) > 1
    long, height = pd.concat(parts), PANEL * len(columns) + GAP * (len(columns) - 1)
    styles = {"color_discrete_map": {name: OKABE_ITO[i % 7] for i, name in enumerate(names)}}
    dashes = {"line_dash_map": {name: DASHES[i % 6] for i, name in enumerate(names)}, "line_dash": "run"}
    options = {"x": "step", "color": "run", "facet_col": "panel", "facet_col_wrap": 1, **styles}
    options |= {"facet_row_spacing": GAP / height, "template": "relaylab"}
    options |= {"category_orders": {"panel": list(map(figure_text, labels)), "run": names}}
    fig = px.line(long, y="mean", **dashes, **options)
    fig.update_traces(line_width=2.5, hovertemplate="%{y}")
    dots = px.scatter(long, y="logged", **options).update_traces(showlegend=False, hoverinfo="skip", hovertemplate=None)
    dots.update_traces(marker={"size": 5, "opacity": 0.3 if several else 0.4})
    fig.add_traces(dots.data)
    name_panels(fig)
    for row, (unit, panel) in enumerate(zip(units[::-1], fig.layout.annotations), 1):
        fig.update_yaxes(title_text=unit, matches=None, rangemode="tozero", hoverformat=".4~g", row=row, col=1)
        panel.update(x=0, xanchor="left")
        if not several:
            fig.update_traces(name=panel.text, row=row, col=1)
    fig.update_xaxes(title_text="", spikethickness=1, spikecolor=GREY)
    fig.update_xaxes(title_text="optimiser step", row=1)
    legend = 26 * math.ceil(len(runs) / 2) if several else 0  # two in a row if they are long
    subtitle = f"dots: logged steps; lines: means of the last {smooth}" if smooth > 1 else None
    return with_alt_text(
        fig, " ".join(sentences), title, title_subtitle_text=subtitle, height=TOP + height + BOTTOM + legend,
        margin={"t": TOP, "b": BOTTOM + legend}, hovermode="x unified", hoverlabel_namelength=-1,
        legend={"y": -BOTTOM / height, "yanchor": "top", "itemwidth": 46},
    )  # fmt: skip


class LiveCurves(AbstractContextManager):
    """Learning curves that grow during training, if a callback of ``train`` calls them in its ``on_log``.

    Called with the metrics of each step, it redraws one display in the notebook. Outside of a notebook it only keeps
    the metrics. The page must hold plotly.js (``theme.load_plotly``).

    Args:
        columns: The metrics to draw.
        every: Seconds between two drawings.
        steps: The number of the last step, which is drawn at once: the picture that an executed notebook keeps.
        drawing: Options of ``learning_curves``.

    >>> with LiveCurves() as curves:
    ...     curves({"step": 1, "reward": 0.5})
    >>> curves.metrics["reward"].tolist()
    [0.5]
    """

    def __init__(
        self, columns: Sequence[str] = COLUMNS, every: float = 1.0, *, steps: int | None = None, **drawing: Any
    ):
        self.every, self.steps, self._drawing = every, steps, {"columns": columns, **drawing}
        self._display: Any = None
        self._stale, self._next = False, -math.inf
        self._rows: list[Mapping[str, float]] = [{"step": 0}]
        self.figure()  # wrong settings fail now, not in the middle of training
        self._rows = []

    def __call__(self, line: Mapping[str, float]) -> None:
        while self._rows and self._rows[-1]["step"] >= line["step"]:
            self._rows.pop()  # the run starts again, or was resumed from before it
        self._rows.append(dict(line))
        self._stale = True
        if line["step"] == self.steps or time.monotonic() >= self._next:
            self._draw()

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per step so far."""
        return pd.DataFrame(self._rows)

    def figure(self) -> go.Figure:
        """The curves so far. Raises ValueError before the first step."""
        metrics = self.metrics
        # A column may come late (``mean_n`` needs a call) or never (a typing error): training must not break.
        late = [c for c in self._drawing["columns"] if c not in metrics]
        return learning_curves(metrics.assign(**dict.fromkeys(late, math.nan)), **self._drawing)

    def close(self) -> None:
        """Draw the last state. Later steps get a display of their own."""
        self._draw()
        self._display, self._next = None, -math.inf

    def _draw(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        shell = get_ipython()
        if not self._stale or shell is None or "text/html" not in shell.display_formatter.active_types:
            return
        page = show_figure(self.figure())
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)
        self._stale, self._next = False, time.monotonic() + self.every  # counted from here: drawing may be slow

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return show_figure(self.figure())._repr_mimebundle_() if self._rows else {"text/plain": NO_STEP}


def _curves_alt(name: str, steps: pd.Series, means: dict[str, pd.Series], units: dict[str, str]) -> str:
    parts = []
    for label, values in ((label, values.dropna()) for label, values in means.items()):
        if values.empty:
            parts.append(f"{label} has no value")
            continue
        unit = next((f" {u}" for u in ("%", "nats", "tokens", "seconds") if units[label].startswith(u)), "")
        begin, end = (f"{v:,.0f}{unit}" if abs(v) >= 100 else f"{v:.3g}{unit}" for v in values.iloc[[0, -1]])
        if begin == end:
            parts.append(f"{label} {'begins and ends at' if len(values) > 1 else 'is'} {begin}")
        else:
            verb = "rises" if values.iloc[-1] > values.iloc[0] else "falls"
            parts.append(f"{label} {verb} from {begin} to {end}")
    first, last = steps.iloc[0], steps.iloc[-1]
    parts[0] += f" between steps {first:,} and {last:,}" if len(steps) > 1 else f" at step {first:,}"
    text = "; ".join(parts)
    return f"{visible(name)}: {text}." if name else f"{text[0].upper()}{text[1:]}."
