"""Hand a plan's points to an engine until every one is finished, or has failed as often as it may."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from relaylab.sweep.engines import Engine
from relaylab.sweep.plan import Plan
from relaylab.sweep.point import Job, Outcome


@dataclass(frozen=True, slots=True)
class State:
    """Where a sweep stands. ``failed`` may still be tried again; ``left``: seconds, None before any is measured."""

    total: int
    done: int
    running: int
    failed: int
    left: float | None


def drive(
    plan: Plan, engine: Engine, job: Job, *, limit: int | None = None, watch: Callable[[State], Any] | None = None
) -> dict[str, Outcome]:
    """Execute what is not finished, at most ``limit`` points; the outcomes of those that failed to the last, by key.

    A failed or lost point comes back to the end of the queue until it has had 1 + ``plan.retries`` attempts. Points
    that another sweep is executing are waited for at the very end. ``watch`` gets the state after each outcome.
    """
    finished = {record["key"]: record["seconds"] for record in job.store.records("points")}
    left = [p for p in plan.points if p.key not in finished]
    queue, done = deque(left[:limit]), len(plan.points) - len(left)
    attempts: Counter[str] = Counter()
    failures: dict[str, Outcome] = {}
    times = list(finished.values())
    total, todo = len(plan.points), len(queue)

    def tell() -> None:
        if watch:
            left = remaining(times, todo, engine.workers)
            watch(State(total, done, min(engine.workers, todo), len(failures), left))

    tell()
    while queue:
        busy = deque()
        outcomes = engine.run(queue, job)
        try:
            for point, outcome in outcomes:
                if outcome.status == "busy":
                    busy.append(point)
                    continue
                if outcome.status in ("done", "found"):
                    failures.pop(point.key, None)
                    done, todo = done + 1, todo - 1
                    times += [outcome.seconds] if outcome.status == "done" else []
                else:
                    attempts[point.key] += 1
                    failures[point.key] = outcome
                    job.note(point, outcome.error or outcome.status)
                    if attempts[point.key] <= plan.retries:
                        queue.append(point)
                    else:
                        todo -= 1
                tell()
        finally:
            outcomes.close()
        queue, job = busy, replace(job, wait=True)
    return failures


def remaining(times: list[float], points: int, workers: int) -> float | None:
    """Seconds that so many points will take, from the median of those measured; None before there is one.

    >>> remaining([2.0, 4.0, 3.0], 10, 2)
    15.0
    """
    return statistics.median(times) * points / max(1, min(workers, points)) if times else None
