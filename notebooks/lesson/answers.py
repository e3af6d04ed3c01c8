"""Run the answers of one submission and check them. ``relaylab grade`` starts this program for each submission.

    python -P -m lesson.answers < job.json > results.jsonl

It reads a job, and writes a line before and after each answer, so that the parent knows which one ended the program.
Limits and the audit hook keep accidents away from the machine. They are no protection from somebody who means harm.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

# What an answer has no reason to do. The names are those of Python's audit events.
REFUSED = re.compile(
    r"os\.(remove|rename|rmdir|mkdir|ch\w+|link|symlink|truncate|utime|\w+xattr|system|exec|posix_spawn|spawn|startfile"
    r"|fork|forkpty|kill|killpg)|shutil\..*|subprocess\.Popen|socket\.(connect|bind|sendto)|resource\.\w*limit"
    r"|webbrowser\.open|pty\.spawn"
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LONGEST = 500  # characters of a remark


def plain(source: str) -> str:
    """A cell without IPython's own lines; what is Python already stays."""
    with suppress(SyntaxError, ValueError, MemoryError, RecursionError):
        ast.parse(source)
        return source
    return re.sub(r"^\s*[%!?].*$", "", source, flags=re.MULTILINE)


def imports(cells: list[str], words: set[str]) -> Iterator[ast.stmt]:
    """The import statements of cells, without the names that no answer uses."""
    for source in cells:
        with suppress(SyntaxError, ValueError, MemoryError, RecursionError):
            for node in ast.parse(plain(source)).body:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    node.names = [a for a in node.names if (a.asname or a.name.split(".")[0]) in words | {"*"}]
                    if node.names:
                        yield node


def limit(memory: int, seconds: float) -> None:
    """Bound memory, file sizes and processor time, and refuse what is in ``REFUSED`` and writing of files."""
    import resource

    import psutil

    used = psutil.Process()
    for name, value in {
        "RLIMIT_AS": used.memory_info().vms + memory,
        "RLIMIT_CPU": int(sum(used.cpu_times()[:2]) + seconds) + 1,
        "RLIMIT_FSIZE": 1 << 20,
        "RLIMIT_CORE": 0,
    }.items():
        with suppress(OSError, ValueError):  # macOS refuses some
            resource.setrlimit(getattr(resource, name), (value, value))

    def hook(event: str, arguments: tuple) -> None:
        refused = REFUSED.fullmatch(event)
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            refused = arguments[0] != os.devnull
        if refused:
            raise PermissionError(f"an answer must not write, delete or start anything ({event})")

    sys.addaudithook(hook)


def stage(seconds: float) -> None:
    """Have the system end this process after so much processor time; on the clock, a minute and three times as much."""
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 60 + 3 * seconds)


def remark(error: BaseException) -> str:
    """An error as one line."""
    text = f"{error.msg}, line {error.lineno} of the cell" if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:LONGEST]}".removesuffix(": ")


def main() -> None:
    from lesson.checks import CHECKS, NotYet, check

    job = json.load(sys.stdin)
    names, cells, seconds = job["exercises"], job["answers"], job["seconds"]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    say = lambda **line: print(json.dumps(line), file=out)  # noqa: E731
    module = sys.modules[job["module"]] = ModuleType(job["module"])  # a dataclass looks its module up
    scope: dict[str, Any] = vars(module)
    scope["display"] = print
    for name in names:
        CHECKS[name]  # imports what the check needs
    words = set(re.findall(r"\w+", " ".join(source for _, source in cells)))
    given = [node for source in job["given"] for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    given = [node for node in given if words & {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}]
    words |= {n.id for node in given for n in ast.walk(node) if isinstance(n, ast.Name)}
    for node in [*imports(job["cells"], words), *given]:
        with suppress(Exception):  # what is missing then is missing in the answer, too
            exec(compile(ast.Module([node], []), "lesson", "exec"), scope)
    say(ready=True)
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    limit(job["memory"], 2 * seconds * len(names))
    if "modules" in job:  # of the learner: they are imported within the limits
        sys.path.append(job["modules"])
    failed: dict[str, str] = {}
    for name, source in cells:
        say(name=name)
        stage(seconds)
        try:
            exec(compile(plain(source), name, "exec", dont_inherit=True), scope)
            failed.pop(name, None)  # of an earlier try
        except BaseException as error:
            failed[name] = remark(error)
    for name in names:
        say(name=name)
        stage(seconds)
        right, text = False, failed.get(name, "no answer cell")
        if name in scope and name not in failed:
            try:
                text = check(name, seed=job["seed"], strict=False)(scope[name]).removeprefix(f"{name} is ")
                right = text == "right."
            except NotYet as error:
                text = str(error).removeprefix(f"{name}: ").replace("\n", " ")[:LONGEST]
            except BaseException as error:
                text = remark(error)
        say(name=name, right=right, remark=text)


if __name__ == "__main__":
    main()
