"""Drawing the next token of many rows at once, each row with its own temperature and its own randomness.

The draw for completion position p of a row is a function of (seed, p) alone. So a row's tokens do not depend on its
batch, and a fork that changes one thing meets the same luck in all the rest (common random numbers).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

COLDEST = 1e-5  # a temperature below would make logits infinite, and is greedy as it is
HOTTEST = 1e30  # one above would be infinite itself, and draws evenly as it is


@dataclass(eq=False)
class Uniforms:
    """The uniform numbers of one row: ``u[p]`` in [0, 1) for completion position p, a function of the seed and p.

    ``stream`` tells apart those who draw under one seed: the student 0, a teacher 1. Seeds are not negative.

    >>> Uniforms(7)[3] == Uniforms(7)[3] != Uniforms(8)[3]
    True
    """

    seed: int
    stream: int = 0
    _drawn: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @functools.cached_property
    def _generator(self) -> np.random.Generator:
        """Made when it is first asked: greedy rows never do."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.stream])))

    def __getitem__(self, position: int) -> float:
        while position >= len(self._drawn):
            self._drawn = np.concatenate([self._drawn, self._generator.random(256)])
        return float(self._drawn[position])


def sample(
    logits: torch.Tensor,
    *,
    temperatures: Sequence[float],
    uniforms: Sequence[float],
    top_p: Sequence[float] = (),
    top_k: Sequence[int] = (),
    forbidden: dict[int, np.ndarray] | None = None,
) -> list[int]:
    """One token per row from logits (B, V): the most probable where the temperature is 0, else by inverting the CDF.

    ``forbidden`` maps rows of the batch to bool arrays (V') of tokens that must not come, V' <= V; what lies beyond V'
    (the padding of an embedding matrix) is forbidden there too.
    """
    if forbidden:
        logits = logits.clone()
        alike: dict[int, tuple[np.ndarray, list[int]]] = {}  # most rows share a ban: each goes to the device once
        for row, ban in forbidden.items():
            alike.setdefault(id(ban), (ban, []))[1].append(row)
        for ban, rows in alike.values():
            mask = np.ones(logits.shape[1], bool)
            mask[: len(ban)] = ban[: logits.shape[1]]
            logits[rows] = logits[rows].masked_fill(torch.from_numpy(mask).to(logits.device), -torch.inf)
    warm = [i for i, t in enumerate(temperatures) if t > 0]
    chosen = logits.argmax(-1)
    if warm:
        t = torch.tensor([min(max(temperatures[i], COLDEST), HOTTEST) for i in warm], device=logits.device)
        scaled = logits[warm] / t[:, None]
        cut = [k for k, i in enumerate(warm) if (top_p and top_p[i] < 1) or (top_k and top_k[i] > 0)]
        if cut:
            scaled[cut] = _truncate(
                scaled[cut],
                [top_p[warm[k]] if top_p else 1.0 for k in cut],
                [top_k[warm[k]] if top_k else 0 for k in cut],
            )
        cdf = torch.softmax(scaled, -1, dtype=torch.float64).cumsum(-1)
        u = torch.tensor([uniforms[i] for i in warm], device=logits.device, dtype=torch.float64)
        drawn = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
        # Rounding may carry u * total to the total itself, past the last token that can come.
        last = (cdf < cdf[:, -1:]).sum(-1)
        chosen[warm] = torch.minimum(drawn, last)
    return chosen.tolist()


def _truncate(logits: torch.Tensor, top_p: list[float], top_k: list[int]) -> torch.Tensor:
    """Keep a row's ``top_k`` likeliest tokens (0: all), of these the fewest that hold ``top_p`` of the probability."""
    ordered, index = logits.sort(-1, descending=True)
    size = logits.shape[1]
    most = torch.tensor([min(k or size, size) for k in top_k], device=logits.device)[:, None]
    ordered[torch.arange(size, device=logits.device) >= most] = -torch.inf
    before = torch.softmax(ordered, -1).cumsum(-1) - torch.softmax(ordered, -1)
    beyond = before >= torch.tensor(top_p, device=logits.device)[:, None]
    beyond[:, 0] = False  # the likeliest stays, even if ``top_p`` is rounded to 0
    ordered[beyond] = -torch.inf
    return torch.full_like(logits, -torch.inf).scatter(-1, index, ordered)


def token_statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (..., V) and entropies (...) in nats at temperature 1."""
    logp = torch.log_softmax(logits.float(), -1)
    return logp, -(logp.exp() * logp).nan_to_num(0.0).sum(-1)
