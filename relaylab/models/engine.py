"""Rows of one causal language model, each with its own key-value cache that outlives hand-offs.

A row is a growing list of token ids. ``extend`` appends tokens, ``forward`` runs the model over whatever a set of rows
has not been run over yet, and no token is ever run twice. Rows can be paused (leave them out of the next ``forward``),
cut back, forked and closed; who else is in the batch makes no difference to a row.

The caches of all rows live in one tensor a layer, (slots, kv heads, columns, head dim). The rows of a forward pass are
first swapped to the front, so that attention reads their caches in place. Ragged rows are right-aligned in the chunk
that is fed; the padding before them writes to a spare last column that no row ever sees.

What it does not do: sample (``sampling.py``), know about calls (``decoding``), or hold models with sliding windows,
recurrent layers or encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from relaylab.models import decoder
from relaylab.models.cuda_graphs import StepGraphs
from relaylab.models.front_cache import FrontCache
from relaylab.models.kernels import ATTENTION, FEW, FewTokens
from relaylab.models.text import TokenText

MAX_CHUNK_TOKENS = 8192  # tokens of one forward pass, padding included: bounds the memory of a prefill


@dataclass(slots=True, eq=False)
class Row:
    """A row of an engine. ``ids`` are all its tokens; the first ``cached`` of them have been run.

    ``slot`` is its place in the caches, -1 once it has none; ``opening`` what it was opened with.
    """

    slot: int
    ids: list[int] = field(default_factory=list)
    cached: int = 0
    opening: tuple[int, ...] = ()

    @property
    def pending(self) -> int:
        return len(self.ids) - self.cached


class Engine:
    """A batched engine over one model.

    ``forwarded`` counts the tokens that were run (padding not counted), ``passes`` the forward passes. ``keep`` closed
    rows stay in memory, the latest first out last, and lend their caches to new rows with the same beginning: worth
    having where a person tries one question many times, a waste in training.

    Raises ValueError for a model whose cache is not one key and value a token in every layer, or whose logits through
    the engine are not the model's own: a few tokens are tried at once.

    A model may be trained between forward passes, in training mode too; its rows are stale once the weights have
    changed: close the open ones and ``forget`` the kept ones.

    graphs: on a GPU, decode by CUDA graphs (``cuda_graphs.py``); the same tokens, several times as fast.

    >>> from relaylab.models.zoo import load_engine
    >>> engine = load_engine("student")
    >>> row = engine.open(engine.prompt_ids([{"role": "user", "content": "What is 2+3?"}]))
    >>> engine.forward([row]).shape == (1, 1, engine.vocabulary)
    True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        keep: int = 0,
        name: str = "",
        graphs: bool = True,
    ):
        config = model.config.get_text_config()
        decoder.check_attention(model, config)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.text = TokenText(tokenizer)
        self.name, self.keep = name, keep
        self._config = config
        self.vocabulary = config.vocab_size
        self.context = config.max_position_embeddings
        self.device, self.dtype = model.device, model.dtype
        self._large = self.device.type == "cpu" and self.dtype == torch.float32 and config.hidden_size >= 512
        self.end_ids = _end_ids(model, tokenizer)
        known = torch.from_numpy(self.text.known[: self.vocabulary])
        unknown = nn.functional.pad(~known, (0, self.vocabulary - len(known)), value=True).to(self.device)
        self._unknown = unknown if unknown.any() else None  # the ids without a token: padding of the embedding matrix
        self._heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._keys: list[Tensor] = [torch.empty(0)] * config.num_hidden_layers
        self._values: list[Tensor] = [torch.empty(0)] * config.num_hidden_layers
        self._cache = FrontCache(self._keys, self._values)
        self._slots = self._columns = 0  # the room in every layer; the last column is the spare one
        self._at: list[Row | None] = []  # the row in each slot
        self._free: set[int] = set()  # the slots without one
        self._kept: dict[Row, None] = {}  # closed rows, the oldest first
        self._opened: dict[tuple[int, ...], Row] = {}  # by its opening, a row that was run and may lend its caches
        self.forwarded = self.passes = 0
        self._hooks = decoder.hooks(model)
        self._flat = decoder.is_flat(model)
        able = graphs and self._flat and self.device.type == "cuda" and not getattr(model, "is_quantized", False)
        self._graphs = StepGraphs(model, self._cache) if able else None
        if self._flat:
            with suppress(AttributeError, IndexError, TypeError, RuntimeError):  # some part of it is another than known
                if self._error() <= 1:
                    return
            self._flat = False
        if not (error := self._error()) <= 1:
            kind = type(model).__name__
            raise ValueError(f"relaylab's engine cannot run {kind}: logits differ {error:.2g} times what rounding may")

    @torch.inference_mode()
    def _error(self) -> float:
        """How far a prefill and one token more are from the model's own pass, by what rounding may explain."""
        ids = self.text.encode("What is 12 + 34? It is 46.")[: min(12, self.context)]
        row = self.open(ids[:-1])
        try:
            self.forward([row])
            self.extend(row, ids[-1:])
            ours = self.forward([row])[0, -1]
        finally:
            self.close(row)
            self.forget()
            self.forwarded = self.passes = 0
        theirs = self.model(torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1].float()
        difference = (ours - theirs)[ours > -torch.inf].abs().max().item()
        allowed = (0.002 if self.dtype == torch.float32 else 0.05) * theirs.abs().max().item()
        return difference / max(allowed, 1e-30)

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The chat template applied, ready for an answer, in non-thinking mode where a model has one."""
        options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
        text = self.tokenizer.apply_chat_template(messages, **options)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # Rows -------------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """The open rows, kept ones not included."""
        return [r for r in self._at if r is not None and r not in self._kept]

    def open(self, ids: Sequence[int]) -> Row:
        """A new row; nothing is run yet. A kept row with the same beginning lends its cache."""
        if not ids:
            raise ValueError("a row needs at least one token to begin with")
        lender = max(self._kept, key=lambda r: _common(r.ids[: r.cached], ids), default=None)
        shared = min(_common(lender.ids[: lender.cached], ids), len(ids) - 1) if lender else 0
        row = self.fork(lender, shared) if shared else self._place()
        row.ids, row.opening = list(ids), tuple(ids)
        return row

    def extend(self, row: Row, ids: Sequence[int]) -> None:
        """Append tokens to a row; they are run in its next forward pass."""
        row.ids += ids

    def fork(self, row: Row, length: int | None = None) -> Row:
        """A new row with the first ``length`` tokens of another, caches copied, not run again."""
        length = len(row.ids) if length is None else length
        if not 0 <= length <= len(row.ids):
            raise ValueError(f"a row of {len(row.ids)} tokens has no first {length}")
        new = self._place()
        new.ids, new.cached = row.ids[:length], min(length, row.cached)
        for tensor in (*self._keys, *self._values):
            tensor[new.slot, :, : new.cached] = tensor[row.slot, :, : new.cached]
        return new

    def crop(self, row: Row, length: int) -> None:
        """Cut a row back to its first ``length`` tokens."""
        del row.ids[length:]
        row.cached = min(row.cached, length)

    def close(self, row: Row) -> None:
        """Give the row's place away: at once, or with ``keep`` once more rows than that have been closed after it."""
        if row.slot >= 0:
            self._kept[row] = None
            self._trim(self.keep)

    def forget(self) -> None:
        """Drop the kept rows, because the weights have changed or their memory is needed."""
        self._trim(0)

    def _trim(self, keep: int) -> None:
        while len(self._kept) > keep:
            row = next(iter(self._kept))
            del self._kept[row]
            self._put(row.slot, None)
            row.slot, row.cached = -1, 0
            if self._opened.get(row.opening) is row:
                del self._opened[row.opening]
        self._shrink()

    def _place(self) -> Row:
        if not self._free:
            self._free.add(len(self._at))
            self._at.append(None)
        row = Row(min(self._free))
        if row.slot >= self._slots:
            self._allocate(max(4, 2 * row.slot), self._columns)
        self._put(row.slot, row)
        return row

    def _put(self, slot: int, row: Row | None) -> None:
        self._at[slot] = row
        (self._free.add if row is None else self._free.discard)(slot)
        if row is not None:
            row.slot = slot

    @torch.inference_mode(False)
    def _allocate(self, slots: int, columns: int) -> None:
        """Make this much room, keeping what fits; where memory runs out on the way, the smaller room of both remains.

        Ordinary tensors, so that ``fork`` may write to them in any mode.
        """
        if self._graphs is not None:
            self._graphs.clear()
        self._slots, self._columns = s, c = min(slots, self._slots), min(columns, self._columns)
        for tensors in (self._keys, self._values):
            for i, old in enumerate(tensors):
                new = torch.zeros(slots, self._heads, columns, self._size, dtype=self.dtype, device=self.device)
                if s and c:
                    new[:s, :, :c] = old[:s, :, :c]
                tensors[i] = new
        self._slots, self._columns = slots, columns

    def _enough(self, length: int) -> int:
        """Columns for rows of a length: with some to grow, within the context, and the spare one."""
        return min(length + max(64, length // 2), self.context) + 1

    def _shrink(self) -> None:
        """Give memory back where a quarter of it would do."""
        held = [r for r in self._at if r is not None]
        columns = self._enough(max(len(r.ids) for r in held)) if held else 0
        if 4 * len(held) * columns <= self._slots * self._columns:
            self._to_front(held)
            del self._at[len(held) :]
            self._free.clear()
            self._allocate(len(held), columns)

    def _to_front(self, rows: Sequence[Row]) -> None:
        """Swap the rows that are not among the first slots with what is there and not of them."""
        behind = [r.slot for r in rows if r.slot >= len(rows)]
        if not behind:
            return
        wanted = set(rows)
        free = [s for s in range(len(rows)) if self._at[s] not in wanted]
        moved = [self._at[s] for s in behind + free]
        columns = max(r.cached for r in moved if r is not None)
        to, source = torch.tensor([free + behind, behind + free], device=self.device)
        for tensor in (*self._keys, *self._values):
            tensor[to, :, :columns] = tensor[source, :, :columns]
        for slot, row in zip(free + behind, moved):
            self._put(slot, row)

    # Forward passes ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], *, positions: int = 1) -> Tensor:
        """Run the rows' pending tokens, at least one each.

        Returns float32 logits (B, ``positions``, vocabulary) of each row's last tokens, right-aligned: ``[:, -1]`` is
        the distribution after the last token. Where a row had fewer pending tokens, its first entries mean nothing.
        """
        if not all(r.pending and r.slot >= 0 for r in rows):
            raise ValueError("a row that is closed or has no pending tokens has nothing to run; extend it first")
        if (longest := max(len(r.ids) for r in rows)) > self.context:
            raise ValueError(f"a row of {longest} tokens does not fit the model's context of {self.context}")
        if len(set(rows)) != len(rows):
            raise ValueError("a row is named twice")
        # Only where the positions asked for lie behind what would be copied.
        self._share([r for r in rows if r.cached < len(r.opening) - 1 and positions <= 1 + len(r.ids) - len(r.opening)])
        groups = _groups(rows)
        parts = [self._run([rows[i] for i in group], positions) for group in groups]
        order = [i for group in groups for i in group]
        return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.tensor(order, device=self.device).argsort()]

    def _share(self, fresh: list[Row]) -> None:
        """Run an opening that several rows have (the rollouts of a group) once, but for its last token, and copy it."""
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in fresh:
            if tuple(row.ids[: len(row.opening)]) == row.opening:
                alike.setdefault(row.opening, []).append(row)
        first = {}
        for opening, rows in alike.items():
            lender = self._opened.get(opening)
            if lender is None or lender.cached < len(opening) - 1 or tuple(lender.ids[: len(opening)]) != opening:
                lender = self._opened[opening] = rows.pop()
                if rows:
                    first[lender] = lender.ids[len(opening) - 1 :]
                    del lender.ids[len(opening) - 1 :]
        leading = list(first)
        try:
            for group in _groups(leading) if leading else ():
                self._run([leading[i] for i in group], 1)
        finally:  # also where memory runs out: a row keeps its tokens
            for lender, rest in first.items():
                lender.ids += rest
        for opening, rows in alike.items():
            shared, source = len(opening) - 1, self._opened[opening].slot
            slots = torch.tensor([r.slot for r in rows], dtype=torch.long, device=self.device)
            for tensor in (*self._keys, *self._values) if rows else ():
                tensor[slots, :, :shared] = tensor[source, :, :shared]
            for row in rows:
                row.cached = shared

    def _run(self, rows: list[Row], positions: int) -> Tensor:
        """All pending tokens of a group: one pass, or for a row alone as many as its tokens need."""
        parts = []
        while rows[0].pending:
            parts.append(self._pass(rows, positions))
        logits = parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, -positions:]
        if self._unknown is not None:
            logits.masked_fill_(self._unknown, -torch.inf)
        if logits.shape[1] < positions:
            logits = nn.functional.pad(logits, (0, 0, positions - logits.shape[1], 0))
        return logits

    def _pass(self, rows: list[Row], positions: int) -> Tensor:
        self._to_front(rows)
        order = sorted(rows, key=lambda r: r.slot)
        ends = [min(len(r.ids), r.cached + MAX_CHUNK_TOKENS) for r in order]
        counts = [end - r.cached for r, end in zip(order, ends)]
        width, length, later = max(counts), max(ends), order[0].pending - counts[0]
        if length >= self._columns:
            self._allocate(self._slots, self._enough(length))
        logits = None
        if width == 1 and self._graphs is not None and self._flat and not any(self._hooks):
            logits = self._graphs.step([r.ids[r.cached] for r in order], [r.cached for r in order])
        if logits is None:
            logits = self._chunk(order, counts, ends, min(width, max(1, positions - later)))
        self.passes += 1
        self.forwarded += sum(counts)
        for row, end in zip(order, ends):
            row.cached = end
        return logits if order == rows else logits[[r.slot for r in rows]]

    def _chunk(self, rows: list[Row], counts: list[int], ends: list[int], keep: int) -> Tensor:
        """Run the next ``counts`` tokens of the rows in the first slots; float32 logits after the last ``keep``."""
        width, length = max(counts), max(ends)
        ids = [[0] * (width - n) + r.ids[r.cached : end] for r, n, end in zip(rows, counts, ends)]
        chunk = torch.arange(width, device=self.device)
        places = torch.tensor(ends, device=self.device)[:, None] + (chunk - width)  # (B, T), the rows' own positions
        columns = places
        if width > min(counts):
            padding = torch.tensor([width - n for n in counts], device=self.device)[:, None]
            columns = torch.where(chunk >= padding, places, self._columns - 1)
            places = places.clamp(min=0)
        self._cache.aim(columns, length)
        mask = decoder.causal(places, length, self.dtype)  # what padding sees is not looked at
        few = FewTokens() if self._large and len(ids) * width <= FEW else nullcontext()
        with decoder.evaluating(self.model), few:
            return self._logits(torch.tensor(ids, device=self.device), places, mask, keep).float()

    def _logits(self, ids: Tensor, places: Tensor, mask: Tensor, keep: int) -> Tensor:
        if self._flat and not any(self._hooks):
            return decoder.logits(self.model, ids, places, mask, self._cache, keep)
        options = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": keep}
        usual, self._config._attn_implementation = self._config._attn_implementation, ATTENTION
        try:
            return self.model(input_ids=ids, attention_mask=mask, position_ids=places, **options).logits
        finally:
            self._config._attn_implementation = usual


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows to run together: of similar pending length, so that padding stays below the tokens themselves."""
    tokens = [r.pending for r in rows]
    if max(tokens) * len(rows) <= min(2 * sum(tokens) + 64, MAX_CHUNK_TOKENS):
        return [list(range(len(rows)))]
    order = sorted(range(len(rows)), key=lambda i: rows[i].pending)
    groups: list[list[int]] = [[]]
    tokens = 0
    for i in order:
        pending = rows[i].pending
        tokens += pending
        padded = pending * (len(groups[-1]) + 1)
        if groups[-1] and (padded > 2 * tokens + 64 or padded > MAX_CHUNK_TOKENS):
            groups.append([])
            tokens = pending
        groups[-1].append(i)
    return [sorted(g) for g in groups]


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the generation config's and the tokenizer's."""
    named = [model.generation_config.eos_token_id if model.generation_config else None, tokenizer.eos_token_id]
    return frozenset(i for x in named if x is not None for i in (x if isinstance(x, list) else [x]))
