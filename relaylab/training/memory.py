"""What a training run takes in memory: models in the names of their config.json, and GRPO with them.

It counts bytes: weights, caches, adapters, the larger pieces of an update. It does not predict speed, and it is an
estimate: what a library keeps besides is in ``RUNTIME``, rounded up. docs/single-gpu.md explains the sums, and
tests/test_configs.py holds their larger pieces against the code that makes them. No measurement on a GPU stands behind
them yet.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

GB = 10**9
RUNTIME = 1.5 * GB  # Python, torch, a CUDA context and its workspaces
PROMPT = 256  # tokens of a question with suffix and template
KEPT = 8  # closed rows whose caches a teacher in this process keeps (decoding.pair.KEEP)
CHUNK = 8192  # tokens of one forward pass of an engine (models.engine.MAX_CHUNK_TOKENS)
RANK = 16  # of an adapter (training.policy.LORA)
TILE = (4096, 32768)  # tokens, vocabulary that TRL's log-probability kernel works on at a time
CONFIGS = Path(__file__).parent / "configs"


def gigabytes(size: float | None) -> str:
    """
    >>> gigabytes(16_381_470_720), gigabytes(None)
    ('16.4 GB', '?')
    """
    return "?" if size is None else f"{size / GB:.1f} GB"


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
        """Bytes at 4 bits a weight, 8 for the scale of 64 weights and 32 for that of 256 scales (double quantisation);
        the embeddings stay in bf16."""
        bits = 4 + 8 / 64 + 32 / (64 * 256)
        return round((self.parameters - self.embeddings) * bits / 8 + self.embeddings * 2)

    @property
    def cache(self) -> int:
        """Bytes of KV cache a token, in bf16."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2

    @property
    def outputs(self) -> int:
        """Numbers that the matrices of one layer put out a token."""
        return sum(out for _, out in self._matrices)

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all matrices of all layers."""
        return rank * self.num_hidden_layers * sum(a + b for a, b in self._matrices)


ROLES = ("student", "teacher")
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


def total(terms: Iterable[Term]) -> float:
    return sum(t.size for t in terms)


def arithmetic(terms: Iterable[Term]) -> str:
    summands = (f"{t.what} {t.how}".strip() + f" = {gigabytes(t.size)}" for t in terms)
    return f"{' + '.join(summands)}: {gigabytes(total(terms))}"


@dataclass(frozen=True, slots=True)
class Training:
    """A GRPO run as one process of it sees it, with gradient checkpointing: what decides its memory.

    teacher: None where it is behind an API. rows: rollouts decoded at a time. micro: rows of a forward and backward
    pass. tokens: prompt and completion of a row. width: bytes of a student's weight; 4 is float32 throughout.
    """

    student: Shape
    teacher: Shape | None
    rows: int
    micro: int
    tokens: int
    four_bit: bool = False
    full: bool = False
    width: int = 2
    gpus: int = 1
    card: int = 0  # GB that a GPU has by its name

    @property
    def terms(self) -> list[Term]:
        """Rollouts and updates take turns, so the larger counts; weights always do.

        With LoRA the student is there twice: frozen under its adapter, and merged for decoding. The adapter has
        weights, gradients, two moments and a frozen copy in fp32. With full fine-tuning rollouts use the model in
        training, which has gradients, two moments, a reference, and between GPUs a buffer for gradients.
        """
        s, t, w, each = self.student, self.teacher, self.width, (5 if self.gpus == 1 else 6) * self.width
        found = []
        if t and self.four_bit:
            found = [Term("teacher", f"{t.parameters / 1e9:.2f} B x 4.13 bits, embeddings 2 B", t.four_bit)]
        elif t:
            found = [Term("teacher", f"{t.parameters / 1e9:.2f} B x 2 B", t.parameters * 2)]
        if self.full:
            found += [Term("student", f"{s.parameters / 1e9:.2f} B x {each} B", s.parameters * each)]
        else:
            lora = s.lora(RANK)
            found += [Term("student", f"2 x {s.parameters / 1e9:.2f} B x {w} B", s.parameters * 2 * w)]
            found += [Term("LoRA", f"of rank {RANK}, {lora / 1e6:.1f} M x 20 B", lora * 20)]
        return [*found, max(self.rollouts, self.update, key=lambda term: term.size), Term("runtime", "", RUNTIME)]

    @property
    def rollouts(self) -> Term:
        """The caches that the engines reserve, and the activations of the larger model's prefill."""
        largest = self.teacher or self.student
        caches = [(places(self.rows), columns(self.tokens), self.student.cache * self.width // 2)]
        if self.teacher:
            caches += [(places(self.rows + KEPT), columns(self.tokens), self.teacher.cache)]
        return _products("rollouts", *caches, (CHUNK, 6 * largest.intermediate_size + 8 * largest.hidden_size))

    @property
    def update(self) -> Term:
        """One micro batch, and the caches that the teacher keeps meanwhile.

        A token has a hidden state a layer; of the one layer that is run again, 10 bytes a matrix output (15 in float32;
        counted on tensors, tests/test_configs.py); and a row of the attention mask. Logits are never there as a whole:
        TRL's kernel makes a tile of them at a time. (The sum that stood here before had 10 bytes a token and entry of
        the vocabulary: 3 GB a row.) A trained output matrix has a gradient in fp32 from that kernel, and another one
        as embedding.
        """
        s, w = self.student, self.width
        token = w * s.num_hidden_layers * s.hidden_size + (10 if w == 2 else 15) * s.outputs + (w + 1) * self.tokens
        found = [(self.micro, self.tokens, token), (*TILE, w)]
        if self.full:
            found += [(2, s.vocab_size, s.hidden_size, 4)]
        if self.teacher:
            found += [(KEPT, columns(self.tokens), self.teacher.cache)]
        return _products("update", *found)


def _products(what: str, *products: tuple[int, ...]) -> Term:
    """A sum of products; the last factor of each is bytes."""
    how = (" x ".join(f"{n:,}" for n in factors) + " B" for factors in products)
    return Term(what, " + ".join(how), sum(math.prod(factors) for factors in products))


def places(rows: int) -> int:
    """Rows that an engine has room for: it doubles when there are too many."""
    return max(4, 1 << (rows - 1).bit_length())


def columns(tokens: int) -> int:
    """Tokens that an engine has room for in every place, at most: it adds half when a row is too long."""
    return tokens + max(64, tokens // 2) + 1


def training(settings: dict[str, Any], gpus: int = 1, card: int = 0) -> Training:
    """The run that ``relaylab train`` makes of these settings.

    Models are known by their names: Qwen/Qwen3-8B, runs/Qwen3-0.6B-warm. ValueError for another student; a teacher of
    another name is one behind an API.
    """
    (student,), teacher = ([s for size, s in QWEN3.items() if f"Qwen3-{size}" in settings[role]] for role in ROLES)
    return Training(
        student,
        teacher[0] if teacher else None,
        rows=settings["batch_size"],
        micro=settings["micro_batch"],
        tokens=PROMPT + settings["limits"]["max_tokens"],
        four_bit="quantize" in settings.get("teacher_options", {}),
        full=settings.get("full", False),
        width=4 if settings.get("dtype") == "float32" else 2,
        gpus=gpus,
        card=card,
    )


def shipped() -> dict[str, Training]:
    """The shipped settings for Qwen3 by name; a name ends in its GPUs and what each has: 80gb, 4x80gb."""
    found = {}
    for file in sorted((CONFIGS / "qwen3").glob("*.yaml")):
        gpus, card = re.search(r"(?:(\d+)x)?(\d+)gb", file.stem).groups()
        found[f"qwen3/{file.stem}"] = training(yaml.safe_load(file.read_text()), int(gpus or 1), int(card))
    return found


def table() -> str:
    """The shipped settings for Qwen3, in GB, as a Markdown table."""
    head = ("settings", "teacher", "student", "LoRA", "rollouts", "update", "runtime", "peak", "of")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, run in shipped().items():
        sizes = {t.what: t.size for t in (*run.terms, run.rollouts, run.update)}
        cells = [f"{sizes[what] / GB:.1f}" if what in sizes else "" for what in head[1:7]]
        cells += [f"{total(run.terms) / GB:.1f}", f"{run.card}" if run.gpus == 1 else f"{run.card} each"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
