"""``relaylab lab``: the lessons and the pages they link to, in a folder of the reader's own, and JupyterLab there.

What the reader changed stays. A file is taken to be changed when its bytes are not those that were written here last,
so saved outputs count as changes too: they are the reader's work. A newer version of such a file is put beside it.
Nothing is ever deleted, and nothing merged.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from relaylab.sweep.notebook import lessons_home, write_json

RECORD = ".relaylab.json"  # in the reader's folder: of each file, the checksum of what was written last
SHARED = ("notebooks/*.ipynb", "notebooks/lesson/**/*.py", "notebooks/*.yaml", "notebooks/measured/*.csv", "docs/*.md")


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one file: ``new``, ``updated``, ``current`` (nothing to do), or ``kept``, the reader's own.

    ``name`` is relative to the folder. ``beside``: where the newer version of a kept file was put, or None where the
    reader has had that version already.
    """

    name: str
    state: Literal["new", "updated", "current", "kept"]
    beside: str | None = None


def copy_lessons(folder: str | Path, home: str | Path | None = None) -> list[Copied]:
    """Copy the lessons of ``home`` (the shipped ones) into ``folder``; one entry a file, notebooks first.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> copy_lessons(folder)[-1].state, copy_lessons(folder)[-1].state
    ('new', 'current')

    Raises ValueError where ``folder`` is a file or the lessons' home itself, OSError where it cannot be written.
    """
    home, folder = Path(home or lessons_home()), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for your copy of the lessons")
    if folder.resolve() == home.resolve():
        raise ValueError(f"{folder} is where the lessons come from; name another folder for your copy")
    folder.mkdir(parents=True, exist_ok=True)
    written = _read_record(folder)
    done = []
    for source in (path for pattern in SHARED for path in sorted(home.glob(pattern))):
        name = source.relative_to(home).as_posix()
        done.append(_copy(source, folder, name, written.get(name)))
        written[name] = _digest(source)
    write_json(folder / RECORD, written)
    return done


def lab(
    folder: Annotated[Path, typer.Argument(help="Your copy of the lessons; made, or brought up to date.")] = Path(
        "relaylab-lessons"
    ),
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open JupyterLab there.")] = True,
    jupyter: Annotated[
        list[str] | None, typer.Option(help="For JupyterLab, several times: --jupyter=--no-browser.")
    ] = None,
) -> None:
    """Copy the lessons to a folder of your own, and open JupyterLab there. What you changed is never overwritten."""
    done = copy_lessons(folder)
    states = [f"{n} {state}" for state in ("new", "updated", "current", "kept") if (n := _count(done, state))]
    print(f"the lessons are in {folder}: {', '.join(states)}")
    for file in done:
        if file.beside:
            print(f"{file.name} is as you left it; the newer version is {file.beside}")
    if open_:
        fresh = (file.name for file in done if file.state == "new" and file.name.endswith(".ipynb"))
        raise typer.Exit(_jupyterlab(folder, [*islice(fresh, 1), *(jupyter or ())]))
    print(f"to open them: {sys.executable} -m jupyterlab {folder}")


def _copy(source: Path, folder: Path, name: str, written: str | None) -> Copied:
    """One file. ``written``: the checksum of what was put there last, or None if nothing ever was."""
    target, ours = folder / name, _digest(source)
    theirs = _digest(target) if target.exists() else None
    if theirs == ours:
        return Copied(name, "current")
    if theirs is None or theirs == written:
        _write(target, source)
        return Copied(name, "new" if theirs is None else "updated")
    if written == ours:
        return Copied(name, "kept")
    # An older version that was put beside and never touched makes room.
    beside = next(b for b in _names_beside(target) if not b.exists() or _digest(b) in (written, ours))
    _write(beside, source)
    return Copied(name, "kept", beside.relative_to(folder).as_posix())


def _names_beside(target: Path) -> Iterator[Path]:
    for i in count(1):
        yield target.with_name(f"{target.stem}.new{i if i > 1 else ''}{target.suffix}")


def _write(target: Path, source: Path) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.tmp")
    draft.write_bytes(source.read_bytes())
    draft.replace(target)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_record(folder: Path) -> dict[str, str]:
    """Without a readable record everything counts as the reader's own."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(done: list[Copied], state: str) -> int:
    return sum(file.state == state for file in done)


def _jupyterlab(folder: Path, words: list[str]) -> int:
    """Run JupyterLab of this very Python in ``folder``; its exit code, once it ends."""
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *words], cwd=folder)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is JupyterLab's: it asks whether to stop
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
