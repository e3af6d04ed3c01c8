"""Counterfactuals: force a call, forbid one, or change its n, each from the very same prefix, side by side.

    what_if = CounterfactualView(pair.solve(problem), pair)
    what_if  # in a notebook: the widget

Without a page the same methods do the same: ``what_if.fork(at=38, call=8)``, ``what_if.wait()``, ``what_if.traces``.
``evaluation/counterfactual.py`` does it for many traces and computes statistics.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import Problem, Step
from relaylab.trace import Call, Trace
from relaylab.views.live_view import LiveView, Run

if TYPE_CHECKING:
    from relaylab.relay.pair import Pair
    from relaylab.relay.relay import Stream


class CounterfactualView(LiveView):
    """A trace, and what becomes of it when one thing is changed.

    Args:
        trace: The trace. If it holds a problem, its forks are graded.
        pair: Decodes the forks. By default the embedded models that the trace names; any other name in a trace is
            refused, since a file may be of anyone's making.
        keep: The number of forks to keep beside the trace.
        pace: Tokens per second to slow it down to; 0 for no limit.
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
    actions = (*LiveView.actions, "fork")

    def __init__(self, trace: Trace, pair: Pair | None = None, *, keep: int = 5, pace: float = 0.0, **options: Any):
        if pace < 0:
            raise ValueError(f"pace is {pace}; it is tokens per second, or 0 for no limit")
        pair = pair or _embedded_pair(trace)
        config = {f.name: trace.config[f.name] for f in fields(RelayConfig) if f.name in trace.config}
        config = config or {"max_tokens": max(RelayConfig().max_tokens, 2 * len(trace.completion_ids))}
        defaults = {"temperature": trace.temperature, "record": True} | ({} if "config" in options else config)
        self._pair, self._pace = pair, pace
        self._relay = pair.relay(**defaults | options)
        ids = [i for i in trace.completion_ids if i not in pair.student.end_ids]
        if max(ids, default=0) >= pair.student.vocabulary or "".join(pair.student.text.pieces(ids)) != trace.text:
            raise ValueError(f"the trace was made with another tokenizer than that of {pair.student.name!r}")
        super().__init__(keep=keep, fixed=1)
        how = f"student {trace.student}, teacher {trace.teacher}"
        self._set_runs([Run("run-0", "Original", how, trace, {"fixed": True})])

    def fork(self, at: int, *, call: int | None = None, forbid: bool = False, of: int = 0) -> CounterfactualView:
        """Start to decode again from completion position ``at`` of ``traces[of]``.

        Args:
            at: The position, from 0.
            call: Write a command for this many tokens there. At a token of a command, and at the first token of its
                answer, it replaces that call.
            forbid: The call that holds the token is not made, and none shortly after it; later ones may be.
            of: The number of the trace.

        Returns:
            The view itself.

        Raises:
            ValueError: Not exactly one of ``call`` and ``forbid``; no such trace, position or call; no teacher.
            RuntimeError: Another answer is being written.
        """
        from relaylab.relay.pair import graded

        if (call is None) == (not forbid):
            raise ValueError("give call, a number of tokens, or forbid: exactly one of them")
        if isinstance(of, bool) or not isinstance(of, int) or not 0 <= of < len(self._runs):
            raise ValueError(f"there is no trace number {of!r}; they are numbered 0 to {len(self._runs) - 1}")
        base = self._runs[of].trace
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < len(base.completion_ids):
            raise ValueError(f"at is {at!r}; the trace has tokens 0 to {len(base.completion_ids) - 1}")
        k = next((k for k, c in enumerate(base.calls) if c.start <= at < c.end + c.delivered), None)
        start, what = _forbidden(base, k, at) if call is None else self._forced(base, k, at, call)

        def finish(trace: Trace) -> Trace:
            if "answer" not in base.problem or trace.stop == "interrupted":
                return trace
            steps = tuple(Step(**step) for step in base.problem.get("steps", ()))
            return graded(trace, Problem(**base.problem | {"id": base.id, "steps": steps}))

        def begin() -> Stream:
            return self._relay.fork(base, start, call=call, forbid=forbid)

        origin = self._runs[of].heading.split(":")[0].lower()
        heading, how = f"Fork {self._count + 1}: {what}", f"the first {start} tokens are those of the {origin}"
        self._start(heading, how, begin, finish=finish, pace=self._pace, fork=start)
        return self

    def _forced(self, base: Trace, k: int | None, at: int, n: int) -> tuple[int, str]:
        """Where a call for n tokens is written, and that in words."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"call is {n!r}; it must be a whole number of tokens, at least 1")
        if self._relay.forbid_calls:
            raise ValueError("no call can be forced: there is no teacher, or calls are forbidden")
        old = base.calls[k] if k is not None and at <= base.calls[k].end else None
        start = at if old is None else old.start
        limit, command = self._relay.config.max_tokens, self._pair.student.text.call(n)
        if start + len(command) >= limit:
            raise ValueError(f"no room for a call at token {start + 1}: the limit is {limit} tokens (max_tokens)")
        if old is None or k is None:
            return start, f"a call for {n:,} at token {start + 1:,}"
        return start, f"call {k + 1} asks for {n:,}, not {_requested(old)}"


def _embedded_pair(trace: Trace) -> Pair:
    """The models that a trace names, looked up among the embedded ones only: a file must not choose what is loaded."""
    from relaylab.engine.load import embedded
    from relaylab.relay.pair import load_pair

    names = embedded()
    if trace.student not in names or trace.teacher not in (*names, "none"):
        pair = f"student {trace.student!r} and teacher {trace.teacher!r}"
        raise ValueError(f"the trace names {pair}, which are not both embedded models; give the pair")
    return load_pair(trace.student, trace.teacher)


def _forbidden(trace: Trace, k: int | None, at: int) -> tuple[int, str]:
    """Where the forbidden call begins, and that in words."""
    if k is None:
        raise ValueError(f"token {at + 1} belongs to no call, so there is none to forbid")
    if trace.calls[k].start == trace.calls[k].end:
        raise ValueError(f"call {k + 1} has no command: it was made by a rule, and cannot be forbidden")
    return trace.calls[k].start, f"call {k + 1} forbidden"


def _requested(call: Call) -> str:
    return "no number" if call.requested is None else f"{call.requested:,}"
