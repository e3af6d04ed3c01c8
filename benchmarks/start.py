"""How long START takes from a click to an answer: `python benchmarks/start.py`. Needs playwright and a Chromium.

It opens a real JupyterLab, and for each round START.ipynb with a kernel of its own. The kernel is warm, as those of
``relaylab lab`` are (``warm_start.py``). How long that takes is measured, too: meanwhile a reader reads. The first
click runs the first cell, which shows the playground and answers a question. The second click forbids the call of that
answer. The goal is 3 seconds for each click.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from relaylab.lab import START, WARM_START, copy_lessons

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from real_jupyterlab import SECONDS, Lab, open_jupyter

GOAL = 3.0


def seconds_until(lab: Lab, click: str, text: str) -> float:
    """From the click on what this selector finds to this text in the status line."""
    button = lab.page.locator(click).first
    button.wait_for()
    begun = time.perf_counter()
    button.click()
    lab.page.locator(".rl-status", has_text=text).wait_for(timeout=SECONDS * 1000)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="How often, with a new kernel each.")
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {"run the first cell": [], "forbid its call": []}
    opening: list[float] = []
    os.environ["PYTHONSTARTUP"] = str(WARM_START)
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder) / "course"
        copy_lessons(course)
        for k in range(rounds):
            shutil.copy(course / START, course / f"start-{k}.ipynb")
        with open_jupyter(course, Path(folder)) as opened:
            for k in range(rounds):
                begun = time.perf_counter()
                lab = opened(f"start-{k}.ipynb")
                opening.append(time.perf_counter() - begun)
                lab.page.locator(".jp-CodeCell .jp-InputArea-editor").first.click()
                run = "[data-command='notebook:run-cell-and-select-next'], [data-jp-item-name='run'] jp-button"
                found["run the first cell"].append(seconds_until(lab, run, "Run 1:"))
                forbid = "button:has-text('Forbid this call')"
                found["forbid its call"].append(seconds_until(lab, forbid, "Fork 2: call 1 forbidden."))
                lab.page.close()
                print(f"round {k + 1}: {found['run the first cell'][k]:.2f} s, {found['forbid its call'][k]:.2f} s")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} cores, load {load:.1f} at the end")
    print(f"until page and kernel are ready: median {median(opening):.2f} s ({min(opening):.2f}, {max(opening):.2f})")
    for name, times in found.items():
        verdict = "within" if median(times) <= GOAL else "over"
        print(f"{name}: median {median(times):.2f} s ({min(times):.2f}, {max(times):.2f}), {verdict} {GOAL:.0f} s")


if __name__ == "__main__":
    main()
