"""One notebook, executed: what is refused before a kernel starts, and what is left beside the executed copy."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
import typer
from sweep_stand_in import CHILD
from typer.testing import CliRunner

from relaylab.notebook_commands import find_notebook, notebooks_run
from relaylab.sweep.notebook import RESULT, Parameter, check_values, execute, read_parameters, result

PARAMETERS = """# What may be changed.
steps: int = 3  # optimiser steps, a = b
beta: float = 1e-2
names: list[str] = ["a", "b"]  # written side by side
cap: int | None = None
loose = "x"
rate = 0.01
half = steps / 2
"""
BODY = """import os
import relaylab as rl
rl.result(double=2 * steps, beta=beta)
rl.result(threads=os.environ["OMP_NUM_THREADS"], loss=float("nan"))
"""


def notebook(path, *cells, tags=("parameters",)):
    """A notebook of code cells, the first of them tagged."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.cells[0].metadata["tags"] = list(tags)
    nbformat.write(book, path)
    return path


def test_the_parameters_cell_is_read_without_running_it(tmp_path):
    parameters = read_parameters(notebook(tmp_path / "n.ipynb", PARAMETERS, "raise SystemExit"))
    assert list(parameters) == ["steps", "beta", "names", "cap", "loose", "rate", "half"]
    assert parameters["steps"] == Parameter("steps", "int", 3)
    defaults = [parameters[name].default for name in ("beta", "names", "cap", "half")]
    assert defaults == [0.01, ["a", "b"], None, "steps / 2"]
    assert read_parameters(notebook(tmp_path / "none.ipynb", "x = 1", tags=())) == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"steps": 5}, {"steps": 5}),
        ({"beta": "1e-3"}, {"beta": 0.001}),
        ({"rate": "1e-3"}, {"rate": 0.001}),  # its default is a float
        ({"rate": 1}, {"rate": 1.0}),
        ({"rate": [1]}, {"rate": [1]}),
        ({"cap": None}, {"cap": None}),
        ({"names": ["c"], "loose": {"a": 1}}, {"names": ["c"], "loose": {"a": 1}}),
        ({"stepps": 5}, "no parameter 'stepps'; did you mean 'steps'"),
        ({"zzz": 5}, "there are steps, beta, names, cap, loose, rate, half"),
        ({"steps": 2.5}, "'steps' is 2.5; the notebook asks for int"),
        ({"steps": True}, "asks for int"),
        ({"beta": "much"}, "asks for float"),
        ({"loose": float("nan")}, "cannot be written as JSON"),
    ],
)
def test_values_are_those_that_the_notebook_asks_for(tmp_path, values, expected):
    parameters = read_parameters(notebook(tmp_path / "n.ipynb", PARAMETERS))
    if isinstance(expected, dict):
        assert check_values(values, parameters) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            check_values(values, parameters)


@pytest.mark.parametrize(
    "secret",
    [
        "sk-" + "a" * 30,
        " sk-proj-" + "a1-_" * 9,
        "https://me:secret@example.org/v1",
        "https://token@example.org/v1",
        "https://example.org/v1?model=x&api_key=abc",
        "Authorization: Bearer abcdefgh.ijkl1",
        "AKIAIOSFODNN7EXAMPLE",
        "github_pat_11ABCDEFG0123456789_abc",
        "ghp_" + "a1" * 18,
        "AIza" + "Sy-_" * 9,
        "nvapi-" + "a1" * 20,
        "hf_" + "aB" * 17,
        "xoxb-123456789012-abc",
        ["x", {"y": ["sk-" + "a" * 30]}],
        {"api_key": "x"},
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_keys_are_refused_wherever_they_are(secret):
    with pytest.raises(ValueError, match="looks like a key"):
        check_values({"loose": secret}, {"loose": Parameter("loose", "", None)})


@pytest.mark.parametrize(
    "text",
    ["hf-internal-testing/tiny-random-LlamaForCausalLM", "https://example.org/v1?page=2", "risk-adjusted-return-on-it",
     "the bearer certificates", "me@example.org", "../runs/sk-students/warm", "keyed by token", "Qwen/Qwen3-0.6B"],
)  # fmt: skip
def test_other_texts_are_no_keys(text):
    assert check_values({"loose": [text]}, {"loose": Parameter("loose", "", None)}) == {"loose": [text]}


def test_a_notebook_that_asks_for_a_key_is_refused(tmp_path):
    names = "api_key", "OPENAI_API_KEY", "hf_token", "password", "key"
    for line in (*(f'{name} = ""' for name in names), "key = 1", f'x = "sk-{"a" * 30}"'):
        with pytest.raises(ValueError, match="looks like a key"):
            read_parameters(notebook(tmp_path / "n.ipynb", line))
    names = list(read_parameters(notebook(tmp_path / "n.ipynb", "call_tokens = 3\nmonkey = 1")))
    assert names == ["call_tokens", "monkey"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (None, "there is no notebook"),
        ([], "not a notebook of format 4"),
        (["a ="], "not Python"),
        (["a = " + "[" * 5000 + "]" * 5000], "not Python"),
        (["a = 1", "a = 1"], "2 cells tagged"),
    ],
)
def test_what_is_no_notebook_says_so(tmp_path, cells, words):
    if cells is not None:
        tagged = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}) for source in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=tagged), tmp_path / "n.ipynb")
    if cells == []:
        (tmp_path / "n.ipynb").write_text('{"worksheets": []}')
    with pytest.raises(ValueError, match=words):
        read_parameters(tmp_path / "n.ipynb")


def test_results_add_up_in_the_file_and_are_plain(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(RESULT, str(tmp_path / "values.json"))
    result(a=np.float32(0.5), b=np.arange(2), c=True)
    result(a=1, d=float("inf"), e=np.array([0.5, np.nan]), f={"g": [float("-inf")]})
    values = {"a": 1, "b": [0, 1], "c": True, "d": None, "e": [0.5, None], "f": {"g": [None]}}
    assert json.loads((tmp_path / "values.json").read_text()) == values
    assert "b = [0, 1]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="result 'x': JSON cannot hold"):
        result(x=object())


def test_a_notebook_leaves_its_copy_and_its_record(tmp_path):
    source = notebook(tmp_path / "lesson {1}.ipynb", PARAMETERS, BODY)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "failure.json").write_text("of an earlier attempt")
    record = execute(source, tmp_path / "out", {"steps": 4}, env={"OMP_NUM_THREADS": "1"}, timeout=500)
    assert record["status"] == "done", record["error"]
    assert record["values"] == {"double": 8, "beta": 0.01, "threads": "1", "loss": None}
    assert record["parameters"] == {"steps": 4}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == record
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lesson {1}.ipynb", "result.json"]
    executed = nbformat.read(tmp_path / "out" / "lesson {1}.ipynb", 4)
    assert "double = 8" in str(executed.cells[2].outputs)
    assert not any(cell.get("outputs") for cell in nbformat.read(source, 4).cells), "the source stays clean"


@pytest.mark.posix
def test_a_notebook_that_raises_or_hangs_is_a_record_too(tmp_path):
    """In one kernel start each: the first cell's result is kept, and the rest is in the record."""
    first = "x = 1", "import relaylab as rl\nrl.result(x=x)"
    record = execute(notebook(tmp_path / "bad.ipynb", *first, "1 / 0"), tmp_path / "bad", log="log.txt")
    assert (record["status"], record["values"]) == ("failed", {"x": 1})
    assert "ZeroDivisionError" in record["error"]
    assert "\x1b" not in record["error"]
    assert sorted(p.name for p in (tmp_path / "bad").iterdir()) == ["bad.ipynb", "failure.json", "log.txt"]
    hang = "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\ntime.sleep(999)"
    record = execute(notebook(tmp_path / "slow.ipynb", "x = 1", hang), tmp_path / "slow", timeout=12, log="log.txt")
    assert (record["status"], record["error"]) == ("timeout", "stopped after 12 seconds")
    assert record["seconds"] < 150
    assert (tmp_path / "slow" / "slow.ipynb").exists()


@pytest.mark.posix
@pytest.mark.parametrize("signal", [9, 15])
def test_a_killed_process_takes_its_notebook_along(tmp_path, signal):
    body = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(999)"
    path = notebook(tmp_path / "n.ipynb", "x = 1", body)
    code = f"from relaylab.sweep.notebook import execute; execute({str(path)!r}, {str(tmp_path / 'out')!r}, log='l')"
    process, kernel = subprocess.Popen([sys.executable, "-c", code]), tmp_path / "pid"
    until(lambda: kernel.exists() and kernel.read_text().endswith("\n"))
    family = [psutil.Process(int(kernel.read_text())), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal)
    process.wait()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_process_that_dies_at_once_leaves_a_record(tmp_path, monkeypatch):
    class Dead(subprocess.Popen):
        """It has ended before anybody writes to it, so what is written stays in the buffer."""

        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            self.wait()

    monkeypatch.setattr(subprocess, "Popen", Dead)
    source, child = notebook(tmp_path / "n.ipynb", "x = 1"), (sys.executable, "-c", "import os; os._exit(3)")
    record = execute(source, tmp_path / "out", child=child, log="log.txt")
    assert (record["status"], record["error"]) == ("failed", "its process died (exit code 3)")
    assert json.loads((tmp_path / "out" / "failure.json").read_text()) == record


def test_a_run_that_fails_keeps_the_result_of_an_earlier_one(tmp_path):
    """The good copy and its record stay beside those of the failure, until a run is done again."""
    source, out = notebook(tmp_path / "n.ipynb", "teacher = 't'\nbeta = 0.0"), tmp_path / "out"

    def run(**values) -> dict[str, str]:
        execute(source, out, values, child=CHILD, log="log.txt", env={"OMP_NUM_THREADS": "1"})
        return {p.name: p.read_text() for p in out.iterdir() if p.name != "log.txt"}

    good = run(beta=0.5)
    assert sorted(good) == ["n.ipynb", "result.json"]
    for teacher in ("bad", "die", "bad"):
        bad = run(teacher=teacher)
        assert good.items() <= bad.items()
        assert json.loads(bad["failure.json"])["parameters"] == {"teacher": teacher}
    assert sorted(bad) == ["failure.ipynb", "failure.json", "n.ipynb", "result.json"]
    again = run(beta=0.7)
    assert sorted(again) == ["n.ipynb", "result.json"]
    assert json.loads(again["result.json"])["parameters"] == {"beta": 0.7}


def until(there, seconds=120):
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def door(monkeypatch):
    """The command line over a stand-in for ``execute``; returns (run, calls)."""
    calls, app = [], typer.Typer()
    app.command("run")(notebooks_run)

    def stand_in(path, folder, values, **options):
        calls.append((path.name, folder.name, values))
        status, error = ("failed", "no") if "bad" in path.name else ("done", None)
        return {"status": status, "seconds": 1, "error": error}

    monkeypatch.setattr("relaylab.sweep.notebook.execute", stand_in)
    return lambda *words: CliRunner().invoke(app, [str(w) for w in words]), calls


def test_run_checks_all_notebooks_before_the_first_starts(tmp_path, door):
    run, calls = door
    for name in ("01_a", "02_b"):
        notebook(tmp_path / f"{name}.ipynb", PARAMETERS if name == "01_a" else "steps: str = '1'")
    done = run("--folder", tmp_path, "-p", "steps=7", "--out", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert calls == [("01_a.ipynb", "01_a", {"steps": 7}), ("02_b.ipynb", "02_b", {"steps": "7"})]
    for words, text in (
        (["-p", "beta=1"], "no parameter 'beta'"),
        (["-p", "steps"], "NAME=VALUE"),
        (["01", "-p", "names=["], "not YAML"),
        (["01", "-p", f"names={'[' * 5000}"], "not YAML"),
    ):
        failed = run(*words, "--folder", tmp_path)
        assert text in str(failed.exception)
    assert len(calls) == 2


def test_two_notebooks_of_one_name_do_not_share_a_folder(tmp_path, door):
    run, calls = door
    paths = [tmp_path / folder / "x.ipynb" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        notebook(path, PARAMETERS)
    failed = run(*paths, "--folder", tmp_path, "--out", tmp_path / "runs")
    assert "two notebooks are called 'x' and would both write to" in str(failed.exception)
    assert calls == []
    assert run(paths[0], paths[0], "--folder", tmp_path, "--out", tmp_path / "runs").exit_code == 0


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("x = 0.01", "1e-3", 0.001),
        ("x: float = 0.01", "1e-3", 0.001),
        ("x: str = 'a'", "007", "007"),
        ("x: str = 'a'", "no", "no"),
        ("x: str = 'a'", '"b c"', "b c"),
        ("x: str | None = 'a'", "null", None),
        ("x: str | None = 'a'", "8B", "8B"),
        ("x = 'a'", '"b c"', "b c"),
        ("x: list = []", "[1, a]", [1, "a"]),
    ],
)
def test_option_values_are_yaml_and_texts_stay_texts(tmp_path, door, line, option, value):
    run, calls = door
    notebook(tmp_path / "n.ipynb", line)
    assert run("--folder", tmp_path, "-p", f"x={option}").exit_code == 0
    assert calls == [("n.ipynb", "n", {"x": value})]


def test_a_failing_notebook_does_not_stop_the_others(tmp_path, door):
    run, calls = door
    for name in ("1_bad", "2_good"):
        notebook(tmp_path / f"{name}.ipynb", PARAMETERS)
    done = run("--folder", tmp_path)
    assert "1_bad did not finish" in str(done.exception)
    assert [c[0] for c in calls] == ["1_bad.ipynb", "2_good.ipynb"]


def test_notebooks_are_found_by_their_beginnings(tmp_path):
    for name in ("01_a", "02_b", "02_c"):
        (tmp_path / f"{name}.ipynb").touch()
    assert find_notebook("01", tmp_path) == tmp_path / "01_a.ipynb"
    with pytest.raises(ValueError, match="has 2 notebooks '02'; 02_b, 02_c"):
        find_notebook("02", tmp_path)
    with pytest.raises(ValueError, match="has no notebooks '03_b'; did you mean '02_b'"):
        find_notebook("03_b", tmp_path)


def test_neither_the_notebook_nor_a_strangers_file_is_replaced(tmp_path):
    (tmp_path / "my").mkdir()
    source = notebook(tmp_path / "my" / "my.ipynb", "x = 1")
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"the executed copy would replace .*my\.ipynb; choose another folder"):
        notebooks_run([str(source)], out=tmp_path, folder=tmp_path)
    mine = tmp_path / "out" / "my" / "result.json"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"result\.json is no record of an executed notebook"):
        notebooks_run([str(source)], out=tmp_path / "out", folder=tmp_path)
    assert source.read_bytes() == before
    assert mine.read_text() == '{"mine": 1}'
