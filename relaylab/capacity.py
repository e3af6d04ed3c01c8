"""What fits into a memory: models held against a machine, with the arithmetic shown so that a learner can redo it.

How many bytes a model, a cache and an update have is in ``training/memory.py``. ``python -m relaylab.capacity`` prints
the shipped settings for Qwen3 (``training/configs``) as a table, and with names of theirs as sums.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from relaylab.training.memory import GB, QWEN3, RUNTIME, Shape, Term, arithmetic, gigabytes, shipped, table, total

TOKENS = 2048  # prompt and completion of one row, decoding
WEIGHTS = Path(__file__).parent / "zoo" / "weights"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the estimates need to know, in bytes; None where the machine does not tell."""

    cores: int
    memory: int | None
    memory_free: int | None
    accelerator: str | None = None
    device_memory: int | None = None
    device_free: int | None = None


def survey() -> Machine:
    """This machine, within the limits of a container where it runs in one. Never raises."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, *_memory(), *_accelerator())


def _memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int | None]:
    """Total and free memory. psutil sees the host; a container's limit is in its cgroup."""
    try:
        host = psutil.virtual_memory()
    except Exception:  # a /proc that is locked away, an unknown platform
        return None, None
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return host.total, host.available
    return min(host.total, limit), max(0, min(host.available, limit - used))


def _accelerator() -> tuple[str | None, int | None, int | None]:
    """Name, total and free memory of the first accelerator; three times None without one."""
    try:
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            return torch.cuda.get_device_name(), total, free
        if torch.backends.mps.is_available():
            total = torch.mps.recommended_max_memory()
            return "Apple GPU (MPS)", total, total - torch.mps.current_allocated_memory()
    except Exception:  # no torch, or a driver that does not fit it: no accelerator to plan with
        pass
    return None, None, None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A configuration held against the free memory of ``device``. ``ok`` is None where that is not known."""

    name: str
    device: str
    terms: tuple[Term, ...]
    have: int | None
    ok: bool | None
    why: str

    @property
    def need(self) -> float:
        return total(self.terms)

    @property
    def arithmetic(self) -> str:
        return arithmetic(self.terms)


def estimates(machine: Machine | None = None) -> list[Estimate]:
    """What a machine can run: this one, or any other to plan with. Of the shipped settings, those for one GPU.

    >>> card = Machine(8, 64 * GB, 60 * GB, "a card of 24 GB", 24 * GB, 24 * GB)
    >>> [e.name for e in estimates(card) if not e.ok]
    ['GRPO, qwen3/06b-80gb', 'GRPO, qwen3/17b-80gb']
    """
    m = machine or survey()
    width = 4 if m.accelerator is None else 2  # models.zoo loads fp32 on a CPU, and what the checkpoint has on a GPU
    small, middle, large = QWEN3["0.6B"], QWEN3["1.7B"], QWEN3["8B"]
    return [
        _fit("embedded pair", m, _embedded(), on_cpu=True),
        _fit("Qwen3-0.6B + Qwen3-8B, decoding", m, _decoding(small, large, width)),
        _fit("Qwen3-1.7B + Qwen3-8B, decoding", m, _decoding(middle, large, width)),
        *(_fit(f"GRPO, {name}", m, run.terms, trains=True) for name, run in shipped().items() if run.gpus == 1),
    ]


def _fit(name: str, m: Machine, terms: list[Term], *, on_cpu: bool = False, trains: bool = False) -> Estimate:
    on_cpu = on_cpu or m.accelerator is None
    have = m.memory_free if on_cpu else m.device_free
    need, alone = total(terms), total(t for t in terms if t.what != "teacher")
    one = total(t for t in terms if t.what == "KV caches")
    ok = False
    if not terms:
        why = "student and teacher are not both in relaylab/zoo/weights"
    elif trains and on_cpu:
        why = "made for a GPU, and there is none"
    elif have is None:
        ok, why = None, "how much memory is free is not known"
    elif need > have:
        fits = "and fits" if alone <= have else "and does not fit either"
        why = (
            f"{gigabytes(need - have)} short; with its teacher behind an API it takes at most {gigabytes(alone)} {fits}"
        )
    else:
        ok, why = True, "fits"
        if one:
            why += f", up to {int((have - need) // one) + 1:,} rows at once"
        if on_cpu and need > 4 * GB:
            why += "; slow, as every token reads all weights of its model"
    return Estimate(name, "CPU" if on_cpu else m.accelerator, tuple(terms), have, ok, why)


def _embedded() -> list[Term]:
    """The pair in fp32, as a CPU runs it; nothing where it is not there."""
    try:
        pair = {role: Shape.read(WEIGHTS / role / "config.json") for role in ("teacher", "student")}
    except (OSError, KeyError, ValueError):
        return []
    weights = [Term(role, f"{s.parameters / 1e6:.2f} M x 4 B", s.parameters * 4) for role, s in pair.items()]
    return [*weights, _caches(1, 2 * sum(s.cache for s in pair.values())), Term("runtime", "", RUNTIME)]


def _decoding(student: Shape, teacher: Shape, width: int) -> list[Term]:
    """``width``: bytes a number, in weights and caches."""
    return [
        Term("teacher", f"{teacher.parameters / 1e9:.2f} B x {width} B", teacher.parameters * width),
        Term("student", f"{student.parameters / 1e9:.2f} B x {width} B", student.parameters * width),
        _caches(1, (student.cache + teacher.cache) * width // 2),
        Term("runtime", "", RUNTIME),
    ]


def _caches(rows: int, per_token: int) -> Term:
    return Term("KV caches", f"{rows} x {TOKENS} tokens x {per_token:,} B", rows * TOKENS * per_token)


def main(names: Sequence[str]) -> None:
    for name in names:
        print(f"{name}: {arithmetic(shipped()[name].terms)}")
    if not names:
        print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
