"""Lessons 06 to 08: forbidding a text, comparing two systems on the same problems, what comes instead of a call."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from statistics import fmean, pstdev, stdev, variance

from lesson.checks.function import NotYet, exercise, number
from relaylab.call_tag import OPEN
from relaylab.evaluation.scorecard import paper_tables

SIMPLE, FULL = "Relay simple", "Relay difficulty-aware"

FORBIDDEN = OPEN[:-1].encode()  # what ``engine/token_text.py`` forbids; that module takes seconds to import


def _vocabularies(rng: random.Random) -> Iterator[tuple]:
    tokens = [b"<", b"<call", b"call", b"all", b"c", b"ll", b"(<call", b"</", b">", b"=<call>1", b"al", b"7", b"callx"]
    yield tokens, b""
    yield tokens, b"3 <"
    yield tokens, b"3 <c"
    yield tokens, b"<ca"
    yield tokens, b"it said <call>5</call>, and then"  # a call before the ban began: it must not ban all that follows
    yield tokens, b"x</"
    yield tokens, b"a tag from before: <call"  # it stands already; only another one must not follow
    for _ in range(30):
        yield (
            [bytes(rng.choices(b"<cal>7", k=rng.randint(1, 6))) for _ in range(8)],
            bytes(rng.choices(b"<cal 7", k=rng.randint(0, 7))),
        )


def _banned(tokens: Sequence[bytes], turn: bytes) -> list[bool]:
    return [FORBIDDEN in turn[1 - len(FORBIDDEN) :] + token for token in tokens]


def _pairs(rng: random.Random) -> Iterator[tuple]:
    yield [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    yield [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]
    for _ in range(20):
        n = rng.randint(3, 30)
        yield [float(rng.random() < 0.7) for _ in range(n)], [float(rng.random() < 0.5) for _ in range(n)]


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


@number
def kept_lead(answer: float) -> bool:
    """The relay's lead over GRPO on the paper's easy benchmarks: the share of it that is left without the teacher."""
    leads = {
        (system, column): _lead(system, "without teacher", column) / _lead(system, "with teacher", column)
        for system in (FULL, SIMPLE)
        for column in (0, 1)
    }
    right = leads[FULL, 0]
    if math.isclose(answer, right, abs_tol=0.005):
        return True
    if math.isclose(answer, 100 * right, abs_tol=0.5):
        raise NotYet("right, as a percentage; give it as a share of 1")
    for (system, column), share in leads.items():
        if math.isclose(answer, share, abs_tol=0.005):
            column_name = ("easy", "hard")[column]
            raise NotYet(f"that is the {column_name} column of {system}; take the easy one of {FULL}")
    if math.isclose(answer, _lead(FULL, "without teacher", 0), abs_tol=0.005):
        raise NotYet("that is what is left, in points; divide it by the lead with the teacher")
    if math.isclose(answer, 1 - right, abs_tol=0.005):
        raise NotYet("that is the share that is lost; which share is left?")
    raise NotYet("take the lead over GRPO without the teacher, and divide it by the lead over GRPO with the teacher")


def _lead(system: str, how: str, column: int) -> float:
    table = paper_tables().query("source == 'table 4'").set_index(["system", "set"])["value"]
    part = ("Easy", "Hard")[column]
    return table[f"{system}, {how}", part] - table["GRPO, without teacher", part]


@exercise(inputs=_vocabularies, show=lambda tokens, turn: f"tokens = {tokens}, turn = {turn}")
def banned(tokens, turn):
    """For each token of a vocabulary (bytes): must it not follow the bytes of this turn?"""
    return _banned(tokens, turn)


@banned.mistake("That bans one token. The same text can be put together from others.")
def one_token(tokens, turn):
    return [t == FORBIDDEN for t in tokens]


@banned.mistake("A token need not hold all of it: what the turn ends with counts, too.")
def whole_tag_in_one_token(tokens, turn):
    return [FORBIDDEN in t for t in tokens]


@banned.mistake("That bans every <, and with it 3 < 4. Only what completes the pattern must go.")
def every_bracket(tokens, turn):
    return [b"<" in t or FORBIDDEN in turn[1 - len(FORBIDDEN) :] + t for t in tokens]


@banned.mistake("Look at the end of the turn alone: a call further back would ban whatever comes.")
def whole_turn(tokens, turn):
    return [FORBIDDEN in turn + t for t in tokens]


@banned.mistake("Too many bytes of the turn: a <call that stands complete at its end would ban whatever comes.")
def five_bytes_of_the_turn(tokens, turn):
    return [FORBIDDEN in turn[-len(FORBIDDEN) :] + t for t in tokens]


@banned.mistake("The pattern is <call without its last character, so that nothing of a tag is left.")
def with_the_last_character(tokens, turn):
    return [FORBIDDEN + b">" in turn[-len(FORBIDDEN) :] + t for t in tokens]


@exercise(inputs=_pairs, show=lambda a, b: f"a = {a}, b = {b}")
def paired_error(a, b):
    """The standard error of the mean of a - b, one value a problem each, the same problems."""
    return stdev(_differences(a, b)) / math.sqrt(len(a))


@paired_error.mistake("That is for two different sets of problems. These are the same: take differences first.")
def unpaired(a, b):
    return math.sqrt((stdev(a) ** 2 + stdev(b) ** 2) / len(a))


@paired_error.mistake(
    "That is the spread of the differences; their mean is less uncertain by the root of their number."
)
def spread_of_differences(a, b):
    return stdev(_differences(a, b))


@paired_error.mistake("Divide by n - 1, not by n: the mean was estimated from the same differences.")
def population_spread(a, b):
    return pstdev(_differences(a, b)) / math.sqrt(len(a))


@banned.mistake("A token can go on behind the pattern: look for it anywhere, not at the end.")
def at_the_end(tokens, turn):
    return [(turn + t).endswith(FORBIDDEN) for t in tokens]


@banned.mistake("One True or False for each token is asked for, not the tokens.")
def list_of_tokens(tokens, turn):
    return [t for t, no in zip(tokens, _banned(tokens, turn)) if no]


@paired_error.mistake("Divide by the root of their number, not by the number.")
def by_the_number(a, b):
    return stdev(_differences(a, b)) / len(a)


@paired_error.mistake("That is half of a 95 % interval. The standard error is it without the 1.96.")
def half_an_interval(a, b):
    return 1.96 * stdev(_differences(a, b)) / math.sqrt(len(a))


@paired_error.mistake("That is the mean difference. How uncertain is it?")
def mean_difference(a, b):
    return fmean(_differences(a, b))


@paired_error.mistake("That is the variance. Take its root first.")
def variance_of_differences(a, b):
    return variance(_differences(a, b)) / math.sqrt(len(a))


def _chances(rng: random.Random) -> Iterator[tuple[float, float]]:
    yield math.log(0.9), math.log(0.05)
    for _ in range(30):
        call = rng.uniform(0.01, 0.99)
        yield math.log(call), math.log((1 - call) * rng.uniform(0.01, 1))


@exercise(inputs=_chances, show=lambda call, wrote: f"call = {call:.3f}, wrote = {wrote:.3f}")
def of_the_rest(call, wrote):
    """The chance of the written token, given that no call begins."""
    return math.exp(wrote) / (1 - math.exp(call))


@of_the_rest.mistake("That is its chance among all tokens. Divide by the chance that no call begins.")
def of_all(call, wrote):
    return math.exp(wrote)


@of_the_rest.mistake("That compares it with the call. Divide by what is *not* the call.")
def of_the_call(call, wrote):
    return math.exp(wrote) / math.exp(call)


@of_the_rest.mistake("That compares it with the call, as a logarithm.")
def log_of_the_call(call, wrote):
    return wrote - call


@of_the_rest.mistake("These are logarithms: turn them into chances first.")
def without_exp(call, wrote):
    return wrote / (1 - call)


@of_the_rest.mistake("A share is asked for, not its logarithm.")
def as_a_logarithm(call, wrote):
    return wrote - math.log(1 - math.exp(call))


@of_the_rest.mistake("That subtracts where it should divide.")
def difference(call, wrote):
    return 1 - math.exp(call) - math.exp(wrote)
