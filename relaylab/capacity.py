"""What fits into a memory: models held against a machine, with the arithmetic shown so that a learner can redo it.

It counts bytes: weights, caches, adapters, the larger pieces of an update. It does not predict speed, and it is an
estimate: what a library keeps besides is in ``RUNTIME``, rounded up.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import psutil

GB = 10**9
RUNTIME = 1.5 * GB  # Python, torch, a CUDA context and its workspaces
TOKENS = 2048  # prompt and completion of one row
WEIGHTS = Path(__file__).parent / "models" / "weights"


def gigabytes(size: float | None) -> str:
    """
    >>> gigabytes(16_381_470_720), gigabytes(None)
    ('16.4 GB', '?')
    """
    return "?" if size is None else f"{size / GB:.1f} GB"


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
class Shape:
    """A causal language model of the Qwen3 architecture, in the names of its config.json.

    >>> QWEN3["0.6B"].parameters, QWEN3["8B"].parameters
    (596049920, 8190735360)
    >>> QWEN3["8B"].cache  # bytes a token: keys and values, 36 layers, 8 heads of 128, 2 bytes each
    147456
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool

    @classmethod
    def read(cls, config: Path) -> Shape:
        data = json.loads(config.read_text())
        return cls(**{f.name: data[f.name] for f in fields(cls)})

    @property
    def _matrices(self) -> list[tuple[int, int]]:
        """(in, out) of the matrices of one layer: q, k, v, o, gate, up, down."""
        h, m = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)]

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding, and of the output head unless they are one."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        layer = sum(a * b for a, b in self._matrices) + 2 * self.hidden_size + 2 * self.head_dim
        return self.embeddings + self.num_hidden_layers * layer + self.hidden_size

    @property
    def four_bit(self) -> int:
        """Bytes at 4 bits a weight and 32 for the scale of 64 of them; the embeddings stay in bf16."""
        return round((self.parameters - self.embeddings) * 4.5 / 8 + self.embeddings * 2)

    @property
    def cache(self) -> int:
        """Bytes of KV cache a token, in bf16."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all matrices of all layers."""
        return rank * self.num_hidden_layers * sum(a + b for a, b in self._matrices)


QWEN3 = {
    "0.6B": Shape(1024, 28, 16, 8, 128, 3072, 151936, True),
    "1.7B": Shape(2048, 28, 16, 8, 128, 6144, 151936, True),
    "8B": Shape(4096, 36, 32, 8, 128, 12288, 151936, False),
}


class Term(NamedTuple):
    """One summand: what it is, how its bytes come about, and how many they are."""

    what: str
    how: str
    size: float


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
        return sum(t.size for t in self.terms)

    @property
    def arithmetic(self) -> str:
        summands = (f"{t.what} {t.how}".strip() + f" = {gigabytes(t.size)}" for t in self.terms)
        return f"{' + '.join(summands)}: {gigabytes(self.need)}"


def estimates(machine: Machine | None = None) -> list[Estimate]:
    """What a machine can run: this one, or any other to plan with.

    >>> card = Machine(8, 64 * GB, 60 * GB, "a card of 24 GB", 24 * GB, 24 * GB)
    >>> [e.ok for e in estimates(card)[1:]]
    [True, True, False, True]
    """
    m = machine or survey()
    width = 4 if m.accelerator is None else 2  # models.zoo loads fp32 on a CPU, and what the checkpoint has on a GPU
    small, middle, large = QWEN3["0.6B"], QWEN3["1.7B"], QWEN3["8B"]
    grpo = "GRPO with LoRA, Qwen3-0.6B + Qwen3-8B"
    four_bit = _grpo(small, large, 16, 2, four_bit=True)
    return [
        _fit("embedded pair", m, _embedded(), on_cpu=True),
        _fit("Qwen3-0.6B + Qwen3-8B, decoding", m, _decoding(small, large, width)),
        _fit("Qwen3-1.7B + Qwen3-8B, decoding", m, _decoding(middle, large, width)),
        _fit(f"{grpo}, 64 rows", m, _grpo(small, large, 64, 8), trains=True),
        _fit(f"{grpo} in 4 bits (bitsandbytes), 16 rows", m, four_bit, trains=True),
    ]


def _fit(name: str, m: Machine, terms: list[Term], *, on_cpu: bool = False, trains: bool = False) -> Estimate:
    on_cpu = on_cpu or m.accelerator is None
    have = m.memory_free if on_cpu else m.device_free
    need = sum(t.size for t in terms)
    alone = sum(t.size for t in terms if t.what != "teacher")
    one = sum(t.size for t in terms if t.what == "KV caches")
    ok = False
    if not terms:
        why = "student and teacher are not both in relaylab/models/weights"
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


def _caches(rows: int, per_token: int, what: str = "KV caches") -> Term:
    return Term(what, f"{rows} x {TOKENS} tokens x {per_token:,} B", rows * TOKENS * per_token)


def _grpo(student: Shape, teacher: Shape, rows: int, micro: int, four_bit: bool = False) -> list[Term]:
    """Rollouts of ``rows`` and updates of ``micro`` rows take turns, so the larger counts; the teacher always does.

    The student is there twice: frozen under its adapter, and merged for decoding. The adapter has weights, gradients
    and two moments in fp32. An update with gradient checkpointing holds the logits (bf16, fp32 and their gradient) and
    one hidden state a layer.
    """
    each, size = ("4.5 bits, embeddings 2 B", teacher.four_bit) if four_bit else ("2 B", teacher.parameters * 2)
    rollout = _caches(rows, student.cache + teacher.cache, "rollouts")
    per_token = 10 * student.vocab_size + 2 * student.num_hidden_layers * student.hidden_size
    return [
        Term("teacher", f"{teacher.parameters / 1e9:.2f} B x {each}", size),
        Term("student", f"2 x {student.parameters / 1e9:.2f} B x 2 B", student.parameters * 4),
        Term("LoRA of rank 16", f"{student.lora(16) / 1e6:.1f} M x 16 B", student.lora(16) * 16),
        max(rollout, _caches(micro, per_token, "update"), key=lambda t: t.size),
        Term("runtime", "", RUNTIME),
    ]
