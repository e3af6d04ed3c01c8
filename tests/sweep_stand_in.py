"""The process that executes a notebook, without a kernel: what ``relaylab.sweep.notebook`` does in milliseconds.

Teachers called ``bad``, ``die``, ``slow`` and ``held`` misbehave. Who worked on what is in ``attempts`` beside the
notebook, a line ``teacher seed process`` each. ``held`` goes on once there is a file ``go`` beside it.
"""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

CHILD = (sys.executable, "-S", __file__)


def main():
    job = json.loads(sys.stdin.buffer.readline())
    values, home = job["parameters"], Path(job["notebook"]).parent
    teacher, seed = values.get("teacher", "t"), values.get("seed", 0)
    with (home / "attempts").open("a") as file:
        file.write(f"{teacher} {seed} {os.getpid()}\n")
    if teacher == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while teacher == "slow" or (teacher == "held" and not (home / "go").exists()):
        if select.select([0], [], [], 0.02)[0]:  # the end of the standard input: the parent has died
            return
    if (home / "slowly").exists():  # so that a driver can be killed in between
        time.sleep(0.25)
    print("said by the notebook")
    accuracy = values.get("beta", 0.0) + 0.1 * seed
    results = {"accuracy": accuracy, "call_ratio": accuracy / 2, "note": "<b>"}
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        results["gpu"] = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(os.environ["RELAYLAB_RESULT"]).write_text(json.dumps(results | {"threads": os.environ["OMP_NUM_THREADS"]}))
    Path(job["copy"]).write_text("{}")
    if teacher == "bad":
        Path(job["errors"]).write_text("Traceback <script>alert(1)</script>\nValueError: no")


if __name__ == "__main__":
    main()
