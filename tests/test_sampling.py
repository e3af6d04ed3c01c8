"""Sampling against slow, independent ways to do the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from relaylab.engine.sampling import Uniforms, sample, token_statistics
from relaylab.relay.config import RelayConfig

RNG = np.random.default_rng(0)
LOGITS = torch.tensor(RNG.normal(0, 2, 12), dtype=torch.float32)


def draw(logits, uniforms, temperature=1.0, **options):
    n = len(uniforms)
    options |= {name: [options[name]] * n for name in ("top_p", "top_k") if name in options}
    return sample(logits.expand(n, -1), temperatures=[temperature] * n, uniforms=uniforms, **options)


def slow_truncated(logits, top_p, top_k):
    """Probabilities after top-k and then top-p, token by token."""
    p = np.exp(np.array(logits, dtype=np.float64) - max(logits))
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: -p[i])[: top_k or None]
    total, held, kept = sum(p[i] for i in order), 0.0, []
    for i in order:
        if held >= top_p:
            break
        kept.append(i)
        held += p[i] / total
    return {i: p[i] / sum(p[k] for k in kept) for i in kept}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_inverse_cdf_draws_from_the_softmax(temperature):
    n = 20_000
    counts = np.bincount(draw(LOGITS, list(np.random.default_rng(1).random(n)), temperature), minlength=12)
    expected = torch.softmax(LOGITS.double() / temperature, -1).numpy() * n
    often = expected >= 5  # chi-square's condition
    assert chisquare(counts[often], expected[often] * counts[often].sum() / expected[often].sum()).pvalue > 1e-3
    assert counts[~often].sum() < 50


@given(
    st.lists(st.floats(-5, 5, width=16), min_size=2, max_size=12, unique=True),
    st.floats(0.05, 1.0),
    st.integers(0, 12),
)
def test_top_p_and_top_k_keep_what_a_slow_reading_keeps(values, top_p, top_k):
    expected = slow_truncated(values, top_p, top_k)
    held = np.cumsum(sorted(slow_truncated(values, 1.0, top_k).values(), reverse=True))
    if np.abs(held - top_p).min() < 1e-5:
        return  # on the boundary rounding decides
    u = (np.arange(400) + 0.5) / 400
    counts = np.bincount(draw(torch.tensor(values), list(u), top_p=top_p, top_k=top_k), minlength=len(values)) / 400
    assert set(np.flatnonzero(counts)) <= set(expected)
    assert all(abs(counts[i] - p) <= 2 / 400 for i, p in expected.items())


@given(st.sets(st.integers(0, 11), max_size=11), st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.3, 3.0]))
def test_forbidden_tokens_are_never_drawn(banned, u, temperature):
    ban = np.array([i in banned for i in range(10)])
    forbidden = banned & set(range(10)) | {10, 11}  # beyond the array everything is forbidden
    if len(forbidden) == 12:
        return
    before = LOGITS.clone()
    first, second = sample(LOGITS.expand(2, -1), temperatures=[temperature] * 2, uniforms=[u, u], forbidden={0: ban})
    assert first not in forbidden
    assert second == draw(LOGITS, [u], temperature)[0]  # the other row is as free as before
    assert torch.equal(LOGITS, before)


@pytest.mark.parametrize("u", [0.0, 5e-324, 1e-12, 1 - 2**-53, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_draw_tokens_that_can_come(u):
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, -200.0, -torch.inf])
    assert draw(logits, [float(u)])[0] in (1, 2)
    assert draw(logits, [0.0]) == [1]
    assert draw(torch.zeros(50_000), [float(np.nextafter(1.0, 0.0))]) == [49_999]


def test_rows_have_their_own_temperature():
    logits = torch.tensor([0.0, 1.0, 0.5]).expand(3, -1)
    assert sample(logits, temperatures=[0.0, 1.0, 0.0], uniforms=[0.0, 0.0, 0.99]) == [1, 0, 1]


@given(st.integers(0, 2**63), st.integers(0, 900), st.integers(0, 900))
def test_draws_do_not_depend_on_what_was_drawn_before(seed, a, b):
    here, there = Uniforms(seed), Uniforms(seed)
    first = here[max(a, b)], here[min(a, b)]
    assert (there[min(a, b)], there[max(a, b)]) == first[::-1]
    assert all(0 <= u < 1 for u in first)
    assert Uniforms(seed, stream=1)[a] != here[a]


def test_statistics_are_those_of_the_softmax():
    logits = torch.cat([LOGITS, torch.tensor([-torch.inf])])
    logp, entropy = token_statistics(logits)
    p = torch.softmax(LOGITS.double(), -1)
    assert torch.allclose(logp[:-1].double(), p.log(), atol=1e-5)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)


def test_extreme_settings_draw_what_they_say():
    rows = LOGITS.repeat(3, 1)
    options = dict(temperatures=[1e-40, 1.0, 1.0], uniforms=[0.999, 0.999, 0.0], top_k=[0, 2**70, 1])
    assert sample(rows, **options)[0] == LOGITS.argmax()
    assert sample(rows, **options)[1:] == sample(rows, **options | {"top_k": [0, 0, 1]})[1:]
    ban = np.arange(12) < 6
    assert draw(LOGITS, [0.0, 0.999], top_p=1e-46) == [LOGITS.argmax()] * 2
    assert draw(LOGITS, [0.0, 0.999], 4e38, forbidden={0: ban, 1: ban}) == [6, 11]
    for change in ({"temperature": float("nan")}, {"temperature": float("inf")}, {"max_tokens": None}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}"):
            RelayConfig(**change)
