"""The worlds: one set of questions, worded four ways, with a textbook that is wrong where the dial says so."""

from __future__ import annotations

import re

import pytest

from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import ALL_SUITES, problem, problems, suite_of
from relaylab.tasks.worlds import CLOSINGS, JOINTS, OPENINGS, WORLDS, WRONG_SHARE, find_world


@pytest.mark.parametrize("suite", ALL_SUITES)
def test_worlds_change_the_wording_alone(suite):
    for index in range(20):
        plain = problem(suite, index, world="plain")
        for world in WORLDS:
            other = problem(suite, index, world=world)
            assert (other.id, other.question, other.answer) == (plain.id, plain.question, plain.answer)
            numbers = re.findall(r"\d+", re.sub(r"(?m)^\(\d\) | ", "", other.solution))
            assert numbers == re.findall(r"\d+", plain.solution), "the same sums in the same order"


def test_a_line_has_as_many_choice_points_as_the_dial_says():
    texts = {h: "\n".join(p.solution for p in problems("tiles", 60, world=f"h{h}c0")) for h in range(4)}
    openings = tuple(dict.fromkeys(f"{o}, " for group in OPENINGS for o in group))
    joints, closings = [j for pair in JOINTS[1:] for j in pair[:2]], [c for c, _ in CLOSINGS[1:]]
    kinds = ([re.escape(o) for o in openings], [rf"{j} \d" for j in joints], [re.escape(c) for c in closings])
    seen = {h: tuple(any(re.search(p, t) for p in patterns) for patterns in kinds) for h, t in texts.items()}
    assert seen == {0: (False,) * 3, 1: (True, False, False), 2: (True, True, False), 3: (True,) * 3}
    assert texts[0] == "\n".join(p.solution for p in problems("tiles", 60, world="plain"))
    used = {o for o in openings if f"\n{o}" in texts[3] or texts[3].startswith(o)}
    assert used == set(openings), "every opening comes up"


@pytest.mark.parametrize(("suite", "trap"), [("measures", "fact"), ("plots", "route")])
@pytest.mark.parametrize("wrong_scenes", [0, 1, 4])
def test_the_textbook_is_wrong_in_the_scenes_of_the_dial_and_the_answer_never(suite, trap, wrong_scenes):
    wrong = 0
    for index in range(400):
        p = problem(suite, index, world=f"h0c{wrong_scenes}", textbook=True)
        truth = problem(suite, index, world=f"h0c{wrong_scenes}")
        assert p.answer == truth.answer == str(truth.steps[-1].result)
        assert [s.trap for s in p.steps] == [trap, "", ""]
        assert p.solution.endswith(f"\\boxed{{{p.steps[-1].result}}}.")
        wrong += p.steps[-1].result != truth.steps[-1].result
    assert wrong / 400 == pytest.approx(WRONG_SHARE * wrong_scenes / 4, abs=0.06)


def test_a_route_leads_the_right_way_through_a_hard_step_and_a_fact_does_not():
    assert all(p.steps[0].hard for p in problems("plots", 40))
    assert not any(s.hard for p in problems("measures", 40) for s in p.steps)
    beliefs = [p for p in problems("plots", 40, world="stubborn", textbook=True) if p.answer != str(p.steps[-1].result)]
    assert beliefs
    assert not any(p.steps[0].hard for p in beliefs), "the believed way is easy"


def test_every_question_tells_its_suite_and_no_other_text_does():
    for suite in ALL_SUITES:
        assert {suite_of(p.question) for p in problems(suite, 60)} == {suite}
    tom = "If Tom has 12 apples and buys 7 more, how many apples does he have?"
    question = problem("tiles", 0).question
    assert [suite_of(t) for t in (tom, question + " Why?", question.replace("tiles", "owls"), "")] == [None] * 4


def test_an_embedded_student_that_is_asked_anything_else_says_so(recwarn):
    pair = load_pair("student", "none")
    pair.solve(problem("tiles", 0), max_tokens=3)
    pair.solve(problem("tiles", 0).question + "\nThink.", max_tokens=3)
    assert not [w for w in recwarn if "suite" in str(w.message)]
    with pytest.warns(UserWarning, match=r"of no embedded suite.*problem\('tiles', 0\) draws a question"):
        pair.solve("If Tom has 12 apples and buys 7 more?", max_tokens=3)


def test_an_unknown_world_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match="unknown world 'h4c0'; there are plain, wordy, stubborn, lifelike"):
        problem("tiles", 0, world="h4c0")
    assert find_world("h3c4") == WORLDS["lifelike"]
