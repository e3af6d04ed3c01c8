"""One training run from a YAML file or from keywords: data, data filter, student, teachers, and then GRPO.

A file holds the same keywords as ``train``: those of its own signature, and any of ``grpo``'s. The files in
``configs/`` beside this module, for the embedded pair and for Qwen3, are known by their names: ``embedded/relay``.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import load_teacher
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.data import load_problems
from relaylab.tasks.suites import SUITES, Problem, mixture
from relaylab.training.data_filter import keep, load_rates, pass_rates
from relaylab.training.grpo import grpo
from relaylab.training.run_dir import processes

CONFIGS = Path(__file__).parent / "configs"
FILTER = {
    "samples": 10,
    "threshold": 0.5,
    "max_tokens": 160,
    "batch_size": 128,
    "seed": 0,
}  # and ``rates``: a file of them


def train(config: str | Path | None = None, /, **options: Any) -> Path:
    """Train a student with GRPO; the folder of the trained student. Keywords win over those of the file.

    config: a YAML file, or the name of a shipped one.

    student: name or folder (``warm``). teacher: a name, a folder, a URL, ``none``, a ``Teacher``, or a list of these,
    which the groups of a batch take in turn. teacher_options: for those loaded by name (``temperature``, ``tokenizer``,
    ``quantize`` ...).
    suites, count, data_seed: that many training problems of these embedded suites, taken in turn; or data, limit: a
    file of problems. filter: samples, threshold, max_tokens, seed of the data filter (method: stage 2), which runs into
    ``out/rates.jsonl``; or ``rates``, a file that ``relaylab filter`` made; None trains on everything.
    limits: the caps of a rollout (``max_tokens``, ``max_calls`` ...). lead: a list of other ones for the first steps,
    each with its number of ``steps``. All else: see ``grpo``.

    Raises ValueError for a keyword that nothing here knows, and what its parts raise.
    """
    given = (read_config(config) if config is not None else {}) | options
    for name in ("student", "out"):
        if name not in given:
            raise ValueError(f"a training run needs {name!r}")
    known = _data_options() | set(inspect.signature(grpo).parameters) - {"problems", "teachers"}
    for name in given:
        if name not in known and name not in _trl_options():
            near = difflib.get_close_matches(name, known | _trl_options(), 1)
            raise ValueError(f"unknown setting {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    return _train(**given)


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, or of a shipped one by its name. ValueError where it is not one mapping.

    >>> read_config("embedded/relay")["reward"]
    'difficulty_aware'
    """
    shipped = CONFIGS / f"{path}.yaml"
    if not Path(path).exists() and not shipped.exists():
        names = sorted(str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.glob("*/*.yaml"))
        raise ValueError(f"no file {path}, and none of the shipped settings: {', '.join(names)}")
    try:
        found = yaml.safe_load((Path(path) if Path(path).exists() else shipped).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; it must be settings, 'name: value' a line")
    return found


def _train(
    student: str | Path,
    out: str | Path,
    teacher: str | Teacher | Sequence[str | Teacher] = "teacher",
    teacher_options: dict[str, Any] | None = None,
    suites: Sequence[str] = SUITES,
    count: int = 900,
    data_seed: int = 1,
    data: str | Path | None = None,
    limit: int | None = None,
    filter: dict[str, Any] | None = None,
    limits: RelayConfig | dict[str, Any] | None = None,
    lead: Sequence[tuple[int, RelayConfig] | dict[str, Any]] = (),
    **options: Any,
) -> Path:
    named = teacher if isinstance(teacher, list | tuple) else [teacher]
    teachers = [_teacher(t, teacher_options or {}) for t in named]
    if data:
        problems = load_problems(data, limit=limit)
    else:
        problems = list(islice(mixture(seed=data_seed, suites=tuple(suites)), count))
    if filter is not None:
        problems = _filtered(problems, teachers, filter, Path(out), options)
    if odd := [part for part in lead if isinstance(part, dict) and "steps" not in part]:
        raise ValueError(f"each part of lead needs its number of steps; {odd[0]} has none")
    leading = [
        (part["steps"], _limits({k: v for k, v in part.items() if k != "steps"})) if isinstance(part, dict) else part
        for part in lead
    ]
    return grpo(student, teachers, problems, out, limits=_limits(limits), lead=leading, **options)


def _limits(given: RelayConfig | dict[str, Any] | None) -> RelayConfig | None:
    if not isinstance(given, dict):
        return given
    if odd := set(given) - {f.name for f in fields(RelayConfig)}:
        raise ValueError(f"unknown limits {sorted(odd)}; there are {', '.join(f.name for f in fields(RelayConfig))}")
    return RelayConfig(**given)


def _teacher(named: str | Teacher, options: dict[str, Any]) -> Teacher:
    if not isinstance(named, str | Path):
        return named
    return load_teacher(str(named), **(options if named != "none" else {}))


def _filtered(
    problems: list[Problem], teachers: list[Teacher], settings: dict[str, Any], out: Path, options: dict[str, Any]
) -> list[Problem]:
    """The problems that the first teacher passes often enough; its rates are measured where no file has them."""
    if odd := set(settings) - set(FILTER) - {"rates"}:
        raise ValueError(f"unknown settings of the filter {sorted(odd)}; there are rates, {', '.join(FILTER)}")
    settings = FILTER | settings
    if rates := settings.get("rates"):
        known = {rate.problem.id: rate for rate in load_rates(rates)}
        if missing := [p.id for p in problems if p.id not in known or known[p.id].problem.question != p.question]:
            told = f"{rates} has no rate of {len(missing)} problems, {missing[0]!r} first"
            raise ValueError(f"{told}; run the filter on them")
        return keep([known[p.id] for p in problems], settings["threshold"])
    if isinstance(teachers[0], NoTeacher):
        raise ValueError("a data filter needs a teacher, or the file of rates that one made")
    out.mkdir(parents=True, exist_ok=True)
    with processes().main_process_first():  # the others find them in the file
        rates = pass_rates(
            _sampling(teachers[0]),
            problems,
            out / "rates.jsonl",
            samples=settings["samples"],
            max_tokens=settings["max_tokens"],
            batch_size=settings["batch_size"],
            suffix=options.get("suffix", ""),
            seed=settings["seed"],  # not the run's: runs that differ in their seed train on the same problems
            progress=options.get("progress", True),
        )
    return keep(rates, settings["threshold"])


def _sampling(teacher: Teacher) -> Teacher:
    """The same teacher at temperature 1: a pass rate is of samples."""
    if getattr(teacher, "temperature", 1.0) == 1.0:
        return teacher
    sampling = copy.copy(teacher)
    sampling.temperature = 1.0
    return sampling


def _data_options() -> set[str]:
    return {name for name, p in inspect.signature(_train).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}


def _trl_options() -> set[str]:
    from trl import GRPOConfig

    return {f.name for f in fields(GRPOConfig)}
