"""One thread owns the models of a server. Answers join its running relay between two passes and leave when done.

The loop is that of ``relay/relay.py``. This module feeds it, cancels answers, and carries their text to the event loop
of the server.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, groupby

from relaylab.call_tag import settled, strip_calls
from relaylab.engine.engine import Engine
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay, Stream
from relaylab.relay.sequence import Done, Event, Sequence, TokenEvent
from relaylab.relay.teachers import NamedTeachers, every_teacher
from relaylab.trace import Trace

FLUSH_SECONDS = 0.05  # a reader gets the first text at once, later ones at most so often
PAUSE_SECONDS = 0.002  # between two looks at a teacher behind a server, while no student can write

log = logging.getLogger("relaylab.server")


class VisibleText:
    """An answer as its reader sees it: without commands, and up to the first stop string.

    Args:
        stop: these strings.
        named: a command may name its teacher.

    >>> text = VisibleText(stop=["\\n"])
    >>> for piece in ("7*6=", "<call>2", "</call>", "4"): text.add(piece)
    >>> text.text, text.ready
    ('7*6=4', 5)
    >>> text.add("2\\nSo", teacher=True)
    >>> text.text, text.stopped
    ('7*6=42', True)
    """

    def __init__(self, stop: list[str] | None = None, *, named: bool = False):
        self.text, self.stopped, self.stop, self._named = "", False, stop or [], named
        self._open = ""  # the student's last text, which may still become part of a command

    def add(self, piece: str, teacher: bool = False) -> None:
        """The text of some tokens. What the teacher writes is never a command."""
        if teacher:
            self.end()
            self._show(piece)
        else:
            self._open += piece
            self._settle(settled(self._open, named=self._named))

    def end(self) -> None:
        """Nothing follows in this turn: a command that is not closed is text."""
        self._settle(len(self._open))

    @property
    def ready(self) -> int:
        """Characters of ``text`` that no stop string will take away."""
        if self.stopped:
            return len(self.text)
        begun = (k for s in self.stop for k in range(1, min(len(s), len(self.text) + 1)) if self.text.endswith(s[:k]))
        return len(self.text) - max(begun, default=0)

    def _settle(self, length: int) -> None:
        text, self._open = strip_calls(self._open[:length], named=self._named), self._open[length:]
        self._show(text)

    def _show(self, text: str) -> None:
        if self.stopped:
            return
        begin = len(self.text)
        self.text += text
        found = (self.text.find(s, max(0, begin - len(s) + 1)) for s in self.stop)
        if (cut := min((at for at in found if at >= 0), default=-1)) >= 0:
            self.text, self.stopped = self.text[:cut], True


@dataclass(eq=False)
class Row:
    """One answer that a request asks for.

    Args:
        sequence: not begun yet.
        text: what its reader sees of it.
        send: gets each new text in the event loop, and None at the end, which may have a ``rest``.
        stream: send texts as they come. If False, only the end is sent.
    """

    sequence: Sequence
    text: VisibleText
    send: Callable[[Row, str | None], None]
    stream: bool = False
    trace: Trace | None = None  # once it is done
    error: str | None = None  # why there is no answer
    cancelled: bool = False
    submitted: float = field(default_factory=time.perf_counter)
    first: float | None = None  # when its first token came
    sent: int = 0  # characters
    unread: list[TokenEvent] = field(default_factory=list)  # tokens that ``text`` does not hold yet
    last: str = ""  # the text of its last token

    @property
    def rest(self) -> str:
        """The text that was not sent."""
        return self.text.text[self.sent :]

    def read(self) -> None:
        """Take what was written into the text; many tokens at once cost hardly more than one."""
        for teacher, events in groupby(self.unread, lambda event: event.source == "t"):
            self.text.add("".join(event.text for event in events), teacher)
        self.unread.clear()


class Worker:
    """Decodes the rows of all requests in one thread.

    Args:
        relay: its ``batch_size`` is how many rows are decoded together.
        max_waiting: rows that may wait for a place.
        on_end: called in the event loop with each row that has ended.
    """

    def __init__(self, relay: Relay, max_waiting: int, on_end: Callable[[Row], None]):
        if relay.config.on_failure == "raise":
            raise ValueError("on_failure 'raise' would end all requests at once; use 'exclude' or 'carry_on'")
        if hasattr(relay.teacher, "threshold"):
            raise ValueError("a teacher that takes text back cannot be served: readers have it already; serve another")
        self.relay, self.max_waiting, self._on_end = relay, max_waiting, on_end
        self.numbers = count()  # of sequences
        self.waiting, self.live = deque[Row](), dict[int, Row]()
        self._changed, self._closing = threading.Condition(), False
        self._outbox: list[tuple[Row, str | None]] = []
        self._flushed = 0.0
        teachers = [t for t in every_teacher([relay.teacher]) if not isinstance(t, NamedTeachers)]
        self._remote = not (isinstance(relay.student, Engine) and all(isinstance(t, LocalTeacher) for t in teachers))
        self._thread = threading.Thread(target=self._run, name="relaylab-relay", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # Called in the event loop -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, and deliver to the event loop that this is called in."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, rows: list[Row]) -> bool:
        """Let rows wait for a place. False, and nothing, if too many wait already."""
        with self._changed:
            room = self.relay.batch_size + self.max_waiting - len(self.waiting) - len(self.live)
            if self._closing or len(rows) > room:
                return False
            self.waiting += rows
            self._changed.notify()
        return True

    def cancel(self, rows: list[Row]) -> None:
        """Nobody wants these rows any more. Those that have ended are left alone."""
        with self._changed:
            for row in rows:
                row.cancelled = True
            gone = [row for row in self.waiting if row.cancelled]
            self.waiting = deque(row for row in self.waiting if not row.cancelled)
            self._changed.notify()
        for row in gone:
            row.error = "cancelled"
            self._on_end(row)

    def close(self) -> None:
        """Interrupt what is under way, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # Called in the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            stream = Stream(self.relay, [], self._feed)
            try:
                for event in stream:
                    self._take(event)
            except BaseException as error:  # a panic of a tokenizer is no Exception; the server goes on
                log.exception("the relay failed; its answers are lost, and it begins anew")
                for row in list(self.live.values()):
                    self._end(row, f"the relay failed: {type(error).__name__}")
            stream.close()
            self._flush()

    def _feed(self, places: int, idle: bool) -> list[Sequence]:
        """Before each pass: send what was written, end what nobody wants, and let waiting rows in."""
        self._flush()
        with self._changed:
            if not self.live:
                self._changed.wait_for(lambda: self.waiting or self._closing)
            elif idle and self._remote and not self.waiting:
                self._changed.wait(PAUSE_SECONDS)
            for row in self.live.values():
                if (row.cancelled or self._closing) and row.sequence.turn != "done":
                    row.sequence.finish("interrupted")
            joined = [self.waiting.popleft() for _ in range(0 if self._closing else min(places, len(self.waiting)))]
            self.live.update((row.sequence.index, row) for row in joined)
            while self._closing and self.waiting:
                self._end(self.waiting.popleft(), "the server is shutting down")
        return [row.sequence for row in joined]

    def _take(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            row = self.live[event.row]
            row.first, row.last = row.first or time.perf_counter(), event.text
            row.unread.append(event)
            if row.text.stop:
                row.read()
                if row.text.stopped and row.sequence.turn != "done":  # before a teacher is asked for more
                    row.sequence.finish("interrupted")
        elif isinstance(event, Done):
            row, trace = self.live[event.row], event.trace
            row.read()
            if trace.pieces:  # half a character at the end is written once it is known to be the end
                row.text.add(trace.pieces[-1][len(row.last) :], teacher=trace.source[-1] == "t")
            row.text.end()
            row.trace, error = trace, None
            if row.text.stopped:  # the answer is whole, however the sequence ended
                trace.stop = "interrupted"
            elif row.sequence.failure:
                error = f"the student failed: {row.sequence.failure}"
            elif trace.stop == "excluded":
                errors = [c.error for c in trace.calls if c.error is not None]
                error = f"the teacher failed: {errors[-1] if errors else 'it said nothing'}"
            elif trace.stop == "interrupted":
                error = "cancelled" if row.cancelled else "the server is shutting down"
            self._end(row, error)

    def _end(self, row: Row, error: str | None) -> None:
        self.live.pop(row.sequence.index, None)
        row.error = error
        self._outbox.append((row, None))

    def _flush(self) -> None:
        now = time.perf_counter()
        if due := now - self._flushed >= FLUSH_SECONDS:  # for all rows at once, which wakes the event loop less often
            self._flushed = now
        for row in self.live.values():
            if row.stream and (due or not row.sent):
                row.read()
                if (ready := row.text.ready) > row.sent:
                    self._outbox.append((row, row.text.text[row.sent : ready]))
                    row.sent = ready
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            assert self._loop is not None
            with suppress(RuntimeError):  # the event loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._deliver, outbox)

    def _deliver(self, outbox: list[tuple[Row, str | None]]) -> None:
        for row, text in outbox:
            if text is None:
                self._on_end(row)
            row.send(row, text)
