"""Lessons 11 to 13: where a call begins, what it covers, how long it had to be, and what it changed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from lesson.checks.function import exercise
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace

Digits = Mapping[int, set[int]]  # line of the answer -> the tokens that hold the digits of its result


def _trace(turns: Sequence[tuple[int, int, int]], last: int, *, prompt: int = 4) -> Trace:
    """Turns of own, command and delivered tokens, ``last`` own ones behind them. A call without any is refused."""
    source, calls = "", []
    for own, command, delivered in turns:
        start = len(source) + own
        source += STUDENT * own + COMMAND * command + TEACHER * delivered
        status = "answered" if delivered else "refused"
        calls.append(Call(start, start + command, delivered + 2, delivered, delivered, delivered, status))
    source += STUDENT * last
    pieces = ["x" * (1 + 3 * (k % 4 == 0)) for k in range(len(source))]  # tokens and characters are not the same
    return Trace("q", [1] * prompt, list(range(len(source))), source, pieces, calls)


def _traces(rng: random.Random) -> Iterator[tuple[Trace]]:
    yield (_trace([(10, 4, 6), (10, 4, 6)], 10),)
    yield (_trace([(5, 4, 0), (11, 5, 20)], 5),)
    yield (_trace([], 20),)
    for _ in range(20):
        turns = [(rng.randint(0, 9), rng.randint(3, 6), rng.choice((0, 3, 20))) for _ in range(rng.randint(1, 3))]
        yield (_trace(turns, rng.randint(1, 20), prompt=rng.randint(1, 30)),)


def _positions(trace: Trace) -> list[float]:
    return [call.start / len(trace.source) for call in trace.answered]


def _without_commands(trace: Trace) -> list[float]:
    content = len(trace.source) - trace.count(COMMAND)
    return [(c.start - trace.source.count(COMMAND, 0, c.start)) / content for c in trace.answered]


def _covering(rng: random.Random) -> Iterator[tuple]:
    yield Call(10, 15, 4, 4, 4, 4), {1: {15, 16, 17, 18}}, {1}
    yield Call(10, 15, 20, 2, 2, 2), {1: {18, 19, 20, 21}}, {1}  # the cap left too little
    yield Call(10, 15, 2, 2, 2, 2), {1: {15, 16, 17, 18}}, {1}
    yield Call(10, 15, 1, 1, 1, 1), {1: {15, 16, 17, 18}}, {1}
    yield Call(10, 15, 1, 1, 1, 1), {1: {15}}, {1}
    yield Call(10, 15, 9, 9, 9, 9), {0: {15, 16}, 1: {40, 41}}, {1}
    yield Call(10, 15, 2, 2, 2, 2), {1: {16, 17}, 2: {30, 31, 32, 33, 34, 35}}, {1, 2}
    yield Call(10, 15, 9, 9, 9, 9), {0: {15, 16}}, {3}  # the answer ended before its hard line
    for _ in range(30):
        at, digits = rng.randint(0, 4), {}
        for line in range(4):
            at += rng.randint(6, 12)
            digits[line] = set(range(at, at + rng.randint(2, 4)))
            at += len(digits[line])
        start, delivered = rng.randint(0, at), rng.randint(1, 12)
        end = start + rng.randint(3, 5)
        yield Call(start, end, delivered + rng.choice((0, 5)), delivered, delivered), digits, {rng.randrange(4)}


def _share(call: Call, tokens: set[int], begin: int, length: int) -> float:
    return len(tokens & set(range(begin, begin + length))) / len(tokens)


def _covers(call: Call, digits: Digits, lines: set[int], *, least: float = 0.5) -> bool:
    return any(_share(call, digits[k], call.end, call.delivered) >= least for k in lines if k in digits)


def _all_together(call: Call, digits: Digits, lines: set[int]) -> bool:
    tokens = {i for k in lines for i in digits.get(k, ())}
    return bool(tokens) and _share(call, tokens, call.end, call.delivered) >= 0.5


def _long_enough(rng: random.Random) -> Iterator[tuple]:
    yield Call(56, 61, 20, 20, 20, 20), {0: {8, 9, 10}, 3: {70, 71, 72, 73}}, 3
    yield Call(56, 61, 4, 4, 4, 4), {3: {61, 62, 63, 64}}, 3
    yield Call(56, 61, 4, 4, 4, 4), {3: {63, 64, 65, 66}}, 3  # it was too short
    yield Call(56, 61, 20, 2, 2, 2), {3: {62, 63, 64}}, 3  # a cap made it too short
    for _ in range(20):
        start = rng.randint(0, 60)
        end, wait, length = start + rng.randint(3, 5), rng.randint(0, 9), rng.randint(2, 4)
        first, more = set(range(end + wait, end + wait + length)), end + wait + length + rng.randint(4, 8)
        asked = more - end + rng.randint(2, 5)
        yield Call(start, end, asked, asked, asked, asked), {1: first, 2: {more, more + 1}}, 1


def _pairs(rng: random.Random) -> Iterator[tuple]:
    def graded(correct: bool) -> Trace:
        return Trace("q", [1], [5], STUDENT, ["x"], correct=correct)

    yield ([(graded(True), graded(False)), (graded(True), graded(True)), (graded(False), graded(True))],)
    yield ([(graded(True), graded(False)), (graded(True), graded(False)), (graded(False), graded(False))],)
    for _ in range(20):
        yield ([(graded(rng.random() < 0.7), graded(rng.random() < 0.4)) for _ in range(rng.randint(2, 9))],)


def _differences(pairs: Sequence[tuple[Trace, Trace]]) -> list[int]:
    return [bool(a.correct) - bool(b.correct) for a, b in pairs]


def _spelled(call: Call) -> str:
    return f"Call(start={call.start}, end={call.end}, requested={call.requested}, delivered={call.delivered})"


def _word(trace: Trace) -> str:
    return "right" if trace.correct else "wrong"


@exercise(inputs=_traces, show=lambda trace: trace.source)
def relative_positions(trace):
    """Of each answered call where it begins, from 0 to 1 of the answer's tokens."""
    return _positions(trace)


@relative_positions.mistake("A call that nobody answered is no call here: look at trace.answered.")
def all_calls(trace):
    return [call.start / len(trace.source) for call in trace.calls]


@relative_positions.mistake("Where the command begins (start), not where the teacher does (end).")
def end_of_the_command(trace):
    return [call.end / len(trace.source) for call in trace.answered]


@relative_positions.mistake("From 0 to 1, not in per cent.")
def per_cent(trace):
    return [100 * p for p in _positions(trace)]


relative_positions.mistake("The student wrote its commands, too: they count as tokens of the answer.")(
    _without_commands
)


@relative_positions.mistake("Positions count tokens, not characters.")
def in_characters(trace):
    lengths = [len(piece) for piece in trace.pieces]
    return [sum(lengths[: c.start]) / sum(lengths) for c in trace.answered]


@relative_positions.mistake("Positions count from the first token of the answer, and the prompt is none.")
def with_the_prompt(trace):
    return [(len(trace.prompt_ids) + c.start) / (len(trace.prompt_ids) + len(trace.source)) for c in trace.answered]


@exercise(inputs=_covering, show=lambda call, digits, hard: f"{_spelled(call)}, digits = {dict(digits)}, hard = {hard}")
def covers(call, digits, lines):
    """Whether the teacher writes at least half of the digits of one of these lines."""
    return _covers(call, digits, lines)


@covers.mistake("The teacher's tokens begin at call.end, behind the command.")
def from_the_start(call, digits, hard):
    return any(_share(call, digits[k], call.start, call.delivered) >= 0.5 for k in hard if k in digits)


@covers.mistake("What counts is what came (delivered), not what was asked for.")
def requested_tokens(call, digits, hard):
    return any(_share(call, digits[k], call.end, call.requested) >= 0.5 for k in hard if k in digits)


@covers.mistake("One digit is not enough: at least half of them.")
def one_digit(call, digits, hard):
    return _covers(call, digits, hard, least=1e-09)


@covers.mistake("Half of the digits is enough.")
def all_digits(call, digits, hard):
    return _covers(call, digits, hard, least=1.0)


@covers.mistake("Exactly half counts, too: at least half.")
def more_than_half(call, digits, hard):
    return _covers(call, digits, hard, least=0.5 + 1e-09)


@covers.mistake("Only the hard lines count.")
def any_line(call, digits, hard):
    return _covers(call, digits, set(digits))


covers.mistake("Each result by itself: one of them is enough.")(_all_together)


@exercise(
    inputs=_long_enough, show=lambda call, digits, line: f"{_spelled(call)}, digits = {dict(digits)}, line = {line}"
)
def enough(call, digits, line):
    """The smallest n with which the teacher still writes all of this line's result."""
    return max(digits[line]) - call.end + 1


@enough.mistake("One too few: the last digit has to be written as well.")
def one_too_few(call, digits, line):
    return max(digits[line]) - call.end


@enough.mistake("The teacher writes from call.end on; the command is not part of n.")
def from_the_start_of_the_command(call, digits, line):
    return max(digits[line]) - call.start + 1


@enough.mistake("A call can have been too short: then n is more than was delivered.")
def no_more_than_delivered(call, digits, line):
    return min(call.delivered, max(digits[line]) - call.end + 1)


@enough.mistake("It has to write the words and numbers in front of the result, too.")
def only_the_digits(call, digits, line):
    return len(digits[line])


@enough.mistake("Up to the last digit of the result, not to the first.")
def up_to_the_first_digit(call, digits, line):
    return min(digits[line]) - call.end + 1


@enough.mistake("Only this line's result counts; the rest it may leave to the student.")
def up_to_the_last_line(call, digits, line):
    return max(i for tokens in digits.values() for i in tokens) - call.end + 1


@exercise(
    inputs=_pairs, show=lambda pairs: "pairs " + ", ".join((f"{_word(a)} with, {_word(b)} without" for a, b in pairs))
)
def effect(pairs):
    """What calls add to accuracy: of (the answer with the call, the answer without), one pair a call."""
    return fmean(_differences(pairs))


@effect.mistake("That is the accuracy with the call. What would it have been without?")
def accuracy_with(pairs):
    return fmean((bool(a.correct) for a, _ in pairs))


@effect.mistake("Harmful calls count as well: right without the call, wrong with it, is -1.")
def harm_ignored(pairs):
    return fmean(max(0, d) for d in _differences(pairs))


@effect.mistake("It is a difference, not how often the two differ: harm has the other sign.")
def harm_counted_as_help(pairs):
    return fmean(map(abs, _differences(pairs)))


@effect.mistake("Over all calls: those that change nothing count as 0.")
def changes_only(pairs):
    return sum(_differences(pairs)) / max(1, sum(map(abs, _differences(pairs))))


@effect.mistake("The sign: positive where calls help.")
def reversed_effect(pairs):
    return -fmean(_differences(pairs))


@effect.mistake("As a share, from -1 to 1, not in points.")
def in_points(pairs):
    return 100 * fmean(_differences(pairs))


@relative_positions.mistake("Divide by the number of tokens, so that it goes from 0 to 1.")
def token_numbers(trace):
    return [call.start for call in trace.answered]


@relative_positions.mistake("Divide by the number of tokens, not by the last index.")
def by_the_last_index(trace):
    return [call.start / (len(trace.source) - 1) for call in trace.answered]


@relative_positions.mistake("All tokens of the answer count, not the student's alone.")
def of_the_students_tokens(trace):
    return [call.start / max(1, trace.count(STUDENT)) for call in trace.answered]


@covers.mistake("One of the hard lines is enough.")
def each_line(call, digits, hard):
    return all(_share(call, digits[k], call.end, call.delivered) >= 0.5 for k in hard if k in digits)


@covers.mistake("The token at call.end is the teacher's already.")
def one_token_late(call, digits, hard):
    return any(_share(call, digits[k], call.end + 1, call.delivered) >= 0.5 for k in hard if k in digits)


@enough.mistake("That is a position in the answer. The teacher begins at call.end.")
def position_of_the_last_digit(call, digits, line):
    return max(digits[line])


@enough.mistake("Count from call.end, where the teacher begins, not from the first digit.")
def from_the_first_digit(call, digits, line):
    return max(digits[line]) - min(digits[line])


@enough.mistake("That is what came. How much was needed?")
def as_delivered(call, digits, line):
    return call.delivered


@effect.mistake("The mean over the calls, not the sum.")
def sum_of_effects(pairs):
    return sum(_differences(pairs))


@effect.mistake("That is the accuracy without the calls. What do they add to it?")
def accuracy_without(pairs):
    return fmean(bool(b.correct) for _, b in pairs)


@effect.mistake("Over all calls: what was right without the call counts, too, and can become wrong.")
def of_the_wrong_ones(pairs):
    return sum(d > 0 for d in _differences(pairs)) / max(1, sum(not b.correct for _, b in pairs))
