"""A threshold without labels: the two components of a mixture of Gaussians, as STEER has them (2511.06190)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm


def unsure_above(values: Sequence[float], posterior: float = 0.5, *, steps: int = 300) -> float:
    """Fit two Gaussians by EM; the least value, from the lower mean on, that is of the higher one by ``posterior``.

    >>> rng = np.random.default_rng(0)
    >>> values = np.concatenate([rng.normal(0, 1, 4000), rng.normal(8, 1, 1000)])
    >>> 4 < unsure_above(values) < unsure_above(values, 0.9) < 4.6
    True
    """
    x = np.sort(np.asarray(values, float))
    means, weights = np.quantile(x, [0.25, 0.95]), np.array([0.5, 0.5])
    floor = 1e-3 + 0.01 * x.std()
    sizes = np.full(2, x.std() + floor)
    for _ in range(steps):
        joint = weights * norm.pdf(x[:, None], means, sizes) + 1e-300  # (N, 2)
        shares = joint / joint.sum(1, keepdims=True)
        weights = shares.mean(0)
        means = (shares * x[:, None]).sum(0) / shares.sum(0)
        sizes = np.sqrt((shares * (x[:, None] - means) ** 2).sum(0) / shares.sum(0)) + floor
    grid = np.linspace(means.min(), x[-1], 10_001)
    joint = weights * norm.pdf(grid[:, None], means, sizes) + 1e-300
    unsure = joint[:, means.argmax()] / joint.sum(1) > posterior
    return float(grid[unsure.argmax()]) if unsure.any() else float("inf")
