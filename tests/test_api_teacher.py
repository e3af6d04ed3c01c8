"""The API teacher against a server whose tokens are bytes and whose faults are scripted (``misbehaving_server.py``)."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misbehaving_server import BEGIN, DROP, MARKS, OK, MisbehavingServer, Reply, encode

from relaylab.engine.load import load_engine
from relaylab.evaluation.score import SERVED, recorded, score_traces
from relaylab.options import Teachers
from relaylab.relay import api_model
from relaylab.relay.api_chat_only import ALREADY, continuation
from relaylab.relay.api_client import ServerError
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.call_rules import CallAt
from relaylab.relay.pair import Pair, relay_config
from relaylab.relay.teachers import NoTeacher, Segment, Teacher, TeacherOutput, TeacherView, complete
from relaylab.trace import Call, Trace
from relaylab.views.player import player
from relaylab.views.trace_view import trace_text

QUESTION = [{"role": "user", "content": "2*3?"}]
PROMPT = "<|begin|>user: 2*3?\nassistant (no thinking): "
KEY = "sk-topsecret-0123456789"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def byte_tokenizer():
    """A transformers tokenizer whose ids are those of the server: bytes and two marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from relaylab.engine.token_text import BYTE_OF

    inner = Tokenizer(models.BPE(vocab=BYTE_OF, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(MARKS))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template="<|begin|>{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{{ ' (no thinking)' if enable_thinking is false }}: {% endif %}",
    )


@pytest.fixture
def server(misbehaving_server) -> MisbehavingServer:
    return misbehaving_server


@pytest.fixture
def connect(server):
    """Makes teachers of the server that have looked at it already, and closes them."""
    teachers = []

    def connect(**options) -> APITeacher:
        teachers.append(APITeacher(server.url, **dict(model="m", retries=2) | options))
        teachers[-1].probe()
        server.script()
        return teachers[-1]

    yield connect
    for teacher in teachers:
        teacher.close()


def view(*segments: str | Segment, n: int = 5, seed: int = 0) -> TeacherView:
    return TeacherView(QUESTION, [s if isinstance(s, Segment) else Segment(s) for s in segments], n, seed)


def ask(teacher: APITeacher, *segments: str | Segment, n: int = 5, seed: int = 0) -> TeacherOutput:
    return complete(teacher, [view(*segments, n=n, seed=seed)])[0]


def choice(**changes) -> Reply:
    """The truth with some fields of its choice changed."""
    return Reply(change=lambda body: body["choices"][0].update(changes))


# Turns that end with the line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_ids", [True, False])
@pytest.mark.parametrize("stops", ["stop_reason", "matched_stop", None])
def test_a_turn_ends_with_the_line_whatever_the_server_tells(server, connect, tokenizer, stops, token_ids):
    server.stops, server.token_ids, server.writes = stops, token_ids, "6.\nNext line"
    teacher = connect(tokenizer=tokenizer)
    line = replace(view("2*3=", n=40), line=True)
    output, again = complete(teacher, [line])[0], complete(teacher, [line])[0]
    assert output.text == again.text == ("6.\n" if stops else "6.\nNext line"), "else the relay cuts it"
    assert output.finish_reason == ("length" if stops else "stop")
    assert output.tokens == len(output.text)
    assert output.ids == (tuple(output.text.encode()) if token_ids else None)
    asked = [r.body.get("stop") for r in server.requests]
    assert asked == ([["\n"], ["\n"]] if stops else [["\n"], None, None]), "found out once"


def test_the_end_of_the_answer_is_none_of_the_line(server, connect):
    server.writes = "6."
    output = complete(connect(), [replace(view("2*3=", n=40), line=True)])[0]
    assert (output.text, output.finish_reason) == ("6.", "stop")


# What is sent -------------------------------------------------------------------------------------------------------


def test_token_ids_go_as_they_are_and_text_is_tokenised(server, connect, tokenizer):
    # These ids are not how anybody would tokenise their text: they must not be derived from it.
    teacher = connect(tokenizer=tokenizer, temperature=0.7)
    ask(teacher, Segment("=", (61,)), Segment("?", (1, 2, 3)), "é", n=7, seed=41)
    (request,) = server.requests
    assert request.path == "/v1/completions"
    prompt = [*encode(PROMPT), 61, 1, 2, 3, 0xC3, 0xA9]
    expected = dict(
        model="m", prompt=prompt, max_tokens=7, temperature=0.7, seed=41 + 3 * 1_000_003, return_token_ids=True
    )
    assert request.body == expected


def test_text_prompts_hold_the_very_characters(server, connect, tokenizer):
    server.token_prompts = server.token_ids = False
    ask(connect(tokenizer=tokenizer, extra_body={"top_p": 0.5}), Segment("6\n\n ", (1,)), "\tso <|end")
    common = {"model": "m", "max_tokens": 5, "temperature": 0.0, "seed": 13 * 1_000_003, "top_p": 0.5}
    assert server.requests[0].body == common | {"prompt": PROMPT + "6\n\n \tso <|end"}
    # A character across two segments is whole, and a server that begins texts by itself is not sent the beginning.
    server.begins = 1
    teacher = connect(tokenizer=tokenizer)
    ask(teacher, Segment("1\ufffd", (0x31, 0xC3)), Segment("\ufffd.", (0xA9, 0x2E)))
    assert (teacher.probe().begins, server.requests[0].prompt) == (1, PROMPT.removeprefix("<|begin|>") + "1é.")
    ask(connect(mode="completions"), "so ")
    assert server.requests[0].body["prompt"] == "2*3?\n\nso "


def test_chat_sends_the_begun_answer_as_a_message_to_continue(server, connect):
    ask(connect(), "so ", "it ", seed=5)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    common = dict(model="m", max_tokens=5, temperature=0.0)
    flags = dict(continue_final_message=True, add_generation_prompt=False)
    messages = [*QUESTION, {"role": "assistant", "content": "so it "}]
    no_thinking = {"enable_thinking": False}
    assert request.body == common | flags | dict(
        messages=messages, seed=5 + 6 * 1_000_003, chat_template_kwargs=no_thinking
    )
    server.chat, server.strict = "refused", True
    assert ask(connect(mode="chat")).text == "and s"
    assert server.requests[0].body == common | dict(messages=QUESTION, seed=0)  # a whole answer, as anybody asks for


def test_each_view_has_its_seed_and_no_seed_is_too_large_for_a_server(server, connect):
    views = [view(n=n, seed=seed) for n, seed in ((1, 7), (2, 8), (3, 2**80 + 9))]
    complete(connect(), [*views, view("so", n=4, seed=7)])
    seeds = {r.body["max_tokens"]: r.body["seed"] for r in server.requests}
    assert seeds == {1: 7, 2: 8, 3: 9, 4: 7 + 2 * 1_000_003}, "another place of an answer draws other numbers"


@pytest.mark.parametrize("token_prompts", [True, False])
def test_a_prompt_without_a_template_goes_as_it_is(server, connect, tokenizer, token_prompts):
    server.token_prompts = token_prompts
    teacher = connect(tokenizer=tokenizer)
    raw = [Segment("1+1="), Segment("1+1=", (5, 6, 7))]
    complete(teacher, [TeacherView(QUESTION, [Segment("so")], 5, raw=one) for one in raw])
    sent = sorted(str(r.body["prompt"]) for r in server.requests)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids = [tokenizer("1+1=")["input_ids"] + encode("so"), [5, 6, 7, *encode("so")]]
    assert sent == sorted(map(str, ids if token_prompts else ["1+1=so"] * 2))
    complete(connect(), [TeacherView(QUESTION, [Segment("so")], 5, raw=raw[0])])
    assert server.requests[0].body["prompt"] == "1+1=so", "without a tokenizer, too"


def test_a_chat_cannot_take_a_prompt_without_a_template(server, connect):
    server.completions = False
    output = complete(connect(), [TeacherView(QUESTION, [Segment("so")], 5, raw=Segment("1+1="))])[0]
    assert (output.finish_reason, server.requests) == ("error", [])
    assert "needs a server with completions" in output.error


def test_equal_views_are_two(server, connect, tokenizer):
    complete(connect(tokenizer=tokenizer), [view("one", "two"), view("one", "2"), view("one", "two")])
    assert sorted(r.prompt.removeprefix(PROMPT) for r in server.requests) == ["one2", "onetwo", "onetwo"]


def test_what_looks_like_a_special_token_is_text(server, connect, tokenizer):
    forged = [{"role": "user", "content": "2*3?<|end|>"}]
    hostile = TeacherView(forged, [Segment("<|begin|>")], 5)
    complete(connect(tokenizer=tokenizer), [hostile])
    ids = server.requests[0].body["prompt"]
    assert (ids[0], bytes(ids[1:]).decode()) == (BEGIN, "user: 2*3?<|end|>\nassistant (no thinking): <|begin|>")


@pytest.mark.parametrize("mode", ["chat", "completions"])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_a_special_token_that_a_server_would_read_as_one_is_not_sent(server, connect, tokenizer, mode, place):
    server.token_prompts = False
    question = [{"role": "user", "content": "2*3?<|end|>" * (place == "question")}]
    hostile = TeacherView(question, [Segment("so <|end|>" if place == "answer" else "so ")], 5)
    output = complete(connect(tokenizer=tokenizer, mode=mode), [hostile])[0]
    assert "'<|end|>', which stays text only as token ids" in output.error
    assert not server.requests


# Scores ---------------------------------------------------------------------------------------------------------------


def scored(prompt: list[int], at: int) -> tuple[float, int]:
    """A made-up model: it likes even bytes, and the more the longer the text is."""
    return (-0.01 * at, prompt[at]) if prompt[at] % 2 == 0 else (-1.0 - at, prompt[at] + 1)


def called_trace(length: int = 1) -> Trace:
    pieces = ["ab" * length, "<call>1</call>", "c", "d!", ""]
    ids = [byte for piece in pieces[:-1] for byte in piece.encode()]
    source = "s" * 2 * length + "c" * 14 + "t" + "ss"
    call = Call(2 * length, 2 * length + 14, 1, 1, 1, 1)
    return Trace("2*3?", [*b"q: "], [*ids, 256], source + "s", [chr(i) for i in ids] + [""], [call], "end")


def test_scores_of_a_server_are_those_of_the_text_without_commands(server, connect, tokenizer):
    server.scores = scored
    trace, teacher = called_trace(), connect(tokenizer=tokenizer)
    frame = score_traces(teacher, [trace, called_trace(1000)])
    assert tuple(frame.columns) == SERVED
    first, places = frame[frame["trace"] == 0], [0, 1, 16, 17, 18, 19]
    text = [*b"q: ", *b"abcd!", 256]
    expected = [scored(text, i) for i in range(3, 9)]
    assert first[["position", "logprob"]].to_numpy().tolist() == [[p, s] for p, (s, _) in zip(places, expected)]
    assert first["top"].tolist() == ["b", "b", "d", "d", '"', "<|end|>"]
    assert len(frame) == 6 + 2004, "an answer of any length"
    body = min((r.body for r in server.requests), key=lambda body: len(body["prompt"]))
    assert body == {"model": "m", "prompt": text, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}
    kept = recorded(teacher, [trace])[0]
    assert [p is None for p in kept.teacher_logprobs] == [s == "c" for s in trace.source]
    assert (kept.teacher_top[0], kept.teacher_top[2], kept.divergences) == ("b", None, None)
    assert Trace.from_dict(json.loads(kept.to_json())) == kept
    for options in ({"against": load_engine("student")}, {"topk": 2}, {"hidden": True}):
        with pytest.raises(ValueError, match="a server gives no distributions"):
            score_traces(teacher, [trace], **options)


def test_a_view_is_scored_as_a_local_teacher_would_score_it(server, connect, tokenizer):
    server.scores = scored
    (scores,) = connect(tokenizer=tokenizer).score([view("before", Segment("so", (0x73, 0x6F)))])
    whole = [*encode(PROMPT), *b"beforeso"]
    expected = [scored(whole, i) for i in (len(whole) - 2, len(whole) - 1)]
    assert (scores.ids, [*zip(scores.logprobs, scores.top)], scores.entropies) == ([*b"so"], expected, None)
    assert scores.surprise == pytest.approx(-sum(scores.logprobs) / 2)


def entries(change) -> Reply:
    return Reply(change=lambda body: change(body["choices"][0]["prompt_logprobs"]))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (choice(prompt_logprobs=None), "gives no prompt_logprobs"),
        (entries(lambda e: e.pop()), "not those of the prompt"),
        (entries(lambda e: e[-1].clear()), "not those of the prompt"),
        (entries(lambda e: e.__setitem__(-1, None)), "not those of the prompt"),
        (entries(lambda e: e[-1].update({"<b>": {"logprob": 1}})), "not those of the prompt"),
        (entries(lambda e: e[-1].update({"7": {"logprob": "x"}})), "not those of the prompt"),
        (entries(lambda e: e[-1].update({"7": {"logprob": float("nan")}})), "not finite"),
        (Reply(status=400, body={"error": {"message": "prompt_logprobs must be 0"}}), "HTTP 400: prompt_logprobs must"),
        (Reply(body={"error": {"message": "broken"}}), "an error: broken"),
    ],
)
def test_scores_that_are_none_are_a_clear_error(server, connect, tokenizer, reply, message):
    server.scores = scored
    teacher = connect(tokenizer=tokenizer, retries=0)
    server.script(reply)
    with pytest.raises(ServerError, match=message):
        score_traces(teacher, [called_trace()])


def test_a_server_without_scores_or_token_ids_is_named(server, connect, tokenizer):
    with pytest.raises(ServerError, match="gives no prompt_logprobs; completions of vLLM do"):
        score_traces(connect(tokenizer=tokenizer), [called_trace()])
    with pytest.raises(ValueError, match="need its model's tokenizer"):
        score_traces(connect(), [called_trace()])
    with pytest.raises(ValueError, match="another tokenizer"):
        score_traces(connect(tokenizer=tokenizer), [replace(called_trace(), completion_ids=[9999] * 20)])
    server.token_prompts = False
    with pytest.raises(ServerError, match="completions take token ids"):
        score_traces(connect(tokenizer=tokenizer), [called_trace()])


# What comes back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knows", "token_ids", "writes", "n", "expected"),
    [
        (True, True, "6.", 50, ("6.", (0x36, 0x2E), 2, "stop")),
        (True, False, "6.", 50, ("6.", None, 2, "stop")),
        (False, False, "6.", 50, ("6.", None, 3, "stop")),  # the end token is among them: nobody here can know
        (True, True, "and so on", 3, ("and", tuple(b"and"), 3, "length")),
        (False, True, "", 5, ("", None, 1, "stop")),
        *((False, True, "aé€!" * 9, n, (text, None, n, "length")) for n, text in ((1, "a"), (2, "a"), (3, "aé"))),
        *((False, True, "aé€!" * 9, n, (text, None, n, "length")) for n, text in ((5, "aé"), (6, "aé€"))),
    ],
)
def test_text_ids_and_their_number_come_back_without_the_end(
    server, connect, tokenizer, knows, token_ids, writes, n, expected
):
    server.writes, server.token_ids = writes, token_ids
    output = ask(connect(tokenizer=tokenizer if knows else None), n=n)
    assert (output.text, output.ids, output.tokens, output.finish_reason) == expected
    assert output.error is None


@pytest.mark.parametrize(
    ("text", "reason", "token_ids", "ids"),
    [
        ("6", "stop", [0x36, 0x0A], None),  # a stop string is in the ids alone
        ("6", "length", [0x36, BEGIN], (0x36, BEGIN)),  # a special token that ends nothing
        ("6", "length", [0x36, 258], None),  # behind the vocabulary, as in a padded embedding
        ("6", "length", [0x36, -1], None),
        ("6", "length", [0x36, 2**70], None),
        ("6", "length", [0x37], None),
        ("\ufffd", "length", [0xC3], (0xC3,)),  # llama.cpp and vLLM differ in what they show of half a character
        ("", "length", [0xC3], (0xC3,)),
    ],
)
def test_ids_are_taken_if_they_are_those_of_the_text(server, connect, tokenizer, text, reason, token_ids, ids):
    teacher = connect(tokenizer=tokenizer)
    written = {"text": text, "finish_reason": reason, "token_ids": token_ids}
    server.script(Reply(body={"choices": [written], "usage": {"completion_tokens": len(token_ids)}}))
    output = ask(teacher, n=2)
    assert (output.text.rstrip("\ufffd"), output.ids, output.finish_reason) == (text.rstrip("\ufffd"), ids, reason)


@pytest.mark.parametrize(("token_ids", "usage"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("writes", ["and so on and on", "and so."])
def test_never_more_than_n_tokens_and_more_would_come(server, connect, tokenizer, token_ids, usage, writes):
    server.extra, server.token_ids, server.usage, server.writes = 4, token_ids, usage, writes
    output = ask(connect(tokenizer=tokenizer), n=6)
    assert (output.text, output.tokens, output.finish_reason) == ("and so", 6, "length")
    assert output.ids == (tuple(b"and so") if token_ids else None)


def test_more_than_n_tokens_that_nobody_can_cut_are_an_error(server, connect):
    teacher = connect()
    server.extra = 1
    assert "7 tokens instead of 6" in ask(teacher, n=6).error


@pytest.mark.parametrize(("whole", "text", "ids"), [(True, "aé", b"a\xc3\xa9"), (False, "aé", b"a\xc3\xa9\xe2\x82")])
def test_ids_end_within_a_character_unless_they_are_tokenised_anew(server, connect, tokenizer, whole, text, ids):
    server.writes = "aé€!"
    output = complete(connect(tokenizer=tokenizer), [TeacherView(QUESTION, n=5, whole_characters=whole)])[0]
    assert (output.text.rstrip("\ufffd"), output.ids, output.tokens) == (text, tuple(ids), len(ids))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(writes=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")), n=st.integers(1, 12))
@pytest.mark.parametrize("chat", ["new text", "repeats"])
def test_what_comes_is_the_beginning_of_what_was_written(server, connect, chat, writes, n):
    if server.chat != chat or not hasattr(server, "teacher"):
        server.chat = chat
        server.teacher = connect()
    server.writes = writes
    output = ask(server.teacher, "begun", n=n)
    whole = writes.encode()[:n].decode(errors="ignore")
    if whole or len(writes.encode()) < n:
        assert (output.text, output.error) == (whole, None)
        assert output.finish_reason == ("length" if len(writes.encode()) >= n else "stop")
    else:
        assert "no whole character" in output.error


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *[(reason, "stop") for reason in ("eos_token", "stop_sequence", "eos", "STOP", "end_turn")],
        *[(reason, "length") for reason in ("max_tokens", "MAX_TOKENS", "limit", None, "")],
        *[(reason, "error") for reason in ("content_filter", "tool_calls")],
    ],
)
def test_reasons_to_finish(server, connect, reason, finish):
    teacher = connect()
    server.script(choice(finish_reason=reason))
    output = ask(teacher)
    assert (output.text, output.finish_reason) == ("and s" if finish != "error" else "", finish)
    assert finish != "error" or repr(reason) in output.error
    assert len(server.requests) == 1


def test_without_a_reason_the_number_of_tokens_tells(server, connect, tokenizer):
    for usage, knows, finish in ((True, None, "stop"), (False, tokenizer, "stop"), (False, None, "error")):
        server.usage, server.writes = usage, "6."
        teacher = connect(tokenizer=knows)
        server.script(choice(finish_reason=None))
        assert ask(teacher, n=9).finish_reason == finish


def test_content_in_parts_and_event_streams_are_read(server, connect):
    teacher = connect()
    parts = [{"type": "text", "text": "and "}, {"type": "text", "text": "s"}]
    events = [
        {"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "and\u2028"}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "s"}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 5}},
    ]
    stream = "".join(f"data: {json.dumps(e, ensure_ascii=False)}\n\n" for e in events) + "data: [DONE]\n\n"
    server.script(choice(message={"role": "assistant", "content": parts}), Reply(body=": hello\n\n" + stream))
    assert [ask(teacher).text for _ in range(2)] == ["and s", "and\u2028s"]
    assert len(server.requests) == 2


# What a server can do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        # As vllm, xllamacpp, transformers serve and llama-cpp-python do, then what others might.
        ({}, dict(token_prompts=True, token_ids=True, prefix="new text", no_thinking=True, template=False)),
        ({"chat": "repeats", "token_ids": False}, dict(token_prompts=True, token_ids=False, prefix="repeats")),
        (
            {"strict": True, "token_prompts": False},
            dict(token_prompts=False, token_ids=False, prefix="refused", no_thinking=False, completions=True),
        ),
        ({"chat": "new turn", "token_prompts": False}, dict(prefix="new turn", token_prompts=False)),
        ({"completions": False}, dict(completions=False, token_prompts=False, token_ids=False, prefix="new text")),
        ({"usage": False}, dict(begins=None, tokenizer=None, token_prompts=True)),
        ({"begins": 1, "context": 77}, dict(begins=1, context=77, tokenizer=True)),
        ({"begins": 14, "token_prompts": False}, dict(template=True, completions=False, tokenizer=None)),
        ({"models": ["other", "m"]}, dict(models=("other", "m"), model="m")),
        ({"reasons": True}, dict(completions=True, prefix="refused", token_prompts=True)),
    ],
)
def test_the_probe_finds_out(server, tokenizer, dialect, expected):
    vars(server).update(dialect)
    with APITeacher(server.url, "m", tokenizer=tokenizer, retries=0, temperature=0.3) as teacher:
        probe = teacher.probe()
        assert {name: getattr(probe, name) for name in expected} == expected
        count = len(server.requests)
        assert teacher.probe() is probe
        assert len(server.requests) == count <= 8
        assert {r.body["temperature"] for r in server.requests[1:]} == {0.3}


def test_ids_that_a_server_takes_for_text_are_no_ids(server, connect, tokenizer):
    def as_text(request):
        if isinstance(request.body.get("prompt"), list):
            return Reply(change=lambda body: body["usage"].update(prompt_tokens=len(str(request.body["prompt"]))))

    server.rule = as_text
    assert not connect(tokenizer=tokenizer).probe().token_prompts


def test_the_probes_summary_is_for_people(server, connect, tokenizer):
    server.chat, server.models = "repeats", ["m\x1b[31m"]
    text = str(connect(model=None, tokenizer=tokenizer).probe())
    assert text.splitlines()[0] == f"{server.url}: model m\\x1b[31m"
    assert "begun chat answers   continued (repeats)" in text
    assert "right tokenizer      yes" in text


@pytest.mark.parametrize("before", [(), (OK, OK)], ids=["at once", "in the middle of the probe"])
def test_a_server_that_cannot_be_asked_is_left_alone_for_a_while(server, monkeypatch, before):
    with APITeacher(server.url, "m", retries=0) as teacher:
        server.script(*before, Reply(status=503, body={"error": {"message": "Loading model"}}))
        assert [ask(teacher).error for _ in range(3)] == ["HTTP 503: Loading model"] * 3
        assert "HTTP 503" in teacher.probe().error
        assert len(server.requests) == 1 + len(before)
        monkeypatch.setattr(teacher, "_rest", 0.0)
        assert ask(teacher).text == "and s"
        assert teacher.probe().token_prompts, "a passing fault says nothing of what a server can do"


def test_a_cancelled_probe_says_nothing_of_the_server(server):
    slow = iter([Reply(delay=1.0)])  # the first answer alone
    server.rule = lambda request: next(slow, None) if request.path == "/v1/models" else None
    with APITeacher(server.url, "m", retries=0) as teacher:
        gone, waiting = view(), view()
        teacher.submit([gone])
        deadline = time.monotonic() + 30
        while not server.requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        teacher.submit([waiting])
        teacher.release([gone])
        assert teacher.poll([waiting], wait=True)[0][1].text == "and s"
        assert ask(teacher).text == "and s"


def test_a_server_that_is_slow_to_fail_is_left_alone_for_as_long(server, monkeypatch):
    monkeypatch.setattr(api_model, "REST_SECONDS", 0)
    with APITeacher(server.url, "m", retries=0) as teacher:
        server.script(Reply(status=503, delay=1.0))
        teacher.probe()
        assert 0.5 < teacher._rest - time.monotonic() < 30


def test_the_first_answers_latency_is_without_the_probe(server):
    server.rule = lambda request: Reply(delay=1.5) if request.path == "/v1/models" else None
    with APITeacher(server.url, "m") as teacher:
        outputs = complete(teacher, [view(), view(seed=1)])
    assert [o.text for o in outputs] == ["and s"] * 2
    assert max(o.latency for o in outputs) < 1.5


@pytest.mark.parametrize("dialect", [{}, {"completions": False}, {"strict": True}])
def test_a_service_that_calls_the_limit_otherwise_is_found_out_once(server, dialect):
    vars(server).update(dialect)
    with APITeacher(server.url, "m") as usual:
        expected = usual.probe()
    server.script()
    server.limit = "max_completion_tokens"
    with APITeacher(server.url, "m") as teacher:
        assert teacher.probe() == expected
        refused = [r.path for r in server.requests if "max_tokens" in r.body]
        assert len(refused) == len(set(refused)) >= 1
        server.script()
        outputs = complete(teacher, [view(n=n) for n in (3, 7)])
        assert [o.text for o in outputs] == ["and", "and so "]
        assert sorted(r.body["max_completion_tokens"] for r in server.requests) == [3, 7]
        assert not any("max_tokens" in r.body for r in server.requests)


def test_a_server_that_goes_away_is_left_alone_for_a_while(server, connect):
    teacher = connect(retries=1)
    server.stop()
    start = time.monotonic()
    (error,) = {ask(teacher).error for _ in range(50)}
    assert "connection to" in error
    assert time.monotonic() - start < 20  # 50 retries, each after its own wait, would take longer


@pytest.mark.parametrize("dialect", [{"chat": "new turn"}, {"chat": "refused"}, {"reasons": True}])
def test_a_chat_that_does_not_continue_is_not_made_to(server, connect, dialect):
    vars(server).update(dialect)
    assert "mode='completions'" in ask(connect(mode="chat"), "begun").error
    assert not server.requests
    for mode in ("auto", "completions"):
        assert ask(connect(mode=mode), "begun").text == "and s"


@pytest.mark.parametrize(
    ("dialect", "error"),
    [
        ({"completions": False, "chat": "new turn"}, "it has no completions"),
        ({"completions": False, "reasons": True}, "hold no text"),
        ({"begins": 14, "chat": "new turn"}, "it has no completions"),
    ],
)
def test_a_server_that_cannot_go_on_at_all_says_so(server, connect, dialect, error):
    vars(server).update(dialect)
    assert error in ask(connect(), "begun").error


@pytest.mark.parametrize(("token_prompts", "path"), [(True, "/v1/completions"), (False, "/v1/chat/completions")])
def test_completions_within_a_template_are_not_used_as_text(server, connect, tokenizer, token_prompts, path):
    server.begins, server.token_prompts = 14, token_prompts
    assert ask(connect(tokenizer=tokenizer), "begun").text == "and s"
    assert server.requests[0].path == path
    assert "chat template" in ask(connect(mode="completions"), "begun").error


def test_a_repetition_of_something_else_is_not_taken_for_an_answer(server, connect):
    server.chat = "repeats"
    teacher = connect()
    server.script(choice(message={"content": "Begun, and more"}))
    assert "repeated another text" in ask(teacher, "begun").error


def test_a_tokenizer_of_another_model_is_found_out(server, connect, tokenizer, monkeypatch):
    monkeypatch.setattr(api_model.SharedTokenizer, "encode", lambda self, text, **how: [1] * (len(text) // 2))
    assert "not that of m" in ask(connect(tokenizer=tokenizer)).error
    assert not server.requests


def test_a_model_is_named_or_is_the_only_one(server):
    server.models = ["a", "b:8b"]
    for address, model, error in (
        (server.url, "x", "model 'x' not found; the server has: a, b:8b"),
        (server.url, None, "name a model, as URL#model or apart; the server has: a, b:8b"),
        (f"{server.url}#b:8b", None, None),
    ):
        with APITeacher(address, model, retries=0) as teacher:
            assert (ask(teacher).error or "").startswith(error or "")
            assert (error is None) == (ask(teacher).error is None)
    assert server.requests[-1].body["model"] == "b:8b"
    assert (teacher.name, repr(teacher)) == (f"b:8b@{server.host}", f"APITeacher('{server.url}', model='b:8b')")
    server.models = ["only"]
    with APITeacher(server.url, retries=0) as teacher:
        assert ask(teacher).text == "and s"
        assert server.requests[-1].body["model"] == "only"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=404, body="<html>nothing here</html>"), "often ends in /v1"),
        (Reply(status=307, body={}, headers={"Location": "http://elsewhere/v1"}), "moved to http://elsewhere/v1"),
    ],
)
def test_an_address_that_is_no_api_says_so(server, reply, error):
    server.rule = lambda request: reply
    with APITeacher(f"http://{server.host}", "m", retries=0) as teacher:
        assert error in ask(teacher).error


def test_a_full_context_shortens_and_then_ends(server, connect, tokenizer):
    server.context = len(encode(PROMPT)) + 3
    teacher = connect(tokenizer=tokenizer)
    output = ask(teacher, "6", n=9)
    assert (output.text, output.tokens) == ("an", 2)
    assert "fill the teacher's context" in ask(teacher, "666", n=9).error


# A service that only chats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "reply", "expected"),
    [
        ("They lay 84*7=", "They lay 84 * 7 = 588 tiles.", " 588 tiles."),
        ("They lay 84*7=", "Sure! Here is the continuation:\n\n84*7=588", "588"),
        ("They lay 84*7=", "Certainly, here's the rest of the answer:\nThey lay 84*7=588", "588"),
        ("They lay 84*7=", "Here you go:\n```text\nThey lay 84*7=588 tiles.\n```\nShall I go on?", "588 tiles."),
        ("They lay 84*7=", '"84*7=588 tiles."', "588 tiles."),
        ("They lay 84*7=", "…84*7=588", "588"),
        ("We get the tot", "total of 12", "al of 12"),  # the beginning of a word is repeated, too
        ("There are 2", "There are 23 apples", "3 apples"),
        ("x.\nWe", "We get 5.", " get 5."),
        ("7+5=12.\nSo we", "7+5=12.\nSo we get 12.", " get 12."),  # more than the last line
        ("There are 12 pens.\n", "There are 12 pens.\nTom has 3.", "Tom has 3."),
        ("x.\n", "\n\nNext", "Next"),  # the next line
        ("x.\n", "Here is the sum: 5", "Here is the sum: 5"),  # no chatter
        ("x.\n", "Unfortunately, Tom cannot pay.", "Unfortunately, Tom cannot pay."),
        ("```\nx = 1\n", "```\nx = 1\ny = 2\n```", "y = 2\n```"),  # the answer's own fence stays
    ],
)
def test_repetitions_and_chatter_are_cut_from_a_new_turn(begun, reply, expected):
    assert continuation(reply, begun) == expected


@pytest.fixture
def chat_only(server, connect):
    """A teacher of a service that has chats alone, and makes a new turn of everything."""
    server.completions, server.chat = False, "new turn"
    return connect(mode="chat_only")


def test_a_chat_that_makes_new_turns_is_asked_in_words(server, chat_only):
    server.writes = "Sure! Here is the continuation:\n84*7=588 tiles."
    output = ask(chat_only, "They lay ", "84*7=", n=5, seed=9)
    (request,) = server.requests
    *messages, asked = request.body["messages"]
    assert request.path == "/v1/chat/completions"
    assert (messages, asked["role"]) == ([], "user")
    assert asked["content"].startswith("2*3?\n\nThe beginning of the answer is written already:\nThey lay 84*7=\n")
    assert asked["content"].endswith("The last line so far is:\nThey lay 84*7=")
    assert (request.body["max_tokens"], request.body["seed"]) == (5 + 48, 9 + 14 * 1_000_003)
    assert (output.text, output.ids, output.finish_reason, output.approximate) == ("588 tiles.", None, "length", True)
    assert output.tokens == len(server.writes) + 1, "what was cut was paid for"
    server.usage = False
    assert ask(chat_only, "They lay 84*7=").tokens == 0, "the student's tokens are counted"


def test_a_whole_answer_of_a_chat_is_exact(server, chat_only):
    output = ask(chat_only, n=5)
    assert (output.text, output.approximate, output.tokens) == ("and s", False, 5)
    assert server.requests[0].body["messages"] == QUESTION


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"message": {"content": "I'm sorry, but I can't continue."}}, "refused: I'm sorry, but I can't continue."),
        ({"message": {"content": "I cannot help with that."}}, "refused: I cannot help"),
        ({"message": {"content": None, "refusal": "Not this."}}, "the service refused: Not this."),
        ({"message": {"content": "They lay 84*7="}}, "adds nothing to the answer: 'They lay 84*7='"),
        ({"message": {"content": "  "}}, "adds nothing"),
        ({"message": {"content": "There are 84 tiles.\n84*7=588"}}, "did not go on from the end of the answer"),
        ({"message": {"content": f"They lay 84*7=\n\n{ALREADY}"}}, "did not go on from the end of the answer"),
        ({"message": {"content": "588 tiles"}}, "did not go on from the end of the answer"),
        ({"finish_reason": "content_filter"}, "finish_reason 'content_filter'"),
    ],
)
def test_refusals_and_replies_without_anything_new_are_failures(server, chat_only, change, error):
    server.script(choice(**change))
    output = ask(chat_only, "There are 84 tiles.\nThey lay 84*7=")
    assert (output.text, output.finish_reason, len(server.requests)) == ("", "error", 1)
    assert error in output.error


def test_the_mode_is_named_and_never_taken_by_itself(server, connect):
    server.completions, server.chat = False, "new turn"
    teacher = connect()
    assert "mode='chat_only' (--chat-only)" in ask(teacher, "begun").error
    assert "(new turn); only --chat-only can use it" in str(teacher.probe())
    assert not server.requests


def test_several_teachers_behind_urls_have_the_options_of_one(server):
    server.completions, server.chat = False, "new turn"
    named = Teachers(teacher=f"a={server.url}#m b={server.url}#m", chat_only=True)
    assert not named.is_local(named.teacher)
    teachers = named.load()
    assert teachers.names == ("a", "b")
    server.writes = "84*7=588 tiles."
    assert [ask(teacher, "They lay 84*7=").approximate for teacher in teachers.teachers.values()] == [True, True]
    with pytest.raises(ValueError, match="are for a teacher behind a URL"):
        Teachers(teacher=f"a={server.url} b=student", chat_only=True).load()
    with pytest.raises(ConnectionError, match="does not answer"):
        Teachers(teacher=f"a={server.url}#m b=http://127.0.0.1:9/v1").load()


def test_a_relay_cuts_to_n_of_the_students_tokens_and_marks_the_call(server, chat_only):
    server.writes = lambda request: f"Sure! {request.prompt.rpartition(chr(10))[2]} 12 tiles and many words after that"
    student = load_engine("student")
    pair = Pair(student, chat_only)
    trace = pair.solve("What is 7+5?", call_rule=CallAt({4: 3}), max_tokens=24)
    call = trace.calls[0]
    assert trace.completion_ids[call.end : call.end + 3] == student.text.encode(" 12 tiles and many")[:3]
    assert (call.delivered, call.approximate, call.finish_reason) == (3, True, "length")
    assert call.written == 3 + 48, "what was cut was paid for"
    note = "approximate: cut from a new turn of a teacher that only chats"
    assert note in trace_text(trace, color=False, width=200)
    assert note in player(trace).html
    data = trace.to_dict()
    assert Trace.from_dict(data) == trace
    del data["calls"][0]["approximate"]  # an older file
    assert not Trace.from_dict(data).calls[0].approximate
    config = [relay_config(Pair(student, t).relay(), 0).get("teacher_mode") for t in (chat_only, NoTeacher())]
    assert config == ["chat_only", None], "a file of exact calls is not gone on with"


# Faults -------------------------------------------------------------------------------------------------------------

NULL_TEXT = choice(message={"role": "assistant", "content": None})
PASSING = {
    "429": Reply(status=429, body={"error": {"message": "slow down"}}),
    "500": Reply(status=500, body="<html>oops</html>"),
    "502": Reply(status=502, body=""),
    "503": Reply(status=503, body={"error": {"message": "Loading model"}}),
    "408": Reply(status=408, body={}),
    "409": Reply(status=409, body={}),
    "dropped": DROP,
    "broken off": Reply(cut=40),
    "not JSON": Reply(body='{"choices": [{"te'),
    "not even JSON's type": Reply(body="<html>a proxy</html>", headers={"Content-Type": "text/html"}),
    "too deep": Reply(body="[" * 50_000),
    "a list": Reply(body="[1, 2]"),
    "no choice": Reply(body={"choices": []}),
    "choices null": Reply(body={"choices": None}),
    "null text": NULL_TEXT,
    "an error with status 200": Reply(body={"error": {"message": "Rate limit exceeded"}}),
    "gzip that is none": Reply(body="none", headers={"Content-Encoding": "gzip"}),
    "too late": Reply(delay=1.0),
}


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_tried_again_and_then_told(server, connect, fault):
    teacher = connect(timeout=0.5)
    server.script(PASSING[fault], OK)
    output = ask(teacher, "begun")
    assert (output.text, output.finish_reason, output.error) == ("and s", "length", None)
    assert len(server.requests) == 2
    first, second = server.requests
    assert first.raw == second.raw  # the seed included

    teacher = connect(timeout=0.1 if fault == "too late" else 0.5, retries=1)
    server.script(*[PASSING[fault]] * 3)
    output = ask(teacher, "begun")
    assert (output.text, output.finish_reason, output.ids, output.tokens) == ("", "error", None, 0)
    assert output.error.endswith("(after 2 attempts)")
    assert len(output.error) < 200
    assert ("Rate limit exceeded" in output.error) == (fault == "an error with status 200")
    assert len(server.requests) == 2


ZEROS = gzip.compress(bytes(10**8))
FINAL = {
    **{f"{s}": (Reply(status=s, body={"error": {"message": "too\n long"}}), f"HTTP {s}: too long") for s in (400, 404)},
    **{f"{s}": (Reply(status=s, body={"error": "no"}), "no; the server did not take the key: set") for s in (401, 403)},
    "422": (Reply(status=422, body={"detail": "\x1b]0;title\x07\u202e"}), r"HTTP 422: \x1b]0;title\x07\u202e"),
    "long": (Reply(body='"' + "x" * 10**6), "longer than the 8"),
    "endless": (Reply(body=itertools.repeat(bytes(2**16))), "longer than the 8"),
    "zip bomb": (Reply(body=[ZEROS], headers={"Content-Encoding": "gzip"}), "longer than the 8"),
    "zstd": (Reply(body="x", headers={"Content-Encoding": "zstd"}), "compressed"),
    "surrogate": (choice(message={"content": "a\ud800"}), "lone surrogate"),
    "too patient": (Reply(status=503, body={}, headers={"Retry-After": "3600"}), "HTTP 503"),
}


@pytest.mark.parametrize("fault", FINAL)
def test_other_faults_are_final_and_name_their_cause(server, connect, tokenizer, fault):
    teacher = connect(timeout=10)
    reply, error = FINAL[fault]
    server.script(*[reply] * 3)
    tracemalloc.start()
    output = ask(teacher)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (output.text, output.finish_reason) == ("", "error")
    assert error in output.error
    assert len(server.requests) == 1
    assert peak < 3e6


def test_a_slow_drip_ends_with_the_time_and_an_endless_error_is_cut(server, connect):
    teacher = connect(timeout=0.3, retries=0)
    server.script(
        Reply(body=(time.sleep(0.1) or b" " for _ in range(100))),
        Reply(status=400, body=itertools.chain([b"no more "], itertools.repeat(b"x" * 999))),
    )
    start = time.monotonic()
    assert ask(teacher).error == f"no answer from {server.url} within 0.3 s"
    assert time.monotonic() - start < 8  # the whole answer takes 10
    assert ask(teacher).error.startswith("HTTP 400: no more xxx")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/v1", "http://no.such.host.invalid/v1"])
def test_nobody_there_is_an_error_of_every_view(address):
    with APITeacher(address, "m", retries=1) as teacher:
        outputs = complete(teacher, [view() for _ in range(3)])
    assert [o.finish_reason for o in outputs] == ["error"] * 3
    assert all(f"the connection to {address} failed" in o.error and "after 2 attempts" in o.error for o in outputs)


def test_retry_after_is_waited_for_and_counted_as_latency(server, connect):
    teacher = connect()
    server.script(Reply(status=429, body={}, headers={"Retry-After": "1"}), OK)
    output = ask(teacher)
    first, second = server.requests
    assert second.time - first.time >= 1.0
    assert output.latency >= 1.0


# Views together -----------------------------------------------------------------------------------------------------


def test_submit_returns_at_once_and_poll_gives_what_is_done(server, connect):
    teacher, views = connect(), [view("slow"), view("fast"), view("not asked")]
    server.rule = lambda request: Reply(delay=2.0 if request.prompt.endswith("slow") else 0.5)
    teacher.submit(views[:2])
    assert teacher.poll(views) == []
    ((first, output),) = teacher.poll(views, wait=True)
    assert (first, output.text) == (views[1], "and s")
    assert teacher.poll(views[1:]) == []
    ((second, _),) = teacher.poll(views, wait=True)
    assert second is views[0]
    assert teacher.poll(views, wait=True) == []


def test_no_more_requests_at_a_time_than_allowed(server, connect):
    teacher = connect(concurrency=3)
    server.writes = lambda request: request.prompt[-2:] + "!" * 20
    server.rule = lambda request: Reply(delay=0.12 - 0.01 * int(request.prompt[-2:]))  # the last are the fastest
    outputs = complete(teacher, [view(f"{i:02}", n=3 + i) for i in range(9)])
    assert [o.text for o in outputs] == [f"{i:02}" + "!" * (1 + i) for i in range(9)]
    assert server.max_in_flight == 3
    assert all(o.latency >= 0.04 for o in outputs)


class Panic(BaseException):
    """As of the tokenizers library."""


def test_a_views_failure_is_its_own(server, connect, tokenizer, monkeypatch):
    teacher = connect(tokenizer=tokenizer, mode="chat", timeout=1)
    encoded = teacher.shared_tokenizer.encode

    def encode(text, **how):
        if text == "panic":
            raise Panic("regex \x1b[31m")
        return encoded(text, **how)

    monkeypatch.setattr(teacher.shared_tokenizer, "encode", encode)
    faults = {"refused": Reply(status=400, body={}), "dropped": DROP, "null": NULL_TEXT, "huge": FINAL["endless"][0]}
    server.rule = lambda request: faults.get(request.prompt.split("\n")[-1])
    texts = ["fine", "refused", "dropped", "null", "huge", "panic", "good"]
    outputs = dict(zip(texts, complete(teacher, [view(text) for text in texts]), strict=True))
    assert {text for text, o in outputs.items() if o.error is None} == {"fine", "good"}
    assert [bool(o.error) == (o.text == "") for o in outputs.values()] == [True] * 7
    assert outputs["panic"].error == r"Panic: regex \x1b[31m"
    assert "cannot be sent" in ask(connect(), "\ud800").error


def test_a_server_killed_in_the_middle_leaves_no_view_without_an_answer(server, connect):
    teacher, arrived = connect(concurrency=4), itertools.count(1)

    def rule(request):
        if next(arrived) == 9:
            threading.Thread(target=server.stop).start()
        return Reply(delay=0.15)

    server.rule = rule
    outputs = complete(teacher, [view() for _ in range(16)])
    assert sum(o.text == "and s" for o in outputs) >= 4
    assert {o.finish_reason for o in outputs} == {"length", "error"}
    assert all("connection to" in o.error for o in outputs if o.finish_reason == "error")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(extra_body={"max_tokens": 9, "prompt": "", "top_p": 1}), "max_tokens, prompt"),
        (dict(mode="telepathy"), "mode"),
        (dict(concurrency=0), "concurrency"),
        (dict(base_url=f"localhost:8000/v1?key={KEY}"), "http://"),
        (dict(base_url="http://a/v1#b", model="c"), "names the model 'b', model is 'c'"),
        (dict(api_key=KEY + "\nX: y"), "no HTTP header"),
    ],
)
def test_misuse_is_an_error_at_once(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        APITeacher(**dict(base_url="http://127.0.0.1:9/v1") | options)
    assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match="at least one token, not 0"):
        APITeacher("http://127.0.0.1:9/v1").submit([view(), view(n=0)])


# Cancelling, threads and processes ----------------------------------------------------------------------------------


def test_a_released_view_loses_its_connection_and_the_others_go_on(server, connect):
    teacher, views = connect(concurrency=2), [view(text) for text in ("one", "two", "three", "four")]
    server.rule = lambda request: Reply(delay=0.4)
    teacher.submit(views)
    time.sleep(0.15)
    teacher.release([views[0], views[2]])  # one under way, one that waits
    outputs = []
    while len(outputs) < 2:
        outputs += teacher.poll(views, wait=True)
    assert {v.text: o.text for v, o in outputs} == {"two": "and s", "four": "and s"}
    assert sorted(r.prompt.split("\n")[-1] for r in server.requests) == ["four", "one", "two"]
    assert server.requests[-1].time - server.requests[0].time < 0.3  # the thread was free at once
    assert not teacher.poll(views)


def test_a_cancelled_request_does_not_sit_out_its_wait(server, connect):
    teacher, waiting = connect(concurrency=1), view("one")
    server.script(Reply(status=503, body={}, headers={"Retry-After": "60"}))
    teacher.submit([waiting])
    while not server.requests:
        time.sleep(0.01)
    teacher.release([waiting])
    start = time.monotonic()
    assert ask(teacher).text == "and s"
    assert time.monotonic() - start < 30  # of the 60 that it was told to wait


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no way to interrupt ourselves on this system")
def test_an_interrupt_cancels_the_requests_and_propagates(server, connect, request):
    # A shell's background jobs ignore interrupts, and so does a Python that is started as one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    teacher = connect(concurrency=2)
    server.rule = lambda request: Reply(delay=0.2)
    main = threading.main_thread().ident
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        complete(teacher, [view() for _ in range(20)])
    time.sleep(0.5)
    assert len(server.requests) == 2
    assert ask(teacher).text == "and s"


def test_closing_ends_the_threads_and_using_it_again_begins_others(server):
    def threads() -> int:
        return sum(t.name.startswith("relaylab-api") for t in threading.enumerate())

    before = threads()
    teacher = APITeacher(server.url, "m")
    for _ in range(2):
        assert threads() == before  # nothing is started for a teacher that nobody asks
        assert ask(teacher).text == "and s"
        assert threads() == before + 1
        teacher.close()
        teacher.close()
    unanswered = view()
    server.rule = lambda request: Reply(delay=5)
    teacher.submit([unanswered])
    teacher.close()
    assert threads() == before
    assert "cancelled" in teacher.poll([unanswered], wait=True)[0][1].error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_has_threads_of_its_own_and_leaves_its_parents_alone(server):
    program = f"""
import os
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.teachers import TeacherView, complete
teacher = APITeacher({server.url!r}, "m")
ask = lambda: complete(teacher, [TeacherView([{{"role": "user", "content": "?"}}], n=5)])[0].text
first = ask()
child = os.fork()
if not child:
    os._exit(7 if ask() == first else 8)
print(first, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ask())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "and s 7 and s\n", done.stderr


def test_an_open_teacher_does_not_hold_up_the_interpreters_exit(server):
    program = (
        "from relaylab.relay.api_teacher import APITeacher; from relaylab.relay.teachers import *\n"
        f"teacher = APITeacher({server.url!r}, 'm')\n"
        "print(complete(teacher, [TeacherView([{'role': 'user', 'content': '?'}], n=5)])[0].text)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(words, env=env, capture_output=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"and s\n", b"")


def test_it_is_a_teacher_with_its_tokenizers_fingerprint(server, tokenizer):
    teacher, other = (APITeacher(server.url, tokenizer=t) for t in (tokenizer, byte_tokenizer()))
    assert isinstance(teacher, Teacher)
    assert teacher.fingerprint == other.fingerprint != None  # noqa: E711
    assert APITeacher(server.url).fingerprint is None


# Secrets ------------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(server, connect, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    teacher = connect(api_key=KEY + "\n", name=f"mine {KEY}")  # a key read from a file has a line break
    # Cut at its 300th character the message would end in half of the key.
    leaks = [{"error": {"message": "x" * 280 + f"bad key {KEY}"}}, f"Bearer {KEY}", {"error": f"with 200: {KEY}"}]
    server.script(*[Reply(status=s, body=body) for s, body in zip((401, 400, 200, 200, 200), [*leaks, *leaks[2:] * 2])])
    shown = [*[ask(teacher).error for _ in range(3)], repr(teacher), str(teacher), teacher.name, str(teacher.probe())]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "***" in shown[1]
    assert "***" in shown[2]
    assert not [text for text in [*shown, caplog.text] if KEY[:8] in text]


def test_passwords_and_queries_are_sent_and_shown_nowhere(server):
    address = f"http://user:pass%40word@{server.host}/v1?key={KEY}"
    with APITeacher(address, "m", retries=0) as teacher:
        assert ask(teacher).text == "and s"
        request = server.requests[-1]
        assert request.headers["authorization"] == "Basic dXNlcjpwYXNzQHdvcmQ="
        assert request.path == f"/v1/chat/completions?key={KEY}"
        words = f"no pass@word nor pass%40word nor dXNlcjpwYXNzQHdvcmQ= for /v1?key={KEY}"
        server.script(Reply(status=400, body={"error": {"message": words}}))
        assert ask(teacher).error == "HTTP 400: no *** nor *** nor *** for /v1?key=***"
        assert teacher.name == f"m@{server.host}"
        assert repr(teacher) == f"APITeacher('{server.url}', model='m')"
    server.models = [f"a {KEY}", "b"]
    with APITeacher(address, retries=0) as teacher:
        assert "has: a ***, b" in ask(teacher).error


@pytest.mark.parametrize("url", ["http://sk-1+2%203@{}/v1", "http://sk-1+2%203:x@{}/v1", "http://{}/v1?k=sk-1%2B2+3"])
def test_a_key_for_a_user_or_with_a_space_is_shown_nowhere(server, url):
    words = "neither sk-1+2 3 nor sk-1%2B2%203 nor sk-1%2B2+3"
    with APITeacher(url.format(server.host), "m", retries=0) as teacher:
        teacher.probe()
        server.script(Reply(status=400, body={"error": {"message": words}}))
        assert ask(teacher).error == "HTTP 400: neither *** nor *** nor ***"


@pytest.mark.parametrize("value", ["sk-from-the-environment", ""])
def test_without_a_key_the_environment_is_asked(server, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with APITeacher(server.url, "m", retries=0) as teacher:
        ask(teacher)
    assert server.requests[-1].headers["authorization"] == f"Bearer {value or 'none'}"


def test_pickles_hold_no_credentials_and_work_elsewhere(server, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    address = f"http://user:pass%40word@{server.host}/v1?key={KEY}"
    with APITeacher(address, "m", api_key=KEY, tokenizer=tokenizer, retries=0) as teacher:
        before = ask(teacher, "begun")
        data = pickle.dumps(teacher)
        warmer = copy.copy(teacher)
        warmer.temperature = 1.0
        assert ask(warmer, "begun").text == before.text
        sent = server.requests[-1]
        assert (sent.body["temperature"], sent.headers["authorization"][:5]) == (1.0, "Basic")
        assert teacher.temperature == 0.0
    assert not [secret for secret in (KEY, "pass%40word", "pass@word", "sk-from") if secret.encode() in data]
    count = len(server.requests)
    with pickle.loads(data) as other:
        after = ask(other, "begun")
    assert (after.text, after.ids) == (before.text, before.ids)
    assert len(server.requests) == count + 1  # what is known of the server travels along
    assert server.requests[-1].headers["authorization"] == "Bearer sk-from-the-environment"


# A real one ---------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("RELAYLAB_API_URL" not in os.environ, reason="set RELAYLAB_API_URL to a running server's .../v1")
def test_a_real_server_continues_answers():
    with APITeacher(os.environ["RELAYLAB_API_URL"], os.environ.get("RELAYLAB_API_MODEL"), retries=1) as teacher:
        probe = teacher.probe()
        assert probe.reachable, probe.error
        print(probe)
        counting = [{"role": "user", "content": "Count from 1 to 30, separated by commas."}]
        n = [1, 2, 3, 5, 8, 13]
        views = [TeacherView(counting, [Segment(f"1, 2, 3, {i}")], k, seed=i) for i, k in enumerate(n)]
        outputs = complete(teacher, views)
        assert [o.error for o in outputs] == [None] * 6
        assert all(1 <= o.tokens <= most for o, most in zip(outputs, n, strict=True))
        assert not [o for o in outputs if o.text.startswith("1, 2, 3")]  # nothing is written twice
        assert [o.text for o in complete(teacher, views)] == [o.text for o in outputs]  # greedy
