"""A sweep under SIGKILL: every point is there exactly once, and the tables are those of an undisturbed run.

    python benchmarks/chaos.py                     # 20 kills in sweeps of 30 points, locally and on a Ray of two nodes
    python benchmarks/chaos.py --engines local     # without the extra 'ray'

``relaylab sweep`` runs in a process of its own. At random moments it is killed, or a process that executes a point, or
a Ray node (another takes its place). Where the sweep ended before it was finished, the same command goes on. Nothing
is retried by the sweep itself, so every loss has to be found by resuming.
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
# hash() tells whether every process has the same seed for it; the file counts how often this ran.
BODY = """from relaylab.sweep.notebook import result
with open("ran.log", "a") as file:
    file.write(f"{seed}\\n")
result(accuracy=(seed * 7 % 10) / 10, call_ratio=hash(f"point {seed}") % 1000 / 1000)
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


def workers(driver: int, engine: str) -> list[psutil.Process]:
    """The processes that execute points now: forks of the fork server, or Ray's workers with a task."""
    if engine == "ray":
        family = psutil.Process().children(recursive=True)
        return [p for p in family if _line(p).startswith("ray::_task")]
    family = psutil.Process(driver).children(recursive=True)
    servers = {p.pid for p in family if "forkserver" in _line(p)}
    return [p for p in family if p.pid in servers and p.ppid() in servers]


def disturb(
    plan: Plan, out: Path, start: Callable[[], subprocess.Popen], kinds: list[str], *, engine: str,
    rng: random.Random, nodes: Nodes | None = None, pause: float = 1.0, log: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """One sweep, disturbed until ``kinds`` is empty (they are taken from its end) or its points are finished; resumed.

    ``start`` starts the sweep's process; ``pause``: seconds between a finished point and a kill, at most. What it
    returns says what happened. Raises RuntimeError as ``check`` does, and for processes that outlive their owner.
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
        family = _kill(kind, process, engine, rng, nodes)
        if family is None:
            continue  # no point was being executed just now
        for _ in _until(lambda family=family: not any(map(alive, family))):
            pass
        kinds.pop()
        killed[kind] += 1
        log(f"{engine}: {kind} killed at {len(seen)} of {len(plan.points)} points")
        if kind == "driver":
            process, starts = start(), starts + 1
    while process.wait(timeout=PATIENCE) != 0 or len(finished(out)) < len(plan.points):
        if starts > 50:
            raise RuntimeError(f"{starts} starts, and it does not come to its end")
        process, starts = start(), starts + 1
    check(plan, out, seen)
    return {"kills": dict(killed), "starts": starts, "seconds": round(time.monotonic() - began)}


def _kill(
    kind: str, driver: subprocess.Popen, engine: str, rng: random.Random, nodes: Nodes | None
) -> list[psutil.Process] | None:
    """The processes that must end now that theirs was killed; None where there was nobody to kill."""
    if kind == "node":
        return nodes.kill_one(rng)
    at_work = workers(driver.pid, engine)
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
    """Every point once and whole, none of ``seen`` (key -> when it was written) written again, and nothing left over.

    Raises RuntimeError for the first of these that does not hold.
    """
    now, names = finished(out), {plan.notebook.name, "result.json", "log.txt"}
    if set(now) != {point.key for point in plan.points}:
        raise RuntimeError(f"{len(plan.points)} points were planned, and {len(now)} are there")
    if again := [key for key, when in seen.items() if now[key] != when]:
        raise RuntimeError(f"{again} were finished, and were executed again")
    if half := [p.name for p in (out / "points").iterdir() if {f.name for f in p.iterdir()} != names]:
        raise RuntimeError(f"{half} are not whole")
    if left := [f for kind in ("failed", "drafts") for f in (out / kind).glob("*")]:
        raise RuntimeError(f"{left} were left over")


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
    parser.add_argument("--engines", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    pairs = [(engine, kind) for engine in given.engines for kind in KINDS[engine]]
    kills = [pairs[i % len(pairs)] for i in range(given.kills)]
    with tempfile.TemporaryDirectory(prefix="relaylab-chaos-") as name:
        home = Path(name)
        sweep = write_sweep(home, given.points)
        plan, log = read_plan(sweep), home / "driver.log"
        nodes = Nodes() if "ray" in given.engines else None

        def start(out: Path, engine: str) -> subprocess.Popen:
            words = ["sweep", str(sweep), "--out", str(out), "--engine", engine, "--workers", "2"]
            words += ["--address", nodes.cluster.address] if engine == "ray" else []
            with log.open("ab") as file:
                return subprocess.Popen([sys.executable, "-m", "relaylab", *words], stdout=file, stderr=file)

        told = {"points": given.points, "seed": given.seed, "python": platform.python_version(), "sweeps": []}
        try:
            with _timed("undisturbed"):
                if start(home / "undisturbed", "local").wait():
                    raise RuntimeError(f"the undisturbed sweep failed:\n{log.read_text()}")
            for engine in given.engines:
                kinds = [kind for e, kind in kills if e == engine]
                rng.shuffle(kinds)
                while kinds:
                    out, ran = home / f"{engine}{len(told['sweeps'])}", home / "ran.log"
                    ran.unlink(missing_ok=True)
                    found = disturb(
                        plan, out, lambda out=out, engine=engine: start(out, engine), kinds, engine=engine, rng=rng,
                        nodes=nodes, log=lambda text: print(text, flush=True),
                    )  # fmt: skip
                    found |= {"engine": engine, "code_runs": len(ran.read_text().splitlines())}
                    for table in ("results.csv", "results.parquet"):
                        if (out / table).read_bytes() != (home / "undisturbed" / table).read_bytes():
                            raise RuntimeError(f"{table} differs from that of the undisturbed sweep")
                    told["sweeps"].append(found)
                    print(json.dumps(found), flush=True)
        except Exception:
            print(log.read_text(errors="replace")[-5000:], file=sys.stderr)
            raise
        finally:
            if nodes:
                nodes.cluster.shutdown()
    total = sum((Counter(found["kills"]) for found in told["sweeps"]), Counter())
    told["kills"] = dict(total)
    print(json.dumps(told, indent=1))
    print(f"{sum(total.values())} kills: every point there once, no point executed again, tables the same to the byte")


if __name__ == "__main__":
    main()
