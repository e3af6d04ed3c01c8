"""A notebook's execution without a kernel, for tests of sweeps. Light, since every worker of theirs imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from relaylab.sweep.notebook import write_json


def stand_in(notebook, folder, parameters, *, timeout=None, env=None):
    """As ``relaylab.sweep.notebook.execute``; teachers called ``bad``, ``die``, ``slow`` and ``held`` misbehave.

    Who worked on what is in ``attempts`` beside the notebook, a line ``teacher seed process`` each. ``held`` goes on
    once there is a file ``go`` beside it.
    """
    teacher, seed, home = parameters.get("teacher", "t"), parameters.get("seed", 0), Path(notebook).parent
    with (home / "attempts").open("a") as file:
        file.write(f"{teacher} {seed} {os.getpid()}\n")
    if teacher == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if teacher == "slow":
        time.sleep(600)
    while teacher == "held" and not (home / "go").exists():
        time.sleep(0.02)
    os.write(1, b"said by the notebook\n")  # past sys.stdout, as a kernel does
    accuracy = parameters.get("beta", 0.0) + 0.1 * seed
    error = "Traceback <script>alert(1)</script>\nValueError: no" if teacher == "bad" else None
    record = {"status": "failed" if error else "done", "seconds": 2.0, "error": error}
    record["values"] = {"accuracy": accuracy, "call_ratio": accuracy / 2, "note": "<b>"}
    write_json(Path(folder) / "result.json", record)
    (Path(folder) / "n.ipynb").write_text("{}")
    return record


def slowly(notebook, folder, parameters, **options):
    """The same, so slow that a driver can be killed in between."""
    time.sleep(0.25)
    return stand_in(notebook, folder, parameters, **options)


def assigned(notebook, folder, parameters, **options):
    """The same, whose results are what Ray gave the task."""
    import ray

    given = ray.get_runtime_context()
    record = stand_in(notebook, folder, parameters, **options)
    held = given.get_assigned_resources()
    record["values"] = {"cpus": held.get("CPU"), "gpus": held.get("GPU"), "memory": held.get("memory")}
    record["values"] |= {"node": given.get_node_id(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    return record
