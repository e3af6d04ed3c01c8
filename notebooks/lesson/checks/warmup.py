"""Lessons 01 and 02: what a command is, and the warm-up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from lesson.checks.function import NotYet, exercise, number
from relaylab.call_tag import format_call


def _answers(rng: random.Random) -> Iterator[tuple]:
    encode = lambda text: [text]  # noqa: E731
    yield [5, 6, 7, 8, 2], 1, 2, encode
    yield [5, 6, 7, 8, 2], 1, 900, encode
    yield [5, 6, 7, 8, 2], 0, 9, encode
    yield [5, 6, 7, 8, 2], 1, 2, lambda text: list(text)
    for _ in range(30):
        length = rng.randint(3, 40)
        ids = [rng.randint(3, 99) for _ in range(length - 1)] + [2]
        yield ids, rng.randrange(length - 1), rng.randint(1, 9) * 10 ** rng.randint(0, 2), lambda text: list(text)


def _inserted(ids: list, position: int, n: int, encode: Callable, *, end: int = 1, behind: int = 0) -> list:
    at = position + behind
    return ids[:at] + encode(format_call(min(n, len(ids) - end - position))) + ids[at:]


def _all_the_rest(top: int, length: int = 300) -> float:
    """The share of calls that ask for all the rest: for d * 10**k tokens, k = 0 .. top, at random places."""
    asked = [d * 10**k for k in range(top + 1) for d in range(1, 10)]
    return sum(n >= left for n in asked for left in range(1, length)) / (len(asked) * (length - 1))


@number
def largest_k(k: int) -> bool:
    """Answers of 300 tokens, at most one call in four for all the rest."""
    if not isinstance(k, int) or k not in range(4):
        raise NotYet(f"k is one of 0, 1, 2, 3, not {k!r}")
    if (rest := _all_the_rest(k)) > 0.25:
        raise NotYet(f"too far: with k = 0 to {k}, {100 * rest:.0f} % of the calls ask for all the rest")
    if k < 3 and (rest := _all_the_rest(k + 1)) <= 0.25:
        raise NotYet(f"you can go further: with k = 0 to {k + 1} it is {100 * rest:.0f} %")
    return True


@exercise(inputs=_answers, show=lambda ids, p, n, encode: f"ids = {ids}, position = {p}, n = {n}")
def insert_one(ids, position, n, encode):
    """Ids with the command for n tokens, clipped, before a position."""
    return _inserted(ids, position, n, encode)


@insert_one.mistake("It is not clipped: a call must not ask for more than is left of the answer.")
def not_clipped(ids, p, n, encode):
    return ids[:p] + encode(format_call(n)) + ids[p:]


@insert_one.mistake("Do you count the end token? It is not the teacher's to write.")
def counts_the_end_token(*a):
    return _inserted(*a, end=0)


@insert_one.mistake("The command goes in front of the token at that position.")
def behind_the_position(*a):
    return _inserted(*a, behind=1)


@insert_one.mistake("A command is several tokens: add all of them, not a list of them.")
def a_list_in_the_list(ids, p, n, encode):
    return [*ids[:p], encode(format_call(min(n, len(ids) - 1 - p))), *ids[p:]]


@insert_one.mistake("That inserts a text. encode turns it into tokens.")
def text_inserted(ids, p, n, encode):
    return [*ids[:p], format_call(min(n, len(ids) - 1 - p)), *ids[p:]]


@insert_one.mistake("Clip n to what is left: the smaller of the two.")
def the_larger_one(ids, p, n, encode):
    return ids[:p] + encode(format_call(max(n, len(ids) - 1 - p))) + ids[p:]


@insert_one.mistake("The answer must stay around the command.")
def the_command_alone(ids, p, n, encode):
    return encode(format_call(min(n, len(ids) - 1 - p)))


@insert_one.mistake("Nothing is replaced: the token at the position stays, behind the command.")
def replaced(ids, p, n, encode):
    return ids[:p] + encode(format_call(min(n, len(ids) - 1 - p))) + ids[p + 1 :]


def _ranges(rng: random.Random) -> Iterator[tuple[int, int]]:
    yield from ((4, 24), (1, 9), (7, 7), (10, 19), (1, 99))
    yield from ((low, low + rng.randint(0, 120)) for low in (rng.randint(1, 60) for _ in range(20)))


def _first_digits(low: int, high: int) -> list[float]:
    """How often each first digit comes."""
    digits = [str(n)[0] for n in range(low, high + 1)]
    return [digits.count(d) / len(digits) for d in sorted(set(digits))]


def _entropy(shares: list[float]) -> float:
    return -sum(p * math.log(p) for p in shares)


@exercise(inputs=_ranges, show=lambda low, high: f"low = {low}, high = {high}")
def digit_entropy(low, high):
    """The entropy in nats of the first digit of a number that is drawn uniformly."""
    return _entropy(_first_digits(low, high))


@digit_entropy.mistake("That is in bits. In nats the logarithm is the natural one.")
def in_bits(low, high):
    return _entropy(_first_digits(low, high)) / math.log(2)


@digit_entropy.mistake("That is the entropy of the whole number. Only its first digit is asked for.")
def of_the_number(low, high):
    return math.log(high + 1 - low)


@digit_entropy.mistake("The first digits are not equally often: from 4 to 24, a 2 comes more often than a 7.")
def equally_often(low, high):
    return math.log(len(_first_digits(low, high)))


@digit_entropy.mistake("`high` is one of the numbers.")
def without_the_last(low, high):
    return _entropy(_first_digits(low, max(low, high - 1)))


@digit_entropy.mistake("That is the last digit.")
def of_the_last_digit(low, high):
    digits = [n % 10 for n in range(low, high + 1)]
    return _entropy([digits.count(d) / len(digits) for d in set(digits)])
