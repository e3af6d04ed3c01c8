"""Sweeps on a real Ray of two nodes on this machine: the same tables as locally, and every fault costs its point alone.

Light: a CPU and 80 MB of object store a node, and a notebook's kernel only where it matters.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from sweep_stand_in import assigned, slowly, stand_in
from test_sweep import CELL, Inline, folder, notebook, write
from test_sweep_faults import chaos

from relaylab.relay.config import RelayConfig
from relaylab.sweep.collect import collect
from relaylab.sweep.drive import drive
from relaylab.sweep.engines import LocalEngine, RayEngine
from relaylab.sweep.large_evaluation import evaluated
from relaylab.sweep.large_filter import rate
from relaylab.sweep.plan import read_plan
from relaylab.sweep.point import Job
from relaylab.sweep.shards import Asked, Spread
from relaylab.tasks.suites import problems

TESTS = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'"),
    pytest.mark.skipif(sys.platform == "win32", reason="Ray has no clusters of several nodes on Windows"),
]
GPU = {"num_gpus": 1}  # a claim, for which no card is needed


@pytest.fixture(scope="module")
def nodes():
    """A head and a node, each with one CPU; only the node says that it has a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else what else the machine does goes first
        import ray
        from ray.cluster_utils import Cluster

        head = chaos.NODE | {"include_dashboard": False, "no_monitor": True}
        try:
            cluster = Cluster(initialize_head=True, head_node_args=head)
            cluster.gpu_node = cluster.add_node(**chaos.NODE, **GPU)
        except Exception as error:  # Ray gives a node 30 s to start, which a machine with much else to do may not keep
            if "timed out" not in str(error):
                raise
            pytest.skip(f"Ray did not start on this machine in time: {error}")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def attempts(home):
    """(teacher, seed, process) of every attempt so far."""
    file = home / "attempts"
    return [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []


def until(there, seconds=120):
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_the_tables_are_those_of_the_local_engine_to_the_byte_and_a_hanging_point_costs_itself(nodes, tmp_path):
    """With kernels. The hash of a text tells whether all processes have the same seed for it."""
    body = "import time\nfrom relaylab.sweep.notebook import result\n"
    body += "result(accuracy=beta + seed / 3, call_ratio=hash(teacher) % 997 / 997)\n"
    path = write(tmp_path, "grid: {beta: [0.1, 0.7]}\n")
    notebook(tmp_path / "n.ipynb", CELL, body)
    plan, engine = read_plan(path), RayEngine(nodes.address)
    assert engine.workers == 2
    for out, chosen in (("ray", engine), ("local", LocalEngine(2))):
        assert drive(plan, chosen, Job.of(plan, tmp_path / out)) == {}
        collect(plan, tmp_path / out)
    for name in ("results.csv", "results.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    notebook(tmp_path / "n.ipynb", CELL, "while True: pass")
    hangs = replace(read_plan(path), points=read_plan(path).points[:1], timeout=2.0)
    (outcome,) = drive(hangs, engine, Job.of(hangs, tmp_path / "ray")).values()
    assert (outcome.status, outcome.error.splitlines()[0]) == ("failed", "stopped after 2 seconds")


def test_a_filter_and_an_evaluation_in_shards_are_those_of_one_process(nodes, tmp_path):
    """With the embedded models, on both nodes."""
    train = [p for s in ("savings", "tiles") for p in problems(s, 2, split="train")]
    test = [p for s in ("savings", "tiles") for p in problems(s, 2)]
    there = Spread(RayEngine(nodes.address), shards=2)
    for name, spread in (("ray", there), ("one", None)):
        (out := tmp_path / name).mkdir()
        asked = Asked("teacher", temperature=1.0)
        found = rate(asked, train, out / "rates.jsonl", spread, samples=3, max_tokens=100, progress=False)
        assert [r.problem for r in found] == train
        limits = RelayConfig(max_tokens=100, max_calls=2)
        evaluated(["student", "relay"], test, out, Asked("teacher"), spread, config=limits, progress=False)
    for name in ("rates.jsonl", "table.csv", "summary.csv", "terms.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert len(list(tmp_path.glob("ray/*shards/points/*/result.json"))) == 4, "two shards each"


def test_a_point_gets_what_it_asked_for(nodes, tmp_path):
    text = "resources: {cpus: 0.5, gpus: 1, memory_gb: 1.5}\n"
    plan = read_plan(write(tmp_path, text))
    needs = plan.resources
    engine = RayEngine(nodes.address, cpus=needs["cpus"], gpus=needs["gpus"], memory_gb=needs["memory_gb"])
    assert engine.workers == 1, "one node has a GPU, and memory for one"
    assert drive(plan, engine, Job.of(plan, tmp_path / "out", run=assigned)) == {}
    (row,) = collect(plan, tmp_path / "out").to_dict("records")
    assert (row["cpus"], row["gpus"], row["memory"], row["visible"]) == (0.5, 1.0, 1.5 * 2**30, "0")
    assert row["node"] == nodes.gpu_node.node_id


def test_more_than_any_node_has_is_said(nodes, tmp_path, monkeypatch):
    """A cluster may grow, so it is waited for; here the wait is ended at once."""
    plan = read_plan(write(tmp_path, ""))
    monkeypatch.setattr("relaylab.sweep.engines.NOWHERE_AFTER", 0.2)
    engine = RayEngine(nodes.address, cpus=3)

    def ended(message, **options):
        raise KeyboardInterrupt(message)

    monkeypatch.setattr("warnings.warn", ended)
    with pytest.raises(KeyboardInterrupt, match=r"no node of Ray has what a point needs \(CPU 3\): .*; waiting"):
        drive(plan, engine, Job.of(plan, tmp_path / "out", run=stand_in))


def test_a_killed_worker_costs_its_point_alone_and_is_retried_as_often_as_asked(nodes, tmp_path):
    plan = read_plan(write(tmp_path, "grid: {teacher: [die, t]}\nretries: 1\n"))
    failures = drive(plan, RayEngine(nodes.address), Job.of(plan, f"file://{tmp_path}/out", run=stand_in))
    assert {o.status for o in failures.values()} == {"lost"}
    assert set(failures) == {p.key for p in plan.points if p.levels["teacher"] == "die"}
    assert sorted(teacher for teacher, *_ in attempts(tmp_path)) == ["die", "die", "t"]
    assert list(collect(plan, f"file://{tmp_path}/out")["teacher"]) == ["t"]
    (record,) = Job.of(plan, f"file://{tmp_path}/out").store.records("failed")
    assert record["error"].startswith("WorkerCrashedError")


def test_ctrl_c_ends_what_is_running_and_frees_it(nodes, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    plan = read_plan(write(tmp_path, "parameters: {teacher: slow}\n"))
    job = Job.of(plan, tmp_path / "out", run=stand_in)

    def press():
        until(lambda: attempts(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        drive(plan, RayEngine(nodes.address), job)
    thread.join()
    pid = int(attempts(tmp_path)[0][2])
    until(lambda: not psutil.pid_exists(pid) or not chaos.alive(psutil.Process(pid)), seconds=10)  # Ray reaps it soon
    quick = replace(plan.points[0], parameters={"teacher": "t"})
    assert job(quick).status == "done", "its lock is free"


def test_a_lost_node_costs_its_point_alone(nodes, tmp_path):
    plan = read_plan(write(tmp_path, "parameters: {teacher: held}\nseeds: 3\n"))
    job, out = Job.of(plan, tmp_path / "out", run=stand_in), tmp_path / "out"
    engine = RayEngine(nodes.address)

    def kill():
        until(lambda: len(attempts(tmp_path)) == 2)  # one a node
        workers = [psutil.Process(int(pid)) for *_, pid in attempts(tmp_path)]
        nodes.remove_node(nodes.gpu_node, allow_graceful=False)
        until(lambda: not all(map(chaos.alive, workers)))
        (tmp_path / "go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        failures = drive(plan, engine, job)
    finally:
        thread.join()
        nodes.gpu_node = nodes.add_node(**chaos.NODE, **GPU)
    (error,) = (o.error for o in failures.values())
    assert error.split(":")[0] in ("WorkerCrashedError", "NodeDiedError")
    assert len(list((out / "points").iterdir())) == 2
    assert drive(plan, engine, job) == {}
    folder(plan, out)
    assert len(attempts(tmp_path)) == 4


DRIVER = """
import sys
from sweep_stand_in import slowly
from relaylab.sweep.drive import drive
from relaylab.sweep.engines import RayEngine
from relaylab.sweep.plan import read_plan
from relaylab.sweep.point import Job

plan = read_plan(sys.argv[1])
drive(plan, RayEngine(sys.argv[3]), Job.of(plan, sys.argv[2], run=slowly))
"""


def test_a_killed_driver_leaves_nothing_half_and_nothing_is_done_twice(nodes, tmp_path):
    path = write(tmp_path, "seeds: 12\n")
    plan, out = read_plan(path), tmp_path / "out"
    (tmp_path / "driver.py").write_text(DRIVER)

    def start():
        return subprocess.Popen([sys.executable, str(tmp_path / "driver.py"), str(path), str(out), nodes.address])

    found = chaos.disturb(plan, out, start, ["driver"], engine="ray", rng=random.Random(0), pause=0.2)
    assert found["kills"] == {"driver": 1}
    folder(plan, out)
    drive(plan, Inline(), Job.of(plan, tmp_path / "undisturbed", run=slowly))
    for where in (out, tmp_path / "undisturbed"):
        collect(plan, where)
    assert (out / "results.parquet").read_bytes() == (tmp_path / "undisturbed" / "results.parquet").read_bytes()
