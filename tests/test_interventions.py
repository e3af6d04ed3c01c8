"""Interventions: short silent teacher turns put into answers, and the two figures that describe a pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from relaylab.engine.load import load_engine
from relaylab.evaluation.interventions import (
    HIGH,
    auroc,
    auroc_interval,
    confident,
    decisive,
    dials,
    harmless,
    harmless_wrong,
    interventions,
)
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair, graded
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problems

PROBLEMS = problems("tiles", 6) + problems("savings", 3)


@pytest.fixture(scope="module")
def pair():
    student, teacher = (load_engine(name, device="cpu") for name in ("plain/student", "teacher"))
    return Relay(student, LocalTeacher(teacher), max_tokens=160)


@pytest.fixture(scope="module")
def traces(pair):
    alone = Pair(pair.student, NoTeacher())
    return alone.decode(PROBLEMS, temperature=0.0, max_tokens=160, record=True, progress=False)


@pytest.fixture(scope="module")
def measured(pair, traces):
    return dials(traces, pair, progress=False)


def test_an_intervention_is_a_silent_fork_and_the_student_goes_on_alone(pair, traces):
    places = [[0, len(t.completion_ids) // 2] for t in traces]
    frame = interventions(traces, pair, places, n=3, progress=False)
    assert list(zip(frame["trace"], frame["position"])) == [(k, at) for k, p in enumerate(places) for at in p]
    by_hand = Relay(pair.student, pair.teacher, max_tokens=160, max_calls=1, write_call=False)
    for row in frame.itertuples():
        trace = traces[row.trace]
        stream = by_hand.fork(trace, row.position, call=3)
        list(stream)
        fork = graded(stream.traces[0], next(p for p in PROBLEMS if p.id == trace.id))
        assert (row.before, row.after) == (trace.correct, fork.correct)
        assert row.token == trace.pieces[row.position]
        assert row.entropy == trace.entropies[row.position]
        assert fork.source.count("t") == 3
        assert fork.tag_tokens == 0


def test_a_teacher_that_fails_is_no_help(pair, traces):
    """Its forks are missing values. Carried on alone they would be answers that the help left as they were."""
    word, places = "tiles", [[0]] * len(traces)
    says = {True: TeacherOutput("", "error", error="down"), False: TeacherOutput("12", "length")}
    lost = sum(word in t.prompt for t in traces)
    some = Relay(pair.student, ScriptedTeacher(lambda view: says[word in view.messages[-1]["content"]]), max_tokens=160)
    assert 0 < lost < len(traces)
    with pytest.warns(UserWarning, match=f"a model failed in {lost} of 9 forks"):
        frame = interventions(traces, some, places, progress=False)
    assert frame["trace"].tolist() == [k for k, t in enumerate(traces) if word not in t.prompt]
    down = Relay(pair.student, ScriptedTeacher([says[True]]), max_tokens=160)
    with pytest.raises(RuntimeError, match=r"failed in 9 of 9 forks, .* nothing is left"):
        interventions(traces, down, places, progress=False)
    assert interventions([], down, [], progress=False).empty


def test_h_and_c_of_a_frame_made_by_hand():
    rows = [  # trace, position, entropy, before, after, same
        (0, 1, 0.9, True, True, True),
        (0, 5, 1.2, True, False, False),
        (1, 2, 2.0, False, True, False),
        (1, 6, 0.1, False, True, False),
        (1, 7, 1.5, False, False, True),
        (2, 3, 0.7, False, True, False),
        (3, 3, 0.2, False, False, True),
    ]
    frame = pd.DataFrame(rows, columns=["trace", "position", "entropy", "before", "after", "same"])
    assert harmless(frame).value == pytest.approx((1 / 2 + 1 / 2 + 0) / 3), "a mean over answers, each with its share"
    assert decisive(frame)[["trace", "position"]].to_numpy().tolist() == [[1, 6], [2, 3]]
    assert confident(frame).value == 0.5
    assert confident(frame, threshold=0.05).value == 0


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in score[label] for b in score[~label]]
    assert auroc(score, label) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(score, np.zeros(60, bool)))
    assert np.isnan(auroc(np.append(score[1:], np.nan), label))
    times = rng.integers(1, 4, 60)
    assert auroc(score, label, times) == pytest.approx(auroc(np.repeat(score, times), np.repeat(label, times)))


def test_the_interval_of_an_auroc_draws_answers():
    """Ten copies of each token say no more than one: the interval is that of the answers."""
    rng = np.random.default_rng(1)
    answer = np.repeat(np.arange(12), 5)
    label = rng.random(60) < 0.3
    score = rng.normal(size=60) + label + rng.normal(size=12)[answer]
    once = auroc_interval(score, label, answer)
    tenfold = auroc_interval(np.repeat(score, 10), np.repeat(label, 10), np.repeat(answer, 10))
    assert once.value == pytest.approx(auroc(score, label))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    assert once.low < once.value < once.high
    # An independent one: numpy's own percentiles over drawn answers
    drawn = [np.concatenate([np.flatnonzero(answer == k) for k in rng.integers(0, 12, 12)]) for _ in range(2000)]
    values = [auroc(score[some], label[some]) for some in drawn]
    assert np.percentile(values, [2.5, 97.5]) == pytest.approx([once.low, once.high], abs=0.03)
    assert np.isnan(auroc_interval(score, np.zeros(60, bool), answer).low)


def test_the_dials_of_the_plain_pair(measured, traces):
    assert measured.confident.value == 0, "the plain student is unsure wherever it is wrong"
    assert measured.decisive == sum(not t.correct for t in traces), "the teacher mends each of these"
    entropies = np.concatenate([t.entropies for t in traces])
    assert measured.high_share == pytest.approx((entropies > HIGH).mean())
    assert measured.entropy.low <= measured.entropy.value <= measured.entropy.high
    assert measured.entropy.value > 0.9


def test_h_of_wrong_answers_leaves_the_right_ones_out():
    rows = [(0, 1, 0.9, True, True), (1, 2, 2.0, False, False), (1, 6, 0.7, False, True), (2, 3, 0.7, False, False)]
    frame = pd.DataFrame(rows, columns=["trace", "position", "entropy", "before", "same"])
    assert harmless(frame).value == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert harmless_wrong(frame).value == pytest.approx((1 / 2 + 0) / 2)


def test_the_divergence_of_decisive_tokens_is_counted_by_hand(measured, pair, traces):
    """Every pair of a decisive token and another one, before it or in a right answer, from the two models' logits."""
    everywhere = [[] if t.correct else range(len(t.completion_ids) - 1) for t in traces]
    found = decisive(interventions(traces, pair, everywhere, n=8, progress=False))
    last = dict(zip(found["trace"], found["position"]))
    hits, others = [], []
    for k, trace in enumerate(traces):
        if not trace.correct and k not in last:
            continue
        p, q = (
            e.read(trace.prompt_ids, trace.completion_ids)[0].double().softmax(-1)
            for e in (pair.engine, pair.teacher.engine)
        )
        divergence = (p * (p / q).log()).sum(-1).tolist()
        hits += divergence[last[k] : last[k] + 1] if k in last else []
        others += divergence[: last.get(k)]
    counted = np.mean([(a > b) + 0.5 * (a == b) for a in hits for b in others])
    assert measured.divergence.value == pytest.approx(counted, abs=1e-3)
    assert measured.divergence.low <= measured.divergence.value <= measured.divergence.high
    assert 0.9 < counted < 1


def test_a_teacher_with_other_tokens_has_no_divergence(pair, traces, monkeypatch):
    monkeypatch.setattr(pair, "shared", False)
    measured = dials(traces, pair, progress=False)
    assert np.isnan(measured.divergence.value)
    assert measured.entropy.value > 0.9


def test_traces_without_entropies_are_refused(pair, traces):
    bare = Pair(pair.student, NoTeacher()).decode(problems("tiles", 1), temperature=0.0, max_tokens=160, progress=False)
    with pytest.raises(ValueError, match="tiles-test-0-0' lacks entropies"):
        interventions(bare, pair, [[0]], progress=False)


def test_a_student_whose_answers_never_end_has_no_dials():
    student = load_engine("student")
    cut = Relay(student, NoTeacher(), max_tokens=3).run(["What is 1+1?"])
    with pytest.raises(ValueError, match="no answer ended"):
        dials(cut, Relay(student, NoTeacher()))
