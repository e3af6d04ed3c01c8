"""Talking to an OpenAI-compatible server. Answers are bounded in size and time, and secrets stay inside.

The ``openai`` library sends the requests and repeats them. Each thread has its own connection, so that another thread
can cancel a request.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import socket
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit, urlunsplit

import httpx2
import openai

from relaylab.call_tag import visible

T = TypeVar("T")
NO_KEY = "none"
QUOTED = 300  # characters of a server's own words that an error shows
LIST_BYTES, BASE_BYTES, TOKEN_BYTES = 2**20, 2**16, 2**12  # of a list; of a completion; for each token in it
RENAMED = "max_completion_tokens"  # what some services call ``max_tokens``, which they refuse
CONNECT_SECONDS = 10.0  # an attempt to connect cannot be cancelled
_FINISH = dict.fromkeys(["stop", "eos", "eos_token", "stop_sequence", "end_turn", "word", "complete"], "stop")
_FINISH |= dict.fromkeys(["length", "limit", "max_tokens", "max_length", "model_length"], "length")
_certificates = functools.cache(httpx2.create_ssl_context)  # slow


class ServerError(openai.OpenAIError):
    """A request that failed. The message is for people and holds no escape codes.

    Args:
        message: the cause.
        passing: another attempt may succeed.
        status: of the HTTP answer, if there was one.
        absent: nobody listens at the address.
    """

    def __init__(self, message: str, *, passing: bool = False, status: int | None = None, absent: bool = False):
        super().__init__(visible(message))
        self.passing, self.status, self.absent = passing, status, absent


class Cancelled(openai.OpenAIError):
    """A request that nobody wants any more. It says nothing about the server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server wrote, and the reason why it ended there: ``stop``, ``length``, another, or None if it gives none.

    ``ids`` are its tokens. ``written`` and ``prompt`` count tokens as the server does. ``stopped`` is the stop string
    at which it ended. None is unknown, or not given.
    """

    text: str
    finish: str | None
    ids: list[int] | None = None
    written: int | None = None
    prompt: int | None = None
    stopped: str | None = None
    logprobs: list[float | None] | None = None  # of its tokens
    has_text: bool = True  # false while a server is still reasoning

    @classmethod
    def read(cls, data: Any) -> Answer:
        """Read the JSON of a completion or a chat completion.

        Raises:
            ServerError: for an error under status 200, and if there is no text or none that can be encoded.
        """
        answer = cls.parse(data)
        if not answer.has_text:
            words = data["choices"][0].get("message") or {}
            if refusal := words.get("refusal"):
                raise ServerError(f"the service refused: {str(refusal)[:QUOTED]}")
            raise ServerError("the server's answer holds no text", passing=True)
        if any("\ud800" <= c <= "\udfff" for c in answer.text):
            raise ServerError("the server's text holds a lone surrogate, which is no character")
        return answer

    @classmethod
    def parse(cls, data: Any) -> Answer:
        """As ``read``, with any text or none."""
        data = data if isinstance(data, dict) else {}
        choices, usage = data.get("choices"), data.get("usage")
        if data.get("error") or (choices is None and data.keys() & {"message", "detail"}):
            raise ServerError(f"the server answered with an error: {_words(data)}", passing=True)
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            count = len(choices) if isinstance(choices, list) else "no"
            raise ServerError(f"the server's answer holds {count} choices instead of one", passing=True)
        message, reason, ids = (choices[0].get(name) for name in ("message", "finish_reason", "token_ids"))
        text = message.get("content") if isinstance(message, dict) else choices[0].get("text")
        if isinstance(text, list):
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        counts = (usage.get(f"{what}_tokens") if isinstance(usage, dict) else None for what in ("completion", "prompt"))
        written, prompt = (n if type(n) is int else None for n in counts)
        ids = ids if isinstance(ids, list) and all(type(i) is int for i in ids) else None
        finish = _FINISH.get(str(reason).casefold(), str(reason)) if reason else None
        stopped = next((str(choices[0][name]) for name in ("stop_reason", "matched_stop") if name in choices[0]), None)
        logprobs = choices[0].get("logprobs")
        logprobs = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        if not isinstance(logprobs, list) or not all(p is None or type(p) in (float, int) for p in logprobs):
            logprobs = None
        has_text = isinstance(text, str)
        return cls(text if has_text else "", finish, ids, written, prompt, stopped, logprobs, has_text)


class APIClient:
    """Asks one server; any number of threads may share it.

    Copies and pickles carry no credentials: they take ``OPENAI_API_KEY`` of the process that they arrive in.
    The HTTP library logs whole URLs at level INFO: a query is no place for a key.

    Args:
        base_url: may hold ``user:password@`` and a query. They are sent, and shown nowhere.
        api_key: None takes ``OPENAI_API_KEY``.
        concurrency: requests of ``start`` under way at a time.
        timeout: seconds per attempt.
        retries: further attempts after broken connections, timeouts, 408, 409, 429, 5xx and unreadable answers. Between
            them the library waits 0.5 to 8 s, or as long as the server says if that is at most two minutes.

    Raises:
        ValueError: for a URL, a key or a number that cannot work.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, concurrency: int = 16, timeout: float = 60.0,
        retries: int = 4,
    ):  # fmt: skip
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url has to look like http://127.0.0.1:8000/v1")
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ValueError("concurrency is at least 1, timeout positive, and retries not negative")
        # A key read from a file brings its line break, which no header can hold and whose error would quote the key.
        self._key = (api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")).strip() or NO_KEY
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError("the API key holds characters that no HTTP header can carry")
        user, at, self.host = parts.netloc.rpartition("@")
        self.url = urlunsplit((parts.scheme, self.host, parts.path.rstrip("/"), "", ""))
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._login = base64.b64encode(unquote(user).encode()).decode() if at else ""
        hidden = {self._key, *map(unquote, user.split(":", 1)), self._login, *self._query.values()} - {NO_KEY}
        # In every form that an answer may quote them in; those of 3 characters and less would blot out ordinary words.
        forms = {form for s in hidden if len(s) > 3 for form in (s, quote(s, ""), quote_plus(s), json.dumps(s)[1:-1])}
        self._secrets = sorted(forms, key=len, reverse=True)  # a secret within another must not leave the other's rest
        self._renamed: set[str] = set()  # paths that want RENAMED
        self._options = {"concurrency": concurrency, "timeout": timeout, "retries": retries}
        self._begin()
        _clients.add(self)

    def __repr__(self) -> str:
        return f"APIClient({self.url!r})"

    def __reduce__(self) -> tuple:
        return functools.partial(APIClient, **self._options), (self.url,)

    def scrub(self, text: str) -> str:
        """The text without the key, the login and the values of the URL's query."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def ask(self, path: str, body: dict[str, Any] | None = None, *, read: Callable[[Any], T] = Answer.read) -> T:
        """POST ``body``, or GET without one, until ``read`` accepts the answer or the retries are used up.

        Args:
            path: such as ``/models``.
            body: JSON of a POST. A service that wants ``max_completion_tokens`` gets its ``max_tokens`` by that name.
            read: makes something of the answer's JSON. If it raises a passing ``ServerError``, the request is repeated.

        Raises:
            ServerError: names the cause, and no secret.
            Cancelled: by ``cancel``.
        """
        connection = self._connection()
        connection.read, connection.attempts = read, 0
        tokens = body.get("max_tokens", 0) + (len(body["prompt"]) if "prompt_logprobs" in body else 0) if body else 0
        connection.limit = BASE_BYTES + TOKEN_BYTES * tokens if body else LIST_BYTES
        renamed = path in self._renamed
        try:
            if body is None:
                connection.get(path, cast_to=httpx2.Response)
            else:
                sent = {RENAMED if renamed and k == "max_tokens" else k: v for k, v in body.items()}
                connection.post(path, body=sent, cast_to=httpx2.Response)
            return connection.answer
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if renamed or not body or RENAMED not in str(error):
                raise self._explained(error, connection.attempts) from None
        except (openai.OpenAIError, UnicodeEncodeError) as error:
            if connection.stopped.is_set():
                raise Cancelled("the request was cancelled") from None
            raise self._explained(error, connection.attempts) from None
        self._renamed.add(path)  # found out once for each address
        return self.ask(path, body, read=read)

    def _explained(self, error: Exception, attempts: int) -> ServerError:
        status, passing, advice, cause = None, True, "", _root(error)
        if isinstance(error, openai.APIStatusError):
            status = error.status_code
            text, passing = f"HTTP {status}: {_words(error.body)}", status in (408, 409, 429) or status >= 500
            if status in (401, 403):
                advice = "; the server did not take the key: set OPENAI_API_KEY or give api_key"
            if error.response.has_redirect_location:
                text = f"HTTP {status}: the server has moved to {error.response.headers['location']}"
        elif isinstance(error, UnicodeEncodeError):
            text, passing = f"the text cannot be sent: {error.reason}", False
        elif isinstance(cause, ServerError):
            text, passing = str(cause), cause.passing
        elif isinstance(error, openai.APITimeoutError):
            text = f"no answer from {self.url} within {self._options['timeout']:g} s"
        else:
            text = f"the connection to {self.url} failed: {cause}"
        advice += f" (after {attempts} attempts)" if attempts > 1 else ""
        absent = isinstance(error.__cause__, (httpx2.ConnectError, httpx2.ConnectTimeout))
        # Scrubbed before it is cut: half a key would not be recognised any more.
        return ServerError(self.scrub(text)[:QUOTED] + advice, passing=passing, status=status, absent=absent)

    def start(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Call ``work`` in a thread of the client. Its requests can be cancelled."""
        stopped = threading.Event()

        def run() -> T:
            connection = self._connection()
            with self._lock:
                connection.stopped = stopped
            return work(*args)

        future = self._pool.submit(run)
        self._stops[future] = stopped
        return future

    def wait(self, futures: Collection[Future], seconds: float = float("inf")) -> None:
        """Wait until one of the futures is done, at most so many seconds. An interrupt gets through."""
        end = time.monotonic() + seconds
        while not wait(futures, min(1, seconds), FIRST_COMPLETED).done and time.monotonic() < end:
            pass

    def cancel(self, futures: Collection[Future]) -> None:
        """Cancel what is to be done, and break the connections of what is under way: the server notices."""
        with self._lock:
            for future in futures:
                future.cancel()
                self._stops.get(future, threading.Event()).set()
            for connection in self._connections:
                connection.cut_if_stopped()

    def close(self) -> None:
        """Cancel everything, end the threads and close the connections. The next request begins anew."""
        self.cancel(list(self._stops))
        self._pool.shutdown(cancel_futures=True)
        _close(os.getpid(), self._connections)
        self._begin()

    def _begin(self) -> None:
        self._lock, self._local = threading.Lock(), threading.local()
        self._pool = ThreadPoolExecutor(self._options["concurrency"], thread_name_prefix="relaylab-api")
        self._stops: weakref.WeakKeyDictionary[Future, threading.Event] = weakref.WeakKeyDictionary()
        self._connections: list[_Connection] = []
        weakref.finalize(self, _close, os.getpid(), self._connections)  # also at exit

    def _connection(self) -> _Connection:
        """The connection of this thread."""
        if not hasattr(self._local, "connection"):
            self._local.connection = _Connection(
                self._options["timeout"], base_url=self.url, api_key=self._key, max_retries=self._options["retries"],
                default_query=self._query,
                default_headers={"Authorization": f"Basic {self._login}"} if self._login else None,
            )  # fmt: skip
            with self._lock:
                self._connections.append(self._local.connection)
        return self._local.connection


class _Connection(openai.OpenAI):
    """One connection for one request at a time. Answers are read whole, within bounds; another thread can cut it."""

    read: Callable[[Any], Any]
    limit = attempts = 0
    answer: Any = None
    _socket: socket.socket | None = None

    def __init__(self, seconds: float, **options: Any):
        timeout = openai.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
        super().__init__(timeout=timeout, http_client=httpx2.Client(verify=_certificates(), timeout=timeout), **options)
        self.seconds, self.stopped = seconds, threading.Event()

    def cut_if_stopped(self) -> None:
        """Break the connection off; who waits for an answer gets an error."""
        if self._socket is not None and self.stopped.is_set():
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # that of an SSL socket is not for other threads

    def _sleep_for_retry(self, *, retries_taken: int, max_retries: int, options: Any, response: Any) -> None:
        """The library's wait between two attempts, which a cancelled request does not sit out."""
        headers = None if response is None else response.headers
        if self.stopped.wait(self._calculate_retry_timeout(max_retries - retries_taken, options, headers)):
            raise Cancelled

    def _send_request(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """One attempt. The library makes another one after a ``RequestError``."""
        self.attempts += 1
        if self.stopped.is_set():
            raise Cancelled
        request.extensions["trace"] = self._trace
        deadline = time.monotonic() + self.seconds
        limit = self.limit + 2 * int(request.headers.get("content-length", 0))  # a chat may repeat what it continues
        with closing(self._client.send(request, stream=True)) as response:
            data = _body(response, limit, deadline)
        if response.is_success:
            try:
                self.answer = self.read(_parse(data))
            except ServerError as error:
                if not error.passing:
                    raise
                raise httpx2.DecodingError("unreadable", request=request) from error
        headers = {k: v for k, v in response.headers.items() if k != "content-encoding"}
        return httpx2.Response(response.status_code, headers=headers, content=data, request=request)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            self.cut_if_stopped()


def _body(response: httpx2.Response, limit: int, deadline: float) -> bytes:
    """The bytes of an answer, decompressed: at most ``limit`` of them, by the deadline."""
    coding = response.headers.get("content-encoding", "identity").lower()
    if coding not in ("identity", "gzip", "deflate"):
        raise ServerError(f"the server's answer is compressed, and nobody can read {coding}")
    inflate, data = zlib.decompressobj(47), bytearray()  # 47: either format
    for chunk in response.iter_raw():
        try:
            data += chunk if coding == "identity" else inflate.decompress(chunk, limit + 1 - len(data))
        except zlib.error:
            raise httpx2.DecodingError("the server's answer is compressed wrongly") from None
        if len(data) > limit:
            if response.is_error:
                break
            raise ServerError(f"the server's answer is longer than the {limit // 1000} kB that it may need")
        if time.monotonic() > deadline:
            raise httpx2.ReadTimeout("the answer is not complete")
    return bytes(data)


def _parse(data: bytes) -> Any:
    try:
        if not data.lstrip().startswith((b"data:", b"event:", b":")):
            return json.loads(data)
        # An event stream, though nobody asked for one: its texts are joined.
        lines = (line[5:].strip() for line in data.decode().split("\n") if line.startswith("data:"))
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        pieces = [piece for event in events for piece in event.get("choices") or []]
        text = "".join(piece.get("text") or (piece.get("delta") or {}).get("content") or "" for piece in pieces)
        reason = next((r for piece in reversed(pieces) if (r := piece.get("finish_reason"))), None)
        fields = {k: v for event in events for k, v in event.items() if v}
        return fields | {"choices": [{"text": text, "finish_reason": reason}]}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ServerError("the server's answer is not JSON", passing=True) from None


def _words(body: Any) -> str:
    """The message in an error's body, on one line."""
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    text = body if isinstance(body, str) else json.dumps(body or "", ensure_ascii=False).strip('"')
    return " ".join(text.split()) or "no reason given"


def _root(error: BaseException) -> BaseException:
    while not isinstance(error, ServerError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return error


def _close(pid: int, connections: list[_Connection]) -> None:
    """Not in a forked child, which collects its parent's garbage, too."""
    while pid == os.getpid() and connections:
        connections.pop().close()


_clients: weakref.WeakSet[APIClient] = weakref.WeakSet()
if sys.platform != "win32":  # a forked child begins anew: the threads and the connections are its parent's
    os.register_at_fork(after_in_child=lambda: [client._begin() for client in list(_clients)])
