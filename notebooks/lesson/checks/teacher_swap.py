"""Lessons 09 and 10: which teacher is the best, and what another teacher gets to see."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from lesson.checks.function import exercise
from relaylab.call_tag import format_call, strip_calls

_PARTS = ("74*48=", "3552", ".\n", "All tiles together: ", "<call", "<call>", " 12 ", "\n")


def _histories(rng: random.Random) -> Iterator[tuple]:
    yield ([("s", "74*48=<call>4</call>"), ("t", "3552"), ("s", ".\nSo 3552.")],)
    yield ([("s", "All\n<call>9</call>"), ("t", "tiles: \n"), ("s", " 7<call>2</call>"), ("t", "4\n")],)
    yield ([("s", "Say <call>7</call>"), ("t", "a call is <call>5</call>, see"), ("s", "? yes")],)
    yield ([("s", "<call> 3 </call>"), ("t", "x"), ("s", "a stray <call, and <call>x</call>.")],)
    yield ([("s", "it is <call>5"), ("t", "</call> a tag"), ("s", " 7")],)
    for _ in range(25):
        turns = []
        for k in range(rng.randint(1, 5)):
            text = "".join(rng.choices(_PARTS, k=rng.randint(1, 4)))
            turns.append(("st"[k % 2], text + format_call(rng.randint(1, 40)) * (k % 2 == 0 or rng.random() < 0.2)))
        yield (turns,)


def _viewed(turns: Sequence[tuple[str, str]]) -> str:
    return "".join(strip_calls(text) if writer == "s" else text for writer, text in turns)


def _grids(rng: random.Random) -> Iterator[tuple]:
    yield {"none": 0.48, "small": 0.60, "8B": 0.79, "14B": 0.77}, "8B"
    yield {"none": 0.48, "8B": 0.70, "14B": 0.77}, "8B"
    for _ in range(20):
        names = [f"teacher {k}" for k in range(rng.randint(3, 6))]
        yield {name: round(rng.random(), 3) for name in names}, rng.choice(names)


def _others(accuracy: Mapping[str, float], trained: str) -> list[float]:
    return [value for name, value in accuracy.items() if name != trained]


@exercise(inputs=_histories, show=lambda turns: f"turns = {turns}")
def my_view(turns):
    """What the teacher sees of turns, ("s", text) of the student and ("t", text) of a teacher."""
    return _viewed(turns)


@my_view.mistake("The commands are still in it.")
def commands_left(turns):
    return "".join((text for _, text in turns))


@my_view.mistake("What the teacher wrote is text, even if it looks like a command.")
def strips_the_teacher(turns):
    return "".join((strip_calls(text) for _, text in turns))


@my_view.mistake("Strip each turn of the student by itself: no command goes across a hand-over.")
def strips_across_turns(turns):
    return strip_calls("".join((text for _, text in turns)))


@my_view.mistake("Spaces and line breaks at the ends of a turn belong to the answer.")
def strips_spaces(turns):
    return "".join((strip_calls(text).strip() if writer == "s" else text.strip() for writer, text in turns))


@my_view.mistake("A tag that is never closed is no command: it stays.")
def strips_open_tags(turns):
    return "".join((re.sub("</?call>?", "", strip_calls(text)) if writer == "s" else text for writer, text in turns))


@exercise(inputs=_grids, show=lambda accuracy, trained: f"accuracy = {accuracy}, trained = {trained!r}")
def peak(accuracy, trained):
    """Accuracy with the teacher of the training less that with the best of the others."""
    return accuracy[trained] - max(_others(accuracy, trained))


@peak.mistake("It is compared with itself, too: leave it out of the others.")
def compared_with_itself(accuracy, trained):
    return accuracy[trained] - max(accuracy.values())


@peak.mistake("The best of the others, not their mean: a bad teacher more must not make the peak higher.")
def mean_of_the_others(accuracy, trained):
    return accuracy[trained] - sum(_others(accuracy, trained)) / (len(accuracy) - 1)


@peak.mistake("The best of the others, not the worst.")
def worst_of_the_others(accuracy, trained):
    return accuracy[trained] - min(_others(accuracy, trained))


@peak.mistake("The sign: positive where the teacher of the training is the best.")
def negative_peak(accuracy, trained):
    return max(_others(accuracy, trained)) - accuracy[trained]


@my_view.mistake("What a teacher wrote belongs to the answer. The commands alone go.")
def without_the_teacher(turns):
    return "".join(strip_calls(text) for writer, text in turns if writer == "s")


@my_view.mistake("What a teacher wrote belongs to the answer, and the commands must go.")
def the_student_alone(turns):
    return "".join(text for writer, text in turns if writer == "s")


@my_view.mistake("Nothing stands between two turns: join them without a line break.")
def with_line_breaks(turns):
    return "\n".join(strip_calls(text) if writer == "s" else text for writer, text in turns)


@peak.mistake("A difference is asked for, not a quotient.")
def quotient(accuracy, trained):
    return accuracy[trained] / max(_others(accuracy, trained))


@peak.mistake("It may be negative: then another teacher is the best.")
def never_negative(accuracy, trained):
    return max(0.0, accuracy[trained] - max(_others(accuracy, trained)))
