"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import problem
from relaylab.views.trace_view import trace_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
