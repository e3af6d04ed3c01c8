"""The map: where a world lies, and who wins there at a budget."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from relaylab.cli import main
from relaylab.engine.load import embedded, fingerprint_weights, manifest
from relaylab.evaluation import method_map
from relaylab.evaluation.method_map import (
    compared,
    draw_map,
    measure_dials,
    measure_world,
    pair_of,
    students,
    winners,
    worlds,
)
from relaylab.files import read_json
from relaylab.views.method_map import map_figure
from relaylab.zoo.verify import DIALS

PROBLEMS = 40


def evaluated(**methods: tuple[int, int]) -> pd.DataFrame:
    """A table in which a method solves the first of 40 problems, and its teacher writes some of 100 tokens of each."""
    rows = []
    for name, (right, teacher) in methods.items():
        for i in range(PROBLEMS):
            row = {"id": f"tiles-test-{i}", "method": name, "student": name, "sample": 0, "correct": float(i < right)}
            row |= {"teacher_tokens": teacher, "tokens": 100, "calls": 1.0}
            rows.append(row | {"call_ratio": teacher / 100, "content_ratio": teacher / 100})
    return pd.DataFrame(rows)


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


@pytest.fixture
def table() -> pd.DataFrame:
    return evaluated(**{
        "student": (10, 0), "teacher": (40, 100), "relay:student=a+b": (30, 4), "grpo:student=c": (14, 0),
        "entropy:threshold=2,n=3": (18, 2), "entropy:threshold=1,n=3": (29, 9), "probe:threshold=0.5,n=3": (12, 5),
    })  # fmt: skip


@pytest.fixture
def chosen() -> pd.DataFrame:
    rows = [("entropy", 0.02, "entropy:threshold=2,n=3"), ("entropy", 0.05, "entropy:threshold=2,n=3"),
            ("entropy", 0.1, "entropy:threshold=1,n=3"), ("probe", 0.05, "probe:threshold=0.5,n=3")]  # fmt: skip
    return pd.DataFrame(rows, columns=["trigger", "budget", "method"])


def test_the_most_accurate_method_within_a_budget_wins(table, chosen):
    won = winners(table, chosen, budgets=(0.0, 0.02, 0.05, 0.1)).set_index("budget")
    assert won["winner"].tolist() == ["plain GRPO", "entropy", "relay", "relay"]
    assert won.loc[0.02, "method"] == "entropy:threshold=2,n=3"
    assert won.loc[0.05, "gap"] == pytest.approx(20 / 30)
    assert won.loc[0.05, "tied"] == "", "12 problems of 40 are no tie"
    assert won.loc[0.1, "tied"] == "entropy", "one problem of 40 is"


def test_the_relay_is_compared_with_every_calibrated_trigger(table, chosen):
    rows = compared(table, chosen).set_index("method")
    assert rows.index.tolist() == chosen["method"].drop_duplicates().tolist()
    assert rows["relay_minus_method"].tolist() == pytest.approx([12 / 40, 1 / 40, 18 / 40])
    assert rows.loc["entropy:threshold=2,n=3", ["relay_share", "share"]].tolist() == pytest.approx([0.04, 0.02])
    assert rows.loc["entropy:threshold=1,n=3", "low"] <= 0 < rows.loc["probe:threshold=0.5,n=3", "low"]


def test_the_map_says_who_wins_and_where_a_measured_pair_lies(table, chosen):
    dials = {"harmless": interval(0.9, 0.8, 0.95), "confident": interval(0.4, 0.3, 0.5)}
    drawn = draw_map({"lifelike": (dials, winners(table, chosen))})
    assert drawn[["h", "c_low"]].drop_duplicates().to_numpy().tolist() == [[0.9, 0.3]]
    fig = map_figure(drawn, {"real": {"harmless": interval(0.71, 0.53, 0.85), "confident": interval(0, 0, 0.5)}})
    words = fig.layout.meta["alt"]
    assert "lifelike, 2 %: entropy, 27 % of the gap, 5 %: relay, 67 % of the gap" in words
    assert "real, h 71 %, c 0 %" in words
    world, real = fig.data
    assert (world.x[0], world.y[0], world.error_x.arrayminus[0]) == pytest.approx((40, 90, 10))
    assert (real.x[0], real.y[0], real.error_y.array[0]) == pytest.approx((0, 71, 14))


@pytest.mark.parametrize("dials", [{}, {"harmless": 0.7, "confident": 0.1}, {"harmless": {"value": "x"}}, None])
def test_a_pair_without_its_numbers_is_named(table, chosen, dials):
    known = {"harmless": interval(0.9, 0.8, 1), "confident": interval(0.4, 0.3, 0.5)}
    with pytest.raises(ValueError, match="the pair 'mine' needs harmless and confident"):
        map_figure(draw_map({"lifelike": (known, winners(table, chosen))}), {"mine": dials})


def test_an_unknown_world_is_refused():
    with pytest.raises(ValueError, match="no student of the world 'formal' is embedded; of: plain, wordy, stubborn,"):
        pair_of("formal")


def test_a_student_of_several_seeds_is_found_and_an_ablation_is_none():
    found = students("lifelike", "relay")
    assert found[0] == "relay"
    assert all(name == "relay" or "-seed" in name for name in found)


def test_in_a_folder_only_seeds_of_the_same_run_are_students_of_a_world(tmp_path):
    seeds = ["h2c1-relay", "h2c1-relay-seed2", "h2c1-relay-seed10"]
    for name in (*seeds, "h2c1-relay-six", "h2c1-relay-no-bonus", "h2c1-student-long"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").touch()
    assert students("h2c1", "relay", tmp_path) == sorted(str(tmp_path / name) for name in seeds)
    assert students("h2c1", "student", tmp_path) == []


def test_two_seeds_of_plain_grpo_are_no_second_student(tmp_path, monkeypatch):
    """Calibration is over by then, so nothing of what is named may be refused."""
    seeds = {"relay": [], "grpo": ["grpo", "warmup"]}
    monkeypatch.setattr(method_map, "students", lambda world, kind, models=None: seeds.get(kind, [kind]))
    monkeypatch.setattr(method_map, "TAUGHT", ("savings",))
    monkeypatch.setattr(method_map, "calibrate", lambda *args, **options: pd.DataFrame({"method": ["plan"]}))
    table, _ = measure_world("lifelike", tmp_path, count=1, per_suite=1, quick=True)
    by = table.groupby("method", sort=False)["student"].unique().map(list).to_dict()
    assert (by["student"], by["grpo"]) == (["student"], ["grpo", "warmup"])
    assert [method_map.family(method) for method in by].count("plain GRPO") == 1


def test_one_problem_cannot_tell_methods_apart(table, chosen):
    one = winners(table[table["id"] == "tiles-test-0"], chosen, budgets=(0.05,)).iloc[0]
    assert np.isnan(one[["low", "high"]].astype(float)).all()
    assert (one["winner"], one["tied"]) == ("student", "entropy plain GRPO probe relay")


def test_the_command_measures_a_world_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("relaylab.evaluation.method_map.TAUGHT", ("savings", "tiles", "measures"))
    other = tmp_path / "real.json"
    other.write_text(json.dumps({"mine": {"harmless": interval(0.7, 0.5, 0.9), "confident": interval(0.1, 0, 0.4)}}))
    words = ["relaylab", "map", "--out", str(tmp_path / "map"), "--count", "1", "--training", "1", "--quick"]
    monkeypatch.setattr("sys.argv", [*words, "--world", "lifelike", "--measured", str(other)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().out
    assert not ended.value.code, printed
    assert "a student takes part where the lower end of the interval of its share is within the budget" in printed
    drawn = pd.read_csv(tmp_path / "map" / "map.csv")
    assert drawn["budget"].tolist() == [0.02, 0.05, 0.1]
    page = (tmp_path / "map" / "map.html").read_text()
    assert "mine" in page
    assert "lifelike" in page
    with pytest.raises(ValueError, match="per_suite"):
        measure_dials("lifelike", tmp_path / "map" / "lifelike", per_suite=2)


def test_the_published_dials_are_of_the_shipped_models():
    for world in worlds():
        student, teacher = pair_of(world)
        record = read_json(embedded()[student] / DIALS)
        assert record["config"]["weights"] == [fingerprint_weights(student), fingerprint_weights(teacher)]
        assert manifest()[student]["dials"] == record["dials"]


def test_the_pages_have_the_shipped_dials():
    """Beside the embedded worlds the study has the real pair, and both pages the same four signals."""
    docs = Path(__file__).parents[1] / "docs"
    (real,) = read_json(docs.parent / "notebooks" / "measured" / "real_pair.json").values()
    shipped = {world: read_json(embedded()[pair_of(world)[0]] / DIALS)["dials"] for world in worlds()}
    names = {
        "h": "harmless",
        "h of wrong answers": "harmless_wrong",
        "c": "confident",
        'AUROC of "this token is decisive": entropy': "entropy",
        "margin": "margin",
        "divergence KL(student ‖ teacher)": "divergence",
        "linear probe": "probe",
    }
    cells = "{0[value]:.2f} ({0[low]:.2f}, {0[high]:.2f})".format
    study, results = ((docs / name).read_text("utf-8") for name in ("real-models.md", "results.md"))
    order = [real, *(shipped[world] for world in ("lifelike", "wordy", "stubborn", "plain"))]
    for row, name in names.items():
        assert f"| {row} | {' | '.join(cells(found[name]) for found in order)} |" in study
    for world, found in shipped.items():
        h, _, c, *known = (cells(found[name]) for name in names.values())
        assert f"| {world} | {h} | {c} | {', '.join(known)} |" in results
