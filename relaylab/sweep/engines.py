"""Where points are executed: processes of this machine, or tasks of a Ray cluster. No scheduler of our own.

An engine takes points from a queue, hands each to a job (``point.Job``) in some process, and yields outcomes as they
come; the queue may grow meanwhile. Closing the iterator ends what is running.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from relaylab.sweep.plan import Point
from relaylab.sweep.point import Outcome

PRELOADED = ["__main__", "relaylab.cli", "relaylab.sweep.point", "papermill.execute", "filelock", "psutil"]
NOWHERE_AFTER = 10  # seconds without an outcome, after which it is asked whether any node can hold a point
ENDED_WITHIN = 10  # seconds that cancelled tasks are given
Work = Callable[[Point], Outcome]
Outcomes = Generator[tuple[Point, Outcome], None, None]


class Engine(Protocol):
    """``workers``: how many points run at a time."""

    workers: int

    def run(self, queue: deque[Point], job: Work) -> Outcomes: ...


class LocalEngine:
    """Every point in a process of its own, at most ``workers`` at a time.

    A process that dies costs its point alone. If this process dies, its workers and their kernels follow.
    """

    def __init__(self, workers: int = 1):
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self.workers = workers
        # A fork of a small server that has papermill already: a process a point costs milliseconds, not seconds.
        quick = "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if quick else "spawn")
        if quick:
            self._context.set_forkserver_preload(PRELOADED)

    def run(self, queue: deque[Point], job: Work) -> Outcomes:
        """Until the queue is empty and the last process has ended."""
        running: dict[Connection, tuple[Any, Point]] = {}
        try:
            while queue or running:
                while queue and len(running) < self.workers:
                    point = queue.popleft()
                    receiver, sender = self._context.Pipe(duplex=False)
                    process = self._context.Process(target=_work, args=(job, point, sender))
                    process.start()
                    sender.close()  # so that the end of the process is the end of the pipe
                    running[receiver] = process, point
                for receiver in wait(list(running)):
                    process, point = running[receiver]
                    try:
                        outcome = receiver.recv()
                    except EOFError:
                        outcome = None
                    process.join()
                    receiver.close()
                    del running[receiver]
                    yield point, outcome or Outcome("lost", error=f"its worker died (exit code {process.exitcode})")
        finally:
            for process, _ in running.values():
                _kill(process.pid)
            for process, _ in running.values():
                process.join()


class RayEngine:
    """Every point a Ray task with its CPUs, GPUs and memory (GB); which node takes it is Ray's business.

    address: of a cluster, ``auto`` for the one this machine belongs to; without, that of ``RAY_ADDRESS``, or a Ray of
    this process's own. Raises ValueError where ray is not installed, where there is no such cluster, and where a Ray
    of our own can never hold a point.
    """

    def __init__(self, address: str | None = None, *, cpus: float = 1, gpus: float = 0, memory_gb: float | None = None):
        try:
            import ray
        except ImportError:
            raise ValueError("the engine ray needs the extra 'ray': pip install 'relaylab[ray]'") from None
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not to
        address = address or os.environ.get("RAY_ADDRESS")
        # Outcomes are small: the store of our own Ray is near the smallest that Ray takes.
        own = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        where = {"address": address} if address else {"address": "local", **own}
        try:
            ray.init(**where, ignore_reinit_error=True, log_to_driver=False, logging_level="WARNING")
        except ConnectionError as error:
            raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}  # attempts are counted by the sweep
        self._needs = {"CPU": cpus, "GPU": gpus}
        if memory_gb is not None:
            self._needs["memory"] = self._options["memory"] = int(memory_gb * 2**30)
        if not self._places() and not address:
            raise ValueError(self._nowhere())

    @property
    def workers(self) -> int:
        """How many points the nodes that are there now hold at a time; 1 where they hold none yet."""
        return max(1, self._places())

    def run(self, queue: deque[Point], job: Work) -> Outcomes:
        """Until the queue is empty and the last task has ended. A lost node is an outcome of its points."""
        ray, running, warned = self._ray, {}, False
        task = ray.remote(_task).options(**self._options)
        try:
            while queue or running:
                while queue:
                    point = queue.popleft()
                    running[task.remote(job, point)] = point
                ready, _ = ray.wait(list(running), num_returns=1, timeout=NOWHERE_AFTER)
                if not ready:
                    if not warned and not self._places():
                        warned = True
                        warnings.warn(f"{self._nowhere()}; waiting for one", stacklevel=2)
                    continue
                point = running.pop(ready[0])
                try:
                    outcome = ray.get(ready[0])
                except ray.exceptions.RayError as error:
                    outcome = Outcome("lost", error=f"{type(error).__name__}: {error}")
                yield point, outcome
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if running:  # so that nobody is at work when this returns
                ray.wait(list(running), num_returns=len(running), timeout=ENDED_WITHIN)

    def _places(self) -> int:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {name: need for name, need in self._needs.items() if need}
        return sum(min(int(has.get(name, 0) // need) for name, need in needs.items()) for has in nodes)

    def _nowhere(self) -> str:
        told = self._needs | {"memory": f"{self._needs.get('memory', 0) / 2**30:g} GB"}
        needs = ", ".join(f"{name} {told[name]}" for name, need in self._needs.items() if need)
        return f"no node of Ray has what a point needs ({needs}): see 'resources' of the sweep"


def _task(job: Work, point: Point) -> Outcome:
    """A Ray task: this module is found by name on every node."""
    return job(point)


def _work(job: Work, point: Point, sender: Connection) -> None:
    """The life of a local worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the driver ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(BrokenPipeError):  # the driver died just now; what is done is in the folder
        sender.send(job(point))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    _kill(os.getpid())


def _kill(pid: int) -> None:
    """A worker and its kernel, which is in a session of its own and would not hear of a signal to the group."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(pid)
        for process in (*worker.children(recursive=True), worker):
            with suppress(psutil.NoSuchProcess):
                process.kill()
