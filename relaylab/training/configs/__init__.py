"""The shipped settings of training runs, and the one way to read settings from a file or by name.

A file of settings is YAML, one ``name: value`` a line; ``extends`` names the shipped run whose settings it changes.
``ablations.yaml`` and ``qwen3.yaml`` hold the shipped runs by name.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

from relaylab.files import load_yaml

FOLDER = Path(__file__).parent


def config_names() -> list[str]:
    """The names of the shipped runs.

    >>> config_names()[0]
    'embedded/grpo'
    """
    return sorted(_shipped())


def read_config(name: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, or of a shipped run by its name, with those of the run that it extends.

    Raises:
        ValueError: for a name of neither, a broken file, and runs that extend each other in a circle.

    >>> read_config("embedded/relay-no-bonus")["bonus"], read_config("embedded/relay-no-bonus")["max_steps"]
    (1.0, 300)
    """
    if Path(name).is_file():
        return _extended(str(name), _read(Path(name)), ())
    return _extended(str(name), {"extends": str(name)}, ())


def _extended(where: str, settings: dict[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    settings = dict(settings)
    if (base := settings.pop("extends", None)) is None:
        return settings
    if base in seen:
        raise ValueError(f"{where}: extends itself by way of {' and '.join(map(repr, seen))}")
    if base not in _shipped():
        near = difflib.get_close_matches(str(base), _shipped(), 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no file {base}, and no shipped run of this name{hint}; there are {', '.join(config_names())}"
        )
    return _extended(where, _shipped()[base], (*seen, base)) | settings


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    return {name: run for file in sorted(FOLDER.glob("*.yaml")) for name, run in _read(file).items()}


def _read(path: Path) -> dict[str, Any]:
    settings = load_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds a {type(settings).__name__}; it must be settings, 'name: value' a line")
    return settings
