"""What a sweep costs besides its notebooks: overhead a point, workers side by side, plans and reports of many points.

    python benchmarks/sweep.py                # some minutes on an idle machine; timings mean nothing on a busy one
    python benchmarks/sweep.py --rounds 0     # plan, dry run and report only

Overhead: seconds of a one-worker sweep of a trivial notebook, less those of ``papermill.execute_notebook`` called for
as many copies in this process, which has everything imported; each the median over rounds in which both are measured.
Workers: points a second with two workers over those with one, in turn, of a notebook that computes for ``--work``
seconds. Many points: as ``relaylab sweep --dry-run`` and the end of a sweep do it; the finished points are written
without executing anything.

A process that executes a point imports this file anew where Python forgets to do it once for all (gh-126631), as it
would any script that calls ``drive``; so what is large is imported where it is used. The command has nothing to import.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nbformat

from relaylab.sweep.drive import drive
from relaylab.sweep.engines import LocalEngine
from relaylab.sweep.notebook import write_json
from relaylab.sweep.plan import Plan, Point, read_plan
from relaylab.sweep.point import Job

COMPUTE = """import time
end = time.thread_time() + seconds
while time.thread_time() < end:
    pass
"""


def plan_of(folder: Path, body: str, *, seeds: int, parameters: str = "seed: int = 0", grid: str = "{}") -> Plan:
    """A sweep of a notebook."""
    folder.mkdir(parents=True, exist_ok=True)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in (parameters, body)])
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / "n.ipynb")
    (folder / "s.yaml").write_text(f"notebook: n.ipynb\ngrid: {grid}\nseeds: {seeds}\n")
    return read_plan(folder / "s.yaml")


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def swept(plan: Plan, out: Path, workers: int) -> None:
    if failures := drive(plan, LocalEngine(workers), Job.of(plan, out)):
        raise RuntimeError(f"points failed: {next(iter(failures.values())).error}")


def overhead(home: Path, rounds: int, points: int) -> dict[str, float]:
    """Seconds of a point: in a sweep, of papermill alone, and the difference."""
    import papermill

    plan = plan_of(home / "trivial", "x = seed", seeds=points)
    swept(plan, home / "warm", 1)  # the fork server starts once

    def alone() -> None:
        for point in plan.points:
            papermill.execute_notebook(
                str(plan.notebook), str(home / "alone.ipynb"), parameters=point.parameters, kernel_name="python3",
                language="python", cwd=plan.notebook.parent, progress_bar=False,
            )  # fmt: skip

    pairs = [(seconds(lambda i=i: swept(plan, home / f"one{i}", 1)), seconds(alone)) for i in range(rounds)]
    sweep, bare = (median(times) / points for times in zip(*pairs, strict=True))
    return {"sweep": sweep, "papermill": bare, "overhead": median(s - b for s, b in pairs) / points}


def speedup(home: Path, rounds: int, points: int, work: float) -> dict[str, float]:
    """How much more two workers do than one; 2 would be all of two free cores."""
    plan = plan_of(home / "work", COMPUTE, seeds=points, parameters=f"seed: int = 0\nseconds: float = {work}")
    ratios = []
    for i in range(rounds):
        one, two = (seconds(lambda w=w, i=i: swept(plan, home / f"workers{w}-{i}", w)) for w in (1, 2))
        ratios.append(one / two)
    return {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def many(home: Path, points: int) -> dict[str, float]:
    """Seconds to plan, of the dry run's command, and to collect and report: two factors, four seeds."""
    from relaylab.sweep.collect import collect
    from relaylab.sweep.report import report

    levels = list(range(round((points / 4) ** 0.5)))
    parameters, file, out = "seed: int = 0\na: int = 0\nb: int = 0", home / "many" / "s.yaml", home / "out"
    grid = f"{{a: {levels}, b: {levels}}}"
    plan = plan_of(file.parent, "x = seed", seeds=4, parameters=parameters, grid=grid)
    told = {"points": len(plan.points), "plan": seconds(lambda: read_plan(file))}
    for point in plan.points:
        fabricate(plan, point, out)
    words = [sys.executable, "-m", "relaylab", "sweep", str(file), "--out", str(out), "--dry-run"]
    told["dry_run"] = seconds(lambda: subprocess.run(words, check=True, capture_output=True))
    told["report"] = seconds(lambda: report(plan, collect(plan, out), out))
    return told


def fabricate(plan: Plan, point: Point, out: Path) -> None:
    """What a finished point leaves for the report."""
    folder = out / "points" / point.key
    folder.mkdir(parents=True)
    record = {"key": point.key, "levels": point.levels, "parameters": point.parameters, "seed": point.seed}
    values = {"accuracy": (point.parameters["a"] + point.seed % 7) / 17, "call_ratio": point.parameters["b"] / 10}
    write_json(folder / "result.json", record | {"code": plan.code, "seconds": 1.0, "values": values})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=6, help="of each sweep that is executed")
    parser.add_argument("--work", type=float, default=5.0, help="seconds that a point computes")
    parser.add_argument("--many", type=int, default=1000)
    given = parser.parse_args()
    told: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    with tempfile.TemporaryDirectory(prefix="relaylab-sweep-") as name:
        home = Path(name)
        parts: dict[str, Callable[[], dict[str, float]]] = {"many": lambda: many(home, given.many)}
        if given.rounds:
            parts["a point"] = lambda: overhead(home, given.rounds, given.points)
            parts["two workers over one"] = lambda: speedup(home, given.rounds, given.points, given.work)
        for part, measure in parts.items():
            told[part] = {name: round(value, 3) for name, value in measure().items()}
            print(f"{part}: {told[part]}", flush=True)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
