"""Calls that mattered: forks of traces whose outcome is known beforehand, and of the embedded pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from relaylab.engine.load import load_engine
from relaylab.evaluation import counterfactual
from relaylab.evaluation.counterfactual import call_effects, effects_by, verdicts
from relaylab.relay.call_rules import CallAt
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import Problem, problems
from relaylab.trace import Trace

# What the scripted teachers write into an answer of the untouched student, which cannot know it.
PROBLEM = Problem("p", "mine", "Ana has 34 pins. Then 25 more arrive. How many pins does Ana have now?", "777", "hard")
RIGHT, WRONG = r"\boxed{777}.", r"\boxed{778}."


class Says(ScriptedTeacher):
    """Writes one sentence and ends the answer."""

    def __init__(self, text: str, name: str):
        super().__init__(lambda view: TeacherOutput(text, "stop"))
        self.name = name


@pytest.fixture(scope="module")
def student():
    return load_engine("student")


@pytest.fixture(scope="module")
def helped(student) -> tuple[list[Trace], Relay]:
    pair = Pair(student, Says(RIGHT, "knows"))
    options = dict(call_rule=CallAt({3: 40}), max_tokens=60)
    return pair.decode([PROBLEM], progress=False, **options), pair.relay(**options)


def by_arm(effects: pd.DataFrame, column: str) -> dict[str, float]:
    return effects.set_index("arm")[column].to_dict()


def test_a_call_is_worth_what_its_teacher_knows(student, helped):
    traces, relay = helped
    assert traces[0].correct
    effects = call_effects(traces, relay, lengths=[30], teachers=[Says(WRONG, "errs")], progress=False)
    assert effects["arm"].tolist() == ["with", "without", "alone", "n=30", "teacher=errs"]
    assert by_arm(effects, "accuracy") == {"with": 1, "without": 0, "alone": 0, "n=30": 1, "teacher=errs": 0}
    assert effects["n"].tolist() == [40, pd.NA, pd.NA, 30, 40]
    assert effects["teacher"].tolist() == ["knows"] * 4 + ["errs"]
    assert (effects["start"] == traces[0].calls[0].start).all()
    delivered = by_arm(effects, "delivered")
    assert delivered["with"] == delivered["teacher=errs"] == traces[0].calls[0].delivered > 0
    assert delivered["without"] == delivered["alone"] == 0
    assert by_arm(effects, "tokens")["with"] == len(traces[0].completion_ids)
    assert set(effects["suite"]) == {"mine"}
    (row,) = verdicts(effects).to_dict("records")
    assert (row["verdict"], row["difference"], row["with"], row["against"]) == ("needed", 1, 1, 0)
    (row,) = verdicts(effects, against="n=30").to_dict("records")
    assert (row["verdict"], row["difference"]) == ("wasted, right anyway", 0)
    with pytest.raises(ValueError, match="one of the arms without, alone, n=30, teacher=errs"):
        verdicts(effects, against="with")


def test_a_teacher_that_fails_is_no_help(student, helped):
    traces, relay = helped
    down = ScriptedTeacher([TeacherOutput("", "error", error="down")], name="down")
    with pytest.warns(UserWarning, match="a model failed in 1 of 4 forks, which are missing values"):
        effects = call_effects(traces, relay, teachers=[down], progress=False)
    assert by_arm(effects, "samples") == {"with": 1, "without": 1, "alone": 1, "teacher=down": 0}
    assert verdicts(effects, against="teacher=down").empty
    with pytest.warns(UserWarning, match="a model failed in 1 of 3 forks"):
        helpless = call_effects(traces, Relay(student, down, relay.config, call_rule=relay.call_rule), progress=False)
    assert verdicts(helpless).empty, "what a failed teacher left as it was is no wasted call"


def test_a_later_call_of_the_same_policy_shows_that_a_call_only_moved(student):
    """Forbidden at token 3, the policy calls at token 20 instead; alone it cannot."""
    teacher = Says(RIGHT, "knows")
    options = dict(call_rule=CallAt({3: 40, 20: 40}), max_tokens=60)
    pair = Pair(student, teacher)
    traces = pair.decode([PROBLEM], progress=False, **options)
    effects = call_effects(traces, pair.relay(**options), students=[student], progress=False)
    assert by_arm(effects, "accuracy") == {"with": 1, "without": 1, "alone": 0, "student=student": 0}
    assert by_arm(effects, "later_calls") == {"with": 0, "without": 1, "alone": 0, "student=student": 0}
    assert verdicts(effects)["verdict"].tolist() == ["wasted, right anyway"]
    assert verdicts(effects, against="alone")["verdict"].tolist() == ["needed"]


@pytest.fixture(scope="module")
def embedded():
    """The untouched student, so that where it calls is the policy's doing and no training changes it."""
    pair = Pair(load_engine("student"), LocalTeacher(load_engine("teacher")))
    caps = dict(max_tokens=120, max_calls=2, call_rule=CallAt({10: 8, 40: 20}))
    chosen = [*problems("depot", 1), *problems("tiles", 1), *problems("savings", 1)]
    return pair, caps, pair.decode(chosen, progress=False, **caps)


def test_the_call_as_it_stands_gives_the_trace_itself_and_forks_are_those_of_the_relay(embedded):
    pair, caps, traces = embedded
    relay = pair.relay(**caps)
    effects = call_effects(traces, relay, progress=False)
    calls = [(k, c) for k, t in enumerate(traces) for c in t.answered]
    assert len(calls) == 6
    assert len(effects) == 3 * len(calls)
    for k, call in calls:
        f = effects[(effects["trace"] == k) & (effects["start"] == call.start)].set_index("arm")
        assert f.loc["with", "accuracy"] == float(traces[k].correct)
        assert f.loc["with", "tokens"] == len(traces[k].completion_ids)
        assert f.loc["with", "delivered"] == call.delivered
        stream = relay.fork(traces[k], call.start, forbid=True)
        list(stream)
        assert f.loc["without", "tokens"] == len(stream.traces[0].completion_ids)
        assert f.loc["without", "later_calls"] == sum(c.start > call.start for c in stream.traces[0].answered)
        assert f.loc["alone", "later_calls"] == 0


def test_the_placebo_is_the_command_followed_by_the_students_own_words(embedded):
    pair, caps, traces = embedded
    effects = call_effects(traces, pair.relay(**caps), placebo=True, progress=False)
    alone = pair.relay(**caps | {"forbid_calls": True})
    for k, call in [(k, c) for k, t in enumerate(traces) for c in t.answered]:
        fork = alone.fork(traces[k], call.start, forbid=True)
        list(fork)
        own = tuple(fork.traces[0].completion_ids[call.start : call.start + call.delivered])
        # The same by another way: a teacher that writes these very tokens, and no call after this one.
        script = ScriptedTeacher([TeacherOutput(pair.student.tokenizer.decode(own), "length", own, len(own))])
        script.fingerprint = pair.student.text.fingerprint
        before = sum(c.start < call.start for c in traces[k].answered)
        fork = Relay(pair.student, script, max_tokens=120, max_calls=before + 1).fork(traces[k], call.end)
        list(fork)
        f = effects[(effects["trace"] == k) & (effects["start"] == call.start)].set_index("arm").loc["placebo"]
        assert (f["delivered"], f["later_calls"]) == (0, 0)
        taught = fork.traces[0].count("t") - call.delivered  # what stands after this command is the student's own
        assert (f["tokens"], f["teacher_tokens"]) == (len(fork.traces[0].completion_ids), taught)


def test_a_student_that_fails_alone_has_no_placebo(embedded, monkeypatch):
    """A server may fail in one fork: what it wrote until then is no answer of its own to stand on."""
    pair, caps, traces = embedded
    plain = counterfactual.graded_forks

    def failing(relay, seeded, at, bar, **change):
        answers = plain(relay, seeded, at, bar, **change)
        if relay.config.forbid_calls and change.get("forbid"):
            answers[0] = replace(answers[0], stop="excluded")
        return answers

    monkeypatch.setattr(counterfactual, "graded_forks", failing)
    with pytest.warns(UserWarning, match="a model failed"):
        effects = call_effects(traces, pair.relay(**caps), placebo=True, progress=False)
    samples = effects.pivot_table(index=["trace", "call"], columns="arm", values="samples", observed=True)
    assert (samples["placebo"] == samples["alone"]).all()
    assert 0 in samples["placebo"].tolist()


def test_silent_calls_are_forked_silently_and_their_placebo_does_nothing(embedded):
    pair, caps, _ = embedded
    caps = caps | {"write_call": False}
    traces = pair.decode([*problems("depot", 1), *problems("savings", 1)], progress=False, **caps)
    effects = call_effects(traces, pair.relay(**caps), lengths=[3], placebo=True, progress=False)
    assert len(effects) == 5 * sum(len(t.answered) for t in traces) == 20
    for (k, _), f in effects.groupby(["trace", "start"]):
        f = f.set_index("arm")
        assert f.loc["with", "tokens"] == len(traces[k].completion_ids)
        assert f.loc["with", "teacher_tokens"] == traces[k].count("t")
        same = ["tokens", "accuracy", "delivered", "teacher_tokens"]
        assert f.loc["placebo", same].equals(f.loc["alone", same])
        assert f.loc["n=3", "delivered"] == 3
        assert f.loc["without", "delivered"] == 0


def test_samples_are_the_same_in_any_batch_and_differ_between_seeds(embedded):
    pair, caps, traces = embedded

    def run(batch_size: int, seed: int = 0, only: slice = slice(None)) -> pd.DataFrame:
        relay = pair.relay(temperature=3.0, batch_size=batch_size, **caps)
        return call_effects(traces[only], relay, samples=2, seed=seed, progress=False)

    one = run(64)
    assert (one["samples"] == 2).all()
    assert (one["accuracy"] == one["right"] / 2).all()
    alone = run(3, only=slice(1, 2))
    pd.testing.assert_frame_equal(one[one["trace"] == 1].reset_index(drop=True).assign(trace=0), alone)
    assert not alone["tokens"].equals(run(64, seed=1, only=slice(1, 2))["tokens"])


def test_what_cannot_be_forked_is_refused(student, helped):
    traces, relay = helped
    capped, silenced = (Relay(student, relay.teacher, **c) for c in ({"max_call_tokens": 8}, {"forbid_calls": True}))
    bare = Trace.from_dict(traces[0].to_dict() | {"problem": {}})
    for words, given, other, options in (
        ("samples is 2", traces, relay, {"samples": 2}),
        ("samples is 0", traces, relay, {"samples": 0}),
        ("call for 9 tokens is changed", traces, capped, {"lengths": [8, 9]}),
        ("two arms have one name", traces, relay, {"lengths": [5, 5]}),
        ("forbids calls", traces, silenced, {}),
        ("holds no problem", [bare], relay, {}),
    ):
        with pytest.raises(ValueError, match=words):
            call_effects(given, other, **options)
    assert call_effects([], relay, progress=False).empty


def effects(accuracies: list[tuple[int, int, str, float, float]]) -> pd.DataFrame:
    """Of (trace, call, suite, accuracy with, accuracy without)."""
    rows = [
        {"trace": t, "call": c, "id": str(t), "suite": s, "level": "hard", "first": c == 0, "start": 9, "arm": arm,
         "accuracy": a, "delivered": 4.0, "later_calls": 0.0, "teacher_tokens": 4.0}
        for t, c, s, *both in accuracies for arm, a in zip(("with", "without"), both)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(arm=pd.Categorical(frame["arm"], categories=["with", "without"]))


def test_verdicts_are_by_the_majority_of_the_samples():
    frame = effects([(0, 0, "x", 0.5, 0.25), (0, 1, "x", 0.75, 0.5), (1, 0, "x", 0.25, 0.0), (2, 0, "y", 0.25, 1.0)])
    found = verdicts(frame)
    assert found["verdict"].tolist() == ["needed", "wasted, right anyway", "wasted, wrong anyway", "harmful"]
    assert found["difference"].tolist() == [0.25, 0.25, 0.25, -0.75]
    lost = effects([(0, 0, "x", 0.5, np.nan), (1, 0, "x", 1.0, 1.0)])  # all answers of one arm were given up
    assert verdicts(lost)["trace"].tolist() == [1]


def test_gains_are_means_over_calls_with_intervals_over_traces():
    frame = effects([(0, 0, "x", 1, 0), (0, 1, "x", 1, 0), (1, 0, "x", 1, 1), (2, 0, "y", 0, 1)])
    found = effects_by(frame).set_index(["suite", "arm"])
    assert found.loc[("x", "without"), ["calls", "accuracy", "gain"]].tolist() == pytest.approx([3, 1 / 3, 2 / 3])
    # Draws of two traces: both the first (gain 1), one of each (2/3), both the second (0).
    assert found.loc[("x", "without"), ["low", "high"]].tolist() == [0, 1]
    assert found.loc[("x", "with"), ["gain", "low", "high"]].tolist() == [0, 0, 0]
    assert found.loc[("y", "without"), "gain"] == -1
    assert np.isnan(found.loc[("y", "without"), "low"])
    together = effects_by(frame, "level").set_index("arm")
    assert together.loc["without", ["calls", "gain"]].tolist() == [4, 0.25]
    assert together.loc["without", "low"] < 0.25 < together.loc["without", "high"]
    unknown = effects_by(frame.assign(level=None), "level")
    assert unknown["level"].isna().all()
    assert unknown.set_index("arm").loc["without", ["calls", "gain"]].tolist() == [4, 0.25]
    with pytest.raises(ValueError, match="by is 'colour'"):
        effects_by(frame, "colour")
