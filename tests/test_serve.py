"""``relaylab serve``: real requests to a real server on the loopback, against what ``decode`` writes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import openai
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from relaylab.call_tag import settled, strip_calls
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.local_teacher import Verifier
from relaylab.relay.pair import Pair, load_pair, problem_seed
from relaylab.relay.relay import Relay, Stream
from relaylab.relay.sequence import Done
from relaylab.relay.teachers import ScriptedTeacher, Segment, TeacherOutput
from relaylab.server.app import Server
from relaylab.server.worker import VisibleText
from relaylab.tasks.suites import problem

QUESTIONS = [problem(suite, i).question for i in range(3) for suite in ("tiles", "harvest", "savings")]
NAME = "pair"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("relay")


@contextmanager
def served(relay: Relay, *, drain: int = 5, local: bool = False, **options) -> Iterator[Served]:
    server = Server(relay, NAME, **options)
    config = uvicorn.Config(server.app(local=local), port=0, log_level="critical", timeout_graceful_shutdown=drain)
    http = uvicorn.Server(config)
    thread = threading.Thread(target=http.run)
    thread.start()
    wait(lambda: http.started)
    try:
        yield Served(server, http, thread, http.servers[0].sockets[0].getsockname())
    finally:
        http.should_exit = True
        thread.join()
    assert not relay.student.slots, "every row is closed in the end"


class Served:
    def __init__(self, server: Server, http: uvicorn.Server, thread: threading.Thread, address: tuple[str, int]):
        self.server, self.http, self.thread, self.address = server, http, thread, address
        self.url = f"http://{address[0]}:{address[1]}"
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="key", max_retries=0, timeout=300)

    def chat(self, question: str, **fields):
        return self.openai.chat.completions.create(model=NAME, messages=messages(question), **fields)

    def post(self, body, path: str = "/v1/chat/completions", **options) -> httpx2.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        return httpx2.post(self.url + path, content=data, timeout=300, headers=headers, **options)

    def running(self) -> int:
        return httpx2.get(f"{self.url}/health", timeout=300).json()["running"]

    def metrics(self) -> dict[str, float]:
        lines = httpx2.get(f"{self.url}/metrics", timeout=300).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@pytest.fixture(scope="module")
def serving(pair) -> Iterator[Served]:
    with served(pair.relay(batch_size=6)) as it:
        yield it


def messages(question: str) -> list:
    return [{"role": "user", "content": question}]


def wait(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


class Slow(ScriptedTeacher):
    """A teacher behind some server: it answers once ``answers`` is set."""

    def __init__(self):
        super().__init__(["12"], name="slow")
        self.answers, self.released = threading.Event(), []

    def poll(self, views, *, wait=False):
        return super().poll(views, wait=wait) if self.answers.is_set() else []

    def release(self, views):
        self.released += views
        super().release(views)


# Answers --------------------------------------------------------------------------------------------------------------


def test_every_answer_is_that_of_decode_whatever_else_is_in_the_batch(serving, pair):
    settings = [{"temperature": (0.0, 1.5, 0.7)[i % 3], "seed": i, "top_p": (1.0, 0.8)[i % 2]} for i in range(9)]
    limits = [{"max_call_tokens": 3} if i % 4 == 3 else {} for i in range(9)]
    with ThreadPoolExecutor(9) as pool:
        asked = [
            pool.submit(serving.chat, q, **s, extra_body={"relay": r}) for q, s, r in zip(QUESTIONS, settings, limits)
        ]
        answers = [one.result() for one in asked]
    expected = [pair.decode([q], progress=False, **s, **r)[0] for q, s, r in zip(QUESTIONS, settings, limits)]
    assert [a.choices[0].message.content for a in answers] == [t.teacher_view for t in expected]
    assert sum(len(t.answered) for t in expected) >= 5
    for answer, trace in zip(answers, expected):
        calls = answer.choices[0].relay["calls"]
        assert [(c["asked"], c["granted"], c["delivered"], c["start"], c["end"]) for c in calls] == [
            (c.requested, c.granted, c.delivered, c.start, c.end) for c in trace.calls
        ]
        assert answer.usage.prompt_tokens == len(trace.prompt_ids)
        assert answer.usage.completion_tokens == len(trace.completion_ids)
        student, teacher = answer.usage.models["student"], answer.usage.models["teacher"]
        assert (student["completion_tokens"], student["command_tokens"]) == (
            trace.count("s") + trace.count("c"),
            trace.count("c"),
        )
        assert (teacher["model"], teacher["completion_tokens"]) == ("teacher", trace.count("t"))
        assert answer.choices[0].finish_reason == {"length": "length"}.get(trace.stop, "stop")


def test_streams_say_the_same_and_count_the_same(serving):
    whole = serving.chat(QUESTIONS[1], n=2, seed=3, temperature=1.0)
    chunks = list(
        serving.chat(QUESTIONS[1], n=2, seed=3, temperature=1.0, stream=True, stream_options={"include_usage": True})
    )
    texts, ends = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [c.message.content for c in whole.choices]
    assert ends == [c.finish_reason for c in whole.choices]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert not any("<" in (c.choices[0].delta.content or "") for c in chunks[:-1]), "no command is shown"
    settings = {"model": NAME, "messages": messages(QUESTIONS[1]), "n": 2, "seed": 3, "temperature": 1.0}
    with serving.openai.chat.completions.stream(**settings) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert [c.message.content for c in final.choices] == texts
    assert {"content.delta", "content.done"} <= kinds
    raw = serving.post({"model": NAME, "messages": messages(QUESTIONS[1]), "stream": True, "max_tokens": 3})
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.text.endswith("data: [DONE]\n\n")


def test_n_choices_are_those_of_decode_and_differ(serving, pair):
    answer = serving.chat(QUESTIONS[0], n=4, seed=7, temperature=1.5)
    traces = pair.decode([QUESTIONS[0]] * 4, seed=7, temperature=1.5, progress=False)
    assert [c.message.content for c in answer.choices] == [t.teacher_view for t in traces]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert len({c.message.content for c in answer.choices}) > 1
    one, other = (serving.chat(QUESTIONS[0], temperature=1.5, extra_body={"relay": {}}) for _ in range(2))
    seeds = [a.choices[0].relay["seed"] for a in (one, other)]
    assert seeds[0] != seeds[1], "without a seed each request draws its own, and says it"
    again = serving.chat(QUESTIONS[0], temperature=1.5, seed=seeds[0])
    assert again.choices[0].message.content == one.choices[0].message.content


def test_chats_take_system_messages_and_parts(serving, pair):
    parts = [{"type": "text", "text": QUESTIONS[2][:10]}, {"type": "text", "text": QUESTIONS[2][10:]}]
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = serving.openai.chat.completions.create(model=NAME, messages=chat, seed=1)
    trace = pair.decode([QUESTIONS[2]], seed=1, system="Be brief.", progress=False)[0]
    assert answer.usage.prompt_tokens == len(trace.prompt_ids)
    assert answer.choices[0].message.content == trace.teacher_view


def test_completions_take_texts_and_ids_without_a_template(serving, pair):
    create = serving.openai.completions.create
    template = [pair.student.prompt_ids(messages(q)) for q in QUESTIONS[:2]]
    by_ids = create(model=NAME, prompt=template, seed=4, temperature=1.5, n=2)
    traces = pair.decode([q for q in QUESTIONS[:2] for _ in range(2)], seed=4, temperature=1.5, progress=False)
    assert [c.text for c in by_ids.choices] == [t.teacher_view for t in traces], "ids of the template are a chat"
    assert by_ids.usage.models["teacher"]["completion_tokens"] == sum(t.count("t") for t in traces) > 0
    text = "The tiles of a full row: 83+21=104.\nAll tiles together: "
    raw = create(model=NAME, prompt=text, seed=5)
    relay = pair.relay()
    trace = relay.run([Segment(text)], seeds=[problem_seed(5, "question-0")])[0]
    assert trace.prompt_ids == pair.student.text.encode(text)
    assert raw.choices[0].text == trace.teacher_view
    streamed = create(model=NAME, prompt=text, seed=5, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == raw.choices[0].text


def test_a_raw_prompt_has_no_template_for_the_teacher_either(pair):
    text = "The tiles of a full row: 83+21=104.\nAll tiles together: 82*35="
    trace = pair.relay(call_rule=lambda state: 6 if state.position == 0 else None).run([Segment(text)])[0]
    engine = pair.teacher.engine
    slot = engine.open(engine.text.encode(text))
    written: list[int] = []
    while len(written) < trace.calls[0].delivered:
        written.append(int(engine.forward([slot])[0, -1].argmax()))
        slot.ids += written[-1:]
    engine.close(slot)
    assert trace.calls[0].delivered == 5  # 2870 and the line's end
    assert trace.completion_ids[trace.calls[0].end :][:5] == written


def test_stop_strings_end_the_answer_and_are_not_in_it(serving, pair):
    trace = pair.decode([QUESTIONS[1]], seed=2, progress=False)[0]
    stop = trace.teacher_view[40:46]  # over several tokens
    cut = trace.teacher_view[: trace.teacher_view.index(stop)]
    for stops in (stop, ["never", stop]):
        answer = serving.chat(QUESTIONS[1], seed=2, stop=stops)
        assert answer.choices[0].message.content == cut
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < len(trace.completion_ids)
        streamed = serving.chat(QUESTIONS[1], seed=2, stop=stops, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed) == cut


def test_a_stop_string_ends_the_answer_with_the_last_token_that_is_allowed_too(pair):
    rule = lambda state: 2 if state.position == 3 else None  # noqa: E731
    relay = Relay(pair.student, ScriptedTeacher(["@@"]), call_rule=rule, write_call=False, max_tokens=12)
    with served(relay) as it:
        for tokens in (5, 12):  # the teacher's last one, and the student's
            whole = it.chat(QUESTIONS[0], max_tokens=tokens).choices[0]
            cut, stop = whole.message.content[:-2], whole.message.content[-2:]
            assert (stop == "@@", stop in cut, whole.finish_reason) == (tokens == 5, False, "length")
            for stream in (False, True):
                answer = it.chat(QUESTIONS[0], max_tokens=tokens, stop=stop, stream=stream, extra_body={"relay": {}})
                end = list(answer)[-1].choices[0] if stream else answer.choices[0]
                assert (end.finish_reason, end.relay["stop"]) == ("stop", "interrupted")
                assert stream or end.message.content == cut


def test_a_long_stop_string_is_compared_no_further_than_the_text():
    class Counted(str):
        slices = 0

        def __getitem__(self, key):
            Counted.slices += 1
            return super().__getitem__(key)

    text = VisibleText([Counted("ab" * 500)])
    text.add("1+1=abab")
    assert (text.ready, Counted.slices) == (4, 8)


def test_limits_of_a_request(serving, pair):
    short = serving.chat(QUESTIONS[1], max_completion_tokens=7)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 7)
    relay = {"forbid_calls": True}
    alone = serving.chat(QUESTIONS[1], seed=1, temperature=1.5, extra_body={"relay": relay})
    trace = pair.decode([QUESTIONS[1]], seed=1, temperature=1.5, forbid_calls=True, progress=False)[0]
    assert (alone.choices[0].relay["calls"], alone.choices[0].message.content) == ([], trace.teacher_view)
    many = serving.chat(QUESTIONS[1], extra_body={"relay": {"max_call_tokens": 10**6, "max_calls": 10**6}})
    assert many.usage.models["teacher"]["completion_tokens"] <= 8, "the server's own limits hold"


# Refusals -------------------------------------------------------------------------------------------------------------

GOOD = {"model": NAME, "messages": messages("1+1?")}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "Invalid JSON"),
        (b'{"model": "pair", "messages": [', 400, "Invalid JSON"),
        (b'{"model": "pair", "messages": ' + b"[" * 9000, 400, "Invalid JSON"),
        (b'{"model": "pair", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "Invalid JSON"),
        (b"[1]", 400, "object"),
        ({"model": NAME}, 400, "messages"),
        (GOOD | {"messages": []}, 400, "messages"),
        (GOOD | {"messages": [{"role": "tool", "content": "1"}]}, 400, "messages.0.role"),
        (GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        (GOOD | {"model": "gpt"}, 404, "'pair'"),
        (GOOD | {"temperature": -1}, 400, "temperature"),
        (GOOD | {"temperature": True}, 400, "temperature"),
        (GOOD | {"top_p": 0}, 400, "top_p"),
        (GOOD | {"seed": "1"}, 400, "seed"),
        (GOOD | {"n": 0}, 400, "n:"),
        (GOOD | {"n": 7}, 400, "1 to 6"),
        (GOOD | {"max_tokens": 161}, 400, "at most 160"),
        (GOOD | {"stop": [""]}, 400, "stop"),
        (GOOD | {"stop": ["x"] * 17}, 400, "stop"),
        (GOOD | {"stop": "x" * 257}, 400, "stop: a text of 1 to 256 characters"),
        (GOOD | {"tools": [{"type": "function"}]}, 400, "tools"),
        (GOOD | {"logprobs": True}, 400, "logprobs"),
        (GOOD | {"relay": {"max_calls": -1}}, 400, "relay.max_calls"),
        (GOOD | {"relay": {"calls": 1}}, 400, "relay.calls"),
        (GOOD | {"messages": messages("1+" * 3000)}, 400, "2048"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(serving, body, status, words):
    reply = serving.post(body)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (status, "invalid_request_error")
    assert words in error["message"]


@pytest.mark.parametrize("prompt", [[], [[]], "", [1, "a"], [10**9], [-1], None, 5])
def test_prompts_that_are_none(serving, prompt):
    reply = serving.post({"model": NAME, "prompt": prompt}, "/v1/completions")
    assert reply.status_code == 400, reply.text


def test_fields_that_say_nothing_are_taken(serving):
    quiet = {"user": "me", "tools": [], "logprobs": False, "presence_penalty": 0.0, "stop": None, "logit_bias": {}}
    reply = serving.post(GOOD | quiet | {"max_tokens": 2})
    assert reply.status_code == 200, reply.text


def test_other_paths_and_methods(serving):
    assert serving.post(GOOD, "/v1/embeddings").json()["error"]["message"].startswith("POST /v1/embeddings")
    assert httpx2.get(f"{serving.url}/v1/completions").status_code == 405
    model = serving.openai.models.list().data[0]
    assert (model.id, model.max_model_len, model.student, model.teacher) == (NAME, 2048, "relay", "teacher")


def test_the_key_and_the_size_of_a_request(pair):
    with served(pair.relay(), api_key="secret", max_body=2000, local=True) as it:
        wrong = ["Bearer wrong", "Bearer s\u00e9cret".encode(), "secret", "Basic secret"]
        for key in ({}, *({"Authorization": value} for value in wrong)):
            assert it.post(GOOD, headers=key).status_code == 401
            assert httpx2.get(f"{it.url}/v1/models", headers=key).status_code == 401
        for value in ("bearer secret", "BEARER  secret"):
            assert httpx2.get(f"{it.url}/v1/models", headers={"Authorization": value}).status_code == 200
        right = {"Authorization": "Bearer secret"}
        assert it.post(GOOD | {"max_tokens": 2}, headers=right).status_code == 200
        assert it.post(GOOD | {"user": "x" * 2000}, headers=right).status_code == 413
        assert httpx2.get(f"{it.url}/health", timeout=300).status_code == 200
        assert it.post(GOOD, headers=right | {"Host": "lab.example"}).status_code == 200, "the key says who asks"


def test_a_page_of_another_site_gets_no_answer(pair):
    """A browser sends plain text anywhere without asking first, and takes a rebound name for the site itself."""
    with served(pair.relay(), local=True) as it:
        foreign = {"Origin": "https://site.example"}
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = it.post(GOOD, headers=foreign | {"Content-Type": kind})
            assert answer.status_code == 415
            assert "Content-Type: application/json" in answer.json()["error"]["message"]
        assert it.post(GOOD, headers={"Host": "site.example:8000"}).status_code == 400
        assert httpx2.get(f"{it.url}/v1/models", headers={"Host": "site.example"}).status_code == 400
        for host in ("localhost:8000", "127.0.0.1"):
            assert it.post(GOOD | {"max_tokens": 2}, headers={"Host": host}).status_code == 200


def test_more_answers_than_may_wait_are_refused(pair):
    teacher = Slow()
    relay = Relay(pair.student, teacher, batch_size=2, call_rule=lambda state: 2 if state.position == 3 else None)
    with served(relay, max_waiting=1) as it, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(it.chat, QUESTIONS[i], max_tokens=12) for i in range(3)]
        wait(lambda: httpx2.get(f"{it.url}/health", timeout=300).json() == {"status": "ok", "running": 2, "waiting": 1})
        with pytest.raises(openai.RateLimitError, match="try again later"):
            it.chat(QUESTIONS[3])
        teacher.answers.set()
        assert all("12" in one.result().choices[0].message.content for one in asked)


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_row_along(pair, stream):
    teacher = Slow()
    relay = Relay(pair.student, teacher, call_rule=lambda state: 2 if state.position == 3 else None)
    with served(relay) as it, ThreadPoolExecutor(1) as pool:
        stays = pool.submit(it.chat, QUESTIONS[0], max_tokens=12)
        body = json.dumps({"model": NAME, "messages": messages(QUESTIONS[1]), "stream": stream}).encode()
        with socket.create_connection(it.address) as leaves:
            leaves.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait(lambda: len(teacher.requests) == it.running() == 2)
        wait(lambda: it.running() == 1)
        assert len(relay.student.slots) == 1
        assert [v.messages for v in teacher.released] == [messages(QUESTIONS[1])]
        teacher.answers.set()
        assert "12" in stays.result().choices[0].message.content
        assert it.metrics()['relaylab_answers_total{stop="interrupted"}'] == 1


@pytest.mark.parametrize("on_failure", ["exclude", "carry_on"])
def test_a_teacher_that_fails_ends_its_own_answers_only(pair, on_failure):
    dead = TeacherOutput("", "error", error="the connection failed")
    teacher = ScriptedTeacher(lambda view: dead if QUESTIONS[0] in view.messages[0]["content"] else "12")
    rule = lambda state: 2 if state.position == 3 else None  # noqa: E731
    relay = Relay(pair.student, teacher, call_rule=rule, max_tokens=30, on_failure=on_failure)
    with served(relay) as it, ThreadPoolExecutor(4) as pool:
        others = [pool.submit(it.chat, q) for q in QUESTIONS[1:4]]
        if on_failure == "exclude":
            with pytest.raises(openai.InternalServerError, match="the teacher failed: the connection failed") as error:
                it.chat(QUESTIONS[0])
            assert (error.value.status_code, error.value.code) == (502, "teacher_failed")
            with pytest.raises(openai.APIError, match="the connection failed"):
                list(it.chat(QUESTIONS[0], stream=True))
        else:
            answer = it.chat(QUESTIONS[0], extra_body={"relay": {}})
            assert answer.choices[0].relay["calls"][0]["error"] == "the connection failed"
            assert answer.usage.completion_tokens == 30
        assert all("12" in one.result().choices[0].message.content for one in others)


def test_a_teacher_server_that_is_killed_fails_what_calls_it(pair, misbehaving_server):
    misbehaving_server.writes = "12 and so on"
    teacher = APITeacher(misbehaving_server.url, "m", retries=0)
    rule = lambda state: 2 if state.position == 3 else None  # noqa: E731
    relay = Relay(pair.student, teacher, call_rule=rule, max_tokens=12, on_failure="exclude")
    with teacher, served(relay) as it, ThreadPoolExecutor(1) as pool:
        assert "12" in it.chat(QUESTIONS[0]).choices[0].message.content
        misbehaving_server.stop()
        alone = pool.submit(it.chat, QUESTIONS[1], extra_body={"relay": {"forbid_calls": True}})
        with pytest.raises(openai.InternalServerError, match="the teacher failed: the connection to") as error:
            it.chat(QUESTIONS[0])
        assert error.value.status_code == 502
        assert alone.result().choices[0].finish_reason == "length"


def test_a_failure_that_would_end_all_is_no_setting(pair):
    with pytest.raises(ValueError, match="'exclude' or 'carry_on'"):
        Server(pair.relay(on_failure="raise"), NAME)


def test_a_teacher_that_takes_text_back_is_not_served(pair):
    with pytest.raises(ValueError, match="readers have it already"):
        Server(Relay(pair.student, Verifier(pair.teacher.engine, threshold=1.0)), NAME)


def test_a_relay_that_fails_begins_anew(pair, monkeypatch):
    with served(pair.relay()) as it:
        forward = pair.student.forward

        def once(*args, **options):
            monkeypatch.setattr(pair.student, "forward", forward)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(pair.student, "forward", once)
        with pytest.raises(openai.InternalServerError, match="the relay failed: RuntimeError"):
            it.chat(QUESTIONS[0])
        assert it.running() == len(pair.student.slots) == 0
        assert it.chat(QUESTIONS[0]).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("ends", [True, False])
def test_a_server_that_is_told_to_stop_finishes_what_is_under_way_up_to_a_limit(pair, ends):
    teacher = Slow()
    relay = Relay(pair.student, teacher, call_rule=lambda state: 2 if state.position == 3 else None, max_tokens=12)
    with served(relay, drain=30 if ends else 1) as it, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(it.chat, QUESTIONS[0])
        wait(lambda: it.running() == 1)
        it.http.should_exit = True  # what uvicorn's handler of SIGTERM does
        if ends:
            teacher.answers.set()
            assert "12" in answer.result().choices[0].message.content
        else:
            with pytest.raises(openai.APIError):
                answer.result()
        it.thread.join(20)
        assert not it.thread.is_alive()
        with pytest.raises(openai.APIConnectionError):
            it.chat(QUESTIONS[0])


# Metrics, and the parts -----------------------------------------------------------------------------------------------


def test_metrics_are_the_sums_of_what_was_answered(pair):
    with served(pair.relay()) as it:
        usages = [it.chat(q, seed=1).usage for q in QUESTIONS[:4]]
        it.post({})
        metrics = it.metrics()
    teacher = sum(u.models["teacher"]["completion_tokens"] for u in usages)
    commands = sum(u.models["student"]["command_tokens"] for u in usages)
    assert metrics['relaylab_tokens_total{source="prompt"}'] == sum(u.prompt_tokens for u in usages)
    assert metrics['relaylab_tokens_total{source="teacher"}'] == teacher > 0
    assert metrics['relaylab_tokens_total{source="command"}'] == commands > 0
    assert metrics['relaylab_tokens_total{source="student"}'] == (
        sum(u.completion_tokens for u in usages) - teacher - commands
    )
    assert metrics['relaylab_answers_total{stop="end"}'] == metrics["relaylab_first_token_seconds_count"] == 4
    calls = sum(u.models["teacher"]["calls"] for u in usages)
    assert metrics['relaylab_calls_total{status="answered"}'] == calls
    assert metrics['relaylab_refused_total{status="400"}'] == 1
    assert metrics['relaylab_cache_slots{model="student"}'] == metrics['relaylab_rows{state="running"}'] == 0


@given(
    st.lists(
        st.tuples(
            st.text(alphabet="<cal>/1 x", max_size=8)
            | st.sampled_from(["<call>", "</call>", "<call>3</call>", "<ca", "ll>"]),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.lists(st.sampled_from(["x", "<c", "1 ", "xx1", "l>"]), max_size=2),
)
def test_the_text_that_is_sent_is_never_taken_back(pieces, stops):
    text, sent = VisibleText(stops), ""
    segments: list[tuple[bool, str]] = []
    for piece, teacher in pieces:
        text.add(piece, teacher)
        if segments and segments[-1][0] == teacher:
            segments[-1] = (teacher, segments[-1][1] + piece)
        else:
            segments.append((teacher, piece))
        assert text.text[: text.ready].startswith(sent)
        sent = text.text[: text.ready]
    text.end()
    whole = "".join(s if teacher else strip_calls(s) for teacher, s in segments)
    assert text.text.startswith(sent)
    if not text.stopped:
        assert text.text == whole
    assert not any(s in text.text for s in stops)
    assert whole.startswith(text.text)


PIECES = st.lists(st.sampled_from([*"<cal>/12", "<call", "<call>", "</call>", " to=", "<call to=a"]), max_size=12)


@given(PIECES.map("".join), PIECES.map("".join), st.booleans())
def test_what_is_settled_stays_as_it_is_whatever_follows(text, more, named):
    at, whole = settled(text, named=named), strip_calls(text + more, named=named)
    assert strip_calls(text[:at], named=named) + strip_calls(text[at:] + more, named=named) == whole


def test_sequences_that_join_a_running_stream_are_as_they_are_alone(pair):
    relay = pair.relay(batch_size=3)
    configs = [relay.config, *(pair.relay(temperature=1.5, top_p=p, forbid_calls=p < 1).config for p in (1.0, 0.9))]
    joining = [relay.sequence(i, q, i, config=configs[i % 3]) for i, q in enumerate(QUESTIONS)]
    passes = 0

    def feed(places: int, idle: bool) -> list:
        nonlocal passes
        passes += 1
        if passes == 20:
            joined[1].finish("interrupted")
        new = [joining.pop(0) for _ in range(min(places, len(joining), 1 if passes % 4 == 0 or places == 3 else 0))]
        joined.extend(new)
        return new

    joined: list = []
    stream = Stream(relay, [], feed)
    traces = {event.row: event.trace for event in stream if isinstance(event, Done)}
    assert stream.traces == []
    assert len(traces) == len(QUESTIONS)
    assert not pair.student.slots
    for i, question in enumerate(QUESTIONS):
        alone = Relay(pair.student, pair.teacher, configs[i % 3]).run([question], seeds=[i])[0]
        length = len(traces[i].completion_ids)
        assert traces[i].completion_ids == alone.completion_ids[:length]
        assert (length < len(alone.completion_ids), traces[i].stop == "interrupted") == (i == 1, i == 1)
    assert any(t.count("t") for t in traces.values())


def test_readers_see_no_command_that_names_its_teacher(pair):
    several = load_pair("relay", "small=student large=teacher")
    relay = several.relay(call_rule=lambda state: (3, "large") if state.position == 4 else None, max_tokens=40)
    with served(relay) as it:
        assert not it.server.worker._remote, "all models are in this process"
        answer = it.chat(QUESTIONS[0], seed=0).choices[0].message.content
        stream = it.chat(QUESTIONS[0], seed=0, stream=True)
        parts = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    trace = relay.run([QUESTIONS[0]], seeds=[problem_seed(0, "question-0")])[0]
    assert "<call to=large>3</call>" in trace.text
    assert answer == parts == trace.teacher_view


def test_a_setting_beyond_all_sense_is_the_setting_of_its_request_alone(pair):
    with served(pair.relay(batch_size=4)) as it, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(it.chat, q, seed=0, temperature=1.0) for q in QUESTIONS[:2]]
        huge = it.chat(QUESTIONS[0], seed=0, temperature=1.0, extra_body={"top_k": 2**63})
        answers = [one.result().choices[0].message.content for one in asked]
    assert huge.choices[0].message.content == answers[0]


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_fault(pair):
    with served(pair.relay()) as it:
        with socket.create_connection(it.address) as client:
            client.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        wait(lambda: it.metrics().get('relaylab_refused_total{status="499"}') == 1)
        assert 'relaylab_refused_total{status="500"}' not in it.metrics()
