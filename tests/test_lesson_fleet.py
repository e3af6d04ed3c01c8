"""The simulated teacher machine of lesson 15 obeys the laws of queues, and the prices of ``cost.py``."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest

from relaylab.cost import HandOff, ModelPrices, Prices, alone, costs, regular_trace, usage
from relaylab.trace import Trace

SPEC = importlib.util.spec_from_file_location("lesson_fleet", Path(__file__).parents[1] / "notebooks/lesson/fleet.py")
fleet = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fleet)

STUDENT = ModelPrices(parameters=10, prefill_rate=100, decode_rate=10)
TEACHER = ModelPrices(parameters=100, prefill_rate=50, decode_rate=4, row_share=0.5)
PRICES = Prices(student=STUDENT, teacher=TEACHER, network_delay=0.25)
PLAN = ([0.0, 0.0], [HandOff(0, new=50, written=4)])  # 1 s of reading, and 1 s of writing for one row
TRACE = regular_trace(prompt=20, tokens=60, calls=3, call_tokens=8, command_tokens=1)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_row_at_a_time_is_the_queue_m_d_1(load):
    result = fleet.simulate([PLAN], replace(PRICES, network_delay=0.0), 1, rate=load / 2, requests=20_000)
    # Pollaczek and Khinchine: the mean wait of M/D/1 is load / (2 (1 - load)) services.
    assert result["mean"] == pytest.approx(2 * (1 + load / (2 * (1 - load))), rel=0.03)
    assert result["utilisation"] == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize("cache", [True, False])
def test_a_flooded_machine_does_what_the_bound_allows_and_no_more(cache):
    prices = replace(PRICES, cache=cache)
    plans = fleet.relay_plans([TRACE], prices)
    bound = fleet.capacity(plans, prices, 4)
    result = fleet.simulate(plans, prices, 4, rate=100 * bound, requests=3000)
    assert result["throughput"] == pytest.approx(bound, rel=0.03)
    assert result["utilisation"] > 0.99


def test_an_empty_machine_answers_as_the_costs_say():
    relay = fleet.simulate(fleet.relay_plans([TRACE], PRICES), PRICES, 4, rate=1e-4, requests=50)
    assert relay["p50"] == pytest.approx(costs(usage([TRACE]), PRICES).seconds[0])
    whole = fleet.simulate(fleet.teacher_plans([TRACE]), PRICES, 4, rate=1e-4, requests=50)
    assert whole["p50"] == pytest.approx(costs(alone(usage([TRACE]), "teacher"), PRICES).seconds[0])


def test_load_carried_and_projected():
    systems = {"relay": fleet.relay_plans([TRACE], PRICES), "teacher alone": fleet.teacher_plans([TRACE])}
    curve = fleet.load_curve(systems, PRICES, 4, [0.02, 0.1], requests=200)
    assert curve.system.tolist() == ["relay"] * 2 + ["teacher alone"] * 2
    assert curve.p95[1] > curve.p95[0]
    one = fleet.carried(systems["relay"], PRICES, 4, requests=200)
    assert 0 < one < fleet.capacity(systems["relay"], PRICES, 4)
    table = fleet.projection(systems, PRICES, 4, requests_per_second=1e6, requests=200).set_index("system")
    assert table.loc["relay", "replicas"] == math.ceil(1e6 / one)
    assert table.loc["relay", "replicas"] < table.loc["teacher alone", "replicas"]
    nobody = fleet.relay_plans([Trace("q", [1], [1], "s", ["a"])], PRICES)
    assert fleet.carried(nobody, PRICES, 4) == math.inf
