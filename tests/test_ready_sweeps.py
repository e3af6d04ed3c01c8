"""The sweeps that come with the project: their plans, their notebooks at the smallest size, and what the docs say."""

from __future__ import annotations

import ast
import json
import re
import tempfile
from itertools import islice
from pathlib import Path

import pytest
import yaml

from relaylab.evaluation.method_map import worlds
from relaylab.relay.pair import load_pair
from relaylab.sweep.notebook import check_values, code_cells, read_parameters
from relaylab.sweep.plan import read_plan
from relaylab.tasks.benchmarks import benchmark
from relaylab.tasks.suites import ALL_SUITES, TAUGHT, mixture, problems
from relaylab.tasks.worlds import find_world
from relaylab.training.configs import read_config
from relaylab.training.data_filter import keep, load_rates
from relaylab.training.rewards import kind_of

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "sweeps"
READY = ("rewards", "filter", "group-size", "beta", "fixed-n", "teacher-swap", "warmup", "lora-rank", "qwen3")
READY += ("cost-weight",)
SMALL = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2, "problems_a_suite": 1}
SMALL |= {"max_completion_length": 40}


def execute(name, monkeypatch, **values):
    """A notebook's cells in this process, which has the libraries loaded: its results."""
    path, results, names = SWEEPS / name, {}, {}
    values = check_values(values, read_parameters(path))
    monkeypatch.chdir(SWEEPS)
    monkeypatch.setattr("relaylab.result", lambda **values: results.update(values))
    for tags, source in code_cells(path):
        exec(compile(source, name, "exec"), names)
        names |= values if "parameters" in tags else {}
    return results


def test_they_are_these_and_plan_in_both_sizes():
    assert {p.stem for p in SWEEPS.glob("*.yaml")} == {*READY, "map", "shards"}
    for name in READY:
        sizes = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["sizes"]
        assert list(sizes) == ["quick", "full"]
        quick, full = (read_plan(SWEEPS / f"{name}.yaml", size) for size in sizes)
        assert quick.factors == full.factors
        assert len(quick.points) < len(full.points)
        # The points of the two sizes are not the same: full trains longer, or on more.
        assert not {p.key for p in quick.points} & {p.key for p in full.points}


@pytest.mark.parametrize("name", [*READY, "map", "shards"])
def test_what_is_collected_is_what_the_notebook_hands_over(name):
    plan = read_plan(SWEEPS / f"{name}.yaml")
    tree = ast.parse("\n".join(source for _, source in code_cells(plan.notebook)))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "rl.result"]
    results = {keyword.arg for call in calls for keyword in call.keywords}
    assert {*plan.collect, *plan.plane} <= results


def test_the_docs_table_counts_their_points():
    rows = re.findall(r"^\| `([\w-]+)\.yaml` \| (\d+) \|", (ROOT / "docs" / "sweeps.md").read_text(), re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {
        name: len(read_plan(SWEEPS / f"{name}.yaml").points) for name in (*READY, "map", "shards")
    }


def test_each_varies_what_it_says():
    def levels(name, parameter, size="quick"):
        points = read_plan(SWEEPS / f"{name}.yaml", size).points
        return {level: p.parameters.get(parameter) for p in points for level in p.levels.values()}

    swapped = levels("teacher-swap", "decoding_teacher")
    assert swapped["teacher > teacher"] is None
    assert swapped["teacher > none"] == "none"
    assert levels("teacher-swap", "teacher")["smaller > teacher"] == "teacher-small"
    assert swapped["smaller > teacher"] == "teacher"
    assert levels("warmup", "numbers")["k in 0..3, the paper's"] is None
    assert levels("warmup", "keep_correct")["right responses alone"] is True
    assert set(levels("group-size", "per_device_train_batch_size").values()) == {None}, "as many rollouts per step"


def test_the_shared_rates_are_of_the_problems_that_quick_trains_on():
    rates = {r.problem.id: r for r in load_rates(SWEEPS / "rates.jsonl")}
    parameters = read_plan(SWEEPS / "filter.yaml").points[0].parameters
    trained = list(islice(mixture(seed=0, suites=ALL_SUITES), parameters["num_problems"]))
    assert all(rates[p.id].problem == p for p in trained)
    kept = [len(keep([rates[p.id] for p in trained], t)) for t in (0.0, 0.5, 0.9)]
    assert kept[0] == len(trained) == 440
    assert sorted(set(kept), reverse=True) == kept, "every threshold leaves other problems"


def test_qwen3_asks_for_a_gpu_and_for_settings_that_there_are():
    for size in ("quick", "full"):
        plan = read_plan(SWEEPS / "qwen3.yaml", size)
        assert plan.resources["gpus"] == 1
        for point in plan.points:
            config = read_config(point.parameters["settings"])
            assert config["teacher"] == "Qwen/Qwen3-8B"
            assert Path(point.parameters["student"]).name == Path(config["student"]).name
            assert len({benchmark(name).suffix for name in point.parameters["benchmarks"]}) == 1


# The notebooks, at the smallest size ---------------------------------------------------------------------------------


def test_relay_with_filter_rank_and_another_teacher(monkeypatch, tmp_path):
    """The shipped relay calls in 160 tokens, with its own teacher."""
    values = dict(filter_threshold=0.9, filter_rates="rates.jsonl", num_problems=33, student="relay")
    values |= dict(decoding_teacher="none", lr_scheduler_type="linear", learning_rate=1e-6)
    results = execute("relay.ipynb", monkeypatch, **SMALL | {"max_completion_length": 160}, **values)
    assert results["accuracy"] == results["alone"] > 0
    assert (results["calls"], results["teacher_share"], results["call_ratio"]) == (0, 0, 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    execute("relay.ipynb", monkeypatch, **SMALL, num_problems=8, lora_rank=2)
    (adapter,) = tmp_path.glob("*/student/adapter_config.json")
    assert json.loads(adapter.read_text())["r"] == 2


def test_warmup_alone_and_with_grpo_after_it(monkeypatch):
    values = dict(responses=12, warmup_steps=2, keep_correct=False, numbers=None, exponents=[0])
    kinds = []
    monkeypatch.setattr("relaylab.training.rewards.kind_of", lambda group: kinds.append(kind_of(group)) or kinds[-1])
    results = execute("warmup.ipynb", monkeypatch, **SMALL | {"max_completion_length": 90}, **values)
    assert 1 <= results["rows"] <= 12
    assert results["dependent"] == kinds[-len(TAUGHT) :].count("dependent") / len(TAUGHT), "behind those of GRPO"
    tests = [p for suite in TAUGHT for p in problems(suite, 1)]
    before = load_pair("student", "none").decode(tests, temperature=1.0, max_tokens=90, progress=False)
    right = sum(bool(t.correct) for t in before) / len(tests)
    assert results["lost"] == pytest.approx(right - results["alone"])


def test_benchmarks_with_the_settings_of_a_file(monkeypatch, tmp_path):
    """Those of the default, whose teacher is a list, with small numbers."""
    default = read_parameters(SWEEPS / "benchmarks.ipynb")["settings"].default
    settings = {"extends": default, "student": "relay", "num_problems": 4, "per_device_train_batch_size": 4}
    settings |= {"num_generations": 2, "suites": ["savings", "tiles"], "filter_threshold": 0.0, "learning_rate": 1e-6}
    settings |= {"exploration_cap": 1.0, "rho_weight": 1.0, "call_end": "tokens"}  # as the changes need them
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings | {"max_calls": 1, "max_steps": 9}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    results = execute(
        "benchmarks.ipynb", monkeypatch, settings=str(tmp_path / "s.yaml"), max_steps=1, reward="simple",
        fixed_call_tokens=3, problems_a_benchmark=2, benchmarks=["savings", "tiles"],
    )  # fmt: skip
    assert {"accuracy", "call_ratio", "teacher_share", "alone", "calls", "mean_n"} == set(results)
    assert (results["calls"], results["mean_n"]) == (0.5, 3), "one call in each of tiles"
    (file,) = tmp_path.glob("*/config.json")
    config = json.loads(file.read_text())
    assert (config["max_steps"], config["reward"], config["problems"]) == (1, "simple", 4)


@pytest.mark.parametrize("task", ["evaluate", "filter"])
def test_shards_merge_to_what_one_process_gives(monkeypatch, tmp_path, task):
    values = dict(task=task, methods=["student", "relay"], limit=3, samples=2, max_tokens=60, suites=["savings"])
    values |= dict(benchmarks=["savings", "tiles"])

    def run(shard, folder):
        return execute("shards.ipynb", monkeypatch, shard=shard, out=str(tmp_path / folder / "out"), **values)

    rows = [run(f"{i}/2", "parts")["rows"] for i in (1, 2)]
    assert run(None, "parts") == run(None, "one")
    assert sum(rows) == {"evaluate": 12, "filter": 3}[task]
    tables = ["out"] if task == "filter" else ["out/table.csv", "out/summary.csv"]
    for name in tables:
        whole = (tmp_path / "one" / name).read_bytes()
        assert sorted((tmp_path / "parts" / name).read_bytes().splitlines()) == sorted(whole.splitlines())


def test_the_map_of_a_grid_is_sixteen_worlds(monkeypatch, tmp_path):
    quick, full = (read_plan(SWEEPS / "map.yaml", size) for size in ("quick", "full"))
    assert sorted(quick.factors["world"]) == sorted(worlds())
    dials = {(world.choices, world.misconceptions) for world in map(find_world, full.factors["world"])}
    assert dials == {(h, c) for h in range(4) for c in (0, 1, 2, 4)}
    assert {p.parameters["models"] for p in full.points} == {"../runs/grid"}
    monkeypatch.setattr("relaylab.evaluation.method_map.TAUGHT", ("savings", "tiles", "measures"))
    found = execute("map.ipynb", monkeypatch, world="plain", out=str(tmp_path), count=1, training=1, quick=True)
    assert found["relay"] >= found["student"]
    assert (found["h"], found["c"]) == (0, 0), "in the plain world a line has one wording"
    assert found["best_10"].split()[0] in {"student", "relay", "entropy", "line", "probe", "teacher-free"}
