"""Where calls are, on traces made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from relaylab.evaluation.placement import (
    agreement_frame,
    call_outcome,
    calls_frame,
    place,
    transfer_frame,
    windows_frame,
)
from relaylab.trace import Call, Trace

STEPS = [
    {"expression": "12+3", "result": 15, "kind": "sum"},
    {"expression": "15*47", "result": 705, "kind": "product"},
    {"expression": "705*10", "result": 7050, "kind": "tenfold"},
]
TEXT = "All: 12+3=15.\nIt is 15*47=705.\nIn all 705*10=7050.\n"


def relayed(*calls: tuple[int, int], name: str = "a", text: str = TEXT, **more) -> Trace:
    """An answer of one token a character; at each (character, n) a command of three tokens, then n of the teacher."""
    pieces, source, found, done = [], "", [], 0
    for at, n in calls:
        pieces += text[done:at]
        source += "s" * (at - done)
        start = len(pieces)
        pieces += ["<call>", str(n), "</call>", *text[at : at + n]]
        source += "ccc" + "t" * n
        found.append(Call(start, start + 3, n, n, n, n, teacher="teacher"))
        done = at + n
    pieces += text[done:]
    source += "s" * (len(text) - done)
    problem = {"suite": "tiles", "level": "hard", "steps": STEPS, "answer": "7050"}
    return Trace("q", [1], list(range(len(pieces))), source, pieces, found, **{"id": name, "problem": problem} | more)


def test_a_row_of_a_call():
    trace = relayed((TEXT.index("705."), 2), (TEXT.index("In all"), 7), correct=True)
    one, two = calls_frame([relayed(), trace]).to_dict("records")
    assert (one["trace"], one["id"], one["suite"], one["level"], one["correct"]) == (1, "a", "tiles", "hard", True)
    assert (one["call"], one["start"], one["tokens"]) == (0, 26, len(TEXT) + 6)
    assert one["position"] == 26 / (len(TEXT) + 6)
    assert (one["line"], one["lines"], one["place"]) == (1, 3, "before result")
    # Two of the three digits of step 1.
    assert (one["step"], one["kind"], one["share"], one["results"]) == (1, "product", pytest.approx(2 / 3), 1)
    assert (two["call"], two["line"], two["place"]) == (1, 2, "line start")
    assert pd.isna(two["step"])
    assert pd.isna(two["kind"])
    assert (two["share"], two["results"]) == (0.0, 0)
    assert (one["first"], two["first"]) == (True, False)


def test_the_delegated_step_is_the_one_with_the_largest_share():
    begin = TEXT.index("5.\nIt")  # half of the sum's result, all of the product's, none of the last
    row = calls_frame([relayed((begin, TEXT.index("In all") - begin))]).iloc[0]
    assert (row["step"], row["kind"], row["share"], row["results"]) == (1, "product", 1.0, 2)
    assert (row["line"], row["place"]) == (0, "in result")
    row = calls_frame([relayed((TEXT.index("15."), len(TEXT) - TEXT.index("15.")))]).iloc[0]
    assert (row["step"], row["results"]) == (0, 3)  # all equal: the earliest
    bare = relayed((TEXT.index("705."), 3), problem={})
    row = calls_frame([bare]).iloc[0]
    assert (row["step"], row["kind"], row["share"], row["suite"]) == (1, None, 1.0, None)


def test_a_misconception_is_a_kind_of_its_own():
    steps = [dict(step) for step in relayed().problem["steps"]]
    steps[1]["trap"] = "fact"
    row = calls_frame([relayed((TEXT.index("705."), 2), problem={"steps": steps})]).iloc[0]
    assert (row["step"], row["kind"]) == (1, "fact")


def test_an_unanswered_call_is_a_row_and_makes_no_later_call_a_second_one():
    trace = relayed((2, 3), (20, 4))
    trace.source = trace.source.replace("ttt", "sss", 1)
    trace.calls[0] = Call(2, 5, None, status="malformed")
    frame = calls_frame([trace])
    assert frame["first"].tolist() == [True, True]
    assert frame["outcome"].tolist() == ["malformed", "in full"]
    assert frame["requested"].isna().tolist() == [True, False]
    assert list(calls_frame([relayed()]).columns) == list(frame.columns)
    assert calls_frame([]).empty


def test_outcomes():
    assert call_outcome(Call(0, 1, 20, 20, 20, 20, finish_reason="length")) == "in full"
    assert call_outcome(Call(0, 1, 20, 20, 20, 20, finish_reason="stop")) == "in full"
    assert call_outcome(Call(0, 1, 20, 5, 5, 5)) == "cut by caps"
    assert call_outcome(Call(0, 1, 20, 5, 3, 3, finish_reason="stop")) == "teacher ended"
    assert call_outcome(Call(0, 1, 4, 20, 20, 20)) == "fixed length"
    assert call_outcome(Call(0, 1, 20, 0, status="refused")) == "refused"
    assert call_outcome(Call(0, 1, 20, 20, status="failed")) == "failed"


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [
        ("", "All: 1+2=3.", "line start"),
        ("x=3.\n", "All: 1+2=3.", "line start"),
        ("Al", "l: 1+2=3.", "words"),
        ("All 12 ", "boxes, 3 bags", "words"),  # a number alone is no arithmetic
        ("well-", "known 3", "words"),
        ("All: ", "1+2=3.", "expression"),
        ("All: 1", "2+2=14.", "expression"),
        ("All: 12+", "2=14.", "expression"),
        ("All: 12+2", "=14.", "before result"),
        ("All: 12+2=", "14.", "before result"),
        ("All: 12+2=1", "4.", "in result"),
        ("All: 12+2=14", ".", "after result"),
        ("7*8=56.\nAll: 12", "+2=14.", "expression"),  # the line before does not count
        ("All: 12+2", "\n=14", "expression"),  # nor does the next
    ],
)
def test_places_in_a_line(before, behind, expected):
    assert place(before + behind, len(before)) == expected


def test_a_command_that_shares_tokens_with_the_text_is_cut_out_by_characters():
    """Tokens as real tokenizers cut them: "=<" before a command, ">\\n" behind it."""
    pieces = ["7*8", "=<", "call>2</call", ">5", "6", "\n2*2=", "<", "call>1</call", ">\n4"]
    calls = [Call(1, 4, 2, 2, 1, 1), Call(6, 9, None, status="malformed")]
    steps = [{"expression": "7*8", "result": 56, "kind": "product"}]
    trace = Trace("q", [1], list(range(9)), "sccctsccc", pieces, calls, problem={"steps": steps})
    frame = calls_frame([trace])
    # Of the first call, the "=" stands before it, and "5" behind: its line is the first, its place before the result.
    assert frame["place"].tolist() == ["before result", "before result"]
    assert frame["line"].tolist() == [0, 1]
    assert frame["lines"].tolist() == [3, 3]


def recorded(trace: Trace) -> Trace:
    """Entropy is the token's number, the log-probability its negative."""
    trace.entropies = [float(i) for i in range(len(trace.source))]
    trace.logprobs = [-float(i) for i in range(len(trace.source))]
    return trace


def test_windows_are_aligned_at_the_call_and_behind_the_answer():
    at = TEXT.index("705.")
    frame = windows_frame([recorded(relayed((at, 3)))], width=4, baseline=0)
    assert frame["group"].unique().tolist() == ["call"]
    found = {phase: f.set_index("offset")["entropy"].to_dict() for phase, f in frame.groupby("phase", observed=True)}
    assert found["before"] == {o: at + o for o in range(-4, 1)}  # offset 0: the command's first token
    assert found["teacher"] == {1: at + 3, 2: at + 4, 3: at + 5}
    assert found["after"] == {o: at + 5 + o for o in range(1, 5)}
    assert (frame["logprob"] == -frame["entropy"]).all()


def test_a_silent_call_has_its_first_token_before_and_behind_the_edge():
    trace = Trace("q", [1], [1, 2, 3, 4], "sstt", [*"a=56"], [Call(2, 2, 2, 2, 2, 2)])
    frame = windows_frame([recorded(trace)], width=2, baseline=0)
    assert frame[["phase", "offset", "token"]].to_numpy().tolist() == [
        ["before", -2, 0], ["before", -1, 1], ["before", 0, 2], ["teacher", 1, 2], ["teacher", 2, 3]
    ]  # fmt: skip


def test_windows_end_where_another_writes_and_leave_out_what_is_unknown():
    trace = recorded(relayed((10, 2), (14, 3)))  # two tokens of the student stand between the two
    trace.entropies[9] = trace.logprobs[9] = None
    trace.entropies[8] = None
    one, two = (f for _, f in windows_frame([trace], width=4, baseline=0).groupby("call"))
    assert one[one["phase"] == "before"]["offset"].tolist() == [-4, -3, -2, 0]
    assert one[one["phase"] == "before"]["entropy"].isna().tolist() == [False, False, True, False]
    assert one[one["phase"] == "after"]["offset"].tolist() == [1, 2]
    assert two[two["phase"] == "before"]["token"].tolist() == [15, 16, 17]
    with pytest.raises(ValueError, match="record=True"):
        windows_frame([relayed((10, 2))])
    with pytest.raises(ValueError, match="width is 0"):
        windows_frame([trace], width=0)
    assert windows_frame([recorded(relayed())]).empty


def test_the_baseline_is_at_like_places_far_from_any_call():
    at = TEXT.index("In all")  # a call at a line start: the other two lines begin without one
    trace = recorded(relayed((at, 3)))
    frame = windows_frame([trace], width=3, baseline=5)
    quiet = frame[frame["group"] == "no call"]
    places = quiet[quiet["offset"] == 0]
    assert sorted(places["token"]) == [0, TEXT.index("It is")]  # both, and no more than there are
    assert sorted(places["draw"]) == [0, 1]
    assert set(quiet["phase"]) == {"before", "after"}
    assert frame[frame["group"] == "call"]["draw"].eq(0).all()
    one = windows_frame([trace], width=3, seed=1)
    pd.testing.assert_frame_equal(one, windows_frame([trace], width=3, seed=1))
    assert one[one["group"] == "no call"]["draw"].eq(0).all()
    frames = [
        windows_frame([trace], width=3, seed=seed).query("group == 'no call' and offset == 0") for seed in range(20)
    ]
    assert {int(frame["token"].iloc[0]) for frame in frames} == {0, TEXT.index("It is")}
    # A call within the expression, of which there are two others; but a wide window leaves none without a call in it.
    wide = windows_frame([trace], width=60)
    assert set(wide["group"]) == {"call"}


def runs() -> dict[str, list[Trace]]:
    a, b = TEXT.index("15."), TEXT.index("705.")
    first = [relayed((a, 2), (b, 3), name="x", correct=True), relayed(name="y", correct=False)]
    second = [relayed((a, 2), name="x", correct=False), relayed((b, 3), name="y", correct=True)]
    third = [relayed((a, 1), (b + 1, 2), name="x", correct=True), relayed(name="y", correct=True)]
    return {"big": first, "small": second, "mid": third}


def test_transfer_counts_pairs_of_answers():
    frame = transfer_frame(runs()).set_index("teacher")
    assert frame["accuracy"].to_dict() == {"big": 0.5, "small": 0.5, "mid": 1.0}
    assert frame["gained"].to_dict() == {"big": 0, "small": 1, "mid": 1}
    assert frame["lost"].to_dict() == {"big": 0, "small": 1, "mid": 0}
    n = len(TEXT)
    assert frame.loc["big", "teacher_share"] == 5 / (2 * n + 6)
    assert frame.loc["big", "mean_ratio"] == pytest.approx(5 / (n + 6) / 2)
    assert frame.loc["big", ["calls", "called", "mean_n"]].tolist() == [1.0, 0.5, 2.5]
    assert frame.loc["small", ["calls", "called", "mean_n"]].tolist() == [1.0, 1.0, 2.5]
    # Wilson, 1 of 2 and 2 of 2.
    assert frame.loc["big", "low"] == pytest.approx(0.0945, abs=1e-4)
    assert frame.loc["mid", "low"] == pytest.approx(0.3424, abs=1e-4)
    assert len(transfer_frame(runs(), by="suite")) == 3
    bare = {name: [relayed(name="x", correct=True, problem={})] for name in ("a", "b")}  # neither a suite nor a call
    for by in ("suite", "first_call"):
        frame = transfer_frame(bare, by=by)
        assert frame["teacher"].tolist() == ["a", "b"]
        assert frame[by].isna().all()
    never = transfer_frame({"none": [relayed(correct=True)]}).iloc[0]
    assert np.isnan(never["mean_n"])


def test_agreement_looks_at_first_and_later_calls():
    frame = agreement_frame(runs()).set_index(["a", "b"])
    # x: first calls at one token for all; y: only small calls.
    assert list(frame.columns) == ["problems", "either", "same_first", "later", "same_later"]
    assert frame.loc[("big", "small")].tolist() == [2, 2, 0.5, 1, 0.0]
    assert frame.loc[("big", "mid")].tolist() == [2, 1, 1.0, 1, 1.0]
    silent = agreement_frame({"a": [relayed()], "b": [relayed()]}).iloc[0]
    assert silent[["same_first", "same_later"]].isna().all()


def test_a_problem_with_an_excluded_answer_is_left_out():
    whole, failed = runs(), runs()
    failed["small"].append(relayed(name="z", correct=False, stop="excluded"))
    for name in ("big", "mid"):
        failed[name].append(relayed((TEXT.index("15."), 2), name="z", correct=True))
    assert transfer_frame(failed).equals(transfer_frame(whole))
    assert agreement_frame(failed).equals(agreement_frame(whole))
    with pytest.raises(ValueError, match="every problem has an excluded answer of a or b; decode them again"):
        transfer_frame({"a": failed["small"][2:], "b": failed["big"][2:]})


def test_runs_that_cannot_be_compared_are_refused():
    two, other = runs(), runs()
    other["small"][0].student = "other"
    for make, words in (
        (lambda: transfer_frame({"big": two["big"], "small": two["small"][::-1]}), "'small' are not of the same"),
        (lambda: agreement_frame(other), "several students"),
        (lambda: transfer_frame({}), "no traces"),
        (lambda: agreement_frame({"a": [relayed()]}), "at least two"),
        (lambda: transfer_frame({"a": [relayed()]}), "not graded"),
        (lambda: transfer_frame({"a": [relayed(correct=True)]}, by="colour"), "by is 'colour'"),
        (lambda: transfer_frame({"a": [relayed(correct=True)]}, by="teacher"), "by is 'teacher'; it must be one of id"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
