"""Every system behind one interface, on the embedded pair; each is checked against what it must be."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from relaylab.evaluation import eval_run
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.systems import SYSTEMS, confidence, system
from relaylab.evaluation.token_router import train_token_router
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import problem_seed
from relaylab.relay.teachers import ScriptedTeacher
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces

SUITES = ("savings", "tiles", "depot")


@pytest.fixture(scope="module")
def models():
    return ModelCache(training=[p for s in SUITES for p in problems(s, 4, split="train")], max_tokens=130)


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    chosen = [p for s in SUITES for p in problems(s, 4)]
    config = RelayConfig(max_tokens=130, max_calls=2)
    return EvalRun(models, chosen, tmp_path_factory.mktemp("run"), config, batch_size=12, progress=False)


def accuracy(traces):
    return sum(bool(t.correct) for t in traces) / len(traces)


def test_the_teacher_is_better_and_every_token_is_its_own(run):
    student, teacher = run.traces(SYSTEMS["student"]), run.traces(SYSTEMS["teacher"])
    assert accuracy(teacher) > accuracy(student)
    assert all(set(t.source) == {"t"} and t.stop == "teacher_end" for t in teacher)
    assert all(t.call_ratio == 0 and not t.calls for t in student)


def test_a_router_gives_each_question_to_one_of_the_two_by_its_coin(run):
    student, teacher = run.traces(SYSTEMS["student"]), run.traces(SYSTEMS["teacher"])
    some, more = run.traces(system("router:p=0.3")), run.traces(system("router:p=0.7"))
    for i, problem in enumerate(run.problems):
        u = random.Random(problem_seed(0, f"router/{problem.id}")).random()
        assert some[i] == (teacher[i] if u < 0.3 else student[i])
        assert more[i] == (teacher[i] if u < 0.7 else student[i])
    assert list(read_traces(run.path(system("router:p=0.7")))) == more


def test_a_cascade_sends_the_least_sure_and_records_what_it_discards(run):
    student = {t.id: t for t in run.traces(SYSTEMS["student"])}
    traces = run.traces(system("cascade:share=0.25"))
    sent = {t.id for t in traces if t.call_ratio == 1}
    assert sent == set(sorted(student, key=lambda name: confidence(student[name]))[:3])
    for t in traces:
        assert t.config.get("discarded_tokens") == (len(student[t.id].completion_ids) if t.id in sent else None)
    own = student[traces[0].id]
    assert confidence(own) == pytest.approx(sum(own.logprobs) / len(own.logprobs))


def test_plan_and_entropy_call_without_a_command(run):
    for t in run.traces(system("plan:n=9")):
        assert t.source.startswith("t" * 9 + "s")
        assert t.count("t") == 9
    unsure = run.traces(SYSTEMS["entropy"])
    assert accuracy(unsure) > accuracy(run.traces(SYSTEMS["student"]))
    calls = [(t, c) for t in unsure for c in t.calls]
    assert calls
    assert all(c.start == c.end and c.requested == 8 and t.entropies[c.start] > 0.6 for t, c in calls)


def test_relays_with_a_fixed_length_and_with_another_teacher(run):
    assert all(c.granted == 3 for t in run.traces(system("relay:n=3")) for c in t.answered)
    swapped = run.traces(system("relay:teacher=student"))
    assert {t.teacher for t in swapped} == {"student"}
    for own, other in zip(run.traces(SYSTEMS["relay"]), swapped):  # nobody was heard before the first call
        assert [c.start for c in own.answered[:1]] == [c.start for c in other.answered[:1]]


def test_caps_of_a_training_hold_where_the_run_leaves_them_open(run, monkeypatch):
    trained = {"max_calls": 1, "max_call_tokens": 4, "max_tokens": 9, "call_end": "line"}
    monkeypatch.setattr("relaylab.evaluation.eval_run.relay_defaults", lambda name: trained)
    assert run.relay_config("relay") == replace(run.config, max_call_tokens=4, call_end="line")  # max_calls is set to 2
    used = []
    monkeypatch.setattr(EvalRun, "decode", lambda self, *args, config: used.append(config))
    for text in ("relay", "relay:call_end=tokens", "relay:n=3"):
        system(text).decode(run)
    assert [(c.call_end, c.fixed_call_tokens) for c in used] == [("line", None), ("tokens", None), ("tokens", 3)]


def test_speculative_decoding_loses_nothing_and_needs_fewer_passes(run):
    teacher, fast = run.traces(SYSTEMS["teacher"]), run.traces(SYSTEMS["speculative"])
    for a, b in zip(teacher, fast):
        assert b.completion_ids[:-1] == a.completion_ids
        assert b.correct == a.correct
        counts = b.config["counts"]
        assert counts["teacher_passes"] < len(b.completion_ids) / 2
        assert counts["student_passes"] >= len(b.completion_ids) - counts["teacher_passes"]


def test_speculative_decoding_samples_as_the_teacher_does(run, models, tmp_path):
    """Whatever the student's temperature: a greedy teacher is greedy, and one that samples from one token, too."""
    expected = [t.completion_ids for t in run.traces(SYSTEMS["teacher"])[:2]]
    sampling = {"temperature": 1.5, "top_p": 0.9, "top_k": 1}
    for number, options in enumerate(({}, sampling)):
        cache = ModelCache(LocalTeacher(models.local_teacher("test").engine, **options))
        hot = replace(run.config, temperature=3.0)
        traces = EvalRun(cache, run.problems[:2], tmp_path / str(number), hot, progress=False).traces(
            SYSTEMS["speculative"]
        )
        assert [t.completion_ids[:-1] for t in traces] == expected
        assert options.items() <= traces[0].config.items()
        assert traces[0].config["temperature"] == traces[0].temperature == options.get("temperature", 0)


def test_traces_are_kept_and_read_again(run, models):
    for name in ("student", "speculative"):
        path, traces = run.path(SYSTEMS[name]), run.traces(SYSTEMS[name])
        before = path.read_bytes()
        assert replace(run, _done={}).traces(SYSTEMS[name]) == traces
        assert path.read_bytes() == before
        with pytest.raises(ValueError, match="was made with"):
            replace(run, _done={}, seed=5).traces(SYSTEMS[name])


def test_a_token_router_learns_where_the_student_alone_fails(run, models):
    router = models.router("student")
    assert 0 < router.needed < 0.1
    routed = run.traces(SYSTEMS["citer"])
    assert accuracy(routed) > accuracy(run.traces(SYSTEMS["student"]))
    assert all(c.delivered == 1 for t in routed for c in t.answered)


def test_labels_have_files_of_their_own_and_hold_no_password(run):
    labels = ["relay:student=a/b", "relay:student=a_b", "relay:student=a", "relay:teacher=http://ann:pw@h/v1?key=k"]
    paths = [run.path(system(label)).name for label in labels]
    assert len({p.casefold() for p in paths}) == len(paths)
    assert paths[2] == "relay student=a.jsonl"
    assert system(labels[3]).label == "relay:teacher=http://h/v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "no method 'magic'"),
        ("router:q=1", "no option of router"),
        ("router:p=half", "is no float"),
        ("teacher:p=1", "has none"),
        ("router:p=nan", "p is nan; it lies in 0 to 1"),
        ("router:p=1.5", "p is 1.5"),
        ("cascade:share=-1", "share is -1.0"),
        ("plan:n=-1", "n is -1; it must be at least 1$"),
        ("relay:n=-1", "n is -1"),
        ("relay:n=5,call_end=line", r"n=5 fixes .* call_end=line leaves it open; leave out call_end, or say n=0"),
        ("fixed:call_end=answer", "fixed: n=20 fixes"),
        ("entropy:threshold=nan", "threshold is nan"),
        ("speculative:draft=0", "draft is 0"),
        ("router:p=0.1,p=0.2", "p is set twice"),
    ],
)
def test_bad_texts_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        system(text)


def test_a_router_is_trained_once_and_kept(models, tmp_path, monkeypatch):
    training = models.training[:8]
    first = ModelCache(training=training, max_tokens=130, keep=tmp_path).router("student", top=5)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    monkeypatch.setattr(eval_run, "train_token_router", None)  # a second training would fail
    kept = ModelCache(training=training, max_tokens=130, keep=tmp_path).router("student", top=5)
    size = kept.net[0].in_features - 5
    hidden, logits = torch.randn(20, size), torch.randn(20, 60)
    assert torch.equal(kept.probability(hidden, logits), first.probability(hidden, logits))
    assert kept.needs == first.needs
    assert kept.threshold_for(0.9) == first.threshold_for(0.9)
    with pytest.raises(TypeError):  # of other problems it is another router
        ModelCache(training=training[1:], max_tokens=130, keep=tmp_path).router("student", top=5)


def test_a_teacher_far_away_cannot_be_looked_into(run, models, tmp_path):
    elsewhere = ModelCache(ScriptedTeacher(["1"], name="far away"), models.training)
    far = EvalRun(elsewhere, run.problems[:1], tmp_path, progress=False)
    for name in ("citer", "speculative"):
        with pytest.raises(ValueError, match="needs both models in this process"):
            far.traces(SYSTEMS[name])
    with pytest.raises(ValueError, match="learns from training problems"):
        ModelCache().router("student")
    with pytest.raises(ValueError, match="solves none"):
        train_token_router(models.engine("student"), models.local_teacher("x"), problems("galaxy", 1), max_tokens=5)
