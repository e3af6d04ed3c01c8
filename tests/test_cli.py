"""The command line, through its entry point: what it prints, its exit codes, and files that survive an interrupt."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from relaylab.cli import main
from relaylab.engine import load as zoo
from relaylab.relay.pair import Pair
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problem
from relaylab.trace import Trace, TraceWriter, read_traces

ROOT = Path(__file__).parents[1]
QUESTION = "Mia has 14 stamps and buys 25 more. How many stamps does Mia have?"
FORCED = ["--call-every", 8, "--call-tokens", 2, "--max-tokens", 30]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def threads(monkeypatch) -> list[int]:
    """The numbers of threads that commands set, instead of setting them for all tests that follow."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    numbers: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", numbers.append)
    return numbers


@pytest.fixture
def relaylab(capsys, monkeypatch, threads):
    """The command, run in this process: importing torch for every test would take most of the time."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["relaylab", *map(str, args)])
        before = signal.getsignal(signal.SIGTERM)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            main()
        signal.signal(signal.SIGTERM, before)
        return Result(stopped.value.code, *capsys.readouterr())

    return run


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command"),
        (["solve"], "Missing argument"),
        (["solve", "q", "--max-tokens", "many"], "Invalid value for '--max-tokens'"),
        (["solve", "q", "--on-failure", "panic"], "Invalid value for '--on-failure'"),
        (["solve", "q", "--call-when-unsure", -0.5], "Invalid value for '--call-when-unsure'"),
        (["zoo", "list", "--loud"], "No such option"),
    ],
)
def test_a_usage_error_has_no_traceback(relaylab, args, message):
    result = relaylab(*args)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


DECODE = ["decode", "--out", "t.jsonl"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["solve", "q", "--call-every", 3, "--call-when-unsure", 1], "--call-when-unsure or --call-every, not both"),
        (
            ["solve", "q", "--call-every", 3, "--teacher", "none"],
            "--call-every asks a teacher, and --teacher none lets",
        ),
        (["solve", "q", "--call-when-unsure", 1, "--forbid-calls"], "asks a teacher, and --forbid-calls lets nobody"),
        ([*DECODE, "--suite", "depot", "--call-every", 3, "--forbid-calls"], "leave out one of them"),
        (["serve", "--call-every", 3, "--teacher", "none"], "leave out one of them"),
        (["solve", "q", "--max-calls", -1], "max_calls is -1; it must be at least 0, or None (left out) for no cap"),
        (["show", "."], ". is a folder; name a file of traces"),
        (["sweep", "x.ipynb"], "x.ipynb is a notebook; give a YAML file"),
        (["train", "embedded/relay"], "a training run needs output_dir; on the command line: --output_dir ..."),
        (
            ["solve", "q", "--tokenizer", "student"],
            "--tokenizer, --teacher-model and --chat-only are for a teacher behind a URL",
        ),
        (["solve", "q", "--student", "relayy"], "none of the embedded ones; did you mean 'relay'?"),
        (["solve", "q", "--temperature", -1], "are finite and not negative"),
        (["solve", "q", "--top-p", 0], "top_p lies in (0, 1]"),
        (["solve", "q", "--import", "none.py"], "none.py"),
        (["solve", "q", "--teacher", "http://127.0.0.1:9/v1"], "the teacher does not answer: http://127.0.0.1:9/v1"),
        ([*DECODE, "--suite", "depot", "--teacher", "http://127.0.0.1:9/v1"], "the teacher does not answer"),
        ([*DECODE], "name one of --suite, --benchmark or --data"),
        ([*DECODE, "--suite", "depot", "--data", "d.jsonl"], "one of --suite, --benchmark or --data, not several"),
        ([*DECODE, "--suite", "nowhere"], "unknown suite 'nowhere'"),
        ([*DECODE, "--suite", "depot", "--suite", "depot"], "'depot-test-0-0' comes twice"),
        ([*DECODE, "--suite", "depot", "--shard", "3/2"], "a shard is written i/n"),
        ([*DECODE, "--suite", "depot", "--limit", 1, "--shard", "2/2"], "shard 2/2 has none of the 1 problems"),
        ([*DECODE, "--data", "d.jsonl"], "d.jsonl"),
        ([*DECODE, "--suite", "depot", "--answer-field", "a"], "are for --data without --benchmark"),
        ([*DECODE, "--data", "t.jsonl"], "--out and --data are both t.jsonl"),
        (["decode", "--out", ".", "--suite", "depot"], "--out . is a folder; name a file"),
        (["solve", " "], "the question is empty"),
        (["show", "t.jsonl"], "t.jsonl"),
        (["show", "t.jsonl", "--html", "t.jsonl"], "are both t.jsonl"),
        (["zoo", "verify", "--write", "--count", 0], "count is 0"),
        (["zoo", "train", "giant", "--out", "x"], "no recipe for 'giant'"),
        (["train", "nowhere"], "'nowhere' is no file"),
        (["train", "embedded/relay", "--output_dir", "x", "--max_stepps", 3], "did you mean 'max_steps'"),
        (["train", "embedded/relay", "--output_dir", "x", "--learning_rate", "fast"], "fast"),
    ],
)
def test_an_error_that_a_user_can_mend_is_one_line(relaylab, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    result = relaylab(*args)
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("relaylab: ")
    assert message in last
    assert "Traceback" not in result.err
    assert not [p for p in tmp_path.iterdir() if not p.name.endswith(".lock")]


class PanicException(BaseException):
    __module__ = "pyo3_runtime"


def foreign(name: str) -> Exception:
    return type("Foreign", (Exception,), {"__module__": name})("too deep")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(28, "No space left on device"), 2, "free some space and run the same command again"),
        (RuntimeError("[fail at inline_container.cc:672] . unexpected pos 8960"), 2, "if the disk is full, free"),
        (ImportError("no module named x"), 2, "relaylab: no module named x"),
        (foreign("jinja2.exceptions"), 2, "relaylab: too deep"),
        (foreign("safetensors_rust"), 2, "relaylab: too deep"),
        (PanicException("Onig: Regex search error"), 2, "relaylab: Onig"),
        (ValueError("a\x1b[2Jb\nc"), 2, "relaylab: a\\x1b[2Jb c"),
        (KeyError("steps"), 1, "zoo verify: a fault of relaylab (KeyError: 'steps'). Please report this"),
        (KeyboardInterrupt(), 130, "interrupted; this command does not resume"),
    ],
)
def test_every_error_is_one_line(relaylab, monkeypatch, error, code, text):
    def fails(count):
        raise error

    monkeypatch.setattr("relaylab.zoo.verify.verify", fails)
    result = relaylab("zoo", "verify")
    assert result.code == code
    assert text in result.err
    assert len(result.err.strip().splitlines()) == 1
    if code != 130:
        monkeypatch.setattr(sys, "argv", ["relaylab", "zoo", "verify", "--debug"])
        with pytest.raises(type(error)):
            main()


def test_output_that_is_not_utf8_is_no_error():
    env = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    command = [sys.executable, "-m", "relaylab", "decode", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--teacher-model" in done.stdout


# Solve ----------------------------------------------------------------------------------------------------------------


def test_solve_shows_the_trace(relaylab, threads):
    result = relaylab("solve", QUESTION, "--student", "student", "--call-every", 8, "--call-tokens", 2)
    assert result.code == 0
    assert "forced, not the student's own" in result.out
    assert "call ratio" in result.out
    assert threads == [1], "small models are faster on one thread"


def test_solve_prints_a_trace_as_json_and_the_options_reach_the_relay(relaylab, threads):
    options = ["--temperature", 0.5, "--top-p", 0.9, "--no-record", "--threads", 2, "--dtype", "float32"]
    result = relaylab("solve", QUESTION, "--json", "--student", "student", *FORCED, *options)
    trace = Trace.from_dict(json.loads(result.out))
    assert (trace.prompt, trace.temperature, trace.teacher, len(trace.completion_ids)) == (QUESTION, 0.5, "teacher", 30)
    assert {c.requested for c in trace.calls if c.forced} == {2}
    assert "<call>" in trace.text
    assert trace.logprobs is None
    assert threads == [2]
    assert "no answer holds a \\boxed{}" in result.err
    assert "--prompt-suffix" in result.err
    silent = relaylab("solve", QUESTION, "--json", "--student", "student", *FORCED, "--silent")
    trace = Trace.from_dict(json.loads(silent.out))
    assert trace.calls
    assert "<call>" not in trace.text


def test_solve_puts_the_question_as_it_should(relaylab):
    words = ["--prompt-suffix", "In one box.", "--system", "Be short.", "--max-tokens", 4]
    trace = Trace.from_dict(json.loads(relaylab("solve", "2+2?", "--json", "--teacher", "none", *words).out))
    assert trace.prompt == "2+2?\nIn one box."
    tokenizer = zoo.load_tokenizer("student")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": trace.prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert trace.prompt_ids == list(ids)
    assert (trace.teacher, trace.calls, set(trace.source)) == ("none", [], {"s"})


def test_a_server_with_two_models_is_in_reach(relaylab, misbehaving_server):
    misbehaving_server.models, misbehaving_server.writes = ["small", "large"], "\\boxed{3}"
    url, options = misbehaving_server.url, ["--student", "student", *FORCED, "--json"]
    assert "small" in relaylab("solve", QUESTION, "--teacher", url, *options).err
    for teacher in ([url, "--teacher-model", "large"], [f"{url}#large"]):
        result = relaylab("solve", QUESTION, "--teacher", *teacher, *options)
        assert result.code == 0
        assert json.loads(result.out)["teacher"].startswith("large@")


def test_names_of_ones_own_file_are_usable(relaylab, tmp_path):
    own = tmp_path / "mine_for_the_command_line.py"
    own.write_text(
        "from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput\n"
        "ends = ScriptedTeacher([TeacherOutput('so 38', 'stop')], name='ends')\n"
        "echo = ScriptedTeacher(['so 39'], name='echo')\n"
        "def made(): return ScriptedTeacher(['so 40'], name='made')\n"
    )
    for name in ("echo", "made", "ends"):
        options = ["--import", own, "--teacher", name, "--json", "--student", "student", *FORCED]
        done = relaylab("solve", QUESTION, *options)
        assert json.loads(done.out)["teacher"] == name
        assert ("the teacher ended each one" in done.err) == (name == "ends")
        assert ("--prompt-suffix" in done.err) == (name != "ends")
        del sys.modules[own.stem]
    own.write_text("1 / 0")
    assert "mine_for_the_command_line.py: ZeroDivisionError" in relaylab("solve", "q", "--import", own).err
    assert "give a Python file" in relaylab("solve", "q", "--import", tmp_path / "json.py").err


# Decode ---------------------------------------------------------------------------------------------------------------


def contents(path: Path) -> set[str]:
    """The traces of a file without what the clock has put there."""
    return {replace(t, calls=[replace(c, latency=None) for c in t.calls]).to_json() for t in read_traces(path)}


@pytest.mark.posix
@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_decode_goes_on_where_it_stopped(relaylab, tmp_path, interrupt):
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
        process.send_signal(interrupt)
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
    assert "30 traces in" in relaylab("decode", "--out", out, *options).out, "nothing is left to do"
    other = relaylab("decode", "--out", out, *options, "--teacher-temperature", 0.5)
    assert other.code == 2
    assert "teacher_temperature was 0.0, is 0.5" in other.err


def test_decode_of_a_file_of_questions_in_shards(relaylab, tmp_path):
    easy, data, out = problem("savings", 0), tmp_path / "mine.jsonl", tmp_path / "t.jsonl"
    rows = [{"ask": easy.question, "key": easy.answer}, {"ask": "What is 7+5?", "key": "12"}]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = ["--data", data, "--question-field", "ask", "--answer-field", "key", "--out", out]
    options += ["--teacher", "none", "--prompt-suffix", "Think."]
    for i in (1, 2):
        assert f"1 traces in {tmp_path / f't.{i}-of-2.jsonl'}" in relaylab("decode", *options, "--shard", f"{i}/2").out
    result = relaylab("decode", *options)
    assert result.code == 0
    assert "2 traces in" in result.out
    first, second = sorted(read_traces(out), key=lambda t: t.id)
    assert (first.id, first.prompt) == ("mine-1", f"{easy.question}\nThink.")
    assert first.problem["answer"] == easy.answer
    assert isinstance(first.correct, bool)
    assert second.id == "mine-2"


def test_decode_of_a_benchmark_puts_its_suffix(relaylab, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 2+3?", "answer": "2+3=5\\n#### 5"}\n')
    options = ["--benchmark", "gsm8k", "--data", tmp_path, "--max-tokens", 12, "--teacher", "none"]
    assert relaylab("decode", *options, "--out", tmp_path / "t.jsonl").code == 0
    (trace,) = read_traces(tmp_path / "t.jsonl")
    assert trace.prompt.endswith("within \\boxed{}.")


@pytest.mark.parametrize("on_failure", ["carry_on", "raise", "exclude"])
def test_a_teacher_that_fails_at_every_call_is_an_error(relaylab, tmp_path, monkeypatch, on_failure):
    broken = ScriptedTeacher([TeacherOutput("", "error", error="the server is\non fire")])
    monkeypatch.setattr("relaylab.relay.pair.load_pair", lambda *_, **__: Pair(zoo.load_engine("student"), broken))
    options = ["--limit", 2, "--call-every", 8, "--max-tokens", 40]
    out = tmp_path / "t.jsonl"
    result = relaylab("decode", "--suite", "savings", "--out", out, "--on-failure", on_failure, *options)
    stops = {t.stop for t in read_traces(out)}
    if on_failure == "raise":
        assert (result.code, stops) == (2, set())
        assert result.err.splitlines()[-1] == "relaylab: script: the server is on fire"
        return
    assert result.code == 1
    assert "every call failed; the last error: the server is on fire" in result.err
    excluded = on_failure == "exclude"
    assert (stops == {"excluded"}) == excluded
    assert ("2 of 2 answers are excluded: a model failed. The same command tries again" in result.err) == excluded
    row = next(line for line in result.out.splitlines() if "savings" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert int(cells[-2]) >= 2, "failed calls"
    assert cells[-1] == ("2" if excluded else "0")
    assert (cells[2] == "-") == excluded, "an excluded answer is not a wrong one"


def test_a_filter_without_an_answer_is_an_error(relaylab, tmp_path, monkeypatch):
    broken = ScriptedTeacher([TeacherOutput("", "error", error="the server is on fire")])
    monkeypatch.setattr("relaylab.relay.pair.load_teacher", lambda *_, **__: broken)
    result = relaylab("filter", "--suite", "savings", "--limit", 2, "--samples", 1, "--out", tmp_path / "r.jsonl")
    assert result.code == 1
    assert "2 of 2 samples failed" in result.err
    assert "the server is on fire" in result.err


# Show -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path) -> Path:
    """Three traces whose suite and text would like to steer the terminal."""
    path = tmp_path / "hostile.jsonl"
    with TraceWriter(path) as out:
        for name in ("a", "b"):
            text, task = f"{name}\x1b[2J<script>", {"suite": "[red]x\x1b[31m[/nothing]"}
            out.write(Trace("q", [1], [2], "s", [text], id=name, problem=task, stop="end"))
        out.write(Trace("q", [1], id="c"))
    return path


def test_show_in_the_terminal(relaylab, hostile):
    result = relaylab("show", hostile)
    assert result.code == 0
    assert "\x1b" not in result.out
    folded = (line.split("│")[1].strip() for line in result.out.splitlines() if line.startswith("│"))
    assert "[red]x\\x1b[31m[/nothing]" in "".join(folded)
    one = relaylab("show", hostile, "--id", "b")
    assert "b\\x1b[2J" in one.out
    assert "a\\x1b[2J" not in one.out
    assert "has no trace 'z'" in relaylab("show", hostile, "--id", "z").err


def test_show_as_a_page(relaylab, hostile, tmp_path):
    page, before = tmp_path / "page.html", hostile.read_bytes()
    result = relaylab("show", hostile, "--html", page, "--limit", 1)
    assert result.code == 0
    assert "1 traces in" in result.out
    text = page.read_text()
    assert text.lower().startswith("<!doctype html>")
    assert text.count("<script>") == 1  # the player's own
    assert "\x1b" not in text
    assert "2 traces in" in relaylab("show", hostile, "--html", page, "--id", "b", "--limit", 2).out
    assert re.findall(r'"pieces":\s*\["(.)', page.read_text()) == ["b", "a"], "a page begins with it"
    assert relaylab("show", hostile, "--html", hostile).code == 2
    assert hostile.read_bytes() == before
    (mine := tmp_path / "mine.html").write_text("<html>mine")
    refused = relaylab("show", hostile, "--html", mine)
    assert (refused.code, mine.read_text()) == (2, "<html>mine")
    assert "mine.html holds something else than relaylab writes there; choose another file" in refused.err


def test_show_of_pass_rates_says_that_there_are_no_traces(relaylab, tmp_path):
    (tmp_path / "rates.jsonl").write_text('{"kind": "pass rates", "version": 1, "config": {}}\n')
    assert (
        "rates.jsonl, line 1: not a record of relaylab (it holds no trace)"
        in relaylab("show", tmp_path / "rates.jsonl").err
    )


@pytest.mark.parametrize("content", [b"", b"\0" * 9, b'{"version": 2, "prompt"'])
def test_show_of_a_file_without_a_trace(relaylab, tmp_path, content):
    (tmp_path / "t.jsonl").write_bytes(content)
    result = relaylab("show", tmp_path / "t.jsonl")
    assert result.code == 2
    assert "t.jsonl has no trace in it" in result.err


# Zoo, doctor, version, imports ----------------------------------------------------------------------------------------


def test_the_zoo_is_listed_and_verified_with_any_manifest(relaylab, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "MANIFEST", tmp_path / "manifest.json")
    result = relaylab("zoo", "verify", "--count", 0)
    assert result.code == 1
    assert "WRONG student: not in the manifest" in result.out
    dials = {"harmless": {"value": 0.345}, "confident": {"value": 0.678}}
    made = [
        {"parameters": 1230000, "dials": dials, "scores": {"savings": {"level": "easy", "right": 9, "count": n}}}
        for n in (0, 10)
    ]
    words = ["1.23 M", "0.34, 0.68", "90.0 %"]
    manifests = [None, {}, {"student": {}}, *({"student": entry} for entry in made)]
    for manifest, cells in zip(manifests, ([], [], [], words[:2], words)):
        if manifest is not None:
            zoo.MANIFEST.write_text(json.dumps(manifest))
        result = relaylab("zoo", "list")
        assert result.code == 0
        assert {"student", "teacher", "warmup", "relay"} <= (shown := set(result.out.split()))
        assert not {"ablations/simple", "relay-seed2"} & shown
        assert {"ablations/simple", "relay-seed2"} <= set(relaylab("zoo", "list", "--all").out.split())
        assert [cell for cell in words if cell in result.out] == cells
    monkeypatch.setattr("relaylab.zoo.verify.verify", lambda count: [])
    assert relaylab("zoo", "verify", "--count", 0).code == 0


def test_doctor_and_version(relaylab):
    from relaylab.version import __version__

    result = relaylab("doctor")
    assert result.code in (0, 1)
    assert "embedded models" in result.out
    assert "1 for models below 10 M parameters" in result.out
    assert relaylab("--version") == (0, f"{__version__}\n", "")
    assert relaylab("-h").out == relaylab("--help").out


def loaded_by(*args: str) -> set[str]:
    """The modules that a command loads."""
    program = "import sys; from relaylab.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, *args], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_commands_load_only_what_they_need():
    assert not {"torch", "transformers", "numpy", "yaml", "filelock", "papermill", "pandas"} & loaded_by("--help")
    unused = {"trl", "datasets", "plotly", "pandas", "openai", "math_verify", "papermill", "ray", "IPython"}
    assert not unused & loaded_by("solve", "2+2?", "--max-tokens", "4", "--prompt-suffix", "\\boxed{}")


# Measuring ------------------------------------------------------------------------------------------------------------


def test_evaluate_report_and_scorecard_of_one_folder(relaylab, tmp_path):
    out = tmp_path / "eval"
    options = ["--suite", "savings", "--suite", "tiles", "--limit", 3, "--max-tokens", 110, "--max-calls", 2]
    done = relaylab("evaluate", *options, "--out", out, "--methods", "student teacher relay")
    assert done.code == 0
    assert "recovered" in done.out
    assert "18 rows" in done.out
    assert relaylab("evaluate", *options, "--out", out, "--methods", "cascade:share=0.5").code == 0
    assert relaylab("report", out).code == 0
    assert "cascade:share=0.5" in (out / "report.html").read_text()
    done = relaylab("scorecard", out)
    assert done.code == 0
    assert "not evaluated: grpo" in done.out
    assert done.out.startswith("| claim | paper | ours |")


def test_evaluate_takes_benchmarks_from_files_and_says_what_it_misses(relaylab, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 2+3?", "answer": "2+3=5\\n#### 5"}\n')
    options = ["--benchmark", "gsm8k", "--data", tmp_path, "--max-tokens", 12, "--methods", "student"]
    assert relaylab("evaluate", *options, "--out", tmp_path / "a").code == 0
    (trace,) = read_traces(tmp_path / "a" / "traces" / "0" / "student.jsonl")
    assert trace.prompt.endswith("within \\boxed{}.")  # the benchmark's own suffix
    for wrong, message in (
        (["--methods", "student"], "one of --suite, --benchmark or --data"),
        (
            ["--suite", "savings", "--teacher", "none"],
            "'teacher' needs a teacher, and there is none; leave it out",
        ),
        (["--suite", "savings", "--teacher", "none", "--methods", "student relay"], "'relay' needs a teacher"),
        (["--suite", "savings", "--methods", "student,teacher"], "'student,teacher'; separate methods by spaces"),
        (["--suite", "savings", "--methods", "magic"], "'magic'"),
        (["--benchmark", "nothing"], "unknown benchmark 'nothing'"),
        (["--benchmark", "gsm8k", "--benchmark", "savings", "--data", tmp_path], "made and not read"),
        (["--suite", "savings", "--training-benchmark", "gsm8k"], "gsm8k is for testing"),
    ):
        done = relaylab("evaluate", *wrong, "--out", tmp_path / "b")
        assert done.code == 2
        assert message in done.err
    assert "holds no evaluation" in relaylab("report", tmp_path / "b").err
    words = ["--suite", "savings", "--limit", 1, "--max-tokens", 2, "--teacher", "none", "--out", tmp_path / "c"]
    assert relaylab("evaluate", *words, "--methods", "student teacher-free relay:teacher=student").code == 0


def test_a_token_router_learns_from_the_benchmark_s_own_training_problems(relaylab, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "What is 2+3?", "answer": "2+3=5\\n#### 5"}\n')
    beyond = [{"question": f"What is {i}^9?", "answer": f"#### {i**9}"} for i in (12, 13)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beyond))
    options = ["--benchmark", "gsm8k", "--max-tokens", 12, "--training-benchmark", "gsm8k_train"]
    done = relaylab("evaluate", *options, "--data", tmp_path, "--methods", "citer", "--out", tmp_path / "a")
    assert "solves none of the 2 problems" in done.err  # those of the file, not 300 embedded ones
    file = tmp_path / "gsm8k.jsonl"
    done = relaylab("evaluate", *options, "--data", file, "--methods", "student", "--out", tmp_path / "b")
    assert "read for testing and for training" in done.err


def test_the_options_of_a_local_teacher_hold_or_are_refused(relaylab, tmp_path):
    options = ["--suite", "galaxy", "--limit", 2, "--max-tokens", 40, "--methods", "teacher", "--temperature", 1]
    sampled = [*options, "--samples", 2, "--teacher-temperature", 1]
    assert relaylab("evaluate", *sampled, "--out", tmp_path / "a").code == 0
    one, two = (list(read_traces(tmp_path / "a" / "traces" / seed / "teacher.jsonl")) for seed in "01")
    assert {t.config["teacher_temperature"] for t in one} == {1.0}
    assert all(a.completion_ids != b.completion_ids for a, b in zip(one, two, strict=True))
    done = relaylab("evaluate", *options, "--tokenizer", "student", "--out", tmp_path / "b")
    assert done.code == 2
    assert "are for a teacher behind a URL" in done.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("kind", "rows"), [("--data", 6), ("--data", 3), ("--benchmark", 6)])
def test_routers_are_not_trained_on_the_problems_that_thresholds_are_chosen_on(
    relaylab, tmp_path, monkeypatch, kind, rows
):
    given = []

    def calibrate(problems, out, **options):
        given.extend([[p.question for p in problems], [p.question for p in options["router_problems"]]])
        raise RuntimeError("enough")

    monkeypatch.setattr("relaylab.evaluation.calibrate.calibrate", calibrate)
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(rows)))
    words = ["--data", file, *(["--benchmark", "gsm8k"] if kind == "--benchmark" else []), "--limit", 2]
    relaylab("calibrate", *words, "--out", tmp_path / "out")
    chosen, trained = given
    assert not {*chosen} & {*trained}
    assert [len(chosen), len(trained)] == ([2, 2] if rows == 6 else [2, 1])


def test_a_map_without_a_world_says_so(relaylab, tmp_path):
    done = relaylab("map", "--models", tmp_path / "nowhere", "--out", tmp_path / "map")
    assert done.code == 2
    assert f"no world has a student in {tmp_path / 'nowhere'}; make one: relaylab zoo train" in done.err


def test_a_device_that_is_not_there_is_named(relaylab, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = relaylab("solve", "q", "--device", "cuda")
    assert (done.code, done.err) == (2, "relaylab: there is no CUDA device here; leave out the device (--device)\n")


def test_of_a_file_all_rows_are_taken(relaylab, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(401)))
    words = ["--data", data, "--max-tokens", 1, "--teacher", "student"]
    done = relaylab("filter", *words, "--samples", 1, "--out", tmp_path / "r.jsonl")
    assert "of 401 problems have a pass rate" in done.out
    done = relaylab("decode", *words, "--out", tmp_path / "t.jsonl")
    assert "401 traces in" in done.out
    assert (hint := "401 of 401 questions are of no embedded suite") in done.err
    assert "none of the 401 responses" in relaylab("warmup", *words, "--check", 0, "--out", tmp_path / "w").err
    known = {"question": problem("tiles", 0).question, "answer": "1"}
    words[:2] = ["--data", short := tmp_path / "short.jsonl"]
    short.write_text(data.read_text().splitlines()[0] + "\n" + json.dumps(known) + "\n")
    done = relaylab("evaluate", *words, "--methods", "student relay", "--out", tmp_path / "e")
    assert done.err.count("1 of 2 questions are of no embedded suite") == 1
    assert "--suite" in done.err
    assert "--student" in done.err
    words[:2] = ["--suite", "tiles", "--limit", 2]
    assert hint[-26:] not in relaylab("evaluate", *words, "--methods", "relay", "--out", tmp_path / "s").err
    shown = " ".join(relaylab("decode", "-h").out.replace("│", " ").split())
    assert "100 of each suite or benchmark, all rows of a file" in shown
    assert "Default: 512; solve, decode and serve: the student's own cap" in shown


def test_embedded_models_warn_of_questions_that_they_do_not_know(relaylab, tmp_path):
    data, words = tmp_path / "mine.jsonl", ["--max-tokens", 1, "--teacher", "student"]
    known, other = ({"question": q, "answer": "1"} for q in (problem("tiles", 0).question, QUESTION))
    data.write_text(f"{json.dumps(known)}\n{json.dumps(other)}\n")
    for command in (
        ["decode", "--out", tmp_path / "t"],
        ["evaluate", "--methods", "student relay", "--out", tmp_path / "e"],
    ):
        done = relaylab(*command, "--data", data, *words)
        assert done.code == 0
        assert done.err.count("1 of 2 questions are of no embedded suite") == 1
        assert "decode --suite" in done.err
        assert "--student and --teacher" in done.err
    words += ["--suite", "tiles", "--limit", 2]
    assert "no embedded suite" not in relaylab("evaluate", *words, "--methods", "relay", "--out", tmp_path / "s").err


def test_help_says_where_more_stands(relaylab):
    assert "docs/training.md says where the settings are listed" in relaylab("train", "-h").out
    assert "docs/evaluation.md lists them" in " ".join(relaylab("evaluate", "-h").out.replace("│", " ").split())
    assert "URL" not in relaylab("warmup", "-h").out


def test_a_trigger_without_a_candidate_within_a_budget_is_named(relaylab, tmp_path, monkeypatch):
    row = {
        "trigger": "entropy",
        "budget": 0.05,
        "method": "entropy:threshold=1",
        "accuracy": 1.0,
        "teacher_share": 0.04,
    }
    monkeypatch.setattr("relaylab.evaluation.calibrate.calibrate", lambda *_, **__: pd.DataFrame([row]))
    monkeypatch.setattr("relaylab.evaluation.calibrate.TRIGGERS", ("entropy", "line"))
    words = ["--suite", "tiles", "--limit", 1, "--budget", 0.02, "--budget", 0.05]
    printed = relaylab("calibrate", *words, "--out", tmp_path / "out").out
    assert "no candidate is within the budget: entropy at 0.02, line at 0.02, line at 0.05\n" in printed


def test_an_exponent_that_no_command_can_have_is_refused_at_once(relaylab, tmp_path):
    done = relaylab("warmup", "--suite", "savings", "--exponent=-1", "--out", tmp_path / "w")
    assert done.code == 2
    assert "greater than or equal to 0" in done.err
    assert not [*tmp_path.iterdir()]


def test_a_student_that_fails_in_every_answer_is_an_error(relaylab, tmp_path, monkeypatch):
    traces = [Trace("q", [1], stop="excluded", id="a"), Trace("q", [1], stop="excluded", id="b")]
    monkeypatch.setattr(Pair, "decode", lambda *_, **__: traces)
    result = relaylab("decode", "--suite", "savings", "--limit", 2, "--out", tmp_path / "t.jsonl")
    assert result.code == 1
    assert "2 of 2 answers are excluded" in result.err


def test_an_option_without_the_one_that_it_is_for_is_refused(relaylab, tmp_path):
    result = relaylab("decode", "--suite", "savings", "--call-tokens", 9, "--out", tmp_path / "t.jsonl")
    assert result.code == 2
    assert "--call-tokens is for --call-when-unsure or --call-every" in result.err
    (tmp_path / "mine.py").write_text("def mine(): pass\n")
    out = tmp_path / "w"
    result = relaylab(
        "warmup", "--suite", "savings", "--import", tmp_path / "mine.py", "--teacher", "mine", "--out", out
    )
    assert result.code == 2
    assert "--teacher mine: a warm-up takes a name, a folder or a URL" in result.err


@pytest.mark.parametrize(("text", "words"), [("x", "is no JSON"), ("[]", "holds a list"), ('{"a": {}}', "'a' needs")])
def test_pairs_of_a_file_are_read_before_anything_is_measured(relaylab, tmp_path, text, words):
    (tmp_path / "pairs.json").write_text(text)
    result = relaylab("map", "--measured", tmp_path / "pairs.json", "--out", tmp_path / "map")
    assert result.code == 2
    assert words in result.err
    assert "remove it" not in result.err
    assert not (tmp_path / "map").exists()
