"""``relaylab doctor``: what this machine has, what it can run, and what to do about the rest.

``diagnose`` never raises: a check that breaks is a check that failed, and says how. It writes nothing, and nothing
leaves the machine except to an API server whose address was given. ``capacity.py`` works out what fits into memory.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from relaylab.capacity import GB, WEIGHTS, Machine, estimates, gigabytes, survey

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# The packages whose versions decide results or file formats; the rest is plumbing.
KEY_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "trl", "peft", "accelerate", "datasets", "openai"),
    *("math-verify", "plotly", "papermill", "jupyterlab", "ipywidgets"),
)
EMBEDDED = ("student", "teacher", "warm", "relay")  # from scratch, from scratch, after stage 1, after stage 2
# module -> (the extra that brings it, what for)
EXTRAS = {
    "ray": ("ray", "sweeps on a cluster"),
    "bitsandbytes": ("quant", "a teacher in 4 bits on a GPU"),
    "vllm": ("vllm", "a fast teacher server on a GPU"),
    "xllamacpp": ("api", "a real API teacher on a CPU"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``ok``: True, False (something will not work) or None (optional and not there, or not known)."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def diagnose(api: str | None = None, *, runs: str | Path = "runs", machine: Machine | None = None) -> list[Check]:
    """Look at everything. ``api``: the address of an API teacher to ask; ``runs``: the folder that results go to.

    >>> [c.name for c in diagnose() if c.name == "python"]
    ['python']
    """
    runs, machine = Path(runs).absolute(), machine or survey()
    probes: dict[str, Callable[[], Check]] = {
        "python": _python,
        "memory": lambda: _memory(machine),
        "disk": lambda: _disk(runs),
        "runs folder": lambda: _runs(runs),
        "torch": lambda: _torch(machine),
        "packages": _packages,
        "embedded models": _embedded,
        "jupyter kernel": _kernel,
        "static figures": _browser,
        **{module: lambda module=module: _extra(module) for module in EXTRAS},
    }
    if api:
        probes["API teacher"] = lambda: _api(api)
    return [_guard(name, probe) for name, probe in probes.items()]


def _guard(name: str, probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _python() -> Check:
    detail = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    return Check("python", sys.version_info >= (3, 11), detail, "Python 3.11 or newer")


def _memory(m: Machine) -> Check:
    detail = f"{gigabytes(m.memory)}, {gigabytes(m.memory_free)} of it free; {m.cores} cores"
    enough = None if m.memory_free is None else m.memory_free >= 2 * GB
    return Check("memory", enough, detail, "the embedded pair and a notebook want 2 GB")


def _disk(runs: Path) -> Check:
    free = shutil.disk_usage(_existing(runs)).free
    return Check("disk", free >= 2 * GB, f"{gigabytes(free)} free", "an installation takes about 2 GB")


def _runs(runs: Path) -> Check:
    """Nothing is made: a folder that is not there yet is writable if its nearest parent is."""
    where = _existing(runs)
    ok = where.is_dir() and os.access(where, os.W_OK | os.X_OK)
    detail = f"{runs}{'' if where == runs else ' (not made yet)'} {'is' if ok else 'is not'} writable"
    return Check("runs folder", ok, detail, "start in a folder of your own")


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _torch(m: Machine) -> Check:
    import torch

    if m.accelerator is None:
        detail = f"CPU only, {torch.get_num_threads()} threads, bf16 {_cpu_bf16()}"
    else:
        cuda = torch.cuda.is_available()
        bf16 = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
        count = f"{torch.cuda.device_count()} x " if cuda and torch.cuda.device_count() > 1 else ""
        memory = f"{gigabytes(m.device_memory)}, {gigabytes(m.device_free)} of it free"
        detail = f"{count}{m.accelerator}, {memory}, bf16 {'in hardware' if bf16 else 'emulated'}"
    return Check("torch", True, f"{torch.__version__}: {detail}")


def _cpu_bf16() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "not known"
    return "in hardware" if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags) else "emulated"


def _packages() -> Check:
    """Installed versions against the tested ones, where constraints.txt is at hand: a wheel does not carry it."""
    lines = CONSTRAINTS.read_text().splitlines() if CONSTRAINTS.exists() else []
    tested = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    found = {name: _version(name) for name in KEY_PACKAGES}
    remedy = "pip install -c constraints.txt -e ."
    if missing := [name for name, v in found.items() if v is None]:
        return Check("packages", False, f"missing: {', '.join(missing)}", remedy)
    # A local label (+cpu, +cu130) is the same release built for other hardware.
    other = [name for name, v in found.items() if v.split("+")[0] != tested.get(name, v.split("+")[0])]
    if other:
        detail = ", ".join(f"{name} {found[name]} (tested: {tested[name]})" for name in other)
        return Check("packages", None, f"not as tested: {detail}", remedy)
    return Check("packages", True, f"{len(found)} key packages {'as tested' if tested else 'installed'}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _embedded() -> Check:
    found = {p.parent.name: p.stat().st_size / 1e6 for p in sorted(WEIGHTS.glob("*/*model.safetensors"))}
    missing = [name for name in EMBEDDED if name not in found]
    detail = ", ".join([f"{name} {size:.1f} MB" for name, size in found.items()] + [f"no {name}" for name in missing])
    return Check("embedded models", not missing, detail, f"relaylab zoo train {missing[0]}" if missing else "")


def _kernel() -> Check:
    """Jupyter offers the kernel python3 wherever it can import ipykernel."""
    ok = find_spec("ipykernel") is not None
    return Check("jupyter kernel", ok, "python3" if ok else "ipykernel is missing", "pip install ipykernel")


def _browser() -> Check:
    named = os.environ.get("BROWSER_PATH", "")
    browser = named if named and Path(named).exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser and find_spec("kaleido"):
        return Check("static figures", True, f"kaleido with {browser}")
    detail = "kaleido is missing" if browser else "no Chromium found; figures stay interactive"
    return Check("static figures", None, detail, "pip install kaleido; install Chromium or set BROWSER_PATH")


def _extra(module: str) -> Check:
    extra, purpose = EXTRAS[module]
    there = find_spec(module) is not None
    detail = f"{_version(module) or 'installed'}: {purpose}" if there else f"not installed: {purpose}"
    return Check(module, True if there else None, detail, f"pip install 'relaylab[{extra}]'")


def _api(url: str) -> Check:
    from relaylab.relay.api_teacher import APITeacher

    with APITeacher(url, timeout=10, retries=1) as teacher:
        found = teacher.probe()
    return Check("API teacher", found.reachable, str(found), "start the server, or mend the address (it ends in /v1)")


def report(api: str | None = None, *, runs: str | Path = "runs", console: Console | None = None) -> bool:
    """Print what was found and what can be run; True if nothing that is needed is missing."""
    console, machine = console or Console(), survey()
    signs = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]-[/]"}

    table = Table("", "what", "found", "remedy", title="What is here", title_justify="left")
    checks = diagnose(api, runs=runs, machine=machine)
    for c in checks:
        table.add_row(signs[c.ok], *map(escape, (c.name, c.detail, "" if c.ok else c.remedy)))
    console.print(table)

    table = Table("", "what", "takes", "free", "why", title="What it can run", title_justify="left")
    configurations = estimates(machine)
    for e in configurations:
        takes, free = gigabytes(e.need) if e.terms else "?", f"{gigabytes(e.have)} on {e.device}"
        table.add_row(signs[e.ok], *map(escape, (e.name, takes, free, e.why)))
    console.print(table)
    for e in configurations:
        if e.terms:
            console.print(f"{escape(e.name)}: [dim]{escape(e.arithmetic)}[/]", highlight=False)
    return all(c.ok is not False for c in checks)
