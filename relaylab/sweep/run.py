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
from dataclasses import dataclass
from functools import cache
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
    """Where the results of a sweep are: a local folder or a URL.

    A folder has a lock per point, which the system frees when its process dies. A URL has none: two sweeps there may
    both run a point, and the last upload stays.

    Raises:
        ValueError: for a URL of an unknown kind, or one whose package (s3fs, gcsfs, ...) is not installed.
    """

    def __init__(self, out: str | Path):
        import fsspec

        url = re.match(r"[A-Za-z][\w+.-]+:(:|//)", str(out))
        if url and str(out).startswith("memory:"):
            raise ValueError(f"{out} is the memory of one process, and every point runs in a process of its own")
        self.out = str(out).rstrip("/") if url else str(Path(out).resolve())
        self.folder = None if url else Path(self.out)
        try:
            self.files, self.root = fsspec.url_to_fs(self.out if url else f"file://{self.out}")
        except (ImportError, ValueError) as error:
            raise ValueError(f"{out} cannot be reached: {error}") from error

    def records(self, name: str = DONE, key: str = "*") -> dict[str, Record]:
        """The records of all points, or of one, by key. A broken one is left out: its point runs again."""
        self.files.invalidate_cache()  # of listings: others write too
        paths, records = self.files.glob(f"{self.root}/points/{key}/{name}"), {}
        for path, data in (self.files.cat(paths, on_error="omit") if paths else {}).items():
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                record = json.loads(data)
                records[path.split("/")[-2]] = record | {"seconds": float(record["seconds"])}
        return records

    def write(self, name: str, data: str | bytes) -> str:
        """Write a file; its path or URL."""
        self.files.makedirs(f"{self.root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        if self.folder:
            write_whole(self.folder / name, data)
        else:
            self.files.pipe_file(f"{self.root}/{name}", data.encode() if isinstance(data, str) else data)
        return f"{self.out}/{name}"

    @contextmanager
    def point(self, key: str) -> Iterator[Path]:
        """The folder to run a point in; nobody else has it meanwhile.

        Raises:
            filelock.Timeout: if somebody has it.
        """
        if self.folder:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "locks" / f"{key}.lock", timeout=0):
                yield self.folder / "points" / key
            return
        with tempfile.TemporaryDirectory(prefix=f"relaylab-{key}-") as folder:
            yield Path(folder)
            target = f"{self.root}/points/{key}"
            self.files.makedirs(target, exist_ok=True)
            for file in sorted(Path(folder).iterdir(), key=lambda f: f.name in (DONE, FAILED)):  # the record is last
                self.files.put_file(str(file), f"{target}/{file.name}")
            if (Path(folder) / DONE).exists() and self.files.exists(f"{target}/{FAILED}"):
                self.files.rm_file(f"{target}/{FAILED}")


@dataclass(frozen=True, slots=True)
class Job:
    """What all points of a run have in common. It travels to other processes."""

    plan: Plan  # without its points
    out: str
    commit: str | None
    threads: int
    child: Sequence[str]
    version: str = __version__


def run_point(job: Job, point: Point, stop: threading.Event | None = None) -> Record:
    """Run one point, unless it is finished.

    Args:
        job: what all points have in common.
        point: which one.
        stop: an event that kills its processes.

    Returns:
        Its record (``notebook.execute``). Further statuses: ``found`` (it was finished), ``busy`` (another sweep runs
        it), ``lost`` (it could not be run).
    """
    try:
        if job.version != __version__:
            raise RuntimeError(f"planned with relaylab {job.version}, and here is {__version__}: install the same")
        store = Store(job.out)
        with store.point(point.key) as folder:
            if record := store.records(key=point.key).get(point.key):
                return record | {"status": "found"}
            about = {"key": point.key, "seed": point.seed, "levels": point.levels}
            return execute(
                job.plan.notebook, folder, point.parameters, timeout=job.plan.timeout, log="log.txt", stop=stop,
                env={name: str(job.threads) for name in THREADS} | {"PYTHONHASHSEED": "0"}, child=job.child,
                about=about | {"version": job.version, "commit": job.commit}, expected=job.plan.collect,
            )  # fmt: skip
    except Timeout:
        return {"status": "busy"}
    except Exception:  # a full disk, a folder without rights: it costs this point alone
        return {"status": "lost", "error": traceback.format_exc()}


def run_sweep(
    plan: Plan,
    out: str | Path,
    *,
    workers: int = 1,
    threads: int = 1,
    ray: str | None = None,
    limit: int | None = None,
    watch: Callable[..., Any] = lambda **state: None,
    child: Sequence[str] = CHILD,
) -> dict[str, Record]:
    """Run the points of a plan that are not finished. An interrupt ends what is running; the same call resumes.

    Args:
        plan: of ``read_plan``.
        out: a folder or a URL.
        workers: points at a time on this machine.
        threads: CPU threads of each point.
        ray: the address of a Ray cluster, ``auto`` for this machine's, ``local`` for a Ray that ends with this call.
        limit: run at most so many points.
        watch: called after each outcome with ``done``, ``running``, ``failed`` and ``left`` (seconds, or None).
        child: the command that executes a notebook; tests replace it.

    Returns:
        The records of the points that failed, by key. Each was tried ``1 + plan.retries`` times.

    Raises:
        ValueError: if ray is not installed, the cluster is not there, or the URL cannot be used.
    """
    store = Store(out)
    finished = store.records()
    todo = [point for point in plan.points if point.key not in finished]
    done, seconds = len(plan.points) - len(todo), [record["seconds"] for record in finished.values()]
    attempts, failures, busy, warned = Counter[str](), dict[str, Record](), list[Point](), False
    job = Job(plan.without_points(), store.out, commit(), threads, tuple(child))
    with _on_ray(job, ray) if ray else _local(job, workers) as (submit, places):
        running = {submit(point): point for point in todo[:limit]}
        while running or busy:
            left = remaining(seconds, len(running) + len(busy), places())
            watch(done=done, running=min(places(), len(running)), failed=len(failures), left=left)
            if not running:  # only points that another sweep runs are left: look again
                time.sleep(0.5)
                running, busy = {submit(point): point for point in busy}, []
            ready, _ = wait(running, timeout=NOWHERE_AFTER, return_when=FIRST_COMPLETED)
            if not ready and not places() and not warned:
                warned = True
                warnings.warn(f"{_nowhere(plan)}; waiting for one", stacklevel=2)
            for future in ready:
                point = running.pop(future)
                try:
                    record = future.result()
                except Exception as error:  # of Ray: its worker or its node died
                    record = {"status": "lost", "error": f"{type(error).__name__}: {error}"}
                if record["status"] == "busy":
                    busy.append(point)
                elif record["status"] in ("done", "found"):
                    failures.pop(point.key, None)
                    done += 1
                    seconds += [record["seconds"]] if record["status"] == "done" else []
                else:
                    attempts[point.key] += 1
                    failures[point.key] = record
                    if record["status"] == "lost":  # so it left no record of its own
                        with suppress(OSError):
                            text = json.dumps({"key": point.key, "seconds": 0.0} | record, indent=1)
                            store.write(f"points/{point.key}/{FAILED}", text)
                    if attempts[point.key] <= plan.retries:
                        running[submit(point)] = point
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
def _local(job: Job, workers: int) -> Iterator[Pool]:
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield lambda point: pool.submit(run_point, job, point, stop), lambda: workers
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _on_ray(job: Job, address: str) -> Iterator[Pool]:
    try:
        import ray
    except ImportError:
        raise ValueError("--ray needs the extra 'ray': pip install 'relaylab[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers by default
    # Records are small: the store of our own Ray is near the smallest that Ray takes.
    own = {"include_dashboard": False, "object_store_memory": 100 * 2**20} if address == "local" else {}
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="WARNING", **own)
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error
    need = job.plan.resources
    needs = {"CPU": need.cpus, "GPU": need.gpus, "memory": int((need.memory_gb or 0) * 2**30)}

    def places() -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(min(int(has.get(name, 0) // n) for name, n in needs.items() if n) for has in nodes)

    if address == "local" and not places():
        raise ValueError(_nowhere(job.plan))
    task = ray.remote(run_point).options(  # attempts are counted here
        num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=needs["memory"] or None, max_retries=0
    )
    references = []

    def submit(point: Point) -> Future:
        references.append(task.remote(job, point))
        return references[-1].future()

    try:
        yield submit, places
    finally:
        for reference in references:
            ray.cancel(reference, force=True)
        if references:  # so that nobody is at work when this returns
            ray.wait(references, num_returns=len(references), timeout=10)


def _nowhere(plan: Plan) -> str:
    return f"no node of Ray has what a point needs ({plan.resources}): see 'resources' of the sweep"
