"""The shipped settings of training runs, and how settings are read from a file or by name.

A file of settings is YAML, one ``name: value`` a line. ``extends`` names the shipped run whose settings it changes.
``ablations.yaml`` and ``qwen3.yaml`` hold the shipped runs by name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from relaylab.settings import nearest, read_yaml

FOLDER = Path(__file__).parent


def config_names() -> list[str]:
    """The names of the shipped runs.

    >>> config_names()[0]
    'embedded/ablations/fixed'
    """
    return sorted(_shipped())


def read_config(name: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, or of a shipped run by its name, with those of the run that it extends.

    Raises:
        ValueError: for a name of neither, a broken file, and runs that extend each other in a circle.

    >>> read_config("embedded/ablations/no-bonus")["bonus"], read_config("embedded/ablations/no-bonus")["max_steps"]
    (1.0, 400)
    """
    settings = _read(Path(name)) if Path(name).is_file() else {"extends": str(name)}
    seen: list[Any] = []
    while (base := settings.pop("extends", None)) is not None:
        if base in seen:
            raise ValueError(f"{name}: {base!r} extends itself")
        if base not in _shipped():
            raise ValueError(f"{base!r} is no file and no shipped run; {nearest(base, config_names())}")
        seen.append(base)
        settings = _shipped()[base] | settings
    return settings


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    return {name: run for file in sorted(FOLDER.glob("*.yaml")) for name, run in _read(file).items()}


def _read(path: Path) -> dict[str, Any]:
    settings = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds a {type(settings).__name__}; it must be settings, 'name: value' a line")
    return settings
