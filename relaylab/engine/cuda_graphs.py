"""A step of decoding, one token per sequence, as a CUDA graph.

Such a step is hundreds of small kernels, and calling them from Python takes several times what they take to run. A
graph is captured once and launches them all. It is bound to shapes and addresses. So rows and columns are rounded up,
with one graph for each pair of sizes, and all graphs are dropped when the caches or the weights have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from relaylab.engine.fast import Forward, causal_mask
from relaylab.engine.kv_cache import KVCache


class StepGraphs:
    """The steps of one engine. A size is captured when it comes for the second time; the first runs without a graph.

    All graphs read the same inputs, write the same logits and share the memory in between. They hold addresses of the
    weights, not values: a model may be trained in place.
    """

    def __init__(self, model: PreTrainedModel, forward: Forward, cache: KVCache):
        self._model, self._forward, self._cache = model, forward, cache
        cache.on_move = self.clear
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._ends = (model.model.layers[0].self_attn.q_proj, model.lm_head)  # where one moves, all do
        self._weights: list[int] = []
        self._inputs = self._logits = torch.empty(0)
        self._last: torch.cuda.CUDAGraph | None = None

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def clear(self) -> None:
        """Drop the graphs, because what they point to goes. One is kept, unused: with the last goes their memory."""
        self._last = next((graph for graph in self._graphs.values() if graph), self._last)
        self._graphs.clear()
        self._inputs = self._logits = torch.empty(0)

    def step(self, ids: Sequence[int], places: Sequence[int]) -> Tensor | None:
        """Float32 logits (rows, 1, vocabulary) after a token in each of the first slots; None for a new size."""
        weights = [module.weight.data_ptr() for module in self._ends]
        if weights != self._weights:
            self.clear()
            self._weights = weights
        slots, _, columns, _ = self._cache.keys[0].shape
        size = rows, length = min(rounded(len(ids)), slots), min(rounded(max(places) + 1, 64), columns - 1)
        if torch.is_autocast_enabled("cuda") or size not in self._graphs:
            self._graphs.setdefault(size)
            return None
        if not len(self._inputs):
            device, vocabulary = self._model.device, self._model.lm_head.weight.shape[0]
            self._inputs = torch.zeros(3, slots, dtype=torch.long, device=device)
            self._logits = torch.zeros(slots, 1, vocabulary, device=device)
        more = rows - len(ids)  # rows that are none: they read any row's first column and write to the spare last one
        inputs = [*ids, *[0] * more], [*places, *[0] * more], [*places, *[columns - 1] * more]
        self._inputs[:, :rows] = torch.tensor(inputs)
        graph = self._graphs[size]
        if graph is None:
            others = next((g for g in (*self._graphs.values(), self._last) if g), None)
            graph = self._graphs[size] = captured(lambda: self._run(rows, length), others)
        graph.replay()
        return self._logits[: len(ids)].clone()

    def _run(self, rows: int, length: int) -> None:
        ids, places, columns = self._inputs[:, :rows, None]
        self._cache.aim(columns, length)
        mask = causal_mask(places, length, self._cache.dtype)
        self._logits[:rows] = self._model.lm_head(self._forward(self._model, ids, places, mask, self._cache, 1))


def captured(run: Callable[[], None], beside: torch.cuda.CUDAGraph | None) -> torch.cuda.CUDAGraph:
    """The kernels that ``run`` starts, as a graph that works in the same memory as another one."""
    graph, here, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        run()  # once as it is: libraries set themselves up at the first call on a stream
        graph.capture_begin(beside.pool() if beside else None, capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
    here.wait_stream(stream)
    return graph


def rounded(count: int, least: int = 1) -> int:
    """A count rounded up so that few sizes are left: four or more between a power of two and the next.

    >>> [rounded(n) for n in (1, 7, 9, 33, 64)], rounded(100, 64), rounded(1100, 64)
    ([1, 7, 10, 40, 64], 128, 1280)
    """
    unit = max(least, (1 << count.bit_length()) >> 3)
    return -(-count // unit) * unit
