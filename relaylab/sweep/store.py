"""Where the results of a sweep lie: a folder, or a URL that fsspec knows (``s3://bucket/sweep``).

Either holds ``points/KEY/`` (finished), ``failed/KEY/`` (the last attempt at one that failed), the tables and the
page. A folder makes a point appear by a rename and has a lock a point, which the system frees when its process dies.
A URL has neither: a point is executed in a temporary folder and uploaded, its record last, and a point is finished if
its record can be read whole. Nothing here reads the files that a notebook writes elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

RECORD = "result.json"


class Busy(Exception):
    """Another process executes the point."""


class Store(Protocol):
    """``kind`` is ``points`` or ``failed``."""

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of a point, None where there is none."""

    def records(self, kind: str) -> list[dict[str, Any]]:
        """All of them, in no particular order."""

    def hold(self, key: str, *, wait: bool) -> AbstractContextManager[Any]:
        """While this is open nobody else executes the point; ``Busy`` is raised if somebody does, unless ``wait``."""

    def draft(self, key: str) -> AbstractContextManager[Path]:
        """An empty folder of this machine to execute the point in; gone afterwards."""

    def keep(self, draft: Path, kind: str, key: str) -> None:
        """Make a draft the point's folder, whole."""

    def drop(self, kind: str, key: str) -> None:
        """Remove a point's folder, if there is one."""

    def write(self, name: str, data: bytes) -> Path | str:
        """A file, whole or not at all; its path or URL."""


def store_at(out: str | Path) -> Store:
    """The store of a path or URL. Nothing is created before something is written.

    >>> store_at("runs/sweeps/rewards").path.name
    'rewards'
    >>> store_at("memory://rewards")
    Traceback (most recent call last):
    ValueError: memory://rewards is the memory of one process, and every point is executed in a process of its own

    Raises ValueError for a URL of a kind that is unknown, or whose package (s3fs, gcsfs, ...) is not installed.
    """
    return Url(str(out)) if is_url(out) else Folder(Path(out).resolve())


def is_url(out: str | Path) -> bool:
    """
    >>> is_url("s3://bucket/sweep"), is_url("runs/s3")
    (True, False)
    """
    return re.match(r"[A-Za-z][\w+.-]+:(:|//)", str(out)) is not None


class Folder:
    """On a file system with file locks; machines may share it (NFS has them)."""

    def __init__(self, path: Path):
        self.path = path

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / kind / key / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def records(self, kind: str) -> list[dict[str, Any]]:
        found = (self.record(kind, folder.name) for folder in (self.path / kind).glob("*"))
        return [record for record in found if record is not None]

    @contextmanager
    def hold(self, key: str, *, wait: bool) -> Iterator[None]:
        from filelock import FileLock, Timeout

        locks = self.path / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{key}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise Busy from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        drafts = self.path / "drafts"
        for left in drafts.glob(f"{key}-*"):  # of a killed attempt: the lock is ours, so it has no owner
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: a kernel that outlives its killed worker by a second must not write into the next attempt.
        draft = drafts / f"{key}-{uuid4().hex[:8]}"
        draft.mkdir(parents=True)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def keep(self, draft: Path, kind: str, key: str) -> None:
        target = self.path / kind / key
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, target)

    def drop(self, kind: str, key: str) -> None:
        shutil.rmtree(self.path / kind / key, ignore_errors=True)

    def write(self, name: str, data: bytes) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}")  # two sweeps may write at the same time
        try:
            draft.write_bytes(data)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return target


class Url:
    """Without locks: two sweeps on one URL both execute what neither has finished, and the last upload stays.

    The same point gives the same results, so what is lost by that is time. Access is the environment's (for S3 the
    AWS variables, files or roles), and every machine needs it.
    """

    def __init__(self, url: str):
        import fsspec

        if url.startswith("memory:"):
            told = "is the memory of one process, and every point is executed in a process of its own"
            raise ValueError(f"{url} {told}")
        try:
            self._files, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url} cannot be reached: {error}") from error
        self._root, self._url = root.rstrip("/"), url.rstrip("/")

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        try:
            return json.loads(self._files.cat_file(f"{self._root}/{kind}/{key}/{RECORD}"))
        except (FileNotFoundError, ValueError):  # half a record is none
            return None

    def records(self, kind: str) -> list[dict[str, Any]]:
        self._files.invalidate_cache()  # of listings: others write too
        paths = self._files.glob(f"{self._root}/{kind}/*/{RECORD}")
        found = []
        for data in (self._files.cat(paths, on_error="omit") if paths else {}).values():
            try:
                found.append(json.loads(data))
            except ValueError:
                continue
        return found

    def hold(self, key: str, *, wait: bool) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"relaylab-{key}-") as draft:
            yield Path(draft)

    def keep(self, draft: Path, kind: str, key: str) -> None:
        target = f"{self._root}/{kind}/{key}"
        self._files.makedirs(target, exist_ok=True)
        for file in sorted(draft.iterdir(), key=lambda f: f.name == RECORD):  # what makes it finished is the last
            self._files.put_file(str(file), f"{target}/{file.name}")

    def drop(self, kind: str, key: str) -> None:
        target = f"{self._root}/{kind}/{key}"
        if self._files.exists(target):
            self._files.rm(target, recursive=True)

    def write(self, name: str, data: bytes) -> str:
        target = f"{self._root}/{name}"
        self._files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self._files.pipe_file(target, data)
        return f"{self._url}/{name}"
