"""The figures of evaluations hold the numbers of their frames."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
from test_cost import swept
from test_placement import TEXT, recorded, relayed, runs

from relaylab.evaluation.placement import agreement_frame, calls_frame, transfer_frame, windows_frame
from relaylab.views import placement_figures as figures
from relaylab.views.cost_figures import cost_against_share, fleet_load
from relaylab.views.theme import described

VERDICTS = ("needed", "wasted, right anyway", "wasted, wrong anyway", "harmful")


def bars(fig) -> dict[str, dict]:
    return {b.name: {x: y for x, y in zip(b.x, b.y) if y} for b in fig.data}


def checked(fig) -> str:
    """Its text alternative, after a look at what all figures have in common."""
    axes = [a.title.text for a in (*fig.select_xaxes(), *fig.select_yaxes()) if a.title.text]
    assert axes
    assert fig.layout.title.text
    assert described(fig).text == fig.layout.meta["alt"]
    return fig.layout.meta["alt"]


def test_figures_of_calls_hold_the_counts():
    calls = calls_frame([relayed((TEXT.index("15."), 2), (TEXT.index("705."), 3)), relayed((TEXT.index("In all"), 3))])
    fig = figures.position_figure(calls)
    assert {name: sum(b.values()) for name, b in bars(fig).items()} == {"no result": 1, "product": 1, "sum": 1}
    assert bars(fig)["sum"] == {17.5: 1}  # token 10 of 55
    assert "no result 1, product 1, sum 1" in checked(fig)
    assert len({b.marker.pattern.shape for b in fig.data}) == 3  # colour does not speak alone

    fig = figures.delegation_figure(calls)
    assert bars(fig) == {"line start": {"no result": 1}, "before result": {"product": 1, "sum": 1}}
    assert "the teacher writes 100 % of it" in checked(fig)

    calls.loc[0, "delivered"] = 1
    fig = figures.delivery_figure(calls)
    line, marks = fig.data
    assert list(line.x) == list(line.y) == [1, 3]
    assert sorted(zip(marks.x, marks.y, marks.customdata[:, 0])) == [(2, 1, 1), (3, 3, 2)]
    assert "3 calls: 2.7 tokens requested on average, 2.7 granted, 2.3 delivered" in checked(fig)
    calls.loc[0, ["requested", "delivered"]] = 500, 0
    fig = figures.delivery_figure(calls)
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"
    assert min(fig.data[1].y) == 0.5
    for figure in (figures.position_figure, figures.delegation_figure, figures.delivery_figure):
        with pytest.raises(ValueError, match="there are no"):
            figure(calls[:0])


def test_the_figure_of_windows_has_means_and_their_errors():
    traces = [recorded(relayed((TEXT.index("In all"), 3))) for _ in range(2)]
    traces[1].entropies = [e + 2 for e in traces[1].entropies]
    frame = windows_frame(traces, width=3)
    fig = figures.window_figure(frame)
    before = next(d for d in fig.data if d.name == "call" and d.xaxis == "x")
    assert list(before.x) == [-3, -2, -1, 0]
    at = TEXT.index("In all")
    assert list(before.y) == [at - 2, at - 1, at, at + 1]
    assert before.error_y.array == pytest.approx([1.96] * 4)  # two values 2 apart: a standard error of 1
    assert f"{at + 1:.2f} nats where a call begins (n = 2)" in checked(fig)
    assert {d.line.dash for d in fig.data} == {"solid", "dash"}
    assert "log-probability" in checked(figures.window_figure(frame, value="logprob"))
    with pytest.raises(ValueError, match="value is 'surprise'"):
        figures.window_figure(frame, value="surprise")


def test_figures_of_effects():
    verdicts = pd.DataFrame({"suite": ["x", "x", "y"], "with": [1.0, 1, 0], "against": [0.0, 1, 0]})
    verdicts["verdict"] = pd.Categorical([VERDICTS[0], VERDICTS[1], VERDICTS[2]], categories=VERDICTS)
    fig = figures.verdict_figure(verdicts)
    assert bars(fig) == {VERDICTS[0]: {"x": 1}, VERDICTS[1]: {"x": 1}, VERDICTS[2]: {"y": 1}, VERDICTS[3]: {}}
    assert "66.7 % with the call, 33.3 % otherwise" in checked(fig)

    effects = pd.DataFrame(
        {
            "suite": ["x", "x", "y"],
            "arm": pd.Categorical(["with", "without", "without"], categories=["with", "without"]),
            "calls": [4, 4, 2],
            "accuracy": [0.75, 0.25, 0.5],
            "gain": [0.0, 0.5, -0.5],
            "low": [0.0, 0.25, np.nan],
            "high": [0.0, 0.75, np.nan],
        }
    )
    fig = figures.effects_figure(effects)
    assert [d.name for d in fig.data] == ["without"]
    assert (list(fig.data[0].x), list(fig.data[0].y)) == ([0, 1], [50, -50])
    assert (list(fig.data[0].error_y.array), list(fig.data[0].error_y.arrayminus)) == ([25, 0], [25, 0])
    assert "over without +50 in x, -50 in y" in checked(fig)
    with pytest.raises(ValueError, match="there are no"):
        figures.effects_figure(effects[:1])


def test_figures_of_teachers_and_hostile_names():
    bad = "<b onclick='x'>$x$"
    two = {bad: runs()["big"], "mid": runs()["mid"]}
    for fig in (
        figures.transfer_figure(transfer_frame(two)),
        figures.transfer_figure(transfer_frame(two, by="suite"), by="suite"),
    ):
        assert list(fig.data[0].y) == [50, 100]
        assert fig.data[0].error_y.array[1] == pytest.approx(0)
        assert list(fig.data[0].x) == [0, 1]
        assert not set("<$") & set("".join(fig.layout.xaxis.ticktext))
        assert "mid" in checked(fig)
    fig = figures.agreement_figure(agreement_frame(two))
    assert fig.data[0].z[0][1] == fig.data[0].z[1][0] == 100
    assert fig.data[0].text.tolist() == [["", "100 %"], ["100 %", ""]]
    assert not set("<$") & set("".join(fig.data[0].x))
    assert "100 % of 1 lines (first calls alike in 100 % of 1 problems)" in checked(fig)
    assert not re.search("<b onclick", described(fig).html)


def test_figure_of_the_cost_has_the_numbers_of_the_sweep():
    frame = swept()
    frame = frame[(frame.batch == 1) & (frame.call_tokens == 5)]
    fig = cost_against_share(frame, measure="seconds")
    lines = {line.name: line for line in fig.data}
    assert set(lines) == {
        "cost = share",
        *(f"{cache}, {delay} s a hand-off" for cache in ("cache kept", "no cache") for delay in (0, 1)),
    }
    part = frame[frame.cache & (frame.network_delay == 1)]
    line = lines["cache kept, 1 s a hand-off"]
    assert list(line.x) == (100 * part.teacher_share).tolist()
    assert list(line.y) == (100 * part.seconds).tolist()
    assert (line.line.dash, lines["no cache, 1 s a hand-off"].line.dash) == ("solid", "dash")
    assert list(lines["cost = share"].x) == list(lines["cost = share"].y)
    assert f"cache kept, 1 s a hand-off: {100 * part.seconds.iloc[0]:.3g} %" in fig.layout.meta["alt"]
    assert "(%)" in fig.layout.yaxis.title.text


def test_the_figure_of_a_load_has_its_numbers():
    rows = [("relay", 1.0, 2.0, 3.0, 0.5), ("relay", 2.0, 3.0, 5.0, 0.9)]
    curve = pd.DataFrame(rows, columns=["system", "rate", "p50", "p95", "utilisation"])
    fig = fleet_load(curve)
    assert list(fig.data[0].y) == [3, 5]
    assert list(fig.data[2].y) == [50, 90]
    assert "relay: 95th percentile 3 s" in fig.layout.meta["alt"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: cost_against_share(swept(), measure="tokens"), "'tokens'"),
        (lambda: cost_against_share(swept().assign(money=math.nan), measure="money"), "no value of money"),
        (lambda: fleet_load(pd.DataFrame()), "no simulated load"),
    ],
)
def test_a_figure_without_values_is_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
