"""The pages and pictures of an evaluation: ``views/report.py``, and ``figures/make.py`` with a browser and without."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from relaylab.evaluation.table import read_table, rows_of, trace_name
from relaylab.trace import Call, Trace, TraceWriter
from relaylab.views.evaluation_figures import accuracy_against_share
from relaylab.views.report import comparisons, report

SCRIPT = Path(__file__).parents[1] / "figures" / "make.py"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("series_figures", SCRIPT)
    module = sys.modules["series_figures"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["series_figures"]


def traces(source: str, right: int) -> list[Trace]:
    """Ten problems of two suites; the first ``right`` of each five are solved."""
    found = []
    for i in range(10):
        suite, call = ("tiles", "depot")[i // 5], source.find("c")
        calls = [Call(call, call + 1, 2, 2, source.count("t"), 2)] if call >= 0 else []
        pieces = ["<b>&"] * len(source)
        problem = {"suite": suite, "level": "hard", "question": "q?", "answer": "1"}
        found.append(Trace("q?", [1], list(range(len(source))), source, pieces, calls, stop="end", problem=problem))
        found[-1].id, found[-1].correct = f"{suite}-{i}", i % 5 < right
    return found


@pytest.fixture
def evaluation(tmp_path) -> Path:
    folder, rows = tmp_path / "eval", []
    (folder / "traces" / "0").mkdir(parents=True)
    for method, source, right in (("student", "ssss", 1), ("teacher", "tttt", 5), ("relay", "scttss", 4)):
        mine = traces(source, right)
        with TraceWriter(folder / "traces" / "0" / f"{method}.jsonl") as out:
            for trace in mine:
                out.write(trace)
        rows.append(rows_of(mine, method, method, 0))
    pd.concat(rows).to_csv(folder / "table.csv", index=False)
    config = {
        "teacher": "big",
        "max_tokens": 160,
        "max_calls": None,
        "seed": 7,
        "temperature": 0.0,
        "problems": ["a"] * 10,
    }
    (folder / "config.json").write_text(json.dumps(config | {"note": "</code><script>"}))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    line = {"reward": 0.5, "accuracy": 0.5, "call_ratio": 0.1, "calls": 1.0, "mean_n": 8.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s} | line) + "\n" for s in (1, 2)))
    (folder / "config.json").write_text('{"seed": 3}')
    return folder


def test_the_report_holds_every_method_and_escapes_what_models_wrote(evaluation):
    text = report(evaluation).read_text()
    for name in ("student", "relay", "teacher", "10 problems, 3 methods"):
        assert name in text
    assert "</code><script>" not in text
    assert "https://" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert (evaluation / "figures" / "calls-relay.html").exists()
    table = read_table(evaluation)
    versus = comparisons(table, "relay").set_index("other")
    assert versus.loc["student", "difference"] == pytest.approx(60)  # 4 of 5 and 1 of 5 are right
    fig = accuracy_against_share(table)
    assert "teacher: 100.0 % right at 100.0 %; relay: 80.0 % right at 33.3 %" in fig.layout.meta["alt"]
    line = next(line for line in fig.data if "router (expected)" in line.name)
    assert (line.y[0], line.y[-1]) == (pytest.approx(20), pytest.approx(100))
    (evaluation / "report.html").write_text("<html>notes of mine")
    with pytest.raises(
        ValueError, match=r"report\.html holds something else than relaylab writes there; choose another"
    ):
        report(evaluation)


def test_one_problem_has_no_interval(evaluation):
    table = read_table(evaluation)
    table.drop_duplicates("method").to_csv(evaluation / "table.csv", index=False)
    text = report(evaluation).read_text()
    assert "<td>100.0</td>" in text
    assert "(nan, nan)" not in text


def test_the_traces_of_a_method_are_found_by_its_label(make, evaluation):
    """Whatever its file is called."""
    label = "relay:student=plain/relay"
    (evaluation / "traces" / "0" / "relay.jsonl").rename(evaluation / "traces" / "0" / f"{trace_name(label)}.jsonl")
    assert [t.source for t in make.method_traces(evaluation, label)] == ["scttss"] * 10
    with pytest.raises(ValueError, match="has no traces of 'relay'; there are"):
        make.method_traces(evaluation, "relay")


def test_numbers_beside_the_pictures_and_an_index(make, evaluation, run, tmp_path, monkeypatch):
    """Drawing itself is a stand-in: a browser takes seconds a picture."""
    monkeypatch.setattr(make, "_render", lambda fig, path: path.write_text("drawn"))
    monkeypatch.setattr(make, "_page", lambda trace, stem: [stem.with_suffix(".png"), stem.with_suffix(".html")])
    out = tmp_path / "figures"
    rows = ["a,0.0,0,c,True,0.5,0.1,0.4", "b,0.0,1,c,True,0.7,0.1,0.4", "c,0.1,0,c,True,0.9,0.2,0.4"]
    sweep = tmp_path / "beta.csv"
    sweep.write_text("\n".join(["key,beta,seed,code,planned,accuracy,teacher_share,alone", *rows]) + "\n")
    make.main(evaluation, [f"first={run}"], "relay", "depot", out, [sweep])

    accuracy = pd.read_csv(out / "accuracy.csv").set_index("method")
    assert accuracy["accuracy"].to_dict() == {"student": 0.2, "teacher": 1.0, "relay": 0.8}
    suites = pd.read_csv(out / "suites.csv").set_index(["method", "suite"])
    assert suites.loc[("relay", "tiles"), "solved %"] == pytest.approx(80)
    assert suites.loc[("relay", "tiles"), "low"] < 80 < suites.loc[("relay", "tiles"), "high"]
    calls = pd.read_csv(out / "calls.csv")
    assert (len(calls), set(calls["start"]), set(calls["delivered"])) == (10, {1}, {2})
    assert "".join(pd.read_csv(out / "strip.csv")["source"]) == "scttss"
    assert pd.read_csv(out / "learning.csv")["run"].tolist() == ["first", "first"]
    swept = pd.read_csv(out / "sweep-beta.csv").set_index(["level", "result"])
    assert swept.loc[(0.0, "accuracy"), "mean"] == pytest.approx(0.6)
    for name in ("accuracy", "suites", "calls", "learning", "sweep-beta"):
        assert {(out / f"{name}.{kind}").read_text() for kind in ("png", "svg")} == {"drawn"}

    text = (out / "README.md").read_text()
    assert "python figures/make.py EVALUATION --method relay --suite depot" in text
    assert "10 problems by 3 methods" in text
    assert "seed 7, temperature 0, teacher `big`, max_tokens 160." in text
    assert "`first` (seed 3)" in text
    assert "the 3 points of `relaylab sweep sweeps/beta.yaml`" in text
    assert "--sweep notebooks/measured/beta.csv" in text
    assert "relay: 80.0 % right" in text, "what a picture shows is said in words"
    assert "<b>" not in text, "what a model wrote is text"
    assert str(tmp_path) not in text
    assert "There is no Chromium" not in text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a Chromium")
def test_a_picture_of_a_browser(make, evaluation, tmp_path):
    pytest.importorskip("kaleido")
    picture = make.calls(traces("scttss", 4), "relay")
    assert picture.write(tmp_path / "calls") == [tmp_path / "calls.png", tmp_path / "calls.svg"]
    assert "position in the completion (% of its tokens)" in (tmp_path / "calls.svg").read_text()


def test_without_a_browser_there_are_pages_and_the_index_says_so(make, evaluation, tmp_path, monkeypatch):
    def no_browser(fig, path):
        raise RuntimeError("Kaleido requires Google Chrome\nlong story")

    monkeypatch.setattr(make, "_render", no_browser)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    out = tmp_path / "figures"
    out.mkdir()
    (out / "accuracy.png").write_text("of another day")
    with pytest.warns(UserWarning, match="apt-get install chromium.*Kaleido requires Google Chrome$"):
        make.main(evaluation, None, "relay", "tiles", out)
    assert {p.suffix for p in out.iterdir()} == {".html", ".csv", ".md"}
    assert "&lt;b&gt;&amp;" in (out / "strip.html").read_text()
    assert "[accuracy.html](accuracy.html), [accuracy.csv]" in (out / "README.md").read_text()
    assert "There is no Chromium" in (out / "README.md").read_text()


def test_the_only_relay_of_an_evaluation_is_drawn(make, evaluation, tmp_path, monkeypatch, capsys):
    """A student of one's own has another label. What cannot be drawn is left out."""
    label = "relay:student=runs/mine/student"
    (evaluation / "traces" / "0" / "relay.jsonl").rename(evaluation / "traces" / "0" / f"{trace_name(label)}.jsonl")
    (table := evaluation / "table.csv").write_text(table.read_text().replace("\nrelay,", f"\n{label},"))
    monkeypatch.setattr(make, "_render", lambda fig, path: path.write_text("drawn"))
    make.main(evaluation, None, None, "galaxy", tmp_path / "out")
    assert {p.stem for p in (tmp_path / "out").glob("*.csv")} == {"accuracy", "suites", "calls"}
    assert f"--method {label} --suite galaxy" in (tmp_path / "out" / "README.md").read_text()
    assert f"strip is left out: 'galaxy' has no right answer of {label!r} with one call" in capsys.readouterr().out


def test_what_the_evaluation_has_not_is_said(make, evaluation, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "_render", lambda fig, path: path.write_text("drawn"))
    make.main(evaluation, None, "plan", "tiles", tmp_path / "out")
    assert "calls is left out: " in (said := capsys.readouterr().out)
    assert "no traces of 'plan'; there are relay, student, teacher" in said
    with pytest.raises(ValueError, match="write NAME=FOLDER"):
        make.main(evaluation, ["runs/relay"], "relay", "tiles", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_error_of_the_program_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"make.py: {tmp_path} holds no evaluation")
    assert "Traceback" not in done.stderr
