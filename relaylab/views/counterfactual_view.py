"""Counterfactuals: force a call, forbid one, or change its n, each from the very same prefix, side by side.

``evaluation/counterfactual.py`` does it for many traces and computes statistics.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from relaylab.relay.config import RelayConfig
from relaylab.trace import Trace
from relaylab.views.live_view import ALTERNATIVES, LiveView, Run

if TYPE_CHECKING:
    from relaylab.relay.pair import Pair


class CounterfactualView(LiveView):
    """A trace, and what becomes of it when one thing is changed (``fork``).

    A notebook shows the widget. Without a page the same methods do the same.

    Args:
        trace: The trace. If it holds a problem, its forks are graded.
        pair: Decodes the forks. By default the embedded models that the trace names; any other name in a trace is
            refused, since a file may be of anyone's making.
        keep: The number of forks to keep beside the trace.
        options: Those of ``Relay`` and ``RelayConfig``. By default those of ``trace.config``; if it is empty, the
            trace's temperature and at most 512 tokens or twice the trace.

    Raises:
        ValueError: No pair, and the trace does not name embedded models; another tokenizer; unknown options.

    >>> from relaylab.relay.pair import load_pair
    >>> from relaylab.tasks.suites import problem
    >>> pair = load_pair("student")
    >>> what_if = CounterfactualView(pair.solve(problem("savings", 0), max_tokens=60), pair, max_tokens=60)
    >>> what_if.fork(at=4, call=3).wait()
    True
    >>> what_if.traces[1].calls[0].start, what_if.traces[1].calls[0].requested
    (4, 3)
    """

    view = "counterfactual_view"

    def __init__(self, trace: Trace, pair: Pair | None = None, *, keep: int = 5, **options: Any):
        pair = pair or _embedded_pair(trace)
        config = {f.name: trace.config[f.name] for f in fields(RelayConfig) if f.name in trace.config}
        config = config or {"max_tokens": max(RelayConfig().max_tokens, 2 * len(trace.completion_ids))}
        defaults = {"temperature": trace.temperature, "record": True} | ({} if "config" in options else config)
        settings: dict[str, Any] = {"alternatives": ALTERNATIVES} | defaults | options
        relay = pair.relay(**settings)
        ids = [i for i in trace.completion_ids if i not in pair.student.end_ids]
        if max(ids, default=0) >= pair.student.vocabulary or "".join(pair.student.text.pieces(ids)) != trace.text:
            raise ValueError(f"the trace was made with another tokenizer than that of {pair.student.name!r}")
        super().__init__(keep=keep, fixed=1)
        how = f"student {trace.student}, teacher {trace.teacher}"
        self._set_runs([Run("run-0", "Original", how, trace, relay, {"fixed": True})])


def _embedded_pair(trace: Trace) -> Pair:
    """The models that a trace names, looked up among the embedded ones only: a file must not choose what is loaded."""
    from relaylab.engine.load import embedded
    from relaylab.relay.pair import load_pair

    names = embedded()
    if trace.student not in names or trace.teacher not in (*names, "none"):
        pair = f"student {trace.student!r} and teacher {trace.teacher!r}"
        raise ValueError(f"the trace names {pair}, which are not both embedded models; give the pair")
    return load_pair(trace.student, trace.teacher)
