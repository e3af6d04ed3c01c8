"""Hand-offs without a command: the teacher takes over, and the student does not learn of it."""

from __future__ import annotations

import pytest
import torch

from relaylab.engine.load import load_engine
from relaylab.relay.call_rules import CallAt, CallWhenUnsure
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problem

QUESTIONS = [problem(s, 3).question for s in ("savings", "tiles", "depot", "galaxy")]


@pytest.fixture(scope="module")
def student():
    return load_engine("student")


@pytest.fixture(scope="module")
def teacher():
    return LocalTeacher(load_engine("teacher"))


def silent(student, teacher, policy, **options):
    return Relay(student, teacher, call_rule=policy, write_call=False, max_tokens=120, **options)


@torch.no_grad()
def test_ids_and_statistics_are_those_of_the_two_models_over_one_text(student, teacher):
    """An independent slow reference: every token is the argmax of the model whose turn it is, over the ids so far."""
    for trace in silent(student, teacher, CallAt({5: 3, 20: 6}), record=True).run(QUESTIONS):
        assert "<call" not in trace.text
        assert trace.count("c") == 0
        assert [(c.start, c.end, c.delivered) for c in trace.calls] == [(5, 5, 3), (20, 20, 6)]
        assert trace.source.startswith("s" * 5 + "t" * 3 + "s" * 12 + "t" * 6 + "s")
        ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
        models = {"s": student.model, "t": teacher.engine.model}
        logits = {source: model(ids).logits[0].float() for source, model in models.items()}
        for i, (token, source) in enumerate(zip(trace.completion_ids, trace.source)):
            at = len(trace.prompt_ids) + i - 1
            assert token == int(logits[source][at].argmax())
            logp = torch.log_softmax(logits["s"][at], -1)
            assert trace.logprobs[i] == pytest.approx(float(logp[token]), abs=1e-4)
            assert trace.entropies[i] == pytest.approx(float(-(logp.exp() * logp).sum()), abs=1e-4)


def test_one_token_more_is_run_a_hand_off(student, teacher):
    student.forwarded = 0
    trace = silent(student, teacher, CallAt({5: 3, 20: 6})).run(QUESTIONS[:1])[0]
    assert student.forwarded == len(trace.prompt_ids) + len(trace.completion_ids) - 1 + 2


def test_a_call_of_everything_is_the_teacher_alone(student, teacher):
    whole = silent(student, teacher, CallAt({0: 120}), max_calls=1).run(QUESTIONS)
    alone = Relay(teacher.engine, ScriptedTeacher([""]), forbid_calls=True, max_tokens=120).run(QUESTIONS)
    for a, b in zip(whole, alone):
        ended = b.stop == "end"
        assert a.completion_ids == (b.completion_ids[:-1] if ended else b.completion_ids)
        assert a.stop == ("teacher_end" if ended else "length")
        assert set(a.source) == {"t"}
        assert a.call_ratio == 1.0


@pytest.mark.parametrize("write_call", [True, False])
@pytest.mark.parametrize("n", [-1, 0, 10**12])
def test_a_number_that_no_command_holds_is_no_silent_call_either(student, teacher, n, write_call):
    with pytest.raises(ValueError, match=f"a call asks for 1 to 999999999999 tokens, not {n}"):
        Relay(student, teacher, call_rule=CallAt({0: n}), write_call=write_call, max_tokens=9).run(QUESTIONS[:1])


def test_a_teacher_that_fails_leaves_the_student_as_it_was(student):
    broken = ScriptedTeacher([TeacherOutput("", "error", error="no")])
    failed = silent(student, broken, CallAt({0: 4, 9: 4}), record=True).run(QUESTIONS[:2])
    alone = Relay(student, broken, forbid_calls=True, record=True, max_tokens=120).run(QUESTIONS[:2])
    for a, b in zip(failed, alone):
        assert [c.status for c in a.calls] == ["failed", "failed"]
        assert a.completion_ids == b.completion_ids
        assert a.stop == b.stop
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_fork_takes_over_what_was_taken_over(student, teacher):
    relay = silent(student, teacher, CallWhenUnsure(0.3, 4, most=3))
    trace = max(relay.run(QUESTIONS), key=lambda t: len(t.calls))
    assert len(trace.calls) >= 2
    for at in (0, trace.calls[0].start, trace.calls[1].start, len(trace.completion_ids) - 1):
        again = list(relay.fork(trace, at))[-1].trace
        assert (again.completion_ids, again.source) == (trace.completion_ids, trace.source)
        calls = [[(c.start, c.requested, c.status) for c in t.calls] for t in (again, trace)]
        assert calls[0] == calls[1]
