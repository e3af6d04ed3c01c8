"""relaylab: teach and study token-level collaborative decoding.

    import relaylab as rl

    pair = rl.load_pair()
    trace = pair.solve("Mia has 14 stamps and buys 25 more. How many stamps does Mia have?")
    trace

Names are imported when they are first used: ``import relaylab`` itself is quick and needs no torch.
"""

from importlib import import_module
from typing import Any

from relaylab.trace import Call, Trace, read_traces
from relaylab.version import __version__
from relaylab.views.trace_view import trace_html, trace_text

_HOME = {
    "Pair": "relay.pair",
    "load_pair": "relay.pair",
    "load_teacher": "relay.pair",
    "Relay": "relay.relay",
    "RelayConfig": "relay.config",
    "CallAt": "relay.call_rules",
    "CallEvery": "relay.call_rules",
    "CallWhenUnsure": "relay.call_rules",
    "LocalTeacher": "relay.local_teacher",
    "APITeacher": "relay.api_teacher",
    "NoTeacher": "relay.teachers",
    "FleetTeacher": "relay.fleet_teacher",
    "fleet": "relay.fleet_teacher",
    "ScriptedTeacher": "relay.teachers",
    "TeacherOutput": "relay.teachers",
    "load_engine": "engine.load",
    "Problem": "tasks.suites",
    "SUITES": "tasks.suites",
    "problem": "tasks.suites",
    "problems": "tasks.suites",
    "load_problems": "tasks.data",
    "load_benchmark": "tasks.benchmarks",
    "grade": "tasks.grading",
    "grade_problem": "tasks.answers",
    "Playground": "views.playground",
    "CounterfactualView": "views.counterfactual_view",
    "warmup": "training.warmup",
    "train": "training.grpo",
    "read_metrics": "training.run_dir",
    "pass_rates": "training.data_filter",
    "evaluate": "evaluation.evaluate",
    "result": "sweep.notebook",
    "LiveCurves": "views.curves",
    "learning_curves": "views.curves",
    "player": "views.player",
    "atlas": "views.atlas",
    "read_labelled": "views.atlas",
    "reward_lab": "views.reward_lab",
    "Rollout": "views.reward_lab",
    "cost_dial": "views.cost_dial",
    "call_positions": "views.figures",
    "report": "views.report",
    "token_entropy": "views.figures",
}

__all__ = ["Call", "Trace", "__version__", "read_traces", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'relaylab' has no attribute {name!r}")
    return getattr(import_module(f"relaylab.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


# A trace shows itself. The record is on the ground floor and knows no views, so the door that has both joins them.
Trace._repr_html_ = trace_html
Trace.__repr__ = trace_text
