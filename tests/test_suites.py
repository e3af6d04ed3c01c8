"""The embedded suites: reproducible, split cleanly, and arithmetically right."""

import hashlib
import itertools
import operator
import random
import re
from dataclasses import replace
from fractions import Fraction

import pytest

from relaylab.engine.load import embedded_tokenizer
from relaylab.tasks.grading import extract_boxed, grade
from relaylab.tasks.suites import (
    ALL_SUITES,
    ITEMS,
    NAMES,
    PLANS,
    SCENES,
    SUITES,
    level_of,
    mixture,
    problem,
    problem_texts,
    problems,
    split_of,
)  # fmt: skip
from relaylab.tasks.worlds import WORLDS

# Models ship that were trained on these texts: a change of a word or of a draw must be a decision.
PINNED = {
    "savings": "e977c6d42f04bc01",
    "shopping": "5dcd0aa0d31e6232",
    "sharing": "69802172de0b9338",
    "bakery": "052f49f037319eaf",
    "convoy": "4e55de2438598d25",
    "tiles": "16d6e5a4626d346f",
    "depot": "9c8f0d9d7e4fe3b1",
    "harvest": "e865a665fa5eea8d",
    "galaxy": "445140d7af062afd",
    "measures": "a8e920c448323d50",
    "plots": "45598851963d1a69",
}

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": Fraction}


def evaluate(expression: str) -> Fraction:
    a, sign, b = re.fullmatch(r"(\d+)([-+*/])(\d+)", expression).groups()
    return Fraction(OPERATORS[sign](int(a), int(b)))


@pytest.mark.parametrize("suite", ALL_SUITES)
def test_problems_are_pinned(suite):
    settings = itertools.product(("train", "test"), (0, 7), (*WORLDS, "h2c1"), (False, True))
    some = [
        problems(suite, 5, split=split, seed=seed, world=world, textbook=textbook)
        for split, seed, world, textbook in settings
    ]
    assert hashlib.blake2b(repr(some).encode(), digest_size=8).hexdigest() == PINNED[suite]


def test_problems_are_functions_of_their_arguments():
    assert problems("depot", 3, start=5) == [problem("depot", i) for i in (5, 6, 7)]
    assert problem("depot", 1, seed=1) != problem("depot", 1, seed=2)
    assert [p.suite for p in itertools.islice(mixture(), 12)] == [*SUITES, *SUITES[:3]]
    assert next(mixture(split="test", seed=3, suites=("tiles",))) == problem("tiles", 0, split="test", seed=3)


def test_errors_name_what_is_known():
    with pytest.raises(ValueError, match=r"unknown suite 'soup'.*savings.*galaxy"):
        problem("soup", 0)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        problem("savings", 0, split="dev")


def test_train_and_test_share_no_question():
    draws = list(itertools.product(SUITES, (0, 1, 12345)))
    questions = {
        split: {p.question for suite, seed in draws for p in problems(suite, 200, split=split, seed=seed)}
        for split in ("train", "test")
    }
    assert min(map(len, questions.values())) > 5000  # so questions hardly repeat either
    assert not questions["train"] & questions["test"]
    assert all(split_of(question) == split for split in questions for question in questions[split])


@pytest.mark.parametrize("suite", SUITES)
def test_solutions_are_right(suite):
    for p in problems(suite, 300, split="train", seed=3):
        *lines, last = p.solution.splitlines()
        known = set(re.findall(r"\d+", p.question))
        for line, step in zip(lines, p.steps, strict=True):
            assert re.fullmatch(r"[A-Z][A-Za-z ]+: (.+)\.", line)[1] == f"{step.expression}={step.result}"
            assert evaluate(step.expression) == step.result > 0
            assert set(re.findall(r"\d+", step.expression)) <= known  # the question and earlier lines have all numbers
            known.add(str(step.result))
        assert last == rf"The answer is \boxed{{{p.answer}}}."
        assert extract_boxed(p.solution) == p.answer == str(p.steps[-1].result)
        assert grade(p.solution, p.answer)
        assert not grade(p.solution, str(int(p.answer) + 1))
        assert (p.suite, p.level) == (suite, level_of(suite))
        assert sum(step.hard for step in p.steps) == (p.level in ("hard", "beyond"))


@pytest.mark.parametrize("suite", SUITES)
def test_each_suite_has_at_least_24_templates(suite):
    words = re.compile(rf"\b({'|'.join(NAMES + ITEMS)}|\d+)\b")
    assert len({words.sub("#", p.question) for p in problems(suite, 800, split="train", seed=5)}) >= 24


@pytest.mark.parametrize("suite", SUITES)
def test_every_phrasing_of_a_scene_tells_its_numbers(suite):
    numbers = PLANS[suite][1](random.Random(0)).numbers
    for scene in SCENES[suite]:
        told = []
        for sentence in scene.sentences:
            fields = {frozenset(re.findall(r"{([a-e])}", phrasing)) for phrasing in sentence}
            assert len(fields) == 1, sentence  # another phrasing must not drop a number
            told += fields.pop()
        assert sorted(told) == sorted(numbers)


def test_about_one_question_in_eight_is_for_testing():
    share = sum(split_of(str(i)) == "test" for i in range(8000)) / 8000
    assert 0.11 < share < 0.14


@pytest.mark.parametrize("suite", SUITES)
def test_a_solution_runs_over_40_to_150_tokens_and_its_hard_step_is_a_small_part(suite):
    tokenizer = embedded_tokenizer()
    for p in problems(suite, 60):
        length = len(tokenizer(p.solution)["input_ids"])
        assert 40 <= length <= 150
        assert all(len(str(step.result)) <= 0.12 * length for step in p.steps if step.hard)


def test_the_texts_of_problems_say_how_they_are_graded():
    one = problem("tiles", 0)
    assert problem_texts([one]) == [[one.id, one.question, one.answer]], "as in folders that were made before"
    graded = [one, *(replace(one, **way) for way in ({"kind": "number"}, {"unit": "m"}, {"tolerance": 10.0}))]
    assert len({str(texts) for texts in problem_texts(graded)}) == 4
