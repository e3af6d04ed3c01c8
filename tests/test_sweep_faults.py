"""Sweeps under faults: a killed process, a killed driver, Ctrl-C; every point is there exactly once in the end."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import psutil
import pytest
from test_notebooks_run import until
from test_sweep import ROOT, attempts, folder, run, write

from relaylab.sweep.plan import read_plan
from relaylab.sweep.results import collect
from relaylab.views.sweep_report import sweep_page

pytestmark = pytest.mark.posix  # the child that stands in for papermill ends by a signal
_spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks" / "chaos.py")
chaos = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chaos)
DRIVER = """
import sys
from sweep_stand_in import CHILD
from relaylab.sweep.plan import read_plan
from relaylab.sweep.run import run_sweep

run_sweep(read_plan(sys.argv[1]), sys.argv[2], workers=2, ray=sys.argv[3] or None, child=CHILD)
"""


def driver(path, out, ray=""):
    """A sweep in a process of its own."""
    script = path.with_name("driver.py")
    script.write_text(DRIVER)
    path.with_name("slowly").touch()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    words = [sys.executable, str(script), str(path), str(out), ray]
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths})


def test_a_killed_process_costs_its_point_alone(tmp_path):
    plan, out = read_plan(write(tmp_path, "grid: {teacher: [die, t]}\nretries: 1\n")), tmp_path / "out"
    failures = run(plan, out, workers=2)
    assert {key: r["error"] for key, r in failures.items()} == {plan.points[0].key: "its process died (exit code -9)"}
    assert sorted(teacher for teacher, *_ in attempts(tmp_path)) == ["die", "die", "t"]
    table = collect(plan, out)
    assert list(table["teacher"]) == ["t"]
    page = Path(sweep_page(plan, table, out, failures)).read_text()
    assert page.count("its process died (exit code -9)") == 2, "once in the line, once in all of it"


def test_ctrl_c_ends_what_is_running_and_frees_it(tmp_path):
    plan, out = read_plan(write(tmp_path, "grid: {teacher: [t, slow]}\n")), tmp_path / "out"

    def interrupt(done, **state):
        if done:
            until(lambda: len(attempts(tmp_path)) == 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, out, workers=2, watch=interrupt)
    assert not [p for p in psutil.Process().children(recursive=True) if "sweep_stand_in" in str(p.cmdline())]
    assert len(list(out.glob("points/*/result.json"))) == 1
    assert not list(out.glob("points/*/failure.json")), "an interrupt is no failure"


def test_killed_drivers_and_workers_leave_nothing_half_and_nothing_is_done_twice(tmp_path):
    path = write(tmp_path, "seeds: 16\n")
    plan, out, undisturbed = read_plan(path), tmp_path / "out", tmp_path / "undisturbed"
    kinds = ["driver", "worker", "driver"]
    counts = chaos.disturb(plan, out, lambda: driver(path, out), kinds, rng=random.Random(0), pause=0.2)
    assert counts["kills"] == {"driver": 2, "worker": 1}
    folder(plan, out)
    run(plan, undisturbed, workers=2)
    collect(plan, out), collect(plan, undisturbed)
    for name in ("results.csv", "results.parquet"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_half_a_record_of_a_killed_process_goes_when_the_point_runs_again(tmp_path):
    plan, out = read_plan(write(tmp_path, "seeds: 1\n")), tmp_path / "out"
    home = out / "points" / plan.points[0].key
    home.mkdir(parents=True)
    for name in (".result.json.a1b2", ".failure.json.c3d4", ".result.jsonl"):
        (home / name).write_text('{"status": "do')
    run(plan, out)
    names = {file.name for file in home.iterdir()}
    assert names == {"n.ipynb", "result.json", "log.txt", ".result.jsonl"}, "the last is nobody's record"


def test_the_check_of_killed_sweeps_sees_what_it_is_for(tmp_path):
    plan, out = read_plan(write(tmp_path, "seeds: 2\n")), tmp_path / "out"
    run(plan, out)
    chaos.check(plan, out, chaos.finished(out))
    home = out / "points" / plan.points[0].key

    def refused(words, seen=None):
        with pytest.raises(RuntimeError, match=words):
            chaos.check(plan, out, seen or {})

    refused("executed again", {home.name: 0})
    (home / "log.txt").unlink()
    refused("not whole")
    (home / "result.json").unlink()
    refused("2 points were planned, and 1 are there")


def test_ray_is_named_where_it_is_missing_and_asked_for_what_a_point_needs(tmp_path, monkeypatch):
    """Ray's part in few lines: a task is done when it is submitted, but for the first, whose node is lost."""
    from concurrent.futures import Future

    options, lost = {}, iter([True])

    class Task:
        def __init__(self, function):
            self.function = function

        def options(self, **given):
            options.update(given)
            return self

        def remote(self, point, **common):
            future = Future()
            if next(lost, False):
                future.set_exception(RuntimeError("node died"))
            else:
                future.set_result(self.function(point, **common))
            return types.SimpleNamespace(future=lambda: future)

    plan = read_plan(write(tmp_path, "seeds: 3\nretries: 1\nresources: {cpus: 2, gpus: 1, memory_gb: 3}\n"))
    on_ray = partial(run, plan, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"relaylab\[ray\]"):
        on_ray(ray="auto")
    has = {"CPU": 4.0, "GPU": 3.0, "memory": 1e10}
    ray = types.SimpleNamespace(
        init=lambda **given: options.update(given),
        nodes=lambda: [{"Alive": alive, "Resources": has} for alive in (True, False)],
        remote=Task, cancel=lambda reference, force: None, wait=lambda references, **options: None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    states = []
    assert on_ray(ray="auto", watch=lambda **state: states.append(state)) == {}
    wanted = {"address": "auto", "num_cpus": 2, "num_gpus": 1, "memory": 3 * 2**30}
    assert wanted.items() <= options.items()
    assert (states[0]["running"], len(folder(plan, tmp_path / "out"))) == (2, 3)
    has["GPU"] = 0.0
    with pytest.raises(ValueError, match="no node of Ray has what a point needs"):
        run(plan, tmp_path / "other", ray="local")
