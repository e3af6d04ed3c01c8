"""The figures of evaluations hold the numbers of their frames, and say them in words too."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from test_placement import TEXT, recorded, relayed, runs

from relaylab.evaluation.placement import agreement_frame, calls_frame, transfer_frame, windows_frame
from relaylab.views import evaluation_figures as figures
from relaylab.views.theme import show_figure

VERDICTS = ("needed", "wasted, right anyway", "wasted, wrong anyway", "harmful")


def bars(fig) -> dict[str, dict]:
    return {b.name: {x: y for x, y in zip(b.x, b.y) if y} for b in fig.data}


def checked(fig) -> str:
    """Its text alternative, after a look at what all figures have in common."""
    axes = [a.title.text for a in (*fig.select_xaxes(), *fig.select_yaxes()) if a.title.text]
    assert axes
    assert fig.layout.title.text
    assert show_figure(fig).text == fig.layout.meta["alt"]
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
    marks, line = fig.data
    assert list(line.x) == list(line.y) == [1, 3]
    assert sorted(zip(marks.x, marks.y, marks.marker.size)) == [(2, 1, 1), (3, 3, 2)]
    assert "3 calls: 2.7 tokens requested on average, 2.7 granted, 2.3 delivered" in checked(fig)
    calls.loc[0, ["requested", "delivered"]] = 500, 0
    fig = figures.delivery_figure(calls)
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"
    assert min(min(marks.y) for marks in fig.data[:-1]) == 0.5
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
    assert {d.line.dash for d in fig.data} == {"solid", "dot"}
    assert "log-probability" in checked(figures.window_figure(frame, value="logprob"))
    with pytest.raises(ValueError, match="value is 'surprise'"):
        figures.window_figure(frame, value="surprise")


def test_figures_of_effects():
    verdicts = pd.DataFrame({"suite": ["x", "x", "y"], "with": [1.0, 1, 0], "against": [0.0, 1, 0]})
    verdicts["verdict"] = pd.Categorical([VERDICTS[0], VERDICTS[1], VERDICTS[2]], categories=VERDICTS)
    fig = figures.verdict_figure(verdicts)
    assert bars(fig) == {VERDICTS[0]: {"x": 1}, VERDICTS[1]: {"x": 1}, VERDICTS[2]: {"y": 1}}
    assert "66.7 % with the call, 33.3 % otherwise" in checked(fig)

    rows = [("x", "with", 0, 0, 0), ("x", "without", 0.5, 0.25, 0.75), ("y", "without", -0.5, np.nan, np.nan)]
    effects = pd.DataFrame(rows, columns=["suite", "arm", "gain", "low", "high"])
    fig = figures.effects_figure(effects)
    assert [d.name for d in fig.data] == ["without"]
    assert (list(fig.data[0].x), list(fig.data[0].y)) == (["x", "y"], [50, -50])
    assert (list(fig.data[0].error_y.array), list(fig.data[0].error_y.arrayminus)) == ([25, 0], [25, 0])
    assert "over without +50 in x, -50 in y" in checked(fig)
    nameless = figures.effects_figure(effects.assign(suite=["x", None, "y"]))
    assert list(nameless.data[0].x) == ["none", "y"]
    with pytest.raises(ValueError, match="there are no"):
        figures.effects_figure(effects[:1])


def test_figures_of_teachers_and_hostile_names():
    bad = "<b onclick='x'>$x$"
    two = {bad: runs()["big"], "mid": runs()["mid"]}
    for by in (None, "suite"):
        fig = figures.transfer_figure(transfer_frame(two, by=by), by=by)
        assert list(fig.data[0].y) == [50, 100]
        assert fig.data[0].error_y.array[1] == pytest.approx(0)
        assert list(fig.data[0].x) == ["&lt;b onclick='x'&gt;&#36;x&#36;", "mid"]
        assert list(fig.data[1].y) == pytest.approx(100 * transfer_frame(two)["teacher_share"])
        assert "mid" in checked(fig)
    silent = transfer_frame({"mid": [relayed(correct=True)]}, by="first_call")
    assert "mid in none 100.0 % right" in checked(figures.transfer_figure(silent, by="first_call"))
    fig = figures.agreement_figure(agreement_frame(two))
    assert fig.data[0].z[0][1] == fig.data[0].z[1][0] == 100
    assert not set("<$") & set("".join(fig.data[0].x))
    assert "100 % of 1 lines (first calls alike in 100 % of 1 problems)" in checked(fig)
    assert not re.search("<b onclick", show_figure(fig).html)


# Cost -----------------------------------------------------------------------------------------------------------------


def test_the_figure_of_the_load_has_both_times_and_the_utilisation():
    curve = pd.DataFrame({"system": ["a<b>", "a<b>"], "rate": [0.1, 1], "p50": [1.0, 2], "p95": [2.0, 9]})
    fig = figures.fleet_load(curve.assign(utilisation=[0.2, 0.9]))
    assert sorted(list(line.y) for line in fig.data) == [[1, 2], [2, 9], [20, 90]]
    assert "a<b>: 95th percentile 2 s at 0.1 requests/s and 9 s at 1, where the replica works 90 %" in checked(fig)
    assert {line.name.split(",")[0] for line in fig.data} == {"a&lt;b&gt;"}
    with pytest.raises(ValueError, match="no simulated load"):
        figures.fleet_load(pd.DataFrame())


# Names and what is not known ------------------------------------------------------------------------------------------

LONG = [f"relay:student=/data/projects/relay/runs/2026-11/qwen3-06b/checkpoint-{k}00" for k in (1, 2)]


def test_long_names_that_begin_alike_stay_apart():
    rows = [(name, "s", f"s{i}", k) for k, name in enumerate(LONG) for i in range(2)]
    table = pd.DataFrame(rows, columns=["method", "suite", "id", "correct"])
    fig = figures.suite_bars(table)
    assert [list(b.y) for b in fig.data] == [[0], [100]]
    titles = [panel.text for panel in fig.layout.annotations]
    assert [text[:1] + text[-14:] for text in titles] == ["…checkpoint-100", "…checkpoint-200"]
    curve = pd.DataFrame({"system": LONG, "rate": 1.0, "p50": [1.0, 3.0], "p95": [2.0, 4.0], "utilisation": 0.5})
    assert all(len(line.x) == 1 for line in figures.fleet_load(curve).data)
    effects = pd.DataFrame({"suite": LONG, "arm": "without", "gain": [0.1, 0.2], "low": 0.0, "high": 0.3})
    assert len(set(figures.effects_figure(effects).data[0].x)) == 2
    verdicts = pd.DataFrame({"suite": LONG, "verdict": "needed", "with": 1.0, "against": 0.0})
    assert list(figures.verdict_figure(verdicts).data[0].y) == [1, 1]


@pytest.mark.parametrize(
    ("methods", "kinds"),
    [
        (["entropy:threshold=5.3e-05,n=8", "entropy:threshold=0.1,n=8"], ["entropy"]),
        (["x:threshold=-1.5,n=4", "x:threshold=+2,n=4"], ["x"]),
        (["relay:student=1.7b-run", "relay:student=8b-run"], ["relay:student=1.7b-run", "relay:student=8b-run"]),
    ],
)
def test_methods_that_differ_in_numbers_alone_are_one_line(methods, kinds):
    rows = [(name, f"q{i}", i % 2, 2, 10) for name in methods for i in range(4)]
    table = pd.DataFrame(rows, columns=["method", "id", "correct", "teacher_tokens", "tokens"])
    table = table.assign(student="s", sample=0, call_ratio=0.2, content_ratio=0.2, calls=1)
    assert [line.name for line in figures.accuracy_against_share(table).data] == kinds


def test_what_is_not_known_is_said():
    rows = [("a", s, i, c) for s, i, c in (("s1", "x", 1), ("s1", "y", 0), ("s2", "z", np.nan))]
    table = pd.DataFrame(rows, columns=["method", "suite", "id", "correct"])
    assert checked(figures.suite_bars(table)).endswith("a: s1 50 %, s2 unknown.")
    effects = pd.DataFrame({"suite": ["s"], "arm": ["without"], "gain": np.nan, "low": np.nan, "high": np.nan})
    assert checked(figures.effects_figure(effects)).endswith("over without unknown in s.")
    pairs = {"a": ["x"], "b": ["y"], "same_first": np.nan, "either": 0, "same_later": np.nan, "later": 0}
    alt = checked(figures.agreement_figure(pd.DataFrame(pairs)))
    assert alt.endswith("x and y none of 0 lines (no problem has a call).")
