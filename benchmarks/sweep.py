"""Measure what a sweep costs besides its notebooks: per point, two workers side by side, and with many points.

    python benchmarks/sweep.py                # some minutes on an idle machine; timings mean nothing on a busy one
    python benchmarks/sweep.py --rounds 0     # plan, dry run and report only

A point: seconds of a one-worker sweep of a trivial notebook, minus those of ``papermill.execute_notebook`` for as many
copies in this process, which has everything imported; medians over rounds that measure both. Workers: points per second
with two workers over those with one, of a notebook that computes for ``--work`` seconds. Many points: as ``relaylab
sweep --dry-run`` and the end of a sweep do it, on finished points that were written without executing anything.
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

from relaylab.files import write_json
from relaylab.sweep.plan import Plan, read_plan
from relaylab.sweep.results import collect
from relaylab.sweep.run import run_sweep
from relaylab.views.sweep_report import sweep_page

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
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def sweep(plan: Plan, out: Path, workers: int) -> None:
    """Run a sweep to its end."""
    if failures := run_sweep(plan, out, workers=workers):
        raise RuntimeError(f"points failed: {next(iter(failures.values()))['error']}")


def overhead(home: Path, rounds: int, points: int) -> dict[str, float]:
    """Seconds per point: in a sweep, of papermill alone, and the difference."""
    import papermill

    plan = plan_of(home / "trivial", "x = seed", seeds=points)

    def alone() -> None:
        for point in plan.points:
            papermill.execute_notebook(
                str(plan.notebook),
                str(home / "alone.ipynb"),
                parameters=point.parameters,
                progress_bar=False,
                kernel_name="python3",
                language="python",
            )

    alone()  # what is imported once
    ours = [seconds(lambda i=i: sweep(plan, home / f"trivial-{i}", 1)) / points for i in range(rounds)]
    theirs = [seconds(alone) / points for _ in range(rounds)]
    return {"sweep": median(ours), "papermill": median(theirs), "overhead": median(ours) - median(theirs)}


def speedup(home: Path, rounds: int, points: int, work: float) -> dict[str, float]:
    """How much more two workers do than one; 2 would be all of two free cores."""
    plan = plan_of(home / "work", COMPUTE, seeds=points, parameters=f"seed: int = 0\nseconds: float = {work}")
    ratios = []
    for i in range(rounds):
        one, two = (seconds(lambda w=w, i=i: sweep(plan, home / f"workers{w}-{i}", w)) for w in (1, 2))
        ratios.append(one / two)
    return {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def many(home: Path, points: int) -> dict[str, float]:
    """Seconds to plan, of the dry run's command, and to collect and report: two factors, four seeds."""
    levels = list(range(round((points / 4) ** 0.5)))
    parameters, file, out = "seed: int = 0\na: int = 0\nb: int = 0", home / "many" / "s.yaml", home / "out"
    plan = plan_of(file.parent, "x = seed", seeds=4, parameters=parameters, grid=f"{{a: {levels}, b: {levels}}}")
    summary = {"points": len(plan.points), "plan": seconds(lambda: read_plan(file))}
    for point in plan.points:
        folder = out / "points" / point.key
        folder.mkdir(parents=True)
        values = {"accuracy": (point.parameters["a"] + point.seed % 7) / 17, "call_ratio": point.parameters["b"] / 10}
        record = {"levels": point.levels, "parameters": point.parameters, "seed": point.seed, "seconds": 1.0}
        write_json(folder / "result.json", record | {"values": values})
    words = [sys.executable, "-m", "relaylab", "sweep", str(file), "--out", str(out), "--dry-run"]
    summary["dry_run"] = seconds(lambda: subprocess.run(words, check=True, capture_output=True))
    summary["report"] = seconds(lambda: sweep_page(plan, collect(plan, out), out))
    return summary


def main() -> None:
    """Print each part, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=6, help="of each sweep that is executed")
    parser.add_argument("--work", type=float, default=5.0, help="seconds that a point computes")
    parser.add_argument("--many", type=int, default=1000)
    options = parser.parse_args()
    summary: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    with tempfile.TemporaryDirectory(prefix="relaylab-sweep-") as name:
        home = Path(name)
        parts: dict[str, Callable[[], dict[str, float]]] = {"many": lambda: many(home, options.many)}
        if options.rounds:
            parts["a point"] = lambda: overhead(home, options.rounds, options.points)
            parts["two workers over one"] = lambda: speedup(home, options.rounds, options.points, options.work)
        for part, measure in parts.items():
            summary[part] = {name: round(value, 3) for name, value in measure().items()}
            print(f"{part}: {summary[part]}", flush=True)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
