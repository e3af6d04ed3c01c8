"""Triggers on the student's uncertainty, and the thresholds that are chosen for them at a budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from relaylab.engine.load import load_engine
from relaylab.evaluation.calibrate import calibrate
from relaylab.evaluation.systems import system
from relaylab.relay.call_rules import CallWhenUnsure, StepState
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (CallWhenUnsure(0.6, 4), [None, 4, 4]),
        (CallWhenUnsure(0.6, 4, line=True), [None, None, 4]),
        (CallWhenUnsure(0.3, 4, margin=True), [None, 4, 4]),
        (CallWhenUnsure(0.05, 4, margin=True), [None, None, None]),
        (CallWhenUnsure(0.6, 4, most=2), [None, None, None]),
    ],
)
def test_a_trigger_sees_entropy_margin_and_the_line(rule, expected):
    sure, unsure = torch.tensor([9.0, 0, 0]), torch.tensor([1.0, 0.6, 0])
    states = [
        StepState(3, 3, 2, 0.01, logits=sure, line="The tiles"),
        StepState(4, 4, 2, 1.1, logits=unsure, line="The tiles"),
        StepState(5, 5, 2, 1.1, logits=unsure, line=""),
    ]
    assert unsure.softmax(-1)[0] - unsure.softmax(-1)[1] == pytest.approx(states[1].margin)
    assert [rule(s) for s in states] == expected


def test_a_rule_sees_the_text_of_the_line_so_far():
    seen = []

    def rule(state: StepState) -> None:
        seen.append(state.line)

    rule.uses_entropy = rule.uses_hidden = False
    teacher = ScriptedTeacher([TeacherOutput("", "error", error="none")])
    question = problems("tiles", 1)[0].question
    trace = Relay(load_engine("student"), teacher, call_rule=rule, max_tokens=120).run([question])[0]
    texts = ["".join(trace.pieces[:i]) for i in range(len(trace.pieces))]
    assert seen == [text.rpartition("\n")[2] for text in texts]
    assert seen.count("") == 5, "four lines of steps and that of the answer"


def test_each_trigger_gets_its_best_candidate_within_the_budget(tmp_path):
    chosen = calibrate(
        problems("tiles", 5, split="train") + problems("savings", 3, split="train"), tmp_path,
        triggers=("entropy", "line", "margin", "probe"), budgets=(0.05, 0.2), lengths=(4, 8), quantiles=(0.9, 0.97),
        router_problems=problems("tiles", 6, split="train", start=50), progress=False,
    )  # fmt: skip
    made = {p.stem.replace(" ", ":", 1): list(read_traces(p)) for p in tmp_path.glob("*threshold*.jsonl")}
    figures = {
        name: (np.mean([t.correct for t in traces]),
               sum(t.count("t") for t in traces) / sum(len(t.completion_ids) for t in traces))
        for name, traces in made.items()
    }  # fmt: skip
    assert len(figures) >= 12
    for row in chosen.itertuples():
        mine = {k: v for k, v in figures.items() if k.startswith(f"{row.trigger}:") and v[1] <= row.budget}
        best = max(accuracy for accuracy, _ in mine.values())
        assert row.accuracy == pytest.approx(best)
        assert row.teacher_share == pytest.approx(min(share for a, share in mine.values() if a == best))
        assert mine[row.method] == (pytest.approx(row.accuracy), pytest.approx(row.teacher_share))
        assert system(row.method).label == row.method, "evaluate reads it"
    assert set(chosen["trigger"]) >= {"entropy", "margin"}
    assert pd.read_csv(tmp_path / "thresholds.csv")["method"].tolist() == chosen["method"].tolist()
    with pytest.raises(ValueError, match="problems"):
        calibrate(problems("tiles", 2, split="train"), tmp_path, triggers=["entropy"], progress=False)


def test_a_written_form_is_calibrated_for_itself(tmp_path):
    options = dict(lengths=(4,), quantiles=(0.9,), budgets=(1.0,), max_tokens=40, progress=False)
    (silent,), (written,) = (
        calibrate(problems("tiles", 2), tmp_path / str(write), triggers=["entropy"], write=write, **options)
        .to_dict("records") for write in (False, True)
    )  # fmt: skip
    assert written["method"] == f"{silent['method']},write=True"
    (made,) = (list(read_traces(path)) for path in (tmp_path / "True").glob("entropy*.jsonl"))
    assert any("<call>4</call>" in t.text for t in made)
    assert written["teacher_share"] == sum(t.count("t") for t in made) / sum(len(t.completion_ids) for t in made)
    with pytest.raises(ValueError, match="write was null, is true"):
        calibrate(problems("tiles", 2), tmp_path / "False", triggers=["entropy"], write=True, **options)
    with pytest.raises(ValueError, match="'specreason' writes no command"):
        calibrate(problems("tiles", 2), tmp_path, triggers=["entropy", "specreason"], write=True, **options)


def test_another_precision_is_another_calibration(tmp_path):
    options = dict(triggers=["entropy"], lengths=(4,), quantiles=(0.9,), budgets=(1.0,), max_tokens=3, progress=False)
    calibrate(problems("tiles", 1), tmp_path, dtype="bfloat16", **options)
    calibrate(problems("tiles", 1), tmp_path, dtype=torch.bfloat16, **options)
    with pytest.raises(ValueError, match='dtype was "bfloat16", is "float32"'):
        calibrate(problems("tiles", 1), tmp_path, dtype="float32", **options)


def test_what_has_no_threshold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'relay' has no threshold to calibrate; there are entropy, line"):
        calibrate(problems("tiles", 1), tmp_path, triggers=["relay"])
    for name in ("problems", "triggers", "budgets"):
        with pytest.raises(ValueError, match=f"there are no {name} to calibrate with"):
            calibrate(**{"problems": problems("tiles", 1), "out": tmp_path / "x", name: ()})
    assert not (tmp_path / "x").exists()
    with pytest.raises(RuntimeError, match="nowhere"):
        calibrate(problems("tiles", 1), tmp_path, triggers=["entropy"], device="nowhere", progress=False)


def test_a_problem_without_an_answer_counts_for_no_candidate(tmp_path):
    chosen, word = problems("tiles", 2, split="train") + problems("savings", 2, split="train"), "tiles"
    fails, says = TeacherOutput("", "error", error="none"), TeacherOutput(r"\boxed{1}", "stop")
    options = dict(budgets=(1.0,), lengths=(4,), quantiles=(0.0,), progress=False)

    def calibrated(trigger, failing):
        teacher = ScriptedTeacher(lambda view: fails if failing(view.messages[0]["content"]) else says)
        return calibrate(chosen, tmp_path / trigger, teacher=teacher, triggers=[trigger], **options)

    lost = sum(word in p.question for p in chosen)
    assert 0 < lost < 4
    with pytest.warns(UserWarning, match=f"failed in answers to {lost} of 4 problems"):
        (row,) = calibrated("offload", lambda question: word in question).to_dict("records")
    answered = [p for p in chosen if word not in p.question]
    (made,) = (list(read_traces(p)) for p in (tmp_path / "offload").glob("offload*.jsonl"))
    kept = [t for t in made if t.id in {p.id for p in answered}]
    assert row["accuracy"] == np.mean([t.correct for t in kept])
    assert row["teacher_share"] == sum(t.count("t") for t in kept) / sum(len(t.completion_ids) for t in kept)
    with pytest.raises(RuntimeError, match=r"4 of 4 problems, .* nothing is left to choose on"):
        calibrated("entropy", lambda question: True)
    assert not (tmp_path / "entropy" / "thresholds.csv").exists()


def test_a_trigger_without_anything_to_look_at_has_no_candidates(tmp_path):
    options = dict(max_tokens=3, quantiles=(0.9,), lengths=(4,), budgets=(1.0,), progress=False)
    with pytest.warns(UserWarning, match="specreason has no candidates: no answer"):
        chosen = calibrate(problems("tiles", 1), tmp_path / "a", triggers=("specreason", "entropy"), **options)
    assert set(chosen["trigger"]) == {"entropy"}
    with pytest.warns(UserWarning, match="specreason has no candidates"):
        chosen = calibrate(problems("tiles", 1), tmp_path / "b", triggers=("specreason",), **options)
    assert list(chosen) == ["trigger", "budget", "method", "accuracy", "teacher_share"]
    assert chosen.empty
