"""What the live views share: kept runs, one that is being written, messages from the page, and the record for pages
without a kernel.

A view is displayed as two outputs. The first is the widget. The second is its record, plain HTML that is brought up to
date after every run; a page in which the widget lives hides it. So whatever keeps the page (a saved notebook, an
export, a reader without a kernel) keeps what was found, also where it drops the widget or cannot run it. Under
``notebooks.execute`` nobody can click: there the record is all.

Decoding is in ``decode.py``. Text of models is data here and text nodes in the page.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets as t

from relaylab.relay.relay import Stream
from relaylab.sweep.notebook import RESULT
from relaylab.trace import Trace
from relaylab.views.frontend import ROOT, source, style
from relaylab.views.live_decode import Decode
from relaylab.views.live_static import side_by_side
from relaylab.views.player import _data
from relaylab.views.theme import Html
from relaylab.views.trace_view import trace_summary, visible

HERE = Path(__file__).parent
OUTCOMES = {True: "right", False: "wrong", None: ""}


@dataclass(slots=True)
class Run:
    """A trace with its heading, how it was made, and what the page needs to know of it besides."""

    key: str
    heading: str
    how: str
    trace: Trace
    more: dict[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """What the page gets: text that is safe to lay out, and numbers."""
        trace = _data(self.trace)
        del trace["view"]  # the teacher's; here is one strip a run
        for shown, call in zip(trace["calls"], self.trace.calls):
            shown["requested"] = call.requested
        head = {"key": self.key, "heading": visible(self.heading), "how": visible(self.how)}
        told = {"summary": self.summary.split(", ", 1)[1], "outcome": OUTCOMES[self.trace.correct]}
        return trace | head | told | self.more

    @property
    def summary(self) -> str:
        """Of the trace, without its id: outcome, tokens, calls, share of the teacher, why it stopped."""
        return trace_summary(replace(self.trace, id=""))


@cache
def front_end(name: str) -> dict[str, str]:
    """The script and the style of the view whose own part is ``NAME.js``: a module that needs no other."""
    parts = [source("frontend.js"), source("player.js"), *((HERE / f).read_text() for f in ("live.js", f"{name}.js"))]
    own = (HERE / "live.css").read_text().replace("\n", "").replace("&", ROOT)
    return {"_esm": "\n".join([*parts, "export default { render: show };\n"]), "_css": style() + own}


class LiveView(anywidget.AnyWidget):
    """The base of both views. ``actions`` are the methods that a message from the page may call, by name."""

    actions: tuple[str, ...] = ("stop", "remove", "clear")
    nothing = "nothing has been decoded yet"

    setup = t.Dict().tag(sync=True)  # what the page needs to know once
    runs = t.List().tag(sync=True)  # Run.data() of the kept ones, the oldest first
    live = t.Dict().tag(sync=True)  # and of the one that is being written; empty without
    busy = t.Bool(False).tag(sync=True)
    message = t.Unicode().tag(sync=True)  # said aloud by the page
    failed = t.Bool(False).tag(sync=True)  # the message is of something that went wrong
    mark = t.Unicode().tag(sync=True)  # of the record

    def __init__(self, *, keep: int, fixed: int = 0, **traits: Any):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one run must be kept")
        self._runs: list[Run] = []
        self._keep, self._fixed = keep, fixed  # the first `fixed` runs are never dropped
        self._decode: Decode | None = None
        self._count, self._displayed = 0, False
        super().__init__(mark=uuid.uuid4().hex, **traits)
        self.on_msg(self._received)

    @property
    def traces(self) -> list[Trace]:
        """The traces of the kept runs, the oldest first."""
        return [run.trace for run in self._runs]

    def stop(self) -> None:
        """End the run that is being written; it is kept, and its trace ends ``interrupted``."""
        if self._decode is not None:
            self._decode.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being written, at most ``timeout`` seconds; whether it is so."""
        return self._decode is None or self._decode.wait(timeout)

    def remove(self, key: str) -> None:
        """Drop the kept run that has this ``key`` in ``runs``. ValueError where none has, or it has to stay."""
        if key not in [run.key for run in self._runs[self._fixed :]]:
            raise ValueError(f"there is no run {key!r} to remove")
        self._keep_only([run for run in self._runs if run.key != key])
        self._say("Removed.")

    def clear(self) -> None:
        """Drop all kept runs that can go."""
        self._keep_only(self._runs[: self._fixed])
        self._say("Removed all runs.")

    def record(self) -> Html:
        """The kept runs as HTML that needs neither a kernel nor a script."""
        runs = [(run.heading, run.how, run.trace) for run in self._runs]
        text = "\n".join(f"{visible(run.heading)}: {run.summary}" for run in self._runs)
        name = type(self).__name__
        page = side_by_side(runs) if runs else f"<p>{name}: {self.nothing}</p>"
        return Html(f'<div data-rl-record="{self.mark}">{page}</div>', text or f"{name}: {self.nothing}")

    # Decoding ---------------------------------------------------------------------------------------------------------

    def _run(
        self,
        heading: str,
        how: str,
        begin: Callable[[], Stream],
        *,
        finish: Callable[[Trace], Trace],
        pace: float,
        **more: Any,
    ) -> None:
        """Decode what ``begin`` makes and keep it; ``finish`` grades. RuntimeError while another one is written."""
        run = Run(f"run-{self._count + 1}", heading, how, Trace("", []), more)

        def started() -> Stream:
            self.busy = True
            self._say(f"{heading}: writing …")
            return begin()

        def grown(trace: Trace) -> None:
            run.trace = trace
            self.live = run.data()

        def ended(trace: Trace | None, error: str) -> None:
            try:
                if trace is not None:
                    run.trace = finish(trace)
                    self._keep_only([*self._runs, run])
            except Exception as raised:  # of a grader or a front end: the view must not stay busy for ever
                error = error or f"{type(raised).__name__}: {raised}"
            self.live = {}
            self._say(error or f"{heading}. {run.summary[0].upper()}{run.summary[1:]}.", failed=bool(error))
            self.busy = False

        self._decode = Decode(started, show=grown, done=ended, pace=pace)
        self._count += 1

    def _keep_only(self, runs: list[Run]) -> None:
        while len(runs) > self._fixed + self._keep:
            del runs[self._fixed]
        self._runs = runs
        self.runs = [run.data() for run in runs]
        if self._displayed:
            from IPython.display import update_display

            update_display(self.record(), display_id=self.mark)

    def _say(self, message: str, *, failed: bool = False) -> None:
        self.failed = failed
        self.message = visible(message)

    # The page ---------------------------------------------------------------------------------------------------------

    def _received(self, _: Any, content: Any, buffers: Any) -> None:
        """A message of the page: {"do": name of an action, and its keywords}. What is wrong with it is said there."""
        try:
            given = dict(content)
            name = given.pop("do", None)
            if name not in self.actions:
                raise ValueError(f"there is no action {name!r}; there are {', '.join(self.actions)}")
            getattr(self, name)(**given)
        except (ValueError, RuntimeError, TypeError) as error:
            self._say(str(error), failed=True)

    def open(self) -> None:
        """Tell the front end that the widget is there; not where nobody can click."""
        if not os.environ.get(RESULT):
            super().open()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
        """The record, and the widget where there is one: for what takes one output only."""
        found = self.record()._repr_mimebundle_()
        if self.comm is None:
            return found
        data, metadata = super()._repr_mimebundle_()
        return data | found, metadata

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if self.comm is not None:
            data, metadata = super()._repr_mimebundle_()
            display(data | {"text/html": "", "text/plain": ""}, metadata=metadata, raw=True)
        display(self.record(), display_id=self.mark)
        self._displayed = True
