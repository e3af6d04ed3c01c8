"""``relaylab lab``: the lessons and the pages they link to, in a folder of the reader's own, and JupyterLab there.

What the reader changed stays: a file whose bytes are not those that were written here last, saved outputs included. Its
newer version is put beside it. Nothing is deleted or merged. The solutions of the exercises stand in
``notebooks/solutions``. No learner's copy holds them; an instructor's has these pages, and their code in the lessons.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from relaylab.files import read_json, write_json, write_whole
from relaylab.notebook_commands import lessons_home

RECORD = ".relaylab.json"  # in the reader's folder: of each file, the checksum of what was written last
SOLVED_RECORD = ".relaylab-solutions.json"  # in a folder of solved lessons, so that the two are never mixed up
SOLUTIONS = "notebooks/solutions/*.*"  # by lesson; for instructors
START = "notebooks/START.ipynb"  # is opened
# JupyterLab asks neither for news nor for updates, unless the reader has chosen otherwise.
QUIET = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
WARM_START = Path(__file__).with_name("warm_start.py")  # a reader's own PYTHONSTARTUP stays
OPEN = "# yours"  # stands in an answer cell where the answer belongs
SHARED = (
    "notebooks/*.ipynb",
    "notebooks/lesson/**/*.py",
    "notebooks/*.yaml",
    "notebooks/measured/**/*.*",
    "notebooks/capstone/*.*",
    "docs/*.md",
    "docs/assets/*.svg",  # pictures of these pages
    "docs/assets/*.csv",  # and the numbers behind them
)


@dataclass(frozen=True, slots=True)
class Copied:
    """What happened to one file."""

    name: str  # relative to the folder
    state: Literal["new", "updated", "current", "kept"]  # current: nothing to do; kept: the reader's own
    beside: str | None = None  # the newer version of a kept file; None if the reader had that version already


def copy_lessons(folder: str | Path, home: str | Path | None = None, *, solutions: bool = False) -> list[Copied]:
    """Copy the lessons from their home (the shipped ones by default) into a folder, or bring it up to date.

    ``solutions``: copy these, too, and put them into the lessons. One entry per file, notebooks first.

    Raises:
        ValueError: if the folder is a file, or the lessons' home.
    """
    home, folder = Path(home or lessons_home()), Path(folder)
    if (folder.exists() and not folder.is_dir()) or folder.resolve() == home.resolve():
        raise ValueError(f"{folder} is a file, or where the lessons come from; name another folder for your copy")
    folder.mkdir(parents=True, exist_ok=True)
    record, copied, record_file = {}, [], folder / (SOLVED_RECORD if solutions else RECORD)
    with suppress(OSError, ValueError, TypeError):  # without a record everything counts as the reader's own
        record = dict(read_json(record_file))
    patterns = (*SHARED, *([SOLUTIONS] if solutions else []))
    found = (path for pattern in patterns for path in sorted(home.glob(pattern)))
    for source in (path for path in found if path.is_file() and ".ipynb_checkpoints" not in path.parts):
        name = source.relative_to(home).as_posix()
        data = source.read_bytes()
        answers = source.parent / "solutions" / f"{source.stem[:2]}.md"
        if solutions and source.suffix == ".ipynb" and answers.exists():
            data = with_solutions(data, answers.read_text(encoding="utf-8"))
        copied.append(_copy(data, folder, name, record.get(name)))
        record[name] = _digest(data)
    write_json(record_file, record)
    return copied


def with_solutions(notebook: bytes, text: str) -> bytes:
    """A lesson with its solutions in the answer cells, between the marks at which nbgrader cuts them out again.

    ``text`` is a page with one ``## exercise`` each, whose first block of code is the answer.
    """
    book = json.loads(notebook)
    blocks = dict(re.findall(r"^## (\w+)\n\n```python\n(.*?)```\n", text, re.MULTILINE | re.DOTALL))
    for cell in book["cells"]:
        if code := blocks.get(cell["metadata"].get("nbgrader", {}).get("grade_id")):
            head, _, _ = "".join(cell["source"]).partition(OPEN)
            indent = "    " if head.startswith("def ") else ""
            body = code.partition("\n")[2] if indent else code  # the line with `def` stands in the cell
            lines = f"{head.rstrip()}\n{indent}### BEGIN SOLUTION\n{body}{indent}### END SOLUTION"
            cell["source"] = lines.splitlines(keepends=True)
    return (json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode()


def _copy(data: bytes, folder: Path, name: str, last: str | None) -> Copied:
    """Write one file. ``last``: the checksum of what was written there last."""
    target, newest = folder / name, _digest(data)
    present = _digest(target.read_bytes()) if target.exists() else None
    if present == newest:
        return Copied(name, "current")
    target.parent.mkdir(parents=True, exist_ok=True)
    if present is None or present == last:
        write_whole(target, data)
        return Copied(name, "updated" if present else "new")
    if last == newest:
        return Copied(name, "kept")
    names = (target.with_name(f"{target.stem}.new{i if i > 1 else ''}{target.suffix}") for i in count(1))
    # An older version that was put beside and never touched makes room.
    beside = next(b for b in names if not b.exists() or _digest(b.read_bytes()) in (last, newest))
    write_whole(beside, data)
    return Copied(name, "kept", beside.relative_to(folder).as_posix())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_lab(folder: Path, *, open_: bool = True, jupyter: Sequence[str] = (), solutions: bool = False) -> int:
    """Copy the lessons, say what changed, and run JupyterLab of this Python there; its exit code."""
    copied = copy_lessons(folder, solutions=solutions)
    states = Counter(file.state for file in copied)
    print(f"the lessons are in {folder}: {', '.join(f'{n} {state}' for state, n in states.items())}")
    for file in copied:
        if file.beside:
            print(f"{file.name} is as you left it; the newer version is {file.beside}")
    if not open_:
        print(f"to open them: {sys.executable} -m jupyterlab {folder}")
        return 0
    with tempfile.TemporaryDirectory(prefix="relaylab-") as config:
        (Path(config) / "labconfig").mkdir()
        write_json(Path(config) / "labconfig" / "default_setting_overrides.json", QUIET)
        path = os.pathsep.join(filter(None, (config, os.environ.get("JUPYTER_CONFIG_PATH"))))
        # Without a root it would be the folder of START, and links of lessons to docs would lead nowhere.
        root = f"--ServerApp.root_dir={folder.resolve()}"
        command = [sys.executable, "-m", "jupyterlab", START, root, *jupyter]
        env = {"PYTHONSTARTUP": str(WARM_START)} | os.environ | {"JUPYTER_CONFIG_PATH": path}
        process = subprocess.Popen(command, cwd=folder, env=env)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is JupyterLab's: it asks whether to stop
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
