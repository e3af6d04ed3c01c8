"""Sweeps on a real Ray of two nodes on this machine: the same tables as locally, and every fault costs its point alone.

Light: one CPU and 80 MB of object store per node, and a notebook's kernel only where it matters.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
import threading
from dataclasses import replace

import psutil
import pytest
from test_notebooks_run import until
from test_sweep import ROOT, attempts, folder, run, write
from test_sweep_faults import chaos, driver

from relaylab.sweep.plan import read_plan
from relaylab.sweep.results import collect
from relaylab.sweep.run import Store, run_sweep

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'"),
    pytest.mark.skipif(sys.platform == "win32", reason="Ray has no clusters of several nodes on Windows"),
]
GPU = {"num_gpus": 1}  # a claim, for which no card is needed


@pytest.fixture(scope="module")
def nodes():
    """A head and a node, each with one CPU; only the node says that it has a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # otherwise Ray's workers yield to all else
        import ray
        from ray.cluster_utils import Cluster

        head = chaos.NODE | {"include_dashboard": False, "no_monitor": True}
        try:
            cluster = Cluster(initialize_head=True, head_node_args=head)
            cluster.gpu_node = cluster.add_node(**chaos.NODE, **GPU)
        except Exception as error:  # Ray gives a node 30 s to start, which a busy machine may not keep
            if "timed out" not in str(error):
                raise
            pytest.skip(f"Ray did not start on this machine in time: {error}")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_the_tables_are_those_of_this_machine_to_the_byte(nodes, tmp_path):
    """With kernels. The hash of a text shows whether all processes have the same seed for it."""
    body = "import relaylab as rl\nrl.result(accuracy=beta + seed / 3, call_ratio=hash(teacher) % 997 / 997)\n"
    plan = read_plan(write(tmp_path, "grid: {beta: [0.1, 0.7]}\n", body=body))
    for out, options in (("ray", {"ray": nodes.address}), ("local", {"workers": 2})):
        assert run_sweep(plan, tmp_path / out, **options) == {}
        collect(plan, tmp_path / out)
    for name in ("results.csv", "results.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_a_point_gets_what_it_needs_and_waits_for_it(nodes, tmp_path, monkeypatch):
    plan = read_plan(write(tmp_path, "resources: {cpus: 0.5, gpus: 1, memory_gb: 1.5}\n"))
    states = []
    assert run(plan, tmp_path / "out", ray=nodes.address, watch=lambda **state: states.append(state)) == {}
    assert states[0]["running"] == 1, "one node has a GPU, and memory for one"
    assert collect(plan, tmp_path / "out")["gpu"].tolist() == ["0"]
    plan = read_plan(write(tmp_path, "resources: {cpus: 0}\n"))
    assert run(plan, tmp_path / "free", ray=nodes.address, watch=lambda **state: states.append(state)) == {}
    assert states[-1]["done"] == len(plan.points), "what needs nothing fits everywhere"
    # A cluster may grow, so more than any node has is waited for; here the warning ends the wait.
    monkeypatch.setattr("relaylab.sweep.run.NOWHERE_AFTER", 0.2)
    plan = read_plan(write(tmp_path, "resources: {cpus: 3}\nseeds: [5]"))

    def ended(message, **options):
        raise KeyboardInterrupt(message)

    monkeypatch.setattr("relaylab.sweep.run.warnings.warn", ended)
    with pytest.raises(KeyboardInterrupt, match=r"no node of Ray has what a point needs .*; waiting for one"):
        run(plan, tmp_path / "out", ray=nodes.address)


def test_a_killed_worker_costs_its_point_alone_and_is_retried(nodes, tmp_path):
    """The worker of Ray, at a URL: its temporary folder is lost with it."""
    plan, url = read_plan(write(tmp_path, "grid: {teacher: [held, t]}\nretries: 1\n")), f"file://{tmp_path}/out"

    def kill():
        for attempt in (1, 2):
            until(lambda n=attempt: sum(teacher == "held" for teacher, *_ in attempts(tmp_path)) == n)
            pid = [int(pid) for teacher, _, pid in attempts(tmp_path) if teacher == "held"][-1]
            psutil.Process(pid).parent().kill()

    (tmp_path / "attempts").touch()
    thread = threading.Thread(target=kill)
    thread.start()
    failures = run(plan, url, ray=nodes.address)
    thread.join()
    assert {r["status"] for r in failures.values()} == {"lost"}
    assert list(collect(plan, url)["teacher"]) == ["t"]
    (record,) = Store(url).records("failure.json").values()
    assert record["error"].startswith("WorkerCrashedError")


def test_ctrl_c_ends_what_is_running_and_frees_it(nodes, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    plan, out = read_plan(write(tmp_path, "parameters: {teacher: slow}\n")), tmp_path / "out"
    (tmp_path / "attempts").touch()

    def press():
        until(lambda: attempts(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(plan, out, ray=nodes.address)
    thread.join()
    pid = int(attempts(tmp_path)[0][2])
    until(lambda: not psutil.pid_exists(pid) or not chaos.alive(psutil.Process(pid)), seconds=20)
    quick = replace(plan, points=(replace(plan.points[0], parameters={"teacher": "t"}),))
    assert run(quick, out) == {}, "its lock is free"


def test_a_lost_node_costs_its_point_alone(nodes, tmp_path):
    plan, out = read_plan(write(tmp_path, "parameters: {teacher: held}\nseeds: 3\n")), tmp_path / "out"
    (tmp_path / "attempts").touch()

    def kill():
        until(lambda: len(attempts(tmp_path)) == 2)  # one per node
        processes = [psutil.Process(int(pid)) for *_, pid in attempts(tmp_path)]
        nodes.remove_node(nodes.gpu_node, allow_graceful=False)
        until(lambda: not all(map(chaos.alive, processes)))
        (tmp_path / "go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        failures = run(plan, out, ray=nodes.address)
    finally:
        thread.join()
        nodes.gpu_node = nodes.add_node(**chaos.NODE, **GPU)
    (record,) = failures.values()
    assert record["error"].split(":")[0] in ("WorkerCrashedError", "NodeDiedError")
    assert len(list(out.glob("points/*/result.json"))) == 2
    assert run(plan, out, ray=nodes.address) == {}
    folder(plan, out)
    assert len(attempts(tmp_path)) == 4


def test_a_killed_driver_leaves_nothing_half_and_nothing_is_done_twice(nodes, tmp_path):
    path = write(tmp_path, "seeds: 12\n")
    plan, out = read_plan(path), tmp_path / "out"
    start = lambda: driver(path, out, nodes.address)  # noqa: E731
    counts = chaos.disturb(plan, out, start, ["driver"], ray=True, rng=random.Random(0), pause=0.2)
    assert counts["kills"] == {"driver": 1}
    folder(plan, out)
    assert len(collect(plan, out)) == 12
