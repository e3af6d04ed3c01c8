"""``relaylab doctor``: what this machine has, what it can run, and what to do about the rest.

A check that breaks is a check that failed. Nothing is written, and nothing leaves the machine, except to a server whose
address was given. ``memory.py`` has the sums.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from relaylab.call_tag import visible
from relaylab.memory import GB, QWEN3, Shape, Term, decoding, gigabytes, shipped, total

WEIGHTS = Path(__file__).parent / "zoo" / "weights"
EXTRAS = {"ray": "sweeps on a cluster", "quant": "a teacher in 4 bits on a GPU", "vllm": "a teacher server on a GPU",
          "api": "a teacher server on a CPU"}  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]-[/]"}


class Check(NamedTuple):
    """One finding. ``ok``: True, False (something will not work) or None (optional, or not known)."""

    ok: bool | None
    detail: str
    remedy: str = ""


class Machine(NamedTuple):
    """Cores, and memory in bytes (None: not known)."""

    cores: int
    memory: int | None
    memory_free: int | None
    accelerator: str | None = None
    device_memory: int | None = None
    device_free: int | None = None


class Estimate(NamedTuple):
    """A configuration held against a machine. ``ok`` is None if the free memory is not known."""

    name: str
    terms: list[Term]
    free: int | None
    ok: bool | None
    why: str


def survey(cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """This machine, within the limits of its container. Never raises."""
    m = Machine(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, None, None)
    with suppress(Exception):  # a locked /proc; no container, or one without a limit
        host = psutil.virtual_memory()
        m = m._replace(memory=host.total, memory_free=host.available)
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        m = m._replace(memory=min(host.total, limit), memory_free=max(0, min(host.available, limit - used)))
    with suppress(Exception):  # no torch, or a driver that does not fit it
        import torch

        if torch.cuda.is_available():
            free, size = torch.cuda.mem_get_info()
            return m._replace(accelerator=torch.cuda.get_device_name(), device_memory=size, device_free=free)
        if torch.backends.mps.is_available():
            size, used = torch.mps.recommended_max_memory(), torch.mps.current_allocated_memory()
            return m._replace(accelerator="MPS", device_memory=size, device_free=size - used)
    return m


def estimates(machine: Machine | None = None) -> list[Estimate]:
    """What a machine can run: the embedded pair, Qwen3 pairs, and the shipped settings for one GPU.

    >>> card = Machine(8, 64 * GB, 60 * GB, "a card of 24 GB", 24 * GB, 24 * GB)
    >>> [e.name for e in estimates(card) if not e.ok]
    ['GRPO, qwen3/06b-80gb', 'GRPO, qwen3/17b-80gb']
    """
    m = machine or survey()
    free, width = (m.memory_free, 4) if m.accelerator is None else (m.device_free, 2)  # on a CPU weights are fp32
    configs = [json.loads((WEIGHTS / role / "config.json").read_text()) for role in ("student", "teacher")]
    student, teacher = (Shape(**{name: config[name] for name in Shape.__slots__}) for config in configs)
    results = [_estimate("embedded pair", decoding(student, teacher, width=4), m.memory_free)]
    for size in ("0.6B", "1.7B"):
        pair = decoding(QWEN3[size], QWEN3["8B"], width=width)
        results.append(_estimate(f"Qwen3-{size} + Qwen3-8B, decoding", pair, free))
    runs = [_estimate(f"GRPO, {name}", run.terms, free) for name, run in shipped().items() if run.gpus == 1]
    if m.accelerator is None:
        runs = [e._replace(ok=False, why="made for a GPU, and there is none") for e in runs]
    return results + runs


def _estimate(name: str, terms: list[Term], free: int | None) -> Estimate:
    need, caches = total(terms), total([t for t in terms if t.what == "KV caches"])
    if free is None:
        return Estimate(name, terms, free, None, "the free memory is not known")
    if need <= free:
        rows = f", up to {int((free - need) // caches) + 1:,} rows at once" if caches else ""
        return Estimate(name, terms, free, True, f"fits{rows}")
    server = gigabytes(total([t for t in terms if t.what != "teacher"]))
    why = f"{gigabytes(need - free)} short; with its teacher behind an API it takes at most {server}"
    return Estimate(name, terms, free, False, why)


def diagnose(api: str | None = None, *, runs: str | Path = "runs", machine: Machine | None = None) -> dict[str, Check]:
    """All checks by name, of a server at the address ``api`` as well. The folder ``runs`` is not made."""
    machine = machine or survey()
    checks: dict[str, Callable[[], Check]] = {
        "python": lambda: Check(sys.version_info >= (3, 11), f"{platform.python_version()}, {sys.executable}", "3.11"),
        "packages": _packages,
        "memory": partial(_memory, machine),
        "torch": partial(_torch, machine),
        "runs folder": partial(_folder, Path(runs).absolute()),
        "embedded models": _embedded,
        "static figures": _browser,
        **{f"extra {name}": partial(_packages, name) for name in EXTRAS},
    }
    if api:
        checks["API teacher"] = partial(_api, api)
    findings = {}
    for name, check in checks.items():
        try:
            findings[name] = check()
        except Exception as error:
            findings[name] = Check(False, f"{type(error).__name__}: {error}")
    return findings


def _packages(extra: str = "") -> Check:
    """The packages that relaylab, or an extra of it, declares: are they here, in the declared versions?"""
    wrong, right = [], []
    for r in map(Requirement, requires("relaylab") or ()):
        marker = str(r.marker or "")
        if (f'extra == "{extra}"' in marker) if extra else "extra" not in marker:
            try:
                fits = r.specifier.contains(version(r.name), prereleases=True)
                (right if fits else wrong).append(f"{r.name} {version(r.name)}" + ("" if fits else f" ({r.specifier})"))
            except PackageNotFoundError:
                wrong.append(f"{r.name} is missing")
    if extra:
        detail = f"{', '.join(wrong or right)}: {EXTRAS[extra]}"
        return Check(None if wrong else True, detail, f"pip install 'relaylab[{extra}]'")
    remedy = "pip install -c constraints.txt -e . (the tested versions)"
    return Check(not wrong, ", ".join(wrong) or f"{len(right)} packages in the declared versions", remedy)


def _memory(m: Machine) -> Check:
    enough = None if m.memory_free is None else m.memory_free >= 2 * GB
    detail = f"{gigabytes(m.memory)}, {gigabytes(m.memory_free)} of it free; {m.cores} cores"
    return Check(enough, detail, "the embedded pair and a notebook want 2 GB")


def _torch(m: Machine) -> Check:
    import torch

    where = "CPU only"
    if m.accelerator:
        cuda = torch.cuda.is_available()
        bf16 = "in hardware" if not cuda or torch.cuda.is_bf16_supported(including_emulation=False) else "emulated"
        memory = f"{gigabytes(m.device_memory)}, {gigabytes(m.device_free)} of it free"
        where = f"{torch.cuda.device_count() if cuda else 1} x {m.accelerator}, {memory}, bf16 {bf16}"
    threads = f"{torch.get_num_threads()} threads, 1 for models below 10 M parameters (--threads changes it)"
    return Check(True, f"{torch.__version__}, {where}; {threads}")


def _folder(runs: Path) -> Check:
    there = next(p for p in (runs, *runs.parents) if p.exists())
    free, writable = shutil.disk_usage(there).free, there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    detail = f"{runs} {'is' if writable else 'is not'} writable, {gigabytes(free)} free"
    return Check(writable and free >= 2 * GB, detail, "start in a folder of your own, on a disk with 2 GB free")


def _embedded() -> Check:
    files = WEIGHTS.rglob("*model.safetensors")
    sizes = {p.parent.relative_to(WEIGHTS).as_posix(): p.stat().st_size / 1e6 for p in files}
    missing = [name for name in ("student", "teacher", "warmup", "relay") if name not in sizes]
    detail = ", ".join([f"{len(sizes)} models, {sum(sizes.values()):.1f} MB", *(f"no {name}" for name in missing)])
    return Check(not missing, detail, f"relaylab zoo train {missing[0]}" if missing else "")


def find_browser() -> str | None:
    """The path of a Chromium or Chrome: ``BROWSER_PATH``, or the first that is installed."""
    return os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)


def _browser() -> Check:
    browser = find_browser()
    if browser and Path(browser).exists() and find_spec("kaleido"):
        return Check(True, f"kaleido with {browser}")
    remedy = "pip install kaleido; install Chromium or set BROWSER_PATH"
    return Check(None, "kaleido or Chromium is missing; figures stay interactive", remedy)


def _api(url: str) -> Check:
    from relaylab.relay.api_teacher import APITeacher

    with APITeacher(url, timeout=10, retries=1) as teacher:
        probe = teacher.probe()
    return Check(probe.reachable, str(probe), "start the server, or mend the address (it ends in /v1)")


def print_diagnosis(api: str | None = None, *, console: Console | None = None) -> bool:
    """Print all checks and estimates; True if nothing that is needed is missing."""
    machine = survey()
    here = Table("", "what", "found", "remedy", title="What is here", title_justify="left")
    checks = diagnose(api, machine=machine)
    for name, c in checks.items():
        here.add_row(MARKS[c.ok], *map(escape, (name, visible(c.detail, keep="\n"), "" if c.ok else c.remedy)))
    runs = Table("", "what", "takes", "free", "why", title="What it can run", title_justify="left")
    runs.caption = "the sums: python -m relaylab.memory NAME"
    for e in estimates(machine):
        runs.add_row(MARKS[e.ok], e.name, gigabytes(total(e.terms)), gigabytes(e.free), e.why)
    (console or Console()).print(here, runs)
    return all(check.ok is not False for check in checks.values())
