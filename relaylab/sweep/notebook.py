"""Notebooks as programs: read one's parameters, execute it into a folder, keep what it found as JSON beside it.

Papermill executes; what it only warns of (a parameter that the notebook has not) is refused here, before a kernel
starts. A notebook hands over its results with ``result(name=value, ...)``. Many executions with varied parameters are
``relaylab/sweep``; this module runs one notebook after the other and keeps no history.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import os
import re
import threading
import time
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

RESULT = "RELAYLAB_RESULT"  # environment variable: the file that ``result`` writes to
SMOKE = "smoke.yaml"  # beside the notebooks: parameters of each with which it is done in seconds
SHIPPED = Path(__file__).parents[1] / "lessons"  # in an installed package; a checkout has them around the package
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "None": type(None)}
# call_tokens is a number of tokens; hf_token is a key.
SECRET_NAME = re.compile(r"api_?key|secret|passw(or)?d|credential|(^|_)(key|keys|token|auth)$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"^(sk|hf|ghp|xai|gsk)[-_]\w[\w-]{15,}$|^https?://[^/@\s]+:[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A line of the cell tagged ``parameters``. ``type`` and ``comment`` are empty where the line has none."""

    name: str
    type: str
    default: str
    comment: str

    @property
    def value(self) -> Any:
        """The default as a value; its source where it is no literal."""
        try:
            return ast.literal_eval(self.default)
        except (ValueError, SyntaxError):
            return self.default


def result(**values: Any) -> None:
    """Hand over what a notebook found: numbers, texts, yes or no, lists of these. Later calls add to earlier ones.

    Shown in the notebook; under ``execute`` also written, for sweeps to collect. NaN and infinity become null.

    >>> result(accuracy=0.75, problems=40)
    accuracy = 0.75
    problems = 40

    Raises ValueError for a value that JSON cannot hold.
    """
    kept = {name: _plain(name, value) for name, value in values.items()}
    for name, value in kept.items():
        print(f"{name} = {value!r}")
    if path := os.environ.get(RESULT):
        found = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        write_json(Path(path), found | kept)


def read_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, in their order. None of its code is run.

    Raises ValueError where the file is no notebook, has several cells tagged ``parameters``, or asks for a key.
    """
    tagged = [source for tags, source in code_cells(notebook) if "parameters" in tags]
    if len(tagged) > 1:
        raise ValueError(f"{notebook} has {len(tagged)} cells tagged 'parameters'; it must be one")
    found = {p.name: p for source in tagged for p in _declared(notebook, source)}
    for name in found:
        _refuse_secret(name, None)
    return found


def code_cells(notebook: str | Path) -> list[tuple[list[str], str]]:
    """(tags, source) of every code cell: what decides a notebook's results. ValueError where it is no notebook."""
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return [(list(c["metadata"].get("tags", ())), "".join(c["source"])) for c in code]
    except FileNotFoundError:
        raise ValueError(f"there is no notebook {notebook}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{notebook} is not a notebook of format 4 ({type(error).__name__}: {error})") from error


def checked(given: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The given values in the types that the notebook asks for.

    >>> known = {"beta": Parameter("beta", "float", "0.01", ""), "steps": Parameter("steps", "int", "40", "")}
    >>> checked({"beta": 1}, known)
    {'beta': 1.0}
    >>> checked({"step": 3}, known)
    Traceback (most recent call last):
    ValueError: the notebook has no parameter 'step'; did you mean 'steps'?

    Raises ValueError for a name that the notebook has not, a value of another type or one that JSON cannot hold, and
    for whatever looks like a key: parameters are written into the executed notebook.
    """
    found = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"the notebook has no parameter {name!r}; {hint}")
        _refuse_secret(name, value)
        found[name] = _typed(known[name], value)
        try:
            json.dumps(found[name], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"parameter {name!r}: {value!r} cannot be written as JSON ({error})") from error
    return found


def execute(
    notebook: str | Path,
    folder: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Execute a notebook into ``folder``: the executed copy under its own name, and the record, ``result.json``.

    The kernel is this Python, works in the notebook's own folder, and has ``env`` in its environment. ``timeout``:
    seconds for the whole notebook; then its kernel is killed. The record, which is returned: ``notebook`` (file name),
    ``parameters`` (those given), ``status`` (``done``, ``failed``, ``timeout``), ``seconds``, ``values`` (what
    ``result`` was given), ``error`` (traceback or None). A notebook that raises or hangs gives such a record, and no
    exception.

    One at a time in a process, since environment and working directory are the process's. Raises ValueError as
    ``checked`` and ``read_parameters`` do.
    """
    import papermill

    notebook, folder = Path(notebook).resolve(), Path(folder).resolve()
    given = checked(parameters or {}, read_parameters(notebook))
    folder.mkdir(parents=True, exist_ok=True)
    values, began, error = folder / "values.json", time.monotonic(), None
    values.unlink(missing_ok=True)
    with _environment({**(env or {}), RESULT: str(values)}), _deadline(timeout) as reached:
        try:
            papermill.execute_notebook(
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, folder / notebook.name)),
                parameters=given, kernel_name="python3", language="python", cwd=notebook.parent,
                progress_bar=progress,
            )  # fmt: skip
        except Exception as raised:  # the notebook's own, or of any library between it and us: it costs this run alone
            error = f"{raised}".strip() or type(raised).__name__
    if reached.is_set():
        error = f"stopped after {timeout:g} seconds\n{error or ''}".strip()
    record = {
        "notebook": notebook.name,
        "parameters": given,
        "status": "timeout" if reached.is_set() else "failed" if error else "done",
        "seconds": round(time.monotonic() - began, 3),
        "values": json.loads(values.read_text()) if values.exists() else {},
        "error": error,
    }
    values.unlink(missing_ok=True)
    write_json(folder / "result.json", record)
    return record


def lessons_home() -> Path:
    """The folder whose ``notebooks`` and ``docs`` are the shipped ones. ValueError where they are missing."""
    home = SHIPPED if SHIPPED.is_dir() else SHIPPED.parents[1]
    if not any((home / "notebooks").glob("*.ipynb")):
        raise ValueError(f"this installation of relaylab has no lessons: {home / 'notebooks'} is empty; reinstall it")
    return home


def lesson_folder() -> Path:
    """Where notebooks are looked for: ``notebooks`` in the working folder, else the shipped ones."""
    own = Path("notebooks")
    return own if any(own.glob("*.ipynb")) else lessons_home() / "notebooks"


def smoke_parameters(folder: Path) -> dict[str, dict[str, Any]]:
    """By notebook, the parameters of the folder's ``smoke.yaml``. ValueError where there is none, or it is not that."""
    try:
        found = yaml.safe_load((folder / SMOKE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {SMOKE}: a line a notebook, 'name: {{parameter: value}}'") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{folder / SMOKE} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict) or not all(isinstance(given, dict) for given in found.values()):
        raise ValueError(f"{folder / SMOKE}: write a line a notebook, 'name: {{parameter: value}}'")
    return found


def notebooks_run(
    names: Annotated[list[str] | None, typer.Argument(help="Of the folder, or files; all by default.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE, for each of them; VALUE is YAML.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Each is executed into a folder of its own here.")] = Path("runs/notebooks"),
    folder: Annotated[
        Path | None, typer.Option(help="Where they are: 'notebooks' here, or else the shipped ones.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds for each; no limit by default.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help=f"The parameters of the folder's {SMOKE}: seconds each.")
    ] = False,
) -> None:
    """Execute notebooks with other parameters, and keep their results as JSON."""
    folder = folder or lesson_folder()
    small = smoke_parameters(folder) if smoke else {}
    chosen = [find_notebook(name, folder) for name in names or ()] or sorted(folder.glob("*.ipynb"))
    if not chosen:
        raise ValueError(f"{folder} has no notebooks; --folder says where they are")
    plans = {}
    for path in chosen:  # all are checked before the first one runs
        known = read_parameters(path)
        asked = dict(_option(text, known) for text in parameter or ())
        plans[path] = checked(small.get(path.stem, {}) | asked, known)
    bad = []
    for path, given in plans.items():
        record = execute(path, out / path.stem, given, timeout=timeout, progress=True)
        print(f"{path.stem}: {record['status']} in {record['seconds']:.0f} s, {out / path.stem / 'result.json'}")
        if record["error"]:
            print(record["error"])
            bad.append(path.stem)
    if bad:
        raise RuntimeError(f"{', '.join(bad)} did not finish; the executed copies show how far they came")


def find_notebook(name: str, folder: Path) -> Path:
    """The notebook that a file, a name, or the beginning of one (``02``) means. ValueError where it is none or many."""
    if name.endswith(".ipynb"):
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.ipynb"))
    found = [stem for stem in known if stem == name] or [stem for stem in known if stem.startswith(name)]
    if len(found) != 1:
        near = found or difflib.get_close_matches(name, known, 1) or known
        raise ValueError(f"{folder} has {len(found) or 'no'} notebooks {name!r}: {', '.join(near) or 'it is empty'}")
    return folder / f"{found[0]}.ipynb"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def _declared(notebook: str | Path, source: str) -> Iterator[Parameter]:
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{notebook}: the parameters cell is not Python ({error})") from error
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    for node in statements:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            target, kind = node.target, ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, kind = node.targets[0], ""
        else:
            continue
        if isinstance(target, ast.Name):
            yield Parameter(target.id, kind, ast.unparse(node.value), comments.get(node.end_lineno, ""))


def _typed(parameter: Parameter, value: Any) -> Any:
    """``str | None`` admits either, ``list[int]`` any list, an annotation beyond ``TYPES`` everything."""
    named = [part.split("[")[0].strip() for part in re.split(r"\|(?![^\[]*\])", parameter.type)]
    if not set(named) <= set(TYPES):
        return value
    if "float" in named and type(value) in (int, str) and not {"int", "str"} & set(named):
        try:
            return float(value)  # YAML reads 1e-3 as a text
        except ValueError:
            pass
    if type(value) not in [TYPES[name] for name in named]:
        raise ValueError(f"parameter {parameter.name!r} is {value!r}; the notebook asks for {parameter.type}")
    return value


def _option(text: str, known: Mapping[str, Parameter]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"-p {text}: write NAME=VALUE")
    if name in known and known[name].type == "str":
        return name, value  # 8B, 007 and no are texts
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"-p {name}: {value!r} is not YAML ({' '.join(str(error).split())})") from error


def _refuse_secret(name: str, value: Any) -> None:
    if SECRET_NAME.search(name) or (isinstance(value, str) and SECRET_VALUE.search(value)):
        raise ValueError(
            f"parameter {name!r} looks like a key, and parameters are saved in the executed notebook; "
            "put keys into environment variables (OPENAI_API_KEY)"
        )


def _plain(name: str, value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy and torch, numbers and arrays
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"result {name!r}: JSON cannot hold {type(value).__name__} {value!r} ({error})") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _deadline(seconds: float | None) -> Iterator[threading.Event]:
    """Kill the processes that this one starts inside once the time is over; the event says whether it came to that.

    Papermill's own limit is for each cell and asks the kernel to stop, which code outside of Python does not hear.
    """
    import psutil

    over, reached = threading.Event(), threading.Event()
    before = set(psutil.Process().children(recursive=True))

    def watch() -> None:
        if over.wait(seconds):
            return
        reached.set()
        while True:  # a kernel that was just starting is found the next time
            for child in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            if over.wait(0.2):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield reached
    finally:
        over.set()
        watcher.join()
