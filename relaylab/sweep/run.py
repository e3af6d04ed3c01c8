"""Run the points of a sweep: each is one notebook in a process, on this machine or as a task of a Ray cluster.

A point has the folder ``points/KEY`` in a local folder, or at a URL that fsspec reads (``s3://bucket/sweep``). It is
finished if ``result.json`` is there and whole. The file is written last, so a kill leaves no half-finished point.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from logging import WARNING
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from relaylab.files import write_whole
from relaylab.sweep.notebook import CHILD, DONE, FAILED, execute
from relaylab.sweep.plan import Plan, Point
from relaylab.version import __version__

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
NOWHERE_AFTER = 10  # seconds without an outcome, after which a point that fits on no node is reported
Record = dict[str, Any]
Pool = tuple[Callable[[Point], Future], Callable[[], int]]  # submits a point; how many run at a time


class Store:
    """The results of a sweep, in a local folder or at a URL. A point has a lock in a folder, and none at a URL.

    Raises:
        ValueError: for a URL of an unknown kind, or one whose package (s3fs, gcsfs, ...) is not installed.
    """

    def __init__(self, out: str | Path):
        import fsspec

        self.is_url = re.match(r"[A-Za-z][\w+.-]+:(:|//)", str(out)) is not None
        self.out = str(out).rstrip("/") if self.is_url else str(Path(out).resolve())
        if self.out.startswith("memory:"):
            raise ValueError(f"{out} is the memory of one process, and every point runs in a process of its own")
        if not self.is_url:
            return
        try:
            self.files, self.root = fsspec.url_to_fs(self.out)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{out} cannot be reached: {error}") from error

    def records(self, name: str = DONE, key: str = "*") -> dict[str, Record]:
        """The records of all points, or of one, by key. A broken one is left out: its point runs again."""
        records: dict[str, Record] = {}
        for path, data in self._contents(f"points/{key}/{name}"):
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                record = json.loads(data)
                parts = {name: dict(record[name]) for name in ("levels", "parameters", "values")}
                simple = {"seconds": float(record["seconds"]), "status": str(record.get("status", "done"))}
                records[path.split("/")[-2]] = record | parts | simple
        return records

    def _contents(self, pattern: str) -> Iterator[tuple[str, bytes]]:
        if self.is_url:
            self.files.invalidate_cache()  # of listings: others write too
            paths = self.files.glob(f"{self.root}/{pattern}")
            yield from (self.files.cat(paths, on_error="omit") if paths else {}).items()
            return
        for path in Path(self.out).glob(pattern):  # the folder's own name may hold [ or *
            with suppress(FileNotFoundError):
                yield path.as_posix(), path.read_bytes()

    def write(self, name: str, data: str | bytes) -> str:
        """Write a file, whole; its path or URL."""
        data = data.encode() if isinstance(data, str) else data
        if self.is_url:
            self.files.makedirs(f"{self.root}/{name}".rsplit("/", 1)[0], exist_ok=True)
            self.files.pipe_file(f"{self.root}/{name}", data)
        else:
            Path(self.out, name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(self.out, name), data)
        return f"{self.out}/{name}"

    @contextmanager
    def point(self, key: str) -> Iterator[Path]:
        """The folder to run a point in. Locally nobody else has it meanwhile; filelock.Timeout if somebody has."""
        if not self.is_url:
            Path(self.out, "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(Path(self.out, "locks", f"{key}.lock"), timeout=0):
                yield Path(self.out, "points", key)
            return
        with tempfile.TemporaryDirectory(prefix=f"relaylab-{key}-") as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir(), key=lambda f: f.name in (DONE, FAILED)):  # the record is last
                self.write(f"points/{key}/{file.name}", file.read_bytes())
            if Path(folder, DONE).exists() and self.files.exists(failed := f"{self.root}/points/{key}/{FAILED}"):
                self.files.rm_file(failed)


def run_point(
    point: Point, plan: Plan, out: str, *, threads: int = 1, child: Sequence[str] = CHILD,
    stop: threading.Event | None = None,
) -> Record:  # fmt: skip
    """Run one point of a plan, unless it is finished; up to ``1 + plan.retries`` times. ``stop`` kills its processes.

    Returns:
        Its record (``notebook.execute``). Further statuses: ``found`` (it was finished), ``busy`` (another sweep runs
        it), ``lost`` (it could not be run).
    """
    record: Record = {}
    try:
        if plan.version != __version__:
            raise RuntimeError(f"planned with relaylab {plan.version}, and here is {__version__}: install the same")
        store = Store(out)
        about = {"key": point.key, "seed": point.seed, "levels": point.levels, "version": __version__}
        env = {name: str(threads) for name in THREADS} | {"PYTHONHASHSEED": "0"}
        for _ in range(1 + plan.retries):
            with store.point(point.key) as folder:
                if finished := store.records(key=point.key).get(point.key):
                    return finished | {"status": "found"}
                record = execute(
                    plan.notebook, folder, point.parameters, timeout=plan.timeout, env=env, log="log.txt", stop=stop,
                    about=about | {"commit": commit()}, expected=plan.collect, child=child,
                )  # fmt: skip
            if record["status"] == "done":
                break
        return record
    except Timeout:
        time.sleep(0.5)  # the sweep comes back to this point after the others
        return {"status": "busy"}
    except Exception:  # a full disk, a folder without rights: it costs this point alone
        return {"status": "lost", "error": traceback.format_exc()}


def run_sweep(
    plan: Plan, out: str | Path, *, workers: int = 1, threads: int = 1, ray: str | None = None,
    limit: int | None = None, watch: Callable[..., Any] = lambda **state: None, child: Sequence[str] = CHILD,
) -> dict[str, Record]:  # fmt: skip
    """Run the points of a plan that are not finished. An interrupt ends what is running; the same call resumes.

    Args:
        out: a folder or a URL.
        workers: points at a time on this machine.
        threads: CPU threads of each point.
        ray: the address of a Ray cluster, ``auto`` for this machine's, ``local`` for a Ray that ends with this call.
        limit: run at most so many points.
        watch: called after each outcome with ``done``, ``running``, ``failed`` and ``left`` (seconds, or None).
        child: the command that executes a notebook; tests replace it.

    Returns:
        The records of the points that failed, by key.

    Raises:
        ValueError: if ray is not installed, the cluster is not there, or the URL cannot be used.
    """
    store = Store(out)
    finished = store.records()
    todo = [point for point in plan.points if point.key not in finished]
    done, seconds = len(plan.points) - len(todo), [record["seconds"] for record in finished.values()]
    failures, losses, warned = dict[str, Record](), Counter[str](), False
    common = {"plan": replace(plan, points=(), factors={}), "out": store.out, "threads": threads, "child": tuple(child)}
    with _on_ray(plan, ray, common) if ray else _local(workers, common) as (submit, places):
        running = {submit(point): point for point in todo[:limit]}
        while running:
            left = remaining(seconds, len(running), places())
            watch(done=done, running=min(places(), len(running)), failed=len(failures), left=left)
            ready, _ = wait(running, timeout=NOWHERE_AFTER, return_when=FIRST_COMPLETED)
            if not (ready or places() or warned):
                warned = True
                warnings.warn(f"{_nowhere(plan)}; waiting for one", stacklevel=2)
            for future in ready:
                point = running.pop(future)
                try:
                    record = future.result()
                except Exception as error:  # of Ray: its worker or its node died
                    record = {"status": "lost", "error": f"{type(error).__name__}: {error}"}
                lost = record["status"] == "lost"
                if record["status"] == "busy" or (lost and losses[point.key] < plan.retries):
                    losses[point.key] += lost
                    running[submit(point)] = point
                elif record["status"] in ("done", "found"):
                    done += 1
                    seconds += [record["seconds"]] if record["status"] == "done" else []
                else:
                    failures[point.key] = record
                    if lost:  # so it left no record of its own
                        with suppress(OSError):
                            about = {"key": point.key, "levels": point.levels, "parameters": point.parameters}
                            text = json.dumps(about | {"values": {}, "seconds": 0.0} | record, indent=1)
                            store.write(f"points/{point.key}/{FAILED}", text)
        watch(done=done, running=0, failed=len(failures), left=0.0)
    return failures


def remaining(seconds: Sequence[float], points: int, workers: int) -> float | None:
    """Seconds that so many points will take, from the median of those measured; None before there is one.

    >>> remaining([2.0, 4.0, 3.0], 10, 2)
    15.0
    """
    return statistics.median(seconds) * points / max(1, min(workers, points)) if seconds else None


@cache
def commit() -> str | None:
    """The git commit of the package, with ``-dirty`` after changes; None outside of a checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return None


@contextmanager
def _local(workers: int, common: dict[str, Any]) -> Iterator[Pool]:
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield lambda point: pool.submit(run_point, point, stop=stop, **common), lambda: workers
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _on_ray(plan: Plan, address: str, common: dict[str, Any]) -> Iterator[Pool]:
    try:
        import ray
    except ImportError:
        raise ValueError("--ray needs the extra 'ray': pip install 'relaylab[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers by default
    # Records are small: the store of our own Ray is near the smallest that Ray takes.
    own = {"include_dashboard": False, "object_store_memory": 100 * 2**20} if address == "local" else {}
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=WARNING, **own)
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error
    cpus, gpus = plan.resources.get("cpus", 1), plan.resources.get("gpus", 0)
    memory = int(plan.resources.get("memory_gb", 0) * 2**30)

    def places() -> int:
        needs = {name: n for name, n in {"CPU": cpus, "GPU": gpus, "memory": memory}.items() if n}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fits = [[int(has.get(name, 0) // n) for name, n in needs.items()] for has in nodes]
        return sum(min(each, default=len(plan.points)) for each in fits)  # what needs nothing fits everywhere

    if address == "local" and not places():
        raise ValueError(_nowhere(plan))
    task: Any = ray.remote(run_point)
    task = task.options(num_cpus=cpus, num_gpus=gpus, memory=memory or None, max_retries=0)
    references = []

    def submit(point: Point) -> Future:
        references.append(task.remote(point, **common))
        return references[-1].future()

    try:
        yield submit, places
    finally:
        for reference in references:
            ray.cancel(reference, force=True)
        if references:  # so that nobody is at work when this returns
            ray.wait(references, num_returns=len(references), timeout=10)


def _nowhere(plan: Plan) -> str:
    needs = ", ".join(f"{name} {need:g}" for name, need in plan.resources.items())
    return f"no node of Ray has what a point needs ({needs}): see 'resources' of the sweep"
