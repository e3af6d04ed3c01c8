"""The numbers of the lab and the dial, which the page computes, are those of the package."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace

import pytest
from test_player import evaluate
from test_view import Page

from relaylab.cost import MEASURES, ModelPrices, Prices, cost_sweep
from relaylab.training.rewards import rolled_back
from relaylab.views.cost_dial import cost_dial, example_prices
from relaylab.views.reward_lab import EXAMPLE, SCHEMES, Rollout, reward_lab, reward_table


def some_rollout(rng: random.Random) -> Rollout:
    calls = rng.choice((0, 0, 1, 2, 3))
    teacher = calls and rng.randint(calls, 60)
    own, ignored = rng.choice((0, 1, 7, 70)), rng.choice((0, 0, 1, 3))
    return Rollout(correct=rng.random() < 0.4, own=own, teacher=teacher, calls=calls, ignored=ignored)


def test_the_port_of_the_rewards_is_the_original():
    rng, cases, expected = random.Random(5), [], []
    schemes = Page(reward_lab().html).data["schemes"]
    assert [s["name"] for s in schemes] == list(SCHEMES)
    for k in range(300):
        group = [some_rollout(rng) for _ in range(rng.randint(1, 8))]
        options = {"ratio": ("paper", "content", "group")[k % 3], "command_tokens": rng.randint(1, 9)}
        options |= {"requested": rng.randint(1, 90), "batch_solved": rng.random() < 0.3}
        cases.append({"group": [asdict(r) for r in group], "settings": options, "schemes": schemes})
        table = reward_table(group, **options)
        expected.append(table[["rho", "reward", "advantage"]].to_numpy().tolist())
    found = evaluate(
        "reward_lab",
        "data.map(({group, settings, schemes}) => { const rho = shares(group, settings);"
        "return schemes.flatMap((s) => { const paid = rewards(group, settings, s), gains = advantages(paid);"
        "return paid.map((p, k) => [rho[k], p, gains[k]]); }); })",
        cases,
    )
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=1e-9)
    kinds = {math.copysign(1, row[1]) for rows in expected for row in rows}
    assert kinds == {1.0, -1.0}  # penalties were among them


def test_an_edit_keeps_a_rollout_possible():
    rollout = asdict(Rollout(correct=False, own=9))
    edits = [["teacher", 5], ["calls", 7], ["teacher", 3], ["calls", 0], ["own", -4], ["own", 1e9], ["ignored", None]]
    states = evaluate(
        "reward_lab",
        "data[1].reduce((all, [name, value]) => [...all, edited(all.at(-1), name, value, 10000)], [data[0]])",
        [rollout, edits],
    )
    assert [(s["teacher"], s["calls"]) for s in states[:5]] == [(0, 0), (5, 1), (7, 7), (3, 3), (0, 0)]
    assert [s["own"] for s in states[5:]] == [0, 10_000, 10_000]
    for state in states:
        Rollout(**state)


def test_a_rollout_in_counts_is_the_trace_it_says():
    trace = Rollout(correct=True, own=5, teacher=3, calls=1, ignored=2).trace(command_tokens=2, requested=9)
    assert trace.source == "ssccttt" + "sss" + "cccc"
    refused = ("refused", 9, 0)
    assert [(c.status, c.requested, c.delivered) for c in trace.calls] == [("answered", 3, 3), refused, refused]
    assert trace.content_ratio == 3 / 8
    assert rolled_back(trace).source == "s" * (3 + 3 + 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rollout(correct=True, own=-1), "own is -1"),
        (lambda: Rollout(correct=True, own=1, teacher=2), "nothing is delivered without a call"),
        (lambda: Rollout(correct=True, own=1, teacher=1, calls=2), "1 teacher tokens of 2 calls"),
        (lambda: reward_lab([EXAMPLE[0]] * 9), "9 rollouts; the lab takes 1 to 8"),
        (lambda: reward_table([EXAMPLE[0]], ratio="half"), "ratio is 'half'"),
        (lambda: reward_table([EXAMPLE[0]], requested=0), "requested are 6 and 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_lab_in_words():
    lab = reward_lab()
    assert lab.text.startswith("Reward lab: a solvable group of 8 rollouts.")
    words = Page(lab.html).words
    assert "Rollout 4, right, 70 own tokens, 6 of the teacher in 2 answered calls, 3 calls that nobody ans" in words
    row = reward_table(EXAMPLE).query("scheme == 'simple' and rollout == 2").iloc[0]
    assert f"simple {row.reward:.2f}, advantage {row.advantage:+.2f}" in words


STUDENT = ModelPrices(parameters=10, attention_width=1, input_price=1, output_price=2, prefill_rate=100, decode_rate=10)
TEACHER = ModelPrices(
    parameters=100, attention_width=2, input_price=10, cached_price=1, output_price=40, prefill_rate=50,
    decode_rate=4, row_share=0.5, batch=3,
)  # fmt: skip
PRICES = Prices(student=STUDENT, teacher=TEACHER, network_delay=0.25)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("prices", [PRICES, example_prices()], ids=["made up", "example"])
def test_the_port_of_the_costs_is_the_original(prices, cache):
    prices = replace(prices, cache=cache)
    fixed = {"network_delays": [prices.network_delay], "caches": [cache], "batches": [prices.teacher.batch]}
    # The last three: no token is the student's own; nor is there a command.
    shapes = [(4, 40, 1, (1, 3, 7), (1, 5)), (150, 1000, 8, (1, 10, 100), (1, 10)), (0, 30, 2, (1, 2), (3, 10))]
    shapes += [(4, 20, 3, (4,), (5,)), (4, 20, 0, (4,), (5,)), (4, 20, 0, (1,), (20,))]
    cases, expected = [], []
    for prompt, tokens, command, calls, call_tokens in shapes:
        shape = {"prompt": prompt, "tokens": tokens, "command_tokens": command}
        for row in cost_sweep(prices, **shape, calls=calls, call_tokens=call_tokens, **fixed).itertuples():
            cases.append({"prices": asdict(prices), "shape": shape, "calls": row.calls, "n": row.call_tokens})
            expected.append([row.teacher_share, *(getattr(row, measure) for measure in MEASURES)])
    found = evaluate(
        "cost_dial",
        "data.map((c) => { const r = compare(c.prices, c.shape, c.calls, c.n);"
        f"return [r.teacher_share, ...{list(MEASURES)}.map((m) => r.relative[m])]; }})",
        cases,
    )
    assert found == [pytest.approx(row, rel=1e-12) for row in expected]


def test_what_is_not_set_is_unknown_not_nought():
    bare = Prices(student=ModelPrices(parameters=1), teacher=ModelPrices(parameters=10))
    assert "price unknown" in cost_dial(bare).text
    case = {"prices": asdict(bare), "shape": {"prompt": 5, "tokens": 50, "command_tokens": 2}}
    relative = evaluate("cost_dial", "compare(data.prices, data.shape, 2, 3).relative", case)  # NaN is null in JSON
    assert relative["flops"] > 0
    assert relative["money"] is relative["seconds"] is relative["teacher_busy"] is None


def test_a_model_of_twice_the_size_is_half_as_fast():
    model = asdict(example_prices().teacher)
    factors = {"parameters": 2, "prefill_rate": 0.5, "decode_rate": 0.5}
    twice = evaluate("cost_dial", "resized(data, 2 * data.parameters)", model)
    assert twice == model | {name: factor * model[name] for name, factor in factors.items()}


def test_the_ladder_of_calls_fits_into_the_response():
    found = evaluate("cost_dial", "[ladder(1000, 100), ladder(49, 10), ladder(5, 6)]", None)
    assert found == [[1, 2, 5, 10], [1, 2], []]
