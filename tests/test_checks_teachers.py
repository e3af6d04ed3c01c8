"""The exercises of lessons 06 to 10: their references say what the package says, and numbers get their hints."""

from __future__ import annotations

import pytest

from lesson.checks import CHECKS, NotYet, check
from relaylab.engine.load import embedded_tokenizer
from relaylab.engine.token_text import TokenText
from relaylab.evaluation.stats import paired
from relaylab.trace import Call, Trace


def test_the_ban_is_the_one_of_the_sampler():
    text = TokenText(embedded_tokenizer())
    for turn in (b"", b"3 <", b"3 <c", b"3 <ca", b"3 <cal", b"<<", b"</c", b"<call"[:4] + b" "):
        assert CHECKS["banned"].right(text.bytes, turn) == text.forbidden(turn).tolist()


def test_the_paired_error_gives_the_interval_of_the_bootstrap():
    a, b = [1.0, 1, 0, 1, 1, 0, 1, 1] * 25, [1.0, 0, 0, 1, 0, 0, 1, 1] * 25
    found, error = paired(a, b), CHECKS["paired_error"].right(a, b)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_lead_that_is_kept():
    assert check("kept_lead")((60.26 - 59.51) / (66.78 - 59.51)) == "kept_lead is right."
    wrong = {
        10.3: "as a share of 1",
        0.247: "the easy column of Relay simple",
        -0.69: "the hard column of Relay difficulty-aware",
        0.75: "in points; divide it",
        0.5: "divide it by the lead over GRPO with the teacher",
        "0.1": "it is a number",
    }
    for answer, hint in wrong.items():
        with pytest.raises(NotYet, match=hint):
            check("kept_lead")(answer)


def test_the_view_is_the_one_of_a_trace():
    pieces = ["7*8=", "<call>2</call>", "5", "<call>1</call>", ".\n"]
    trace = Trace("q", [1], [1, 2, 3, 4, 5], "sctts", pieces, [Call(1, 2, 2, 2, 2)])
    assert CHECKS["my_view"].right(list(trace.segments())) == trace.teacher_view == "7*8=5<call>1</call>.\n"


def test_the_peak_is_positive_for_the_best_alone():
    accuracy = {"none": 0.4, "8B": 0.8, "14B": 0.7}
    assert [CHECKS["peak"].right(accuracy, name) > 0 for name in accuracy] == [False, True, False]
