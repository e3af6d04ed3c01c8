"""What a failing teacher does to a relay: every row ends with a complete trace, and each policy keeps its word."""

from __future__ import annotations

from threading import Thread

import pytest
from misbehaving_server import DROP, Reply

from relaylab.engine.load import load_engine
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.call_rules import CallAt
from relaylab.relay.relay import Relay, TeacherFailed
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import SUITES, problem

QUESTIONS = [problem(SUITES[i % len(SUITES)], i).question for i in range(6)]
BROKEN = TeacherOutput("", "error", error="the server is on fire")


@pytest.fixture(scope="module")
def student():
    return load_engine("student")


def every_third(view):
    """Fails for a third of the rows, told apart by their seed."""
    return BROKEN if view.seed % 3 == 0 else TeacherOutput("12", "length", tokens=2)


def relay(student, teacher, on_failure):
    return Relay(student, teacher, call_rule=CallAt({6: 2, 40: 2}), max_tokens=120, on_failure=on_failure)


def test_carry_on_goes_on_alone_and_says_so(student):
    traces = relay(student, ScriptedTeacher(every_third), "carry_on").run(QUESTIONS)
    assert len(traces) == 6
    for trace in traces:
        fails = trace.seed % 3 == 0
        forced = [c for c in trace.calls if c.forced]
        assert [c.status for c in forced] == ["failed" if fails else "answered"] * 2
        assert trace.stop in ("end", "length")
        assert (trace.count("t") == 0) == fails
        if fails:
            assert forced[0].error == "the server is on fire"
            assert len(trace.completion_ids) > forced[0].end  # it went on


def test_exclude_ends_the_row_and_no_other(student):
    traces = relay(student, ScriptedTeacher(every_third), "exclude").run(QUESTIONS)
    for trace in traces:
        if trace.seed % 3 == 0:
            assert trace.stop == "excluded"
            assert len(trace.completion_ids) == trace.calls[-1].end
        else:
            assert trace.stop in ("end", "length")
    assert sum(t.stop == "excluded" for t in traces) == 2
    assert not student.slots


def test_raise_raises_with_every_row_as_far_as_it_came(student):
    with pytest.raises(TeacherFailed, match="script: the server is on fire") as caught:
        relay(student, ScriptedTeacher(every_third), "raise").run(QUESTIONS)
    assert len(caught.value.traces) == 6
    assert all(len(t.completion_ids) >= 6 for t in caught.value.traces)
    assert not student.slots


@pytest.mark.parametrize("kind", ["refused", "killed", "status", "slow"])
def test_no_row_is_lost_to_a_misbehaving_server(student, misbehaving_server, kind):
    """What test_api_teacher has more kinds of, seen from the relay: four answers, then trouble for all that follows."""
    server = misbehaving_server
    options = dict(model="m", mode="completions", retries=1, timeout=0.5, concurrency=1)
    with APITeacher(server.url, **options) as teacher:
        teacher.probe()
        asked = []

        def trouble(request):
            asked.append(request)
            if len(asked) <= 4:
                return None
            if kind in ("refused", "killed"):
                Thread(target=server.stop).start()
                return DROP
            return Reply(status=500, body="{}") if kind == "status" else Reply(delay=3)

        if kind == "refused":
            server.stop()
        server.rule = trouble
        traces = relay(student, teacher, "carry_on").run(QUESTIONS)
        assert len(traces) == 6
        for trace in traces:
            trace.check()
            assert trace.stop in ("end", "length")
            for call in trace.calls:
                assert (call.status == "failed") == bool(call.error)
                assert (call.status == "answered") == (call.delivered > 0)
        answered = sum(c.status == "answered" for t in traces for c in t.calls)
        failed = sum(c.status == "failed" for t in traces for c in t.calls)
        assert answered == (0 if kind == "refused" else 4)
        assert failed >= 12 - answered  # two forced calls a row, and what the student may add
        with pytest.raises(TeacherFailed):
            relay(student, teacher, "raise").run(QUESTIONS[:1])
        assert relay(student, teacher, "exclude").run(QUESTIONS[:1])[0].stop == "excluded"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        (TeacherOutput("", "length"), "wrote nothing"),
        (TeacherOutput("a\ud800", "length", tokens=1), "Unicode"),
        (TeacherOutput("x", "length", ids=(10**6,), tokens=1), "outside of the tokenizer"),
    ],
)
@pytest.mark.parametrize("write_call", [True, False])
def test_a_useless_answer_is_a_failed_call_and_the_student_goes_on(student, output, error, write_call):
    teacher = ScriptedTeacher([output])
    teacher.fingerprint = student.text.fingerprint
    rule = CallAt({6: 2, 40: 2})
    trace = Relay(student, teacher, call_rule=rule, write_call=write_call, max_tokens=120).run(["What is 12+34?"])[0]
    assert trace.calls[0].status == "failed"
    assert error in trace.calls[0].error
    assert trace.stop in ("end", "length")
