"""One answer, decoded in a thread of its own, so that the kernel stays free to hear that it should stop.

An engine is not made for two threads. So in a whole process one ``Decode`` runs at a time, whichever view began it, and
a second one is refused instead of waiting: whoever clicks twice is told why nothing happens. Code of the reader's own
that uses the same engines is not held back: ``wait`` first.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

from relaylab.relay.events import TokenEvent
from relaylab.relay.relay import Stream
from relaylab.trace import Trace

EVERY = 0.1  # seconds between two looks at the growing trace; longer where a look itself takes long
_one_at_a_time = threading.Lock()


class Decode:
    """A stream of one row, read to its end or until ``stop``.

    begin: makes the stream; models may be loaded in it. show: gets the growing trace now and then, done: gets the last
    one, None where ``begin`` failed, and what went wrong, empty where nothing did. All three are called in the thread.
    pace: tokens a second to wait for, 0 for as fast as it goes.

    Raises RuntimeError where another one is still decoding.

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
        if not _one_at_a_time.acquire(timeout=0.5):  # one that has just been said to be over is given time to go
            raise RuntimeError("another answer is being written in this kernel; stop it, or wait for its end")
        self._begin, self._show, self._done, self._pace = begin, show, done, pace
        self._stopped = threading.Event()
        # In the caller's context: the kernel looks up in it whom its messages are for.
        work = contextvars.copy_context().run
        self._thread = threading.Thread(target=work, args=(self._work,), name="relaylab decode", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it before its next token; its trace then ends ``interrupted``."""
        self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, at most ``timeout`` seconds; whether it has come."""
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
        except Exception as raised:  # a thread has nobody above it: what went wrong is for the view to say
            error = f"{type(raised).__name__}: {raised}"
        try:
            self._done(trace, error)
        finally:
            _one_at_a_time.release()

    def _read(self, stream: Stream) -> None:
        due = 0.0
        for event in stream:
            if self._pace and isinstance(event, TokenEvent):
                self._stopped.wait(1 / self._pace)
            if self._stopped.is_set():
                return
            if (now := time.monotonic()) >= due:
                self._show(stream.traces[0])
                due = time.monotonic() + max(EVERY, 4 * (time.monotonic() - now))
