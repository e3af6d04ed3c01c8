"""Rewards on groups made by hand: every cell of the table, every ablation, and the exploit that they must withstand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaylab.trace import Call, Trace
from relaylab.training.rewards import (
    advantages,
    cost_aware,
    difficulty_aware,
    kind_of,
    outcome,
    ratios,
    rolled_back,
    score,
    simple,
)


def rollout(
    source: str, correct: bool | None, *, requested: int | None = None, pieces: list[str] | None = None
) -> Trace:
    """A trace whose tokens are one letter each; a run of ``t`` behind ``c`` is an answered call."""
    calls = []
    for i, letter in enumerate(source):
        if letter == "c" and source[i - 1 : i] != "c":
            end = next((k for k in range(i, len(source)) if source[k] != "c"), len(source))
            n = len(source[end:]) - len(source[end:].lstrip("t"))
            status = "answered" if n else "empty"
            calls.append(Call(i, end, (requested or n) if n else None, n, n, n, status))
    pieces = pieces or ["<call>"[: 6 if k == "c" else 0] or "x" for k in source]
    return Trace("q", [1], list(range(len(source))), source, pieces, calls, correct=correct)


ALONE_RIGHT, ALONE_WRONG = rollout("ssss", True), rollout("ssss", False)
HELPED_RIGHT, HELPED_WRONG = rollout("sctts" * 2, True), rollout("sctss", False)  # rho 0.4 and 0.2
IGNORED = rollout("sscs", False)  # a call that nobody answered is no help


CELLS = [
    # group, rewards under the paper's values
    ([ALONE_RIGHT, HELPED_RIGHT, ALONE_WRONG, HELPED_WRONG], [1.5, 0.6, 0, 0]),  # solvable
    ([HELPED_RIGHT, ALONE_WRONG, HELPED_WRONG, IGNORED], [0.6, -1, 0, -1]),  # dependent
    ([ALONE_WRONG, HELPED_WRONG, IGNORED], [0, 0.2, 0]),  # unsolvable
]


def test_the_cost_of_a_rollout_is_what_both_models_read_and_wrote():
    """FLOPs in units of 2 x the student's parameters; the teacher has 10 times as many, and the prompt one token."""
    alone = (1 + 4) * 1
    helped = (5 + 6) * 1 + ((2 + 2) + (2 + 2)) * 10  # 2 new tokens before each call, and 2 written
    teacher_short, teacher_long = (1 + 4) * 10, (1 + 8) * 10
    found = cost_aware([ALONE_RIGHT, HELPED_RIGHT], cost_weight=0.5)
    assert found == pytest.approx([1 - 0.5 * alone / teacher_long, 1 - 0.5 * helped / teacher_short])
    assert cost_aware([ALONE_WRONG], cost_weight=0.5) == pytest.approx([-0.5 * alone / teacher_short])
    assert cost_aware([HELPED_WRONG, ALONE_WRONG], cost_weight=0) == [0, 0]
    padded = rollout("sctts" * 2 + "s" * 30, True)
    for group in ([HELPED_RIGHT, ALONE_RIGHT], [HELPED_RIGHT, HELPED_WRONG]):
        assert cost_aware([padded, *group[1:]])[0] < cost_aware(group)[0], "padding pays for itself only"


def test_every_cell_of_the_table_and_the_plainer_rewards():
    assert ratios([ALONE_RIGHT, HELPED_RIGHT, HELPED_WRONG, IGNORED]) == [0, 0.4, 0.2, 0]
    assert [kind_of(group) for group, _ in CELLS] == ["solvable", "dependent", "unsolvable"]
    for rewards, (_, expected) in zip(score([group for group, _ in CELLS]), CELLS, strict=True):
        assert rewards == pytest.approx(expected), "no group decides about another"
    assert simple(CELLS[0][0]) == pytest.approx([1, 0.6, 0, -0.2])
    assert outcome(CELLS[0][0]) == [1, 1, 0, 0]


def test_the_ablations_change_their_own_cell_alone():
    solvable, dependent, unsolvable = (group for group, _ in CELLS)
    assert difficulty_aware(solvable, bonus=1.0) == pytest.approx([1, 0.6, 0, 0])
    assert difficulty_aware(dependent, bonus=1.0) == pytest.approx([0.6, -1, 0, -1])
    assert difficulty_aware(unsolvable, exploration_cap=0.0) == [0, 0, 0]
    assert difficulty_aware(solvable, exploration_cap=0.0) == pytest.approx([1.5, 0.6, 0, 0])
    assert difficulty_aware(solvable, rho_weight=3) == pytest.approx([1.5, -0.2, 0, 0])
    assert difficulty_aware(dependent, penalty=0.0) == pytest.approx([0.6, 0, 0, 0])


def test_an_ungraded_trace_is_no_wrong_one():
    for function in (outcome, simple, difficulty_aware, kind_of):
        with pytest.raises(ValueError, match="not graded"):
            function([rollout("ss", None)])


def test_unknown_schemes_and_ratios_are_named():
    with pytest.raises(ValueError, match="'best'"):
        score([[ALONE_RIGHT]], "best")
    with pytest.raises(ValueError, match="'mean'"):
        simple([ALONE_RIGHT], ratio="mean")


# The exploit -------------------------------------------------------------------------------------------------------


def padded(trace: Trace, pieces: list[str]) -> Trace:
    """The same answer with tokens of the student's put behind it."""
    ids = trace.completion_ids + [99] * len(pieces)
    return Trace(
        "q", [1], ids, trace.source + "s" * len(pieces), trace.pieces + pieces, trace.calls, correct=trace.correct
    )


def test_stray_tags_dilute_the_papers_ratio_and_no_other():
    one, other = HELPED_RIGHT, rollout("s" * 8, True)
    tricked = padded(one, ["<call", ">"] * 15)
    group, tricks = [one, other], [tricked, other]
    assert ratios(group)[0] == 0.4
    assert ratios(tricks)[0] == 0.1  # the exploit: reward without an answer that is any better
    assert ratios(group, "content")[0] == ratios(tricks, "content")[0] == 0.5  # 4 of 8: two commands do not count
    assert ratios(group, "group")[0] == ratios(tricks, "group")[0] == 0.5  # 4 of the other's 8
    # Words dilute the content ratio as well; the one of the group they do not.
    words = [padded(one, [" so"] * 24), other]
    assert ratios(words, "content")[0] == 0.125
    assert ratios(words, "group")[0] == 0.5


sources = st.text("sct", min_size=1, max_size=30)


@given(
    sources,
    st.lists(sources, min_size=1, max_size=4),
    st.lists(st.sampled_from(["<call", ">", "x", " 7"]), max_size=40),
)
def test_nothing_that_a_rollout_adds_makes_its_group_ratio_smaller(own, others, more):
    def plain(source):
        return Trace("q", [1], list(range(len(source))), source, ["y"] * len(source), correct=True)

    rest = [plain(s) for s in others]
    before = ratios([plain(own), *rest], "group")[0]
    after = ratios([padded(plain(own), more), *rest], "group")[0]
    if any(set(s) != {"c"} for s in others):  # others that have content
        assert after == before
    assert 0 <= before <= 1


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=16))
def test_advantages_are_centred_and_scaled(rewards):
    found = advantages(rewards)
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    assert found == pytest.approx([(r - mean) / (std + 1e-4) for r in rewards], abs=1e-6)


# The released code -------------------------------------------------------------------------------------------------


def test_rolled_back_deletes_the_whole_turn_of_an_answered_call():
    trace = rollout("sscctt" + "sct" + "ss", True)
    trace.completion_ids = list(range(11))
    back = rolled_back(trace)
    assert back.completion_ids == [4, 5, 8, 9, 10]  # both turns that called are gone, with their text
    assert back.source == "sssss"  # and nothing tells the teacher's tokens from the student's
    assert back.calls == []
    assert trace.source == "sscctt" + "sct" + "ss", "the trace itself is left alone"


def test_the_released_code_takes_traces_with_statistics():
    trace = rollout("sscctt", True)
    trace.alternatives = [{"a": 1.0}] * 6
    trace.divergences, trace.teacher_top = [0.0] * 6, ["a"] * 6
    assert score([[trace]], released_code=True) == score([[rollout("sscctt", True)]], released_code=True)


def test_the_released_code_takes_a_helped_answer_for_an_unaided_one():
    assert score([[HELPED_RIGHT, ALONE_WRONG]], released_code=True) == [[1.5, 0]]
    assert score([[HELPED_RIGHT, ALONE_WRONG]]) == [[pytest.approx(0.6), -1]]


def test_the_released_codes_kind_is_that_of_the_whole_batch():
    waiting = rollout("ssss", False)
    waiting.calls = [Call(1, 3, 30, status="refused")]  # a command that stayed in the text
    alone = score([[waiting, ALONE_WRONG]], released_code=True)
    assert alone == [[1.0, 0]], "unsolvable: the requested n, 30, over 4 tokens, at most 1"
    assert score([[waiting, ALONE_WRONG], [ALONE_RIGHT]], released_code=True)[0] == [0, 0], "another prompt decides"


def test_the_released_code_takes_no_options():
    for options in ({"ratio": "group"}, {"scheme": "simple"}):
        with pytest.raises(ValueError, match="released_code"):
            score([[ALONE_RIGHT]], released_code=True, **options)
