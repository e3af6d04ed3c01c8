"""The caches of an engine's rows, as transformers asks for them: one tensor a layer, of which a pass uses the front."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache


class FrontCache(Cache):
    """What the model sees as its cache during one forward pass: the rows in the first slots, written in place.

    ``angles`` is room for the flat pass to keep its rotary positions, one a column (``decoder.py``).
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]):
        super().__init__(layers=[])
        self.keys, self.values = keys, values
        self.angles: list[Tensor] = []

    def aim(self, columns: Tensor, length: int) -> None:
        """columns (B, T): where each token of the chunk goes; attention reads the first ``length`` columns."""
        rows, heads = (torch.arange(n, device=columns.device)[:, None] for n in (len(columns), self.keys[0].shape[1]))
        self.places, self.length = (rows[:, None], heads, columns[:, None]), length

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object):
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.places], values[self.places] = key, value
        return keys[: len(key), :, : self.length], values[: len(key), :, : self.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length
