"""The paper's numbers agree with each other and with what it says of them; the scorecard decides by intervals alone."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from relaylab.evaluation.published import (
    FIGURE_3,
    FULL,
    IN_DOMAIN,
    NOT_TESTED,
    OUT_OF_DOMAIN,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_5,
    Measured,
    averages,
    claims,
    markdown,
    matched_p,
    published,
    random_router,
    scorecard,
)

METHOD = Path(__file__).parents[2] / "shared" / "method.md"


def test_printed_averages_are_the_means_of_the_columns():
    frame = averages()
    assert len(frame) == len(TABLE_1) + 6
    assert frame.agrees.all(), frame[~frame.agrees].to_string()


def test_accuracies_are_whole_counts_of_right_answers_but_for_citer():
    sizes = (272, 500, 1319, 675, 30 * 32, 30 * 32)  # problems; of AIME with 32 samples of each
    broken = {
        system
        for (_, system), row in TABLE_1.items()
        for value, n in zip(row, sizes)
        if abs(100 * round(value * n / 100) / n - value) > 0.0051
    }
    assert broken == {"CITER"}


def test_tables_agree_where_they_print_the_same_number():
    *_, accuracy, ratio = TABLE_1["1.7B", FULL]
    assert TABLE_3["full"] == TABLE_5["learned n"] == (accuracy, ratio)
    assert FIGURE_3["8B"] == accuracy
    assert TABLE_1.keys() == TABLE_2.keys()


def test_the_random_router_reproduces_the_abstract():
    base, teacher = TABLE_1["1.7B", "base"][6], TABLE_1["8B", "teacher"][6]
    relay, ratio = TABLE_1["1.7B", FULL][6:]
    p = matched_p(base, teacher, relay)
    assert random_router(base, teacher, p) == pytest.approx(relay)
    assert round(100 * (1 - ratio / (100 * p)), 1) == 98.2
    assert round(relay - random_router(base, teacher, ratio / 100), 1) == 6.9


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


def test_the_frame_is_tidy_and_whole():
    frame = published()
    assert frame.value.notna().all()
    assert not frame.duplicated(["source", "student", "system", "metric", "set"]).any()
    assert frame.value.between(0, 100).all()
    counts = frame.groupby("source").size().to_dict()
    ratios = sum(row[-1] is not None for row in TABLE_1.values())
    assert counts == {
        "table 1": len(TABLE_1) * (len(IN_DOMAIN) + 1) + ratios,
        "table 2": len(TABLE_2) * len(OUT_OF_DOMAIN),
        "table 3": 8,
        "table 4": 10,
        "table 5": 8,
        "figure 3": 1,
    }


@pytest.mark.skipif(not METHOD.exists(), reason="the notes on the paper are not beside this checkout")
def test_table_1_is_as_noted_from_the_paper():
    text = METHOD.read_text()
    for (student, system), row in TABLE_1.items():
        line = re.search(rf"^\| {re.escape(student)} {re.escape(system)} \|(.*)\|$", text, re.M)[1]
        numbers = [float(cell) for cell in line.split("|") if cell.strip()]
        assert numbers == [value for value in row if value is not None], (student, system)


def test_claims_have_figures_from_the_tables_on_the_claimed_side():
    known = claims()
    assert len({c.id for c in known}) == len(known)
    unpublished = {c.id for c in known if c.paper is None}
    assert unpublished == {"swap-peak", "swap-weak"}
    assert all(c.paper > 0 for c in known if c.id not in unpublished)
    figures = {c.id: round(c.paper, 2) for c in known if c.paper is not None}
    assert figures["relay-above-grpo"] == 5.46
    assert figures["gap-recovered"] == 60.41
    assert figures["citer-accuracy"] == 2.71
    assert figures["transfer-grpo"] == 4.92
    assert figures["free-hard"] == 3.07
    assert figures["length-ratio"] == 0.25


def test_the_interval_decides():
    card = scorecard(
        {
            "relay-above-grpo": Measured(5, 0.1, 9, note="three seeds"),
            "filter-accuracy": Measured(-5, -9, -0.1),
            "bonus-ratio": Measured(1, 0, 2),
            "gap-recovered": Measured(62.5, 54.6, 68.8),
            "citer-accuracy": "no router was trained",
        }
    ).set_index("id")
    assert card.loc["relay-above-grpo", ["verdict", "note"]].tolist() == ["holds", "three seeds"]
    assert card.loc["filter-accuracy", "verdict"] == "does not"
    assert card.loc["bonus-ratio", "verdict"] == "undecided"  # an interval that ends at 0 has not left it
    assert card.loc["gap-recovered", ["paper", "ours"]].tolist() == ["+60.41 %", "+62.50 % (+54.60, +68.80)"]
    assert card.loc["citer-accuracy", ["ours", "verdict", "note"]].tolist() == [
        "-",
        NOT_TESTED,
        "no router was trained",
    ]
    assert card.loc["swap-peak", ["paper", "verdict"]].tolist() == ["above 0", NOT_TESTED]
    assert card.loc["swap-peak", "note"].startswith("needs relay with a smaller")
    assert [c.id for c in claims()] == card.index.tolist()


def test_markdown_keeps_its_columns_whatever_a_note_says():
    table = markdown(scorecard({"swap-weak": "a|b\nc \\"}))
    lines = table.splitlines()
    assert len(lines) == 2 + len(claims())
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert r"a\|b c \\ |" in table
