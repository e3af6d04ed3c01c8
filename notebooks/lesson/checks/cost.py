"""Lessons 14 and 15: baselines and cost."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from lesson.checks.function import NotYet, exercise, number
from relaylab.cost import ModelPrices, Prices, alone, breakeven_calls, costs, regular_trace, usage
from relaylab.evaluation.scorecard import matched_p
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace

SHAPE = {"tokens": 1000, "prompt": 150, "command_tokens": 8}  # of docs/cost.md
PRICES = Prices(student=ModelPrices(parameters=0.6e9), teacher=ModelPrices(parameters=8e9))


def _relay(prompt: int, source: str) -> Trace:
    """A response of one letter a token; a command without teacher tokens behind it is a call that nobody answered."""
    calls = []
    for m in re.finditer(f"({COMMAND}+)({TEACHER}*)", source):
        n = len(m[2])
        calls.append(Call(m.start(), m.end(1), n or None, n, n, n, "answered" if n else "empty"))
    return Trace("q", [0] * prompt, [0] * len(source), source, [""] * len(source), calls)


def _relays(rng: random.Random) -> Iterator[tuple[Trace, float, float]]:
    yield _relay(5, "ssssccttss"), 2.0, 10.0
    yield _relay(5, "ssccttssccttts"), 2.0, 10.0
    yield _relay(5, "ssssss"), 2.0, 10.0
    yield _relay(5, "ssscctttt"), 2.0, 10.0
    yield _relay(5, "sccsscctts"), 2.0, 10.0
    for _ in range(30):
        turns = [STUDENT * rng.randint(1, 9)]
        for _ in range(rng.randint(0, 3)):
            turns.append(COMMAND * rng.randint(1, 5) + TEACHER * rng.choice((0, 1, 4)) + STUDENT * rng.randint(1, 6))
        yield _relay(rng.randint(1, 20), "".join(turns)), float(rng.randint(1, 5)), float(rng.randint(6, 50))


def _flops(trace: Trace, student: float, teacher: float, *, cache: bool = True) -> float:
    prices = Prices(student=ModelPrices(parameters=student), teacher=ModelPrices(parameters=teacher), cache=cache)
    return float(costs(usage([trace]), prices).flops.iloc[0])


def _summed(
    trace: Trace,
    student: float,
    teacher: float,
    *,
    commands: bool = False,
    to_the_end: bool = False,
    teacher_prompt: bool = True,
    uncalled: bool = False,
    hears: bool = True,
) -> float:
    """The FLOPs with another idea of what a model reads; as they are without any keyword."""
    source, prompt = trace.source, len(trace.prompt_ids)
    seen = source if to_the_end and TEACHER in source else source[: source.rfind(TEACHER) + 1]
    run = len(seen) - (0 if commands else seen.count(COMMAND))
    by_teacher = run + (prompt if teacher_prompt else 0) if seen else prompt if uncalled else 0
    own = source.rstrip(TEACHER)
    by_student = prompt + len(own) - (0 if hears else own.count(TEACHER))
    return 2 * student * by_student + 2 * teacher * by_teacher


def _written(trace: Trace, student: float, teacher: float) -> float:
    by_teacher = trace.count(TEACHER)
    return 2 * student * (len(trace.source) - by_teacher) + 2 * teacher * by_teacher


def _accuracies(rng: random.Random) -> Iterator[tuple[float, float, float]]:
    yield 42.50, 54.12, 49.52
    for _ in range(20):
        student, found, teacher = sorted(rng.uniform(1, 99) for _ in range(3))
        yield student, teacher, found


@number
def fewest_calls(n: int) -> bool:
    """So many calls of one token cost as many FLOPs as the teacher alone; models of 0.6B and 8B."""
    if type(n) is not int or not 1 <= n <= SHAPE["tokens"]:
        raise NotYet(f"it is a number of calls, from 1 to {SHAPE['tokens']}, not {n!r}")
    fewest = breakeven_calls(PRICES, "flops", call_tokens=1, **SHAPE)
    used = usage([regular_trace(calls=n, call_tokens=1, **SHAPE)])
    share = float(costs(used, PRICES).flops.iloc[0] / costs(alone(used, "teacher"), PRICES).flops.iloc[0])
    if n < fewest:
        raise NotYet(f"with {n} it is {100 * share:.2f} % of the teacher alone: not yet as much")
    if n > fewest:
        raise NotYet(f"with {n} it is {100 * share:.2f} % of the teacher alone, but fewer do")
    return True


@exercise(
    inputs=_relays,
    show=lambda trace, student, teacher: (
        f"{trace.source} behind a prompt of {len(trace.prompt_ids)}, N = {student:g} and {teacher:g}"
    ),
)
def my_flops(trace, student, teacher):
    """FLOPs of a relay whose teacher keeps its cache; N parameters each."""
    return _flops(trace, student, teacher)


my_flops.mistake("To write a token a model has to read all that stands before it.")(_written)


@my_flops.mistake("That reads everything again at every call; here the teacher keeps its cache.")
def no_cache(*a):
    return _flops(*a, cache=False)


@my_flops.mistake("The teacher never sees a command.")
def teacher_reads_commands(*a):
    return _summed(*a, commands=True)


@my_flops.mistake("What the student writes behind the last call, the teacher never reads.")
def teacher_reads_to_the_end(*a):
    return _summed(*a, to_the_end=True)


@my_flops.mistake("The teacher reads the prompt, too: once.")
def no_prompt(*a):
    return _summed(*a, teacher_prompt=False)


@my_flops.mistake("A teacher that is never called does not even read the prompt.")
def prompt_without_a_call(*a):
    return _summed(*a, uncalled=True)


@my_flops.mistake("The student reads what the teacher wrote, before it goes on.")
def student_does_not_read(*a):
    return _summed(*a, hears=False)


@my_flops.mistake("A parameter is multiplied and added: two operations a token.")
def one_operation(*a):
    return _flops(*a) / 2


@exercise(
    inputs=_accuracies, show=lambda student, teacher, accuracy: f"{student:.4g}, {teacher:.4g} and {accuracy:.4g} %"
)
def coin(student, teacher, accuracy):
    """The p with which a random router is as accurate; all in %."""
    return matched_p(student, teacher, accuracy)


@coin.mistake("That is the share that stays with the student; p is the teacher's.")
def students_share(s, t, a):
    return (t - a) / (t - s)


@coin.mistake("Divide by what there is to gain, teacher less student.")
def divided_by_the_teacher(s, t, a):
    return (a - s) / t


@coin.mistake("A coin that never falls on the teacher still has the student's accuracy.")
def zero_without_teacher(s, t, a):
    return a / t


@coin.mistake("These are points; p is a share of the gap.")
def points_not_share(s, t, a):
    return a - s


@my_flops.mistake("The two models do not read the same tokens. Count them for each model.")
def both_read_everything(trace, student, teacher):
    return 2 * (student + teacher) * (len(trace.prompt_ids) + len(trace.source))


@my_flops.mistake("The teacher keeps its cache: it reads the prompt once, and what the student wrote since.")
def prompt_at_every_call(trace, student, teacher):
    return 2 * student * (len(trace.prompt_ids) + len(trace.source)) + 2 * teacher * sum(
        len(trace.prompt_ids) + c.delivered for c in trace.answered
    )


@my_flops.mistake("What the teacher writes at the very end, the student does not read.")
def student_reads_the_end(trace, student, teacher):
    return _summed(trace, student, teacher) + 2 * student * (len(trace.source) - len(trace.source.rstrip(TEACHER)))


@my_flops.mistake("The student reads the prompt, too.")
def student_without_the_prompt(trace, student, teacher):
    return _summed(trace, student, teacher) - 2 * student * len(trace.prompt_ids)


@coin.mistake("Divide by what there is to gain, teacher less student, not by 100.")
def divided_by_100(s, t, a):
    return (a - s) / 100


@coin.mistake("Divide by what there is to gain, teacher less student, not by the accuracy.")
def divided_by_the_accuracy(s, t, a):
    return (a - s) / a
