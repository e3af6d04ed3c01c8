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

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, Cache, PreTrainedModel, PreTrainedTokenizerBase

from relaylab.models.text import TokenText

MAX_CHUNK_TOKENS = 8192  # tokens of one forward pass, padding included: bounds the memory of a prefill


@dataclass(slots=True, eq=False)
class Row:
    """A row of an engine. ``ids`` are all its tokens; the first ``cached`` of them have been run."""

    slot: int
    ids: list[int] = field(default_factory=list)
    cached: int = 0

    @property
    def pending(self) -> int:
        return len(self.ids) - self.cached


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attention in which the query heads that share a key head stand as further queries of it.

    The same sums as transformers' own, which copies keys and values once a query head: several times faster when
    decoding. query (B, heads, T, D), key and value (B, kv heads, columns, D), mask (B, 1, T, columns).
    """
    if odd := [k for k in ("softcap", "s_aux") if options.get(k) is not None]:
        raise ValueError(f"{type(module).__name__} wants {odd}, which relaylab's engine does not compute")
    batch, heads, time, size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    mask = attention_mask if time == 1 else attention_mask.repeat(1, 1, group, 1)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, kv_heads, group * time, size), key, value, attn_mask=mask, scale=scaling
    )
    return out.view(batch, heads, time, size).transpose(1, 2).contiguous(), None


ATTENTION = "relaylab_grouped"
AttentionInterface.register(ATTENTION, _grouped_attention)


class _FrontCache(Cache):
    """What the model sees as its cache during one forward pass: the rows in the first slots, written in place."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]):
        super().__init__(layers=[])
        self.keys, self.values = keys, values
        self.columns = self.rows = torch.empty(0)
        self.length = 0

    def aim(self, columns: torch.Tensor, length: int) -> None:
        """columns (B, T): where each token of the chunk goes; attention reads the first ``length`` columns."""
        self.columns, self.length = columns, length
        self.rows = torch.arange(columns.shape[0], device=columns.device)[:, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object):
        keys, values, batch = self.keys[layer_idx], self.values[layer_idx], key.shape[0]
        if key.shape[2] == 1:  # decoding: a plain scatter, without the transposes
            keys[self.rows[:, 0], :, self.columns[:, 0]] = key[:, :, 0]
            values[self.rows[:, 0], :, self.columns[:, 0]] = value[:, :, 0]
        else:
            keys[self.rows, :, self.columns] = key.transpose(1, 2)
            values[self.rows, :, self.columns] = value.transpose(1, 2)
        return keys[:batch, :, : self.length], values[:batch, :, : self.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length


class Engine:
    """A batched engine over one model.

    ``forwarded`` counts the tokens that were run (padding not counted), ``passes`` the forward passes. ``keep`` closed
    rows stay in memory, the latest first out last, and lend their caches to new rows with the same beginning: worth
    having where a person tries one question many times, a waste in training.

    Raises ValueError for a model whose cache is not one key and value a token in every layer.

    >>> from relaylab.models.zoo import load_engine
    >>> engine = load_engine("student")
    >>> row = engine.open(engine.prompt_ids([{"role": "user", "content": "What is 2+3?"}]))
    >>> engine.forward([row]).shape == (1, 1, engine.vocabulary)
    True
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, keep: int = 0, name: str = ""):
        config = model.config.get_text_config()
        odd = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if odd or config.is_encoder_decoder:
            raise ValueError(
                f"{type(model).__name__} has layers of type {sorted(odd) or 'encoder-decoder'}; "
                "relaylab keeps caches of full attention only"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.text = TokenText(tokenizer)
        self.name = name
        self.keep = keep
        self.forwarded = self.passes = 0
        self._config = config
        self.vocabulary = config.vocab_size
        self.context = config.max_position_embeddings
        self.device, self.dtype = model.device, model.dtype
        self.end_ids = _end_ids(model, tokenizer)
        self._heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = config.num_hidden_layers
        self._keys: list[torch.Tensor] = [torch.empty(0)] * self._layers
        self._values: list[torch.Tensor] = [torch.empty(0)] * self._layers
        self._allocate(0, 0)
        self._at: list[Row | None] = []  # the row in each slot
        self._kept: list[Row] = []

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The chat template applied, ready for an answer, in non-thinking mode where a model has one."""
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
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
        row.ids = list(ids)
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
        """Give the row's place away, now or, for the last ``keep`` rows, when it is needed."""
        if self._at[row.slot] is not row or row in self._kept:
            return
        self._kept.append(row)
        while len(self._kept) > self.keep:
            self._at[self._kept.pop(0).slot] = None

    def _place(self) -> Row:
        slot = next((i for i, r in enumerate(self._at) if r is None), len(self._at))
        if slot == len(self._at):
            self._at.append(None)
        if slot >= self._keys[0].shape[0]:
            self._allocate(max(4, 2 * slot), self._keys[0].shape[2])
        row = Row(slot)
        self._at[slot] = row
        return row

    def _allocate(self, slots: int, columns: int) -> None:
        """Make room, keeping what is there."""
        for tensors in (self._keys, self._values):
            for i, old in enumerate(tensors):
                new = torch.zeros(slots, self._heads, columns, self._size, dtype=self.dtype, device=self.device)
                if old.numel():
                    new[: old.shape[0], :, : old.shape[2]] = old
                tensors[i] = new
        self._cache = _FrontCache(self._keys, self._values)

    def _swap(self, a: int, b: int) -> None:
        if a == b:
            return
        one, two = self._at[a], self._at[b]
        columns = max(r.cached for r in (one, two) if r is not None)
        pair, swapped = [a, b], [b, a]
        for tensor in (*self._keys, *self._values):
            tensor[pair, :, :columns] = tensor[swapped, :, :columns]
        self._at[a], self._at[b] = two, one
        for slot, row in ((a, two), (b, one)):
            if row is not None:
                row.slot = slot

    def _to_front(self, rows: Sequence[Row]) -> None:
        wanted = {id(r) for r in rows}
        free = [s for s in range(len(rows)) if self._at[s] is None or id(self._at[s]) not in wanted]
        for row in rows:
            if row.slot >= len(rows):
                self._swap(free.pop(), row.slot)

    # Forward passes ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], *, positions: int = 1) -> torch.Tensor:
        """Run the rows' pending tokens, at least one each.

        Returns float32 logits (B, ``positions``, vocabulary) of each row's last tokens, right-aligned: ``[:, -1]`` is
        the distribution after the last token. Where a row had fewer pending tokens, its first entries mean nothing.
        """
        if any(not r.pending for r in rows):
            raise ValueError("a row without pending tokens has nothing to run; extend it first")
        if too_long := [len(r.ids) for r in rows if len(r.ids) > self.context]:
            raise ValueError(f"a row of {max(too_long)} tokens does not fit the model's context of {self.context}")
        if len({id(r) for r in rows}) != len(rows):
            raise ValueError("a row is named twice")
        out: torch.Tensor | None = None
        for group in _groups(rows):
            logits = self._run([rows[i] for i in group], positions)
            if len(group) == len(rows) and group == list(range(len(rows))):
                return logits
            if out is None:
                out = logits.new_empty(len(rows), positions, logits.shape[-1])
            out[group] = logits
        assert out is not None
        return out

    def _run(self, rows: list[Row], positions: int) -> torch.Tensor:
        self._to_front(rows)
        order = sorted(rows, key=lambda r: r.slot)
        width = max(r.pending for r in rows)
        length = max(len(r.ids) for r in rows)
        if length >= self._keys[0].shape[2]:  # one spare column for padding
            self._allocate(self._keys[0].shape[0], length + max(64, length // 2))
        spare = self._keys[0].shape[2] - 1
        ids = torch.tensor([[0] * (width - r.pending) + r.ids[r.cached :] for r in order], device=self.device)
        begins = torch.tensor([len(r.ids) - width for r in order], device=self.device)
        places = begins[:, None] + torch.arange(width, device=self.device)  # (B, T), the row's own positions
        padding = torch.tensor([width - r.pending for r in order], device=self.device)
        real = torch.arange(width, device=self.device) >= padding[:, None]
        self._cache.aim(torch.where(real, places, spare), length)
        # (B, 1, T, columns): a token sees its row's columns up to its own; padding sees column 0 and is not looked at.
        visible = torch.arange(length, device=self.device) <= places.clamp(min=0)[:, :, None]
        # Only for this call: a trainer may hold the same model and its own idea of attention.
        usual, self._config._attn_implementation = self._config._attn_implementation, ATTENTION
        try:
            logits = self.model(
                input_ids=ids,
                attention_mask=visible[:, None],
                position_ids=places.clamp(min=0),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=min(positions, width),
            ).logits.float()
        finally:
            self._config._attn_implementation = usual
        self.passes += 1
        for row in rows:
            self.forwarded += row.pending
            row.cached = len(row.ids)
        if logits.shape[1] < positions:
            logits = torch.nn.functional.pad(logits, (0, 0, positions - logits.shape[1], 0))
        slots = [r.slot for r in rows]
        return logits if slots == list(range(len(rows))) else logits[slots]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows to run together: of similar pending length, so that padding stays below the tokens themselves."""
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


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a PEFT model with its adapter merged into the weights, for decoding: unmerged LoRA costs a quarter of
    the speed, and merging in place would drift the base weights in bfloat16."""
    return copy.deepcopy(model).merge_and_unload()
