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
from relaylab.viz.view import trace_html, trace_text

_HOME = {
    "Pair": "decoding.pair",
    "load_pair": "decoding.pair",
    "load_teacher": "decoding.pair",
    "Relay": "decoding.relay",
    "Limits": "decoding.row",
    "CallAt": "decoding.policies",
    "CallEvery": "decoding.policies",
    "CallWhenUnsure": "decoding.policies",
    "LocalTeacher": "models.local_teacher",
    "APITeacher": "models.api_teacher",
    "NoTeacher": "models.teachers",
    "FleetTeacher": "models.fleet_teacher",
    "fleet": "models.fleet_teacher",
    "ScriptedTeacher": "models.teachers",
    "Continuation": "models.teachers",
    "load_engine": "models.zoo",
    "Problem": "tasks.suites",
    "SUITES": "tasks.suites",
    "problem": "tasks.suites",
    "problems": "tasks.suites",
    "load_problems": "tasks.data",
    "load_benchmark": "tasks.benchmarks",
    "grade": "tasks.grading",
    "grade_problem": "tasks.answers",
    "LiveBench": "live.bench",
    "Counterfactual": "live.counterfactual",
    "warmup": "training.warmup",
    "train": "training.run",
    "read_metrics": "training.record",
    "pass_rates": "training.filtering",
    "evaluate": "analysis.evaluate",
    "result": "notebooks",
    "LiveCurves": "viz.curves",
    "learning_curves": "viz.curves",
    "player": "viz.player",
    "atlas": "viz.atlas",
    "read_labelled": "viz.atlas",
    "reward_lab": "viz.reward_lab",
    "Rollout": "viz.reward_lab",
    "cost_dial": "viz.cost_dial",
    "call_positions": "viz.figures",
    "report": "viz.report",
    "token_entropy": "viz.figures",
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
