"""The HTTP side of ``relaylab serve``: an OpenAI-compatible API over one relay (docs/serving.md)."""

from __future__ import annotations

import asyncio
import copy
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as metrics_text
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from relaylab.engine.token_text import prompt_ids, raw_ids
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Message, NamedTeachers, Segment
from relaylab.server.fields import AnswerRequest, ChatRequest, CompletionRequest, Refusal, Reply, parse, usage_of
from relaylab.server.worker import Row, VisibleText, Worker

BODY_SECONDS = 30  # in which the body of a request must be there
LONG = 10_000  # characters of a prompt that is tokenised in a thread of its own
LOCAL = ("127.0.0.1", "localhost")
CLOSED_REQUEST = 499  # what nginx logs for a client that left; nobody reads it


class Server:
    """A relay and the requests to it.

    Args:
        relay: its settings are the defaults and the limits of every request.
        name: of the model that it is served as.
        api_key: must come with every request; None asks for none.
        max_waiting: answers that may wait for a place in the batch.
        max_body: bytes of a request.
    """

    def __init__(
        self, relay: Relay, name: str, *, api_key: str | None = None, max_waiting: int = 256, max_body: int = 2**20
    ):
        self.relay, self.name, self.max_body, self._key = relay, name, max_body, api_key
        self.worker = Worker(relay, max_waiting, self._count)
        self._tokenizer = copy.deepcopy(relay.student.tokenizer)  # the worker's own must not be used in two threads
        self._tokenizing = asyncio.Lock()
        self._run, self._numbers = secrets.token_hex(8), count()  # of this server, and of its answers
        self._metrics()

    def app(self, *, local: bool = False) -> Starlette:
        """The ASGI application. Its lifespan is that of the worker's thread.

        ``local``: without a key, answer only what is addressed to this machine by its own name.
        """
        # A site may let its name lead to this machine; the browser takes the answers for its own then.
        names = Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL, www_redirect=False)
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
        ]
        handlers: Any = {Refusal: self._refuse, HTTPException: self._refuse_route, Exception: self._fail}

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self.worker.start()
            yield
            await asyncio.to_thread(self.worker.close)

        guards = [names] if local and self._key is None else []
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan, middleware=guards)

    # Small routes -----------------------------------------------------------------------------------------------------

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        student, teacher = self.relay.student, self.relay.teacher
        model = {"id": self.name, "object": "model", "created": int(self._started), "owned_by": "relaylab",
                 "max_model_len": student.context, "student": student.name, "teacher": teacher.name}  # fmt: skip
        return JSONResponse({"object": "list", "data": [model]})

    async def _health(self, _: Request) -> Response:
        worker = self.worker
        status = {"status": "ok" if worker.alive else "stopping", "running": len(worker.live)}
        return JSONResponse(status | {"waiting": len(worker.waiting)}, 200 if worker.alive else 503)

    async def _show_metrics(self, _: Request) -> Response:
        return Response(metrics_text(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
            raise Refusal(401, "this server needs its API key: send it as 'Authorization: Bearer KEY'")

    # Answers ----------------------------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        fields: ChatRequest = await self._read(request, ChatRequest)
        return await self._answer(request, fields, [fields.chat])

    async def _completions(self, request: Request) -> Response:
        fields: CompletionRequest = await self._read(request, CompletionRequest)
        return await self._answer(request, fields, [self._raw(prompt) for prompt in fields.prompts])

    def _raw(self, prompt: str | list[int]) -> Segment:
        if isinstance(prompt, str):
            return Segment(prompt)
        text = self.relay.student.text
        if not self.relay.shared and not self.relay.forbid_calls:
            raise Refusal(
                400, "prompt: token ids need a teacher with the student's tokenizer; send text", param="prompt"
            )
        if not all(0 <= i < len(text.bytes) and text.known[i] for i in prompt):
            raise Refusal(400, "prompt: an id is outside of the student's vocabulary", param="prompt")
        return Segment(b"".join(text.bytes[i] for i in prompt).decode(errors="replace"), tuple(prompt))

    async def _read(self, request: Request, kind: type[AnswerRequest]) -> Any:
        self._check_key(request)
        # A page of any site can make a browser send other types to this machine without asking it first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the request must be JSON: send it with 'Content-Type: application/json'")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > self.max_body:
                        raise Refusal(413, f"the request is larger than the {self.max_body} bytes that are taken")
        except ClientDisconnect:
            raise Refusal(CLOSED_REQUEST, "the client left before its request was whole") from None
        except TimeoutError:
            raise Refusal(408, f"the request did not come within {BODY_SECONDS} s") from None
        fields = parse(kind, bytes(body))
        if fields.model != self.name:
            message = f"model: there is no {fields.model!r} here; the only one is {self.name!r}"
            raise Refusal(404, message, param="model", code="model_not_found")
        return fields

    async def _prompt_ids(self, prompt: Segment | list[Message]) -> list[int]:
        if isinstance(prompt, Segment) and prompt.ids is not None:
            ids = list(prompt.ids)
        else:
            size = len(prompt.text) if isinstance(prompt, Segment) else sum(len(m["content"]) for m in prompt)
            async with self._tokenizing:
                try:  # a long prompt does not hold up the others
                    ids = await asyncio.to_thread(self._encode, prompt) if size > LONG else self._encode(prompt)
                except ValueError as error:
                    raise Refusal(400, str(error)) from None
        most = self.relay.student.context
        if not 1 <= len(ids) <= most:
            message = f"the prompt has {len(ids)} tokens; the student takes 1 to {most}"
            raise Refusal(400, message, code="context_length_exceeded")
        return ids

    def _encode(self, prompt: Segment | list[Message]) -> list[int]:
        if isinstance(prompt, Segment):
            return raw_ids(self._tokenizer, prompt.text)
        return prompt_ids(self._tokenizer, prompt)

    async def _answer(self, request: Request, fields: AnswerRequest, prompts: list[Any]) -> Response:
        config = fields.config(self.relay.config)
        wanted, most = len(prompts) * fields.n, self.relay.batch_size
        if not 1 <= wanted <= most:
            message = f"n: {len(prompts)} prompts x n={fields.n} are {wanted} answers; a request may have 1 to {most}"
            raise Refusal(400, message, param="n")
        ids = [await self._prompt_ids(prompt) for prompt in prompts]
        # 1) One row for each answer. They equal pair.decode([prompt] * n, seed=seed).
        seed = secrets.randbits(31) if fields.seed is None else fields.seed
        updates: asyncio.Queue[tuple[Row, str | None]] = asyncio.Queue()
        stop, named = list(fields.stop), isinstance(self.relay.teacher, NamedTeachers)
        rows = [
            Row(
                self.relay.sequence(
                    next(self.worker.numbers), prompts[i // fields.n], problem_seed(seed, f"question-{i}"),
                    config=config, ids=ids[i // fields.n],
                ),
                VisibleText(stop, named=named), lambda row, text: updates.put_nowait((row, text)), fields.stream,
            )
            for i in range(wanted)
        ]  # fmt: skip
        if not self.worker.submit(rows):
            raise Refusal(429, "too many answers wait already; try again later", code="overloaded")
        # 2) They are decoded. Whoever leaves takes the rows along.
        shown, chat = None if fields.relay is None else seed, isinstance(fields, ChatRequest)
        reply = Reply(f"{self._run}-{next(self._numbers)}", self.name, chat=chat, seed=shown)
        prompt_tokens = sum(map(len, ids))
        if fields.stream:
            events = self._events(rows, updates, reply, prompt_tokens if fields.stream_options.include_usage else None)
            return _EventStream(events, lambda: self.worker.cancel(rows))
        work = asyncio.ensure_future(self._collect(rows, updates))
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=CLOSED_REQUEST)
            work.result()
        finally:
            work.cancel()
            gone.cancel()
            self.worker.cancel(rows)
        traces = [row.trace for row in rows if row.trace]
        return JSONResponse(reply.whole([row.text.text for row in rows], traces, usage_of(traces, prompt_tokens)))

    async def _collect(self, rows: list[Row], updates: asyncio.Queue) -> None:
        for _ in rows:
            row, _ = await updates.get()
            _check(row)

    async def _events(
        self, rows: list[Row], updates: asyncio.Queue, reply: Reply, prompt_tokens: int | None
    ) -> AsyncIterator[str]:
        index, ended = {row: i for i, row in enumerate(rows)}, 0
        events = [_event(reply.chunk(i, "", first=True)) for i in range(len(rows))]
        while ended < len(rows):
            row, text = await updates.get()
            try:
                _check(row)
            except Refusal as refusal:
                yield "".join([*events, _event(refusal.body)])
                return
            ended += text is None
            end = {"text": row.rest, "trace": row.trace} if text is None else {"text": text}
            events.append(_event(reply.chunk(index[row], **end)))
            if updates.empty() and ended < len(rows):  # what is ready together is sent together
                yield "".join(events)
                events.clear()
        if prompt_tokens is not None:
            events.append(_event(reply.usage_chunk(usage_of([row.trace for row in rows if row.trace], prompt_tokens))))
        yield "".join([*events, "data: [DONE]\n\n"])

    # Errors and metrics -----------------------------------------------------------------------------------------------

    async def _refuse(self, _: Request, refusal: Refusal) -> Response:
        self._refused.labels(refusal.status).inc()
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(refusal.status)
        return JSONResponse(refusal.body, refusal.status, headers=headers)

    async def _refuse_route(self, request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}; see GET /v1/models for what is served"
        return await self._refuse(request, Refusal(error.status_code, message))

    async def _fail(self, request: Request, _: Exception) -> Response:  # its traceback is in the log
        return await self._refuse(request, Refusal(500, "a fault of the server; its log says which"))

    def _metrics(self) -> None:
        self._started = time.time()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter: Callable[..., Counter] = lambda *args: Counter(*args, registry=registry)  # noqa: E731
        self._answers = counter("relaylab_answers", "Answers that ended, by how.", ["stop"])
        self._refused = counter("relaylab_refused", "Requests that were refused or failed, by status.", ["status"])
        self._tokens = counter("relaylab_tokens", "Tokens of answers by who wrote them, and of prompts.", ["source"])
        self._calls = counter("relaylab_calls", "Calls by their status.", ["status"])
        self._first = Histogram("relaylab_first_token_seconds", "Until the first token.", registry=registry)
        self._seconds = Histogram("relaylab_answer_seconds", "Until an answer ended.", registry=registry)
        rows = Gauge("relaylab_rows", "Answers under way.", ["state"], registry=registry)
        rows.labels("running").set_function(lambda: len(self.worker.live))
        rows.labels("waiting").set_function(lambda: len(self.worker.waiting))
        slots = Gauge("relaylab_cache_slots", "Open places in the caches of a model.", ["model"], registry=registry)
        slots.labels("student").set_function(lambda: len(self.relay.student.slots))
        if isinstance(teacher := self.relay.teacher, LocalTeacher):
            slots.labels("teacher").set_function(lambda: len(teacher.engine.slots))

    def _count(self, row: Row) -> None:
        now, trace = time.perf_counter(), row.trace
        stopped = trace and row.text.stopped
        self._answers.labels("stop_string" if stopped else trace.stop if trace else "interrupted").inc()
        self._seconds.observe(now - row.submitted)
        if row.first is not None:
            self._first.observe(row.first - row.submitted)
        if trace:
            for source, tokens in (("prompt", len(trace.prompt_ids)), *((s, trace.count(s[0])) for s in SOURCES)):
                self._tokens.labels(source).inc(tokens)
            for call in trace.calls:
                self._calls.labels(call.status).inc()


SOURCES = ("student", "teacher", "command")  # their first letters are those of a trace


class _EventStream(StreamingResponse):
    """Server-sent events; ``end`` is called however they end, even before the first one."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._end = end

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self._end()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _check(row: Row) -> None:
    """Raises Refusal if a row has no answer."""
    if row.error:
        failed = row.trace is not None and row.trace.stop == "excluded"
        code = "student_failed" if row.sequence.failure else "teacher_failed" if failed else "interrupted"
        raise Refusal(502 if failed else 503, row.error, code=code)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def serve(server: Server, *, host: str, port: int, drain: int) -> None:
    """Serve until Ctrl-C or SIGTERM; then answers under way have ``drain`` seconds to end."""
    import uvicorn

    app = server.app(local=host in LOCAL)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=drain)
