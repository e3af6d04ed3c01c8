"""A student behind a server: the same answers as in this process, and what goes wrong."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import openai
import pytest
import torch
from misbehaving_server import DROP, MisbehavingServer, Reply, Request
from typer.testing import CliRunner

from relaylab.cli import app
from relaylab.engine import load as engines
from relaylab.evaluation.evaluate import evaluate
from relaylab.relay.api_client import ServerError
from relaylab.relay.api_student import APIStudent
from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.call_rules import CallAt, CallEvery, CallWhenUnsure
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair
from relaylab.relay.relay import StudentFailed
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problems
from relaylab.trace import Trace, read_traces

QUESTIONS = [p for suite in ("tiles", "savings") for p in problems(suite, 2)]

load_engine = functools.cache(engines.load_engine)


Kind = Literal["vLLM", "SGLang", "llama.cpp"]


class ModelServer:
    """A model behind completions as vLLM has them: every token runs the whole text anew, without cache or batch.

    ``token_ids`` keep the stop string and the end token. ``kind``: it answers as this server was seen to. llama.cpp
    has ids at ``/completion`` alone, no stop string in the text, no log-probabilities of its tokens. SGLang gives
    log-probabilities after temperature and bias, keeps some tokens of its context, and hears no seed.
    """

    def __init__(self, server: MisbehavingServer, name: str, before: Callable[[Request], Reply | None] | None = None):
        engine = load_engine(name)
        self.model, self.tokenizer, self.ends = engine.model, engine.tokenizer, set(engine.end_ids)
        self.server, self.lock, self.obeys_bias, self.trims = server, threading.Lock(), True, False
        self.kind: Kind = "vLLM"
        self.before = before or (lambda request: None)
        server.models, server.context, server.rule = [name], 512, self.answer

    def answer(self, request: Request) -> Reply | None:
        if request.path.endswith("/models"):
            model = {"id": self.server.models[0], "owned_by": self.kind.replace(".", "").lower()}
            model |= (
                {"meta": {"n_ctx": self.server.context}} if self.llama_cpp else {"max_model_len": self.server.context}
            )
            return Reply(body={"data": [model]})
        if (reply := self.before(request)) is not None:
            return reply
        if "chat" in request.path:
            return Reply(status=404, body={"error": {"message": "no chat here"}})
        body = request.body
        prompt = body["prompt"]
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
        if self.llama_cpp:  # it writes as much as there is room for
            body["max_tokens"] = max(1, min(body["max_tokens"], self.server.context - len(ids)))
        if self.kind == "SGLang":  # its own limits
            body["max_tokens"] = max(1, min(body["max_tokens"], self.server.context - 2 - len(ids)))
            if len(ids) > self.server.context - 7:
                return Reply(status=400, body={"error": {"message": "Input length exceeds the maximum allowed length"}})
        if len(ids) + body["max_tokens"] > self.server.context:
            return Reply(status=400, body={"error": {"message": "longer than the context"}})
        with self.lock, torch.no_grad():
            written, logprobs, reason = self.write(list(ids), body)
        text = self.tokenizer.decode([i for i in written if i not in self.ends])
        if self.llama_cpp:
            return self.as_llama_cpp(request, len(ids), written, logprobs, reason, text)
        choice = {"index": 0, "text": text, "finish_reason": reason, "stop_reason": None}
        if body.get("return_token_ids"):
            choice["token_ids"] = written[:-1] if self.trims and reason == "stop" else written
        if body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": logprobs}
        return Reply(
            body={"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)}}
        )

    @property
    def llama_cpp(self) -> bool:
        return self.kind == "llama.cpp"

    def as_llama_cpp(
        self, request: Request, prompt: int, written: list[int], logprobs: list[float], reason: str, text: str
    ) -> Reply:
        stop = next((s for s in request.body.get("stop", ()) if s in text), "")
        text = text.partition(stop)[0] if stop else text
        if request.path != "/completion":
            counts = {"prompt_tokens": prompt, "completion_tokens": len(written)}
            return Reply(body={"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": counts})
        body: dict[str, Any] = {"content": text, "stopping_word": stop, "tokens_predicted": len(written)}
        body |= {"tokens_evaluated": prompt, "stop_type": "limit" if reason == "length" else "word" if stop else "eos"}
        body["tokens"] = written if request.body.get("return_tokens") else []
        if request.body.get("n_probs"):
            hidden = len(self.tokenizer(stop, add_special_tokens=False)["input_ids"])
            kept = list(zip(written, logprobs))[: len(written) - hidden]
            body["completion_probabilities"] = [{"id": i, "logprob": p} for i, p in kept]
        return Reply(body=body)

    def write(self, ids: list[int], body: dict) -> tuple[list[int], list[float], str]:
        written, logprobs = [], []
        luck = torch.Generator().manual_seed(0 if self.kind == "SGLang" else body.get("seed", 0))
        while len(written) < body["max_tokens"]:
            logits = self.model(input_ids=torch.tensor([ids + written])).logits[0, -1].float()
            raw = torch.log_softmax(logits, -1)
            for i, bias in (body.get("logit_bias") or {}).items() if self.obeys_bias else ():
                logits[int(i)] += bias
            if self.kind == "SGLang":
                raw = torch.log_softmax(logits / (body["temperature"] or 1), -1)
            if heat := body["temperature"]:
                token = int(torch.multinomial(torch.softmax(logits / heat, -1), 1, generator=luck))
            else:
                token = int(logits.argmax())
            written.append(token)
            logprobs.append(float(raw[token]))
            if token in self.ends | set(() if self.llama_cpp else body.get("stop_token_ids", ())):
                return written, logprobs, "stop"
            if any(stop in self.tokenizer.decode(written) for stop in body.get("stop", ())):
                return written, logprobs, "stop"
        return written, logprobs, "length"


@pytest.fixture
def served(misbehaving_server) -> ModelServer:
    return ModelServer(misbehaving_server, "relay")


@functools.cache
def local_pair() -> Pair:
    return Pair(load_engine("relay"), LocalTeacher(load_engine("teacher")), engines.relay_defaults("relay"))


@pytest.fixture
def pairs(served):
    """The same pair twice: in this process, and with its student on the server."""
    local = local_pair()
    with APIStudent(served.server.url, "relay", tokenizer=local.student.tokenizer, retries=1) as student:
        yield local, Pair(student, local.teacher, local.defaults)


def content(trace: Trace) -> dict:
    """A trace without what depends on the clock, on names and on what only logits could tell."""
    fields = asdict(trace) | {"logprobs": None, "entropies": None, "student": "", "config": None}
    fields["calls"] = [c | {"latency": None} for c in fields["calls"]]
    return fields


def same(left: list[Trace], right: list[Trace]) -> None:
    for a, b in zip(left, right, strict=True):
        assert content(a) == content(b)


# Greedy answers are those of the relay in this process -------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forbid_calls": True},
        {"max_calls": 1},
        {"max_call_tokens": 2},
        {"max_teacher_tokens": 5},
        {"fixed_call_tokens": 7},
        {"call_end": "line"},
        {"call_end": "answer"},
        {"max_tokens": 23},
        {"call_rule": CallAt({0: 3, 11: 4})},
        {"call_rule": CallEvery(9, 3)},
        {"call_rule": CallEvery(5, 2), "write_call": False},
    ],
    ids=str,
)
def test_greedy_answers_are_those_of_the_relay_in_this_process(pairs, options):
    local, remote = pairs
    decode = {"max_tokens": 120, "progress": False} | options
    expected = local.decode(QUESTIONS, **decode)
    same(remote.decode(QUESTIONS, **decode), expected)
    if not options:
        assert sum(len(t.answered) for t in expected) >= 2, "the student calls"


KINDS = pytest.mark.parametrize("kind", get_args(Kind))


@pytest.mark.parametrize("options", [{}, {"forbid_calls": True}, {"call_rule": CallEvery(9, 3)}], ids=str)
def test_greedy_answers_behind_llama_cpp(pairs, served, options):
    served.kind = "llama.cpp"
    same(*(pair.decode(QUESTIONS, max_tokens=120, progress=False, **options) for pair in reversed(pairs)))
    assert {r.path for r in served.server.requests if "include_stop_str_in_output" in r.body} == {"/completion"}


def test_llama_cpp_behind_a_proxy_that_hides_its_own_address(pairs, served):
    served.kind = "llama.cpp"
    served.before = lambda request: Reply(status=403, body="no") if request.path == "/completion" else None
    with pytest.raises(ServerError, match="a student needs the ids of what it writes, which"):
        pairs[1].relay()


@KINDS
def test_log_probabilities_are_those_of_the_server(pairs, served, kind):
    served.kind = kind
    local, remote = (pair.decode(QUESTIONS[:2], max_tokens=60, record=True, progress=False) for pair in pairs)
    for a, b in zip(local, remote, strict=True):
        assert b.entropies is None
        for source, left, right in zip(a.source, a.logprobs, b.logprobs, strict=True):
            hidden = source == "t" or (kind == "llama.cpp" and source == "c")
            assert (hidden and right is None) or abs(left - right) < 1e-4


def test_log_probabilities_of_another_distribution_are_left_out(pairs, served):
    """SGLang gives those after temperature and bias, and no request can ask for others."""
    served.kind, options = "SGLang", {"max_tokens": 90, "record": True, "progress": False}
    for trace in pairs[1].decode(QUESTIONS[:2], temperature=0.5, **options):
        assert set(trace.logprobs) == {None}
    local, remote = (pair.decode(QUESTIONS, forbid_calls=True, **options) for pair in pairs)
    found = [p for a, b in zip(local, remote, strict=True) for p in zip(a.logprobs, b.logprobs, strict=True)]
    assert max(abs(left - right) for left, right in found if right is not None) < 1e-4
    assert 1 <= sum(right is None for _, right in found) < 20, "of the tokens after a call that may not be"


@KINDS
def test_a_prompt_that_fills_the_context(served, pairs, kind):
    local, remote = pairs
    served.kind = kind
    served.server.context = 130
    for trace in remote.decode(QUESTIONS[:2], max_tokens=500, progress=False):
        assert trace.stop in ("context", "end", "teacher_end")
        own = max(i for i, source in enumerate(trace.source, 1) if source != "t")
        assert len(trace.prompt_ids) + own <= 130, "what a teacher of a larger context wrote may reach beyond"
        whole = local.solve(trace.prompt, max_tokens=500)
        assert whole.completion_ids[: len(trace.completion_ids)] == trace.completion_ids


def test_forks_force_and_forbid_calls(pairs):
    traces = pairs[0].decode(QUESTIONS[:3], max_tokens=90, progress=False)
    for change in ({"call": 3}, {"forbid": True}, {"call": 2, "write_call": False}):
        at = [min(4, len(t.completion_ids) - 1) for t in traces]
        made = []
        for pair in pairs:
            stream = pair.relay(max_tokens=90).forks(traces, at, **change)
            list(stream)
            made.append(stream.traces)
        same(made[1], made[0])
        if change.get("forbid"):
            assert all(t.completion_ids[a] != s.completion_ids[a] for s, t, a in zip(traces, made[0], at))


def test_where_a_call_is_forbidden_the_student_wanted_one(pairs, served):
    """The test above would pass without a ban if the student never began a call."""
    served.server.script()
    pairs[1].decode(QUESTIONS, forbid_calls=True, max_tokens=90, progress=False)
    biased = [r.body for r in served.server.requests if "logit_bias" in r.body]
    assert biased
    assert all(b["max_tokens"] == 1 for b in biased)


@KINDS
def test_both_models_on_servers(pairs, served, kind):
    local, remote = pairs
    served.kind = kind
    second = MisbehavingServer()
    try:
        ModelServer(second, "teacher").kind = kind
        with APITeacher(second.url, "teacher", tokenizer=local.student.tokenizer, retries=1) as teacher:
            served.server.script()
            both = Pair(remote.student, teacher, local.defaults).decode(QUESTIONS, max_tokens=90, progress=False)
    finally:
        second.stop()
    expected = local.decode(QUESTIONS, max_tokens=90, progress=False)
    same(
        [replace(t, teacher="teacher", calls=[replace(c, teacher="teacher") for c in t.calls]) for t in both], expected
    )
    assert served.server.max_in_flight >= 3, "rows do not wait for each other"


def test_the_teacher_may_take_a_turn_back(pairs):
    local, remote = pairs
    script = [TeacherOutput("12", "length", tokens=1, withdraw=True), TeacherOutput("so", "length", tokens=1)]
    made = [
        Pair(p.student, ScriptedTeacher(script)).decode(
            QUESTIONS[:1], max_tokens=40, call_rule=CallEvery(6, 1), write_call=False, max_calls=3, progress=False
        )
        for p in (local, remote)
    ]
    same(made[1], made[0])
    assert any(c.withdrawn for c in made[0][0].calls)


def test_sampled_answers_are_valid_and_repeatable(pairs):
    _, remote = pairs
    decode = partial(remote.decode, QUESTIONS, temperature=1.0, top_p=0.9, top_k=20, max_tokens=90, progress=False)
    first, again, other = decode(seed=3), decode(seed=3), decode(seed=4)
    same(first, again)
    assert [t.completion_ids for t in first] != [t.completion_ids for t in other]
    for trace in first:
        trace.check()
        end = trace.stop == "end"
        assert trace.text == "".join(remote.student.text.pieces(trace.completion_ids[: len(trace.pieces) - end]))
        assert trace.stop in ("end", "teacher_end", "length")
    for trace in decode(seed=3, forbid_calls=True):
        assert "<call" not in trace.text


# Failures -----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_half_way_loses_no_row(pairs, served, tmp_path):
    local, remote = pairs
    served.server.script()
    number = itertools.count()
    served.before = lambda request: DROP if next(number) >= 6 else None
    out = tmp_path / "traces.jsonl"
    decode = partial(remote.decode, QUESTIONS, max_tokens=90, progress=False, out=out)
    with pytest.warns(UserWarning, match=r"relay@127.0.0.1.*the connection to"):
        half = decode()
    lost = [t for t in half if t.stop == "excluded"]
    assert lost
    assert len(list(read_traces(out))) == len(QUESTIONS)
    served.before = lambda request: None
    served.server.script()
    remote.student._rest = 0.0
    whole = decode()
    same(whole, local.decode(QUESTIONS, max_tokens=90, progress=False))
    prompts = {tuple(t.prompt_ids) for t in lost}
    asked = [tuple(r.body["prompt"]) for r in served.server.requests if isinstance(r.body.get("prompt"), list)]
    assert asked
    assert all(any(p[: len(q)] == q for q in prompts) for p in asked), "only what was lost is done again"


def test_on_failure_raise(pairs, served):
    remote = pairs[1]
    relay = remote.relay(max_tokens=60, on_failure="raise")
    served.before = lambda request: DROP
    with pytest.raises(StudentFailed, match=r"relay@127.0.0.1.*the connection to") as error:
        relay.run(["What is 2+3?", "What is 3+4?"])
    assert len(error.value.traces) == 2
    assert not remote.student.slots
    assert not remote.student._open


def test_a_stream_that_is_closed_cancels_its_requests(pairs, served):
    served.before = lambda request: Reply(delay=30) if "stop" in request.body else None
    stream = pairs[1].relay(max_tokens=60).stream(["What is 2+3?"] * 3)
    thread = threading.Timer(0.5, lambda: pairs[1].student.close())
    thread.start()
    list(stream)
    assert [t.stop for t in stream.traces] == ["excluded"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [9**9]}, "holds no token ids"),
        ({"token_ids": None}, "holds no token ids"),
        ({"token_ids": []}, "holds no token ids"),
        ({"token_ids": [70, 71], "finish_reason": "content_filter"}, "ended with 'content_filter'"),
        ({"token_ids": [70, 71], "finish_reason": "stop"}, "its ids must hold the end token and the stop string"),
    ],
)
def test_answers_that_cannot_be_used(pairs, served, change, message):
    remote, truth = pairs[1], served.answer

    def changed(request: Request) -> Reply | None:
        reply = truth(request)
        if reply and "stop" in request.body:
            reply.body["choices"][0].update(change)
        return reply

    relay = remote.relay(max_tokens=60)
    served.server.rule = changed
    with pytest.warns(UserWarning, match=message):
        assert relay.run(["What is 2+3?"])[0].stop == "excluded"


def test_a_server_that_ignores_the_bias(pairs, served):
    served.obeys_bias = False
    with pytest.warns(UserWarning, match="does not obey logit_bias"):
        traces = pairs[1].decode(QUESTIONS, forbid_calls=True, max_tokens=90, progress=False)
    assert not any("<call" in t.text for t in traces)


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        ({"token_prompts": False}, "a student needs token-id prompts, which"),
        ({"token_ids": False}, "a student needs the ids of what it writes, which"),
        ({"completions": False}, "a student needs token-id prompts and the ids of what it writes"),
    ],
)
def test_a_server_that_lacks_something(misbehaving_server, dialect, message):
    from test_api_teacher import byte_tokenizer

    for name, value in dialect.items():
        setattr(misbehaving_server, name, value)
    student = APIStudent(misbehaving_server.url, "m", tokenizer=byte_tokenizer(), retries=0)
    with student, pytest.raises(ServerError, match=message):
        Pair(student, NoTeacher()).relay()


def test_another_tokenizer_and_a_dead_server(misbehaving_server):
    tokenizer = load_engine("student").tokenizer
    for url, message in (
        (misbehaving_server.url, "the tokenizer given is not that of m"),
        ("http://127.0.0.1:9/v1", "the connection to"),
    ):
        student = APIStudent(url, "m", tokenizer=tokenizer, retries=0)
        with student, pytest.raises(ServerError, match=message):
            Pair(student, NoTeacher()).relay()


def test_what_needs_logits_says_so(pairs):
    remote = pairs[1]
    with pytest.raises(ValueError, match=r"CallWhenUnsure.*reads the student's logits, which the server of relay@"):
        remote.relay(call_rule=CallWhenUnsure(1.0, 4))
    with pytest.raises(ValueError, match="alternatives need the student's logits"):
        remote.relay(alternatives=3)
    with pytest.raises(ValueError, match="needs the student's logits"):
        _ = remote.relay().engine


# The doors ----------------------------------------------------------------------------------------------------------


def test_the_command_line(served, tmp_path):
    url, out = served.server.url, tmp_path / "a.jsonl"
    ask = ["decode", "--suite", "tiles", "--limit", "2", "--max-tokens", "90", "--out"]
    local = local_pair().decode(problems("tiles", 2), max_tokens=90, progress=False)
    for more in ([f"{url}#relay"], [url, "--student-model", "relay", "--student-tokenizer", "student"]):
        out.unlink(missing_ok=True)
        result = CliRunner().invoke(app, [*ask, str(out), "--student", *more, "--teacher", "teacher"])
        assert result.exit_code == 0, result.output
        assert {t.id: t.completion_ids for t in read_traces(out)} == {t.id: t.completion_ids for t in local}
    wrong = CliRunner().invoke(app, [*ask, str(out), "--student", "relay", "--student-model", "relay"])
    assert "for a student behind a URL" in str(wrong.exception)


def test_an_evaluation_with_a_student_on_a_server(served, tmp_path):
    methods = [f"relay:student={served.server.url}#relay", "relay"]
    evaluate(methods, problems("tiles", 2), tmp_path, student="student", max_tokens=90, progress=False)
    remote, local = (
        {t.id: t.completion_ids for t in read_traces(f)} for f in sorted(tmp_path.glob("traces/0/*.jsonl"))
    )
    assert remote == local
    assert len(remote) == 2
    with pytest.raises(ValueError, match="reads the student's logits"):
        evaluate(
            [f"entropy:student={served.server.url}#relay"],
            problems("tiles", 2),
            tmp_path / "b",
            student="student",
            progress=False,
        )


def test_a_pair_whose_student_is_elsewhere_is_served(pairs, served):
    from test_serve import served as serving

    local, remote = pairs
    expected = local.decode([p.question for p in QUESTIONS], max_tokens=60, progress=False)
    with (
        serving(remote.relay(batch_size=4, on_failure="exclude", max_tokens=60)) as service,
        ThreadPoolExecutor() as pool,
    ):
        answers = list(pool.map(lambda p: service.chat(p.question, temperature=0), QUESTIONS))
        assert [a.choices[0].message.content for a in answers] == [t.teacher_view for t in expected]
        served.before = lambda request: DROP
        with pytest.raises(openai.InternalServerError, match="the student failed: the connection to") as error:
            service.chat("What is 2+3?")
        assert (error.value.status_code, error.value.code) == (502, "student_failed")


def test_a_stop_string_before_a_call_ends_the_answer_before_the_teacher_is_asked(pairs):
    from test_serve import served as serving

    local, remote = pairs
    question = QUESTIONS[0].question
    trace = local.solve(question)
    begun = "".join(trace.pieces[: trace.answered[0].start])
    teacher = ScriptedTeacher([TeacherOutput("", "error", error="down")])
    relay = Pair(remote.student, teacher, local.defaults).relay(on_failure="exclude")
    with serving(relay) as service:
        for stream in (False, True):
            answer = service.chat(question, stop=begun[10:15], stream=stream)
            text = answer.choices[0].message.content if not stream else None
            text = text or "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            assert (text, teacher.requests) == (begun[: begun.index(begun[10:15])], [])
        with pytest.raises(openai.InternalServerError, match="the teacher failed: down"):
            service.chat(question)


def test_the_benchmark_of_servers_asks_no_question_in_two_cases(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import servers

    asked = []
    monkeypatch.setattr(servers, "speed", lambda pair, part, rows, clock: asked.append((pair, *part)) or 1.0)
    cases = {"relay": ("local", "remote"), "student alone": ("local", "remote")}
    servers.speeds(cases, list(range(100)), [1, 8], 2, time.perf_counter)
    parts = [part for pair, *part in asked if pair == "remote"]
    assert parts == [part for pair, *part in asked if pair == "local"]
    assert [len(part) for part in parts] == [4, 4, 4, 8, 8, 8] * 2
    assert [question for part in parts for question in part] == list(range(72))
