"""What if: a call forced at a token, a call forbidden, a call for another n, each from that very prefix, side by side.

    what_if = CounterfactualView(pair.solve(problem), pair)
    what_if  # in a notebook: the widget

Without a page the same methods do the same: ``what_if.fork(at=38, call=8)``, ``what_if.wait()``, ``what_if.traces``.
Many traces and statistics over them are ``evaluation/counterfactual.py``.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from relaylab.evaluation.counterfactual import problem_of
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import Pair, graded, load_pair
from relaylab.relay.relay import Stream
from relaylab.trace import Call, Trace
from relaylab.views.live_view import LiveView, Run, front_end


class CounterfactualView(LiveView):
    """A trace, and what becomes of it where one thing is changed.

    pair: decodes the forks, from caches that it still has where it made the trace; without one, the models that the
    trace names are loaded. ``options``: those of ``Relay`` and ``RelayConfig``; by default the temperature and, where
    ``Pair.decode`` made the trace, the config of the trace, else at most 512 tokens or twice the trace. keep: so many
    forks are kept beside the trace. A trace of a problem has its forks graded. ``pace``: tokens a second to slow it
    down to.

    >>> from relaylab.relay.pair import load_pair
    >>> from relaylab.tasks.suites import problem
    >>> pair = load_pair("student")
    >>> what_if = CounterfactualView(pair.solve(problem("savings", 0), max_tokens=60), pair, max_tokens=60)
    >>> what_if.fork(at=4, call=3).wait()
    True
    >>> what_if.traces[1].calls[0].start, what_if.traces[1].calls[0].requested
    (4, 3)

    Raises ValueError where the trace names no models that can be loaded and no pair is given, where it was made with
    another tokenizer, and for options that ``Relay`` does not take.
    """

    _esm, _css = front_end("counterfactual").values()
    actions = (*LiveView.actions, "fork")

    def __init__(self, trace: Trace, pair: Pair | None = None, *, keep: int = 5, pace: float = 0.0, **options: Any):
        if pair is None:
            if not (trace.student and trace.teacher):
                raise ValueError("the trace does not say which models made it; give the pair")
            pair = load_pair(trace.student, trace.teacher)
        caps = {f.name: trace.config[f.name] for f in fields(RelayConfig) if f.name in trace.config}
        caps = caps or {"max_tokens": max(RelayConfig().max_tokens, 2 * len(trace.completion_ids))}
        if "config" in options:
            caps = {}
        self._pair = pair
        if pace < 0:
            raise ValueError(f"pace is {pace}; it is tokens a second, or 0 for as fast as it goes")
        self._relay = pair.relay(**{"temperature": trace.temperature, "record": True} | caps | options)
        own = [i for i in trace.completion_ids if i not in pair.student.end_ids]
        if max(own, default=0) >= pair.student.vocabulary or "".join(pair.student.text.pieces(own)) != trace.text:
            raise ValueError(f"the trace was made with another tokenizer than that of {pair.student.name!r}")
        self._pace = pace
        super().__init__(keep=keep, fixed=1)
        how = f"student {trace.student}, teacher {trace.teacher}"
        self._keep_only([Run("run-0", "Original", how, trace, {"fixed": True})])

    def fork(self, at: int, *, call: int | None = None, forbid: bool = False, of: int = 0) -> CounterfactualView:
        """Begin to decode anew from completion position ``at`` of ``traces[of]``. Returns the view itself.

        call: a command for so many tokens is written there; at any token of a command, and at the first one of its
        answer, in the place of that call. forbid: the call that holds the token is not made, and none shortly after;
        any later one may be.

        Raises ValueError where not exactly one of the two is given, where there is no such trace, position, or call,
        and where nobody can be called; RuntimeError while another answer is being written.
        """
        if (call is None) == (not forbid):
            raise ValueError("give call, a number of tokens, or forbid: exactly one of them")
        if isinstance(of, bool) or not isinstance(of, int) or not 0 <= of < len(self._runs):
            raise ValueError(f"there is no trace number {of!r}; they are numbered 0 to {len(self._runs) - 1}")
        base = self._runs[of].trace
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < len(base.completion_ids):
            raise ValueError(f"at is {at!r}; the trace has tokens 0 to {len(base.completion_ids) - 1}")
        k = _holding(base, at)
        if forbid:
            start, what = _forbidden(base, k, at)
        else:
            start, what = self._forced(base, k, at, call)
        relay = self._relay

        def begin() -> Stream:
            return relay.fork(base, start, call=call, forbid=forbid)

        def finish(trace: Trace) -> Trace:
            can_be_graded = "answer" in base.problem and trace.stop != "interrupted"
            return graded(trace, problem_of(base)) if can_be_graded else trace

        origin = self._runs[of].heading.split(":")[0].lower()
        heading, how = f"Fork {self._count + 1}: {what}", f"the first {start} tokens are those of the {origin}"
        self._run(heading, how, begin, finish=finish, pace=self._pace, fork=start)
        return self

    def _forced(self, base: Trace, k: int | None, at: int, n: int) -> tuple[int, str]:
        """Where a call for n tokens is written, and that in words."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"call is {n!r}; it must be a whole number of tokens, at least 1")
        if self._relay.forbid_calls:
            raise ValueError("no call can be forced: there is no teacher, or calls are forbidden")
        held = base.calls[k] if k is not None else None
        changed = held is not None and at <= held.end
        start = held.start if changed else at
        limit, command = self._relay.config.max_tokens, self._pair.student.text.call(n)
        if start + len(command) >= limit:
            raise ValueError(f"no room for a call at token {start + 1}: the limit is {limit} tokens (max_tokens)")
        if changed:
            return start, f"call {k + 1} asks for {n:,}, not {_asked(held)}"
        return start, f"a call for {n:,} at token {start + 1:,}"


def _holding(trace: Trace, at: int) -> int | None:
    """The call whose command or answer holds a token."""
    return next((k for k, c in enumerate(trace.calls) if c.start <= at < c.end + c.delivered), None)


def _forbidden(trace: Trace, k: int | None, at: int) -> tuple[int, str]:
    if k is None:
        raise ValueError(f"token {at + 1} belongs to no call, so there is none to forbid")
    if trace.calls[k].start == trace.calls[k].end:
        raise ValueError(f"call {k + 1} has no command: it was made by a rule, and cannot be forbidden")
    return trace.calls[k].start, f"call {k + 1} forbidden"


def _asked(call: Call) -> str:
    return "no number" if call.requested is None else f"{call.requested:,}"
