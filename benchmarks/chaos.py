"""Kill a sweep (SIGKILL) and resume it: every point is there exactly once, with the tables of an undisturbed run.

    python benchmarks/chaos.py                     # 20 kills in sweeps of 30 points, locally and on a Ray of two nodes
    python benchmarks/chaos.py --where local       # without the extra 'ray'

``relaylab sweep`` runs in a process of its own. At random moments it is killed, or a process that runs a point, or a
Ray node (another takes its place). Then the same command resumes. The sweep itself retries nothing, so resuming has to
find every loss.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil

from relaylab.sweep.plan import Plan, read_plan

KINDS = {"local": ("driver", "worker"), "ray": ("driver", "worker", "node")}
PATIENCE = 300  # seconds without anything happening, after which this gives up
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 2 * 2**30, "include_log_monitor": False}
# hash() shows whether every process has the same seed for it; the file counts how often this ran.
BODY = """import relaylab as rl
with open("ran.log", "a") as file:
    file.write(f"{seed}\\n")
rl.result(accuracy=(seed * 7 % 10) / 10, call_ratio=hash(f"point {seed}") % 1000 / 1000)
"""


def write_sweep(folder: Path, points: int) -> Path:
    """A sweep of a trivial notebook."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in ("seed: int = 0", BODY)])
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / "trivial.ipynb")
    (folder / "chaos.yaml").write_text(f"notebook: trivial.ipynb\nseeds: {points}\nresources: {{memory_gb: 0.5}}\n")
    return folder / "chaos.yaml"


class Nodes:
    """A Ray cluster on this machine: a head that executes nothing, and two nodes of a CPU each."""

    def __init__(self) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        from ray.cluster_utils import Cluster

        head = NODE | {"num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]

    def kill_one(self, rng: random.Random) -> list[psutil.Process]:
        """SIGKILL to a node; another takes its place. The processes that it had, which must end."""
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        family = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(**NODE))
        return family


def workers(driver: int, ray: bool) -> list[psutil.Process]:
    """The processes that run points now: children of the driver, or Ray's workers with a task."""
    if ray:
        return [p for p in psutil.Process().children(recursive=True) if _line(p).startswith("ray::run_point")]
    return [p for p in psutil.Process(driver).children() if "git" not in _line(p)]


def disturb(
    plan: Plan, out: Path, start: Callable[[], subprocess.Popen], kinds: list[str], *, ray: bool = False,
    rng: random.Random, nodes: Nodes | None = None, pause: float = 1.0, log: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Disturb one sweep until ``kinds`` is empty (it is taken from its end) or all points are finished; resume it.

    Args:
        plan: the sweep.
        out: its folder.
        start: starts the sweep's process.
        kinds: what to kill.
        ray: whether it runs on Ray.
        rng: chooses the moments.
        nodes: Ray's nodes.
        pause: at most so many seconds between a finished point and a kill.
        log: called with a line per kill.

    Returns:
        Counts of what happened.

    Raises:
        RuntimeError: as ``check`` does, and for processes that outlive their owner.
    """
    killed, starts, seen = Counter(), 1, {}
    every = max(1, len(plan.points) // (len(kinds) + 1))  # so that the kills are spread over the points
    process, began = start(), time.monotonic()
    while kinds and (there := len(finished(out))) < len(plan.points):
        goal = min(there + rng.randint(1, every), len(plan.points) - 1)
        for _ in _until(lambda goal=goal: len(finished(out)) >= goal):
            if process.poll() is not None:
                break
        time.sleep(rng.random() * pause)
        kind, seen = kinds[-1], seen | finished(out)
        if process.poll() is not None:  # it came to its end, without the points that were lost
            process, starts = start(), starts + 1
            continue
        family = _kill(kind, process, ray, rng, nodes)
        if family is None:
            continue  # no point was being executed just now
        for _ in _until(lambda family=family: not any(map(alive, family))):
            pass
        kinds.pop()
        killed[kind] += 1
        log(f"{kind} killed at {len(seen)} of {len(plan.points)} points")
        if kind == "driver":
            process, starts = start(), starts + 1
    while process.wait(timeout=PATIENCE) != 0 or len(finished(out)) < len(plan.points):
        if starts > 50:
            raise RuntimeError(f"{starts} starts, and it does not come to its end")
        process, starts = start(), starts + 1
    check(plan, out, seen)
    return {"kills": dict(killed), "starts": starts, "seconds": round(time.monotonic() - began)}


def _kill(
    kind: str, driver: subprocess.Popen, ray: bool, rng: random.Random, nodes: Nodes | None
) -> list[psutil.Process] | None:
    """The processes that must end now that theirs was killed; None where there was nobody to kill."""
    if kind == "node":
        return nodes.kill_one(rng)
    at_work = workers(driver.pid, ray)
    if not at_work:
        return None
    with suppress(psutil.NoSuchProcess):  # it ended just now
        chosen = at_work if kind == "driver" else [rng.choice(at_work)]
        family = [p for worker in chosen for p in (worker, *worker.children(recursive=True))]
        if kind == "driver":
            driver.kill()
            driver.wait()
        else:
            chosen[0].kill()
        return family
    return None


def check(plan: Plan, out: Path, seen: dict[str, int]) -> None:
    """Every point once and whole, none of ``seen`` (key -> when it was written) again.

    Raises RuntimeError for the first of these that does not hold.
    """
    now, names = finished(out), {plan.notebook.name, "result.json", "log.txt"}
    if set(now) != {point.key for point in plan.points}:
        raise RuntimeError(f"{len(plan.points)} points were planned, and {len(now)} are there")
    if again := [key for key, when in seen.items() if now[key] != when]:
        raise RuntimeError(f"{again} were finished, and were executed again")
    there = {p.name: {f.name for f in p.iterdir()} for p in (out / "points").iterdir()}
    if half := {key: sorted(files) for key, files in there.items() if files != names}:
        raise RuntimeError(f"{half} are not whole")


def finished(out: Path) -> dict[str, int]:
    """When each point's record was written, in nanoseconds."""
    return {file.parent.name: file.stat().st_mtime_ns for file in (out / "points").glob("*/result.json")}


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; what has ended and was not asked for its exit code does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _until(there: Callable[[], bool]) -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE
    while not there():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happened in {PATIENCE} s")
        yield
        time.sleep(0.05)


def _line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def _timed(text: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{text}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--where", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    pairs = [(where, kind) for where in options.where for kind in KINDS[where]]
    kills = [pairs[i % len(pairs)] for i in range(options.kills)]
    with tempfile.TemporaryDirectory(prefix="relaylab-chaos-") as name:
        home = Path(name)
        sweep = write_sweep(home, options.points)
        plan, log = read_plan(sweep), home / "driver.log"
        nodes = Nodes() if "ray" in options.where else None

        def start(out: Path, where: str) -> subprocess.Popen:
            words = ["sweep", str(sweep), "--out", str(out), "--workers", "2"]
            words += ["--ray", nodes.cluster.address] if where == "ray" else []
            with log.open("ab") as file:
                return subprocess.Popen([sys.executable, "-m", "relaylab", *words], stdout=file, stderr=file)

        summary = {"points": options.points, "seed": options.seed, "python": platform.python_version(), "sweeps": []}
        try:
            with _timed("undisturbed"):
                if start(home / "undisturbed", "local").wait():
                    raise RuntimeError(f"the undisturbed sweep failed:\n{log.read_text()}")
            for where in options.where:
                kinds = [kind for place, kind in kills if place == where]
                rng.shuffle(kinds)
                while kinds:
                    out, ran = home / f"{where}{len(summary['sweeps'])}", home / "ran.log"
                    ran.unlink(missing_ok=True)
                    counts = disturb(
                        plan, out, lambda out=out, where=where: start(out, where), kinds, ray=where == "ray", rng=rng,
                        nodes=nodes, log=lambda text: print(text, flush=True),
                    )  # fmt: skip
                    counts |= {"where": where, "code_runs": len(ran.read_text().splitlines())}
                    for table in ("results.csv", "results.parquet"):
                        if (out / table).read_bytes() != (home / "undisturbed" / table).read_bytes():
                            raise RuntimeError(f"{table} differs from that of the undisturbed sweep")
                    summary["sweeps"].append(counts)
                    print(json.dumps(counts), flush=True)
        except Exception:
            print(log.read_text(errors="replace")[-5000:], file=sys.stderr)
            raise
        finally:
            if nodes:
                nodes.cluster.shutdown()
    total = sum((Counter(counts["kills"]) for counts in summary["sweeps"]), Counter())
    summary["kills"] = dict(total)
    print(json.dumps(summary, indent=1))
    print(f"{sum(total.values())} kills: every point there once, no point executed again, tables the same to the byte")


if __name__ == "__main__":
    main()
