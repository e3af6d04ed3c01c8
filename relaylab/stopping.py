"""Ctrl-C and SIGTERM end long work at its next safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(unit: str = "batch of rollouts") -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that work can end with what it has. A second signal interrupts.

    Args:
        unit: what is finished first, for the message.

    Raises:
        KeyboardInterrupt: at the end, where the event was set.

    >>> with stop_signals("batch") as stop:
    ...     stop.is_set()
    False
    """
    stop = threading.Event()

    def handle(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(f"\nstopping after this {unit}; once more to stop at once", flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.is_set():
        raise KeyboardInterrupt
