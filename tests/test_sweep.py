"""Sweeps: what a file plans, what an executed point leaves in a folder or at a URL, and what the report says."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from sweep_stand_in import stand_in
from test_notebooks_run import notebook
from typer.testing import CliRunner

from relaylab.sweep.collect import collect, effects
from relaylab.sweep.command import sweep
from relaylab.sweep.drive import drive
from relaylab.sweep.engines import LocalEngine
from relaylab.sweep.notebook import write_json
from relaylab.sweep.plan import code_version, read_plan
from relaylab.sweep.point import Job, Outcome
from relaylab.sweep.report import report

ROOT = Path(__file__).parents[1]
CELL = 'reward: str = "simple"\nbonus: float = 1.5\nbeta: float = 0.01\nteacher: str = "t"\nseed: int = 0'


def write(folder, text, cell=CELL):
    notebook(folder / "n.ipynb", cell, "accuracy = 1")
    (folder / "s.yaml").write_text("notebook: n.ipynb\n" + text)
    return folder / "s.yaml"


class Inline:
    """An engine in this process."""

    workers = 1

    def run(self, queue, job):
        while queue:
            point = queue.popleft()
            yield point, job(point)


# The plan ------------------------------------------------------------------------------------------------------------


def test_grid_zips_lists_and_seeds_multiply(tmp_path):
    plan = read_plan(
        write(
            tmp_path,
            "parameters: {bonus: 1.2}\ngrid: {beta: [0, 0.1]}\nzips: [{reward: [simple, outcome], teacher: [a, b]}]\n"
            "lists: {form: {plain: {}, no bonus: {bonus: 1.0}}}\nseeds: 3\n",
        )
    )
    assert len(plan.points) == 2 * 2 * 2 * 3 == len({p.key for p in plan.points})
    assert plan.factors == {
        "beta": ["0", "0.1"],
        "reward, teacher": ["simple, a", "outcome, b"],
        "form": ["plain", "no bonus"],
    }
    last = plan.points[-1]
    assert last.parameters == {"bonus": 1.0, "beta": 0.1, "reward": "outcome", "teacher": "b", "seed": 2}
    assert plan.points[0].parameters["beta"] == 0.0
    assert type(plan.points[0].parameters["beta"]) is float


def test_conditions_leave_points_out(tmp_path):
    text = "grid: {reward: [simple, difficulty_aware], bonus: [1.0, 1.5], beta: [0.0, 0.1]}\nwhere:\n"
    text += " - {if: {reward: simple}, then: {bonus: 1.5}}\n - {beta: [0.1]}\n"
    plan = read_plan(write(tmp_path, text))
    assert [(p.parameters["reward"], p.parameters["bonus"]) for p in plan.points] == [
        ("simple", 1.5),
        ("difficulty_aware", 1.0),
        ("difficulty_aware", 1.5),
    ]
    assert plan.factors["beta"] == ["0.1"], "a level that no point has is no level"


def test_a_key_is_the_notebook_the_parameters_and_the_code(tmp_path, monkeypatch):
    def keys():
        return [p.key for p in read_plan(tmp_path / "s.yaml").points]

    write(tmp_path, "grid: {beta: [0.01]}")
    first = keys()
    (tmp_path / "s.yaml").write_text("notebook: n.ipynb\nparameters: {teacher: t}\n")
    assert keys() == first, "a default that is written out is the same point"
    book = json.loads((tmp_path / "n.ipynb").read_text())
    book["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "More words."})
    (tmp_path / "n.ipynb").write_text(json.dumps(book))
    assert keys() == first, "prose decides no result"
    monkeypatch.setattr("relaylab.sweep.plan.code_version", lambda: "other")
    assert keys() != first
    monkeypatch.undo()
    notebook(tmp_path / "n.ipynb", CELL, "accuracy = 2")
    assert keys() != first


def test_sizes_change_the_rest(tmp_path):
    path = write(tmp_path, "grid: {beta: [0.1]}\nsizes: {quick: {seeds: 1}, full: {seeds: 4, grid: {bonus: [1, 2]}}}\n")
    assert len(read_plan(path).points) == 1
    assert (len(read_plan(path, "full").points), read_plan(path, "full").name) == (8, "s-full")
    with pytest.raises(ValueError, match="no size 'huge'; it has quick, full"):
        read_plan(path, "huge")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grids: {beta: [1]}", "unknown setting 'grids'; did you mean 'grid'"),
        ("grid: {betta: [1]}", "no parameter 'betta'; did you mean 'beta'"),
        ("grid: {beta: 1}", "must be a list"),
        ("grid: {seed: [1]}", "seeds go under 'seeds'"),
        ("grid: {beta: [1]}\nlists: {x: {y: {beta: 2}}}", "'beta' is varied by 'beta' and by 'x'"),
        ("grid: {beta: [0.01, 1e-2]}", "are the same parameters"),
        ("zips: [{beta: [1, 2], bonus: [1]}]", "as many values"),
        ("lists: {x: [1]}", "each with its parameters"),
        ("where: [{nothing: 1}]", "'nothing' is no parameter"),
        ("where: [{if: {beta: 1}}]", "needs both"),
        ("where: [{beta: 7}]", "leaves none"),
        ("seeds: many", "a number of seeds"),
        ("timeout: 0", "above 0"),
        ("retries: -1", "from 0"),
        ("resources: {cpu: 1}", "unknown resources"),
        ("resources: {cpus: many}", "cpus is 'many'; it must be a share of one"),
        ("resources: {gpus: 1.5}", "gpus is 1.5; it must be a share of one, or a whole number"),
        ("resources: {memory_gb: 0}", "memory_gb is 0; it must be GB"),
        ("plane: [accuracy]", "two results"),
        ("grid: [", "not YAML"),
    ],
)
def test_a_plan_that_cannot_be_says_why(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_plan(write(tmp_path, text))


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_ready_sweeps_plan(path):
    for size in yaml.safe_load(path.read_text())["sizes"]:
        plan = read_plan(path, size)
        (levels,) = plan.factors.values()
        assert len(plan.points) == len(levels) * len({p.seed for p in plan.points})
        assert {"accuracy", "call_ratio"} <= set(plan.collect)


# One point, and all of them ------------------------------------------------------------------------------------------


def folder(plan, out):
    """Every finished point, once and whole."""
    found = sorted((out / "points").iterdir())
    assert {f.name for f in found} == {p.key for p in plan.points}
    assert all({f.name for f in point.iterdir()} == {"result.json", "n.ipynb", "log.txt"} for point in found)
    assert not list((out / "drafts").iterdir())
    return {f.name: (f / "result.json").read_text() for f in found}


def test_points_are_executed_once_and_resumed(tmp_path):
    plan = read_plan(write(tmp_path, "grid: {beta: [0.1, 0.2]}\nseeds: 2\n"))
    job, states = Job.of(plan, tmp_path / "out", run=stand_in), []
    assert drive(plan, Inline(), job, limit=1, watch=states.append) == {}
    assert len(list((tmp_path / "out" / "points").iterdir())) == 1
    left = [p.key for p in plan.points if not job.store.record("points", p.key)]
    drive(plan, Inline(), job, watch=states.append)
    assert (states[-1].done, states[-1].total, states[-1].left) == (4, 4, 0.0)
    assert states[2].left == 6.0, "three points of 2 s"
    before = folder(plan, tmp_path / "out")
    assert len(left) == 3
    drive(plan, Inline(), replace(job, run=None))  # nothing left to run
    assert folder(plan, tmp_path / "out") == before
    record = json.loads(before[plan.points[0].key])
    assert (record["key"], record["code"], record["seed"]) == (plan.points[0].key, code_version(), 0)
    log = tmp_path / "out" / "points" / plan.points[0].key / "log.txt"
    assert log.read_text() == "said by the notebook\n"


def test_a_failure_costs_its_point_alone_and_is_retried(tmp_path):
    plan = read_plan(write(tmp_path, "grid: {teacher: [bad, t]}\nretries: 2\n"))
    tried = []

    def sometimes(notebook, folder, parameters, **options):
        tried.append(parameters["teacher"])
        broken = parameters["teacher"] == "bad" and len(tried) < 4
        return stand_in(notebook, folder, {"teacher": "bad" if broken else "t"}, **options)

    assert drive(plan, Inline(), Job.of(plan, tmp_path / "out", run=sometimes)) == {}
    assert tried == ["bad", "t", "bad", "bad"]
    assert not list((tmp_path / "out" / "failed").iterdir()), "what came right in the end is no failure"
    folder(plan, tmp_path / "out")


def test_a_point_without_a_promised_result_failed(tmp_path):
    plan = read_plan(write(tmp_path, "collect: [accuracy, speed]\n"))
    (outcome,) = drive(plan, Inline(), Job.of(plan, tmp_path / "out", run=stand_in)).values()
    assert (outcome.status, "gave no 'speed'" in outcome.error) == ("failed", True)
    assert (tmp_path / "out" / "failed" / plan.points[0].key / "n.ipynb").exists()


def test_other_code_than_planned_and_a_full_disk_cost_the_point_and_no_more(tmp_path):
    plan = read_plan(write(tmp_path, ""))

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    for job, words in (
        (Job.of(replace(plan, code="old"), tmp_path / "out", run=stand_in), "planned for code old"),
        (Job.of(plan, tmp_path / "out", run=full), "No space left"),
    ):
        (outcome,) = drive(plan, Inline(), job).values()
        assert words in outcome.error
        assert not list((tmp_path / "out" / "drafts").glob("*"))
        kept = json.loads((tmp_path / "out" / "failed" / plan.points[0].key / "result.json").read_text())
        assert words in kept["error"]


def test_two_sweeps_on_one_folder_share_the_points(tmp_path):
    """The second sweep comes while the first is in the middle of a point: it does the others, then waits for that."""
    plan = read_plan(write(tmp_path, "seeds: 3\n"))
    ran, inner = [], []

    def run(who, notebook, folder, parameters, **options):
        ran.append((who, parameters["seed"]))
        if (who, parameters["seed"]) == ("first", 0):
            second = Job.of(plan, tmp_path / "out", run=partial(run, "second"))
            inner.extend(second(point).status for point in plan.points)
        return stand_in(notebook, folder, parameters, **options)

    drive(plan, Inline(), Job.of(plan, tmp_path / "out", run=partial(run, "first")))
    assert ran == [("first", 0), ("second", 1), ("second", 2)]
    assert inner == ["busy", "done", "done"]
    folder(plan, tmp_path / "out")


def test_busy_points_are_waited_for_at_the_end(tmp_path):
    plan = read_plan(write(tmp_path, "seeds: 2\n"))
    asked = []

    class Shared(Inline):
        def run(self, queue, job):
            while queue:
                point = queue.popleft()
                asked.append((point.seed, job.wait))
                busy = point.seed == 0 and not job.wait
                yield point, Outcome("busy") if busy else job(point)

    assert drive(plan, Shared(), Job.of(plan, tmp_path / "out", run=stand_in)) == {}
    assert asked == [(0, False), (1, False), (0, True)]


# A URL instead of a folder -------------------------------------------------------------------------------------------


@pytest.fixture
def at_url(tmp_path):
    """A sweep of two points, one of which fails, at a URL whose files the test can see."""
    plan = read_plan(write(tmp_path, "grid: {teacher: [bad, t]}\n"))
    return plan, f"file://{tmp_path}/out", tmp_path / "out"


def test_a_url_holds_what_a_folder_holds(at_url, tmp_path):
    plan, url, out = at_url
    bad, good = (p.key for p in plan.points)
    failures = drive(plan, LocalEngine(), Job.of(plan, url, run=stand_in))
    assert set(failures) == {bad}
    page = report(plan, collect(plan, url), url, failures)
    assert page == f"{url}/report.html"
    kept = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    tables = {"results.csv", "results.parquet", "effects.csv", "report.html"}
    parts = {f"{where}/{name}" for where in (f"points/{good}", f"failed/{bad}") for name in ("n.ipynb", "log.txt")}
    assert kept == tables | parts | {f"points/{good}/result.json", f"failed/{bad}/result.json"}
    folder = tmp_path / "folder"
    drive(plan, Inline(), Job.of(plan, folder, run=stand_in))
    report(plan, collect(plan, folder), folder)
    for name in tables - {"report.html"}:
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_at_a_url_a_point_is_finished_once_its_record_is_whole(at_url):
    """The record is uploaded last, so an upload that was cut off leaves none, or half of one."""
    plan, url, out = at_url
    plan = replace(plan, points=plan.points[1:])
    job = Job.of(plan, url, run=stand_in)
    home = out / "points" / plan.points[0].key
    home.mkdir(parents=True)
    (home / "n.ipynb").write_text("half")
    (home / "result.json").write_text('{"key": "')
    assert collect(plan, url).empty
    assert job(plan.points[0]).status == "done"
    assert (home / "n.ipynb").read_text() == "{}"
    assert job(plan.points[0]).status == "found"
    assert len(collect(plan, url)) == 1


def test_what_was_lost_and_then_came_right_is_no_failure_at_a_url(at_url):
    plan, url, _out = at_url
    plan = replace(plan, points=plan.points[1:])
    job = Job.of(plan, url, run=stand_in)
    job.note(plan.points[0], "its worker died")
    (lost,) = job.store.records("failed")
    assert (lost["status"], lost["error"], lost["key"]) == ("lost", "its worker died", plan.points[0].key)
    drive(plan, Inline(), job)
    assert job.store.records("failed") == []


@pytest.mark.parametrize(
    ("url", "words"),
    [("nothing://x", "Protocol not known"), ("memory://x", "is the memory of one process")],
)
def test_urls_that_cannot_be_say_why(tmp_path, url, words):
    with pytest.raises(ValueError, match=words):
        Job.of(read_plan(write(tmp_path, "")), url)


# The tables and the page ---------------------------------------------------------------------------------------------


@pytest.fixture
def done(tmp_path):
    """A finished sweep of 2 x 2 levels and 3 seeds, with one level that fails."""
    plan = read_plan(
        write(tmp_path, "grid: {beta: [0.1, 0.3]}\nlists: {who: {me: {}, bad one: {teacher: bad}}}\nseeds: 3\n")
    )
    failures = drive(plan, Inline(), Job.of(plan, tmp_path / "out", run=stand_in))
    return plan, tmp_path / "out", failures


def test_the_table_is_tidy(done):
    plan, out, _ = done
    table = collect(plan, out)
    assert table.equals(pd.read_parquet(out / "results.parquet"))
    assert list(table) == ["key", "beta", "who", "seed", "code", "planned", "accuracy", "call_ratio", "note"]
    assert len(table) == 6
    assert table["planned"].all()
    assert list(table["seed"]) == [0, 1, 2, 0, 1, 2]
    other = replace(plan, points=plan.points[:1])
    assert collect(other, out)["planned"].tolist() == [True] + [False] * 5, "what was found earlier stays"


def test_effects_have_intervals_over_seeds(done):
    plan, out, _ = done
    found = effects(plan, collect(plan, out))
    rows = found[(found["factor"] == "beta") & (found["result"] == "accuracy")].set_index("level")
    assert rows.loc["0.3", "mean"] == pytest.approx(0.4)
    assert (rows.loc["0.3", "points"], rows.loc["0.3", "seeds"]) == (3, 3)
    assert 0.3 - 1e-9 <= rows.loc["0.3", "low"] < 0.4 < rows.loc["0.3", "high"] <= 0.5 + 1e-9
    # The seed moves both levels alike, so the paired difference is certain where the means are not.
    change = rows.loc["0.3", ["difference", "difference_low", "difference_high"]].astype(float)
    assert list(change) == pytest.approx([0.2, 0.2, 0.2])
    one = replace(plan, points=tuple(p for p in plan.points if p.seed == 0))
    assert effects(one, collect(one, out))["low"].isna().all(), "one seed tells nothing about seeds"


def test_the_report_escapes_and_links(done):
    plan, out, failures = done
    page = report(plan, collect(plan, out), out, failures).read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == len(failures) == 6
    for point in plan.points:
        kind = "failed" if point.key in failures else "points"
        assert f'href="{kind}/{point.key}/n.ipynb"' in page
        assert (out / kind / point.key / "n.ipynb").exists()
    assert "accuracy against call_ratio" in page
    assert 'src="http' not in page
    assert (out / "effects.csv").read_text().startswith("factor,level,result,points,seeds,mean")


def test_the_command_plans_executes_and_reports(tmp_path):
    """With a real kernel once; the rest of the door beside it."""
    body = "from relaylab.sweep.notebook import result\nresult(accuracy=beta, call_ratio=0.5)"
    path = write(tmp_path, "grid: {beta: [0.1, 0.2]}\n")
    notebook(tmp_path / "n.ipynb", CELL, body)
    app, out = typer.Typer(), tmp_path / "out"
    app.command()(sweep)

    def run(*words):
        return CliRunner().invoke(app, [str(path), "--out", str(out), *words])

    assert "2 points, 2 to execute; --limit 1" in " ".join(run("--dry-run").output.split())
    assert not out.exists()
    first = run("--limit", "1")
    assert first.exit_code == 0, first.output
    assert "1 of 2 points finished" in first.output
    assert "2 points, 1 to execute; about" in " ".join(run("--dry-run").output.split())
    table = pd.read_csv(out / "results.csv")
    assert table[["beta", "accuracy"]].to_numpy().tolist() == [[0.1, 0.1]]


def test_a_thousand_points_plan_and_report_quickly(tmp_path):
    values = ", ".join(str(i / 10) for i in range(10))
    path = write(tmp_path, f"grid: {{beta: [{values}], bonus: [{values}]}}\nseeds: 10\n")
    began = time.process_time()
    plan = read_plan(path)
    assert len(plan.points) == 1000
    planned = time.process_time() - began
    for point in plan.points:
        home = tmp_path / "out" / "points" / point.key
        home.mkdir(parents=True)
        values = {"accuracy": point.parameters["beta"], "call_ratio": 0.1 * point.seed}
        record = {"key": point.key, "levels": point.levels, "parameters": point.parameters, "seed": point.seed}
        write_json(home / "result.json", record | {"code": plan.code, "seconds": 1.0, "values": values})
    began = time.process_time()
    report(plan, collect(plan, tmp_path / "out"), tmp_path / "out")
    reported = time.process_time() - began
    assert planned < 2
    assert reported < 10
