"""One point of a sweep, executed into a folder of its own: whole, or not there.

``OUT/points/KEY/`` holds a finished point, ``OUT/failed/KEY/`` the last failed attempt at one. Both appear by a rename
from ``OUT/drafts/``, so that a kill at any moment leaves nothing half. ``OUT/locks/KEY.lock`` is held meanwhile, by
whichever process executes, and the system frees it when that process dies: two sweeps on one folder share the work.
The folder may be on a file system that machines share; it must have file locks (NFS has).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from relaylab.notebooks import execute, write_json
from relaylab.sweep.plan import Plan, Point, code_version

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Outcome:
    """``done`` now, ``found`` finished, ``busy`` in another process, ``failed`` (with why), or its worker ``lost``."""

    status: Literal["done", "found", "busy", "failed", "lost"]
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What every point of a sweep has in common; called with a point, it executes it. Travels to other processes.

    ``threads`` bounds those of each numerical library. ``wait``: for another process that has the point, instead of
    ``busy``. ``run`` executes: ``relaylab.notebooks.execute``, or a stand-in with its signature.
    """

    notebook: Path
    out: Path
    code: str
    collect: tuple[str, ...] = ()
    timeout: float | None = None
    threads: int = 1
    wait: bool = False
    run: Callable[..., dict[str, Any]] = field(default=execute)

    @classmethod
    def of(cls, plan: Plan, out: str | Path, **options: Any) -> Job:
        """The job of a plan in a folder."""
        common = {"notebook": plan.notebook, "code": plan.code, "collect": plan.collect, "timeout": plan.timeout}
        return cls(out=Path(out).resolve(), **common, **options)

    def __call__(self, point: Point) -> Outcome:
        """Execute a point, unless it is finished or another process is at it. Raises nothing: see ``Outcome``."""
        from filelock import FileLock, Timeout

        if self.finished(point):
            return Outcome("found")
        try:
            (self.out / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.out / "locks" / f"{point.key}.lock", timeout=-1 if self.wait else 0):
                return Outcome("found") if self.finished(point) else self._execute(point)
        except Timeout:
            return Outcome("busy")
        except Exception:  # a full disk, a folder without rights: it costs this point alone
            return Outcome("failed", error=traceback.format_exc())

    def finished(self, point: Point) -> bool:
        """Whether the point is there, whole."""
        return (self.out / "points" / point.key).is_dir()

    def note(self, point: Point, error: str) -> None:
        """Keep why an attempt failed that could not do so itself; where that fails too, the sweep still tells."""
        file = self.out / "failed" / point.key / "result.json"
        with suppress(OSError):
            if file.exists() and json.loads(file.read_text())["error"] == error:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, self._record(point, {"status": "lost", "error": error}))

    def _execute(self, point: Point) -> Outcome:
        if self.code != code_version():
            raise RuntimeError(f"planned for code {self.code}, and this is {code_version()}: start the sweep again")
        drafts, failed = self.out / "drafts", self.out / "failed" / point.key
        for left in drafts.glob(f"{point.key}-*"):  # of a killed attempt: the lock is ours, so it has no owner
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: a kernel that outlives its killed worker by a second must not write into the next attempt.
        draft = drafts / f"{point.key}-{uuid4().hex[:8]}"
        draft.mkdir(parents=True)
        try:
            env = {name: str(self.threads) for name in THREADS} | {"PYTHONHASHSEED": "0"}
            with _output_to(draft / "log.txt"):
                record = self.run(self.notebook, draft, point.parameters, timeout=self.timeout, env=env)
            if record["status"] == "done" and (missing := [n for n in self.collect if n not in record["values"]]):
                told = f"the notebook gave no {missing[0]!r}: relaylab.notebooks.result({missing[0]}=...) would"
                record = record | {"status": "failed", "error": told}
            write_json(draft / "result.json", self._record(point, record))
            shutil.rmtree(failed, ignore_errors=True)
            done = record["status"] == "done"
            target = self.out / "points" / point.key if done else failed
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft, target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return Outcome("done" if done else "failed", record["seconds"], record["error"])

    def _record(self, point: Point, record: dict[str, Any]) -> dict[str, Any]:
        named = {"key": point.key, "code": self.code, "seed": point.seed, "levels": point.levels}
        return named | {"notebook": self.notebook.name, "parameters": point.parameters} | record


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What this process and those it starts print goes to a file: kernels and libraries write past ``sys.stdout``."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [(fd, os.dup(fd)) for fd in (1, 2)]
    with path.open("wb") as file:
        for fd, _ in before:
            os.dup2(file.fileno(), fd)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, copy in before:
            os.dup2(copy, fd)
            os.close(copy)
