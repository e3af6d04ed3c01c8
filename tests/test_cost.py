"""Costs are those of the tokens that were run; the document's numbers are computed."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from pathlib import Path

import pytest
from test_player import in_browser

from relaylab.cost import (
    MEASURES,
    HandOff,
    ModelPrices,
    Prices,
    against_router,
    alone,
    breakeven_calls,
    breakeven_delay,
    cost_summary,
    cost_sweep,
    costs,
    hand_offs,
    regular_trace,
    roofline,
    usage,
)
from relaylab.trace import Call, Trace
from relaylab.views.cost_dial import cost_dial

STUDENT = ModelPrices(parameters=10, attention_width=1, input_price=1, output_price=2, prefill_rate=100, decode_rate=10)
TEACHER = ModelPrices(
    parameters=100, attention_width=2, input_price=10, cached_price=1, output_price=40,
    prefill_rate=50, decode_rate=4, row_share=0.5, batch=3,
)  # fmt: skip
PRICES = Prices(student=STUDENT, teacher=TEACHER, network_delay=0.25)


def made(source: str, calls: list[Call], name: str = "a", prompt: int = 4) -> Trace:
    return Trace("q", [1] * prompt, [1] * len(source), source, [""] * len(source), calls, id=name)


def two_calls(name: str = "a") -> Trace:
    """Prompt of 4; the teacher writes 2 behind 6 tokens, and 1 behind 9; the second command is malformed."""
    calls = [Call(2, 3, 2, 2, 2, 2, latency=0.5), Call(6, 7, status="malformed"), Call(8, 9, 1, 1, 1, 1, latency=1)]
    return made("sscttscscts", calls, name)


def test_usage_counts_what_each_model_reads_and_writes():
    assert hand_offs(two_calls()) == [HandOff(3, 6, 0, 2, 2), HandOff(9, 2, 8, 1, 1)]
    row = usage([two_calls()]).iloc[0]
    assert row[["prompt", "tokens", "content", "hand_offs"]].tolist() == [4, 11, 8, 2]
    assert row[["teacher_new", "teacher_again", "teacher_written"]].tolist() == [8, 8, 3]
    assert row[["student_read", "student_written"]].tolist() == [4 + 3, 8]
    # Token i looks at i positions: the teacher ran 11 in all, and without a cache 8 of them once more.
    assert row[["teacher_context", "teacher_context_again", "student_context"]].tolist() == [66, 36, 120]
    assert row.measured_seconds == 1.5
    assert row.teacher_share == 3 / 11


def test_a_failed_call_a_last_answer_and_an_answer_that_is_all_the_teachers():
    failed = made("scsct", [Call(1, 2, 5, 5, status="failed", latency=2), Call(3, 4, 1, 1, 1, 1, latency=1)])
    assert hand_offs(failed) == [HandOff(2), HandOff(4, 6, 0, 1, 1)]
    row = usage([failed]).iloc[0]
    assert row[["hand_offs", "student_read", "student_written"]].tolist() == [2, 4, 4]  # the last answer is not read
    whole = usage([made("ttt", [])])
    row = whole.iloc[0]
    assert row[["teacher_new", "teacher_written", "student_read", "student_written"]].tolist() == [4, 3, 0, 0]
    assert costs(whole, PRICES).student_flops[0] == 0
    refused = made("sc", [Call(1, 2, 5, status="refused")])
    assert usage([refused]).hand_offs[0] == 0
    # Text of another tokenizer: the teacher wrote 3 tokens of its own, which the student reads as 2.
    assert hand_offs(made("ctt", [Call(0, 1, 3, 3, 2, 3)])) == [HandOff(1, 4, 0, 3, 2)]
    assert math.isnan(usage([made("ct", [Call(0, 1, 1, 1, 1, 1)])]).measured_seconds[0])  # no latency recorded
    with pytest.raises(ValueError, match="no trace"):
        usage([])


def test_an_answer_that_was_thrown_away_is_paid_for():
    kept = Trace("q", [1] * 5, [7] * 3, "ttt", ["a"] * 3, config={"discarded_tokens": 4})
    both, alone = usage([kept, replace(kept, config={})]).to_dict("records")
    assert (both["student_read"], both["student_written"], both["student_context"]) == (5, 4, 9 * 10 / 2)
    assert (alone["student_read"], alone["student_written"], alone["student_context"]) == (0, 0, 0)
    assert all(both[k] == alone[k] for k in both if k.startswith("teacher"))


def test_costs_by_hand():
    row = costs(usage([two_calls()]), PRICES).iloc[0]
    step = (1 + 0.5 * 2) / 4
    assert row.student_flops == 2 * 10 * 15 + 4 * 120
    assert row.teacher_flops == 2 * 100 * 11 + 8 * 66
    assert row.student_money == pytest.approx((7 * 1 + 8 * 2) / 1e6)
    assert row.teacher_money == pytest.approx((8 * 10 + 8 * 1 + 3 * 40) / 1e6)
    assert row.student_seconds == pytest.approx(7 / 100 + 8 / 10)
    assert row.teacher_seconds == pytest.approx(8 / 50 + 3 * step)
    assert row.teacher_busy == pytest.approx(8 / 50 + 3 * step / 3)
    assert row.seconds == pytest.approx(row.student_seconds + row.teacher_seconds + 2 * 0.25)
    again = costs(usage([two_calls()]), replace(PRICES, cache=False)).iloc[0]
    assert again.teacher_flops == 2 * 100 * 19 + 8 * (66 + 36)
    assert again.teacher_money == pytest.approx((16 * 10 + 3 * 40) / 1e6)
    assert again.teacher_seconds == pytest.approx(16 / 50 + 3 * step)
    assert again.student_flops == row.student_flops


def test_tokens_are_those_that_the_engines_run():
    from relaylab.engine.load import load_engine
    from relaylab.relay.call_rules import CallAt
    from relaylab.relay.local_teacher import LocalTeacher
    from relaylab.relay.pair import Pair

    student, teacher = load_engine("student"), load_engine("teacher")
    policy = CallAt({3: 4, 14: 3})
    trace = Pair(student, LocalTeacher(teacher)).solve("What is 7+5?", call_rule=policy, max_tokens=40, record=False)
    row = usage([trace]).iloc[0]
    assert len(trace.answered) == 2
    # Neither model runs the last token that it wrote: nobody asks what would come behind it.
    assert teacher.forwarded == row.teacher_new + row.teacher_written - (trace.stop != "teacher_end")
    assert student.forwarded == row.student_read + row.student_written - (trace.stop != "teacher_end")


def test_what_is_not_set_is_unknown_and_not_free():
    bare = Prices(student=ModelPrices(parameters=1), teacher=ModelPrices(parameters=2))
    row = costs(usage([two_calls()]), bare).iloc[0]
    assert row.flops > 0
    assert row[["money", "seconds", "teacher_busy"]].isna().all()
    with pytest.raises(ValueError, match=r"money is unknown.*teacher\.output_price"):
        breakeven_calls(bare, "money", prompt=5, tokens=10, call_tokens=1, command_tokens=1)


def test_summary_is_relative_to_each_model_alone():
    used = usage([two_calls()])
    found = cost_summary([two_calls()], PRICES).set_index("system")
    ratio = costs(used, PRICES).flops[0] / costs(alone(used, "teacher"), PRICES).flops[0]
    assert found.loc["relay", "flops_of_teacher"] == pytest.approx(ratio)
    # 8 tokens without the commands behind a prompt of 4
    assert found.loc["teacher alone", "flops"] == 2 * 100 * 12 + 8 * 78
    assert found.loc["student alone", "seconds"] == pytest.approx(4 / 100 + 8 / 10)
    assert found.loc["teacher alone", "seconds"] == pytest.approx(4 / 50 + 8 * 0.5 + 0.25)
    assert found.loc["student alone", "flops_of_student"] == found.loc["teacher alone", "money_of_teacher"] == 1
    assert found.teacher_share.tolist() == [3 / 11, 1, 0]
    assert set(found.basis[1:]) == {"same responses"}
    longer = cost_summary([two_calls()], PRICES, teacher_alone=[made("s" * 16, [])]).set_index("system")
    flops = 2 * 100 * 20 + 8 * 210
    assert longer.loc["teacher alone", ["basis", "tokens", "flops"]].tolist() == ["measured", 16, flops]
    with pytest.raises(ValueError, match="not of the relay's problems"):
        cost_summary([two_calls()], PRICES, student_alone=[two_calls("b")])


def test_against_the_router_of_the_same_accuracy():
    found = cost_summary([two_calls()], PRICES)
    relay, teacher, student = found.seconds
    saved = against_router(found, 0.6)
    assert saved.teacher_share == pytest.approx(1 - 3 / 11 / 0.6)
    assert saved.seconds == pytest.approx(1 - relay / (0.6 * teacher + 0.4 * student))
    with pytest.raises(ValueError, match="lies in"):
        against_router(found, 60.4)


def test_sweep_has_every_combination_that_fits_and_moves_as_it_must():
    grid = dict(calls=[1, 2, 4], call_tokens=[5, 50], network_delays=[0.0, 1.0], batches=[1, 8])
    frame = cost_sweep(PRICES, prompt=20, tokens=100, command_tokens=2, **grid)
    assert len(frame) == (3 + 2) * 2 * 2 * 2  # four calls of 50 do not fit into 100 tokens
    at = frame.set_index(["call_tokens", "calls", "network_delay", "cache", "batch"]).sort_index()
    for n, calls in ((5, 2), (5, 4), (50, 2)):
        kept, again = at.loc[(n, calls, 0.0, True, 1)], at.loc[(n, calls, 0.0, False, 1)]
        assert all(again[m] > kept[m] for m in MEASURES)
    assert at.loc[(5, 1, 0.0, False, 1), "flops"] == at.loc[(5, 1, 0.0, True, 1), "flops"]  # one call: nothing is twice
    assert at.loc[(5, 4, 1.0, True, 1), "seconds"] > at.loc[(5, 4, 0.0, True, 1), "seconds"]
    assert at.loc[(5, 4, 0.0, True, 8), "teacher_busy"] > at.loc[(5, 4, 0.0, True, 1), "teacher_busy"]
    assert (frame.flops > frame.teacher_share).all()
    with pytest.raises(ValueError, match="no combination"):
        cost_sweep(PRICES, prompt=1, tokens=10, command_tokens=1, calls=[3], call_tokens=[4])


def test_breakeven_is_where_the_costs_meet():
    shape = dict(prompt=50, tokens=60, command_tokens=2, call_tokens=2)
    prices = replace(PRICES, cache=False)
    calls = breakeven_calls(prices, "flops", **shape)
    used = [usage([regular_trace(calls=n, **shape)]) for n in (calls - 1, calls)]
    ratios = [costs(u, prices).flops[0] / costs(alone(u, "teacher"), prices).flops[0] for u in used]
    assert ratios[0] < 1 <= ratios[1]
    free = replace(STUDENT, parameters=1e-6, attention_width=0)
    cheap = Prices(student=free, teacher=replace(TEACHER, attention_width=0))
    assert breakeven_calls(cheap, "flops", **shape | {"call_tokens": 31}) is None  # there is room for one call
    assert breakeven_calls(prices, "flops", **shape | {"call_tokens": 61}) is None  # there is room for none
    delay = breakeven_delay(used[1], PRICES)
    assert calls == 2
    assert breakeven_delay(used[0], PRICES) == math.inf  # one hand-off, as the teacher alone
    met = replace(PRICES, network_delay=delay)
    assert costs(used[1], met).seconds[0] == pytest.approx(costs(alone(used[1], "teacher"), met).seconds[0])
    assert breakeven_delay(usage([made("ss", [])]), PRICES) == math.inf


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ModelPrices(parameters=0), "parameters is 0"),
        (lambda: ModelPrices(parameters=1, output_price=-1), "output_price is -1"),
        (lambda: ModelPrices(parameters=1, decode_rate=math.nan), "decode_rate is nan"),
        (lambda: replace(PRICES, network_delay=-1), "network_delay is -1"),
        (lambda: roofline(1e9, flops=0, bandwidth=1), "flops=0"),
        (lambda: regular_trace(prompt=1, tokens=3, calls=2, call_tokens=2, command_tokens=1), "do not fit"),
        (lambda: alone(usage([two_calls()]), "router"), "'router'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_the_documents_numbers_are_the_codes():
    page = str(Path(__file__).parents[1] / "docs" / "cost.md")
    found = doctest.testfile(page, module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 10
    assert found.failed == 0


FREE = """
const { append } = Element.prototype;
let left = 10_000; // an axis without an end is an error here, not a page that hangs
Element.prototype.append = function (...all) { if (!left--) throw new Error("endless"); append.apply(this, all); };
const field = (words) => [...document.querySelectorAll("label")].find((one) => one.textContent.startsWith(words));
const set = (control, value, name) => ((control.value = value), control.dispatchEvent(new Event(name)));
set(field("cost in").querySelector("select"), "money", "change");
set(document.querySelectorAll("fieldset")[1].querySelectorAll("input")[2], 1, "input"); // the student's output
for (const one of document.querySelectorAll("fieldset")[0].querySelectorAll("input"))
  if (one.closest("label").textContent.startsWith("price")) set(one, 0, "input");
found.drawn = document.querySelectorAll(".rl-was").length;
found.lost = document.querySelectorAll(".rl-line, .rl-chosen").length;
found.words = document.querySelector("p[aria-live]").textContent.split("; ")[1];
"""


def test_the_dial_says_that_a_share_of_nothing_is_unknown(tmp_path):
    found = in_browser(tmp_path, [cost_dial()], FREE)
    assert (found["drawn"], found["lost"]) == (3, 0)  # the lines at the start, and none of now
    assert found["words"] == "price: unknown of the teacher alone."
