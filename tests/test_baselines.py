"""Every system behind one interface, on the embedded pair; each is checked against what it must be."""

from __future__ import annotations

import random

import pytest
import torch

from relaylab.evaluation.systems import METHODS, Bench, Models, confidence, method
from relaylab.evaluation.token_router import Hidden, train_token_router
from relaylab.relay.config import RelayConfig
from relaylab.relay.pair import problem_seed
from relaylab.relay.teachers import ScriptedTeacher
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces

SUITES = ("savings", "tiles", "depot")


@pytest.fixture(scope="module")
def models():
    training = [p for s in SUITES for p in problems(s, 4, split="train")]
    return Models(training=training, max_tokens=130)


@pytest.fixture(scope="module")
def bench(models, tmp_path_factory):
    chosen = [p for s in SUITES for p in problems(s, 4)]
    limits = RelayConfig(max_tokens=130, max_calls=2)
    return Bench(models, chosen, tmp_path_factory.mktemp("bench"), config=limits, batch_size=12, progress=False)


def accuracy(traces):
    return sum(bool(t.correct) for t in traces) / len(traces)


def test_the_teacher_is_better_and_every_token_is_its_own(bench):
    student, teacher = bench.traces(METHODS["student"]), bench.traces(METHODS["teacher"])
    assert accuracy(teacher) > accuracy(student)
    assert all(set(t.source) == {"t"} and t.stop == "teacher_end" for t in teacher)
    assert all(t.call_ratio == 0 and not t.calls for t in student)


def test_a_router_gives_each_question_to_one_of_the_two_by_its_coin(bench):
    alone, teacher = bench.traces(METHODS["student"]), bench.traces(METHODS["teacher"])
    some, more = bench.traces(method("router:p=0.3")), bench.traces(method("router:p=0.7"))
    for i, problem in enumerate(bench.problems):
        u = random.Random(problem_seed(0, f"router/{problem.id}")).random()
        assert some[i] == (teacher[i] if u < 0.3 else alone[i])
        assert more[i] == (teacher[i] if u < 0.7 else alone[i])
    routed = [{t.id for t in traces if t.call_ratio == 1} for traces in (some, more)]
    assert routed[0] < routed[1]  # one coin a question: what p = 0.3 sends, p = 0.7 sends too


def test_a_cascade_sends_the_least_sure_and_says_what_it_threw_away(bench):
    alone = {t.id: t for t in bench.traces(METHODS["student"])}
    traces = bench.traces(method("cascade:share=0.25"))
    sent = {t.id for t in traces if t.call_ratio == 1}
    assert sent == set(sorted(alone, key=lambda name: confidence(alone[name]))[:3])
    for t in traces:
        assert t.config.get("discarded_tokens") == (len(alone[t.id].completion_ids) if t.id in sent else None)
    own = alone[traces[0].id]
    assert confidence(own) == pytest.approx(sum(own.logprobs) / len(own.logprobs))


def test_plan_and_entropy_hand_over_without_a_command(bench):
    for t in bench.traces(method("plan:n=9")):
        assert t.source.startswith("t" * 9 + "s")
        assert t.count("t") == 9
    unsure = bench.traces(METHODS["entropy"])
    assert accuracy(unsure) > accuracy(bench.traces(METHODS["student"]))
    calls = [(t, c) for t in unsure for c in t.calls]
    assert calls
    for t, c in calls:
        assert c.start == c.end
        assert c.requested == 8
        assert t.entropies[c.start] > 0.6


def test_fixed_grants_every_call_the_same(bench):
    for t in bench.traces(method("relay:n=3")):
        assert all(c.granted == 3 for c in t.answered)


def test_another_teacher_answers_the_same_calls(bench):
    swapped = bench.traces(method("relay:teacher=student"))
    assert {t.teacher for t in swapped} == {"student"}
    for own, other in zip(bench.traces(METHODS["relay"]), swapped):
        assert [c.start for c in own.answered[:1]] == [c.start for c in other.answered[:1]]  # nothing was heard before


def test_speculative_decoding_loses_nothing_and_needs_fewer_passes(bench):
    teacher, fast = bench.traces(METHODS["teacher"]), bench.traces(METHODS["speculative"])
    for a, b in zip(teacher, fast):
        assert b.completion_ids[:-1] == a.completion_ids
        assert b.correct == a.correct
        counts = b.config["counts"]
        assert counts["teacher_passes"] < len(b.completion_ids) / 2
        assert counts["student_passes"] >= len(b.completion_ids) - counts["teacher_passes"]


def test_traces_are_kept_and_read_again(bench, models):
    again = Bench(models, bench.problems, bench.folder, config=bench.limits, batch_size=12, progress=False)
    for name in ("student", "speculative"):
        path = bench.path(METHODS[name])
        bench.traces(METHODS[name])
        before = path.read_bytes()
        assert again.traces(METHODS[name]) == bench.traces(METHODS[name])
        assert path.read_bytes() == before
    other = Bench(models, bench.problems, bench.folder, config=bench.limits, seed=5, progress=False)
    for name in ("student", "speculative"):
        with pytest.raises(ValueError, match="was made with"):
            other.traces(METHODS[name])
    assert {t.id for t in read_traces(bench.path(METHODS["student"]))} == {p.id for p in bench.problems}


def test_the_hidden_state_is_read_back_from_the_logits(models):
    student = models.engine("student")
    ids = student.prompt_ids([{"role": "user", "content": "What is 12 + 34?"}])
    row = student.open(ids)
    logits = student.forward([row], positions=len(ids))[0]
    student.close(row)
    with torch.no_grad():
        states = student.model.model(torch.tensor([ids])).last_hidden_state[0]
    assert torch.allclose(Hidden(student)(logits), states, atol=1e-4)


def test_a_token_router_learns_where_the_student_alone_fails(bench, models):
    router = models.router("student")
    assert 0 < router.needed < 0.1
    assert accuracy(bench.traces(METHODS["citer"])) > accuracy(bench.traces(METHODS["student"]))
    assert all(c.delivered == 1 for t in bench.traces(METHODS["citer"]) for c in t.answered)


def test_what_cannot_work_says_so(bench, models, tmp_path):
    for text, told in (
        ("magic", "no method 'magic'"),
        ("router:q=1", "no option of router"),
        ("router:p=half", "is no float"),
        ("teacher:p=1", "has none"),
    ):
        with pytest.raises(ValueError, match=told):
            method(text)
    served = Models(ScriptedTeacher(["1"], name="far away"), models.training)
    far = Bench(served, bench.problems[:1], tmp_path, progress=False)
    for name in ("citer", "speculative"):
        with pytest.raises(ValueError, match="needs both models in this process"):
            far.traces(METHODS[name])
    with pytest.raises(ValueError, match="none were given"):
        Models().router("student")
    with pytest.raises(ValueError, match="solves none"):
        train_token_router(models.engine("student"), models.local_teacher("x"), problems("galaxy", 1), max_tokens=5)
