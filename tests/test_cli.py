"""The command line, through its entry point: what it prints, its exit codes, and files that survive an interrupt."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from relaylab.cli import main
from relaylab.engine import load as zoo
from relaylab.relay.pair import Pair
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problem
from relaylab.trace import Trace, TraceWriter, read_traces

ROOT = Path(__file__).parents[1]
QUESTION = "Mia has 14 stamps and buys 25 more. How many stamps does Mia have?"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def relaylab(capsys, monkeypatch):
    """The command, run in this process: importing torch for every test would take most of the time."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # `zoo train` would set it for all tests after it

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["relaylab", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return Result(stopped.value.code, *capsys.readouterr())

    return run


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command"),
        (["solve"], "Missing argument"),
        (["solve", "q", "--temperature", "-1"], "Invalid value for '--temperature'"),
        (["solve", "q", "--top-p", "1.5"], "Invalid value for '--top-p'"),
        (["solve", "q", "--on-failure", "panic"], "Invalid value for '--on-failure'"),
        (["zoo", "list", "--loud"], "No such option"),
    ],
)
def test_a_usage_error_is_told_without_a_traceback(relaylab, args, message):
    result = relaylab(*args)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["solve", "q", "--call-every", 3, "--call-when-unsure", 1], "--call-when-unsure or --call-every, not both"),
        (["solve", "q", "--tokenizer", "student"], "--tokenizer is for a teacher behind a URL"),
        (["solve", "q", "--student", "nobody"], "no model 'nobody'"),
        (["solve", "q", "--top-p", 0], "top_p lies in (0, 1]"),
        (["decode", "--out", "t.jsonl"], "name either --suite or --data"),
        (["decode", "--out", "t.jsonl", "--suite", "depot", "--data", "d.jsonl"], "name either --suite or --data"),
        (["decode", "--out", "t.jsonl", "--suite", "nowhere"], "unknown suite 'nowhere'"),
        (["decode", "--out", "t.jsonl", "--suite", "depot", "--suite", "depot"], "'depot-test-0-0' comes twice"),
        (["decode", "--out", "t.jsonl", "--data", "d.jsonl"], "d.jsonl"),
        (["show", "t.jsonl"], "t.jsonl"),
        (["zoo", "verify", "--write", "--count", 0], "count is 0"),
        (["zoo", "train", "giant", "--out", "x"], "no recipe for 'giant'"),
    ],
)
def test_an_error_that_a_user_can_mend_is_one_line(relaylab, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    result = relaylab(*args)
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("relaylab: ")
    assert message in last
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())


# Solve ----------------------------------------------------------------------------------------------------------------


def test_solve_shows_the_trace(relaylab):
    result = relaylab("solve", QUESTION, "--student", "student", "--call-every", 8, "--call-tokens", 2)
    assert result.code == 0
    assert "forced, not the student's own" in result.out
    assert "call ratio" in result.out


def test_solve_prints_a_trace_as_json(relaylab):
    options = ["--call-every", 8, "--call-tokens", 2, "--max-tokens", 30, "--temperature", 0.5, "--top-p", 0.9]
    result = relaylab("solve", QUESTION, "--json", "--student", "student", *options)
    assert result.code == 0
    trace = Trace.from_dict(json.loads(result.out))
    assert (trace.prompt, trace.temperature, trace.teacher, len(trace.completion_ids)) == (QUESTION, 0.5, "teacher", 30)
    assert {c.requested for c in trace.calls if c.forced} == {2}


def test_solve_without_a_teacher_calls_nobody(relaylab):
    result = relaylab("solve", QUESTION, "--teacher", "none", "--json", "--student", zoo.WEIGHTS / "student")
    trace = Trace.from_dict(json.loads(result.out))
    assert (result.code, trace.teacher, trace.calls, set(trace.source)) == (0, "none", [], {"s"})


# Decode ---------------------------------------------------------------------------------------------------------------


def contents(path: Path) -> set[str]:
    """The traces of a file without what the clock has put there."""
    return {replace(t, calls=[replace(c, latency=None) for c in t.calls]).to_json() for t in read_traces(path)}


def test_an_interrupted_decode_goes_on_where_it_stopped(relaylab, tmp_path):
    options = ["--suite", "savings", "--suite", "depot", "--limit", 15, "--call-every", 30, "--temperature", 1]
    out, reference = tmp_path / "t.jsonl", tmp_path / "whole.jsonl"
    # In the background of a script SIGINT is ignored, and whoever is started from there inherits that.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from relaylab.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "decode", "--out", out, "--batch-size", 1, *options]
    with subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not (out.exists() and out.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted; what was finished is kept, and the same command goes on from there" in err
    assert "Traceback" not in err
    kept = contents(out)
    assert 3 <= len(kept) < 30
    assert relaylab("decode", "--out", out, *options).code == 0
    assert relaylab("decode", "--out", reference, *options).code == 0
    assert kept < contents(out) == contents(reference)
    assert len(out.read_bytes().splitlines()) == 30
    assert any(t.answered for t in read_traces(out))

    again = relaylab("decode", "--out", out, *options)  # nothing is left to do
    assert again.code == 0
    assert "30 traces in" in again.out
    other = relaylab("decode", "--out", out, *options, "--teacher-temperature", 0.5)
    assert other.code == 2
    assert "was made with {'teacher_temperature': 0.0}, this run has {'teacher_temperature': 0.5}" in other.err


def test_decode_of_a_file_of_questions(relaylab, tmp_path):
    easy, data, out = problem("savings", 0), tmp_path / "mine.jsonl", tmp_path / "t.jsonl"
    rows = [{"question": easy.question, "answer": easy.answer}, {"question": "What is 7+5?", "answer": "12"}]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = relaylab("decode", "--data", data, "--out", out, "--teacher", "none")
    assert result.code == 0
    assert "mine" in result.out
    first, second = sorted(read_traces(out), key=lambda t: t.id)
    assert (first.id, first.prompt, first.problem["answer"]) == ("mine-1", easy.question, easy.answer)
    assert isinstance(first.correct, bool)
    assert second.id == "mine-2"


@pytest.mark.parametrize("on_failure", ["carry_on", "raise", "exclude"])
def test_decode_does_what_it_is_told_where_the_teacher_fails(relaylab, tmp_path, monkeypatch, on_failure):
    broken = ScriptedTeacher([TeacherOutput("", "error", error="the server is\non fire")])
    monkeypatch.setattr("relaylab.relay.pair.load_pair", lambda *_, **__: Pair(zoo.load_engine("student"), broken))
    options = ["--limit", 2, "--call-every", 8, "--max-tokens", 40]
    out = tmp_path / "t.jsonl"
    result = relaylab("decode", "--suite", "savings", "--out", out, "--on-failure", on_failure, *options)
    stops = {t.stop for t in read_traces(out)}
    if on_failure == "raise":
        assert (result.code, stops) == (2, set())
        assert result.err.splitlines()[-1] == "relaylab: script: the server is on fire"
    else:
        assert result.code == 0
        assert (stops == {"excluded"}) == (on_failure == "exclude")


# Show -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path) -> Path:
    """Two traces whose suite and text would like to steer the terminal."""
    path = tmp_path / "hostile.jsonl"
    with TraceWriter(path) as out:
        for name in ("a", "b"):
            text = f"{name}\x1b[2J<script>"
            out.write(
                Trace("q", [1], [2], "s", [text], id=name, problem={"suite": "[red]x\x1b[31m[/nothing]"}, stop="end")
            )
        out.write(Trace("q", [1], id="c", problem={"suite": ["a", "list"]}))
    return path


def test_show_in_the_terminal(relaylab, hostile):
    result = relaylab("show", hostile)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "[red]x\\x1b[31m[/nothing]" in result.out
    assert "['a', 'list']" in result.out
    one = relaylab("show", hostile, "--id", "b")
    assert "b\\x1b[2J" in one.out
    assert "a\\x1b[2J" not in one.out
    assert "has no trace 'z'" in relaylab("show", hostile, "--id", "z").err


def test_show_as_a_page(relaylab, hostile, tmp_path):
    page = tmp_path / "page.html"
    result = relaylab("show", hostile, "--html", page, "--limit", 1)
    assert result.code == 0
    assert "1 traces in" in result.out
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "<script>" not in text
    assert "\x1b" not in text


def test_show_of_an_empty_file(relaylab, tmp_path):
    (tmp_path / "t.jsonl").touch()
    assert relaylab("show", tmp_path / "t.jsonl").code == 0


# Zoo and doctor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        {},
        {"student": {}},
        {"student": {"parameters": 1234, "scores": {"savings": {"level": "easy", "right": 0, "count": 0}}}},
        {"student": {"parameters": 1234, "scores": {"savings": {"level": "easy", "right": 9, "count": 10}}}},
    ],
)
def test_zoo_list_with_any_manifest(relaylab, tmp_path, monkeypatch, manifest):
    monkeypatch.setattr(zoo, "MANIFEST", tmp_path / "manifest.json")
    if manifest is not None:
        zoo.MANIFEST.write_text(json.dumps(manifest))
    result = relaylab("zoo", "list")
    assert result.code == 0
    assert {"student", "teacher", "warm"} <= set(result.out.split())
    if manifest and manifest["student"]:
        assert "1,234" in result.out
        assert ("90.0 %" in result.out) == (manifest["student"]["scores"]["savings"]["count"] > 0)


def test_zoo_verify_exits_with_1_where_it_finds_something(relaylab, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "MANIFEST", tmp_path / "manifest.json")
    result = relaylab("zoo", "verify", "--count", 0)
    assert result.code == 1
    assert "WRONG student: not in the manifest" in result.out
    monkeypatch.setattr("relaylab.zoo.verify.verify", lambda count: [])
    assert relaylab("zoo", "verify", "--count", 0).code == 0


def test_an_interrupt_of_what_cannot_go_on_is_130_too(relaylab, monkeypatch):
    def interrupted(count):
        raise KeyboardInterrupt

    monkeypatch.setattr("relaylab.zoo.verify.verify", interrupted)
    assert relaylab("zoo", "verify").code == 130


def test_doctor(relaylab):
    result = relaylab("doctor")
    assert result.code in (0, 1)
    assert "embedded models" in result.out


def test_version(relaylab):
    from relaylab.version import __version__

    assert relaylab("--version") == (0, f"{__version__}\n", "")


# Measuring ------------------------------------------------------------------------------------------------------------


def test_evaluate_report_and_scorecard_of_one_folder(relaylab, tmp_path):
    out = tmp_path / "eval"
    asked = ["--suites", "savings tiles", "--limit", 3, "--max-tokens", 110, "--max-calls", 2, "--out", out]
    done = relaylab("evaluate", *asked, "--methods", "student teacher relay")
    assert done.code == 0
    assert "recovered" in done.out
    assert "18 rows" in done.out
    assert relaylab("evaluate", *asked, "--methods", "cascade:share=0.5").code == 0
    done = relaylab("report", out)
    assert done.code == 0
    assert "cascade:share=0.5" in (out / "report.html").read_text()
    done = relaylab("scorecard", out)
    assert done.code == 0
    assert "not evaluated: grpo" in done.out
    assert done.out.startswith("| claim | paper | ours |")


def test_evaluate_takes_benchmarks_from_files_and_says_what_it_misses(relaylab, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 2+3?", "answer": "2+3=5\\n#### 5"}\n')
    asked = ["--benchmarks", "gsm8k", "--data", tmp_path, "--max-tokens", 12, "--methods", "student"]
    assert relaylab("evaluate", *asked, "--out", tmp_path / "a").code == 0
    (trace,) = read_traces(tmp_path / "a" / "traces" / "0" / "student.jsonl")
    assert trace.prompt.endswith("within \\boxed{}.")  # the benchmark's own suffix
    for wrong, told in (
        (["--methods", "student"], "either --suites or --benchmarks"),
        (["--suites", "savings", "--methods", "magic"], "no method 'magic'"),
        (["--benchmarks", "nothing"], "unknown benchmark 'nothing'"),
        (["--benchmarks", "gsm8k savings"], "put their questions differently"),
        (["--suites", "savings", "--training-benchmark", "gsm8k"], "gsm8k is for testing"),
    ):
        done = relaylab("evaluate", *wrong, "--out", tmp_path / "b")
        assert done.code == 2
        assert told in done.err
    assert "holds no evaluation" in relaylab("report", tmp_path / "b").err


def test_a_token_router_learns_from_the_benchmark_s_own_training_problems(relaylab, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 2+3?", "answer": "2+3=5\\n#### 5"}\n')
    beyond = [{"question": f"What is {i}^9?", "answer": f"#### {i**9}"} for i in (12, 13)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beyond))
    asked = ["--benchmarks", "gsm8k", "--data", tmp_path, "--max-tokens", 12, "--methods", "citer"]
    done = relaylab("evaluate", *asked, "--training-benchmark", "gsm8k_train", "--out", tmp_path / "a")
    assert "solves none of the 2 problems" in done.err  # those of the file, not 300 embedded ones
    asked = ["--benchmarks", "gsm8k", "--data", tmp_path / "gsm8k.jsonl", "--methods", "student"]
    done = relaylab("evaluate", *asked, "--training-benchmark", "gsm8k_train", "--out", tmp_path / "b")
    assert "read for testing and for training" in done.err
