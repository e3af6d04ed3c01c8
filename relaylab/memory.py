"""The memory of decoding and of GRPO: weights, caches, adapters and the largest pieces of an update, in bytes.

An estimate for planning. Tests hold its pieces against the code that allocates them; it has not been measured on a GPU
yet. It says nothing about speed. docs/single-gpu.md explains the sums, and ``python -m relaylab.memory`` prints the
table there (with names of settings: their sums).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from relaylab.settings import nearest
from relaylab.training.configs import config_names, read_config

GB = 10**9
RUNTIME = 1.5 * GB  # Python, torch, a CUDA context and its workspaces
PROMPT = 256  # tokens of a question with suffix and template
CHUNK = 8192  # tokens of one forward pass of an engine (engine.engine.MAX_CHUNK_TOKENS)
RANK = 16  # of an adapter (training.policy_model.LORA)
TILE = (4096, 32768)  # tokens, vocabulary: what TRL's log-probability kernel works on at a time


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a causal language model of the Qwen3 architecture, as its config.json names them.

    >>> QWEN3["0.6B"].parameters, QWEN3["8B"].parameters
    (596049920, 8190735360)
    >>> QWEN3["8B"].cache  # bytes per token: keys and values, 36 layers, 8 heads of 128 numbers, 2 bytes each
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

    @property
    def _matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices: q, k, v, o, gate, up, down."""
        h, m = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)]

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding, and of the output matrix unless the two are tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        layer = sum(a * b for a, b in self._matrices) + 2 * self.hidden_size + 2 * self.head_dim
        return self.embeddings + self.num_hidden_layers * layer + self.hidden_size

    @property
    def four_bit(self) -> int:
        """Bytes with 4-bit weights, a scale of 8 bits for 64 weights and one of 32 for 256 scales; embeddings bf16."""
        bits = 4 + 8 / 64 + 32 / (64 * 256)
        return round((self.parameters - self.embeddings) * bits / 8 + self.embeddings * 2)

    @property
    def cache(self) -> int:
        """Bytes of KV cache per token, in bf16."""
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
    """One summand: what it is, the product that gives it, and its bytes."""

    what: str
    how: str
    size: float


def gigabytes(size: float | None) -> str:
    return "?" if size is None else f"{size / GB:.1f} GB"


def total(terms: Sequence[Term]) -> float:
    return sum(t.size for t in terms)


def arithmetic(terms: Sequence[Term]) -> str:
    """The sum, written out.

    >>> arithmetic([_product("student", (QWEN3["0.6B"].parameters, 2)), Term("runtime", "", RUNTIME)])
    'student 0.60 B x 2 B = 1.2 GB + runtime = 1.5 GB: 2.7 GB'
    """
    summands = [f"{t.what} {t.how}".strip() + f" = {gigabytes(t.size)}" for t in terms]
    return f"{' + '.join(summands)}: {gigabytes(total(terms))}"


def _product(what: str, *products: tuple[int, ...]) -> Term:
    """A sum of products; the last factor of each is bytes."""
    how = (" x ".join(f"{n / 1e9:.2f} B" if n >= 10**8 else f"{n:,}" for n in factors) + " B" for factors in products)
    return Term(what, " + ".join(how), sum(math.prod(factors) for factors in products))


def decoding(student: Shape, teacher: Shape, *, width: int = 2) -> list[Term]:
    """The memory of decoding one sequence of 2,048 tokens, with numbers of ``width`` bytes."""
    weights = [_product(role, (s.parameters, width)) for role, s in (("teacher", teacher), ("student", student))]
    caches = _product("KV caches", (2048, (student.cache + teacher.cache) * width // 2))
    return [*weights, caches, Term("runtime", "", RUNTIME)]


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """The memory of a GRPO run, per process, with gradient checkpointing."""

    student: Shape
    teacher: Shape | None  # None if it is behind an API
    rows: int  # rollouts decoded at a time
    micro: int  # rows of a forward and backward pass
    tokens: int  # prompt and completion of a row
    four_bit: bool = False  # the teacher's weights
    full: bool = False  # all weights are trained; else a LoRA adapter
    width: int = 2  # bytes of a student's weight; 4 means float32 throughout
    gpus: int = 1
    card: int = 0  # GB of each GPU

    @property
    def terms(self) -> list[Term]:
        """Weights, the larger of rollouts and update (they take turns), and the runtime.

        With LoRA the student is there twice, frozen under its adapter and merged for decoding. The adapter has weights,
        gradients, two moments and a frozen copy, in fp32. With full fine-tuning the rollouts use the model in training,
        which has gradients, two moments, a reference, and, on several GPUs, a buffer for gradients.
        """
        s, t, lora = self.student, self.teacher, self.student.lora(RANK)
        four_bit = [Term("teacher", f"{t.parameters / 1e9:.2f} B x 4.13 bits, embeddings 2 B", t.four_bit)] if t else []
        teacher = four_bit if self.four_bit or not t else [_product("teacher", (t.parameters, 2))]
        if self.full:
            student = [_product("student", (s.parameters, (5 if self.gpus == 1 else 6) * self.width))]
        else:
            student = [_product("student", (2, s.parameters, self.width))]
            student += [Term("LoRA", f"of rank {RANK}, {lora / 1e6:.1f} M x 20 B", lora * 20)]
        larger = max(self.rollouts, self.update, key=lambda term: term.size)
        return [*teacher, *student, larger, Term("runtime", "", RUNTIME)]

    @property
    def rollouts(self) -> Term:
        """The caches that the engines reserve, and the activations of the larger model's prefill."""
        largest, reserved = self.teacher or self.student, reserved_tokens(self.tokens)
        caches = [(reserved_rows(self.rows), reserved, self.student.cache * self.width // 2)]
        caches += [(reserved_rows(self.rows), reserved, self.teacher.cache)] if self.teacher else []
        return _product("rollouts", *caches, (CHUNK, 6 * largest.intermediate_size + 8 * largest.hidden_size))

    @property
    def update(self) -> Term:
        """One micro batch.

        Per token: a hidden state for each layer, 10 bytes (15 in float32) for each output of the layer that is
        recomputed, and a row of the attention mask. TRL's kernel makes the logits one tile at a time. If the output
        matrix is trained, it has one fp32 gradient from that kernel and another one as embedding.
        """
        s, w = self.student, self.width
        outputs = sum(out for _, out in s._matrices)
        token = w * s.num_hidden_layers * s.hidden_size + (10 if w == 2 else 15) * outputs + (w + 1) * self.tokens
        products = [(self.micro, self.tokens, token), (*TILE, w)]
        products += [(2, s.vocab_size, s.hidden_size, 4)] if self.full else []
        return _product("update", *products)


def reserved_rows(rows: int) -> int:
    """Rows that an engine reserves room for: it doubles when they are too few."""
    return max(4, 1 << (rows - 1).bit_length())


def reserved_tokens(tokens: int) -> int:
    """Tokens per row that an engine reserves room for, at most: it adds half when a row is too long."""
    return tokens + max(64, tokens // 2) + 1


def training_memory(settings: dict[str, Any], gpus: int = 1, card: int = 0) -> TrainingMemory:
    """The memory of the run that ``relaylab train`` makes of these settings.

    Models are known by their names (Qwen/Qwen3-8B, runs/Qwen3-0.6B-warm). A teacher of another name is behind an API.
    """
    (student,), teacher = ([s for n, s in QWEN3.items() if f"Qwen3-{n}" in settings[r]] for r in ("student", "teacher"))
    return TrainingMemory(
        student, teacher[0] if teacher else None, rows=settings["decode_batch_size"],
        micro=settings["per_device_train_batch_size"], tokens=PROMPT + settings["max_completion_length"],
        four_bit="quantize" in (settings.get("teacher_options") or {}), full=settings.get("full", False),
        width=4 if settings.get("dtype") == "float32" else 2, gpus=gpus, card=card,
    )  # fmt: skip


def shipped() -> dict[str, TrainingMemory]:
    """The shipped runs for Qwen3 by name. A name ends in its GPUs and the GB of each: 80gb, 4x80gb."""
    cards = {name: re.findall(r"qwen3/.*?(?:(\d+)x)?(\d+)gb", name) for name in config_names()}
    return {n: training_memory(read_config(n), int(c[0][0] or 1), int(c[0][1])) for n, c in cards.items() if c}


def memory_table() -> str:
    """The shipped settings for Qwen3, in GB, as a Markdown table."""
    head = ("settings", "teacher", "student", "LoRA", "rollouts", "update", "runtime", "peak", "of")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, run in shipped().items():
        sizes = {t.what: f"{t.size / GB:.1f}" for t in (*run.terms, run.rollouts, run.update)}
        ends = f"{total(run.terms) / GB:.1f}", f"{run.card}" if run.gpus == 1 else f"{run.card} each"
        lines.append(f"| {' | '.join((f'`{name}`', *(sizes.get(what, '') for what in head[1:7]), *ends))} |")
    return "\n".join(lines)


def main(names: Sequence[str]) -> None:
    """Print the sums of shipped settings by name, or the table of all."""
    runs = shipped()
    if unknown := [name for name in names if name not in runs]:
        raise SystemExit(f"no settings {unknown[0]!r}; {nearest(unknown[0], runs)}")
    print("\n".join(f"{name}: {arithmetic(runs[name].terms)}" for name in names) or memory_table())


if __name__ == "__main__":
    main(sys.argv[1:])
