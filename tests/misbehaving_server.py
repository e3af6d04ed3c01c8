"""An OpenAI-compatible server that does as it is told, faults included. Standard library only.

Its tokens are bytes, and ``END`` = 256 ends a text. ``server.script(Reply(status=503), DROP)`` is for the next two
requests, ``server.rule = lambda request: DROP if "bad" in request.prompt else None`` for all.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

END, BEGIN = 256, 257
MARKS = {"<|end|>": END, "<|begin|>": BEGIN}


@dataclass(frozen=True)
class Reply:
    """What to answer instead of the truth. A ``body`` of None is the truth, under this status and after this delay; one
    of chunks is sent as it comes, until the client leaves."""

    status: int = 200
    body: dict | str | Iterable[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None  # break the connection after this many bytes of the body; 0 sends nothing at all
    change: Callable[[dict], Any] | None = None  # edits the true body


DROP = Reply(cut=0)
OK = Reply()


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    time: float
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw) if self.raw else {}

    @property
    def prompt(self) -> str:
        """All that was said to the model, as one text."""
        if "messages" in self.body:
            return "\n".join(m["content"] for m in self.body["messages"])
        prompt = self.body.get("prompt", "")
        return prompt if isinstance(prompt, str) else decode(prompt)


def encode(text: str) -> list[int]:
    parts = re.split("|".join(f"({re.escape(mark)})" for mark in MARKS), text)
    return [i for part in parts if part for i in ([MARKS[part]] if part in MARKS else part.encode())]


def decode(ids: list[int]) -> str:
    names = {i: mark for mark, i in MARKS.items()}
    return b"".join(names[i].encode() if i in names else bytes([i]) for i in ids).decode(errors="replace")


class MisbehavingServer:
    """Serves on the loopback from construction to ``stop()``.

    Its dialect may be set at any time. writes: what it says, a text or a function of the request. models: that it has.
    token_prompts: takes ids, else 400. token_ids: gives ids back where asked. completions: has the endpoint, else 404.
    chat: what it makes of a begun answer: "new text", "repeats", "new turn" or "refused". strict: 422 for fields that
    it does not know. usage: counts tokens. extra: tokens that it writes beyond ``max_tokens``. begins: tokens that it
    puts before a text. context: tokens, in its list of models. reasons: its chats hold no text. limit: how it calls the
    field ``max_tokens``, which it refuses by another name. stops: the field that names the stop string which ended an
    answer, if it has one. scores: gives ``prompt_logprobs``, as (prompt, place) -> (log-probability, likeliest id).
    """

    def __init__(self) -> None:
        self.writes: str | Callable[[Request], str] = "and so on, " * 40
        self.models = ["m"]
        self.token_prompts = self.token_ids = self.completions = self.usage = True
        self.strict = self.reasons = False
        self.chat = "new text"
        self.extra = self.begins = 0
        self.limit = "max_tokens"
        self.stops: str | None = "stop_reason"
        self.scores: Callable[[list[int], int], tuple[float, int]] | None = None
        self.context: int | None = None
        self.rule: Callable[[Request], Reply | None] = lambda request: None
        self.requests: list[Request] = []
        self.max_in_flight = self._in_flight = 0
        self._script: list[Reply] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/v1"

    def script(self, *replies: Reply) -> None:
        """Answer the next requests so, then the truth again; earlier requests are forgotten."""
        with self._lock:
            self._script = list(replies)
            self.requests.clear()
            self.max_in_flight = 0

    def stop(self) -> None:
        """Die: connections break, answers under way are never sent."""
        self._server.shutdown()
        self._server.socket.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------------------------------------------

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or every answer takes 40 ms

            def setup(self) -> None:
                super().setup()
                with server._lock:
                    server._connections.add(self.connection)

            def finish(self) -> None:
                with server._lock:
                    server._connections.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            log_message = lambda self, *_: None  # noqa: E731

            def do_GET(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                request = Request(time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, raw)
                with server._lock:
                    server.requests.append(request)
                    server._in_flight += 1
                    server.max_in_flight = max(server.max_in_flight, server._in_flight)
                    reply = server._script.pop(0) if server._script else None
                try:
                    self._answer(request, reply or server.rule(request) or OK)
                finally:
                    with server._lock:
                        server._in_flight -= 1

            do_POST = do_GET

            def _answer(self, request: Request, reply: Reply) -> None:
                time.sleep(reply.delay)
                status, body = (reply.status, reply.body) if reply.body is not None else server._truth(request)
                if reply.change is not None:
                    reply.change(body)
                whole = isinstance(body, str | dict)
                data = (body if isinstance(body, str) else json.dumps(body)).encode() if whole else b""
                if reply.cut != 0:
                    self.send_response(reply.status if reply.status != 200 else status)
                    length = {"Content-Length": str(len(data))} if whole else {}
                    for header in ({"Content-Type": "application/json"} | length | reply.headers).items():
                        self.send_header(*header)
                    self.end_headers()
                    for chunk in [data[: reply.cut]] if whole else body:
                        self.wfile.write(chunk)
                if reply.cut is not None or not whole:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

        return Handler

    def _truth(self, request: Request) -> tuple[int, dict]:
        if request.path.partition("?")[0] == "/v1/models":
            context = {} if self.context is None else {"max_model_len": self.context}
            return 200, {"object": "list", "data": [{"id": m, "object": "model"} | context for m in self.models]}
        if (body := request.body)["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        known = {"model", "prompt", "messages", self.limit, "temperature", "seed", "stop"}
        if self.limit not in body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use '{}' instead."
            return 400, {"error": {"message": text.format(self.limit), "code": "unsupported_parameter"}}
        if self.strict and (unknown := set(body) - known):
            return 422, {"detail": [{"loc": sorted(unknown), "msg": "extra fields not permitted"}]}
        chat = request.path.partition("?")[0] == "/v1/chat/completions"
        return (self._chat if chat else self._complete)(request, body)

    def _complete(self, request: Request, body: dict) -> tuple[int, dict]:
        if not self.completions:
            return 404, {"error": {"message": "Not Found"}}
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.token_prompts:
            return 400, {"error": {"message": "prompt must be a string"}}
        count = len(prompt) if isinstance(prompt, list) else len(encode(prompt)) + self.begins
        whole = self._body(request, body, count, lambda text: {"text": text})
        if self.scores and body.get("prompt_logprobs"):  # as vLLM: the token, and the likeliest if it is another
            entries: list[dict | None] = [None]
            for i in range(1, count):
                logprob, top = self.scores(prompt, i)
                own = {"logprob": logprob, "rank": 1 + (top != prompt[i]), "decoded_token": decode(prompt[i : i + 1])}
                best = {"logprob": logprob / 2, "rank": 1, "decoded_token": decode([top])}
                entries.append({str(prompt[i]): own} | ({} if top == prompt[i] else {str(top): best}))
            whole["choices"][0]["prompt_logprobs"] = entries
        return 200, whole

    def _chat(self, request: Request, body: dict) -> tuple[int, dict]:
        *_, last = body["messages"]
        begun, continues = last["role"] == "assistant", body.get("continue_final_message", False)
        if begun and self.chat == "refused":
            return 400, {"error": {"message": "the last message must be the user's"}}
        going_on = begun and (self.chat == "repeats" or (self.chat == "new text" and continues))
        count = len(encode(request.prompt)) + 4 * len(body["messages"]) + (0 if going_on else 4)
        before = last["content"] if going_on and self.chat == "repeats" else ""

        def wrap(text: str) -> dict:
            return {"message": {"role": "assistant", "content": None if self.reasons else before + text}}

        return 200, self._body(request, body, count, wrap)

    def _body(self, request: Request, body: dict, prompt: int, wrap: Callable[[str], dict]) -> dict:
        n = body[self.limit] + self.extra
        said = list((self.writes if isinstance(self.writes, str) else self.writes(request)).encode())
        ids = said[:n] if len(said) >= n else [*said, END]
        ended = ids[-1:] == [END]
        text, stops = decode(ids[: len(ids) - ended]), [s for s in body.get("stop", ()) if s.encode()[0] in ids]
        if stops:  # the ids keep the stop string, the text does not
            text, ended = text.partition(stops[0])[0], True
            ids = encode(text + stops[0])
        choice = {"index": 0, "finish_reason": "stop" if ended else "length"} | wrap(text)
        if self.stops:
            choice[self.stops] = stops[0] if stops else None
        if self.token_ids and body.get("return_token_ids"):
            choice["token_ids"] = ids
        usage = {"prompt_tokens": prompt, "completion_tokens": len(ids), "total_tokens": prompt + len(ids)}
        return {"choices": [choice], "usage": usage if self.usage else None}
