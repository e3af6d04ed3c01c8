"""Several servers of one model as one teacher: every request goes to the server that has the fewest under way.

A server that fails a request is left alone for a while, and the request goes to another one; only a request that every
server has failed is an error, for its row alone. Requests, prompts and retries within a server are ``api_teacher.py``.
Which server answers is no part of an answer: seeds travel with the requests, so that servers of the same weights and
settings differ no more than one of them from itself. Each fleet counts its own requests and knows of no other process.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.teachers import Context, TeacherOutput


class FleetTeacher:
    """Continues rows through several ``APITeacher``s, which should retry little by themselves: the fleet does.

    rounds: how often a request goes round before it is an error, ``wait`` seconds apart: servers that are all
        overloaded need time.
    rest: seconds for which a server that failed is asked only where no other is left; then one request tries it.
    concurrency: requests under way at a time, over all servers.
    name: for traces and terms. The default does not say how many servers there are: a run may go on with others.

    >>> members = [APITeacher(f"http://127.0.0.1:{port}/v1", model="m") for port in (8000, 8001)]
    >>> FleetTeacher(members).name
    'm@fleet'

    Raises ValueError for no server, and for servers of several models, temperatures or tokenizers.
    """

    def __init__(
        self,
        teachers: Sequence[APITeacher],
        *,
        rounds: int = 2,
        wait: float = 2.0,
        rest: float = 30.0,
        concurrency: int = 64,
        name: str | None = None,
    ):
        if not teachers:
            raise ValueError("a fleet needs at least one server")
        for what in ("model", "temperature", "fingerprint", "extra_body"):
            if any(getattr(t, what) != getattr(teachers[0], what) for t in teachers):
                raise ValueError(f"the servers of a fleet are one teacher, and their {what} differs: {list(teachers)}")
        if rest < 0 or wait < 0 or rounds < 1 or concurrency < 1:
            raise ValueError("rest and wait are not negative, rounds and concurrency at least 1")
        self.rounds, self.wait, self.rest, self.concurrency = rounds, wait, rest, concurrency
        self.name = name or f"{teachers[0].model or 'model'}@fleet"
        self._take(teachers)

    def __repr__(self) -> str:
        return f"FleetTeacher({self._teachers!r})"

    @property
    def fingerprint(self) -> str | None:
        """Equal for equal tokenizers; None without one."""
        return self._teachers[0].fingerprint

    @property
    def extra_body(self) -> dict[str, Any]:
        """Further fields of every request."""
        return self._teachers[0].extra_body

    @property
    def temperature(self) -> float:
        """0 is greedy. Set, it holds for this fleet and not for the teachers that it was made of."""
        return self._teachers[0].temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        teachers = [copy.copy(t) for t in self._teachers]
        for teacher in teachers:
            teacher.temperature = value
        self._take(teachers)

    def continue_(self, contexts: Sequence[Context], n: Sequence[int]) -> list[TeacherOutput]:
        """Continue every context by at most its n >= 1 of the teacher's tokens; one continuation a context, in order.

        ``latency`` is the time from this call to the row's answer. Raises ValueError for an n below 1, and where
        servers that were given without a model serve different ones.
        """
        pairs = list(zip(contexts, n, strict=True))
        if any(count < 1 for count in n):
            raise ValueError(f"a teacher is asked for at least one token, not {min(n)}")
        if not pairs:
            return []
        start = time.perf_counter()
        pool = ThreadPoolExecutor(min(len(pairs), self.concurrency), thread_name_prefix="relaylab-fleet")
        try:
            asked = [pool.submit(self._row, context, count, start) for context, count in pairs]
            return [future.result() for future in asked]
        except BaseException:
            self.close()  # an interrupt cancels all requests
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def release(self, rows: Sequence[Hashable]) -> None:
        """Forget the tokens of these rows."""
        for row in rows:
            self._last.pop(row, None)
        for teacher in self._teachers:
            teacher.release(rows)

    def close(self) -> None:
        """Close the connections; the fleet opens new ones when it is used again."""
        for teacher in self._teachers:
            teacher.close()

    # ------------------------------------------------------------------------------------------------------------------

    def _take(self, teachers: Sequence[APITeacher]) -> None:
        self._teachers = list(teachers)
        self._busy = [0] * len(teachers)  # requests under way
        self._resting = [0.0] * len(teachers)  # until then; 0 for a server that answered last
        self._failures = [0] * len(teachers)
        self._probing = [threading.Lock() for _ in teachers]
        self._last: dict[Hashable, int] = {}  # who answered a row: its cache holds the row's beginning
        self._model: str | None = None  # as the first server calls it
        self._lock = threading.Lock()

    def _row(self, context: Context, n: int, start: float) -> TeacherOutput:
        tried, rounds = set[int](), 0
        while True:
            i, failures = self._choose(context.row, tried)
            try:
                said = self._ask(i, failures, context, n)
            finally:
                with self._lock:
                    self._busy[i] -= 1
            if said is None:
                continue
            if said.finish != "error":
                with self._lock:
                    self._resting[i], self._last[context.row] = 0.0, i
                return replace(said, latency=time.perf_counter() - start)
            tried.add(i)
            with self._lock:
                self._failures[i] += 1
                self._resting[i] = time.monotonic() + self.rest
            if len(tried) < len(self._teachers):
                continue
            tried, rounds = set(), rounds + 1
            if rounds == self.rounds:
                return replace(said, latency=time.perf_counter() - start, error=f"{said.error} (every server failed)")
            time.sleep(self.wait)

    def _choose(self, row: Hashable, tried: set[int]) -> tuple[int, int]:
        """The least busy server of those not tried, one that rests only for want of another; and how often it failed.

        Its count goes up. Of equally busy ones it is the one that answered the row before: it may have it in a cache.
        """
        with self._lock:
            now = time.monotonic()
            left = [i for i in range(len(self._teachers)) if i not in tried]
            i = min(left, key=lambda i: (self._resting[i] > now, self._busy[i], self._last.get(row) != i))
            if self._resting[i]:  # until it has answered once, the next requests go elsewhere
                self._resting[i] = now + self.rest
            self._busy[i] += 1
            return i, self._failures[i]

    def _ask(self, i: int, failures: int, context: Context, n: int) -> TeacherOutput | None:
        """What this server says; None where it was found to be down while the request waited to get to know it."""
        teacher = self._teachers[i]
        with self._probing[i]:  # the first request asks what the server can do, the others wait for that
            if self._failures[i] != failures:
                return None
            server = teacher.probe()
            if not server.reachable:
                self._failures[i] += 1  # before the next one gets here, or each would wait for a dead server in turn
                return TeacherOutput("", "error", error=server.error)
        if teacher.model is None:
            with self._lock:
                self._model = self._model or server.model
            if server.model != self._model:
                raise ValueError(f"{teacher!r} serves {server.model}, another server of the fleet {self._model}")
        return teacher.continue_([context], [n])[0]


def fleet(
    urls: Sequence[str], *, retries: int = 1, rounds: int = 2, wait: float = 2.0, rest: float = 30.0, **options: Any
) -> FleetTeacher:
    """The servers at these URLs as one teacher; ``options`` are those of ``APITeacher``, ``concurrency`` a server's.

    >>> fleet(["http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"], model="m")
    FleetTeacher([APITeacher('http://127.0.0.1:8000/v1', model='m'), APITeacher('http://127.0.0.1:8001/v1', model='m')])

    Raises ValueError as ``FleetTeacher`` and ``APITeacher`` do, and for a URL that comes twice.
    """
    if len(set(urls)) < len(urls):
        raise ValueError("a server comes twice in the fleet; its requests would count for two")
    tokenizer = options.pop("tokenizer", None)
    # One for each: a tokenizer has settings that change from call to call, and every server has a thread of its own.
    teachers = [APITeacher(u, retries=retries, tokenizer=copy.deepcopy(tokenizer), **options) for u in urls]
    concurrency = options.get("concurrency", 16) * len(teachers)
    return FleetTeacher(teachers, rounds=rounds, wait=wait, rest=rest, concurrency=concurrency)
