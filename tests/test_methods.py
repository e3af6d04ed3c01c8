"""Methods of the field on the loop: each against a slow reference without caches, in other batches, and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import slow_lines

from relaylab.cost import HandOff, hand_offs, usage
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.evaluation.calibrate import _surprises, calibrate, thresholds
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.evaluate import variants
from relaylab.evaluation.score import recorded, score_traces
from relaylab.evaluation.stats import unsure_above
from relaylab.evaluation.systems import SYSTEMS, System, system
from relaylab.relay.call_rules import CallAt, CallEvery, CallWhenUnsure
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher, Verifier
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Segment, TeacherView, complete
from relaylab.tasks.suites import problems
from relaylab.trace import Call, Trace, from_dataset, read_traces, to_dataset
from relaylab.views.trace_view import call_facts

METHODS = {
    "glimp:threshold=0.0006": {"unsure": 0.0006},
    "offload:threshold=1.2": {"unsure": 1.2, "call_end": "answer"},
    "specreason:threshold=0.2": {"surprise": 0.2},
}


TRAINING = problems("tiles", 3, split="train")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    chosen = problems("tiles", 2) + problems("savings", 1)
    folder, models = tmp_path_factory.mktemp("run"), ModelCache(training=TRAINING, untrained="plain/student")
    return EvalRun(models, chosen, folder, RelayConfig(max_tokens=90), batch_size=3, progress=False)


def timeless(traces):
    """Without what the clock or the last bits of a logit decide."""
    bare = {"logprobs": None, "entropies": None}
    return [replace(t, calls=[replace(c, latency=None) for c in t.calls], **bare) for t in traces]


@pytest.mark.parametrize("text", METHODS)
def test_a_method_equals_its_slow_reference(run, text):
    student, teacher = run.models.engine("student"), run.models.teacher.engine
    traces = run.traces(system(text))
    slow = [
        slow_lines(student.model, teacher.model, student.tokenizer, t.prompt_ids, end_ids=student.end_ids,
                   max_tokens=90, **METHODS[text])
        for t in traces
    ]  # fmt: skip
    assert [(t.completion_ids, t.source, t.stop) for t in traces] == [(s.ids, s.source, s.stop) for s in slow]
    for trace, s in zip(traces, slow):
        assert [(c.start, c.end, c.delivered) for c in trace.calls] == s.calls
        assert [(c.start, "".join(c.withdrawn)) for c in trace.calls if c.withdrawn] == s.withdrawn
    calls = [c for t in traces for c in t.calls]
    assert any(c.delivered for c in calls), "the teacher writes somewhere"
    assert any("s" in t.source for t in traces)


@pytest.mark.parametrize("text", METHODS)
def test_a_method_in_another_batch_or_resumed_is_the_same(run, tmp_path, text):
    traces = run.traces(system(text))
    other = replace(run, folder=tmp_path, batch_size=1, _done={})
    assert timeless(other.traces(system(text))) == timeless(traces)
    path = other.path(system(text))
    path.write_bytes(path.read_bytes()[:-100])  # torn
    assert timeless(replace(other, _done={}).traces(system(text))) == timeless(traces)
    assert len(list(read_traces(path))) == len(traces)


def test_steer_is_glimp_above_the_threshold_of_the_mixture(run):
    threshold = math.exp(unsure_above(run.models.line_entropies("student")))
    lines = [t.pieces[:i] for t in run.traces(system("student")) for i in range(len(t.pieces))]
    assert sum(not pieces or pieces[-1].endswith("\n") for pieces in lines) > 5
    steer, glimp = run.traces(system("steer")), run.traces(system(f"glimp:threshold={threshold!r}"))
    assert [(t.completion_ids, t.source) for t in steer] == [(t.completion_ids, t.source) for t in glimp]
    assert unsure_above([0.0] * 50, 0.9) == float("inf"), "one kind of lines: nobody is unsure"
    with pytest.raises(ValueError, match="there are no values to fit two Gaussians to"):
        unsure_above([])


def test_r2r_calls_where_its_router_says_so_and_finds_what_it_should(run):
    router = run.models.router("student", top=5)
    first = next(iter(router.net.parameters()))
    engine = run.models.engine("student")
    assert first.shape[1] == engine.model.config.hidden_size + 5
    threshold = router.threshold_for(0.95)
    assert router.needs
    assert np.mean(np.array(router.needs) > threshold) >= 0.95
    traces = run.traces(system("r2r:top=5"))
    assert any(t.calls for t in traces)
    for trace in traces:
        logits, hidden = engine.read(trace.prompt_ids, trace.completion_ids)
        wanted = (router.probability(hidden, logits) > threshold).tolist()
        assert [s == "t" for s in trace.source] == wanted
    written = run.traces(system("r2r:top=5,write=1"))
    assert {c.end - c.start for t in written for c in t.calls} == {len(engine.text.call(1))}, "with its command"


def test_what_a_teacher_takes_back_is_paid_for():
    calls = [Call(0, 0, 1, 9, 2, 2, withdrawn=["a", "b", "c"]), Call(4, 4, 1, finish_reason="accepted")]
    trace = Trace("q", [1, 2], [5, 6, 7, 8, 9], "ttsss", list("vwxyz"), calls)
    assert hand_offs(trace) == [HandOff(0, 5, 0, 2, 2, withdrawn=3), HandOff(4, 2, 4)]
    row = usage([trace]).iloc[0]
    assert (row.teacher_new, row.teacher_written, row.student_written, row.student_read) == (7, 2, 6, 4)
    assert row.teacher_context == (1 + 2 + 3 + 4 + 5) + (3 + 4) + (5 + 6)
    assert row.student_context == (1 + 2 + 3 + 4 + 5 + 6 + 7) + (3 + 4 + 5)


def test_withdrawn_text_is_shown_and_read_back(run, tmp_path):
    trace = next(t for t in run.traces(system("specreason:threshold=0.2")) if any(c.withdrawn for c in t.calls))
    call = next(c for c in trace.calls if c.withdrawn)
    assert "took back" in call_facts(call)["note"]
    assert Trace.from_dict(json.loads(trace.to_json())) == trace
    half = Relay(run.models.engine("student"), Verifier(run.models.teacher.engine, threshold=0.2), max_tokens=90,
                 call_rule=CallEvery(1, 1, line=True), call_end="line", write_call=False)  # fmt: skip
    for at in (call.start, call.end + call.delivered, len(trace.completion_ids)):
        again = list(half.fork(trace, at))[-1].trace
        assert again.completion_ids == trace.completion_ids
        assert [c.withdrawn for c in again.calls if c.withdrawn] == [c.withdrawn for c in trace.calls if c.withdrawn]


def test_a_verifier_that_begins_in_the_middle_takes_back_the_last_turn_alone(run):
    """As in a fork, and after memory ran out: it has the whole answer to read, and judges the student's last line."""
    engine = run.models.teacher.engine
    teacher = Verifier(engine, threshold=-1)  # accepts nothing
    rule = CallEvery(1, 1, line=True)
    relay = Relay(run.models.engine("student"), teacher, call_rule=rule, call_end="line", write_call=False)
    trace = relay.run([run.problems[0].question])[0]
    calls = [c for c in trace.calls if c.withdrawn]
    assert len(calls) >= 2
    fork = list(relay.fork(trace, calls[-1].start))[-1].trace
    assert fork.completion_ids == trace.completion_ids
    assert fork.text.count(fork.pieces[0] + fork.pieces[1]) == trace.text.count(trace.pieces[0] + trace.pieces[1])
    view = TeacherView([{"role": "user", "content": trace.prompt}], [Segment("So "), Segment("12+34=99.")], n=4)
    kept, fresh = replace(view, segments=view.segments[:1]), replace(view, segments=list(view.segments))
    complete(teacher, [kept])
    kept.segments = list(view.segments)
    teacher.release([kept])
    assert complete(teacher, [kept])[0].ids == complete(teacher, [fresh])[0].ids
    (scores,) = teacher.score([view])
    assert engine.text.encode("12+34=99.") == scores.ids
    teacher.release([kept, fresh, view])


@pytest.mark.parametrize("rule", [CallAt({5: 4}), CallWhenUnsure(0.0, 1)])
def test_a_turn_that_is_accepted_is_not_shown_again(run, rule):
    accepting = Verifier(run.models.teacher.engine, threshold=1e9)
    relay = Relay(run.models.engine("student"), accepting, call_rule=rule, write_call=False, max_tokens=30)
    trace = relay.run([run.problems[0].question])[0]
    places = [c.start for c in trace.calls]
    assert places
    assert len(set(places)) == len(places)
    assert {c.finish_reason for c in trace.calls} == {"accepted"}


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def called(run):
    """Answers with written commands: a model that reads as a teacher does not see them."""
    student = run.models.engine("warmup")
    relay = Relay(student, run.models.teacher, call_rule=CallAt({5: 3, 20: 6}), max_tokens=50, record=True)
    return relay.run([p.question for p in run.problems[:2]])


def test_models_padded_to_different_sizes_are_compared_over_their_tokens(run, called):
    """Qwen2.5's larger models have more rows behind the same tokens."""
    teacher, padded = run.models.teacher.engine, load_engine("teacher")
    padded.model.resize_token_embeddings(padded.model.config.vocab_size + 16)
    padded = Engine(padded.model, padded.tokenizer, name="padded")
    student = run.models.engine("warmup")
    frames = [score_traces(one, called, against=student) for one in (teacher, padded)]
    for name in ("logprob", "divergence"):
        assert frames[1][name].to_numpy() == pytest.approx(frames[0][name].to_numpy(), abs=1e-4)
    assert frames[1]["top"].tolist() == frames[0]["top"].tolist()


@torch.no_grad()
def test_scores_are_those_of_the_model_over_the_text_without_commands(run, called):
    teacher, student = run.models.teacher.engine, run.models.engine("warmup")
    frame = score_traces(teacher, called, against=student, topk=3, hidden=True)
    for k, trace in enumerate(called):
        own = [i for i, s in enumerate(trace.source) if s != "c"]
        mine = frame[frame["trace"] == k]
        assert mine["position"].tolist() == own
        ids = torch.tensor([trace.prompt_ids + [trace.completion_ids[i] for i in own]])
        out = teacher.model(ids, output_hidden_states=True)
        place = len(trace.prompt_ids) - 1
        logits, beside = out.logits[0, place:-1].float(), student.model(ids).logits[0, place:-1].float()
        p, q = logits.log_softmax(-1), beside.log_softmax(-1)
        chosen = [float(row[t]) for row, t in zip(p, ids[0, place + 1 :])]
        assert mine["logprob"].to_numpy() == pytest.approx(chosen, abs=1e-4)
        assert mine["entropy"].to_numpy() == pytest.approx(-(p.exp() * p).sum(-1).numpy(), abs=1e-4)
        assert mine["divergence"].to_numpy() == pytest.approx((q.exp() * (q - p)).sum(-1).numpy(), abs=1e-4)
        assert mine["top"].tolist() == [teacher.text.pieces([int(i)])[0] for i in p.argmax(-1)]
        assert all(mine.loc[[t == "t" for t in mine["source"]], "rank"] == 0), "the greedy teacher's own tokens"
        assert np.stack(mine["logits"]) == pytest.approx(logits.topk(3).values.numpy(), abs=1e-3)
        assert np.stack(mine["hidden"]) == pytest.approx(out.hidden_states[-1][0, place:-1].numpy(), abs=1e-3)
    (first, second) = recorded(run.models.teacher, called, against=student)
    for name, column in (("teacher_logprobs", "logprob"), ("teacher_top", "top"), ("divergences", "divergence")):
        given = getattr(second, name)
        assert [p is None for p in given] == [s == "c" for s in second.source]
        expected = frame.loc[frame["trace"] == 1, column].tolist()
        known = [p for p in given if p is not None]
        assert known == (expected if column == "top" else pytest.approx(expected, abs=1e-4))
    assert Trace.from_dict(json.loads(second.to_json())) == second
    assert [*from_dataset(to_dataset([first, called[0]]))] == [first, called[0]]
    assert recorded(teacher, called)[0].divergences is None
    own = score_traces(student, called, commands=True)
    mine = own.loc[own["trace"] == 0, "logprob"]
    known = [(a, b) for a, b in zip(mine, called[0].logprobs) if b is not None]  # the student reads no last tokens
    assert len(known) > 40
    assert [a for a, _ in known] == pytest.approx([b for _, b in known], abs=1e-4)


def test_a_hand_off_reads_nothing_again_that_was_scored(run, called):
    engine = run.models.teacher.engine
    teacher, trace = LocalTeacher(engine), called[0]
    ids = trace.completion_ids[:5]
    view = TeacherView(
        [{"role": "user", "content": trace.prompt}], [Segment("".join(trace.pieces[:5]), tuple(ids))], n=3
    )
    begin = engine.forwarded
    (scores,) = teacher.score([view])
    frame = score_traces(engine, [trace])
    assert scores.ids == ids
    assert scores.logprobs == pytest.approx(frame["logprob"][:5].tolist(), abs=1e-4)
    assert scores.surprise == pytest.approx(-frame["logprob"][:5].mean(), abs=1e-4)
    middle = engine.forwarded
    (output,) = complete(teacher, [view])
    assert list(output.ids) == trace.completion_ids[trace.calls[0].end :][:3]
    whole = len(trace.prompt_ids) + 5
    assert engine.forwarded - middle == 1 + 2, "the last token once more, and two of its own"
    assert middle - begin >= whole
    teacher.release([view])


def test_a_trace_of_another_tokenizer_is_refused(run, called):
    with pytest.raises(ValueError, match="another tokenizer"):
        score_traces(run.models.teacher.engine, [replace(called[0], pieces=["?"] * len(called[0].pieces))])


# Calibration, and methods of the user's own ---------------------------------------------------------------------------


def test_thresholds_are_quantiles_of_what_a_method_looks_at(run):
    alone = run.traces(system("student"))
    highest = [max(t.entropies) for t in alone]
    assert thresholds("offload", run, alone, [0.5]) == pytest.approx([np.median(highest)])
    teacher, trace = LocalTeacher(run.models.teacher.engine), alone[0]
    end = next(i for i, piece in enumerate(trace.pieces, 1) if piece.endswith("\n"))
    line = Segment("".join(trace.pieces[:end]), tuple(trace.completion_ids[:end]))
    (scores,) = teacher.score([TeacherView([{"role": "user", "content": trace.prompt}], [line])])
    assert _surprises(run, trace)[0] == pytest.approx(scores.surprise, abs=1e-4)
    first, last = thresholds("specreason", run, [trace], [0, 1])
    assert first <= scores.surprise + 1e-4
    assert last >= scores.surprise - 1e-4


def test_methods_for_lines_and_answers_are_calibrated_without_a_length(tmp_path):
    chosen = calibrate(problems("tiles", 3, split="train"), tmp_path, triggers=("offload", "specreason"),
                       budgets=(1.0,), quantiles=(0.6,), progress=False)  # fmt: skip
    assert [m.partition(":")[0] for m in chosen["method"]] == ["offload", "specreason"]
    assert all("n=" not in m and system(m).label == m for m in chosen["method"])


def test_a_method_of_ones_own_is_a_class_with_one_method(run, tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text(
        "from dataclasses import dataclass\n"
        "from relaylab.evaluation.systems import System\n"
        "from relaylab.relay.call_rules import CallAt\n"
        "class Plain(System):\n"
        "    def decode(self, run):\n"
        "        return run.called(self, 'student', CallAt({10: 4}))\n"
        "@dataclass(frozen=True)\n"
        "class Sized(Plain):\n"
        "    n: int = 4\n"
        "class Wrong:\n"
        "    def __init__(self, name): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plain, sized = system("my_methods:Plain"), system("my_methods:Sized:n=2")
    assert isinstance(plain, System)
    assert (plain.label, sized.label, sized.n) == ("my_methods:Plain", "my_methods:Sized:n=2", 2)
    assert [label for label, _ in variants("my_methods:Sized:n=2")] == ["my_methods:Sized:n=2"]
    traces = run.traces(plain)
    assert [t.source[10:15] for t in traces] == ["tttts"] * len(traces)
    assert run.path(plain) != run.path(sized)
    for text, message in (
        ("my_methods:Wrong", "is no method; derive it"),
        ("my_methods:None_", "no method 'my_methods:None_': AttributeError"),
        ("no_such_module:X", "no method 'no_such_module:X': ModuleNotFoundError"),
        ("my_methods:Sized:m=2", "no option of my_methods:Sized"),
        ("glimp:call_end=word", "call_end is 'word'; it is one of tokens, line, answer"),
    ):
        with pytest.raises(ValueError, match=message):
            system(text)
    for name in ("my_methods:Plain", "my_methods:Sized"):
        del SYSTEMS[name]
