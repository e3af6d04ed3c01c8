"""One point of a sweep, executed into a folder of its own: whole, or not there (``store`` says how)."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from relaylab.sweep.notebook import execute, write_json
from relaylab.sweep.plan import Plan, Point, code_version
from relaylab.sweep.store import RECORD, Busy, Store, is_url, store_at

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

    out: an absolute path, or a URL. ``threads`` bounds those of each numerical library. ``wait``: for another process
    that has the point, instead of ``busy``. ``run`` executes: ``relaylab.sweep.notebook.execute``, or a stand-in
    with its signature.
    """

    notebook: Path
    out: str
    code: str
    collect: tuple[str, ...] = ()
    timeout: float | None = None
    threads: int = 1
    wait: bool = False
    run: Callable[..., dict[str, Any]] = field(default=execute)

    @classmethod
    def of(cls, plan: Plan, out: str | Path, **options: Any) -> Job:
        """The job of a plan in a folder or at a URL. ValueError as ``store_at`` raises it."""
        store_at(out)
        common = {"notebook": plan.notebook, "code": plan.code, "collect": plan.collect, "timeout": plan.timeout}
        return cls(out=str(out) if is_url(out) else str(Path(out).resolve()), **common, **options)

    @property
    def store(self) -> Store:
        """Where the results lie."""
        return store_at(self.out)

    def __call__(self, point: Point) -> Outcome:
        """Execute a point, unless it is finished or another process is at it. Raises nothing: see ``Outcome``."""
        try:
            store = self.store
            if store.record("points", point.key):
                return Outcome("found")
            with store.hold(point.key, wait=self.wait):
                return Outcome("found") if store.record("points", point.key) else self._execute(store, point)
        except Busy:
            return Outcome("busy")
        except Exception:  # a full disk, a folder without rights: it costs this point alone
            return Outcome("failed", error=traceback.format_exc())

    def note(self, point: Point, error: str) -> None:
        """Keep why an attempt failed that could not do so itself; where that fails too, the sweep still tells."""
        with suppress(Exception):
            found = self.store.record("failed", point.key)
            if not found or found["error"] != error:
                record = self._record(point, {"status": "lost", "error": error})
                self.store.write(f"failed/{point.key}/{RECORD}", json.dumps(record, indent=1).encode())

    def _execute(self, store: Store, point: Point) -> Outcome:
        if self.code != code_version():
            raise RuntimeError(f"planned for code {self.code}, and this is {code_version()}: start the sweep again")
        with store.draft(point.key) as draft:
            env = {name: str(self.threads) for name in THREADS} | {"PYTHONHASHSEED": "0"}
            with _output_to(draft / "log.txt"):
                record = self.run(self.notebook, draft, point.parameters, timeout=self.timeout, env=env)
            if record["status"] == "done" and (missing := [n for n in self.collect if n not in record["values"]]):
                told = f"the notebook gave no {missing[0]!r}: relaylab.sweep.notebook.result({missing[0]}=...) would"
                record = record | {"status": "failed", "error": told}
            write_json(draft / RECORD, self._record(point, record))
            done = record["status"] == "done"
            store.drop("failed", point.key)
            store.keep(draft, "points" if done else "failed", point.key)
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
