"""A table of an earlier sweep: effects and figures without the sweep's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from relaylab.sweep.plan import Plan, Point
from relaylab.sweep.results import collect, effects, plane, read_results
from relaylab.sweep.run import Store
from relaylab.views.sweep_report import effect_figures, effects_shown, plane_figure

LEVELS = {"full": {"reward": "difficulty_aware"}, "simple": {"reward": "simple"}, "no bonus": {"bonus": 1.0}}
ACCURACY = {"full": (0.7, 0.8, 0.9), "simple": (0.5, 0.5, 0.8), "no bonus": (0.8, 0.8, 0.8)}


@pytest.fixture
def folder(tmp_path):
    """A sweep's plan, table and folder; one more point is of an earlier plan."""
    points = tuple(
        Point(f"{level}-{seed}", parameters, {"reward scheme": level}, seed)
        for level, parameters in LEVELS.items()
        for seed in range(3)
    )
    old = Point("old", {"reward": "simple"}, {"reward scheme": "simple"}, 0)
    for point in (*points, old):
        accuracy = ACCURACY[point.levels["reward scheme"]][point.seed] if point is not old else 0.0
        record = {"levels": point.levels, "parameters": point.parameters, "seed": point.seed, "seconds": 1.0}
        record |= {"values": {"accuracy": accuracy, "teacher_share": accuracy / 10, "mean_n": None}}
        (tmp_path / "points" / point.key).mkdir(parents=True)
        (tmp_path / "points" / point.key / "result.json").write_text(json.dumps(record))
    names = ("accuracy", "teacher_share")
    plan = Plan("rewards", Path("n.ipynb"), points, {"reward scheme": list(LEVELS)}, names, names[::-1])
    return plan, collect(plan, tmp_path), tmp_path


def test_effects_are_those_of_the_sweep_itself(folder):
    plan, table, out = folder
    alone, rows = read_results(out / "results.csv", collect=["accuracy", "teacher_share"])
    assert alone.factors == plan.factors
    assert len(rows) == 9, "the row of the earlier plan is not planned"
    frame = effects(alone, rows)
    pd.testing.assert_frame_equal(frame, effects(plan, table))
    simple = frame[(frame["level"] == "simple") & (frame["result"] == "accuracy")].iloc[0]
    assert simple["difference"] == pytest.approx(-0.2)
    assert (simple["difference_low"], simple["difference_high"]) == (pytest.approx(-0.3), pytest.approx(-0.1))
    pd.testing.assert_frame_equal(plane(alone, rows), plane(plan, table))
    figure = plane_figure(alone, plane(alone, rows))
    assert "0.8 at 0.08" in figure.layout.meta["alt"]
    assert [trace.name for trace in figure.data] == list(LEVELS)
    (accuracy, _) = effect_figures(frame)
    assert list(accuracy.data[0].y) == pytest.approx([0.8, 0.6, 0.8])
    assert list(accuracy.data[0].error_y.arrayminus)[2] == 0


def test_levels_that_are_numbers_or_missing_keep_their_order(tmp_path):
    file = tmp_path / "r.csv"
    file.write_text(  # as an older version wrote it, with a column 'code'
        "key,threshold,steps,seed,code,planned,accuracy\n"
        "a,,40,0,1,True,0.5\nb,0.9,40,0,2,True,\nc,0.1,40,0,1,True,0.25\n"
    )
    plan, rows = read_results(file, collect=["accuracy"])
    assert plan.factors == {"threshold": ["none", "0.9", "0.1"]}
    assert rows["accuracy"].isna().tolist() == [False, True, False]
    assert [p.seed for p in plan.points] == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,beta,seed,planned\na,1,0,True\n", "no column 'accuracy'"),
        ("beta,accuracy\n1,2\n", "no column 'key'"),
        ("key,beta,seed,planned,accuracy\na,1,0,True,0.5\nb,1,1,True,0.6\nc,2,1,False,0.6\n", "nothing varies"),
        (None, "there is no file"),
        ("\n", r"r\.csv is no table \(No columns"),
        ("key,beta,seed,planned,accuracy\na,1,x,True,0.5\nb,2,1,True,0.6\n", r"seed in .*r\.csv is no number .*'x'"),
        ("key,beta,seed,planned,accuracy\na,1,1/0,True,0.5\nb,2,1,True,0.6\n", r"seed in .*r\.csv is no number"),
        ("key,beta,seed,planned,accuracy\na,1,1.5,True,0.5\nb,2,1,True,0.6\n", r"seed in .*r\.csv is no .*1\.5"),
        ("key,beta,seed,planned,accuracy\na,1,0,True,0.5\na,2,0,True,0.6\n", r"r\.csv has the key 'a' twice"),
        ("key,beta,seed,planned,accuracy\na,1,0,True,\nb,2,0,True,x\n", r"'accuracy' of .*r\.csv has no number"),
        ("key,beta,seed,planned,accuracy,other\na,1,0,True,0.5,1\nb,1,1,True,0.6,2\n", "nothing varies"),
    ],
)
def test_what_is_no_table_of_a_sweep_says_so(tmp_path, text, words):
    if text:
        (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_results(tmp_path / "r.csv", collect=["accuracy"])


def test_results_may_be_truths_and_seeds_large(tmp_path):
    rows = "".join(f"{level}{s},{level},{2**53 + s},True,{s == 0 or level == 'b'}\n" for level in "ab" for s in (0, 1))
    (tmp_path / "r.csv").write_text("key,beta,seed,planned,solved\n" + rows)
    plan, table = read_results(tmp_path / "r.csv", collect=["solved"])
    assert [p.seed for p in plan.points] == [2**53, 2**53 + 1] * 2
    found = effects(plan, table)
    assert found["result"].tolist() == ["solved"] * 2
    assert (found["mean"].tolist(), found["seeds"].tolist()) == ([0.5, 1.0], [2, 2])


def test_a_setting_of_an_earlier_plan_is_no_result(tmp_path):
    """An older sweep set ``beta``, and ran without seeds; the present one does neither, but has seeds."""
    old, new = Point("a", {"beta": 0.1}, {"who": "me"}), [Point(f"b{s}", {}, {"who": f"{s}"}, s) for s in (0, 1)]
    for point in (old, *new):
        record = {"levels": point.levels, "parameters": point.parameters, "seed": point.seed, "seconds": 1.0}
        (tmp_path / "points" / point.key).mkdir(parents=True)
        text = json.dumps(record | {"values": {"accuracy": 0.5, "beta": 3.0} if point in new else {"accuracy": 0.1}})
        (tmp_path / "points" / point.key / "result.json").write_text(text)
    plan = Plan("s", Path("n.ipynb"), tuple(new), {"who": ["0", "1"]})
    table = collect(plan, tmp_path)
    settings = ["key", "who", "beta", "seed", "version", "commit", "planned"]
    assert list(table) == [*settings, "accuracy", "result.beta"]
    assert set(effects(plan, table)["result"]) == {"accuracy", "result.beta"}
    assert table["seed"].tolist() == [0, 1, pd.NA]
    alone, rows = read_results(tmp_path / "results.csv", collect=["accuracy"])
    assert ([p.seed for p in alone.points], len(rows)) == ([0, 1], 2)
    (tmp_path / "r.csv").write_text("key,beta,seed,planned,accuracy\na,1,0.0,True,0.5\nb,2,1.0,True,0.6\n")
    assert [p.seed for p in read_results(tmp_path / "r.csv", collect=["accuracy"])[0].points] == [0, 1]
    assert collect(plan, tmp_path / "empty").columns.tolist() == ["key", *settings[3:]]


def test_a_level_without_a_result_is_left_open(tmp_path):
    file = tmp_path / "beta.csv"
    text = (
        "key,beta,seed,planned,teacher_share,accuracy\na,0.0,0,True,0.1,\nb,0.1,0,True,0.2,0.7\nc,0.2,0,True,0.3,0.8\n"
    )
    file.write_text(text)
    plan, rows = read_results(file, collect=["accuracy", "teacher_share"])
    alt = plane_figure(plan, plane(plan, rows)).layout.meta["alt"]
    assert alt.endswith("Highest accuracy: 0.8 at 0.3, beta=0.2.")
    shown = effects_shown(effects(plan, rows))
    assert shown["accuracy", "%"].to_dict() == {"0.0": "", "0.1": "70.0 (1 seeds)", "0.2": "80.0 (1 seeds)"}
    assert shown["teacher_share", "%"].to_dict()["0.0"] == "10.0 (1 seeds)"


def test_long_levels_that_begin_alike_stay_apart():
    levels = [f"runs/2026-11/qwen3-06b-24gb-4bit/checkpoint-{k}00" for k in (1, 2)]
    rows = [dict(factor="student", level=level, result="accuracy", mean=k) for k, level in enumerate(levels)]
    (fig,) = effect_figures(pd.DataFrame(rows).assign(low=0.0, high=1.0))
    assert [x[-14:] for x in fig.data[0].x] == ["checkpoint-100", "checkpoint-200"]
    corners = pd.DataFrame({"student": levels, "x": [0.1, 0.2], "y": [0.5, 0.6]})
    corners = corners.assign(**{f"{a}_{end}": corners[a] for a in "xy" for end in ("low", "high")})
    plan = Plan("s", Path("n.ipynb"), (), {"student": levels}, ("a", "b"), ("b", "a"))
    assert [list(marks.y) for marks in plane_figure(plan, corners).data] == [[0.5], [0.6]]


def test_a_folder_with_any_name_gives_its_records(tmp_path):
    for name in ("sw [v2]", "a*b", "ee::f"):
        store = Store(tmp_path / name)
        record = {"levels": {}, "parameters": {"x": 1}, "values": {"accuracy": 0.5}, "seconds": 1, "status": "done"}
        store.write("points/abc/result.json", json.dumps(record))
        assert store.records()["abc"]["values"] == {"accuracy": 0.5}
        assert list(store.records(key="abc")) == ["abc"]
        assert store.records(key="abd") == {}


def test_numbers_and_texts_that_no_table_holds_are_written_all_the_same(tmp_path):
    plan = Plan("s", Path("n.ipynb"), (Point("a", {}, {}), Point("b", {}, {})), {}, ())
    for key, flops, words in (("a", 6 * 10**19, "x"), ("b", 3, "half \ud800")):
        record = {"levels": {}, "parameters": {"big": 2**63, "seed": 7}, "seed": None, "seconds": 1, "status": "done"}
        record["values"] = {"flops": flops, "words": words}
        Store(tmp_path).write(f"points/{key}/result.json", json.dumps(record))
    table = collect(plan, tmp_path)
    assert table["flops"].tolist() == [6e19, 3.0]
    assert table["words"].tolist() == ["x", "half \\ud800"]
    assert table["seed"].tolist() == [7, 7], "a seed that does not vary is a seed, too"
    assert pd.read_parquet(tmp_path / "results.parquet")["big"].tolist() == [2.0**63] * 2
