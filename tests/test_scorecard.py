"""The paper's numbers agree with each other, our figures are the definitions, and intervals alone decide."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from relaylab.evaluation.scorecard import (
    CLAIMS,
    NOT_TESTED,
    Measured,
    Names,
    markdown,
    matched_p,
    measured,
    paper_tables,
    random_router,
    scorecard,
)
from relaylab.tasks.suites import ALL_SUITES
from relaylab.training.configs import read_config

METHOD = Path(__file__).parents[2] / "shared" / "method.md"
LEVELS = ["easy"] * 20 + ["hard"] * 20


# The paper ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table_1():
    """(student, system) x (benchmarks, Avg, call ratio)"""
    paper = paper_tables()
    rows = paper[paper.source == "table 1"].copy()
    rows["column"] = rows.set.where(rows.metric == "accuracy", "Call")
    return rows.pivot(index=["student", "system"], columns="column", values="value")


BENCHMARKS = {"Minerva": 272, "MATH-500": 500, "GSM8K": 1319, "Olympiad": 675, "AIME25": 30 * 32, "AIME24": 30 * 32}


def test_printed_averages_are_the_means_of_the_columns(table_1):
    assert ((table_1[[*BENCHMARKS]].mean(axis=1) - table_1.Avg).abs() <= 0.01).all()
    paper = paper_tables()
    table_4 = paper[(paper.source == "table 4") & ~paper.system.str.contains("without") | (paper.key == "grpo")]
    parts = {"Easy": [*BENCHMARKS][:4], "Hard": [*BENCHMARKS][4:]}
    for row in table_4[table_4.source == "table 4"].itertuples():
        mean = table_1.loc["1.7B", row.system.split(",")[0]][parts[row.set]].mean()
        assert mean == pytest.approx(row.value, abs=0.01)


def test_accuracies_are_whole_counts_of_right_answers_except_for_citer(table_1):
    values, sizes = table_1[[*BENCHMARKS]], pd.Series(BENCHMARKS)
    off = (100 * (values * sizes / 100).round() / sizes - values).abs() > 0.0051
    assert set(off.index[off.any(axis=1)].get_level_values("system")) == {"CITER"}


def test_the_tables_are_whole_and_agree_where_they_print_one_number():
    paper = paper_tables()
    assert paper.value.between(0, 100).all()
    assert not paper.duplicated(["source", "student", "system", "metric", "set"]).any()
    counts = {"table 1": 84, "table 2": 33, "table 3": 8, "table 4": 10, "table 5": 8, "figure 3": 1}
    assert paper.groupby("source").size().to_dict() == counts
    same = paper[(paper.set == "Avg") & (paper.student == "1.7B") & (paper.key == "relay")]
    assert same.groupby("metric").value.nunique().to_dict() == {"accuracy": 1, "call ratio": 1}
    assert set(paper[paper.source == "figure 3"].value) == {49.52}


@pytest.mark.skipif(not METHOD.exists(), reason="the notes on the paper are not beside this checkout")
def test_table_1_is_as_noted_from_the_paper(table_1):
    for (student, system), row in table_1.iterrows():
        line = re.search(rf"^\| {re.escape(student)} {re.escape(system)} \|(.*)\|$", METHOD.read_text(), re.M)[1]
        numbers = [float(cell) for cell in line.split("|") if cell.strip()]
        assert numbers == row[[*BENCHMARKS, "Avg", "Call"]].dropna().tolist()


def test_the_random_router_reproduces_the_abstract(table_1):
    base, teacher = table_1.Avg["1.7B", "base"], table_1.Avg["8B", "teacher"]
    relay, ratio = table_1.loc["1.7B", "Relay difficulty-aware"][["Avg", "Call"]]
    p = matched_p(base, teacher, relay)
    assert random_router(base, teacher, p) == pytest.approx(relay)
    figures = {c.id: c.paper for c in CLAIMS}
    assert round(figures["router-cost"], 1) == 98.2 == round(100 * (1 - ratio / (100 * p)), 1)
    assert round(figures["router-resource"], 1) == 6.9 == round(relay - random_router(base, teacher, ratio / 100), 1)


def test_claims_have_figures_from_the_tables_on_the_claimed_side():
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) == 24
    assert {c.id for c in CLAIMS if c.paper is None} == {"swap-peak", "swap-weak"}
    assert all(c.paper > 0 for c in CLAIMS if c.paper is not None)
    figures = {c.id: round(c.paper, 2) for c in CLAIMS if c.paper is not None}
    expected = {"relay-above-grpo": 5.46, "gap-recovered": 60.41, "citer-accuracy": 2.71, "filter-ratio": 2.23}
    expected |= {"transfer-grpo": 4.92, "free-hard": 3.07, "free-easy": 0.75, "length-ratio": 0.25}
    assert expected.items() <= figures.items()


# Our measurements -----------------------------------------------------------------------------------------------------


def rows(method, right, ratio, student="", levels=LEVELS):
    ids = [f"p{i}" for i in range(40)]
    frame = pd.DataFrame({"method": method, "student": student, "sample": 0, "id": ids, "level": levels})
    return frame.assign(suite=levels, correct=[float(x) for x in right], call_ratio=ratio)


@pytest.fixture
def table():
    easy, half, none = [1] * 20, [1] * 10 + [0] * 10, [0] * 20
    parts = [rows("student", easy + none, 0.0), rows("teacher", easy + easy, 1.0), rows("grpo", half + none, 0.0)]
    parts += [rows("relay", easy + half, 0.1, "a"), rows("relay", easy + easy, 0.1, "b")]  # the second seed solves all
    return pd.concat([*parts, rows("teacher-free", easy + none, 0.0), rows("fixed", easy + half, 0.3)])


def test_every_claim_has_an_answer_and_the_figures_are_the_definitions(table):
    ours = measured(table)
    assert set(ours) == {c.id for c in CLAIMS}
    # relay: 20 easy right, of the hard ones 10 by both students and 10 by one: (20 + 10 + 5) / 40
    expected = {
        "gap-recovered": 75.0,  # (87.5 - 50) / (100 - 50)
        "relay-above-grpo": 87.5 - 25,
        "grpo-above-base": -25.0,
        "router-resource": 87.5 - 50 - 0.1 * 50,
        "router-cost": 100 * (1 - 0.1 / 0.75),
        "free-easy": 50.0,
        "free-hard": 75.0,
        "length-accuracy": 87.5 - 75,
        "length-ratio": 20.0,
    }
    assert {name: ours[name].value for name in expected} == pytest.approx(expected)
    assert "2 students of relay" in ours["relay-above-grpo"].note
    assert ours["grpo-above-base"].verdict == "does not"
    missing = {"filter-accuracy": "ablations/no-filter", "swap-peak": "relay:teacher=teacher-large"}
    assert all(label in ours[name] for name, label in missing.items())
    # 20 of 40 problems differ by 1 or 0.5: the spread is that of the differences.
    assert 50 < ours["free-hard"].low < 75 < ours["free-hard"].high < 100
    card = scorecard(ours).set_index("id")
    assert card.loc[["relay-above-grpo", "swap-peak"], "verdict"].tolist() == ["holds", NOT_TESTED]


def test_the_only_relay_is_the_relay_whatever_its_student(table):
    mine = table.replace({"method": {name: f"{name}:student=runs/a" for name in ("relay", "teacher-free", "grpo")}})
    ablation = rows("relay:student=ablations/simple", [1] * 40, 0.1)
    assert measured(pd.concat([mine, ablation])) == {
        k: v if isinstance(v, str) else replace(v, note=v.note.replace("of relay", "of relay:student=runs/a"))
        for k, v in measured(pd.concat([table, ablation])).items()
    }
    several = measured(pd.concat([mine, rows("relay:student=runs/b", [1] * 40, 0.1)]))
    assert several["gap-recovered"] == "not evaluated: relay"
    assert measured(ablation)["gap-recovered"].startswith("not evaluated: relay,")


def test_an_excluded_answer_takes_its_problem_out_of_the_pair(table):
    table = table.assign(excluded=((table.method == "grpo") & (table.id == "p0")).astype(int))
    ours = measured(table)["relay-above-grpo"]
    assert ours.note.startswith("39 problems")
    assert ours.value == pytest.approx(100 * (34 - 9) / 39)


def test_a_peak_is_over_the_best_of_the_other_teachers(table):
    """relay: 87.5 % right. Of the others the weakest is right in none, the larger in 75 %, the smaller in 80 %."""
    swaps = {"student": [0] * 40, "teacher-large": [1] * 30 + [0] * 10, "teacher-small": [0] * 8 + [1] * 32}
    swapped = [rows(f"relay:teacher={name}", right, 0.1) for name, right in swaps.items()]
    peak = measured(pd.concat([table, *swapped]))["swap-peak"]
    assert peak.value == pytest.approx(87.5 - 80)
    assert peak.low < 7.5 < peak.high


def test_transfer_counts_the_suites_that_training_never_saw():
    suites = ["savings"] * 20 + ["sharing"] * 5 + ["convoy"] * 5 + ["harvest"] * 10
    right = {"student": [1] * 20 + [0] * 20, "relay:student=ablations/relay-six": [0] * 20 + [1] * 15 + [0] * 5}
    right |= {"grpo:student=ablations/grpo-six": [1] * 25 + [0] * 15}
    table = pd.concat(rows(name, values, 0.1) for name, values in right.items()).assign(suite=suites * 3)
    ours = measured(table, Names())
    assert ours["transfer-base"].value == pytest.approx(75.0)
    assert ours["transfer-grpo"].value == pytest.approx(50.0)
    assert "20 problems" in ours["transfer-base"].note
    six = read_config("embedded/ablations/relay-six")["suites"]
    assert set(six) == set(ALL_SUITES) - set(Names().unseen), "which six-suite students are not trained on"


def test_a_small_gap_has_a_finite_interval_and_no_gap_no_figure():
    """The student solves 20 of 40 problems, the relay 21, and the teacher 22 or 20."""

    def ours(teacher):
        solved = {"student": 20, "relay": 21, "teacher": teacher}
        return measured(pd.concat([rows(m, [1] * n + [0] * (40 - n), 0.1) for m, n in solved.items()]))

    near = ours(22)
    assert near["gap-recovered"].value == 50
    assert (near["gap-recovered"].low, near["gap-recovered"].high) == (0, 100)
    assert near["router-cost"].value == pytest.approx(100 * (1 - 0.1 / 0.5))
    assert near["router-cost"].low == -math.inf  # where the relay gains nothing, a router needs no teacher
    assert near["router-cost"].high == pytest.approx(90)
    assert near["router-cost"].verdict == "undecided"
    same = ours(20)
    assert same["gap-recovered"] == "the teacher is not better than the student on these 40 problems"
    assert "-inf" in scorecard(near).set_index("id").loc["router-cost", "ours"]


def test_one_problem_has_no_interval():
    table = pd.concat(rows(m, [m != "student"] * 40, 0.1) for m in ("student", "relay", "teacher"))
    ours = measured(table[table["id"] == "p0"])
    assert ours["gap-recovered"] == "one problem has no interval; evaluate more of them"
    assert scorecard(ours).set_index("id").loc["gap-recovered", "verdict"] == NOT_TESTED


# The card -------------------------------------------------------------------------------------------------------------


def test_the_interval_decides():
    measurements = {
        "relay-above-grpo": Measured(5, 0.1, 9, note="three seeds"),
        "filter-accuracy": Measured(-5, -9, -0.1),
        "bonus-ratio": Measured(1, 0, 2),
        "gap-recovered": Measured(62.5, 54.6, 68.8),
        "citer-accuracy": "no router was trained",
    }
    card = scorecard(measurements).set_index("id")
    assert card.loc["relay-above-grpo", ["verdict", "note"]].tolist() == ["holds", "three seeds"]
    assert card.loc["filter-accuracy", "verdict"] == "does not"
    assert card.loc["bonus-ratio", "verdict"] == "undecided"  # an interval that ends at 0 has not left it
    assert card.loc["gap-recovered", ["paper", "ours"]].tolist() == ["+60.41 %", "+62.50 % (+54.60, +68.80)"]
    expected = ["-", NOT_TESTED, "no router was trained"]
    assert card.loc["citer-accuracy", ["ours", "verdict", "note"]].tolist() == expected
    assert card.loc["swap-peak", ["paper", "verdict"]].tolist() == ["above 0", NOT_TESTED]
    assert card.loc["swap-peak", "note"] == "needs relay, weak, small, strong"
    assert [c.id for c in CLAIMS] == card.index.tolist()


def test_markdown_keeps_its_columns_whatever_a_note_holds():
    table = markdown(scorecard({"swap-weak": "a|b\nc \\"}))
    lines = table.splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert r"a\|b c \\ |" in table


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: random_router(40, 50, 60.4), r"p is 60\.4"),
        (lambda: matched_p(50, 50, 50), "not above"),
        (lambda: matched_p(40, 50, 51), "between 40 and 50"),
        (lambda: Measured(1, 2, 3), "does not lie"),
        (lambda: Measured(float("nan"), 0, 1), "does not lie"),
        (lambda: scorecard({"relay-wins": Measured(1, 0, 2)}), "no claim 'relay-wins'.*relay-above-grpo"),
        (lambda: markdown(pd.DataFrame({"claim": []})), "no column 'paper'"),
    ],
)
def test_bad_input_is_named(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
