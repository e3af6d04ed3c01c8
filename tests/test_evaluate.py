"""Evaluations: what is measured, that it can be killed anywhere, and that the report holds it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb

from relaylab.evaluation.evaluate import evaluate, variants
from relaylab.evaluation.stats import columns, gap_recovered, mean, paired, pass_at_k, share, summary
from relaylab.evaluation.systems import Bench
from relaylab.evaluation.table import read_table
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces
from relaylab.views.evaluation_figures import accuracy_against_share
from relaylab.views.report import comparisons, report

SUITES = ("savings", "tiles")
LIMITS = RelayConfig(max_tokens=120, max_calls=2)


def chosen(count=4):
    return [p for s in SUITES for p in problems(s, count)]


def run(out, methods=("student", "relay", "teacher"), count=4, **options):
    return evaluate(methods, chosen(count), out, config=LIMITS, progress=False, **options)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    return out, run(out, ["student", "relay:student=relay+warm", "teacher", "router:p=0.5"])


def test_another_untrained_student_is_that_of_all_methods_that_name_none(tmp_path):
    methods = ["student", "plan", "teacher", "relay"]
    table = run(tmp_path / "a", methods, 2, student="warm")
    traces = {m: list(read_traces(tmp_path / "a" / "traces" / "0" / f"{m}.jsonl")) for m in methods}
    assert {m: {t.student for t in found} for m, found in traces.items()} == {
        "student": {"warm"}, "plan": {"warm"}, "teacher": {"warm"}, "relay": {"relay"}
    }  # fmt: skip
    named = run(tmp_path / "b", ["student:student=warm"], 2)
    same = ["id", "correct", "tokens"]
    assert table.loc[table["method"] == "student", same].reset_index(drop=True).equals(named[same])
    with pytest.raises(ValueError, match="other student"):
        run(tmp_path / "a", methods, 2)


def test_a_suffix_stands_behind_training_questions_too(tmp_path):
    seen = []

    def bench(models, *args, **terms):
        seen.extend(p.question for p in models.training)
        return Bench(models, *args, **terms)

    taught = problems("savings", 2, split="train")
    run(tmp_path, ["student"], 1, training=taught, suffix="Box it.", bench=bench)
    assert seen == [f"{p.question}\nBox it." for p in taught]


def test_what_a_baseline_learned_from_belongs_to_the_terms(tmp_path):
    run(tmp_path, ["student"], 1)
    run(tmp_path, ["student"], 1, training=problems("savings", 2, split="train"))  # nothing had learned before
    run(tmp_path, ["student"], 1)
    with pytest.raises(ValueError, match="other training"):
        run(tmp_path, ["student"], 1, training=problems("savings", 3, split="train"))


@given(st.integers(1, 40), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    expected = 1 - comb(n - c, k, exact=True) / comb(n, k, exact=True)
    assert pass_at_k(c, n, k) == pytest.approx(expected, abs=1e-12)


def test_intervals_of_known_samples():
    zeros = mean(np.zeros(50))
    assert (zeros.value, zeros.low, zeros.high) == (0, 0, 0)
    half = mean(np.array([0.0, 1.0] * 200))
    assert half.value == 0.5
    assert half.high - half.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.15)  # the normal approximation
    a, b = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 20 + [0.0] * 20)
    found = paired(a, b)
    assert found.value == 0.25
    assert found.low > 0
    assert found.p < 0.01
    assert paired(a, a).p == 1.0
    # Paired, the interval is that of the differences: 10 of 40, not of two independent samples.
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 40), rel=0.2)
    assert share(np.array([1, 3]), np.array([10, 10])).value == pytest.approx(0.2)  # not the mean of the shares alone
    assert gap_recovered(np.array([1, 1, 0, 0.0]), np.array([1, 0, 0, 0.0]), np.array([1, 1, 1, 0.0])).value == 0.5
    with pytest.raises(ValueError, match="no gap"):
        gap_recovered(a, a, b)


def test_the_table_says_what_the_traces_say(evaluated):
    out, table = evaluated
    assert len(table) == 8 * 5  # two students of one method
    assert set(table["method"]) == {"student", "relay", "teacher", "router:p=0.5"}
    assert table[table["method"] == "relay"]["student"].unique().tolist() == ["relay", "warm"]
    traces = {t.id: t for t in read_traces(out / "traces" / "0" / "relay student=warm.jsonl")}
    for row in table[(table["method"] == "relay") & (table["student"] == "warm")].itertuples():
        t = traces[row.id]
        assert (row.correct, row.tokens, row.teacher_tokens) == (t.correct, len(t.completion_ids), t.count("t"))
        assert row.content_ratio == pytest.approx(t.content_ratio)
    back = read_table(out)
    assert columns(back, "teacher_tokens").equals(columns(table, "teacher_tokens"))
    found = summary(table).set_index("method")
    assert found.loc["student", "teacher_share"] == 0
    assert found.loc["teacher", "teacher_share"] == 1
    assert found.loc["teacher", "gap"] == 1
    assert found.loc["relay", "students"] == 2
    both = table[table["method"] == "relay"]
    assert found.loc["relay", "accuracy"] == pytest.approx(both["correct"].mean())


def test_samples_have_seeds_of_their_own_and_two_runs_are_equal(tmp_path):
    options = dict(methods=["relay"], count=2, samples=3, temperature=1.0)
    one, two = run(tmp_path / "a", **options), run(tmp_path / "b", **options)
    pd.testing.assert_frame_equal(one, two)
    assert (tmp_path / "a" / "table.csv").read_bytes() == (tmp_path / "b" / "table.csv").read_bytes()
    texts = {t.text for s in range(3) for t in read_traces(tmp_path / "a" / "traces" / str(s) / "relay.jsonl")}
    assert len(texts) > 4
    found = summary(one, ks=[2]).iloc[0]
    by_problem = one.groupby("id")["correct"].sum()
    assert found["pass@2"] == pytest.approx(np.mean([pass_at_k(int(c), 3, 2) for c in by_problem]))


def test_killed_anywhere_it_goes_on_and_repeats_nothing(tmp_path):
    whole = run(tmp_path / "whole", ["student", "relay", "router:p=0.5"], count=12)
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
    again = run(out, ["student", "relay", "router:p=0.5"], count=12, batch_size=3)
    columns_ = [c for c in whole if c != "mean_n"]
    pd.testing.assert_frame_equal(again[columns_], whole[columns_])
    for name, data in done.items():  # what was there has stayed, but for a torn last line
        assert (out / "traces" / "0" / name).read_bytes().startswith(data[: data.rfind(b"\n") + 1])


def test_methods_are_added_and_other_terms_refused(tmp_path):
    run(tmp_path, ["student"], count=2)
    table = run(tmp_path, ["relay"], count=2)
    assert table["method"].tolist() == ["student"] * 4 + ["relay"] * 4
    for options in (dict(seed=3), dict(count=3), dict(temperature=1.0)):
        with pytest.raises(ValueError, match="holds an evaluation with other"):
            run(tmp_path, ["relay"], **{"count": 2} | options)
    with pytest.raises(ValueError, match="times the same"):
        run(tmp_path / "x", samples=4)
    with pytest.raises(ValueError, match="no method"):
        run(tmp_path / "x", ["student", "nonsense"])
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="holds no evaluation"):
        read_table(tmp_path / "x")


def test_several_students_are_one_method():
    assert [label for label, _ in variants("relay:student=a+b,n=4")] == ["relay:n=4"] * 2
    assert [m.student for _, m in variants("relay:n=4,student=a+b")] == ["a", "b"]
    assert [label for label, _ in variants("relay:student=warm")] == ["relay:student=warm"]


def test_the_report_holds_every_method_and_escapes_what_models_wrote(evaluated):
    out, table = evaluated
    page = report(out)
    text = page.read_text()
    for name in ("student", "relay", "teacher", "router:p=0.5"):
        assert name in text
    assert "https://" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert (out / "figures" / "accuracy.html").exists()
    versus = comparisons(table, "relay").set_index("other")
    wide = columns(table, "correct")
    assert versus.loc["student", "difference"] == pytest.approx(100 * (wide["relay"] - wide["student"]).mean())
    fig = accuracy_against_share(table)
    alt = fig.layout.meta["alt"]
    assert f"teacher: {100 * wide['teacher'].mean():.1f} % right at 100.0 %" in alt
    line = next(trace for trace in fig.data if "router (expected)" in trace.name)
    assert line.y[0] == pytest.approx(100 * wide["student"].mean())
    assert line.y[-1] == pytest.approx(100 * wide["teacher"].mean())
