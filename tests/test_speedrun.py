"""The speedrun begins with the untouched student, refuses what would be no run, and keeps its clock through a kill."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "speedrun.py"
RUN = "embedded/relay"


@pytest.fixture(scope="module")
def speedrun():
    spec = importlib.util.spec_from_file_location("speedrun", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def arguments(run: str = RUN, **changed):
    return Namespace(**{"run": run, "warmup": "{}", "quick": False} | changed)


def test_a_run_begins_with_the_untouched_student(speedrun, tmp_path):
    assert speedrun.chain(RUN) == ["warmup", RUN]
    further = tmp_path / "further.yaml"
    further.write_text("student: relay\nteacher: teacher\n")
    assert speedrun.chain(str(further)) == ["warmup", RUN, str(further)]
    assert speedrun.chain("embedded/grpo") == ["embedded/grpo"], "a run may do without a warm-up"
    with pytest.raises(ValueError, match="'plain/student'; a speedrun begins with student"):
        speedrun.chain("embedded/plain/relay")
    further.write_text("student: somebody/else\n")
    with pytest.raises(ValueError, match="somebody/else"):
        speedrun.chain(str(further))


def test_options_are_those_of_the_run_and_of_its_warmup(speedrun):
    plan = speedrun.parts(arguments(warmup="{max_steps: 7}"), ["--learning_rate", "1e-4"])
    assert list(plan) == ["1-warmup", "2-relay"]
    assert (plan["1-warmup"]["max_steps"], plan["2-relay"].learning_rate) == (7, 1e-4)
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        speedrun.parts(arguments(), ["--learning_rat", "1e-4"])
    with pytest.raises(ValueError, match="--seed cannot be chosen"):
        speedrun.parts(arguments(), ["--seed=3"])


def test_the_clock_keeps_the_first_end_of_a_part(speedrun, tmp_path):
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({"start": 100.0, "a": 130.0}))
    clock = speedrun.Clock(path)
    clock.end("a")
    clock.end("b")
    assert clock.seconds["a"] == 30
    assert clock.seconds["b"] > 1e9, "the time until now, pauses included"
    assert speedrun.Clock(path).seconds == clock.seconds


@pytest.mark.slow
@pytest.mark.posix
def test_a_look_that_was_killed_goes_on(tmp_path):
    command = [sys.executable, str(SCRIPT), RUN, "--quick", "--out", str(tmp_path / "out")]
    clock, rates = (tmp_path / "out" / "seed-1" / name for name in ("clock.json", "2-relay/rates.jsonl"))
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not rates.exists():
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = json.loads(clock.read_text())
    assert list(before) == ["start", "1-warmup"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["run"] == RUN
    seconds = record["seeds"]["1"]["seconds"]
    assert list(seconds) == ["1-warmup", "filter 2-relay", "2-relay"]
    assert seconds["1-warmup"] == round(before["1-warmup"] - before["start"], 1)
    assert record["evaluation"]["student"] < record["evaluation"]["teacher"]
    assert record["qualifies"] is False
    assert "does not qualify: a look cannot qualify" in done.stdout
