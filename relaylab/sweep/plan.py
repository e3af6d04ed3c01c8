"""A sweep's file to its points: which parameters, how often, and the name under which a finished point is known.

Pure: it reads the file and the notebook, runs nothing, and the same files give the same points in the same order.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from relaylab.sweep.notebook import checked, code_cells, read_parameters
from relaylab.version import __version__

PACKAGE = Path(__file__).parents[1]
SETTINGS = (
    "description", "notebook", "parameters", "grid", "zips", "lists", "seeds", "seed_parameter", "where", "collect",
    "plane", "timeout", "retries", "resources", "sizes",
)  # fmt: skip
RESOURCES = {"cpus": 1, "gpus": 0, "memory_gb": None}
Level = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Point:
    """One execution: ``key`` names it, ``levels`` says which level of each factor it is."""

    key: str
    parameters: dict[str, Any]
    levels: dict[str, str]
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All points of a sweep. ``factors``: the levels of each. ``timeout`` in seconds; ``retries`` of a failed point."""

    name: str
    notebook: Path
    code: str
    points: tuple[Point, ...]
    factors: dict[str, list[str]]
    collect: tuple[str, ...] = ()
    plane: tuple[str, str] = ("call_ratio", "accuracy")
    timeout: float | None = None
    retries: int = 0
    resources: dict[str, Any] = field(default_factory=lambda: dict(RESOURCES))


def read_plan(path: str | Path, size: str | None = None) -> Plan:
    """The plan of a SWEEP.yaml (docs/sweeps.md), in one of its ``sizes``; the first one where none is named.

    Raises ValueError for what the file or the notebook does not allow, naming it.
    """
    path = Path(path)
    settings = _settings(path, size)
    notebook = (path.parent / _needed(path, settings, "notebook")).resolve()
    known = read_parameters(notebook)
    base, factors = _mapping(settings, "parameters"), dict(_factors(settings))
    seed_name, seeds = settings.get("seed_parameter", "seed"), _seeds(settings.get("seeds"))
    _no_overlap(factors, seed_name)
    code = code_version()
    program = hashlib.sha256(json.dumps([code, code_cells(notebook)]).encode())
    defaults = {name: parameter.value for name, parameter in known.items()}
    points, seen = [], {}
    for chosen in product(*factors.values()):
        levels = dict(zip(factors, (label for label, _ in chosen), strict=True))
        for seed in seeds:
            given = base | {k: v for _, p in chosen for k, v in p.items()} | ({} if seed is None else {seed_name: seed})
            if not _kept(settings.get("where"), levels | defaults | given):
                continue
            given = checked(given, known)
            told = program.copy()
            told.update(json.dumps(defaults | given, sort_keys=True, default=str).encode())
            key = told.hexdigest()[:16]
            if key in seen:
                raise ValueError(f"{path}: {levels} and {seen[key]} are the same parameters; every point must differ")
            seen[key] = levels
            points.append(Point(key, given, levels, seed))
    if not points:
        raise ValueError(f"{path} plans no point: 'where' leaves none")
    used = {name: {p.levels[name] for p in points} for name in factors}
    return Plan(
        name=path.stem if size is None else f"{path.stem}-{size}",
        notebook=notebook,
        code=code,
        points=tuple(points),
        factors={name: [x for x, _ in levels if x in used[name]] for name, levels in factors.items()},
        **_rest(path, settings),
    )


@cache
def code_version() -> str:
    """The package's version and a hash of its code, settings and the embedded models' checksums.

    >>> code_version().startswith(f"{__version__}+")
    True
    """
    told = hashlib.sha256()
    for file in sorted(f for kind in ("*.py", "*.yaml", "manifest.json") for f in PACKAGE.rglob(kind)):
        told.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return f"{__version__}+{told.hexdigest()[:12]}"


def label(value: Any) -> str:
    """How a value is called in tables and figures.

    >>> label("warm"), label(0.5), label([0, 1])
    ('warm', '0.5', '[0, 1]')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _settings(path: Path, size: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no sweep {path}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; it must be settings, 'name: value' a line")
    sizes = _mapping(found, "sizes")
    if size is not None and size not in sizes:
        raise ValueError(f"{path} has no size {size!r}; it has {', '.join(sizes) or 'none'}")
    changes = sizes[size] if size else next(iter(sizes.values()), {})
    for name in (*found, *changes):
        if name not in SETTINGS:
            near = difflib.get_close_matches(str(name), SETTINGS, 1)
            raise ValueError(f"{path}: unknown setting {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    for name, value in changes.items():
        found[name] = _mapping(found, name) | value if isinstance(value, dict) else value
    return found


def _factors(settings: dict[str, Any]) -> Iterable[tuple[str, list[Level]]]:
    """(name, levels) of every factor: each line of the grid, each zip, each list."""
    for name, values in _mapping(settings, "grid").items():
        yield name, [(label(v), {name: v}) for v in _list(f"grid: {name}", values)]
    for columns in _list("zips", settings.get("zips") or []):
        columns = {name: _list(f"zips: {name}", values) for name, values in columns.items()}
        if len({len(values) for values in columns.values()}) != 1:
            raise ValueError(f"zips: {', '.join(columns)} must have as many values as each other")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        yield ", ".join(columns), [(", ".join(map(label, row.values())), row) for row in rows]
    for name, levels in _mapping(settings, "lists").items():
        if not isinstance(levels, dict) or not all(isinstance(row, dict) for row in levels.values()):
            raise ValueError(f"lists: {name} must be levels, each with its parameters: 'no bonus: {{bonus: 1.0}}'")
        yield name, [(str(level), row) for level, row in levels.items()]


def _no_overlap(factors: Mapping[str, list[Level]], seed: str) -> None:
    owner: dict[str, str] = {}
    for factor, levels in factors.items():
        for name in {factor} | {name for _, row in levels for name in row}:
            if name in ("key", "code", "planned", "seed", seed):
                raise ValueError(f"{name!r} cannot be varied here: seeds go under 'seeds', key and code name columns")
            if owner.setdefault(name, factor) != factor:
                raise ValueError(f"{name!r} is varied by {owner[name]!r} and by {factor!r}; one must do")


def _kept(rules: Any, values: Mapping[str, Any]) -> bool:
    """Whether a point meets every rule: ``{name: value or values}``, or ``{if: ..., then: ...}`` of two such."""

    def meets(wanted: Mapping[str, Any]) -> bool:
        for name in wanted:
            if name not in values:
                raise ValueError(f"where: {name!r} is no parameter and no factor; there are {', '.join(values)}")
        return all(values[n] in (w if isinstance(w, list) else [w]) for n, w in wanted.items())

    for rule in _list("where", rules or []):
        if not isinstance(rule, dict):
            raise ValueError(f"where: {rule!r} must be 'name: value', or 'if: ...' with 'then: ...'")
        if "if" in rule or "then" in rule:
            if set(rule) != {"if", "then"}:
                raise ValueError(f"where: {rule!r} needs both 'if' and 'then', and nothing else")
            if meets(rule["if"]) and not meets(rule["then"]):
                return False
        elif not meets(rule):
            return False
    return True


def _seeds(given: Any) -> list[int | None]:
    if given is None:
        return [None]
    seeds = list(range(given)) if type(given) is int else given
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise ValueError(f"seeds is {given!r}; it must be a number of seeds, or a list of them")
    return seeds


def _rest(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    timeout, retries = settings.get("timeout"), settings.get("retries", 0)
    if timeout is not None and not (type(timeout) in (int, float) and timeout > 0):
        raise ValueError(f"{path}: timeout is {timeout!r}; it must be seconds, above 0")
    if type(retries) is not int or retries < 0:
        raise ValueError(f"{path}: retries is {retries!r}; it must be a number from 0")
    plane = _list("plane", settings.get("plane", list(Plan.__dataclass_fields__["plane"].default)))
    if len(plane) != 2:
        raise ValueError(f"{path}: plane is {plane!r}; it must be two results, the horizontal one first")
    return {
        "collect": tuple(_list("collect", settings.get("collect") or [])),
        "plane": (plane[0], plane[1]),
        "timeout": timeout,
        "retries": retries,
        "resources": _resources(path, _mapping(settings, "resources")),
    }


def _resources(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    if odd := set(given) - set(RESOURCES):
        raise ValueError(f"{path}: unknown resources {sorted(odd)}; there are {', '.join(RESOURCES)}")
    for name, value in given.items():
        number = type(value) in (int, float) and (value > 0 or (name, value) == ("gpus", 0))
        if not number or (name != "memory_gb" and value > 1 and value % 1):
            told = "GB, above 0" if name == "memory_gb" else "a share of one, or a whole number"
            raise ValueError(f"{path}: resources: {name} is {value!r}; it must be {told}")
    return RESOURCES | given


def _needed(path: Path, settings: dict[str, Any], name: str) -> str:
    if not isinstance(settings.get(name), str):
        raise ValueError(f"{path} names no {name}")
    return settings[name]


def _mapping(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {found!r}; it must be 'name: value' lines")
    return found


def _list(name: str, found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{name} is {found!r}; it must be a list")
    return found
