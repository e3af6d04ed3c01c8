"""Learning curves: the metrics of training runs, afterwards and while they run. Reads pandas frames, imports no torch.

A frame has one row a logged optimiser step, as ``training.record.read_metrics`` gives it: ``step`` and numbers. Faint
dots are the rows; strong lines are means of the last ``smooth`` rows, so that no point knows what came after it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from relaylab.views import theme
from relaylab.views.figures import plain
from relaylab.views.trace_view import visible

theme.register()

COLUMNS = ("reward", "accuracy", "call_ratio")
NO_STEP = "no step has been logged yet"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # 6, and 7 colours: 42 runs all differ
# Of each metric what it is called, and its unit. What is logged as a share is drawn in per cent.
METRICS = {
    "reward": ("reward", "mean of rollouts"), "accuracy": ("accuracy", "% of rollouts"),
    "call_ratio": ("call ratio", "% of tokens"), "group_ratio": ("group ratio", "% of others' tokens"),
    "helped": ("share of helped rollouts", "% of rollouts"), "ended": ("share of ended rollouts", "% of rollouts"),
    "excluded": ("share of excluded rollouts", "% of rollouts"), "seconds": ("time", "seconds a step"),
    **{c: (f"number of {c.replace('_', ' ')}", "calls a rollout") for c in ("malformed_calls", "failed_calls")},
    "calls": ("number of answered calls", "calls a rollout"),
    "mean_n": ("length of an answer", "tokens a call"), "tokens": ("length of a completion", "tokens a rollout"),
    "tag_tokens": ("length of commands", "tokens a rollout"), "entropy": ("entropy of the student", "nats a token"),
    "kl": ("KL divergence from the reference", "nats a token"),
    **{f"groups_{k}": (f"share of {k} groups", "% of groups") for k in ("solvable", "dependent", "unsolvable")},
}  # fmt: skip
PANEL, GAP, TOP, BOTTOM = 130, 46, 108, 60  # pixels


def learning_curves(
    metrics: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    columns: Sequence[str] = COLUMNS,
    smooth: int = 10,
    title: str = "How the training goes",
) -> go.Figure:
    """Metrics along a run, or along several by name: one panel a column, one line a run.

    >>> frame = pd.DataFrame({"step": [1, 2, 3], "accuracy": [0.25, 0.5, 1.0]})
    >>> print(learning_curves(frame, columns=["accuracy"], smooth=2).layout.meta["alt"])
    Accuracy rises from 25 % to 75 % between steps 1 and 3. Each number is a mean of up to 2 logged steps.

    A run that lacks a column has no line in its panel. Raises ValueError where all lack it, and without any step.
    """
    runs = [("", metrics)] if isinstance(metrics, pd.DataFrame) else [(str(k), f) for k, f in metrics.items()]
    if not any(len(frame) for _, frame in runs):
        raise ValueError(NO_STEP)
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}; a mean needs at least 1 step")
    there = list(dict.fromkeys(column for _, frame in runs for column in frame))
    if missing := [c for c in ("step", *columns) if c not in there]:
        raise ValueError(f"no column {missing[0]!r} in the metrics; there are {', '.join(there)}")
    known = [METRICS.get(c, (c.replace("_", " "), "as logged")) for c in columns]
    height = PANEL * len(columns) + GAP * (len(columns) - 1)
    panels = {"rows": len(columns), "vertical_spacing": GAP / height, "shared_xaxes": True}
    fig = make_subplots(**panels, subplot_titles=[plain(label) for label, _ in known])
    several, legend, told = len(runs) > 1, set(), []
    for i, (name, frame) in enumerate(runs):
        color, dash = theme.OKABE_ITO[i % len(theme.OKABE_ITO)], DASHES[i % len(DASHES)]
        # Dots, not a line: a value between two gaps is seen too, and no second line blurs the dashes.
        dots = {"mode": "markers", "marker": {"size": 5, "color": color, "opacity": 0.3 if several else 0.4}}
        line = {"mode": "lines", "line": {"color": color, "dash": dash, "width": 2.5}}
        means = {}
        for row, column in enumerate(columns, 1):
            if column not in frame:
                continue
            label, unit = known[row - 1]
            values = frame[column].astype(float) * (100 if unit.startswith("%") else 1)
            means[label] = values.rolling(smooth, min_periods=1).mean()
            here = {"row": row, "col": 1, "x": frame["step"], "legendgroup": str(i), "name": plain(name or label)}
            fig.add_scatter(y=values, showlegend=False, hoverinfo="skip", **dots, **here)
            fig.add_scatter(y=means[label], showlegend=several and i not in legend, **line, **here)
            legend.add(i)
        if len(frame) and means:
            told.append(_alt(name, frame["step"], means, dict(known)))
    told += [f"Each number is a mean of up to {smooth} logged steps."] if smooth > 1 else []
    for row, (_, unit) in enumerate(known, 1):
        fig.update_yaxes(title_text=unit, rangemode="tozero", hoverformat=".4~g", row=row, col=1)
    fig.update_xaxes(spikethickness=1, spikecolor="#8a8a8a")
    fig.update_xaxes(title_text="optimiser step", row=len(columns), col=1)
    fig.update_annotations(x=0, xanchor="left", font_size=14)
    subtitle = f"dots: logged steps; lines: means of the last {smooth}"
    names = 26 * math.ceil(len(runs) / 2) if several else 0  # two in a row where they are long
    fig.update_layout(
        template="relaylab",
        meta={"alt": " ".join(told)},
        title={"text": title, "subtitle_text": subtitle if smooth > 1 else None},
        height=TOP + height + BOTTOM + names,
        margin={"t": TOP, "b": BOTTOM + names},
        hovermode="x unified",
        hoverlabel_namelength=-1,
        # Below: however many rows the page's width makes of it, it covers neither title nor panel.
        legend={"y": -BOTTOM / height, "yanchor": "top", "itemwidth": 46},
    )
    return fig


def _alt(name: str, steps: pd.Series, means: dict[str, pd.Series], units: dict[str, str]) -> str:
    told = []
    for label, values in ((label, values.dropna()) for label, values in means.items()):
        unit = next((f" {u}" for u in ("%", "nats", "tokens", "seconds") if units[label].startswith(u)), "")
        numbers = [f"{v:,.0f}{unit}" if abs(v) >= 100 else f"{v:.3g}{unit}" for v in values]
        if not numbers:
            told.append(f"{label} has no value")
        elif numbers[0] == numbers[-1]:
            told.append(f"{label} {'begins and ends at' if len(numbers) > 1 else 'is'} {numbers[0]}")
        else:
            verb = "rises" if values.iloc[-1] > values.iloc[0] else "falls"
            told.append(f"{label} {verb} from {numbers[0]} to {numbers[-1]}")
    first, last = steps.iloc[0], steps.iloc[-1]
    told[0] += f" between steps {first:,} and {last:,}" if len(steps) > 1 else f" at step {first:,}"
    text = "; ".join(told)
    return f"{visible(name)}: {text}." if name else f"{text[0].upper()}{text[1:]}."


class LiveCurves(AbstractContextManager):
    """Learning curves that grow during training: ``with LiveCurves() as curves: train(..., watch=curves)``.

    Called with the metrics of each step, it keeps them (``metrics``) and redraws one display in the notebook, at most
    once in ``every`` seconds. The end of ``with``, or ``close``, draws the last state, and so does the step numbered
    ``steps``: that is the picture which the executed notebook keeps. The page must hold plotly.js
    (``theme.plotly_library``). Outside of a notebook nothing is drawn. ``drawing``: as of ``learning_curves``.

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
        self.figure()  # what is wrong with the settings is said now, not in the middle of training
        self._rows = []

    def __call__(self, line: Mapping[str, float]) -> None:
        while self._rows and self._rows[-1]["step"] >= line["step"]:
            self._rows.pop()  # the run begins again, or was resumed from before it
        self._rows.append(dict(line))
        self._stale = True
        if line["step"] == self.steps or time.monotonic() >= self._next:
            self._draw()

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step so far."""
        return pd.DataFrame(self._rows)

    def figure(self) -> go.Figure:
        """The curves so far; ValueError before the first step."""
        seen = self.metrics
        # A column may come late (``mean_n`` needs a call) or never (a typing error): an empty panel breaks no training.
        late = [c for c in self._drawing["columns"] if c not in seen]
        return learning_curves(seen.assign(**dict.fromkeys(late, math.nan)), **self._drawing)

    def close(self) -> None:
        """Draw the last state; what comes after it gets a display of its own."""
        self._draw()
        self._display, self._next = None, -math.inf

    def _draw(self) -> None:
        if not (self._stale and _notebook()):
            return
        from IPython.display import display

        page = theme.described(self.figure())
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)
        # Counted from here: where drawing is slow, training still gets its time.
        self._stale, self._next = False, time.monotonic() + self.every

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        if not self._rows:
            return {"text/plain": NO_STEP}
        return theme.described(self.figure())._repr_mimebundle_()


def _notebook() -> bool:
    """Whether displays show HTML: in a terminal, IPython's too, the progress bar has to do."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "text/html" in shell.display_formatter.active_types
