"""Run one notebook as a program: check its parameters, execute it in a process of its own, keep its results as JSON.

Papermill executes. Its own reading of parameters leaves out ``x: int | None = 1``, so the parameters cell is parsed
here.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from relaylab.files import read_json, write_json
from relaylab.settings import holds_secret, nearest

RESULT = "RELAYLAB_RESULT"  # environment variable: the file that ``result`` writes to
DONE, FAILED = "result.json", "failure.json"  # in the folder of an executed notebook
ATTEMPT = "failure.ipynb"  # a copy that may fail, beside the copy and the result of an earlier run
CHILD = (sys.executable, "-m", "relaylab.sweep.notebook")  # reads a job from its standard input and executes it
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "None": type(None)}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One line ``name: type = default`` of the cell tagged ``parameters``.

    ``default`` is a value, or the source text if it is not a literal. ``type`` may be empty.
    """

    name: str
    type: str
    default: Any

    @property
    def types(self) -> list[str]:
        """``str | None`` has two types, ``list[int]`` is a list."""
        return [part.split("[")[0].strip() for part in re.split(r"\|(?![^\[]*\])", self.type)]


def result(**values: Any) -> None:
    """Record results of a notebook: numbers, texts, booleans, or lists of these. Later calls add to earlier ones.

    The notebook shows them. ``relaylab notebooks run`` and ``relaylab sweep`` also save them.

    Args:
        values: the results by name. NaN and infinity become null.

    Raises:
        ValueError: for a value that JSON cannot hold.

    >>> result(accuracy=0.75, problems=40)
    accuracy = 0.75
    problems = 40
    """
    plain = {name: _plain(name, value) for name, value in values.items()}
    for name, value in plain.items():
        print(f"{name} = {value!r}")
    if path := os.environ.get(RESULT):
        before = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).exists() else {}
        write_json(path, before | plain)


def _plain(name: str, value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy and torch, numbers and arrays
    try:
        return json.loads(json.dumps(value), parse_constant=lambda _: None)  # NaN and infinities, wherever they are
    except (TypeError, ValueError) as error:
        raise ValueError(f"result {name!r}: JSON cannot hold {type(value).__name__} {value!r} ({error})") from error


# Parameters -----------------------------------------------------------------------------------------------------------


def code_cells(notebook: str | Path) -> list[tuple[list[str], str]]:
    """The (tags, source) of each code cell. ValueError if the file is not a notebook."""
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [(list(c["metadata"].get("tags", ())), "".join(c["source"])) for c in code]
    except FileNotFoundError:
        raise ValueError(f"there is no notebook {notebook}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{notebook} is not a notebook of format 4 ({type(error).__name__}: {error})") from error


def read_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, first those in sight, then those of ``more-parameters``. Nothing is run.

    Raises:
        ValueError: if the file is not a notebook, has several cells tagged ``parameters``, or asks for a key.
    """
    tagged = [*code_cells(notebook)]
    cells = [source for tags, source in tagged if "parameters" in tags]
    if len(cells) > 1:
        raise ValueError(f"{notebook} has {len(cells)} cells tagged 'parameters'; it must be one")
    # A lesson folds most of its parameters away: a cell before the other, so papermill's values still come last.
    cells += [source for tags, source in tagged if "more-parameters" in tags]
    try:
        parameters = {p.name: p for source in cells for p in _parse(source)}
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{notebook}: the parameters cell is not Python ({error or 'too deeply nested'})") from None
    for name, parameter in parameters.items():
        _refuse_secret(name, parameter.default)
    return parameters


def _parse(source: str) -> Iterator[Parameter]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and node.value:
            target, kind, value = node.target, ast.unparse(node.annotation), node.value
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, kind, value = node.targets[0], "", node.value
        else:
            continue
        if isinstance(target, ast.Name):
            try:
                yield Parameter(target.id, kind, ast.literal_eval(value))
            except ValueError:
                yield Parameter(target.id, kind, ast.unparse(value))


def check_values(values: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """Check values for a notebook and convert them to the types of its parameters.

    A parameter without a type takes any value; if its default is a float, numbers become floats.

    Raises:
        ValueError: for an unknown name, another type, a value that JSON cannot hold, and for whatever looks like a key.

    >>> check_values({"beta": 1}, {"beta": Parameter("beta", "float", 0.01)})
    {'beta': 1.0}
    >>> check_values({"step": 3}, {"steps": Parameter("steps", "int", 40)})
    Traceback (most recent call last):
    ValueError: the notebook has no parameter 'step'; did you mean 'steps'?
    """
    checked = {}
    for name, value in values.items():
        if name not in parameters:
            raise ValueError(f"the notebook has no parameter {name!r}; {nearest(name, parameters)}")
        checked[name] = _typed(parameters[name], value)
        try:
            json.dumps(checked[name], allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"parameter {name!r} cannot be written as JSON ({error})") from None
        _refuse_secret(name, value)
    return checked


def _typed(parameter: Parameter, value: Any) -> Any:
    """The value in the parameter's type. An annotation beyond ``TYPES`` takes everything."""
    names = parameter.types
    number = "float" in names and not {"int", "str"} & set(names)
    if type(value) in (int, str) and (number or (names == [""] and type(parameter.default) is float)):
        with suppress(ValueError):
            return float(value)
    if set(names) <= set(TYPES) and type(value) not in [TYPES[name] for name in names]:
        raise ValueError(f"parameter {parameter.name!r} is {value!r}; the notebook asks for {parameter.type}")
    return value


def _refuse_secret(name: str, value: Any) -> None:
    if holds_secret(name, value):
        raise ValueError(
            f"parameter {name!r} looks like a key, and parameters are saved in the executed notebook; "
            "put keys into environment variables (OPENAI_API_KEY)"
        )


# Execution ------------------------------------------------------------------------------------------------------------


def check_folder(notebook: str | Path, folder: str | Path) -> None:
    """Refuse a folder in which the executed copy would replace the notebook itself, or records of something else.

    Raises:
        ValueError: names the file.
    """
    notebook, folder = Path(notebook).resolve(), Path(folder).resolve()
    if notebook.parent == folder:
        raise ValueError(f"the executed copy would replace {notebook}; choose another folder (--out)")
    for path in (folder / name for name in (DONE, FAILED) if (folder / name).exists()):
        try:
            record = read_json(path)
        except ValueError:
            continue  # damaged; there is nothing to lose
        if not isinstance(record, dict) or not {"notebook", "status"} <= set(record):
            raise ValueError(f"{path} is no record of an executed notebook; choose another folder (--out)")


def execute(
    notebook: str | Path, folder: str | Path, parameters: Mapping[str, Any] | None = None, *,
    timeout: float | None = None, env: Mapping[str, str] | None = None, log: str | None = None,
    expected: Sequence[str] = (), about: Mapping[str, Any] | None = None, stop: threading.Event | None = None,
    child: Sequence[str] = CHILD,
) -> dict[str, Any]:  # fmt: skip
    """Execute a notebook into a folder, in a process of its own and in the notebook's folder.

    The folder then holds the executed copy and ``result.json`` if it is done, ``failure.json`` if it is not. A notebook
    that raises, hangs or dies gives a record, not an exception. If this process dies, the notebook's processes end.
    The copy and the result of an earlier run stay until the new run is done. If it fails, its copy is
    ``failure.ipynb``.

    Args:
        notebook: its path.
        folder: where the copy and the record go.
        parameters: values that replace the defaults; a ValueError as ``check_values`` has it.
        timeout: seconds for the whole notebook, then its processes are killed.
        env: more environment variables.
        log: a file in the folder for the output of the processes. By default it is shown, with a progress bar.
        expected: results that the notebook must give.
        about: what else the record holds.
        stop: an event that kills the processes when it is set.
        child: the command that executes a job; tests replace it.

    Returns:
        The record: ``notebook``, ``parameters``, ``status`` (``done``, ``failed``, ``timeout``), ``seconds``,
        ``values`` (the results), ``error``.
    """
    notebook, folder = Path(notebook).resolve(), Path(folder).resolve()
    values = check_values(parameters or {}, read_parameters(notebook))
    folder.mkdir(parents=True, exist_ok=True)
    for file in (folder / FAILED, *(f for name in (DONE, FAILED) for f in folder.glob(f".{name}.*"))):
        file.unlink(missing_ok=True)  # the latter: a process died while it wrote a record
    copy = folder / (ATTEMPT if (folder / DONE).exists() else notebook.name)
    began, error = time.monotonic(), None
    with (
        tempfile.TemporaryDirectory(prefix="relaylab-") as scratch,
        open(folder / log if log else os.devnull, "wb") as out,
    ):
        results, errors = Path(scratch, "values.json"), Path(scratch, "error.txt")
        job = {"notebook": str(notebook), "copy": str(copy), "parameters": values}
        job |= {"errors": str(errors), "progress": not log}
        process = subprocess.Popen(
            child, stdin=subprocess.PIPE, stdout=out if log else None, stderr=out if log else None,
            env={**os.environ, **(env or {}), RESULT: str(results)}, start_new_session=True,
        )  # fmt: skip
        assert process.stdin  # it is a pipe
        try:
            with suppress(BrokenPipeError):  # it died already; its exit code says so
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            timed_out = not _wait(process, timeout, stop)
        finally:
            if process.poll() is None:
                _kill_children(process.pid)
                process.kill()
            with suppress(BrokenPipeError):  # what could not be written is still in its buffer
                process.stdin.close()
            process.wait()
        found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
        if errors.exists():
            error = errors.read_text(encoding="utf-8", errors="replace")
        elif timed_out:
            error = f"stopped after {timeout or 0:g} seconds"
        elif process.returncode:
            error = f"its process died (exit code {process.returncode})"
        elif missing := [name for name in expected if name not in found]:
            error = f"the notebook gave no {missing[0]!r}: rl.result({missing[0]}=...) would"
    status = "timeout" if timed_out else "failed" if error else "done"
    record = {**(about or {}), "notebook": notebook.name, "parameters": values, "status": status}
    record |= {"seconds": round(time.monotonic() - began, 3), "values": found, "error": error}
    if not error:
        copy.replace(folder / notebook.name)
    write_json(folder / (FAILED if error else DONE), record)
    return record


def _wait(process: subprocess.Popen, timeout: float | None, stop: threading.Event | None) -> bool:
    """Wait until a process ends; False if the time is over before."""
    end = time.monotonic() + (timeout or math.inf)
    while process.poll() is None:
        if stop and stop.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > end:
            return False
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    return True


def _kill_children(pid: int) -> None:
    """Kill the processes that a process has started; a kernel is in a session of its own and hears no other signal."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _end_with_parent() -> None:
    """End this process and its kernel when the standard input ends, which says that the parent has died."""
    while os.read(0, 4096):
        pass
    _kill_children(os.getpid())
    os._exit(1)


def main() -> None:
    """Execute the job on the standard input."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)  # the names of all parameters were checked before
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        papermill.execute_notebook(
            *(job[name].replace("{", "{{").replace("}", "}}") for name in ("notebook", "copy")),
            parameters=job["parameters"], kernel_name="python3", language="python",
            cwd=Path(job["notebook"]).parent, progress_bar=job["progress"],
        )  # fmt: skip
    except Exception as error:  # of the notebook, or of a library: the record tells it
        Path(job["errors"]).write_text(f"{error}".strip() or type(error).__name__, encoding="utf-8")


if __name__ == "__main__":
    main()
