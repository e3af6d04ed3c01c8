"""One notebook, executed: what is refused before a kernel starts, and what is left beside the executed copy."""

from __future__ import annotations

import json

import nbformat
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from relaylab.sweep import notebook as notebooks
from relaylab.sweep.notebook import Parameter, checked, execute, find_notebook, read_parameters, result

PARAMETERS = """# What may be changed.
steps: int = 3  # optimiser steps
beta: float = 1e-2
names: list[str] = ["a", "b"]  # written side by side
cap: int | None = None
loose = "x"
half = steps / 2
"""
BODY = """import os
from relaylab.sweep.notebook import result
result(double=2 * steps, beta=beta)
result(threads=os.environ["OMP_NUM_THREADS"], loss=float("nan"))
"""


def notebook(path, *cells, tags=("parameters",)):
    """A notebook of code cells, the first of them tagged."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.cells[0].metadata["tags"] = list(tags)
    nbformat.write(book, path)
    return path


def test_the_parameters_cell_is_read_without_running_it(tmp_path):
    found = read_parameters(notebook(tmp_path / "n.ipynb", PARAMETERS, "raise SystemExit"))
    assert list(found) == ["steps", "beta", "names", "cap", "loose", "half"]
    assert found["steps"] == Parameter("steps", "int", "3", "optimiser steps")
    assert (found["names"].value, found["names"].comment) == (["a", "b"], "written side by side")
    assert (found["beta"].value, found["cap"].value, found["half"].value) == (0.01, None, "steps / 2")
    assert read_parameters(notebook(tmp_path / "none.ipynb", "x = 1", tags=())) == {}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"steps": 5}, {"steps": 5}),
        ({"beta": "1e-3"}, {"beta": 0.001}),  # YAML takes this for a text
        ({"cap": None}, {"cap": None}),
        ({"names": ["c"], "loose": {"a": 1}}, {"names": ["c"], "loose": {"a": 1}}),
        ({"stepps": 5}, "no parameter 'stepps'; did you mean 'steps'"),
        ({"zzz": 5}, "it has steps, beta, names, cap, loose, half"),
        ({"steps": 2.5}, "'steps' is 2.5; the notebook asks for int"),
        ({"steps": True}, "asks for int"),
        ({"beta": "much"}, "asks for float"),
        ({"loose": float("nan")}, "cannot be written as JSON"),
        ({"loose": "sk-" + "a" * 30}, "looks like a key"),
        ({"loose": "https://me:secret@example.org/v1"}, "looks like a key"),
    ],
)
def test_values_are_those_that_the_notebook_asks_for(tmp_path, given, kept):
    known = read_parameters(notebook(tmp_path / "n.ipynb", PARAMETERS))
    if isinstance(kept, dict):
        assert checked(given, known) == kept
    else:
        with pytest.raises(ValueError, match=kept):
            checked(given, known)


def test_a_notebook_that_asks_for_a_key_is_refused(tmp_path):
    for name in ("api_key", "OPENAI_API_KEY", "hf_token", "password", "key"):
        with pytest.raises(ValueError, match="looks like a key"):
            read_parameters(notebook(tmp_path / "n.ipynb", f'{name} = ""'))
    assert list(read_parameters(notebook(tmp_path / "n.ipynb", "call_tokens = 3\nmonkey = 1"))) == [
        "call_tokens",
        "monkey",
    ]


def test_what_is_no_notebook_says_so(tmp_path):
    with pytest.raises(ValueError, match="there is no notebook"):
        read_parameters(tmp_path / "n.ipynb")
    (tmp_path / "n.ipynb").write_text('{"worksheets": []}')
    with pytest.raises(ValueError, match="not a notebook of format 4"):
        read_parameters(tmp_path / "n.ipynb")
    with pytest.raises(ValueError, match="not Python"):
        read_parameters(notebook(tmp_path / "n.ipynb", "a ="))
    tagged = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}) for _ in range(2)]
    nbformat.write(nbformat.v4.new_notebook(cells=tagged), tmp_path / "n.ipynb")
    with pytest.raises(ValueError, match="2 cells tagged"):
        read_parameters(tmp_path / "n.ipynb")


def test_results_add_up_in_the_file_and_are_plain(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(notebooks.RESULT, str(tmp_path / "values.json"))
    result(a=np.float32(0.5), b=np.arange(2), c=True)
    result(a=1, d=float("inf"))
    assert json.loads((tmp_path / "values.json").read_text()) == {"a": 1, "b": [0, 1], "c": True, "d": None}
    assert "b = [0, 1]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="result 'x': JSON cannot hold"):
        result(x=object())


def test_a_notebook_leaves_its_copy_and_its_record(tmp_path):
    source = notebook(tmp_path / "lesson {1}.ipynb", PARAMETERS, BODY)
    record = execute(source, tmp_path / "out", {"steps": 4}, env={"OMP_NUM_THREADS": "1"}, timeout=500)
    assert record["status"] == "done", record["error"]
    assert record["values"] == {"double": 8, "beta": 0.01, "threads": "1", "loss": None}
    assert record["parameters"] == {"steps": 4}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == record
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lesson {1}.ipynb", "result.json"]
    executed = nbformat.read(tmp_path / "out" / "lesson {1}.ipynb", 4)
    assert "double = 8" in str(executed.cells[2].outputs)
    assert not any(cell.get("outputs") for cell in nbformat.read(source, 4).cells), "the source stays clean"


def test_a_notebook_that_raises_or_hangs_is_a_record_too(tmp_path):
    """In one kernel start each: the first cell's result is kept, the rest is told."""
    first = "x = 1", "from relaylab.sweep.notebook import result\nresult(x=x)"
    record = execute(notebook(tmp_path / "bad.ipynb", *first, "1 / 0"), tmp_path / "bad")
    assert (record["status"], record["values"]) == ("failed", {"x": 1})
    assert "ZeroDivisionError" in record["error"]
    assert "\x1b" not in record["error"]
    hang = "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\ntime.sleep(999)"
    record = execute(notebook(tmp_path / "slow.ipynb", "x = 1", hang), tmp_path / "slow", timeout=8)
    assert record["status"] == "timeout"
    assert record["error"].startswith("stopped after 8 seconds")
    assert record["seconds"] < 150
    assert (tmp_path / "slow" / "slow.ipynb").exists()


@pytest.fixture
def door(monkeypatch):
    """The command line over a stand-in for ``execute``; returns (run, calls)."""
    calls, app = [], typer.Typer()
    app.command("run")(notebooks.notebooks_run)

    def stand_in(path, folder, given, **options):
        calls.append((path.name, folder.name, given))
        return {
            "status": "failed" if "bad" in path.name else "done",
            "seconds": 1,
            "error": "bad" in path.name and "no",
        }

    monkeypatch.setattr(notebooks, "execute", stand_in)
    return lambda *words: CliRunner().invoke(app, [str(w) for w in words]), calls


def test_run_checks_all_notebooks_before_the_first_starts(tmp_path, door):
    run, calls = door
    for name in ("01_a", "02_b"):
        notebook(tmp_path / f"{name}.ipynb", PARAMETERS if name == "01_a" else "steps: str = '1'")
    done = run("--folder", tmp_path, "-p", "steps=7", "--out", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert calls == [("01_a.ipynb", "01_a", {"steps": 7}), ("02_b.ipynb", "02_b", {"steps": "7"})]
    for words, told in (
        (["-p", "beta=1"], "no parameter 'beta'"),
        (["-p", "steps"], "NAME=VALUE"),
        (["01", "-p", "names=["], "not YAML"),
    ):
        failed = run(*words, "--folder", tmp_path)
        assert told in str(failed.exception)
    assert len(calls) == 2


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
    with pytest.raises(ValueError, match="has 2 notebooks '02': 02_b, 02_c"):
        find_notebook("02", tmp_path)
    with pytest.raises(ValueError, match="has no notebooks '03_b': 02_b"):
        find_notebook("03_b", tmp_path)
