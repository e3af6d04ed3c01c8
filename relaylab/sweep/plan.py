"""Read the points of a sweep from its YAML file: what varies, how often, and the key of each point.

It runs nothing. The same files give the same points in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from relaylab.settings import nearest, read_yaml
from relaylab.sweep.notebook import check_values, code_cells, read_parameters
from relaylab.version import __version__

MAX_POINTS = 100_000
COLUMNS = ("key", "seed", "version", "commit", "planned")  # of a table of results, besides parameters and results
IMPORT = re.compile(r"^\s*(?:from|import)\s+(\w+)", re.MULTILINE)
Name = Annotated[str, BeforeValidator(str)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # a table holds no more
Values = dict[str, Any]
Level = tuple[str, Values]
Resources = dict[Literal["cpus", "gpus", "memory_gb"], Annotated[float, Field(ge=0)]]


class SweepFile(BaseModel):
    """The settings of a SWEEP.yaml; docs/sweeps.md explains them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    notebook: str
    description: str = ""
    parameters: Values = {}
    grid: dict[str, list[Any]] = {}
    zips: list[dict[str, list[Any]]] = []
    lists: dict[str, dict[Name, Values]] = {}
    seeds: Annotated[int, Field(ge=1, le=MAX_POINTS)] | Annotated[list[Seed], Field(min_length=1)] | None = None
    seed_parameter: str = "seed"
    where: list[Values] = []
    collect: list[str] = []
    plane: list[str] = Field(["call_ratio", "accuracy"], min_length=2, max_length=2)
    timeout: float | None = Field(None, gt=0)
    retries: int = Field(0, ge=0)
    resources: Resources = {}

    def factors(self) -> dict[str, list[Level]]:
        """The levels of every factor: each line of the grid (a zip of one), each zip, each list."""
        factors = {}
        for columns in [*({name: values} for name, values in self.grid.items()), *self.zips]:
            if len({len(values) for values in columns.values()}) != 1:
                raise ValueError(f"zips: {', '.join(columns)} must have as many values as each other")
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            factors[", ".join(columns)] = [(", ".join(map(label, row.values())), row) for row in rows]
        return factors | {name: list(levels.items()) for name, levels in self.lists.items()}


@dataclass(frozen=True, slots=True)
class Point:
    """One execution: the values that replace the notebook's defaults, and its level of each factor.

    ``key`` names it and is a hash of what decides its results.
    """

    key: str
    parameters: Values
    levels: dict[str, str]
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All points of a sweep, and how to run them. ``factors``: the levels of each factor."""

    name: str
    notebook: Path
    points: tuple[Point, ...]
    factors: dict[str, list[str]]
    collect: tuple[str, ...] = ()
    plane: tuple[str, str] = ("call_ratio", "accuracy")
    timeout: float | None = None
    retries: int = 0
    resources: Resources = field(default_factory=dict)
    version: str = __version__


def read_plan(path: str | Path, size: str | None = None) -> Plan:
    """Read a SWEEP.yaml, which names its notebook relative to itself, in one of its ``sizes`` (the first by default).

    The plan has the file's name, with that of a size that is not the first.

    Raises:
        ValueError: for whatever the file or the notebook does not allow.
    """
    file, name = _read_file(path := Path(path), size)
    notebook = (path.parent / file.notebook).resolve()
    parameters = read_parameters(notebook)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    factors = file.factors()
    seeds = list(range(file.seeds)) if isinstance(file.seeds, int) else file.seeds or [None]
    _check_names(path, file, factors, defaults)
    if (count := math.prod(map(len, factors.values())) * len(seeds)) > MAX_POINTS:
        raise ValueError(f"{path} plans {count:,} points; at most {MAX_POINTS:,} are allowed")
    program = hashlib.sha256(json.dumps([__version__, code_cells(notebook), helper_modules(notebook)]).encode())
    points, seen = [], {}
    for chosen in product(*factors.values()):
        levels = {name: level for name, (level, _) in zip(factors, chosen, strict=True)}
        for seed in seeds:
            values = file.parameters | {name: value for _, row in chosen for name, value in row.items()}
            values |= {} if seed is None else {file.seed_parameter: seed}
            if not all(_meets(rule, levels | defaults | values) for rule in file.where):
                continue
            values = check_values(values, parameters)
            digest = program.copy()
            digest.update(json.dumps(defaults | values, sort_keys=True, default=str).encode())
            key = digest.hexdigest()[:16]
            if key in seen:
                raise ValueError(f"{path}: {levels} and {seen[key]} are the same parameters; every point must differ")
            seen[key] = levels
            points.append(Point(key, values, levels, seed))
    if not points:
        raise ValueError(f"{path} plans no point: 'where' leaves none, or a list is empty")
    used = {name: {point.levels[name] for point in points} for name in factors}
    factor_levels = {name: [level for level, _ in levels if level in used[name]] for name, levels in factors.items()}
    return Plan(
        name, notebook, tuple(points), factor_levels,
        tuple(file.collect), (file.plane[0], file.plane[1]), file.timeout, file.retries, file.resources,
    )  # fmt: skip


def helper_modules(notebook: Path) -> dict[str, str]:
    """The Python files beside a notebook that it imports, or that these import, with their contents."""
    modules: dict[str, str] = {}
    sources = [source for _, source in code_cells(notebook)]
    while sources:
        for name in _imported(sources.pop()):
            for file in (notebook.parent / f"{name}.py", *sorted((notebook.parent / name).rglob("*.py"))):
                place = file.relative_to(notebook.parent).as_posix()
                if name != "relaylab" and place not in modules and file.is_file():
                    modules[place] = file.read_text(encoding="utf-8", errors="replace")
                    sources.append(modules[place])
    return dict(sorted(modules.items()))


def _imported(source: str) -> list[str]:
    """The first names of the modules that a source imports."""
    python = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)  # without magics
    try:
        nodes = list(ast.walk(ast.parse(python)))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return IMPORT.findall(source)
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return [name.partition(".")[0] for name in names]


def label(value: Any) -> str:
    """The name of a value in tables and figures.

    >>> label("warmup"), label(0.5), label([0, 1])
    ('warmup', '0.5', '[0, 1]')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _read_file(path: Path, size: str | None) -> tuple[SweepFile, str]:
    """The settings of a file in one of its sizes, and what this sweep is called."""
    if path.suffix == ".ipynb":
        raise ValueError(f"{path} is a notebook; give a YAML file that names it (docs/sweeps.md)")
    if not path.is_file():
        raise ValueError(f"there is no sweep {path}")
    settings = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}; it must be settings, one 'name: value' per line")
    sizes = settings.pop("sizes", None) or {}
    if not isinstance(sizes, dict) or not all(isinstance(changes, dict) for changes in sizes.values()):
        raise ValueError(f"{path}: sizes must be 'name: {{setting: value}}' lines")
    if size is not None and size not in sizes:
        raise ValueError(f"{path} has no size {size!r}; {nearest(size, sizes)}")
    first = next(iter(sizes), None)
    for name, value in sizes.get(size or first, {}).items():
        both = isinstance(value, dict) and isinstance(settings.get(name), dict)
        settings[name] = settings[name] | value if both else value
    try:
        file = SweepFile(**{name: value for name, value in settings.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        place, *_ = names = [str(part) for part in fault["loc"]]
        if place not in SweepFile.model_fields:
            raise ValueError(f"{path}: unknown setting {place!r}; {nearest(place, SweepFile.model_fields)}") from None
        raise ValueError(f"{path}: {': '.join(names)}: {fault['msg']} (it is {str(fault['input'])[:80]})") from None
    return file, path.stem if size in (None, first) else f"{path.stem}-{size}"


def _check_names(path: Path, file: SweepFile, factors: Mapping[str, list[Level]], defaults: Values) -> None:
    """Every parameter is varied once, and no result is called as something else is."""
    owner: dict[str, str] = {}
    for factor, levels in factors.items():
        for name in {factor} | {name for _, row in levels for name in row}:
            if name in (*COLUMNS, file.seed_parameter):
                raise ValueError(f"{path}: {name!r} cannot be varied here: seeds go under 'seeds'")
            if owner.setdefault(name, factor) != factor:
                raise ValueError(f"{path}: {name!r} is varied by {owner[name]!r} and by {factor!r}; one must do")
    if taken := [name for name in file.parameters if name in COLUMNS and name not in ("seed", file.seed_parameter)]:
        raise ValueError(f"{path}: the table of results has a column {taken[0]!r} of its own; name the parameter anew")
    results = [*file.collect, *(file.plane if "plane" in file.model_fields_set else ())]
    if taken := [name for name in results if name in {*COLUMNS, *defaults, *factors}]:
        raise ValueError(f"{path}: {taken[0]!r} is a parameter, so no result can be collected under this name")


def _meets(rule: Values, values: Values) -> bool:
    """Whether a point meets ``{name: value or values}``, or ``{if: ..., then: ...}`` of two such."""
    if "if" not in rule and "then" not in rule:
        if unknown := [name for name in rule if name not in values]:
            raise ValueError(f"where: {unknown[0]!r} is no parameter and no factor; {nearest(unknown[0], values)}")
        return all(values[n] in (wanted if isinstance(wanted, list) else [wanted]) for n, wanted in rule.items())
    if set(rule) != {"if", "then"} or not all(isinstance(part, dict) for part in rule.values()):
        raise ValueError(f"where: {rule!r} needs both 'if' and 'then', each 'name: value', and nothing else")
    return not _meets(rule["if"], values) or _meets(rule["then"], values)
