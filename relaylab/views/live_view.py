"""What the two live views share: decoding in a thread, runs and forks of them, and their record.

An engine is not made for two threads. So one process writes one answer at a time, whichever view started it, and a
second one is refused. Your own code that uses the same engines is not held back: call ``wait`` first.
"""

from __future__ import annotations

import contextvars
import html
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import traitlets as t

from relaylab.call_tag import visible
from relaylab.tasks.suites import Problem, problem_of
from relaylab.trace import Trace
from relaylab.views.player import strip_state
from relaylab.views.theme import Html, style
from relaylab.views.trace_view import trace_html, trace_summary
from relaylab.views.widget import Widget

if TYPE_CHECKING:
    from relaylab.relay.relay import Relay, Stream

ALTERNATIVES = 5  # next tokens that a live view records at each position
INTERVAL = 0.1  # seconds between two updates of the page; longer if an update itself takes long
OUTCOMES = {True: "right", False: "wrong", None: ""}
_one_at_a_time = threading.Lock()


@dataclass(slots=True)
class Run:
    """A trace with its heading and how it was made; ``more`` goes to the page as it is. Its relay decodes its forks."""

    key: str
    heading: str
    how: str
    trace: Trace
    relay: Relay | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """The run for the page: text that is safe to lay out, and numbers."""
        head = {"key": self.key, "heading": visible(self.heading), "how": visible(self.how)}
        end = {"summary": self.summary.split(", ", 1)[1], "outcome": OUTCOMES[self.trace.correct]}
        return strip_state(self.trace) | head | end | self.more

    @property
    def summary(self) -> str:
        """The summary of the trace without its id."""
        return trace_summary(replace(self.trace, id=""))


def side_by_side(runs: list[Run]) -> str:
    """Runs as HTML without a script, in as many columns as the page has room for.

    >>> side_by_side([Run("run-1", "Run 1", "greedy", Trace("2*3?", [1], [5], "s", ["6"]))]).count("<h4>Run 1</h4>")
    1
    """
    parts = (
        f"<div><h4>{html.escape(visible(run.heading))}</h4><p>{html.escape(visible(run.how))}</p>"
        f"{trace_html(run.trace)}</div>"
        for run in runs
    )
    return f'<div class="rl-side"><style>{style(".rl-side", "record.css")}</style>{"".join(parts)}</div>'


class LiveView(Widget):
    """The base of both live views: the runs that were kept, the one that is being written, and what can be changed."""

    actions = ("stop", "remove", "clear", "fork")
    empty = "nothing has been decoded yet"

    runs = t.List().tag(sync=True)  # Run.state() of those that were kept, the oldest first
    live = t.Dict().tag(sync=True)  # and of the one that is being written, if there is one
    busy = t.Bool(False).tag(sync=True)

    def __init__(self, *, keep: int, fixed: int = 0, pace: float = 0.0, **traits: Any):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one run must be kept")
        self._runs: list[Run] = []
        self._keep, self._fixed = keep, fixed  # the first `fixed` runs are never dropped
        self._pace = pace
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._count = 0
        super().__init__(**traits)

    @property
    def traces(self) -> list[Trace]:
        """The traces of the kept runs, the oldest first."""
        return [run.trace for run in self._runs]

    def stop(self) -> None:
        """End the run that is being written; it is kept, and its trace ends ``interrupted``."""
        self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds until nothing is being written. Returns whether that is so."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def remove(self, key: str) -> None:
        """Drop the run with this ``key``. Raises ValueError if there is none, or if it has to stay."""
        if key not in [run.key for run in self._runs[self._fixed :]]:
            raise ValueError(f"there is no run {key!r} to remove")
        self._set_runs([run for run in self._runs if run.key != key])
        self.report("Removed.")

    def clear(self) -> None:
        """Drop all runs that can be dropped."""
        self._set_runs(self._runs[: self._fixed])
        self.report("Removed all runs.")

    def record_html(self) -> Html:
        text = "\n".join(f"{visible(run.heading)}: {run.summary}" for run in self._runs)
        empty = f"{type(self).__name__}: {self.empty}"
        return Html(side_by_side(self._runs) if self._runs else f"<p>{empty}</p>", text or empty)

    def fork(self, at: int, *, call: int | None = None, forbid: bool = False, of: int = 0) -> Self:
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
        if (call is None) == (not forbid):
            raise ValueError("give call, a number of tokens, or forbid: exactly one of them")
        if type(of) is not int or not 0 <= of < len(self._runs):
            raise ValueError(f"there is no trace number {of!r}; they are numbered 0 to {len(self._runs) - 1}")
        run = self._runs[of]
        base, relay = run.trace, run.relay
        assert relay is not None  # only a run that failed to begin has none, and it is not kept
        if type(at) is not int or not 0 <= at < len(base.completion_ids):
            raise ValueError(f"at is {at!r}; the trace has tokens 0 to {len(base.completion_ids) - 1}")
        k = next((k for k, c in enumerate(base.calls) if c.start <= at < c.end + c.delivered), None)
        start, what = _forbidden(base, k, at) if call is None else _forced(relay, base, k, at, call)
        task = problem_of(base) if "answer" in base.problem else None

        def begin(fork: Run) -> Stream:
            fork.relay = relay
            return relay.fork(base, start, call=call, forbid=forbid)

        heading, origin = f"Fork {self._count + 1}: {what}", run.heading.split(":")[0].lower()
        how = f"the first {start} tokens are those of the {origin}"
        self._start(heading, how, begin, task=task, pace=self._pace, fork=start)
        return self

    def _start(
        self, heading: str, how: str, begin: Callable[[Run], Stream], *, task: Problem | None, pace: float, **more: Any
    ) -> None:
        """Decode in a thread what ``begin`` makes, grade its trace with the task, and keep the run.

        ``begin`` may load models. It notes the relay in the run.
        """
        if not _one_at_a_time.acquire(timeout=0.5):  # one that has just ended gets time to release the lock
            raise RuntimeError("another answer is being written in this kernel; stop it, or wait for its end")
        self._count += 1
        self._stopped.clear()
        run = Run(f"run-{self._count}", heading, how, Trace("", []), more=more)
        # In the caller's context: the kernel finds in it the cell that messages belong to.
        work, args = contextvars.copy_context().run, (self._work, run, begin, task, pace)
        self._thread = threading.Thread(target=work, args=args, name="relaylab decode", daemon=True)
        self._thread.start()

    def _work(self, run: Run, begin: Callable[[Run], Stream], task: Problem | None, pace: float) -> None:
        """The thread of one run. Nobody above it catches an error: the status line reports it."""
        from relaylab.relay.pair import graded

        trace, error = None, ""
        try:
            with self.hold_sync():
                self.busy = True
                self.report(f"{run.heading}: writing …")
            stream = begin(run)
            try:
                self._show(run, stream, pace)
            finally:
                stream.close()
                trace = stream.traces[0]
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        try:
            with self.hold_sync():  # one message: a page that shows the end is not busy any more
                try:
                    if trace is not None:
                        run.trace = trace if task is None or trace.stop == "interrupted" else graded(trace, task)
                        self._set_runs([*self._runs, run])
                except Exception as raised:  # of a grader or a front end: the view must not stay busy for ever
                    error = error or f"{type(raised).__name__}: {raised}"
                self.live = {}
                self.report(error or f"{run.heading}. {run.summary[0].upper()}{run.summary[1:]}.", failed=bool(error))
                self.busy = False
        finally:
            _one_at_a_time.release()

    def _show(self, run: Run, stream: Stream, pace: float) -> None:
        """Read a stream to its end or until ``stop``, and show it from time to time."""
        from relaylab.relay.sequence import TokenEvent

        due = 0.0
        for event in stream:
            if pace and isinstance(event, TokenEvent):
                self._stopped.wait(1 / pace)
            if self._stopped.is_set():
                return
            if (now := time.monotonic()) >= due:
                run.trace = stream.traces[0]
                self.live = run.state() | {"alternatives": None}  # they come with the whole answer
                due = time.monotonic() + max(INTERVAL, 4 * (time.monotonic() - now))

    def _set_runs(self, runs: list[Run]) -> None:
        while len(runs) > self._fixed + self._keep:
            del runs[self._fixed]
        self._runs = runs
        self.runs = [run.state() for run in runs]
        self.update_record()


def _forced(relay: Relay, base: Trace, k: int | None, at: int, n: int) -> tuple[int, str]:
    """Where a call for n tokens is written, and that in words."""
    if type(n) is not int or n < 1:
        raise ValueError(f"call is {n!r}; it must be a whole number of tokens, at least 1")
    if relay.forbid_calls:
        raise ValueError("no call can be forced: there is no teacher, or calls are forbidden")
    old = base.calls[k] if k is not None and at <= base.calls[k].end else None
    start = at if old is None else old.start
    limit, command = relay.config.max_tokens, relay.student.text.call(n)
    if start + len(command) >= limit:
        raise ValueError(f"no room for a call at token {start + 1}: the limit is {limit} tokens (max_tokens)")
    if old is None or k is None:
        return start, f"a call for {n:,} at token {start + 1:,}"
    was = "no number" if old.requested is None else f"{old.requested:,}"
    return start, f"call {k + 1} asks for {n:,}, not {was}"


def _forbidden(trace: Trace, k: int | None, at: int) -> tuple[int, str]:
    """Where the forbidden call begins, and that in words."""
    if k is None:
        raise ValueError(f"token {at + 1} belongs to no call, so there is none to forbid")
    if trace.calls[k].start == trace.calls[k].end:
        raise ValueError(f"call {k + 1} has no command: it was made by a rule, and cannot be forbidden")
    return trace.calls[k].start, f"call {k + 1} forbidden"
