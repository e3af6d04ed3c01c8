"""What the lessons need besides ``relaylab``: names of its modules, and the plumbing of a notebook.

    from lesson import check, find_calls, setup

A name of the package is imported when it is first used, so a lesson loads what it needs.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

_NAMES = {
    "lesson.checks": "check",
    "lesson.fleet": "capacity load_curve projection relay_plans teacher_plans",
    "lesson.small": "SMALL small_qwen3",
    "relaylab.call_tag": "OPEN find_calls format_call strip_calls visible",
    "relaylab.engine.load": "embedded embedded_tokenizer load_engine manifest resolve",
    "relaylab.doctor": "Machine estimates",
    "relaylab.cost": "MEASURES ModelPrices Prices costs hand_offs roofline usage",
    "relaylab.evaluation.counterfactual": "call_effects effects_by verdicts",
    "relaylab.evaluation.learning": "calls_at hard_kinds result_digits step_accuracy",
    "relaylab.evaluation.placement": "agreement_frame calls_frame transfer_frame windows_frame",
    "relaylab.evaluation.scorecard": "Measured Names markdown matched_p measured paper_tables random_router scorecard",
    "relaylab.evaluation.stats": "columns interval mean paired summary",
    "relaylab.evaluation.systems": "system",
    "relaylab.evaluation.table": "rows_of trace_files trace_name",
    "relaylab.memory": "GB PROMPT QWEN3 Shape arithmetic shipped total",
    "relaylab.relay.local_teacher": "LocalTeacher",
    "relaylab.relay.pair": "graded",
    "relaylab.relay.teachers": "TeacherOutput",
    "relaylab.sweep.results": "effects plane read_results",
    "relaylab.tasks.suites": "ALL_SUITES TAUGHT Problem level_of mixture",
    "relaylab.tasks.worlds": "HARD_KINDS",
    "relaylab.trace": "TEACHER to_frame",
    "relaylab.training.configs": "read_config",
    "relaylab.training.data_filter": "keep pass_rates",
    "relaylab.training.rewards": "advantages difficulty_aware helped kind_of ratios score simple",
    "relaylab.training.run_dir": "read_metrics",
    "relaylab.training.warmup_data": "insert_calls warmup_data",
    "relaylab.views.atlas": "read_labelled",
    "relaylab.views.cost_dial": "cost_dial",
    "relaylab.views.curves": "LiveCurves learning_curves",
    "relaylab.views.evaluation_figures": "MEASURE_NAMES accuracy_against_share delivery_figure effects_figure"
    " fleet_load suite_bars transfer_figure verdict_figure window_figure",
    "relaylab.views.figures": "call_positions token_entropy",
    "relaylab.views.method_map": "map_figure",
    "relaylab.views.predict": "Predict",
    "relaylab.views.reward_lab": "Rollout reward_lab",
    "relaylab.views.sweep_report": "effects_shown plane_figure",
    "relaylab.views.theme": "HEAT HEAT_SIGNED OKABE_ITO ROLES show_figure",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["course", "new_folder", "setup", "show", "show_sweep", "watch", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lesson' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def setup() -> None:
    """Prepare a notebook: plotly.js in the page, so that figures need no network, and no chatter of libraries."""
    from transformers.utils import logging

    from relaylab.views.theme import load_plotly

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load_plotly()


def course() -> Any:
    """The table of the lessons, from the page for instructors."""
    from IPython.display import Markdown

    page = Path(__file__).parents[2] / "docs" / "instructors-guide.md"
    section = page.read_text(encoding="utf-8").partition("\n## The lessons\n")[2]
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return Markdown("\n".join(rows).replace("../notebooks/", ""))


def new_folder() -> Path:
    """A new temporary folder."""
    return Path(tempfile.mkdtemp())


def show(fig: Any, title: str, alt: str, **layout: Any) -> Any:
    """A figure with its title and a text for readers who cannot see it.

    Args:
        fig: A plotly figure.
        title: The title above it.
        alt: What it shows, with its numbers.
        layout: More layout settings of plotly.
    """
    from relaylab.views.theme import show_figure, with_alt_text

    return show_figure(with_alt_text(fig, alt, title, **layout))


def watch(curves: Any) -> Any:
    """A callback of ``rl.train`` that gives the metrics of each step to ``curves``.

    Args:
        curves: Called with a dictionary of ``step`` and the metrics, such as ``LiveCurves``.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if logs and "loss" in logs:  # not the closing summary, which would replace the last step
                curves({"step": state.global_step} | logs)

    return Watch()


def show_sweep(path: str, title: str, *, points: str) -> list:
    """The figure and the table of a finished sweep, or the commands that make them.

    Args:
        path: Its ``results.csv``, under ``measured``.
        title: The title of the figure.
        points: How many trainings the sweep takes, in words.
    """
    from IPython.display import Markdown

    from relaylab.sweep.results import effects, plane, read_results
    from relaylab.views.sweep_report import effects_shown, plane_figure
    from relaylab.views.theme import show_figure

    name = Path(path).stem
    if not Path(path).exists():
        commands = f"relaylab sweep sweeps/{name}.yaml --workers 2\ncp runs/sweeps/{name}/results.csv notebooks/{path}"
        return [Markdown(f"There is no `{path}` here. To make it ({points}):\n\n```bash\n{commands}\n```")]
    plan, table = read_results(path, collect=["accuracy", "teacher_share", "alone"])
    fig = plane_figure(plan, plane(plan, table)).update_layout(title_text=title)
    fig.update_xaxes(title_text="teacher's share of all tokens", tickformat=".0%")
    fig.update_yaxes(title_text="problems solved", tickformat=".0%")
    return [show_figure(fig), effects_shown(effects(plan, table))]
