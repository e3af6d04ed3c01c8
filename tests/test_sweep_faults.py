"""Sweeps under faults: a killed worker, a killed driver, Ctrl-C; every point is there exactly once in the end.

Those of a real Ray are in test_sweep_ray.py; here is its part in a few lines, for machines without it.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import types
from functools import partial

import pytest
from sweep_stand_in import stand_in
from test_sweep import ROOT, Inline, folder, write

from relaylab.sweep.collect import collect
from relaylab.sweep.drive import drive
from relaylab.sweep.engines import LocalEngine, RayEngine
from relaylab.sweep.plan import read_plan
from relaylab.sweep.point import Job
from relaylab.sweep.report import report

_spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks" / "chaos.py")
chaos = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chaos)


def test_a_killed_worker_costs_its_point_alone(tmp_path):
    plan = read_plan(write(tmp_path, "grid: {teacher: [die, t]}\nretries: 1\n"))
    failures = drive(plan, LocalEngine(2), Job.of(plan, tmp_path / "out", run=stand_in))
    assert {o.error for o in failures.values()} == {"its worker died (exit code -9)"}
    assert set(failures) == {p.key for p in plan.points if p.levels["teacher"] == "die"}
    table = collect(plan, tmp_path / "out")
    assert list(table["teacher"]) == ["t"]
    page = report(plan, table, tmp_path / "out", failures).read_text()
    assert page.count("its worker died (exit code -9)") == 2, "once in the line, once in all of it"


def test_ctrl_c_ends_what_is_running(tmp_path):
    import psutil

    plan = read_plan(write(tmp_path, "grid: {teacher: [t, slow]}\n"))

    def interrupt(state):
        if state.done:
            raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        drive(plan, LocalEngine(2), Job.of(plan, tmp_path / "out", run=stand_in), watch=interrupt)
    left = [p for p in set(psutil.Process().children(recursive=True)) - before if "forkserver" not in str(p.cmdline())]
    left = [p for p in left if "resource_tracker" not in str(p.cmdline())]
    assert not left
    assert len(list((tmp_path / "out" / "points").iterdir())) == 1


DRIVER = """
import sys
from sweep_stand_in import slowly
from relaylab.sweep.drive import drive
from relaylab.sweep.engines import LocalEngine
from relaylab.sweep.plan import read_plan
from relaylab.sweep.point import Job

if __name__ == "__main__":
    plan = read_plan(sys.argv[1])
    drive(plan, LocalEngine(2), Job.of(plan, sys.argv[2], run=slowly))
"""


def test_killed_drivers_and_workers_leave_nothing_half_and_nothing_is_done_twice(tmp_path):
    path = write(tmp_path, "seeds: 16\n")
    plan, out = read_plan(path), tmp_path / "out"
    (tmp_path / "driver.py").write_text(DRIVER)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])

    def start():
        words = [sys.executable, str(tmp_path / "driver.py"), str(path), str(out)]
        return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths})

    kinds = ["driver", "worker", "driver"]
    found = chaos.disturb(plan, out, start, kinds, engine="local", rng=random.Random(0), pause=0.2)
    assert found["kills"] == {"driver": 2, "worker": 1}
    folder(plan, out)
    undisturbed = tmp_path / "undisturbed"
    drive(plan, Inline(), Job.of(plan, undisturbed, run=stand_in))
    collect(plan, out), collect(plan, undisturbed)
    for name in ("results.csv", "results.parquet"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_the_check_of_killed_sweeps_sees_what_it_is_for(tmp_path):
    plan, out = read_plan(write(tmp_path, "seeds: 2\n")), tmp_path / "out"
    drive(plan, Inline(), Job.of(plan, out, run=stand_in))
    chaos.check(plan, out, chaos.finished(out))
    home = out / "points" / plan.points[0].key

    def refused(words, seen=None):
        with pytest.raises(RuntimeError, match=words):
            chaos.check(plan, out, seen or {})

    refused("executed again", {home.name: 0})
    (out / "drafts" / "left").mkdir()
    refused("left over")
    (home / "log.txt").unlink()
    refused("not whole")
    (home / "result.json").unlink()
    refused("2 points were planned, and 1 are there")


def test_ray_is_named_where_it_is_missing_and_asked_for_what_a_point_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"relaylab\[ray\]"):
        RayEngine()
    # Ray's part in few lines: a task is done when it is asked for, but for the first, whose node is lost.
    asked, lost = {}, iter([True])

    class RayError(Exception):
        pass

    class Reference:
        def __init__(self, function, *given):
            self.done = partial(function, *given)

    def options(function, **given):
        asked.update(given)
        return types.SimpleNamespace(remote=partial(Reference, function))

    def get(reference):
        if next(lost, False):
            raise RayError("node died")
        return reference.done()

    ray = types.SimpleNamespace(
        init=lambda **options: asked.update(options),
        nodes=lambda: [
            {"Alive": alive, "Resources": {"CPU": 4.0, "GPU": 3.0, "memory": 1e10}} for alive in (True, False)
        ],
        remote=lambda function: types.SimpleNamespace(options=partial(options, function)),
        get=get,
        wait=lambda references, num_returns, timeout: (references[:num_returns], references[num_returns:]),
        exceptions=types.SimpleNamespace(RayError=RayError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match=r"no node of Ray has what a point needs \(CPU 5\)"):
        RayEngine(cpus=5)
    assert asked["address"] == "local"
    engine = RayEngine("auto", cpus=2, gpus=1, memory_gb=3)
    plan = read_plan(write(tmp_path, "seeds: 3\nretries: 1\n"))
    assert drive(plan, engine, Job.of(plan, tmp_path / "out", run=stand_in)) == {}
    assert (asked["address"], asked["num_cpus"], asked["num_gpus"], asked["memory"]) == ("auto", 2, 1, 3 * 2**30)
    assert (engine.workers, len(folder(plan, tmp_path / "out"))) == (2, 3)
