"""What the two live views share: decoding in a thread, the runs that were kept, and their record.

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
from typing import TYPE_CHECKING, Any

import traitlets as t

from relaylab.call_tag import visible
from relaylab.trace import Trace
from relaylab.views.player import strip_state
from relaylab.views.theme import Html, page_css
from relaylab.views.trace_view import trace_html, trace_summary
from relaylab.views.widget import Widget

if TYPE_CHECKING:
    from relaylab.relay.relay import Stream

INTERVAL = 0.1  # seconds between two updates of the page; longer if an update itself takes long
OUTCOMES = {True: "right", False: "wrong", None: ""}
_one_at_a_time = threading.Lock()
_RECORD_STYLE = page_css(".rl-side") + (
    ".rl-side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26em,100%),1fr));gap:4px 14px;"
    "align-items:start;max-width:100%;font:14px/1.5 var(--rl-sans)}.rl-side>div{min-width:0}"
    ".rl-side h4{margin:8px 0 0;padding:0;font:600 14px/1.4 var(--rl-sans);overflow-wrap:anywhere;unicode-bidi:isolate}"
    ".rl-side p{margin:0;font-size:13px;overflow-wrap:anywhere;unicode-bidi:isolate}"
)


class Decode:
    """One stream with one sequence, read in a thread to its end or until ``stop``.

    Args:
        begin: Makes the stream; models may be loaded in it.
        show: Gets the growing trace from time to time.
        done: Gets the last trace (None if ``begin`` failed) and an error message (empty without an error).
        pace: Tokens per second to slow it down to; 0 for no limit.

    Raises:
        RuntimeError: Another answer is being written.

    >>> from relaylab.relay.pair import load_pair
    >>> relay, last = load_pair("student", "none").relay(max_tokens=4), []
    >>> one = Decode(lambda: relay.stream(["2+2?"]), show=lambda _: 0, done=lambda t, _: last.append(t))
    >>> one.wait(60), len(last[0].source), last[0].stop
    (True, 4, 'length')
    """

    def __init__(
        self,
        begin: Callable[[], Stream],
        *,
        show: Callable[[Trace], Any],
        done: Callable[[Trace | None, str], Any],
        pace: float = 0.0,
    ):
        if not _one_at_a_time.acquire(timeout=0.5):  # one that has just ended gets time to release the lock
            raise RuntimeError("another answer is being written in this kernel; stop it, or wait for its end")
        self._begin, self._show, self._done, self._pace = begin, show, done, pace
        self._stopped = threading.Event()
        # In the caller's context: the kernel finds in it the cell that messages belong to.
        work = contextvars.copy_context().run
        self._thread = threading.Thread(target=work, args=(self._work,), name="relaylab decode", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it before its next token; its trace then ends ``interrupted``."""
        self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for the end. Returns whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        trace, error = None, ""
        try:
            stream = self._begin()
            try:
                self._read(stream)
            finally:
                stream.close()
                trace = stream.traces[0]
        except Exception as raised:  # nobody above a thread catches it: the view reports it
            error = f"{type(raised).__name__}: {raised}"
        try:
            self._done(trace, error)
        finally:
            _one_at_a_time.release()

    def _read(self, stream: Stream) -> None:
        from relaylab.relay.events import TokenEvent

        due = 0.0
        for event in stream:
            if self._pace and isinstance(event, TokenEvent):
                self._stopped.wait(1 / self._pace)
            if self._stopped.is_set():
                return
            if (now := time.monotonic()) >= due:
                self._show(stream.traces[0])
                due = time.monotonic() + max(INTERVAL, 4 * (time.monotonic() - now))


@dataclass(slots=True)
class Run:
    """A trace with its heading and how it was made; ``more`` goes to the page as it is."""

    key: str
    heading: str
    how: str
    trace: Trace
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
    return f'<div class="rl-side"><style>{_RECORD_STYLE}</style>{"".join(parts)}</div>'


class LiveView(Widget):
    """The base of both live views: the runs that were kept, and the one that is being written."""

    actions = ("stop", "remove", "clear")
    empty = "nothing has been decoded yet"

    runs = t.List().tag(sync=True)  # Run.state() of those that were kept, the oldest first
    live = t.Dict().tag(sync=True)  # and of the one that is being written, if there is one
    busy = t.Bool(False).tag(sync=True)

    def __init__(self, *, keep: int, fixed: int = 0, **traits: Any):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one run must be kept")
        self._runs: list[Run] = []
        self._keep, self._fixed = keep, fixed  # the first `fixed` runs are never dropped
        self._decode: Decode | None = None
        self._count = 0
        super().__init__(**traits)

    @property
    def traces(self) -> list[Trace]:
        """The traces of the kept runs, the oldest first."""
        return [run.trace for run in self._runs]

    def stop(self) -> None:
        """End the run that is being written; it is kept, and its trace ends ``interrupted``."""
        if self._decode is not None:
            self._decode.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds until nothing is being written. Returns whether that is so."""
        return self._decode is None or self._decode.wait(timeout)

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

    def _start(
        self,
        heading: str,
        how: str,
        begin: Callable[[], Stream],
        *,
        finish: Callable[[Trace], Trace],
        pace: float,
        **more: Any,
    ) -> None:
        """Decode the stream of ``begin`` and keep the run; ``finish`` grades its trace."""
        run = Run(f"run-{self._count + 1}", heading, how, Trace("", []), more)

        def started() -> Stream:
            self.busy = True
            self.report(f"{heading}: writing …")
            return begin()

        def grown(trace: Trace) -> None:
            run.trace = trace
            self.live = run.state()

        def ended(trace: Trace | None, error: str) -> None:
            try:
                if trace is not None:
                    run.trace = finish(trace)
                    self._set_runs([*self._runs, run])
            except Exception as raised:  # of a grader or a front end: the view must not stay busy for ever
                error = error or f"{type(raised).__name__}: {raised}"
            self.live = {}
            self.report(error or f"{heading}. {run.summary[0].upper()}{run.summary[1:]}.", failed=bool(error))
            self.busy = False

        self._decode = Decode(started, show=grown, done=ended, pace=pace)
        self._count += 1

    def _set_runs(self, runs: list[Run]) -> None:
        while len(runs) > self._fixed + self._keep:
            del runs[self._fixed]
        self._runs = runs
        self.runs = [run.state() for run in runs]
        self.update_record()
