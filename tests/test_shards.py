"""Filters and evaluations in shards: the bytes of one process, whatever is killed, and nothing asked twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from misbehaving_server import Reply
from shard_stand_in import dies_once

from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.sweep.engines import LocalEngine
from relaylab.sweep.large_evaluation import evaluated
from relaylab.sweep.large_filter import rate
from relaylab.sweep.shards import Asked, Spread, deal, in_shards, spread_over
from relaylab.tasks.suites import problems
from relaylab.training.data_filter import load_rates

ROOT = Path(__file__).parents[1]
PROBLEMS = [p for s in ("savings", "tiles", "depot") for p in problems(s, 4, split="train")]


class Inline:
    """An engine in this process."""

    def __init__(self, workers=1):
        self.workers = workers

    def run(self, queue, job):
        while queue:
            point = queue.popleft()
            yield point, job(point)


@dataclass(frozen=True)
class Scripted(Asked):
    """A teacher whose answer is a function of its row's seed; it dies, or is out of order, after some calls."""

    dies: int | None = None
    silent: frozenset = frozenset()
    log: tuple = ()  # holds the list of what was asked

    def load(self):
        def says(context, n):
            asked = self.log[0] if self.log else []
            if self.dies is not None and len(asked) >= self.dies:
                raise KeyboardInterrupt
            asked.append(context.messages[0]["content"])
            if asked[-1] in self.silent:
                return TeacherOutput("", "error", error="out of order")
            right = {p.question: p.answer for p in PROBLEMS}[asked[-1]]
            return TeacherOutput(rf"\boxed{{{right if context.seed % 3 else 0}}}", "stop", tokens=5)

        return ScriptedTeacher(says)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """A shard of these tests runs in this process and sets its threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rates(out, shards=None, asked=None, chosen=PROBLEMS, **options):
    spread = None if shards is None else Spread(Inline(), shards)
    options = {"samples": 4, "max_tokens": 50, "batch_size": 4, "progress": False} | options
    return rate(asked or Scripted("t"), chosen, out, spread, **options)


# The filter -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rates as one process writes them."""
    out = tmp_path_factory.mktemp("whole") / "rates.jsonl"
    assert len({r.passed for r in rates(out)}) > 1
    return out.read_bytes()


@pytest.mark.parametrize("shards", [1, 3, 100])
def test_any_number_of_shards_gives_the_bytes_of_one_process(tmp_path, whole, shards):
    log = []
    found = rates(tmp_path / "r.jsonl", shards, Scripted("t", log=(log,)))
    assert (tmp_path / "r.jsonl").read_bytes() == whole
    assert found == load_rates(tmp_path / "r.jsonl")
    assert [r.problem for r in found] == PROBLEMS
    assert len(log) == 48
    (tmp_path / "r.jsonl").unlink()
    assert rates(tmp_path / "r.jsonl", shards, Scripted("t", dies=0, log=([],))) == found, "nothing is asked again"
    assert (tmp_path / "r.jsonl").read_bytes() == whole


@pytest.mark.parametrize("dies", [1, 9, 26, 47])
@pytest.mark.parametrize("later", [None, 3, 5])
def test_interrupted_it_goes_on_to_the_same_bytes(tmp_path, whole, dies, later):
    """In the same shards, in others, or in one process."""
    out, first, second = tmp_path / "r.jsonl", [], []
    with pytest.raises(KeyboardInterrupt):
        rates(out, 3, Scripted("t", dies=dies, log=(first,)))
    found = rates(out, later, Scripted("t", log=(second,)))
    assert {r.problem.id: r for r in found} == {r.problem.id: r for r in rates(tmp_path / "w")}
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(first) + len(second) <= 48 + 4, "no more than the problem that was under way is asked again"
    if later == 3:
        rest = tmp_path / "again.jsonl"
        out.rename(tmp_path / "gone")
        (tmp_path / "r.jsonl.shards").rename(tmp_path / "again.jsonl.shards")
        rates(rest, 3, Scripted("t", dies=0, log=([],)))
        assert rest.read_bytes() == whole, "all parts together, in the problems' order"


def test_begun_in_one_process_it_goes_on_in_shards_and_keeps_its_lines(tmp_path):
    out, log = tmp_path / "r.jsonl", []
    rates(out, chosen=PROBLEMS[5:8])
    begun = out.read_bytes()
    rates(out, 3, Scripted("t", log=(log,)))
    assert len(log) == 9 * 4
    assert out.read_bytes().startswith(begun)
    one = tmp_path / "one.jsonl"
    rates(one, chosen=PROBLEMS[5:8])
    rates(one)
    assert out.read_bytes() == one.read_bytes()


def test_other_terms_are_refused_and_leave_nothing_behind(tmp_path):
    out = tmp_path / "r.jsonl"
    rates(out, 2)
    before = out.read_bytes()
    with pytest.raises(RuntimeError, match=r"2 shards failed.* was made with"):
        rates(out, 2, seed=3)
    assert out.read_bytes() == before
    out.unlink()
    rates(tmp_path / "one", seed=3)
    rates(out, 2, seed=3)
    assert out.read_bytes() == (tmp_path / "one").read_bytes() != before
    with pytest.raises(ValueError, match="comes twice"):
        rates(tmp_path / "x", 2, chosen=PROBLEMS * 2)
    with pytest.raises(ValueError, match="no problems"):
        rates(tmp_path / "x", 2, chosen=[])


def test_problems_without_an_answer_are_told_and_asked_again(tmp_path, whole):
    out, silent = tmp_path / "r.jsonl", frozenset(p.question for p in PROBLEMS[:2])
    with pytest.warns(UserWarning, match="8 samples failed and do not count") as told:
        found = rates(out, 3, Scripted("t", silent=silent))
    assert any("logs are in" in str(w.message) for w in told)
    assert [r.samples for r in found] == [0, 0] + [4] * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = []
        rates(out, 3, Scripted("t", log=(log,)))
    assert len(log) == 8
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_shard_that_cannot_be_done_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"2 shards failed; .* no model 'nonsense'"):
        rates(tmp_path / "r.jsonl", 2, Asked("nonsense", temperature=1.0))
    assert not (tmp_path / "r.jsonl").exists()


# Processes ------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_tried_again_and_goes_on(tmp_path):
    spread = Spread(LocalEngine(2), shards=3)
    home, work = tmp_path / "home", partial(dies_once, tmp_path)
    options = {"name": "test", "settings": [1], "progress": False}
    assert in_shards(work, PROBLEMS, home, spread, **options) == {}
    found = [file.read_text().split() for file in tmp_path.glob("*.txt")]
    assert sorted(found) == sorted([p.id for p in part] for part in deal(PROBLEMS, 3))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.txt")}
    assert in_shards(work, PROBLEMS, home, spread, **options) == {}
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.txt")} == before, "nothing is done twice"
    records = [json.loads(file.read_text()) for file in home.glob("points/*/result.json")]
    assert [(r["status"], r["error"]) for r in records] == [("done", None)] * 3


DRIVER = """
import sys, time
from pathlib import Path
import test_shards
from relaylab.relay.teachers import ScriptedTeacher

if __name__ == "__main__":
    quick = test_shards.Scripted.load
    def load(self):
        teacher = quick(self)
        says = teacher._script
        teacher._script = lambda view: time.sleep(0.02) or says(view)
        return teacher
    test_shards.Scripted.load = load
    test_shards.rates(Path(sys.argv[1]), 3)
"""


def test_a_killed_filter_goes_on_to_the_same_bytes(tmp_path, whole):
    out, log = tmp_path / "r.jsonl", []
    (tmp_path / "driver.py").write_text(DRIVER)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(out)], env=os.environ | {"PYTHONPATH": paths}
    )
    deadline = time.monotonic() + 240
    while sum(f.read_bytes().count(b"\n") for f in tmp_path.glob("r.jsonl.shards/parts/*/*.jsonl")) < 7:
        assert process.poll() is None, "the filter ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists(), "nobody was left to put it together"
    rates(out, 3, Scripted("t", log=(log,)))
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert 0 < len(log) <= 48 - 4 * 5, "what it had is not asked again"


# Evaluations ----------------------------------------------------------------------------------------------------------

TESTS = [p for s in ("savings", "tiles") for p in problems(s, 3)]
METHODS = ["student", "relay", "cascade:share=0.5", "router:p=0.5"]


def table(out, shards=None, methods=METHODS, asked=None, chosen=TESTS, **options):
    spread = None if shards is None else Spread(Inline(), shards)
    limits = RelayConfig(max_tokens=110, max_calls=2)
    return evaluated(methods, chosen, out, asked or Asked("teacher"), spread, config=limits, progress=False, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    assert table(out)["correct"].nunique() == 2
    return {name: (out / name).read_bytes() for name in ("table.csv", "summary.csv", "terms.json")}


@pytest.mark.parametrize("shards", [1, 3])
def test_any_number_of_shards_gives_the_table_of_one_process(tmp_path, plain, shards, monkeypatch):
    found = table(tmp_path, shards)
    assert {name: (tmp_path / name).read_bytes() for name in plain} == plain
    monkeypatch.setattr("relaylab.evaluation.systems.load_engine", None)  # no model is loaded for what is there
    assert table(tmp_path, shards).equals(found)
    monkeypatch.undo()
    more = table(tmp_path, methods=["plan"])  # more methods in one process
    assert more["method"].unique().tolist() == [*METHODS, "plan"]
    with pytest.raises(ValueError, match="holds an evaluation with other problems"):
        table(tmp_path, shards, chosen=TESTS[:4])
    with pytest.raises(ValueError, match="no method"):
        table(tmp_path / "x", shards, methods=["nonsense"])


def test_an_interrupted_evaluation_goes_on_in_other_shards(tmp_path, plain, monkeypatch):
    from relaylab.relay.pair import Pair

    decode, asked = Pair.decode, []

    def dies(self, chosen, **options):
        asked.append(len(chosen))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return decode(self, chosen, **options)

    monkeypatch.setattr(Pair, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path, 3)
    monkeypatch.undo()
    kept = {f.name: f.read_bytes() for f in tmp_path.glob("traces/0/*.jsonl")}
    assert sum(data.count(b"\n") for data in kept.values()) == 6, "three files of two answers"
    assert not (tmp_path / "table.csv").exists()
    table(tmp_path, 2)
    assert {name: (tmp_path / name).read_bytes() for name in plain} == plain
    for name, data in kept.items():
        assert (tmp_path / "traces" / "0" / name).read_bytes().startswith(data)


def test_a_fleet_answers_in_shards_and_what_it_fails_is_tried_again(tmp_path, misbehaving_server):
    server = misbehaving_server
    server.writes = r"\boxed{7}"
    server.rule = lambda request: Reply(status=400) if TESTS[0].question in request.prompt else None
    asked = Asked("-", servers=(f"http://me:topsecret@{server.host}/v1",))
    assert "secret" not in repr(asked)
    with pytest.warns(UserWarning, match="1 answers were excluded"):
        first = table(tmp_path, 2, ["teacher"], asked)
    assert first["stop"].tolist() == ["excluded"] + ["teacher_end"] * 5
    server.script()
    server.rule = lambda request: None
    found = table(tmp_path, 2, ["teacher"], asked)
    assert found["teacher"].unique().tolist() == ["model@fleet"]
    assert (found["stop"] == "teacher_end").all()
    assert sum(any(p.question in r.prompt for p in TESTS) for r in server.requests) == 1, "the others stay"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"topsecret" not in file.read_bytes()


def test_the_options_of_the_command_line():
    assert spread_over("local", 1, None, None, 1, 0.0) is None
    found = spread_over("local", 2, 7, None, 3, 0.0)
    assert (found.engine.workers, found.shards, found.threads) == (2, 7, 3)
    with pytest.raises(ValueError, match="--engine ray"):
        spread_over("local", 1, None, "auto", 1, 0.0)
