"""Lesson 05, the data filter."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from math import ceil, comb

from lesson.checks.function import NotYet, exercise, number

Rates = list[tuple[int, int]]


def _rates(rng: random.Random) -> Iterator[tuple[Rates, float]]:
    yield [(10, 10), (5, 10), (4, 10), (0, 10)], 0.5
    yield [(2, 4), (0, 0), (3, 8), (7, 10)], 0.5
    yield [(0, 10), (0, 0), (1, 10)], 0.0
    for _ in range(20):
        samples = [rng.choice((0, 4, 10, 16)) for _ in range(8)]
        yield [(rng.randint(0, n), n) for n in samples], rng.choice((0.25, 0.5, 0.75, 0.9))


def _kept(rates: Rates, threshold: float) -> list[int]:
    return [i for i, (passed, samples) in enumerate(rates) if samples and passed / samples >= threshold]


def _filters(rng: random.Random) -> Iterator[tuple[float, int, float]]:
    yield 0.5, 10, 0.5
    yield 0.3, 4, 0.5
    yield 0.7, 10, 0.7
    for _ in range(20):
        yield rng.uniform(0.05, 0.95), rng.choice((4, 5, 10, 16)), rng.choice((0.25, 0.5, 0.6, 0.9))


def _chance(p: float, samples: int, threshold: float, *, above: bool = False, ways: bool = True) -> float:
    """That the share of ``samples`` answers, each right with chance ``p``, reaches the threshold, or is above it."""
    kept = [k for k in range(samples + 1) if k / samples > threshold or (not above and k / samples == threshold)]
    return sum((comb(samples, k) if ways else 1) * p**k * (1 - p) ** (samples - k) for k in kept)


def _some(p: float, samples: int, numbers: Iterable[int]) -> float:
    """The chance that one of these numbers of samples is right."""
    return sum(comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in numbers)


@number
def samples_needed(samples: int) -> bool:
    """The fewest samples, an even number, with which a true rate of 0.3 passes 0.5 once in 100 at most."""
    if not isinstance(samples, int) or samples < 2 or samples % 2:
        raise NotYet(f"an even number from 2 on is asked for, not {samples!r}")
    if samples > 1000:
        raise NotYet("far fewer will do: fewer than 1,000")
    if (chance := _chance(0.3, samples, 0.5)) > 0.01:
        raise NotYet(f"with {samples} samples such a problem is still kept in {100 * chance:.1f} of 100 cases")
    if samples > 2 and (chance := _chance(0.3, samples - 2, 0.5)) <= 0.01:
        raise NotYet(f"fewer will do: with {samples - 2} it is {100 * chance:.2f} of 100 cases")
    return True


@exercise(inputs=_rates, show=lambda rates, threshold: f"rates = {rates}, threshold = {threshold}")
def kept(rates, threshold):
    """The places of the problems that stay; a rate is (passed, samples)."""
    return _kept(rates, threshold)


@kept.mistake("At least the threshold: a problem that lies on it stays.")
def above_the_threshold(rates, threshold):
    return [i for i, (k, n) in enumerate(rates) if n and k / n > threshold]


@kept.mistake("A problem without any answer has no rate; it is never among them.")
def no_samples_is_a_rate(rates, threshold):
    return [i for i, (k, n) in enumerate(rates) if k / max(1, n) >= threshold]


@kept.mistake("Not every problem has 10 samples: divide by its own number.")
def always_ten_samples(rates, threshold):
    return [i for i, (k, n) in enumerate(rates) if n and k / 10 >= threshold]


@kept.mistake("That is the released code's filter: whatever was solved once stays.")
def solved_once(rates, threshold):
    return [i for i, (k, n) in enumerate(rates) if k > 0]


@kept.mistake("Places are asked for, not rates.")
def rates_not_places(rates, threshold):
    return [rates[i] for i in _kept(rates, threshold)]


@exercise(inputs=_filters, show=lambda p, samples, threshold: f"p = {p:.2f}, {samples} samples, threshold {threshold}")
def chance_kept(p, samples, threshold):
    """How likely a problem of true rate p passes the filter."""
    return _chance(p, samples, threshold)


@chance_kept.mistake("At least the threshold: exactly on it is kept, too.")
def above_the_threshold_only(*a):
    return _chance(*a, above=True)


@chance_kept.mistake("That is the chance to be thrown away.")
def thrown_away(*a):
    return 1 - _chance(*a)


@chance_kept.mistake("In how many orders can k of n be right? There is a binomial coefficient.")
def one_order(*a):
    return _chance(*a, ways=False)


@chance_kept.mistake("The filter does not see p. It sees a share of a few samples.")
def sees_p(p, samples, threshold):
    return float(p >= threshold)


@kept.mistake("Places are asked for, not True and False.")
def flags(rates, threshold):
    return [bool(n) and k / n >= threshold for k, n in rates]


@kept.mistake("It is upside down: those that reach the threshold stay.")
def upside_down(rates, threshold):
    return [i for i, (k, n) in enumerate(rates) if n and k / n <= threshold]


@kept.mistake("A rate is the number of passed samples divided by the number of samples.")
def not_divided(rates, threshold):
    return [i for i, (k, n) in enumerate(rates) if k >= threshold]


@chance_kept.mistake("That is the chance to lie exactly on the threshold. What lies above it is kept, too.")
def on_the_threshold(p, samples, threshold):
    return _some(p, samples, range(ceil(threshold * samples), ceil(threshold * samples) + 1))


@chance_kept.mistake("The fewest passed samples that reach the threshold: round up, not down.")
def rounded_down(p, samples, threshold):
    return _some(p, samples, range(int(threshold * samples), samples + 1))


@chance_kept.mistake("If all samples are right, the problem is kept, too: a range ends before its end.")
def not_all_right(p, samples, threshold):
    return _some(p, samples, range(ceil(threshold * samples), samples))
