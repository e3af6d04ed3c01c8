"""A teacher on a real server that is restricted to chat: pytest -m real tests/test_real_chat.py (docs/real-models.md).

RELAYLAB_CHAT_URL is the address (``URL`` or ``URL#model``) of an OpenAI-compatible server with an instruct model, such
as one of llama.cpp. A proxy here lets only those chats through that end in a message of the user.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from relaylab.relay.call_rules import CallAt
from relaylab.relay.pair import load_pair
from relaylab.tasks.suites import problem
from relaylab.trace import Trace

URL = "RELAYLAB_CHAT_URL"
N = 4

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(URL not in os.environ, reason=f"set {URL} to a running server (docs/real-models.md)"),
]


class ChatOnly(ThreadingHTTPServer):
    """A proxy that has chats alone, and no begun answers. ``replies`` are those of the server, with their requests."""

    def __init__(self) -> None:
        address, _, model = os.environ[URL].partition("#")
        replies, behind = list[tuple[dict[str, Any], dict[str, Any]]](), address.rstrip("/").removesuffix("/v1")
        self.replies = replies

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                body = json.loads(data) if data else {}
                chat = self.path == "/v1/chat/completions" and body["messages"][-1]["role"] == "user"
                if not chat and self.path != "/v1/models":
                    return self.answer(404, b'{"error": {"message": "there are chats alone"}}')
                request = urllib.request.Request(behind + self.path, data or None, {"Content-Type": "application/json"})
                try:
                    with urllib.request.urlopen(request) as reply:
                        status, answer = reply.status, reply.read()
                except urllib.error.HTTPError as error:
                    status, answer = error.code, error.read()
                if chat and status == 200:
                    replies.append((body, json.loads(answer)))
                self.answer(status, answer)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1" + (f"#{model}" if model else "")


@pytest.fixture(scope="module")
def proxy() -> Iterator[ChatOnly]:
    with ChatOnly() as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def answer(proxy: ChatOnly, **options: Any) -> Trace:
    """An answer of the embedded student with three silent calls."""
    pair = load_pair("student", proxy.url, teacher_options={"timeout": 600.0, "retries": 0} | options)
    pair.teacher.probe()  # type: ignore[attr-defined]
    proxy.replies.clear()
    return pair.solve(problem("tiles", 0), call_rule=CallAt({9: N, 21: N, 33: N}), write_call=False, max_tokens=60)


def test_an_answer_relays_through_chats_alone(proxy):
    trace = answer(proxy, mode="chat_only")
    trace.check()
    assert len(trace.calls) == len(proxy.replies) >= 2
    assert trace.answered, [c.error for c in trace.calls]
    for call, (request, reply) in zip(trace.calls, proxy.replies, strict=True):
        if call.status == "failed":
            assert "the service" in (call.error or "")
            continue
        text, usage = reply["choices"][0]["message"]["content"], reply["usage"]
        assert call.approximate
        assert 0 < call.delivered <= N
        assert call.written == usage["completion_tokens"] <= request["max_tokens"]
        assert "".join(trace.pieces[call.end : call.end + call.delivered]).strip() in text


def test_the_mode_has_to_be_named(proxy):
    trace = answer(proxy)
    assert not trace.answered
    assert "--chat-only" in (trace.calls[0].error or "")
    assert not proxy.replies
