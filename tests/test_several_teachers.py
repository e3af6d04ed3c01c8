"""Several teachers of one student: calls by name, against the slow reference, in batches, resumed, and priced."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_relay
from test_grpo import SMALL, rollouts, same_weights
from transformers import TrainerCallback

from relaylab.call_tag import find_calls, format_call, strip_calls
from relaylab.cost import ModelPrices, Prices, costs, usage
from relaylab.cost_by_teacher import costs_by_teacher
from relaylab.engine.load import fingerprint_weights, load_engine
from relaylab.evaluation.evaluate import evaluate
from relaylab.evaluation.learning import answer_text
from relaylab.evaluation.score import score_traces
from relaylab.options import Process
from relaylab.relay.local_teacher import LocalTeacher, Verifier
from relaylab.relay.names import models_of
from relaylab.relay.pair import Pair, load_teacher, relay_config
from relaylab.relay.relay import Relay
from relaylab.relay.sequence import CallClosed
from relaylab.relay.teachers import NamedTeachers, NoTeacher, ScriptedTeacher, TeacherOutput, TeacherView, complete
from relaylab.tasks.suites import problems
from relaylab.trace import Trace, read_traces
from relaylab.training.grpo import train
from relaylab.training.rewards import cost_aware
from relaylab.training.run_dir import read_metrics
from relaylab.training.warmup import warmup
from relaylab.training.warmup_data import warmup_data
from relaylab.views.trace_view import trace_text

PROBLEMS = problems("tiles", 3) + problems("savings", 3)
QUESTIONS = [p.question for p in PROBLEMS]


@pytest.fixture(scope="module")
def engines():
    return load_engine("warmup"), {"small": load_engine("student"), "large": load_engine("teacher")}


def several(engines) -> NamedTeachers:
    return NamedTeachers({name: LocalTeacher(engine) for name, engine in engines[1].items()})


def places(seed: int) -> dict[int, tuple[int, str] | int]:
    return {(seed * 5) % 17: (3, "large"), 20 + seed % 7: 2, 31 + seed % 3: (4, "small"), 44 + seed % 11: (9, "large")}


class Ragged:
    def __call__(self, state):
        return places(state.seed).get(state.position)


def timeless(traces: list[Trace]) -> list[dict]:
    bare = {"logprobs": None, "entropies": None}
    return [replace(t, calls=[replace(c, latency=None) for c in t.calls], **bare).to_dict() for t in traces]


# The grammar ----------------------------------------------------------------------------------------------------------

parts = st.sampled_from(
    ["<call>", "<call to=a>", "<call to=", "<call to=a b>", "</call>", ">", "3", " 12 ", "x", "<", "a"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts, max_size=12))
def test_names_stand_in_the_opening_tag_alone(pieces):
    """Without the names, and a long enough body apart, the named grammar is the plain one."""

    def unnamed(text: str) -> str:
        return re.sub(r"<call to=[^<>]{0,32}>", "<call>", text)

    text = "".join(pieces)
    plain, named = unnamed(text), find_calls(text, named=True)
    assert [(c.n, c.problem) for c in named] == [(c.n, c.problem) for c in find_calls(plain)]
    assert unnamed(strip_calls(text, named=True)) == unnamed(strip_calls(plain))
    for call in named:
        tag = re.match(r"<call(?: to=([^<>]*))?>", text[call.start : call.end])
        assert call.to == tag[1]


@settings(max_examples=100, deadline=None)
@given(st.lists(parts, max_size=12))
def test_by_default_a_name_is_no_part_of_the_grammar(pieces):
    text = "".join(pieces)
    assert all(text.startswith("<call>", c.start) and c.to is None for c in find_calls(text))
    assert [(c.start, c.end) for c in find_calls(text)] == [
        m.span() for m in re.finditer(r"<call>(?:((?:(?!<call>).){0,32}?)</call>)?", text, re.DOTALL)
    ]


def test_a_command_with_a_name_is_read_back():
    text = "2*" + format_call(20, "large") + "3"
    (call,) = find_calls(text, named=True)
    assert (call.n, call.to, text[call.start : call.end]) == (20, "large", "<call to=large>20</call>")
    assert (strip_calls(text, named=True), strip_calls(text)) == ("2*3", text)
    assert len(find_calls("<call to=a>" * 50_000, named=True)) == 50_000  # quadratic would never end


# The relay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ragged_batch_equals_the_slow_reference(engines, temperature):
    student, models = engines[0], {name: engine.model for name, engine in engines[1].items()}

    def relay(**options):
        return Relay(student, several(engines), max_tokens=70, max_call_tokens=7, temperature=temperature,
                     call_rule=Ragged(), **options)  # fmt: skip

    fast = relay().run(QUESTIONS, seeds=range(6))
    for seed, trace in enumerate(fast):
        slow = slow_relay(
            student.model, models, student.tokenizer, trace.prompt_ids, end_ids=student.end_ids, max_tokens=70,
            seed=seed, temperature=temperature, call_rule=places(seed).get, caps=7,
        )  # fmt: skip
        assert (trace.completion_ids, trace.source, trace.stop) == (slow.ids, slow.source, slow.stop)
        assert [(c.start, c.end, c.delivered) for c in trace.answered] == slow.calls
        assert [(c.to, c.end, c.delivered) for c in trace.answered] == slow.named
        assert [c.teacher for c in trace.answered] == [engines[1][c.to].name for c in trace.answered]
        own = "".join(p for p, s in zip(trace.pieces, trace.source) if s != "c")
        assert (trace.teacher_view, answer_text(trace)[0]) == (own, own)
        assert Trace.from_dict(json.loads(trace.to_json())) == trace
    asked = {c.to for t in fast for c in t.answered}
    assert asked == {"small", "large"}
    assert timeless(relay(batch_size=1).run(QUESTIONS, seeds=range(6))) == timeless(fast)
    for at in (0, fast[0].calls[1].start, fast[0].calls[1].end, len(fast[0].completion_ids)):
        again = list(relay().fork(fast[0], at))[-1].trace
        assert timeless([again]) == timeless([fast[0]]), at
    large = next(call for call in fast[0].calls if call.to == "large")
    short = list(relay().fork(fast[0], large.start, call=2))[-1].trace
    anew = next(call for call in short.calls if call.start == large.start)
    assert (anew.to, anew.requested, anew.teacher) == ("large", 2, large.teacher), "another n, the same teacher"
    assert len(score_traces(engines[1]["large"], fast)) == sum(len(t.source) - t.count("c") for t in fast)


def test_one_teacher_by_two_names_writes_what_it_would_alone(engines):
    student, engine = engines[0], engines[1]["large"]

    def run(teacher, rule):
        return Relay(student, teacher, max_tokens=70, write_call=False, call_rule=rule).run(QUESTIONS, seeds=range(6))

    def plain(state):
        asked = Ragged()(state)
        return asked[0] if isinstance(asked, tuple) else asked

    two = run(NamedTeachers({"small": LocalTeacher(engine), "large": LocalTeacher(engine)}), Ragged())
    one = run(LocalTeacher(engine), plain)
    assert [(t.completion_ids, t.source, t.stop) for t in two] == [(t.completion_ids, t.source, t.stop) for t in one]


def test_an_interrupted_run_goes_on_and_other_teachers_are_refused(engines, tmp_path):
    pair, path = Pair(engines[0], several(engines)), tmp_path / "out.jsonl"
    options = {"max_tokens": 50, "call_rule": Ragged(), "progress": False}
    whole = pair.decode(PROBLEMS, out=path, **options)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) * 2 // 3])
    assert timeless(pair.decode(PROBLEMS, out=path, **options)) == timeless(whole)
    assert len(list(read_traces(path))) == len(PROBLEMS)
    swapped = dict(reversed(several(engines).teachers.items()))
    with pytest.raises(ValueError, match="teacher"):
        Pair(engines[0], NamedTeachers(swapped)).decode(PROBLEMS, out=path, **options)
    warm = NamedTeachers(several(engines).teachers | {"large": LocalTeacher(engines[1]["large"], temperature=0.5)})
    with pytest.raises(ValueError, match="teachers"):
        Pair(engines[0], warm).decode(PROBLEMS, out=path, **options)
    assert "teachers" not in relay_config(Relay(engines[0], LocalTeacher(engines[1]["large"])), 0)


@pytest.mark.parametrize(
    ("text", "status", "name"),
    [
        ("<call to=large>3</call>", "waiting", "large"),
        ("<call>3</call>", "waiting", "small"),
        ("<call to=huge>3</call>", "unknown", "huge"),
        ("<call to=>3</call>", "unknown", ""),
        ("<call to=large>x</call>", "malformed", "large"),
        ("<call to=large></call>", "empty", "large"),
        ("<call to=huge>0</call>", "zero", "huge"),
    ],
)
def test_what_a_student_writes_itself(engines, text, status, name):
    student = engines[0]
    relay = Relay(student, several(engines), max_tokens=90)
    sequence = relay.sequence(0, QUESTIONS[0], 0)
    for token in student.text.encode("It is " + text):
        sequence.write_student(token)
    (call,) = sequence.calls
    assert (call.status, call.to) == (status, name)
    assert sequence.turn == ("teacher" if status == "waiting" else "student")
    sequence.finish("interrupted")
    trace = sequence.trace("a", "b")
    assert trace.text.startswith("It is <call")
    assert "call" not in trace.teacher_view
    assert set(trace.source) == {"s", "c"}
    assert ("no teacher has this name" in trace_text(trace, color=False, width=200)) == (status == "unknown")
    plain = Relay(student, LocalTeacher(engines[1]["large"]), max_tokens=90).sequence(0, QUESTIONS[0], 0)
    for token in student.text.encode("It is " + text):
        plain.write_student(token)
    assert bool(plain.calls) == ("to=" not in text), "one teacher: a name is text like any other"


def test_several_teachers_of_any_kind_and_speed(engines):
    class Slow(ScriptedTeacher):
        polls = 0

        def poll(self, views, *, wait=False):
            assert not wait, "the other teacher would wait, too"
            self.polls += 1
            return super().poll(views) if self.polls > 3 else []

    slow, quick = Slow(["one"], name="s"), Slow([TeacherOutput("", "error", error="gone")], name="q")
    both = NamedTeachers({"slow": slow, "quick": quick})
    first, second = TeacherView([], n=3, to="slow"), TeacherView([], n=3, to="quick")
    outputs = complete(both, [first, second])
    assert [(o.text, o.error, o.teacher) for o in outputs] == [("one", None, "s"), ("", "gone", "q")]
    assert (slow.requests, both.name) == ([("", 3)], "slow=s quick=q")
    mixed = NamedTeachers({"script": ScriptedTeacher(["12 "]), "large": LocalTeacher(engines[1]["large"])})
    assert mixed.fingerprint is None
    relay = Relay(engines[0], mixed, max_tokens=40, call_rule=lambda s: {3: (4, "large"), 30: 3}.get(s.position))
    events = list(relay.stream(QUESTIONS[:2]))
    closed = [e.call for e in events if isinstance(e, CallClosed)]
    assert {(c.to, c.teacher) for c in closed} == {("large", engines[1]["large"].name), ("script", "script")}
    both.submit([first])
    both.release([first])
    assert both.poll([first]) == []


def test_ids_of_one_tokenizer_are_not_read_in_another(engines):
    rule = lambda s: {5: (2, "foreign"), 16: (4, "large")}.get(s.position)  # noqa: E731
    traces = []
    for ids in (None, (5, 6), (70_001, 70_002)):
        foreign = ScriptedTeacher([TeacherOutput(" tiles of", "length", ids=ids, tokens=2)])
        mixed = NamedTeachers({"foreign": foreign, "large": LocalTeacher(engines[1]["large"])})
        traces += Relay(engines[0], mixed, max_tokens=60, write_call=False, call_rule=rule).run(QUESTIONS[:1])
    assert [(c.to, c.status) for c in traces[0].calls][:2] == [("foreign", "answered"), ("large", "answered")]
    assert timeless(traces[1:]) == timeless(traces[:1] * 2)


def test_what_cannot_work_is_refused(engines):
    scripted = ScriptedTeacher(["x"])
    for names in ({}, {"a b": scripted}, {"": scripted}, {"a>": scripted}, {"x" * 33: scripted}, {"ä": scripted}):
        with pytest.raises(ValueError, match="names of teachers"):
            NamedTeachers(names)
    with pytest.raises(ValueError, match="takes text back"):
        NamedTeachers({"a": Verifier(engines[1]["large"], threshold=1.0)})
    relay = Relay(engines[0], several(engines), max_tokens=20, call_rule=lambda s: (3, "huge"))
    with pytest.raises(ValueError, match="'huge'; there are small, large"):
        relay.run(QUESTIONS[:1])
    with pytest.raises(ValueError, match="there are no names"):
        Relay(engines[0], scripted, call_rule=lambda s: (3, "huge")).run(QUESTIONS[:1])


def test_teachers_by_text(tmp_path, monkeypatch):
    text = "small=student large=teacher"
    assert (models_of(text), models_of("a=b")) == ({"small": "student", "large": "teacher"}, {"": "a=b"})
    with pytest.raises(ValueError, match="'a=student a=teacher' has one twice"):
        load_teacher("a=student a=teacher")
    teachers = load_teacher(text, temperature=0.5)
    assert (teachers.names, [t.temperature for t in teachers.teachers.values()]) == (("small", "large"), [0.5, 0.5])
    assert teachers.name.startswith("small=")
    evaluate(["relay:student=warmup"], PROBLEMS[:2], tmp_path, teacher=text, max_tokens=40, progress=False)
    weights = json.loads((tmp_path / "config.json").read_text())["weights"]
    assert all(weights[name] == fingerprint_weights(name) for name in ("student", "teacher", "warmup"))
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Process().set_threads("warmup", text)
    assert threads == [1], "all of them are small"


# What it costs --------------------------------------------------------------------------------------------------------


def test_each_teacher_reads_its_own_part_and_has_its_own_price(engines):
    student, models = engines
    before = {name: engine.forwarded for name, engine in models.items()}
    relay = Relay(student, several(engines), max_tokens=70, call_rule=Ragged())
    traces = [relay.run([q], seeds=[k])[0] for k, q in enumerate(QUESTIONS)]
    for name, engine in models.items():
        used, calls = usage(traces, to=name), [c for t in traces for c in t.answered if c.to == name]
        # An engine runs what it reads, and what it writes but for the last token of a call that did not end the answer,
        # which it reads at its next call.
        last = {(id(t), c.to): c for t in traces for c in t.answered if c.to == name}
        unread = sum(c.finish_reason == "length" and c.written > 0 for c in last.values())
        assert engine.forwarded - before[name] == used.teacher_new.sum() + used.teacher_written.sum() - unread
        assert used.hand_offs.sum() == len(calls) > 0
    sizes = {"small": ModelPrices(parameters=2.0), "large": ModelPrices(parameters=50.0)}
    prices = Prices(student=ModelPrices(parameters=1.0), teacher=sizes["large"], network_delay=0.25)
    priced = costs_by_teacher(traces, prices, sizes)
    parts = {name: usage(traces, to=name) for name in sizes}
    expected = sum(2 * sizes[n].parameters * (u.teacher_new + u.teacher_written) for n, u in parts.items())
    assert priced.teacher_flops.tolist() == expected.tolist()
    own = parts["small"].student_read + parts["small"].student_written
    assert priced.flops.tolist() == (expected + 2 * own).tolist()
    assert priced.network_seconds.tolist() == [0.25 * len(t.answered) for t in traces]
    same = costs_by_teacher(traces, prices, dict.fromkeys(sizes, sizes["large"]))
    assert same.teacher_flops.tolist() == costs(usage(traces), prices).teacher_flops.tolist()
    assert priced.teacher_flops.sum() < same.teacher_flops.sum()
    with pytest.raises(ValueError, match="no price for large; there are small"):
        costs_by_teacher(traces, prices, {"small": sizes["small"]})
    with pytest.raises(ValueError, match="of no named teacher; take costs"):
        costs_by_teacher([Trace("q", [1, 2], [5, 6], "tt", ["a", "b"], [])], prices, sizes)

    group = [replace(t, correct=True) for t in traces]
    assert cost_aware(group, teacher_size=50.0) == pytest.approx(
        cost_aware(group, teacher_size={"small": 50.0, "large": 50.0})
    )
    cheaper = cost_aware(group, teacher_size={"small": 2.0, "large": 50.0})
    assert all(a >= b for a, b in zip(cheaper, cost_aware(group, teacher_size=50.0)))
    assert sum(cheaper) > sum(cost_aware(group, teacher_size=50.0))


# Training -------------------------------------------------------------------------------------------------------------


def commands(row) -> list[tuple[int, int]]:
    """Where the commands of a row of the warm-up begin and end."""
    spans = [[i for i, _ in group] for one, group in groupby(enumerate(row["command"]), lambda p: p[1]) if one]
    return [(span[0], span[-1] + 1) for span in spans]


def test_each_command_of_the_warm_up_names_the_teacher_that_writes(engines):
    """Against transformers: the named teacher's greedy tokens after the text so far, which holds no command."""
    student, asked, compared = load_engine("student"), Counter(), Counter()
    options = dict(counts=(0, 0.2, 0.8), numbers=[5], max_tokens=160, progress=False)
    rows = warmup_data(student, problems("tiles", 24, split="train"), teacher=several(engines), **options)
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        for begin, end in commands(row):
            text = student.tokenizer.decode(ids[begin:end])
            (call,) = find_calls(text, named=True)
            assert (call.start, call.end, call.problem) == (0, len(text), None)
            assert ids[begin:end] == labels[begin:end] == student.text.encode(format_call(call.n, call.to))
            asked[call.to] += 1
            if call.n < 5 or end + 5 > len(ids):
                continue
            read = torch.tensor([[i for i, c in zip(ids[:begin], row["command"]) if not c]])
            model = engines[1][call.to].model
            wrote = model.generate(read, max_new_tokens=5, do_sample=False)[0, read.shape[1] :].tolist()
            assert (ids[end : end + 5], labels[end : end + 5]) == (wrote, [-100] * 5)
            compared[call.to] += 1
    assert asked.keys() == {"small", "large"}
    assert 0.3 < asked["small"] / asked.total() < 0.7
    assert min(compared.values()) > 5


def test_without_names_the_warm_up_draws_what_it_drew(engines):
    """The draws of one teacher, by hand: who gets a call, then a place and a number for each."""
    student, chosen = load_engine("student"), problems("savings", 12, split="train")
    options = dict(max_tokens=160, progress=False)
    rows = warmup_data(
        student, chosen, teacher=LocalTeacher(engines[1]["large"]), counts=(0.5, 0.5), numbers=[3, 4], **options
    )
    traces = Pair(student, NoTeacher()).decode(chosen, temperature=1.0, batch_size=128, **options)
    traces, rng = [t for t in traces if t.stop == "end"], random.Random(0)
    wanted, expected = rng.choices(range(2), (0.5, 0.5), k=len(traces)), []
    for trace, count in zip(traces, wanted):
        last, begin = len(trace.completion_ids) - 1, list(trace.prompt_ids)
        if count:
            at = rng.randrange(0, last)
            n = min(last - at, rng.choice([3, 4]))
            begin += trace.completion_ids[:at] + student.text.encode(f"<call>{n}</call>")
        expected.append(begin)
    assert len(rows) == len(expected) > 9
    for row, begin in zip(rows, expected):
        assert row["input_ids"][: len(begin)] == begin


def test_a_student_is_warmed_up_and_trained_with_two_teachers(tmp_path):
    """Both stages by text: it calls both, pays each by its size, and an interrupted run ends with the same weights."""
    text, sizes = "a=student b=teacher", {"a": 2.0, "b": 50.0}
    warm = warmup(
        "student", problems("tiles", 120, split="train"), tmp_path / "warm", teacher=text, check=problems("tiles", 16),
        max_steps=120, learning_rate=6e-3, full=True, counts=(0, 1), exponents=(0,), max_tokens=160, progress=False,
        device="cpu", per_device_train_batch_size=12,
    )  # fmt: skip
    assert warm.calls > 0.3, "calls with a name are counted"
    settings = SMALL | dict(
        student=str(warm.student), teacher=text, reward="cost_aware", teacher_size=sizes, cost_weight=0.3,
        per_device_train_batch_size=16, max_completion_length=90,
    )  # fmt: skip
    options = {"problems": problems("tiles", 8, split="train")}
    train(output_dir=tmp_path / "whole", **settings, **options)
    metrics, called = read_metrics(tmp_path / "whole"), Counter()
    for step in (0, 1):
        traces = rollouts(tmp_path / "whole", step)
        groups = [traces[i : i + 4] for i in range(0, 16, 4)]
        rewards = [r for group in groups for r in cost_aware(group, cost_weight=0.3, teacher_size=sizes)]
        assert metrics["reward"][step] == pytest.approx(sum(rewards) / 16, abs=1e-5)
        answered = [c.to for t in traces for c in t.answered]
        assert metrics["calls_to_a"][step] == pytest.approx(answered.count("a") / len(answered))
        assert metrics["calls_to_a"][step] + metrics["calls_to_b"][step] == pytest.approx(1)
        called.update(answered)
    assert called.keys() == {"a", "b"}
    with pytest.raises(ValueError, match=r"teacher_size\.a was 2\.0, is 3\.0"):
        train(output_dir=tmp_path / "whole", **settings | {"teacher_size": sizes | {"a": 3.0}}, **options)
    swapped = {"teacher": "a=teacher b=student"}
    with pytest.raises(ValueError, match=r"teachers\S* was"):
        train(output_dir=tmp_path / "whole", **settings | swapped, **options)

    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = control.should_training_stop = True

    train(output_dir=tmp_path / "stopped", **settings, **options, callbacks=[Stops()])
    assert read_metrics(tmp_path / "stopped")["step"].tolist() == [1]
    train(output_dir=tmp_path / "stopped", **settings, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")
