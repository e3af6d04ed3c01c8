"""How many requests one teacher replica carries: a discrete-event simulation of students that share a teacher.

The replica batches as servers do: each step gives every row of its batch one token and reads the prompts of the rows
that have just come in; who finds the batch full waits in line. Students have machines of their own, one a request.
Requests come at random (Poisson). What one does is taken from traces, speeds from ``CostTerms``; nothing is fitted.
Left out: reading the keys and values of long contexts, prompts read in chunks, several replicas behind one balancer.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from relaylab.evaluation.cost import CostTerms, HandOff, hand_offs
from relaylab.trace import COMMAND, Trace

SEARCH = 8  # halvings of the range in which the carried rate is looked for: it is known to 1/256 of the capacity
SETTLING = 0.1  # the share of the requests that meets a replica still emptier than it will be; not in the latencies


@dataclass(frozen=True, slots=True)
class Plan:
    """One request: the student's seconds before each call and after the last, and the calls."""

    waits: tuple[float, ...]
    calls: tuple[HandOff, ...]

    def __post_init__(self) -> None:
        if len(self.waits) != len(self.calls) + 1:
            raise ValueError(f"{len(self.waits)} waits for {len(self.calls)} calls; give one a call and a last one")


@dataclass(frozen=True, slots=True)
class Replica:
    """What the teacher's machine holds: rows at a time, and tokens whose keys and values fit (None: any number).

    Where they do not fit, the cache of the row that has waited longest for its student goes, and is read again.
    """

    max_batch: int
    cache_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "cache_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class FleetResult:
    """rate and throughput: requests/s offered and done; mean, p50, p95: seconds from question to answer; utilisation:
    share of the time in which the replica works; batch: mean rows of a step; evicted: caches lost, a request."""

    rate: float
    throughput: float
    mean: float
    p50: float
    p95: float
    utilisation: float
    batch: float
    evicted: float


def relay_plans(traces: Iterable[Trace], terms: CostTerms) -> list[Plan]:
    """What these relays ask of a teacher, and when, with a student of the speed of ``terms``.

    >>> from relaylab.evaluation.cost import ModelTerms, regular_trace
    >>> model = ModelTerms(parameters=1, prefill_rate=10, decode_rate=2)
    >>> t = regular_trace(prompt=10, tokens=5, calls=1, call_tokens=1, command_tokens=2)
    >>> relay_plans([t], CostTerms(student=model, teacher=model))[0].waits  # reads 10, writes 4; reads 1, writes 2
    (3.0, 1.1)
    """
    if terms.student.prefill_rate is None or terms.student.decode_rate is None:
        raise ValueError("the student's speed is unknown; set prefill_rate and decode_rate of terms.student")
    plans = []
    for trace in traces:
        calls, waits, at, unread = hand_offs(trace), [], 0, len(trace.prompt_ids)
        for call in (*calls, HandOff(len(trace.source))):  # the last is the end of the answer
            own = call.at - at
            waits.append(terms.student.seconds(unread, own) if own else 0.0)
            unread = call.delivered + (0 if own else unread)
            at = call.at + call.delivered
        plans.append(Plan(tuple(waits), tuple(calls)))
    return plans


def teacher_plans(traces: Iterable[Trace]) -> list[Plan]:
    """The same requests when the teacher writes all: a relay's answer without its commands, or the teacher's own.

    >>> teacher_plans([Trace("q", [1, 2], [3, 4, 5], "scs", ["a", "<call>1</call>", "b"])])[0].calls[0].written
    2
    """
    return [Plan((0.0, 0.0), (HandOff(0, len(t.prompt_ids), 0, len(t.source) - t.count(COMMAND)),)) for t in traces]


def unloaded(plans: Sequence[Plan], terms: CostTerms) -> np.ndarray:
    """(plans,) seconds of each request where it has the replica to itself."""
    return np.array(
        [
            sum(p.waits)
            + sum(terms.network_delay + _read(c, terms) + c.written * terms.teacher.step_of(1) for c in p.calls)
            for p in _checked(plans, terms)
        ]
    )


def capacity(plans: Sequence[Plan], terms: CostTerms, replica: Replica) -> float:
    """Requests/s that no replica exceeds: its batch always full, and no cache lost; infinite where nobody calls.

    1 / mean over requests of [tokens read / prefill rate + tokens written x step(batch) / batch].
    """
    token = terms.teacher.step_of(replica.max_batch) / replica.max_batch
    busy = float(np.mean([sum(_read(c, terms) + c.written * token for c in p.calls) for p in _checked(plans, terms)]))
    return 1 / busy if busy else math.inf


def simulate(
    plans: Sequence[Plan], terms: CostTerms, replica: Replica, *, rate: float, requests: int = 1000, seed: int = 0
) -> FleetResult:
    """Send ``requests`` requests, drawn from the plans, at ``rate`` a second, until all are answered.

    The first tenth is left out of the latencies. With one seed, two rates have the same requests in the same order.

    >>> from relaylab.evaluation.cost import ModelTerms
    >>> model = ModelTerms(parameters=1, prefill_rate=100, decode_rate=10)
    >>> plans = [Plan((0.0, 0.0), (HandOff(0, new=50, written=5),))]
    >>> one = simulate(plans, CostTerms(student=model, teacher=model), Replica(max_batch=8), rate=0.001, requests=20)
    >>> round(one.p50, 6)  # nobody waits: 50 tokens read, 5 written
    1.0
    """
    if not 0 < rate < math.inf or requests < 1:
        raise ValueError(f"rate is {rate} and requests {requests}; both must be positive")
    _checked(plans, terms)
    rng = np.random.default_rng(seed)
    starts = rng.exponential(1.0, requests).cumsum() / rate
    chosen = [plans[i] for i in rng.integers(len(plans), size=requests)]
    way = terms.network_delay / 2
    caches = _Caches(replica.cache_tokens, terms.cache)
    # Events: a call reaches the teacher (its index), or a request ends (the number of its calls).
    events = [(starts[r] + p.waits[0] + (way if p.calls else 0), r, 0) for r, p in enumerate(chosen)]
    heapq.heapify(events)
    done, line, active = np.zeros(requests), deque(), []
    now = busy = 0.0
    step = rows = 0
    while events or line or active:
        if not line and not active:
            now = max(now, events[0][0])
        while events and events[0][0] <= now:
            time, r, k = heapq.heappop(events)
            if k < len(chosen[r].calls):
                line.append((r, k))
            else:
                done[r] = time
                caches.release(r)
        read = 0
        while line and len(active) < replica.max_batch and caches.admits(chosen[line[0][0]].calls[line[0][1]]):
            r, k = line.popleft()
            call = chosen[r].calls[k]
            read += caches.take(r, call)
            heapq.heappush(active, (step + max(1, call.written), r, k))
        if not active:
            continue
        took = terms.teacher.step_of(len(active)) + (read / terms.teacher.prefill_rate)
        now, busy, step, rows = now + took, busy + took, step + 1, rows + len(active)
        while active and active[0][0] <= step:
            _, r, k = heapq.heappop(active)
            plan = chosen[r]
            caches.rest(r, plan.calls[k])
            out = way if k + 1 < len(plan.calls) else 0.0
            heapq.heappush(events, (now + way + plan.waits[k + 1] + out, r, k + 1))
    latency = (done - starts)[int(SETTLING * requests) :]
    p50, p95 = np.percentile(latency, [50, 95])
    span = float(max(done.max(), now) - starts[0])
    return FleetResult(
        rate=rate,
        throughput=requests / span,
        mean=float(latency.mean()),
        p50=float(p50),
        p95=float(p95),
        utilisation=busy / span,
        batch=rows / max(1, step),
        evicted=caches.evicted / requests,
    )


def load_curve(
    systems: Mapping[str, Sequence[Plan]], terms: CostTerms, replica: Replica, *, rates: Sequence[float], **options: int
) -> pd.DataFrame:
    """``simulate`` of each system at each rate: one row each, ``system`` and the fields of ``FleetResult``."""
    return pd.DataFrame(
        {"system": name} | asdict(simulate(plans, terms, replica, rate=rate, **options))
        for name, plans in systems.items()
        for rate in rates
    )


def carried(
    plans: Sequence[Plan], terms: CostTerms, replica: Replica, *, slowdown: float = 2.0, **options: int
) -> float:
    """Requests/s that one replica carries: the highest rate with a p95 of at most ``slowdown`` times the unloaded p95.

    Looked for below ``capacity`` by halving, with ``options`` of ``simulate``; 0 where even 1/256 of it is too much.
    """
    if slowdown <= 1:
        raise ValueError(f"slowdown is {slowdown}; a shared replica is slower than an empty one: give more than 1")
    low, high = 0.0, capacity(plans, terms, replica)
    if math.isinf(high):
        return high
    limit = slowdown * np.percentile(unloaded(plans, terms), 95)
    for _ in range(SEARCH):
        middle = (low + high) / 2
        good = simulate(plans, terms, replica, rate=middle, **options).p95 <= limit
        low, high = (middle, high) if good else (low, middle)
    return low


def projection(
    systems: Mapping[str, Sequence[Plan]],
    terms: CostTerms,
    replica: Replica,
    *,
    requests_per_second: Sequence[float],
    **options: float,
) -> pd.DataFrame:
    """Teacher replicas that a load of so many requests/s takes, with ``options`` of ``carried``: one row a system and
    load. ``students`` are busy with the system's own steps at any moment (rate x seconds of a student's work).

    Replicas are supposed to share the load evenly: a sum of what one carries, not a simulation of many.
    """
    rows = []
    for name, plans in systems.items():
        one = carried(plans, terms, replica, **options)
        working = float(np.mean([sum(p.waits) for p in plans]))
        for rate in requests_per_second:
            replicas = math.ceil(rate / one) if one else math.inf
            rows.append(
                {"system": name, "requests_per_second": rate, "carried": one, "replicas": replicas}
                | {"students": math.ceil(rate * working)}
            )
    return pd.DataFrame(rows)


class _Caches:
    """The keys and values that a replica holds: of rows in the batch, and of those whose students are at work."""

    def __init__(self, limit: int | None, keep: bool):
        self.limit, self.keep = math.inf if limit is None else limit, keep
        self.active, self.idle, self.evicted = 0, OrderedDict[int, int](), 0
        self._resting = 0

    def admits(self, call: HandOff) -> bool:
        if (need := _tokens(call)) > self.limit:
            raise ValueError(f"a call needs {need} tokens of a cache that holds {self.limit}; raise cache_tokens")
        return self.active + need <= self.limit

    def take(self, row: int, call: HandOff) -> int:
        """Give a row its place; the tokens that have to be read for it."""
        held = row in self.idle
        self.release(row)
        self.active += _tokens(call)
        self._make_room()
        return call.new if held else call.new + call.again

    def rest(self, row: int, call: HandOff) -> None:
        self.active -= _tokens(call)
        if self.keep:
            self.idle[row] = _tokens(call)
            self._resting += self.idle[row]

    def release(self, row: int) -> None:
        self._resting -= self.idle.pop(row, 0)

    def _make_room(self) -> None:
        while self.active + self._resting > self.limit:
            self.release(next(iter(self.idle)))
            self.evicted += 1


def _tokens(call: HandOff) -> int:
    return call.again + call.new + call.written


def _read(call: HandOff, terms: CostTerms) -> float:
    """Seconds in which the teacher reads what it has not cached."""
    return (call.new + (0 if terms.cache else call.again)) / terms.teacher.prefill_rate


def _checked(plans: Sequence[Plan], terms: CostTerms) -> Sequence[Plan]:
    if not plans:
        raise ValueError("there is no plan to serve; make some with relay_plans or teacher_plans")
    if terms.teacher.prefill_rate is None or terms.teacher.decode_rate is None:
        raise ValueError("the teacher's speed is unknown; set prefill_rate and decode_rate of terms.teacher")
    return plans
