"""What the README shows is what happens."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import problem
from relaylab.views.trace_view import trace_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TORCH = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]


def test_the_relay_of_the_readme_is_what_the_pair_writes():
    shown = re.search(r"```text\n(.*?)```", README, re.S)[1].splitlines()
    question = problem("tiles", 0)
    assert question.question in " ".join(README.split())
    trace = load_pair().solve(question)
    assert trace.correct
    assert trace_text(trace, color=False, width=100).splitlines()[: len(shown)] == shown


def test_the_site_begins_with_the_same_relay():
    shown = re.search(r"```text\n(.*?)```", README, re.S)[0]
    assert shown in (ROOT / "docs" / "index.md").read_text()


def test_the_core_has_the_lines_that_the_readme_counts():
    table = README.split("## Read the code")[1].split("\n\n")[2]
    lines = 0
    for row in table.splitlines()[2:]:
        paths = re.findall(r"`([^`]+)`", row.split("|")[1])
        folder = (ROOT / paths[0]).parent
        lines += sum(len((ROOT / p if "/" in p else folder / p).read_text().splitlines()) for p in paths)
    assert f"{lines:,} lines" in README


def test_the_python_of_the_readme_runs(capsys):
    exec(re.search(r"```python\n(.*?)```", README, re.S)[1], {})  # our own text, not a model's
    printed = capsys.readouterr().out
    assert "harvest-test-0-1: correct" in printed


def test_the_commands_without_make_are_those_of_make():
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    plain = re.search(r"Without make.*?```bash\n(.*?)```", README, re.S)[1].splitlines()
    assert not any(line.endswith("\\") for line in plain), "which Windows does not know"
    # What is already installed is installed again here, but nothing is run.
    asked = ["make", "-n", "-B", "run", "test"]
    made = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n\t", "")
    ran = [line.strip() for line in made.splitlines() if line.startswith(".venv/bin/") and "/pip " not in line]
    assert plain[2:] == ran
    assert f"torch=={TORCH}" in README
