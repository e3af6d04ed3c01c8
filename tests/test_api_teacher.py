"""The API teacher against a server whose tokens are bytes and whose faults are scripted (``misbehaving_server.py``)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from misbehaving_server import BEGIN, DROP, MARKS, OK, MisbehavingServer, Reply, encode

from relaylab.relay.api_client import APIClient, Fault, _retry_after
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.teachers import Context, Segment, Teacher, TeacherOutput

ASK = [{"role": "user", "content": "2*3?"}]
PROMPT = "<|begin|>user: 2*3?\nassistant (no thinking): "
KEY = "sk-topsecret-0123456789"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def byte_tokenizer():
    """A transformers tokenizer whose ids are those of the server: bytes and two marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from relaylab.engine.token_text import _byte_alphabet

    inner = Tokenizer(models.BPE(vocab=_byte_alphabet(), merges=[]))
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
        options = dict(model="m", retries=2, backoff=0.01, max_backoff=0.05) | options
        teachers.append(APITeacher(server.url, **options))
        teachers[-1].probe()
        server.script()
        return teachers[-1]

    yield connect
    for teacher in teachers:
        teacher.close()


def ask(teacher: APITeacher, *segments: str | Segment, n: int = 5, row: object = 0, seed: int = 0) -> TeacherOutput:
    return teacher.continue_([context(*segments, row=row, seed=seed)], [n])[0]


def context(*segments: str | Segment, row: object = 0, seed: int = 0) -> Context:
    return Context(row, ASK, [s if isinstance(s, Segment) else Segment(s) for s in segments], seed)


# What is sent -------------------------------------------------------------------------------------------------------


def test_token_ids_go_as_they_are_and_text_is_tokenised(server, connect, tokenizer):
    # These ids are not how anybody would tokenise their text: they must not be derived from it.
    teacher = connect(tokenizer=tokenizer, temperature=0.7)
    ask(teacher, Segment("=", (61,)), Segment("?", (1, 2, 3)), "é", n=7, seed=41)
    (request,) = server.requests
    assert request.path == "/v1/completions"
    assert request.body == {
        "model": "m",
        "prompt": [BEGIN, *PROMPT.removeprefix("<|begin|>").encode(), 61, 1, 2, 3, 0xC3, 0xA9],
        "max_tokens": 7,
        "temperature": 0.7,
        "seed": 41,
        "return_token_ids": True,
    }


def test_text_prompts_hold_the_very_characters(server, connect, tokenizer):
    server.token_prompts = server.token_ids = False
    ask(connect(tokenizer=tokenizer, extra_body={"top_p": 0.5}), Segment("6\n\n ", (1,)), "\tso <|end|>")
    (request,) = server.requests
    assert request.body == {
        "model": "m",
        "prompt": PROMPT + "6\n\n \tso <|end|>",
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 0,
        "top_p": 0.5,
    }


def test_a_server_that_begins_texts_itself_is_not_sent_the_beginning(server, connect, tokenizer):
    server.token_prompts, server.begins = False, True
    teacher = connect(tokenizer=tokenizer)
    assert teacher.probe().begins == 1
    ask(teacher, "6")
    assert server.requests[0].prompt == PROMPT.removeprefix("<|begin|>") + "6"


def test_chat_sends_the_begun_answer_as_a_message_to_continue(server, connect):
    ask(connect(), "so ", "it ", seed=5)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "m",
        "messages": [*ASK, {"role": "assistant", "content": "so it "}],
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 5,
        "continue_final_message": True,
        "add_generation_prompt": False,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_chat_asks_for_a_whole_answer_like_anybody(server, connect):
    server.chat = "refused"
    server.strict = True
    teacher = connect(mode="chat")
    assert ask(teacher).text == "and s"
    assert server.requests[0].body == dict(model="m", messages=ASK, max_tokens=5, temperature=0.0, seed=0)


def test_completions_without_a_tokenizer_send_a_plain_prompt(server, connect):
    ask(connect(mode="completions"), "so ")
    assert server.requests[0].body["prompt"] == "2*3?\n\nso "


def test_each_row_has_its_seed_and_no_seed_is_too_large_for_a_server(server, connect):
    connect().continue_([context(row=i, seed=s) for i, s in enumerate((7, 8, 2**80 + 9))], [1, 2, 3])
    assert {r.body["max_tokens"]: r.body["seed"] for r in server.requests} == {1: 7, 2: 8, 3: 9}


def test_every_segment_is_tokenised_once(server, connect, tokenizer, monkeypatch):
    teacher = connect(tokenizer=tokenizer)
    seen = []
    monkeypatch.setattr(teacher, "tokenizer", Spy(tokenizer, seen))
    segments: list[Segment] = []
    for text in ("one", "two", "three"):
        segments.append(Segment(text))
        ask(teacher, *segments, row="a")
    assert seen == [PROMPT, "one", "two", "three"]
    assert server.requests[-1].prompt == PROMPT + "onetwothree"
    teacher.release(["a", "never seen"])
    ask(teacher, *segments, row="a")
    assert seen[4:] == [PROMPT, "one", "two", "three"]


class Spy:
    def __init__(self, tokenizer, seen: list[str]):
        self._tokenizer, self._seen = tokenizer, seen

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **how):
        self._seen.append(text)
        return self._tokenizer(text, **how)


def test_another_context_under_the_same_name_is_another_context(server, connect, tokenizer):
    teacher = connect(tokenizer=tokenizer)
    ask(teacher, "one", "two")
    ask(teacher, "one", "2")
    teacher.continue_([Context(0, [{"role": "user", "content": "3*3?"}], [Segment("one")])], [1])
    assert [r.prompt for r in server.requests] == [
        PROMPT + "onetwo",
        PROMPT + "one2",
        PROMPT.replace("2*3?", "3*3?") + "one",
    ]


def test_what_looks_like_an_end_token_in_the_students_text_is_text(server, connect, tokenizer):
    ask(connect(tokenizer=tokenizer), "<|end|>")
    assert server.requests[0].body["prompt"][-7:] == list(b"<|end|>")


def test_a_character_across_two_segments_is_whole_in_a_text_prompt(server, connect, tokenizer):
    server.token_prompts = False
    halves = Segment("1\ufffd", (0x31, 0xC3)), Segment("\ufffd.", (0xA9, 0x2E))
    ask(connect(tokenizer=tokenizer), *halves)
    assert server.requests[0].prompt == PROMPT + "1é."


# What comes back ----------------------------------------------------------------------------------------------------


def test_ids_come_back_without_the_end_token(server, connect, tokenizer):
    server.writes = "6."
    said = ask(connect(tokenizer=tokenizer), n=50)
    assert (said.text, said.ids, said.tokens, said.finish, said.error) == ("6.", (0x36, 0x2E), 2, "stop", None)


@pytest.mark.parametrize("knows", [True, False])
def test_the_end_token_is_not_counted_where_that_can_be_known(server, connect, tokenizer, knows):
    server.writes, server.token_ids = "6.", False
    said = ask(connect(tokenizer=tokenizer if knows else None), n=50)
    assert (said.text, said.ids, said.tokens, said.finish) == ("6.", None, 2 if knows else 3, "stop")


def test_n_tokens_come_back_as_length(server, connect, tokenizer):
    said = ask(connect(tokenizer=tokenizer), n=3)
    assert (said.text, said.ids, said.tokens, said.finish) == ("and", tuple(b"and"), 3, "length")


def test_a_stop_string_that_only_the_ids_hold_leaves_the_text(server, connect, tokenizer):
    teacher = connect(tokenizer=tokenizer, extra_body={"stop": ["\n"]})
    choice = {"text": "6", "finish_reason": "stop", "token_ids": [0x36, 0x0A]}
    server.script(Reply(body={"choices": [choice], "usage": {"completion_tokens": 2}}))
    said = ask(teacher)
    assert (said.text, said.ids, said.finish) == ("6", None, "stop")


def test_a_special_token_that_ends_nothing_stays_among_the_ids(server, connect, tokenizer):
    teacher = connect(tokenizer=tokenizer)
    server.script(Reply(body={"choices": [{"text": "6", "finish_reason": "length", "token_ids": [0x36, BEGIN]}]}))
    assert ask(teacher, n=2).ids == (0x36, BEGIN)


def test_an_answer_that_ends_at_once_is_an_answer(server, connect):
    server.writes = ""
    said = ask(connect())
    assert (said.text, said.finish, said.error) == ("", "stop", None)


@pytest.mark.parametrize("token_ids", [True, False])
@pytest.mark.parametrize("writes", ["and so on and on", "and so."])
def test_never_more_than_n_tokens_and_more_would_come(server, connect, tokenizer, token_ids, writes):
    server.extra, server.token_ids, server.writes = 4, token_ids, writes
    said = ask(connect(tokenizer=tokenizer), n=6)
    assert (said.text, said.tokens, said.finish) == ("and so", 6, "length")
    assert said.ids == (tuple(b"and so") if token_ids else None)


def test_more_than_n_tokens_that_nobody_can_cut_are_an_error(server, connect):
    teacher = connect()
    server.extra = 1
    said = ask(teacher, n=6)
    assert (said.text, said.finish) == ("", "error")
    assert "7 tokens where 6 were asked for" in said.error


def test_without_usage_the_tokenizer_counts_and_cuts(server, connect, tokenizer):
    server.usage, server.extra, server.token_ids = False, 4, False
    said = ask(connect(tokenizer=tokenizer), n=6)
    assert (said.text, said.tokens) == ("and so", 6)


@pytest.mark.parametrize(("n", "text"), [(1, "a"), (2, "a"), (3, "aé"), (5, "aé"), (6, "aé€")])
def test_text_is_cut_to_whole_characters(server, connect, n, text):
    server.writes = "aé€!" * 9
    said = ask(connect(), n=n)
    assert (said.text, said.tokens, said.finish) == (text, n, "length")


def test_half_a_character_alone_is_an_error_as_text_and_fine_as_ids(server, connect, tokenizer):
    server.writes = "é" * 9
    assert ask(connect(), n=1).finish == "error"
    teacher = connect(tokenizer=tokenizer)
    for text in ("\ufffd", ""):  # llama.cpp and vLLM differ in what they show of it
        server.script(Reply(change=lambda body, text=text: body["choices"][0].update(text=text)))
        said = ask(teacher, n=1)
        assert (said.ids, said.tokens, said.finish) == ((0xC3,), 1, "length")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(writes=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")), n=st.integers(1, 12))
@pytest.mark.parametrize("chat", ["new text", "repeats"])
def test_what_comes_is_the_beginning_of_what_was_written(server, connect, chat, writes, n):
    if server.chat != chat or not hasattr(server, "teacher"):
        server.chat = chat
        server.teacher = connect()
    server.writes = writes
    said = ask(server.teacher, "begun", n=n)
    whole = writes.encode()[:n].decode(errors="ignore")
    if whole or len(writes.encode()) < n:
        assert (said.text, said.error) == (whole, None)
        assert said.finish == ("length" if len(writes.encode()) >= n else "stop")
    else:
        assert said.finish == "error"


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", None])
def test_other_reasons_to_finish_are_errors(server, connect, reason):
    teacher = connect()
    server.script(Reply(change=lambda body: body["choices"][0].update(finish_reason=reason)))
    said = ask(teacher)
    assert (said.text, said.finish) == ("", "error")
    assert repr(reason) in said.error
    assert len(server.requests) == 1


# What a server can do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        # As vllm, xllamacpp, transformers serve and llama-cpp-python do, then what others might.
        ({}, dict(token_prompts=True, token_ids=True, prefix="new text", no_thinking=True, keeps_limit=True)),
        ({"chat": "repeats", "token_ids": False}, dict(token_prompts=True, token_ids=False, prefix="repeats")),
        (
            {"strict": True, "token_prompts": False},
            dict(token_prompts=False, token_ids=False, prefix="refused", no_thinking=False, completions=True),
        ),
        ({"chat": "new turn", "token_prompts": False}, dict(prefix="new turn", token_prompts=False)),
        ({"completions": False}, dict(completions=False, token_prompts=False, token_ids=False, prefix="new text")),
        ({"extra": 1}, dict(keeps_limit=False)),
        ({"usage": False}, dict(keeps_limit=None, begins=None, tokenizer=None, token_prompts=True)),
        ({"begins": True, "context": 77}, dict(begins=1, context=77, tokenizer=True)),
        ({"models": ["other", "m"]}, dict(models=("other", "m"), model="m")),
    ],
)
def test_the_probe_finds_out(server, tokenizer, dialect, expected):
    vars(server).update(dialect)
    with APITeacher(server.url, "m", tokenizer=tokenizer, retries=0) as teacher:
        found = teacher.probe()
        assert {name: getattr(found, name) for name in expected} == expected
        asked = len(server.requests)
        assert teacher.probe() is found
        assert len(server.requests) == asked <= 8


def test_ids_that_a_server_takes_for_text_are_no_ids(server, connect, tokenizer):
    def as_text(request):
        if isinstance(request.body.get("prompt"), list):
            return Reply(change=lambda body: body["usage"].update(prompt_tokens=len(str(request.body["prompt"]))))

    server.rule = as_text
    assert not connect(tokenizer=tokenizer).probe().token_prompts


def test_the_probes_summary_is_for_people(server, connect, tokenizer):
    server.chat = "repeats"
    text = str(connect(tokenizer=tokenizer).probe())
    assert text.splitlines()[0] == f"{server.url}: model m"
    assert "begun chat answers   continued, answers repeat what they continue" in text
    assert "tokenizer given      the server's" in text


def test_a_server_that_was_down_is_asked_again(server):
    with APITeacher(server.url, "m", retries=0) as teacher:
        server.script(Reply(status=503), DROP)
        assert not teacher.probe().reachable
        assert "HTTP 503" not in ask(teacher).error
        assert ask(teacher).text == "and s"


def test_a_passing_fault_is_no_answer_to_what_a_server_can_do(server):
    with APITeacher(server.url, "m", retries=0) as teacher:
        server.script(OK, OK, Reply(status=503))
        assert "HTTP 503" in teacher.probe().error
        assert teacher.probe().token_prompts


@pytest.mark.parametrize(("chat", "remedy"), [("new turn", "mode='completions'"), ("refused", "mode='completions'")])
def test_a_chat_that_does_not_continue_is_not_made_to(server, connect, chat, remedy):
    server.chat = chat
    said = ask(connect(mode="chat"), "begun")
    assert said.finish == "error"
    assert remedy in said.error
    assert not server.requests
    assert ask(connect(), "begun").text == "and s"  # mode="auto" has found the other way


def test_a_server_that_cannot_go_on_at_all_says_so(server, connect):
    server.completions, server.chat = False, "new turn"
    assert "it has no completions" in ask(connect(), "begun").error


def test_a_repetition_of_something_else_is_not_taken_for_an_answer(server, connect):
    server.chat = "repeats"
    teacher = connect()
    server.script(Reply(change=lambda body: body["choices"][0]["message"].update(content="Begun, and more")))
    assert "repeated another text" in ask(teacher, "begun").error


def test_a_tokenizer_of_another_model_is_found_out(server, connect, tokenizer):
    class Other(Spy):
        def __call__(self, text, **how):
            return {"input_ids": [ord(c) % 7 for c in text[::2]]}

    said = ask(connect(tokenizer=Other(tokenizer, [])))
    assert "not that of m" in said.error
    assert not server.requests


def test_unknown_models_are_named_beside_the_known(server):
    server.models = ["a", "b"]
    with APITeacher(server.url, "x", retries=0) as teacher:
        assert ask(teacher).error.startswith("model 'x' not found; the server has: a, b")
    with APITeacher(server.url, retries=0) as teacher:
        assert ask(teacher).error == "name a model; the server has: a, b"
    server.models = ["only"]
    with APITeacher(server.url, retries=0) as teacher:
        assert ask(teacher).text == "and s"
        assert server.requests[-1].body["model"] == "only"


def test_an_address_that_is_no_api_says_so(server):
    with APITeacher(f"http://{server.host}", "m", retries=0) as teacher:
        server.rule = lambda request: Reply(status=404, body="<html>nothing here</html>")
        assert "often ends in /v1" in ask(teacher).error


def test_a_full_context_shortens_and_then_ends(server, connect, tokenizer):
    server.context = len(encode(PROMPT)) + 3
    teacher = connect(tokenizer=tokenizer)
    said = ask(teacher, "6", n=9)
    assert (said.text, said.tokens) == ("an", 2)
    assert "fill the teacher's context" in ask(teacher, "666", n=9).error


# Faults -------------------------------------------------------------------------------------------------------------

NO_CHOICE = Reply(body={"choices": []})
NULL_TEXT = Reply(change=lambda body: body["choices"][0].update(message={"role": "assistant", "content": None}))
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
    "a list": Reply(body="[1, 2]"),
    "no choice": NO_CHOICE,
    "choices null": Reply(body={"choices": None}),
    "null text": NULL_TEXT,
    "too late": Reply(delay=1.0),
}


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_tried_again_and_then_told(server, connect, fault):
    teacher = connect(timeout=0.5)
    server.script(PASSING[fault], OK)
    said = ask(teacher, "begun")
    assert (said.text, said.finish, said.error) == ("and s", "length", None)
    assert len(server.requests) == 2
    first, second = server.requests
    assert first.raw == second.raw  # the seed included

    teacher = connect(timeout=0.1, retries=1)
    server.script(*[PASSING[fault]] * 3)
    said = ask(teacher, "begun")
    assert (said.text, said.finish, said.ids, said.tokens) == ("", "error", None, 0)
    assert said.error.endswith("(after 2 attempts)")
    assert len(said.error) < 200
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusals_are_final(server, connect, status):
    teacher = connect()
    server.script(*[Reply(status=status, body={"error": {"message": "too\n long"}})] * 3)
    said = ask(teacher)
    assert said.finish == "error"
    assert said.error.startswith(f"HTTP {status}: too long")
    assert ("OPENAI_API_KEY" in said.error) == (status in (401, 403))
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/v1", "http://no.such.host.invalid/v1"])
def test_nobody_there_is_an_error_of_every_row(address):
    with APITeacher(address, "m", retries=1, backoff=0.01) as teacher:
        said = teacher.continue_([context(row=i) for i in range(3)], [5, 5, 5])
    assert [c.finish for c in said] == ["error"] * 3
    assert all(f"the connection to {address} failed" in c.error and "after 2 attempts" in c.error for c in said)


def test_retry_after_is_waited_for_and_counted_as_latency(server, connect):
    teacher = connect(max_backoff=30)
    server.script(Reply(status=429, body={}, headers={"Retry-After": "1"}), OK)
    said = ask(teacher)
    first, second = server.requests
    assert 1.0 <= second.time - first.time < 2.0
    assert said.latency >= 1.0


def test_retry_after_is_capped(server, connect):
    teacher = connect(max_backoff=0.2)
    server.script(Reply(status=503, body={}, headers={"Retry-After": "3600"}), OK)
    assert ask(teacher).text == "and s"
    first, second = server.requests
    assert 0.2 <= second.time - first.time < 2.0


def test_retry_after_in_all_its_forms():
    assert _retry_after({"retry-after": "7"}) == 7.0
    assert 98.0 < _retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)}) <= 100.0
    assert _retry_after({"retry-after": formatdate(time.time() - 100, usegmt=True)}) == 0.0
    assert [_retry_after(h) for h in ({}, {"retry-after": "soon"}, {"retry-after": "nan"})] == [None] * 3


def test_the_backoff_doubles_with_jitter_up_to_its_limit():
    client = APIClient("http://127.0.0.1:1", backoff=0.5, max_backoff=3.0)

    def waits(attempt: int, asked: float | None) -> list[float]:
        outcome = SimpleNamespace(exception=lambda: Fault("", passing=True, wait=asked))
        return [client._wait(SimpleNamespace(attempt_number=attempt, outcome=outcome)) for _ in range(200)]

    for attempt, least, most in ((1, 0.5, 1.0), (2, 1.0, 1.5), (3, 2.0, 2.5), (4, 3.0, 3.0), (99, 3.0, 3.0)):
        found = waits(attempt, None)
        assert least <= min(found) <= max(found) <= most
        assert least == most or max(found) - min(found) > 0.3  # rows that failed together do not come back together
    found = waits(1, 2.0)
    assert 2.0 <= min(found) < max(found) <= 2.5
    assert set(waits(1, 100.0)) == {3.0}


def test_the_backoff_is_waited_for(server, connect):
    teacher = connect(retries=3, backoff=0.05, max_backoff=1.0)
    server.script(*[Reply(status=500, body={})] * 3)
    ask(teacher)
    times = [r.time for r in server.requests]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 3
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=True))


# Rows together ------------------------------------------------------------------------------------------------------


def test_answers_come_in_order_and_no_more_requests_at_a_time_than_allowed(server, connect):
    teacher = connect(concurrency=3)
    server.writes = lambda request: request.prompt[-2:] + "!" * 20
    server.rule = lambda request: Reply(delay=0.12 - 0.01 * int(request.prompt[-2:]))  # the last are the fastest
    said = teacher.continue_([context(f"{i:02}", row=i) for i in range(9)], [3 + i for i in range(9)])
    assert [c.text for c in said] == [f"{i:02}" + "!" * (1 + i) for i in range(9)]
    assert server.max_in_flight == 3
    assert all(c.latency >= 0.04 for c in said)


def test_a_rows_failure_is_its_own(server, connect):
    teacher = connect()
    faults = {"refused": Reply(status=400, body={}), "dropped": DROP, "null": NULL_TEXT}
    server.rule = lambda request: faults.get(request.prompt.split("\n")[-1])
    rows = ["fine", "refused", "dropped", "\ud800", "null", "good"]
    said = teacher.continue_([context(text, row=i) for i, text in enumerate(rows)], [5] * 6)
    assert [c.finish for c in said] == ["length", "error", "error", "error", "error", "length"]
    assert "cannot be sent" in said[3].error
    assert [bool(c.error) == (c.text == "") for c in said] == [True] * 6


def test_a_server_killed_in_the_middle_leaves_no_row_without_an_answer(server, connect):
    teacher = connect(concurrency=4)
    server.rule = lambda request: Reply(delay=0.15)
    threading.Timer(0.4, server.stop).start()
    said = teacher.continue_([context(row=i) for i in range(16)], [5] * 16)
    assert [c.text for c in said[:4]] == ["and s"] * 4
    assert {c.finish for c in said} == {"length", "error"}
    assert all("connection to" in c.error for c in said if c.finish == "error")
    assert max(c.latency for c in said) < 5


def test_no_rows_are_no_work(server):
    with APITeacher(server.url, "m") as teacher:
        assert teacher.continue_([], []) == []
    assert not server.requests


def test_misuse_is_an_error_at_once(server, connect):
    teacher = connect()
    with pytest.raises(ValueError, match="at least one token, not 0"):
        teacher.continue_([context(), context()], [1, 0])
    with pytest.raises(ValueError, match="zip"):
        teacher.continue_([context()], [1, 2])
    assert not server.requests
    with pytest.raises(ValueError, match="max_tokens, prompt"):
        APITeacher(server.url, "m", extra_body={"max_tokens": 9, "prompt": "", "top_p": 1})
    with pytest.raises(ValueError, match="mode"):
        APITeacher(server.url, "m", mode="telepathy")
    with pytest.raises(ValueError, match="concurrency"):
        APITeacher(server.url, "m", concurrency=0)
    with pytest.raises(ValueError, match="http://") as caught:
        APITeacher(f"localhost:8000/v1?key={KEY}", "m")
    assert KEY not in str(caught.value)


# Threads and processes ----------------------------------------------------------------------------------------------


def test_it_works_within_a_running_loop_as_in_jupyter(server, connect):
    teacher = connect()

    async def cell() -> TeacherOutput:
        return ask(teacher)

    assert asyncio.run(cell()).text == "and s"


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
        teacher.continue_([context(row=i) for i in range(20)], [5] * 20)
    time.sleep(0.5)
    assert len(server.requests) == 2
    assert ask(teacher).text == "and s"


def test_closing_ends_the_thread_and_using_it_again_begins_another(server):
    def threads() -> int:
        return sum(t.name == "relaylab-api" for t in threading.enumerate())

    before = threads()
    teacher = APITeacher(server.url, "m")
    assert threads() == before  # nothing is started for a teacher that nobody asks
    with teacher:
        assert ask(teacher).text == "and s"
        assert threads() == before + 1
    assert threads() == before
    assert ask(teacher).text == "and s"
    teacher.close()
    teacher.close()
    assert threads() == before
    teacher.probe()
    del teacher
    assert threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_that_drops_its_parents_teachers_does_not_wait_for_them(server):
    """The child lets go of what its parent's threads held; Ray, which forks so, took 10 seconds more a process."""
    program = f"""
import os, threading, time
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.teachers import Context
box = [APITeacher({server.url!r}, "m")]
said = box[0].continue_([Context(0, [{{"role": "user", "content": "?"}}])], [5])[0]
local, there, over = threading.local(), threading.Event(), threading.Event()
def hold():
    local.teacher = box.pop()
    there.set()
    over.wait()
threading.Thread(target=hold, daemon=True).start()
there.wait()
begin = time.monotonic()
child = os.fork()
if not child:
    os._exit(7 if time.monotonic() - begin < 4 else 8)
print(said.text, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "and s 7\n", done.stderr


def test_an_open_teacher_does_not_hold_up_the_interpreters_exit(server):
    program = (
        "from relaylab.relay.api_teacher import APITeacher; from relaylab.relay.teachers import Context\n"
        f"teacher = APITeacher({server.url!r}, 'm')\n"
        "print(teacher.continue_([Context(0, [{'role': 'user', 'content': '?'}])], [5])[0].text)"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=30,
    )
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
    leak = {"error": {"message": "x" * 280 + f"bad key {KEY}"}}
    server.script(Reply(status=401, body=leak), Reply(status=400, body=f"Bearer {KEY}"))
    shown = [ask(teacher).error, ask(teacher).error, repr(teacher), str(teacher), teacher.name, str(teacher.probe())]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "***" in shown[1]
    assert not [text for text in [*shown, caplog.text] if KEY[:8] in text]


def test_passwords_and_queries_are_sent_and_shown_nowhere(server):
    address = f"http://user:pass%40word@{server.host}/v1?key={KEY}"
    with APITeacher(address, "m", retries=0) as teacher:
        assert ask(teacher).text == "and s"
        request = server.requests[-1]
        assert request.headers["authorization"] == "Basic dXNlcjpwYXNzQHdvcmQ="
        assert request.path == f"/v1/chat/completions?key={KEY}"
        said = f"no pass@word nor pass%40word nor dXNlcjpwYXNzQHdvcmQ= for /v1?key={KEY}"
        server.script(Reply(status=400, body={"error": {"message": said}}))
        assert ask(teacher).error == "HTTP 400: no *** nor *** nor *** for /v1?key=***"
        assert teacher.name == f"m@{server.host}"
        assert repr(teacher) == f"APITeacher('{server.url}', model='m')"


def test_without_a_key_the_environment_is_asked(server, monkeypatch):
    for value, sent in (("sk-from-the-environment", "Bearer sk-from-the-environment"), ("", "Bearer none")):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with APITeacher(server.url, "m", retries=0) as teacher:
            ask(teacher)
            assert server.requests[-1].headers["authorization"] == sent
    with pytest.raises(ValueError, match="no HTTP header") as caught:
        APITeacher(server.url, "m", api_key=KEY + "\nX: y")
    assert KEY not in str(caught.value)


def test_pickles_hold_no_credentials_and_work_elsewhere(server, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    address = f"http://user:pass%40word@{server.host}/v1?key={KEY}"
    with APITeacher(address, "m", api_key=KEY, tokenizer=tokenizer, retries=0) as teacher:
        before = ask(teacher, "begun")
        data = pickle.dumps(teacher)
    assert not [secret for secret in (KEY, "pass%40word", "pass@word", "sk-from") if secret.encode() in data]
    asked = len(server.requests)
    with pickle.loads(data) as copy:
        after = ask(copy, "begun")
    assert (after.text, after.ids) == (before.text, before.ids)
    assert len(server.requests) == asked + 1  # what is known of the server travels along
    assert server.requests[-1].headers["authorization"] == "Bearer sk-from-the-environment"


# A real one ---------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("RELAYLAB_API_URL" not in os.environ, reason="set RELAYLAB_API_URL to a running server's .../v1")
def test_a_real_server_continues_answers():
    with APITeacher(os.environ["RELAYLAB_API_URL"], os.environ.get("RELAYLAB_API_MODEL"), retries=1) as teacher:
        found = teacher.probe()
        assert found.reachable, found.error
        print(found)
        counting = [{"role": "user", "content": "Count from 1 to 30, separated by commas."}]
        rows = [Context(i, counting, [Segment(f"1, 2, 3, {i}")], seed=i) for i in range(6)]
        n = [1, 2, 3, 5, 8, 13]
        said = teacher.continue_(rows, n)
        assert [c.error for c in said] == [None] * 6
        assert all(1 <= c.tokens <= most for c, most in zip(said, n, strict=True))
        assert not [c for c in said if c.text.startswith("1, 2, 3")]  # nothing is said twice
        assert [c.text for c in teacher.continue_(rows, n)] == [c.text for c in said]  # greedy
