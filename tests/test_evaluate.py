"""Evaluations: what is measured, that any kill leaves them resumable, and that failures do not become numbers."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.special import comb
from scipy.stats import wilcoxon

from relaylab.engine.load import fingerprint_weights, load_model, resolve
from relaylab.evaluation.evaluate import evaluate, variants
from relaylab.evaluation.stats import columns, gap_recovered, interval, mean, paired, pass_at_k, share, summary
from relaylab.evaluation.systems import SYSTEMS, system
from relaylab.evaluation.table import excluded_methods, read_table, rows_of, trace_files, write_table
from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problems
from relaylab.trace import Call, Trace, read_traces
from relaylab.views.tables import method_table, trace_table

SUITES = ("savings", "tiles")
CONFIG = RelayConfig(max_tokens=120, max_calls=2)


def chosen(count=4):
    return [p for s in SUITES for p in problems(s, count)]


def run(out, methods=("student", "relay", "teacher"), count=4, **options):
    return evaluate(methods, chosen(count), out, **{"config": CONFIG, "progress": False} | options)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    return out, run(out, ["student", "relay:student=relay+warmup", "teacher", "router:p=0.5"])


def test_another_untrained_student_is_that_of_all_methods_that_name_none(tmp_path):
    methods = ["student", "plan", "teacher", "relay"]
    table = run(tmp_path / "a", methods, 2, student="warmup")
    traces = {m: list(read_traces(tmp_path / "a" / "traces" / "0" / f"{m}.jsonl")) for m in methods}
    assert {m: {t.student for t in found} for m, found in traces.items()} == {
        "student": {"warmup"}, "plan": {"warmup"}, "teacher": {"warmup"}, "relay": {"relay"}
    }  # fmt: skip
    named = run(tmp_path / "b", ["student:student=warmup"], 2)
    same = ["id", "correct", "tokens"]
    assert table.loc[table["method"] == "student", same].reset_index(drop=True).equals(named[same])
    with pytest.raises(ValueError, match='student was "warmup"'):
        run(tmp_path / "a", methods, 2)


def test_the_configuration_belongs_to_the_folder(tmp_path):
    train = problems("savings", 3, split="train")
    run(tmp_path, ["student"], 2, suffix="Box it.")
    (trace, *_) = read_traces(tmp_path / "traces" / "0" / "student.jsonl")
    assert trace.prompt.endswith("\nBox it.")
    run(tmp_path, ["student"], 2, suffix="Box it.", training=train[:2])  # nothing had learned before
    table = run(tmp_path, ["relay"], 2, suffix="Box it.")  # a method more
    assert table["method"].tolist() == ["student"] * 4 + ["relay"] * 4
    for options in ({"seed": 3}, {"count": 3}, {"temperature": 1.0}, {"training": train}, {"suffix": ""}):
        with pytest.raises(ValueError, match=f"{'problems' if 'count' in options else next(iter(options))} was "):
            run(tmp_path, ["relay"], **{"count": 2, "suffix": "Box it."} | options)
    graded = [replace(p, kind="number", tolerance=10.0) for p in chosen(2)]
    with pytest.raises(ValueError, match="problem_texts was "):
        evaluate(["relay"], graded, tmp_path, config=CONFIG, suffix="Box it.", progress=False)
    with pytest.raises(ValueError, match='dtype was null, is "bfloat16"'):
        run(tmp_path, ["relay"], 2, suffix="Box it.", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 4}, "samples is 4"),
        ({"samples": 0}, "samples is 0"),
        ({"methods": ["magic"]}, "no method"),
        ({"methods": []}, "no method to evaluate"),
        ({"methods": ["student", "student"]}, "'student' is named twice"),
        ({"methods": ["relay", "relay:student=relay+warmup"]}, "'relay' is named twice"),
        ({"methods": ["student", "student:student=student"]}, "named twice"),
        ({"methods": ["relay:student=no-such"]}, "no model 'no-such'"),
        ({"methods": ["relay:student=runs/c++/student"]}, r"'relay:student=runs/c\+\+/student' has a student without"),
        ({"methods": ["relay:student="]}, "'relay:student=' has a student without a name"),
    ],
)
def test_nothing_is_written_for_a_call_that_cannot_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "x", **{"methods": ["student"], **options})
    assert not (tmp_path / "x").exists()


def test_an_evaluation_of_nothing_is_refused(tmp_path, evaluated):
    with pytest.raises(ValueError, match="there is no problem to evaluate on"):
        run(tmp_path / "x", count=0)
    assert not (tmp_path / "x").exists()
    for nothing in (pd.DataFrame(), evaluated[1][:0]):
        with pytest.raises(ValueError, match="the table has no rows"):
            summary(nothing)


@pytest.mark.filterwarnings("error")
def test_pass_at_k_is_unknown_where_no_problem_has_k_answers(evaluated):
    table = evaluated[1].query("method == 'teacher'")
    lost = table.assign(sample=1, excluded=1, correct=np.nan)
    assert np.isnan(summary(pd.concat([table, lost]), ks=[2])["pass@2"][0])


def test_texts_name_variants():
    assert [label for label, _ in variants("relay:student=a+b,n=3")] == ["relay:n=3"] * 2
    assert [label for label, _ in variants("relay:student=warmup")] == ["relay:student=warmup"]
    for text in ("entropy:threshold=0.5,student=a+b,n=3", "entropy:student=a+b,n=3,threshold=0.5"):
        label, again = (one for one, _ in variants(text))
        assert label == again == system(label).label == "entropy:threshold=0.5,n=3"
    secret = variants("relay:teacher=http://ann:hunter22@127.0.0.1:9/v1,student=a+b")
    assert {label for label, _ in secret} == {"relay:teacher=http://127.0.0.1:9/v1"}


def test_a_method_means_the_same_students_in_the_whole_folder(tmp_path):
    run(tmp_path, ["student"], 1)
    before = (tmp_path / "table.csv").read_bytes(), (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="has the method 'student' by another student, 'student'; name 'student', too"):
        run(tmp_path, ["student:student=warmup+relay"], 1)
    assert before == ((tmp_path / "table.csv").read_bytes(), (tmp_path / "config.json").read_bytes())
    table = run(tmp_path, ["student:student=student+warmup"], 1)  # it has all of them
    assert table["student"].unique().tolist() == ["student", "warmup"]
    with pytest.raises(ValueError, match="by another student, 'warmup'"):
        run(tmp_path, ["student"], 1)


@given(st.integers(1, 40), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    expected = 1 - comb(n - c, k, exact=True) / comb(n, k, exact=True)
    assert pass_at_k(c, n, k) == pytest.approx(expected, abs=1e-12)


def test_intervals_of_samples_whose_intervals_are_known():
    zeros = mean(np.zeros(50))
    assert (zeros.value, zeros.low, zeros.high) == (0, 0, 0)
    half = mean(np.array([0.0, 1.0] * 200))
    assert half.value == 0.5
    assert half.high - half.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.15)  # the normal approximation
    a, b = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 20 + [0.0] * 20)
    result = paired(a, b)
    assert (result.value, result.low > 0, result.p < 0.01, paired(a, a).p) == (0.25, True, True, 1.0)
    # Paired, the interval is that of the differences: 10 of 40, not of two independent samples.
    assert result.high - result.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 40), rel=0.2)
    assert share(np.array([1, 3]), np.array([10, 10])).value == pytest.approx(0.2)
    assert gap_recovered(np.array([1, 1, 0, 0.0]), np.array([1, 0, 0, 0.0]), np.array([1, 1, 1, 0.0])).value == 0.5
    nan = float("nan")  # a missing value takes its pair out
    assert mean(np.array([1, nan, 0.0])).value == 0.5
    assert paired(np.array([1, nan, 1.0]), np.array([0, 0, nan])).value == 1
    assert np.isnan(mean(np.array([nan])).value)
    one = mean(np.array([1.0, nan]))
    assert one.value == 1
    assert np.isnan([one.low, one.high]).all(), "one problem has no interval"


def test_p_is_that_of_exact_thirds():
    """Of means over three students: 2/3 - 1 and 1/3 - 0 are one size, and 2/3 - 1/3 - 1/3 is none."""
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, (2, 60))
    exact = wilcoxon(a - b).pvalue
    assert paired(a / 3, b / 3).p == exact
    assert wilcoxon(a / 3 - b / 3).pvalue != exact, "as they are, ties are torn apart"
    assert paired(np.array([0.1 + 0.2]), np.array([0.3])).p == 1


def test_the_table_agrees_with_the_traces(evaluated):
    out, table = evaluated
    assert len(table) == 8 * 5  # two students of one method
    assert set(table["method"]) == {"student", "relay", "teacher", "router:p=0.5"}
    assert table[table["method"] == "relay"]["student"].unique().tolist() == ["relay", "warmup"]
    traces = {t.id: t for t in read_traces(out / "traces" / "0" / "relay student=warmup.jsonl")}
    for row in table[(table["method"] == "relay") & (table["student"] == "warmup")].itertuples():
        t = traces[row.id]
        assert (row.correct, row.tokens, row.teacher_tokens) == (t.correct, len(t.completion_ids), t.count("t"))
        assert row.content_ratio == pytest.approx(t.content_ratio)
    assert columns(read_table(out), "teacher_tokens").equals(columns(table, "teacher_tokens"))
    figures = summary(table).set_index("method")
    assert figures.loc[["student", "teacher"], "teacher_share"].tolist() == [0, 1]
    assert (figures.loc["teacher", "gap"], figures.loc["relay", "students"]) == (1, 2)
    assert figures.loc["relay", "accuracy"] == pytest.approx(table[table["method"] == "relay"]["correct"].mean())
    assert figures["excluded"].eq(0).all()


def test_samples_have_their_own_seeds_and_two_runs_are_equal(tmp_path):
    options = dict(methods=["relay"], count=2, samples=3, temperature=1.0)
    one, two = run(tmp_path / "a", **options), run(tmp_path / "b", **options)
    pd.testing.assert_frame_equal(one, two)
    assert (tmp_path / "a" / "table.csv").read_bytes() == (tmp_path / "b" / "table.csv").read_bytes()
    texts = {t.text for s in range(3) for t in read_traces(tmp_path / "a" / "traces" / str(s) / "relay.jsonl")}
    assert len(texts) > 4
    by_problem = one.groupby("id")["correct"].sum()
    expected = np.mean([pass_at_k(int(c), 3, 2) for c in by_problem])
    assert summary(one, ks=[2]).loc[0, "pass@2"] == pytest.approx(expected)


@pytest.mark.posix
def test_killed_anywhere_it_goes_on_and_repeats_nothing(tmp_path):
    methods = ["student", "relay", "router:p=0.5"]
    whole = run(tmp_path / "whole", methods, count=12)
    code = (
        "from test_evaluate import run; import pathlib, sys;"
        "run(pathlib.Path(sys.argv[1]), ['student', 'relay', 'router:p=0.5'], count=12, batch_size=3)"
    )
    out = tmp_path / "killed"
    for lines in (2, 9, 17):  # lines of traces at which it is killed
        process = subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=re.sub(r"/[^/]*$", "", __file__))
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if sum(p.read_bytes().count(b"\n") for p in out.glob("traces/0/*.jsonl")) >= lines:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait(120) == -signal.SIGKILL
    done = {p.name: p.read_bytes() for p in out.glob("traces/0/*.jsonl")}
    again = run(out, methods, count=12, batch_size=3)
    columns_ = [c for c in whole if c != "mean_n"]
    pd.testing.assert_frame_equal(again[columns_], whole[columns_])
    for name, data in done.items():  # everything but a torn last line has stayed
        assert (out / "traces" / "0" / name).read_bytes().startswith(data[: data.rfind(b"\n") + 1])


def test_shards_decode_and_the_call_without_a_shard_makes_the_same_tables(tmp_path, monkeypatch):
    methods = ["student", "relay", "teacher", "cascade:share=0.3"]
    whole = run(tmp_path / "whole", methods)
    parts = [run(tmp_path / "parts", methods, shard=f"{i}/2") for i in (1, 2)]
    assert [set(part["method"]) for part in parts] == [{"student", "relay", "teacher"}] * 2
    assert sum(len(part) for part in parts) == 3 * 8
    assert not (tmp_path / "parts" / "table.csv").exists()
    monkeypatch.setattr("relaylab.relay.relay.Relay.sequence", None)  # everything is decoded
    pd.testing.assert_frame_equal(run(tmp_path / "parts", methods), whole)
    for name in ("table.csv", "summary.csv", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [path.name for _, path in trace_files(tmp_path / "parts")] == [
        path.name for _, path in trace_files(tmp_path / "whole")
    ]


class Failing(ScriptedTeacher):
    """Fails for every question that holds a word."""

    def __init__(self, word: str):
        failed, right = TeacherOutput("", "error", error="no answer"), TeacherOutput(r"\boxed{1}", "stop")
        super().__init__(lambda view: failed if word in view.messages[0]["content"] else right)


def test_answers_of_a_failing_teacher_are_missing_and_no_wrong_ones(tmp_path):
    word = chosen()[0].question.split()[0]
    lost = sum(word in p.question for p in chosen())
    assert 0 < lost < 8
    with pytest.warns(UserWarning, match=f"{lost} of 16 answers were excluded"):
        table = run(tmp_path / "some", ["student", "teacher"], teacher=Failing(word))
    rows = table[table["method"] == "teacher"]
    assert rows["excluded"].sum() == rows["failed_calls"].sum() == rows["correct"].isna().sum() == lost
    figures = summary(read_table(tmp_path / "some")).set_index("method")
    assert figures.loc["teacher", ["problems", "excluded"]].tolist() == [8 - lost, lost]
    assert figures.loc["teacher", "accuracy"] == 0  # of those that it answered
    assert excluded_methods(table) == []
    with pytest.warns(UserWarning, match="8 of 16"):
        table = run(tmp_path / "all", ["student", "teacher"], teacher=Failing(""))
    assert excluded_methods(table) == ["teacher"]
    columns_of = {c.header: [*c.cells] for c in method_table(summary(table)).columns}
    assert columns_of["excluded"] == ["0", "8"]
    assert columns_of["95\N{NO-BREAK SPACE}%\ninterval"][-1] == columns_of["correct"][-1] == "-"  # and not nan %
    assert np.isnan(summary(table).set_index("method").loc["teacher", "accuracy"])
    table = run(tmp_path / "some", ["teacher"], teacher=Failing("no such word"))  # the same call tries them again
    assert table["excluded"].sum() == 0


def test_a_narrow_terminal_folds_names_and_keeps_every_number():
    name = "relay:student=" + "a-very-long-folder/" * 3
    row = {"accuracy": 0.875, "low": 0.0, "high": 1.0, "teacher_share": 1.0, "calls": 12.5, "gap": -1.25, "excluded": 8}
    table = pd.DataFrame([{"method": name} | row])
    suites = [Trace("q", [1], [2] * 9, "s" * 9, ["t"] * 9, stop="excluded", problem={"suite": name})]
    for shown, expected in (
        (method_table(table), ["87.5 %", "0.0, 100.0", "100.00 %", "12.50", "-125.0 %", "8"]),
        (trace_table(suites), ["1", "-", "0.0 %", "0.00", "9.0", "0", "1"]),
    ):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(shown)
        lines = console.export_text().splitlines()
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
        assert rows[0][1:] == expected
        assert "".join(row[0] for row in rows) == name
        assert not [line for line in lines if "…" in line]


def test_another_model_of_the_same_name_is_refused(tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(resolve("student"), mine)
    before = fingerprint_weights(mine)
    assert (
        before
        == fingerprint_weights(resolve("student"))
        != fingerprint_weights("warmup")
        != fingerprint_weights("relay")
    )
    assert fingerprint_weights(load_model("warmup")[0]) == fingerprint_weights(load_model("warmup")[0])
    run(tmp_path / "out", ["student"], 1, student=str(mine))
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x3f")
    assert fingerprint_weights(mine) != before
    with pytest.raises(ValueError, match=r"weights\..*mine was"):
        run(tmp_path / "out", ["student"], 1, student=str(mine))


def test_a_student_of_ones_own_that_can_call_is_the_relay(tmp_path):
    mine, untrained = tmp_path / "mine", tmp_path / "untrained"
    shutil.copytree(resolve("relay"), mine)
    shutil.copytree(resolve("student"), untrained)
    table = run(tmp_path / "a", ["student", "relay"], 1, student=str(mine), teacher="teacher")
    named = run(tmp_path / "b", ["relay:student=relay"], 1, teacher="teacher")
    own = table[table["method"] == "relay"]
    assert own["teacher_tokens"].tolist() == named["teacher_tokens"].tolist()
    assert own["teacher_tokens"].sum() > 0
    with pytest.raises(ValueError, match="relay:student=FOLDER"):
        run(tmp_path / "c", ["relay"], 1, student=str(untrained))


def test_a_system_of_ones_own_whose_source_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    base = "from relaylab.evaluation.systems import StudentOnly\nclass Mine(StudentOnly):\n    name = 'mine'\n    "

    def evaluate_mine(body: str) -> None:
        (tmp_path / "my_system.py").write_text(base + body)
        sys.modules.pop("my_system", None), SYSTEMS.pop("my_system:Mine", None)
        run(tmp_path / "out", ["my_system:Mine"], 1)

    evaluate_mine("pass\n")
    evaluate_mine("pass\n")
    with pytest.raises(ValueError, match=r"weights\.Mine was"):
        evaluate_mine("student: str = 'warmup'\n")


def test_no_password_of_a_servers_address_is_written(tmp_path):
    address = "http://ann:hunter22@127.0.0.1:9/v1?token=hunter22"
    run(tmp_path, ["student"], 1, teacher=address)
    assert all(b"hunter22" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert "127.0.0.1:9" in json.loads((tmp_path / "config.json").read_text())["teacher"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff\xfe", b"a,b\n1,2,3\n4\n", b"method\n\n"])
@pytest.mark.parametrize("name", ["table.csv", "config.json"])
def test_a_damaged_file_is_named(tmp_path, evaluated, name, content):
    shutil.copytree(evaluated[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        run(tmp_path, ["student"])
    if name == "table.csv":
        with pytest.raises(ValueError, match=name):
            read_table(tmp_path)


def test_a_resample_without_a_gap_is_in_no_interval():
    """Student right on 9 of 20, teacher on 11, method on 10: half of the gap; every fourth resample has none."""
    student, teacher, method = (np.array([1.0] * n + [0.0] * (20 - n)) for n in (9, 11, 10))
    gap = gap_recovered(method, student, teacher)
    assert (gap.value, gap.low, gap.high) == (pytest.approx(0.5), 0, 1)
    assert np.isnan(gap_recovered(method, teacher, student).value)
    infinite = interval(lambda i: -np.inf if i.mean() < 9.5 else 1.0, 20)
    assert (infinite.value, infinite.low, infinite.high) == (1.0, -np.inf, 1.0)
    student, teacher, method = (np.array([1.0] * n + [0.0] * (2000 - n)) for n in (900, 901, 930))
    tiny = gap_recovered(method, student, teacher[::-1])
    assert tiny.low <= tiny.value == tiny.high == pytest.approx(30), "a value lies in its interval"


def test_a_gap_is_where_all_three_answered():
    right = {"student": [1, 0, 0, 0], "teacher": [1, 1, 1, 0], "relay": [1, np.nan, np.nan, 0]}
    parts = [pd.DataFrame({"method": m, "id": list("abcd"), "correct": values}) for m, values in right.items()]
    table = pd.concat(parts, ignore_index=True).assign(student="", sample=0, tokens=4, teacher_tokens=1)
    table = table.assign(excluded=table["correct"].isna().astype(int), call_ratio=0, content_ratio=0, calls=0)
    figures = summary(table).set_index("method")
    assert figures["gap"].tolist()[:2] == [0, 1]
    assert figures.loc["relay", ["problems", "accuracy"]].tolist() == [2, 0.5]
    assert figures.loc["relay", ["gap", "gap_low", "gap_high"]].isna().all()


def test_ids_that_look_like_numbers_stay_texts(tmp_path):
    numbered = [replace(p, id=f"0{i}", level="3") for i, p in enumerate(chosen(1))]
    options = dict(config=CONFIG, progress=False)
    evaluate(["student"], numbered, tmp_path, **options)
    table = evaluate(["relay"], numbered, tmp_path, **options)
    assert table["id"].tolist() == read_table(tmp_path)["id"].tolist() == ["00", "01"] * 2
    assert set(read_table(tmp_path)["level"]) == {"3"}


@pytest.mark.parametrize("ids", [["a\rb", "\r"], ["NA", "nan", "007"], ["", " x "], ['a,"b"', "a\r\nb", "a\nb"]])
def test_ids_of_every_kind_come_back(tmp_path, evaluated, ids):
    table = evaluated[1].head(len(ids)).assign(id=ids)
    write_table(table, tmp_path / "table.csv")
    read = read_table(tmp_path)
    assert read["id"].tolist() == ids
    pd.testing.assert_frame_equal(
        read.drop(columns="id"), read_table(evaluated[0]).head(len(ids)).drop(columns="id"), check_dtype=False
    )


def test_a_malformed_call_is_none_that_a_cap_refused():
    calls = [Call(0, 0, 1, status=s) for s in ("answered", "refused", "failed", "unknown", "zero", "unclosed")]
    (row,) = rows_of([Trace("q", [1], calls=calls)], "relay", "relay", 0).to_dict("records")
    assert (row["calls"], row["malformed_calls"], row["failed_calls"]) == (1, 2, 1)


def test_methods_that_take_all_problems_have_no_shard(tmp_path):
    with pytest.raises(ValueError, match="router, cascade: these methods take all problems together"):
        run(tmp_path / "x", ["router", "cascade"], shard="1/2")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("trained", "settings", "expected"),
    [
        ({"max_teacher_tokens": 3}, {}, {"max_teacher_tokens": 3}),
        ({"fixed_call_tokens": 2, "max_calls": 2}, {}, {"fixed_call_tokens": 2, "max_calls": 2}),
        ({"max_call_tokens": 20, "call_end": "line"}, {}, {"max_call_tokens": 20, "call_end": "line"}),
        ({"max_call_tokens": 20}, {"max_call_tokens": None}, {"max_call_tokens": None}),
        ({"call_end": "line"}, {"call_end": "answer"}, {"call_end": "answer"}),
        ({"call_end": "line"}, {"call_end": "tokens"}, {"call_end": "tokens"}),
        ({"call_end": "line"}, {"fixed_call_tokens": 9}, {"fixed_call_tokens": 9}),
        ({"fixed_call_tokens": 2}, {"call_end": "line"}, {"call_end": "line"}),
        ({"max_tokens": 160, "temperature": 1.0}, {}, {}),  # those are of all methods
    ],
    ids=str,
)
def test_a_trained_student_has_the_caps_of_its_training_unless_others_are_given(tmp_path, trained, settings, expected):
    mine = tmp_path / "mine"
    shutil.copytree(resolve("relay"), mine)
    (mine / "relay_config.json").write_text(json.dumps(trained))
    evaluate(
        [f"relay:student={mine}"], problems("tiles", 1), tmp_path / "out", max_tokens=40, progress=False, **settings
    )
    (trace,) = (t for _, path in trace_files(tmp_path / "out") for t in read_traces(path))
    caps = asdict(RelayConfig(max_tokens=40, **expected)) | {"on_failure": "exclude"}
    assert {k: trace.config[k] for k in caps} == caps
