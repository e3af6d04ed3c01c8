"""The sweeps that come with the project: their plans, their notebooks at the smallest size, and what the docs say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from relaylab.training.run import read_config

from relaylab.sweep.notebook import checked, code_cells, read_parameters
from relaylab.sweep.plan import read_plan
from relaylab.tasks.benchmarks import benchmark
from relaylab.training.data_filter import keep, load_rates

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "sweeps"
READY = ("rewards", "filter", "group-size", "beta", "fixed-n", "teacher-swap", "warmup", "lora-rank", "qwen3")
SMALL = {"steps": 1, "prompts": 2, "group": 2, "problems_a_suite": 1, "max_tokens": 40}


def execute(name, monkeypatch, **given):
    """A notebook's cells in this process, which has the libraries loaded: what it hands over."""
    path, found, names = SWEEPS / name, {}, {}
    given = checked(given, read_parameters(path))
    monkeypatch.chdir(SWEEPS)
    monkeypatch.setattr("relaylab.sweep.notebook.result", lambda **values: found.update(values))
    for tags, source in code_cells(path):
        exec(compile(source, name, "exec"), names)
        names |= given if "parameters" in tags else {}
    return found


def test_they_are_these_and_plan_in_both_sizes():
    assert {p.stem for p in SWEEPS.glob("*.yaml")} == set(READY)
    for name in READY:
        sizes = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["sizes"]
        assert list(sizes) == ["quick", "full"]
        quick, full = (read_plan(SWEEPS / f"{name}.yaml", size) for size in sizes)
        assert quick.factors == full.factors
        assert len(quick.points) < len(full.points)
        # The points of the two sizes are not the same: full trains longer, or on more.
        assert not {p.key for p in quick.points} & {p.key for p in full.points}


@pytest.mark.parametrize("name", READY)
def test_what_is_collected_is_what_the_notebook_hands_over(name):
    plan = read_plan(SWEEPS / f"{name}.yaml")
    tree = ast.parse("\n".join(source for _, source in code_cells(plan.notebook)))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "result"]
    given = {keyword.arg for call in calls for keyword in call.keywords}
    assert {*plan.collect, *plan.plane} <= given


def test_the_docs_table_counts_their_points():
    rows = re.findall(r"^\| `([\w-]+)\.yaml` \| (\d+) \|", (ROOT / "docs" / "sweeps.md").read_text(), re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {
        name: len(read_plan(SWEEPS / f"{name}.yaml").points) for name in READY
    }


def test_each_varies_what_it_says():
    def levels(name, parameter, size="quick"):
        points = read_plan(SWEEPS / f"{name}.yaml", size).points
        return {level: p.parameters.get(parameter) for p in points for level in p.levels.values()}

    assert set(levels("filter", "threshold").values()) == {0.0, 0.25, 0.5, 0.75, 0.9}
    swapped = levels("teacher-swap", "decoding_teacher")
    assert swapped["teacher > teacher"] is None
    assert swapped["teacher > none"] == "none"
    assert levels("teacher-swap", "teacher")["smaller > teacher"] == "teacher-small"
    assert swapped["smaller > teacher"] == "teacher"
    assert levels("warmup", "numbers")["k in 0..1"] is None
    assert levels("warmup", "keep_correct")["wrong responses too"] is False
    assert levels("lora-rank", "lora_rank") == {"1": 1, "4": 4, "16": 16, "64": 64}
    products = {p.parameters["group"] * p.parameters["prompts"] for p in read_plan(SWEEPS / "group-size.yaml").points}
    assert products == {128}, "the same number of rollouts a step"


def test_the_shared_rates_are_of_the_problems_that_quick_trains_on():
    from itertools import islice

    from relaylab.tasks.suites import mixture

    rates = {r.problem.id: r for r in load_rates(SWEEPS / "rates.jsonl")}
    parameters = read_plan(SWEEPS / "filter.yaml").points[0].parameters
    trained = list(islice(mixture(seed=0), parameters["count"]))
    assert all(rates[p.id].problem == p for p in trained)
    kept = [len(keep([rates[p.id] for p in trained], t)) for t in (0.0, 0.25, 0.5, 0.75, 0.9)]
    assert kept[0] == len(trained) == 360
    assert sorted(set(kept), reverse=True) == kept, "every threshold leaves other problems"


def test_qwen3_asks_for_a_gpu_and_for_settings_that_there_are():
    for size in ("quick", "full"):
        plan = read_plan(SWEEPS / "qwen3.yaml", size)
        assert plan.resources["gpus"] == 1
        for point in plan.points:
            found = read_config(point.parameters["settings"])
            assert found["teacher"] == "Qwen/Qwen3-8B"
            assert Path(point.parameters["student"]).name == Path(found["student"]).name
            assert len({benchmark(name).suffix for name in point.parameters["benchmarks"]}) == 1


# The notebooks, at the smallest size ---------------------------------------------------------------------------------


def test_relay_with_filter_rank_and_another_teacher(monkeypatch):
    given = dict(threshold=0.9, rates="rates.jsonl", count=27, lora_rank=2, decoding_teacher="none", schedule="linear")
    found = execute("relay.ipynb", monkeypatch, **SMALL, **given)
    assert found["accuracy"] == found["alone"]
    assert (found["calls"], found["teacher_share"], found["call_ratio"]) == (0, 0, 0)


def test_warmup_alone_and_with_grpo_behind_it(monkeypatch):
    small = dict(SMALL, responses=12, warmup_steps=2, keep_correct=False, numbers=None, exponents=[0], max_tokens=90)
    found = execute("warmup.ipynb", monkeypatch, **small)
    assert 1 <= found["rows"] <= 12
    assert 0 <= found["dependent"] <= 1
    assert found["lost"] <= 1 - found["alone"]


def test_benchmarks_by_settings_of_a_file(monkeypatch, tmp_path):
    settings = {"student": "warm", "teacher": "teacher", "count": 4, "prompts": 2, "group": 2, "learning_rate": 1e-3}
    settings |= {"suites": ["savings", "tiles"], "limits": {"max_tokens": 40, "max_calls": 1}, "steps": 9}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    found = execute(
        "benchmarks.ipynb", monkeypatch, settings=str(tmp_path / "s.yaml"), steps=1, reward="simple",
        call_tokens=5, problems_a_benchmark=2, benchmarks=["savings", "bakery"],
    )  # fmt: skip
    assert {"accuracy", "call_ratio", "teacher_share", "alone", "calls", "mean_n"} == set(found)
    assert found["calls"] == 0 or found["mean_n"] <= 5
