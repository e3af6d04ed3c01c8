"""The relay against the slow reference, model.generate, itself in other batches, and its own forks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import slow_relay
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from relaylab.engine.engine import Engine
from relaylab.engine.load import embedded_tokenizer, load_engine
from relaylab.relay.call_rules import CallAt, CallEvery, CallWhenUnsure
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.relay.sequence import CallClosed, CallOpened, Done, TokenEvent
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, Segment, TeacherOutput
from relaylab.tasks.suites import SUITES, problem
from relaylab.trace import Trace

QUESTIONS = [problem(SUITES[i % len(SUITES)], i).question for i in range(64)]


def random_engine(kind: str, seed: int) -> Engine:
    """A tiny random model of another architecture or head layout, with the embedded tokenizer."""
    tokenizer = embedded_tokenizer()
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    if kind == "qwen3":
        return Engine(Qwen3ForCausalLM(Qwen3Config(**sizes)), tokenizer, name=kind)
    return Engine(LlamaForCausalLM(LlamaConfig(**sizes | {"num_key_value_heads": 4})), tokenizer, name=kind)


@pytest.fixture(scope="module")
def engines():
    return {
        "embedded": (load_engine("warmup"), load_engine("teacher")),
        "qwen3": (random_engine("qwen3", 0), random_engine("qwen3", 1)),
        "llama": (random_engine("llama", 0), random_engine("llama", 1)),
    }


def without_latency(trace):
    return trace.to_dict() | {"calls": [replace(c, latency=None, forced=False) for c in trace.calls]}


def texts(traces):
    return [t.completion_ids for t in traces]


@pytest.mark.parametrize("kind", ["embedded", "qwen3", "llama"])
def test_without_calls_greedy_equals_generate(engines, kind):
    engine = engines[kind][0]
    ours = Relay(engine, NoTeacher(), max_tokens=40).run(QUESTIONS[:12])
    # The relay forbids calls here; generate must not be able to write one either for the comparison to mean something.
    engine.tokenizer.padding_side = "left"
    prompts = [engine.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS[:12]]
    batch = engine.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    bad = [[i] for i, b in enumerate(engine.text.bytes) if b"<call" in b]
    theirs = engine.model.generate(**batch, max_new_tokens=40, do_sample=False, bad_words_ids=bad)
    for trace, row in zip(ours, theirs[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        assert trace.completion_ids == row[: len(trace.completion_ids)]
        assert set(row[len(trace.completion_ids) :]) <= {engine.tokenizer.pad_token_id}
        assert trace.stop == ("end" if row[len(trace.completion_ids) - 1] in engine.end_ids else "length")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["embedded", "qwen3", "llama"])
def test_a_ragged_batch_equals_the_slow_reference(engines, kind, temperature):
    """Calls at different times in each row, by the student itself and by a policy; ids, sources, calls, log-probs."""
    student, teacher = engines[kind]
    rows = 6

    def places(seed):
        return {(seed * 5) % 17: 3, 20 + seed % 7: 1, 34 + seed % 11: 12}

    relay = Relay(
        student, LocalTeacher(teacher), max_tokens=60, max_call_tokens=9, temperature=temperature,
        call_rule=lambda state: places(state.seed).get(state.position), record=True,
    )  # fmt: skip
    fast = relay.run(QUESTIONS[:rows], seeds=range(10, 10 + rows))
    for i, trace in enumerate(fast):
        slow = slow_relay(
            student.model, teacher.model, student.tokenizer, trace.prompt_ids, end_ids=student.end_ids, max_tokens=60,
            seed=10 + i, temperature=temperature, call_rule=places(10 + i).get, caps=9,
        )  # fmt: skip
        assert (trace.completion_ids, trace.source, trace.stop) == (slow.ids, slow.source, slow.stop)
        assert [(c.start, c.end, c.delivered) for c in trace.answered] == slow.calls
        known = [(a, b) for a, b in zip(trace.logprobs, slow.logprobs, strict=True) if a is not None]
        assert max(abs(a - b) for a, b in known) < 1e-4
        # Only an answer at the very end, and the command before it, were never looked at by the student.
        unknown = [k for k, p in enumerate(trace.logprobs) if p is None]
        assert unknown == list(range(len(trace.logprobs) - len(unknown), len(trace.logprobs)))
        assert {trace.source[k] for k in unknown} <= {"t", "c"}


@pytest.mark.parametrize(("kind", "call_end"), [("embedded", "line"), ("embedded", "answer"), ("qwen3", "line")])
def test_a_turn_that_ends_with_the_line_or_the_answer_equals_the_slow_reference(engines, kind, call_end):
    student, teacher = engines[kind]

    def run(questions, caps=None, **options):
        relay = Relay(student, LocalTeacher(teacher), max_tokens=60, max_call_tokens=caps, call_end=call_end,
                      call_rule=CallAt({3: 1, 17: 1, 30: 2}), **options)  # fmt: skip
        return relay.run(questions)

    for caps in (None, 4):
        fast, small = run(QUESTIONS[:6], caps), run(QUESTIONS[:6], caps, batch_size=2)
        assert [without_latency(t) for t in small] == [without_latency(t) for t in fast]
        for trace in fast:
            slow = slow_relay(
                student.model, teacher.model, student.tokenizer, trace.prompt_ids, end_ids=student.end_ids,
                max_tokens=60, call_rule={3: 1, 17: 1, 30: 2}.get, caps=caps, call_end=call_end,
            )  # fmt: skip
            assert (trace.completion_ids, trace.source, trace.stop) == (slow.ids, slow.source, slow.stop)
            assert [(c.start, c.end, c.delivered) for c in trace.answered] == slow.calls
            for c in trace.answered:
                text = "".join(trace.pieces[c.end : c.end + c.delivered])
                assert (c.finish_reason == "line") == (call_end == "line" and "\n" in text)
        reasons = {c.finish_reason for t in fast for c in t.answered}
        assert kind == "qwen3" or reasons >= {"line" if call_end == "line" and not caps else "length"}
        assert caps or all(c.granted == 60 - c.end for t in fast for c in t.answered)
        fork = list(Relay(student, LocalTeacher(teacher), max_tokens=60, max_call_tokens=caps, call_end=call_end,
                          call_rule=CallAt({17: 1, 30: 2})).fork(fast[0], fast[0].calls[0].end))[-1].trace  # fmt: skip
        assert without_latency(fork) == without_latency(fast[0])


def test_a_teacher_that_knows_no_lines_is_cut_at_the_end_of_the_line(engines):
    student, _ = engines["embedded"]
    teacher = ScriptedTeacher(["one\ntwo\nthree"])
    relay = Relay(student, teacher, call_rule=CallAt({4: 2}), max_tokens=60, call_end="line")
    trace = relay.run([QUESTIONS[0]])[0]
    (call,) = trace.answered
    assert "".join(trace.pieces[call.end : call.end + call.delivered]) == "one\n"
    assert (call.finish_reason, call.written) == ("line", 13)  # all that it wrote is paid for
    assert teacher.requests[0][1] == call.granted == 60 - call.end


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["embedded", "qwen3"])
def test_a_row_alone_equals_the_row_in_a_batch_of_64(engines, kind, temperature):
    student, teacher = engines[kind]

    def run(questions, seeds, **options):
        relay = Relay(student, LocalTeacher(teacher, temperature=temperature), max_tokens=48,
                      temperature=temperature, call_rule=CallEvery(13, 4), **options)  # fmt: skip
        return texts(relay.run(questions, seeds=seeds))

    together = run(QUESTIONS, range(64))
    assert together == run(QUESTIONS, range(64), batch_size=7)
    for i in range(0, 64, 9):
        assert run([QUESTIONS[i]], [i]) == [together[i]]
    assert len({tuple(t) for t in together}) > 32  # rows differ at all


def test_no_token_is_run_twice(engines):
    """Student: all up to the last token that it had to choose. Teacher: its view, but for its own last word."""
    for kind, every in (("embedded", 5), ("qwen3", 9), ("llama", 3)):
        student, teacher = engines[kind]
        local = LocalTeacher(teacher)
        relay = Relay(student, local, max_tokens=70, call_rule=CallEvery(every, 4))
        s, t = student.forwarded, teacher.forwarded
        traces = relay.run(QUESTIONS[:8])
        assert sum(len(x.answered) for x in traces) > 16
        assert student.forwarded - s == sum(len(x.prompt_ids) + _last_choice(x) for x in traces)
        expected = 0
        for x in traces:
            if not x.answered:
                continue
            last = x.answered[-1]
            view = len(x.prompt_ids) + sum(x.source[i] != "c" for i in range(last.end)) + last.written
            expected += view - (last.finish_reason == "length" and last.written > 0)
        assert teacher.forwarded - t == expected


def test_the_rollouts_of_a_group_share_the_reading_of_their_prompt(engines):
    student, teacher = engines["embedded"]
    relay = Relay(student, LocalTeacher(teacher), max_tokens=60, call_rule=CallEvery(9, 4), temperature=1.0)
    alone = [relay.run([QUESTIONS[k]], seeds=[seed])[0] for k in (0, 1) for seed in range(8)]
    s, t = student.forwarded, teacher.forwarded
    together = relay.run([QUESTIONS[k] for k in (0, 1) for _ in range(8)], seeds=[*range(8), *range(8)])
    assert texts(together) == texts(alone)
    prompts = [len(together[k].prompt_ids) - 1 for k in (0, 8)]
    apart = sum(len(x.prompt_ids) + _last_choice(x) for x in together)
    assert student.forwarded - s == apart - 7 * sum(prompts)
    assert all(x.answered for x in together)
    views = [len(x.prompt_ids) + sum(x.source[i] != "c" for i in range(x.answered[-1].end)) for x in together]
    own = sum(x.answered[-1].written - (x.answered[-1].finish_reason == "length") for x in together)
    assert teacher.forwarded - t == sum(views) + own - 7 * sum(prompts)


def _last_choice(trace) -> int:
    """The last completion position for which the student's distribution was needed: a token of its own, or the
    beginning of a command that a policy decided on."""
    forced = {i for c in trace.calls if c.forced for i in range(c.start + 1, c.end)}
    return max(i for i, source in enumerate(trace.source) if source != "t" and i not in forced)


def test_forks_replay_exactly_and_change_one_thing(engines):
    student, teacher = engines["embedded"]
    relay = Relay(student, LocalTeacher(teacher), max_tokens=90, temperature=0.7, call_rule=CallAt({20: 5, 50: 4}))
    trace = relay.run([QUESTIONS[4]], seeds=[3])[0]
    call = trace.answered[0]
    for at in (0, 9, call.start, call.end, call.end + call.delivered, len(trace.completion_ids)):
        again = list(relay.fork(trace, at))[-1].trace
        assert again.to_dict() | {"calls": None} == trace.to_dict() | {"calls": None}, at

    free = Relay(student, LocalTeacher(teacher), max_tokens=90, temperature=0.7)
    resized = list(free.fork(trace, call.start, call=2))[-1].trace
    assert resized.completion_ids[: call.start] == trace.completion_ids[: call.start]
    assert (resized.calls[0].requested, resized.calls[0].delivered) == (2, 2)
    end = resized.calls[0].end
    assert resized.completion_ids[end : end + 2] == trace.completion_ids[call.end : call.end + 2]

    # In one stream each trace may have a call of its own; a fork keeps the id and the problem, and is not graded.
    named = replace(trace, id="a", problem={"question": "q"}, correct=True)
    many = free.forks([named, named], [call.start, 9], call=[2, 7], write_call=[True, False])
    list(many)
    assert many.traces[0].completion_ids == resized.completion_ids
    assert [t.calls[0].requested for t in many.traces] == [2, 7]
    assert (many.traces[1].calls[0].start, many.traces[1].calls[0].end) == (9, 9)
    assert [(t.id, t.problem, t.correct) for t in many.traces] == [("a", {"question": "q"}, None)] * 2
    with pytest.raises(ValueError, match="1 values of call for 2 traces"):
        free.forks([named, named], [9, 9], call=[2])

    forbidden = list(free.fork(trace, call.start, forbid=True))[-1].trace
    assert forbidden.completion_ids[: call.start] == trace.completion_ids[: call.start]
    assert forbidden.completion_ids[call.start] != trace.completion_ids[call.start]
    assert not any(call.start <= c.start < call.start + 8 for c in forbidden.calls)

    events = list(free.fork(trace, 7, call=3))
    forced = events[-1].trace
    assert [e.position for e in events if isinstance(e, TokenEvent)] == list(range(7, len(forced.completion_ids)))
    assert [type(e) for e in events if not isinstance(e, TokenEvent)][:2] == [CallOpened, CallClosed]
    assert forced.source[:7] == "sssssss"
    assert (forced.calls[0].start, forced.calls[0].forced, forced.calls[0].delivered) == (7, True, 3)
    with pytest.raises(ValueError, match="cannot be forked"):
        relay.fork(trace, 10_000)
    with pytest.raises(ValueError, match=f"the call before position {call.end} is answered first"):
        relay.fork(trace, call.end, call=3)


def test_events_tell_the_trace(engines):
    student, teacher = engines["embedded"]
    relay = Relay(student, LocalTeacher(teacher), max_tokens=40, call_rule=CallAt({5: 3, 20: 2}))
    events = list(relay.stream(QUESTIONS[:3]))
    done = {e.row: e.trace for e in events if isinstance(e, Done)}
    for row, trace in done.items():
        tokens = [e for e in events if isinstance(e, TokenEvent) and e.row == row]
        assert [e.id for e in tokens] == trace.completion_ids
        assert [e.position for e in tokens] == list(range(len(tokens)))
        assert "".join(e.text for e in tokens) == trace.text
        assert ["t" if e.source == "t" else "s" for e in tokens] == ["t" if c == "t" else "s" for c in trace.source]
        opened = [e for e in events if isinstance(e, CallOpened) and e.row == row]
        closed = [e for e in events if isinstance(e, CallClosed) and e.row == row]
        assert len(opened) == len(closed) == len(trace.answered) >= 2


def test_a_closed_stream_keeps_what_there_is_and_frees_the_caches(engines):
    student, teacher = engines["embedded"]
    stream = Relay(student, LocalTeacher(teacher), max_tokens=40).stream(QUESTIONS[:3])
    for _ in range(20):
        next(stream)
    stream.close()
    assert [t.stop for t in stream.traces] == ["interrupted"] * 3
    assert sum(len(t.completion_ids) for t in stream.traces) in (20, 21)
    assert not student.slots
    assert not teacher.slots


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_forbidden_calls_cannot_be_written(engines, temperature):
    student, _ = engines["embedded"]
    relay = Relay(student, NoTeacher(), max_tokens=60, temperature=temperature)
    for trace in relay.run(QUESTIONS[:32]):
        assert "<call" not in trace.text
        assert not trace.calls


def test_caps_bound_what_is_granted(engines):
    student, teacher = engines["qwen3"]

    def run(call_rule=None, **caps):
        limits = RelayConfig(**{"max_tokens": 60} | caps)
        return Relay(student, LocalTeacher(teacher), config=limits, call_rule=call_rule or CallEvery(6, 8)).run(
            QUESTIONS[:8]
        )

    assert max(len(t.answered) for t in run()) >= 3
    for trace in run(max_calls=2):
        assert len(trace.answered) == 2
        assert trace.source[trace.answered[1].end + 8 :].strip("s") == ""  # the policy is not asked behind its cap
    assert all(c.granted == 5 for t in run(max_call_tokens=5) for c in t.answered[:2])
    for trace in run(max_teacher_tokens=11):
        assert trace.count("t") == 11
        assert [c.granted for c in trace.answered] == [8, 3]
    for trace in run(max_tokens=25):
        assert len(trace.completion_ids) <= 25
    with pytest.raises(ValueError, match="max_tokens is 0"):
        RelayConfig(max_tokens=0)


def test_a_refused_call_of_the_student_is_recorded_and_it_goes_on(engines):
    """A cap of no calls at all, and a student that is made to write one: a replayed prefix does it."""
    student, teacher = engines["embedded"]
    free = Relay(student, LocalTeacher(teacher), max_tokens=60, call_rule=CallAt({5: 4}))
    text = free.run([QUESTIONS[0]])[0]
    command = text.calls[0]
    cut = slice(command.end - 1)
    source = text.source[cut].replace("c", "s")
    prefix = Trace(text.prompt, text.prompt_ids, text.completion_ids[cut], source, text.pieces[cut])

    strict = Relay(student, LocalTeacher(teacher), max_tokens=60, max_calls=0)
    stream = strict.fork(prefix, command.end - 1)
    sequence = stream._sequences[0]
    sequence.write_student(text.completion_ids[command.end - 1])  # the ">" that closes it
    trace = next(e for e in stream if isinstance(e, Done)).trace
    assert (trace.calls[0].status, trace.calls[0].granted, trace.calls[0].requested) == ("refused", 0, 4)
    assert trace.count("t") == 0
    assert len(trace.completion_ids) > command.end
    again = list(strict.fork(trace, 20))[-1].trace  # a refused call stays refused, and the turn goes on
    assert again.completion_ids == trace.completion_ids
    assert again.calls == trace.calls


def test_a_teacher_that_ends_the_answer_without_a_word_is_replayed_as_it_was(engines):
    student, _ = engines["embedded"]
    teacher = ScriptedTeacher([TeacherOutput("", "stop")])
    relay = Relay(student, teacher, call_rule=CallAt({6: 3}), max_tokens=40)
    trace = relay.run([QUESTIONS[0]])[0]
    assert (trace.stop, trace.calls[-1].status, trace.calls[-1].delivered) == ("teacher_end", "answered", 0)
    again = list(relay.fork(trace, len(trace.completion_ids)))[-1].trace
    assert without_latency(again) == without_latency(trace)
    assert len(teacher.requests) == 1  # it is not asked again


def test_a_policy_cannot_call_where_calls_are_forbidden(engines):
    student, teacher = engines["embedded"]
    trace = Relay(student, NoTeacher(), max_tokens=40, call_rule=CallAt({3: 4})).run([QUESTIONS[0]])[0]
    assert not trace.calls
    relay = Relay(student, LocalTeacher(teacher), max_tokens=40, call_rule=CallAt({3: 4}))
    trace = relay.run([QUESTIONS[0]])[0]
    assert trace.calls[0].start == 3
    forbidden = list(relay.fork(trace, 3, forbid=True))[-1].trace
    assert not any(3 <= c.start < 11 for c in forbidden.calls)
    with pytest.raises(ValueError, match="calls are forbidden"):
        Relay(student, NoTeacher()).fork(trace, 3, call=2)


def test_a_dead_teacher_does_not_drown_the_student():
    student = load_engine("student")  # it calls nobody by itself
    teacher = ScriptedTeacher([TeacherOutput("", "error", error="dead")])
    relay = Relay(student, teacher, call_rule=CallWhenUnsure(0.0, 3), max_tokens=120)
    trace = relay.run([QUESTIONS[3]])[0]
    assert trace.count("s") >= len(trace.calls) > 3  # after each failed call it writes at least a token of its own
    assert len(relay.run([QUESTIONS[3]])[0].calls) == len(trace.calls)
    some = Relay(student, teacher, call_rule=CallWhenUnsure(0.0, 3, most=2), max_tokens=120)
    assert len(some.run([QUESTIONS[3]])[0].calls) == 2  # tries count, not answers


def test_entropy_policy_calls_where_the_student_is_unsure(engines):
    student, teacher = engines["embedded"]
    rule = CallWhenUnsure(0.5, 3, most=4)
    relay = Relay(student, LocalTeacher(teacher), call_rule=rule, record=True, max_tokens=120)
    forced = 0
    for trace in relay.run(QUESTIONS[:9]):
        for call in trace.calls:
            if call.forced:
                forced += 1
                assert trace.entropies[call.start] > 0.5
        calm = [i for i, s in enumerate(trace.source) if s == "s" and sum(c.start < i for c in trace.answered) < 4]
        assert all(trace.entropies[i] <= 0.5 for i in calm)
    assert forced > 3


def test_a_scripted_teacher_and_a_student_with_another_tokenizer(engines):
    """Text that crosses is tokenised once on arrival; the student's command is not part of what the teacher sees."""
    student, _ = engines["embedded"]
    teacher = ScriptedTeacher(lambda view: "é<call>9</call>x"[: view.n])
    relay = Relay(student, teacher, call_rule=CallAt({4: 30}), max_tokens=60)
    trace = relay.run([QUESTIONS[0]])[0]
    call = next(c for c in trace.calls if c.forced)
    assert "".join(trace.pieces[call.end : call.end + call.delivered]) == "é<call>9</call>x"
    assert teacher.requests[0] == ("".join(trace.pieces[:4]), 30)
    assert sum(c.status == "answered" for c in trace.calls) == len(teacher.requests)  # the teacher's tag called nobody
    assert "<call>9</call>" in trace.teacher_view


def test_bad_arguments_say_what_to_do(engines):
    student, teacher = engines["embedded"]
    with pytest.raises(ValueError, match="carry_on"):
        Relay(student, LocalTeacher(teacher), on_failure="ignore")
    with pytest.raises(ValueError, match="list of prompts"):
        Relay(student, NoTeacher()).run("one text")
    with pytest.raises(ValueError, match="2 seeds for 1"):
        Relay(student, NoTeacher()).run(["a"], seeds=[1, 2])
    long = Relay(student, NoTeacher()).run(["word " * 3000, QUESTIONS[0]])
    assert [t.stop for t in long] == ["context", "end"]


def test_two_streams_over_one_teacher_do_not_take_each_others_answers(engines):
    student, teacher = engines["embedded"]
    relay = Relay(student, LocalTeacher(teacher), call_rule=CallAt({4: 6, 20: 5}), max_tokens=60)
    questions = [problem(s, 1).question for s in ("savings", "tiles", "depot")]
    alone = [relay.run([q]) for q in questions]
    streams = [relay.stream([q], seeds=[0]) for q in questions]
    live = list(streams)
    while live:
        live = [s for s in live if next(s, None) is not None]  # one event of each in turn
    for stream, (expected,) in zip(streams, alone):
        assert stream.traces[0].completion_ids == expected.completion_ids
        assert stream.traces[0].source == expected.source


def test_the_call_of_a_fork_is_for_the_tokens_that_it_asks_for_wherever_calls_end(engines):
    student, teacher = engines["embedded"]
    relay = Relay(student, LocalTeacher(teacher), max_tokens=80, call_end="line", max_calls=2)
    (trace,) = relay.run(QUESTIONS[:1])
    for n in (2, 40):
        fork = list(relay.fork(trace, 5, call=n))[-1].trace
        call = fork.answered[0]
        assert (call.start, call.requested, call.granted, call.finish_reason) == (5, n, n, "length")
        assert call.delivered == n
        replayed = list(relay.fork(fork, call.end))[-1].trace
        assert without_latency(replayed) == without_latency(fork), "it is for them when it is asked again, too"
    assert "\n" in "".join(fork.pieces[call.end : call.end + 39]), "the line does not end it"
    again = list(relay.fork(trace, 5, call=2))[-1].trace
    later = list(Relay(student, LocalTeacher(teacher), max_tokens=80, call_end="line", max_calls=2,
                       call_rule=CallAt({20: 1})).fork(trace, 5, call=2))[-1].trace  # fmt: skip
    assert later.completion_ids[:20] == again.completion_ids[:20]
    assert later.answered[1].granted == 80 - later.answered[1].end, "other calls are for their line"


def test_a_fork_at_a_calls_end_asks_nobody_where_calls_are_forbidden(engines):
    student, teacher = engines["embedded"][0], LocalTeacher(engines["embedded"][1])
    trace = Relay(student, teacher, call_rule=CallAt({5: 4}), max_tokens=40).run(QUESTIONS[:1])[0]
    alone = Relay(student, teacher, forbid_calls=True, max_tokens=40)
    fork = list(alone.fork(trace, trace.calls[0].end))[-1].trace
    assert fork.count("t") == 0
    assert [c.status for c in fork.calls] == ["refused"]


def test_a_fork_of_a_raw_prompt_has_no_template_either(engines):
    student, teacher = engines["embedded"][0], LocalTeacher(engines["embedded"][1])
    relay = Relay(student, teacher, call_rule=CallAt({5: 4}), max_tokens=30)
    text = "The tiles of a full row: 83+21="
    trace = relay.run([Segment(text)])[0]
    forks = [list(relay.fork(trace, 2, call=9, **own))[-1].trace for own in ({}, {"prompt": Segment(text)})]
    assert forks[0].completion_ids == forks[1].completion_ids
    assert list(relay.fork(trace, trace.calls[0].start))[-1].trace.completion_ids == trace.completion_ids
    bare = random_engine("qwen3", 0)
    bare.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"  # a chat that looks raw
    other = Relay(bare, LocalTeacher(engines["embedded"][1]), call_rule=CallAt({1: 4}), max_tokens=12)
    chats = other.run([text])[0]
    assert list(other.fork(chats, 1))[-1].trace.completion_ids == chats.completion_ids
    chat = list(relay.fork(trace, 2, call=9, prompt=text))[-1].trace
    assert chat.completion_ids != forks[0].completion_ids, "the teacher of a chat writes something else"
