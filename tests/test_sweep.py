"""Sweeps: what a file plans, what an executed point leaves in a folder or at a URL, and what the tables say."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import sweep_stand_in
import typer
from filelock import FileLock
from test_notebooks_run import notebook
from typer.testing import CliRunner

from relaylab.notebook_commands import sweep
from relaylab.sweep.plan import helper_modules, read_plan
from relaylab.sweep.results import collect, effects
from relaylab.sweep.run import Store, commit, run_point, run_sweep
from relaylab.version import __version__
from relaylab.views.sweep_report import sweep_page

ROOT = Path(__file__).parents[1]
CELL = 'reward: str = "simple"\nbonus: float = 1.5\nbeta: float = 0.01\nteacher: str = "t"\nseed: int = 0'
run = partial(run_sweep, child=sweep_stand_in.CHILD)


def write(folder, text, cell=CELL, body="accuracy = 1"):
    notebook(folder / "n.ipynb", cell, body)
    (folder / "s.yaml").write_text("notebook: n.ipynb\n" + text)
    return folder / "s.yaml"


def keys(path):
    return [point.key for point in read_plan(path).points]


# The plan ------------------------------------------------------------------------------------------------------------


def test_grid_zips_lists_and_seeds_multiply(tmp_path):
    text = "parameters: {bonus: 1.2}\ngrid: {beta: [0, 1e-1]}\nzips: [{reward: [simple, outcome], teacher: [a, b]}]\n"
    plan = read_plan(write(tmp_path, text + "lists: {form: {plain: {}, 1: {bonus: 1.0}}}\nseeds: 3\n"))
    assert len(plan.points) == 2 * 2 * 2 * 3 == len({p.key for p in plan.points})
    zipped = {"reward, teacher": ["simple, a", "outcome, b"]}
    assert plan.factors == {"beta": ["0", "0.1"]} | zipped | {"form": ["plain", "1"]}
    last = plan.points[-1]
    assert last.parameters == {"bonus": 1.0, "beta": 0.1, "reward": "outcome", "teacher": "b", "seed": 2}
    assert plan.points[0].parameters["beta"] == 0.0
    assert type(plan.points[0].parameters["beta"]) is float


def test_conditions_leave_points_out(tmp_path):
    text = "grid: {reward: [simple, hard], bonus: [1.0, 1.5], beta: [0.0, 0.1]}\nwhere:\n"
    text += " - {if: {reward: simple}, then: {bonus: 1.5}}\n - {beta: [0.1]}\n"
    plan = read_plan(write(tmp_path, text))
    chosen = [(p.parameters["reward"], p.parameters["bonus"]) for p in plan.points]
    assert chosen == [("simple", 1.5), ("hard", 1.0), ("hard", 1.5)]
    assert plan.factors["beta"] == ["0.1"], "a level that no point has is no level"


def test_a_key_is_the_notebook_its_own_modules_the_parameters_and_the_version(tmp_path, monkeypatch):
    path = write(tmp_path, "grid: {beta: [0.01]}", body="from helper import f")
    deep = tmp_path / "deep" / "er.py"
    deep.parent.mkdir()
    for file, text in ((tmp_path / "helper.py", "import deep.er\n"), (deep, "x = 1"), (tmp_path / "other.py", "x = 1")):
        file.write_text(text)
    first = keys(path)
    path.write_text("notebook: n.ipynb\nparameters: {teacher: t}\n")
    assert keys(path) == first, "a default that is written out is the same point"
    book = json.loads((tmp_path / "n.ipynb").read_text())
    book["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "More words."})
    (tmp_path / "n.ipynb").write_text(json.dumps(book))
    (tmp_path / "other.py").write_text("x = 2")
    assert keys(path) == first, "prose and other files decide no result"
    with monkeypatch.context() as patch:
        patch.setattr("relaylab.sweep.plan.__version__", "other")
        assert keys(path) != first
    for text in ("x = 2", "x = 1"):
        deep.write_text(text)
        assert (keys(path) == first) == (text == "x = 1"), "a module of a module"
    notebook(tmp_path / "n.ipynb", CELL, "from helper import f, g")
    assert keys(path) != first


def test_sizes_change_the_rest(tmp_path):
    path = write(tmp_path, "grid: {beta: [0.1]}\nsizes: {quick: {seeds: 1}, full: {seeds: 4, grid: {bonus: [1, 2]}}}\n")
    assert len(read_plan(path).points) == 1
    assert (len(read_plan(path, "full").points), read_plan(path, "full").name) == (8, "s-full")
    with pytest.raises(ValueError, match="no size 'huge'; there are quick, full"):
        read_plan(path, "huge")


@pytest.mark.parametrize(
    "body",
    ["import json, helper", "import json; import helper", "%time\nimport helper", "if 1:\n  from helper import x"],
)
def test_a_helper_is_found_however_it_is_imported(tmp_path, body):
    path = write(tmp_path, "grid: {beta: [0.1]}", body=body)
    for text in ("%matplotlib inline\nimport json, other", "import json, other", "import json"):
        (tmp_path / "helper.py").write_text(text)
        (tmp_path / "other.py").write_text("x = 1")
        found = {"helper.py": text} | ({"other.py": "x = 1"} if "other" in text else {})
        assert helper_modules(read_plan(path).notebook) == found


def test_the_first_size_is_the_file_by_its_name(tmp_path):
    path = write(tmp_path, "grid: {beta: [0.1]}\nsizes: {quick: {seeds: 1}, full: {seeds: 4}}\n")
    assert read_plan(path) == read_plan(path, "quick")
    assert [read_plan(path, size).name for size in (None, "quick", "full")] == ["s", "s", "s-full"]


BOMB = "lists: {x: {y: {reward: &a [1, 1]}, z: {reward: &b [" + ", ".join(["*a"] * 9) + "]}, w: {reward: ["
BOMB += ", ".join(["*b"] * 12) + "]}}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grids: {beta: [1]}", "unknown setting 'grids'; did you mean 'grid'"),
        ("grid: {betta: [1]}", "no parameter 'betta'; did you mean 'beta'"),
        ("grid: {beta: 1}", "grid: beta: .* list"),
        ("grid: {seed: [1]}", "seeds go under 'seeds'"),
        ("grid: {beta: [1]}\nlists: {x: {y: {beta: 2}}}", "'beta' is varied by 'beta' and by 'x'"),
        ("grid: {beta: [0.01, 1e-2]}", "are the same parameters"),
        ("grid: {beta: [0.01, much]}", "asks for float"),
        ("grid: {beta: []}", "plans no point"),
        ("zips: [{beta: [1, 2], bonus: [1]}]", "as many values"),
        ("zips: [1, 2]", "zips: 0: .* dictionary"),
        ("lists: {x: [1]}", "lists: x: .* dictionary"),
        ("where: [{nothing: 1}]", "'nothing' is no parameter"),
        ("where: [{if: {beta: 1}}]", "needs both"),
        ("where: [{beta: 7}]", "leaves none"),
        ("seeds: many", "seeds"),
        ("seeds: 1000000000", "seeds"),
        ("seeds: 300\ngrid: {beta: [" + ",".join(map(str, range(400))) + "]}", "plans 120,000 points; at most 100,000"),
        (BOMB, "more than 20 aliases or 50 levels"),
        ("parameters: {beta: 1, beta: 2}", "'beta' stands twice"),
        ("parameters: {reward: &a [*a]}", "asks for str"),
        ("grid: " + "[" * 5000, "not YAML"),
        ("timeout: 0", "greater than 0"),
        ("retries: -1", "greater than or equal to 0"),
        ("retries: true", "retries"),
        ("resources: {cpu: 1}", "resources: cpu: "),
        ("resources: {cpus: many}", "resources: cpus: .*many"),
        ("resources: {gpus: -1}", "greater than or equal to 0"),
        ("plane: [accuracy]", "plane: .* at least 2"),
        ("plane: [1, 2]", "plane: 0: .* string"),
        ("plane: [beta, accuracy]", "'beta' is a parameter"),
        ("collect: [seed]", "'seed' is a parameter"),
        ("sizes: {quick: null}", "sizes must be"),
        ("parameters: {teacher: 'https://me:pw@host/v1'}", "looks like a key"),
    ],
)
def test_a_plan_that_cannot_be_says_why(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_plan(write(tmp_path, text))


# One point, and all of them ------------------------------------------------------------------------------------------


def folder(plan, out):
    """Every finished point, once and whole."""
    points = sorted((out / "points").iterdir())
    assert {point.name for point in points} == {p.key for p in plan.points}
    assert all({f.name for f in point.iterdir()} == {"result.json", "n.ipynb", "log.txt"} for point in points)
    return {point.name: (point / "result.json").read_text() for point in points}


def attempts(home):
    """(teacher, seed, process) of every attempt."""
    return [tuple(line.split()) for line in (home / "attempts").read_text().splitlines()]


def test_points_are_executed_once_and_resumed(tmp_path):
    plan, out, states = read_plan(write(tmp_path, "grid: {beta: [0.1, 0.2]}\nseeds: 2\n")), tmp_path / "out", []
    assert run(plan, out, limit=1, threads=3) == {}
    assert len(list((out / "points").iterdir())) == len(attempts(tmp_path)) == 1
    run(plan, out, workers=2, watch=lambda **state: states.append(state))
    assert states[-1] == {"done": 4, "running": 0, "failed": 0, "left": 0.0}
    assert (states[0]["done"], states[0]["running"]) == (1, 2)
    before = folder(plan, out)
    assert run(plan, out) == {}
    assert (folder(plan, out), len(attempts(tmp_path))) == (before, 4)
    record = json.loads(before[plan.points[0].key])
    assert (record["key"], record["version"], record["seed"]) == (plan.points[0].key, __version__, 0)
    assert record["commit"] == commit() is not None
    assert record["values"]["threads"] == "3"
    assert (out / "points" / record["key"] / "log.txt").read_text() == "said by the notebook\n"


@pytest.mark.parametrize("text", ["", '{"key": "', "[]", '{"seconds": "x"}', '{"seconds": 1}'])
def test_an_empty_or_torn_record_is_none(tmp_path, text):
    plan, out = read_plan(write(tmp_path, "seeds: 2\n")), tmp_path / "out"
    run(plan, out)
    before = folder(plan, out)
    record = out / "points" / plan.points[0].key / "result.json"
    record.write_text(text)
    assert len(collect(plan, out)) == 1
    assert run(plan, out) == {}
    timeless = [{k: json.loads(t) | {"seconds": 0} for k, t in f.items()} for f in (before, folder(plan, out))]
    assert timeless[0] == timeless[1]


def test_a_failure_costs_its_point_alone_and_is_retried(tmp_path):
    plan, out = read_plan(write(tmp_path, "grid: {teacher: [bad, t]}\nretries: 2\n")), tmp_path / "out"
    (record,) = run(plan, out).values()
    assert (record["status"], record["error"].splitlines()[-1]) == ("failed", "ValueError: no")
    assert sorted(teacher for teacher, *_ in attempts(tmp_path)) == ["bad", "bad", "bad", "t"]
    assert list(Store(out).records("failure.json")) == [plan.points[0].key]
    good = replace(plan, points=(replace(plan.points[0], parameters={"teacher": "t"}), plan.points[1]))
    assert run(good, out) == {}
    folder(good, out)  # what came right in the end is no failure


def test_what_cannot_run_costs_the_point_and_no_more(tmp_path, monkeypatch):
    """A promised result that is missing, another version than planned, and a full disk."""
    plan, out = read_plan(write(tmp_path, "collect: [accuracy, speed]\n")), tmp_path / "out"
    (record,) = run(plan, out).values()
    assert (record["status"], "gave no 'speed'" in record["error"]) == ("failed", True)
    assert (out / "points" / plan.points[0].key / "n.ipynb").exists()
    assert "planned with relaylab 0.0.1" in run_point(plan.points[0], replace(plan, version="0.0.1"), out)["error"]

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relaylab.sweep.run.execute", full)
    (record,) = run(plan, out).values()
    assert (record["status"], "No space left" in record["error"]) == ("lost", True)
    (kept,) = Store(out).records("failure.json").values()
    assert kept["error"] == record["error"]


def test_two_sweeps_on_one_folder_share_the_points(tmp_path):
    """Another process has the first point: the others are run, then that one is waited for."""
    plan, out = read_plan(write(tmp_path, "seeds: 3\n")), tmp_path / "out"
    (out / "locks").mkdir(parents=True)
    lock = FileLock(out / "locks" / f"{plan.points[0].key}.lock", thread_local=False)
    lock.acquire()

    def watch(done, running, **state):
        if done == 2 and lock.is_locked:
            threading.Timer(0.8, lock.release).start()

    assert run(plan, out, watch=watch) == {}
    assert [seed for _, seed, _ in attempts(tmp_path)] == ["1", "2", "0"]
    folder(plan, out)


# A URL instead of a folder -------------------------------------------------------------------------------------------


@pytest.fixture
def at_url(tmp_path):
    """A sweep of two points, one of which fails, at a URL whose files the test can see."""
    plan = read_plan(write(tmp_path, "grid: {teacher: [bad, t]}\n"))
    return plan, f"file://{tmp_path}/out", tmp_path / "out"


def test_a_url_holds_what_a_folder_holds(at_url, tmp_path):
    plan, url, out = at_url
    bad, good = (p.key for p in plan.points)
    failures = run(plan, url)
    assert set(failures) == {bad}
    assert sweep_page(plan, collect(plan, url), url, failures) == f"{url}/report.html"
    tables = {"results.csv", "results.parquet", "effects.csv", "report.html"}
    parts = {f"points/{key}/{name}" for key in (good, bad) for name in ("n.ipynb", "log.txt")}
    parts |= {f"points/{good}/result.json", f"points/{bad}/failure.json"}
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == tables | parts
    folder = tmp_path / "folder"
    run(plan, folder)
    sweep_page(plan, collect(plan, folder), folder)
    for name in tables - {"report.html"}:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    good = replace(plan, points=(replace(plan.points[0], parameters={"teacher": "t"}),))
    assert run(good, url) == {}
    assert Store(url).records("failure.json") == {}, "what came right is no failure"


def test_at_a_url_a_point_is_finished_once_its_record_is_whole(at_url):
    """The record is uploaded last, so an upload that was cut off leaves none, or half of one."""
    plan, url, out = at_url
    plan = replace(plan, points=plan.points[1:])
    home = out / "points" / plan.points[0].key
    home.mkdir(parents=True)
    (home / "n.ipynb").write_text("half")
    (home / "result.json").write_text('{"key": "')
    assert collect(plan, url).empty
    assert run(plan, url) == {}
    assert (home / "n.ipynb").read_text() == "{}"
    assert len(collect(plan, url)) == len(attempts(out.parent)) == 1


def test_urls_that_cannot_be_say_why():
    for url, words in (("nothing://x", "Protocol not known"), ("memory://x", "is the memory of one process")):
        with pytest.raises(ValueError, match=words):
            Store(url)


# The tables and the page ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep of 2 x 2 levels and 3 seeds, with one level that fails."""
    home = tmp_path_factory.mktemp("done")
    text = "grid: {beta: [0.1, 0.3]}\nlists: {who: {me: {}, bad one: {teacher: bad}}}\nseeds: 3\n"
    plan = read_plan(write(home, text))
    return plan, home / "out", run(plan, home / "out")


def test_the_table_is_tidy(done):
    plan, out, _ = done
    table = collect(plan, out)
    assert table.equals(pd.read_parquet(out / "results.parquet"))
    settings = ["key", "beta", "who", "seed", "version", "commit", "planned"]
    assert list(table) == [*settings, "accuracy", "call_ratio", "note", "threads"]
    assert len(table) == 6
    assert table["planned"].all()
    assert list(table["seed"]) == [0, 1, 2, 0, 1, 2]
    other = replace(plan, points=plan.points[:1])
    assert collect(other, out)["planned"].tolist() == [True] + [False] * 5, "earlier results stay"


def test_effects_have_intervals_over_seeds(done):
    plan, out, _ = done
    rows = effects(plan, collect(plan, out))
    rows = rows[(rows["factor"] == "beta") & (rows["result"] == "accuracy")].set_index("level")
    assert rows.loc["0.3", "mean"] == pytest.approx(0.4)
    assert (rows.loc["0.3", "points"], rows.loc["0.3", "seeds"]) == (3, 3)
    assert 0.3 - 1e-9 <= rows.loc["0.3", "low"] < 0.4 < rows.loc["0.3", "high"] <= 0.5 + 1e-9
    # The seed moves both levels alike, so the paired difference is certain where the means are not.
    change = rows.loc["0.3", ["difference", "difference_low", "difference_high"]].astype(float)
    assert list(change) == pytest.approx([0.2, 0.2, 0.2])
    one = replace(plan, points=tuple(p for p in plan.points if p.seed == 0))
    assert effects(one, collect(one, out))["low"].isna().all(), "one seed says nothing about seeds"


def test_the_report_escapes_and_links(done):
    plan, out, failures = done
    page = Path(sweep_page(plan, collect(plan, out), out, failures)).read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == len(failures) == 6
    for point in plan.points:
        assert f'href="points/{point.key}/n.ipynb"' in page
        assert (out / "points" / point.key / "n.ipynb").exists()
    assert "accuracy against call_ratio" in page
    named = Path(sweep_page(replace(plan, notebook=Path("a #1%.ipynb")), collect(plan, out), out)).read_text()
    assert f'href="points/{plan.points[0].key}/a%20%231%25.ipynb"' in named
    assert 'src="http' not in page
    assert (out / "effects.csv").read_text().startswith("factor,level,result,points,seeds,mean")


def test_a_result_with_a_parameters_name_is_a_column_of_its_own(tmp_path):
    plan, out = read_plan(write(tmp_path, "seeds: 2\n", cell=CELL + "\naccuracy: float = 0.5")), tmp_path / "out"
    plan = replace(plan, points=tuple(replace(p, parameters=p.parameters | {"accuracy": 0.5}) for p in plan.points))
    run(plan, out)
    table = collect(plan, out)
    assert table[["accuracy", "result.accuracy"]].to_numpy().tolist() == [[0.5, 0.0], [0.5, 0.1]]
    sweep_page(plan, table, out)


def test_the_command_plans_executes_and_reports(tmp_path):
    """With a real kernel once."""
    body = "import relaylab as rl\nrl.result(accuracy=beta, call_ratio=0.5)"
    path, out, app = write(tmp_path, "grid: {beta: [0.1, 0.2]}\n", body=body), tmp_path / "out", typer.Typer()
    app.command()(sweep)

    def words(*options):
        done = CliRunner().invoke(app, [str(path), "--out", str(out), *options])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "2 points, 2 to run; --limit 1" in words("--dry-run")
    assert not out.exists()
    assert "1 of 2 points finished" in words("--limit", "1")
    assert "2 points, 1 to run; about" in words("--dry-run")
    table = pd.read_csv(out / "results.csv")
    assert table[["beta", "accuracy"]].to_numpy().tolist() == [[0.1, 0.1]]
