"""The key-value caches of all sequences of one model, in one tensor a layer: (slots, kv heads, columns, head dim).

A forward pass over some sequences first swaps their slots to the front, so that attention reads the caches in place.
The last column is a spare one: padding is written there, and no sequence ever sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache


@dataclass(slots=True, eq=False)
class CacheSlot:
    """The place of one sequence in the caches of one model."""

    index: int  # the place; -1 once the slot is closed
    prompt: tuple[int, ...] = ()  # the tokens that it was opened with
    ids: list[int] = field(default_factory=list)  # all its tokens
    cached: int = 0  # so many of them, from the first on, have been run

    @property
    def pending(self) -> int:
        """Tokens that have not been run."""
        return len(self.ids) - self.cached


class KVCache(Cache):
    """Slots, and what the model sees as its cache during one forward pass: the first slots, written in place.

    Args:
        layers: number of decoder layers.
        heads: key-value heads of a layer.
        size: dimension of a head.
        context: the most tokens of a sequence.
    """

    def __init__(self, layers: int, heads: int, size: int, context: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__(layers=[])
        self.heads, self.size, self.context, self.dtype, self.device = heads, size, context, dtype, device
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.room = self.columns = 0  # slots and columns that there is memory for
        self.at: list[CacheSlot | None] = []  # the slot at each index
        self.on_move: Callable[[], None] = lambda: None  # called before the tensors are made anew
        self.angles: list[Tensor] = []  # rotary positions, one a column, kept by the fast pass

    @property
    def slots(self) -> list[CacheSlot]:
        """The open slots."""
        return [s for s in self.at if s is not None]

    def place(self, prompt: Sequence[int]) -> CacheSlot:
        """A new slot for a sequence; nothing is run yet."""
        index = next((i for i, slot in enumerate(self.at) if slot is None), len(self.at))
        if index == len(self.at):
            self.at.append(None)
        if index >= self.room:
            self._allocate(max(4, 2 * index), self.columns)
        self.at[index] = slot = CacheSlot(index, tuple(prompt), list(prompt))
        return slot

    def close(self, slot: CacheSlot) -> None:
        """Give a slot back, and memory where a quarter of it would do. Closing twice does nothing."""
        if slot.index < 0:
            return
        self.at[slot.index], slot.index, slot.cached = None, -1, 0
        open_slots = self.slots
        columns = self.enough(max(len(s.ids) for s in open_slots)) if open_slots else 0
        if 4 * len(open_slots) * columns <= self.room * self.columns:
            self.to_front(open_slots)
            del self.at[len(open_slots) :]
            self._allocate(len(open_slots), columns)

    def enough(self, length: int) -> int:
        """Columns for a sequence of some length: with some to grow, within the context, and the spare one."""
        return min(length + max(64, length // 2), self.context) + 1

    def copy(self, source: CacheSlot, targets: Sequence[CacheSlot], length: int) -> None:
        """Copy the caches of the first ``length`` tokens of one slot to others."""
        to = torch.tensor([t.index for t in targets], device=self.device)
        for tensor in (*self.keys, *self.values):
            tensor[to, :, :length] = tensor[source.index, :, :length]
        for target in targets:
            target.cached = length

    def to_front(self, slots: Sequence[CacheSlot], length: int = 0) -> None:
        """Swap the slots that are not among the first ones with what is there and not of them.

        There is room for sequences of some length then.
        """
        if length and length >= self.columns:
            self._allocate(self.room, self.enough(length))
        behind = [s.index for s in slots if s.index >= len(slots)]
        if not behind:
            return
        wanted = set(slots)
        free = [i for i in range(len(slots)) if self.at[i] not in wanted]
        moved = [self.at[i] for i in behind + free]
        columns = max(s.cached for s in moved if s is not None)
        to, source = torch.tensor([free + behind, behind + free], device=self.device)
        for tensor in (*self.keys, *self.values):
            tensor[to, :, :columns] = tensor[source, :, :columns]
        for index, slot in zip(free + behind, moved):
            self.at[index] = slot
            if slot is not None:
                slot.index = index

    @torch.inference_mode(False)
    def _allocate(self, slots: int, columns: int) -> None:
        """Make this much room and keep what fits. If memory runs out on the way, the smaller room of both remains.

        Ordinary tensors, so that they may be written in any mode.
        """
        self.on_move()
        self.room, self.columns = s, c = min(slots, self.room), min(columns, self.columns)
        for tensors in (self.keys, self.values):
            for i, old in enumerate(tensors):
                new = torch.zeros(slots, self.heads, columns, self.size, dtype=self.dtype, device=self.device)
                if s and c:
                    new[:s, :, :c] = old[:s, :, :c]
                tensors[i] = new
        self.room, self.columns = slots, columns

    # One forward pass -------------------------------------------------------------------------------------------------

    def aim(self, columns: Tensor, length: int) -> None:
        """columns (B, T): where each token of the chunk goes; attention reads the first ``length`` columns."""
        rows, heads = (torch.arange(n, device=columns.device)[:, None] for n in (len(columns), self.heads))
        self.places, self.length = (rows[:, None], heads, columns[:, None]), length

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object):
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.places], values[self.places] = key, value
        return keys[: len(key), :, : self.length], values[: len(key), :, : self.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length
