"""Talking to an OpenAI-compatible server: one retry policy, errors for people, and secrets that stay inside.

The requests run on one event loop in a thread of its own, so that callers stay synchronous and a Jupyter kernel, whose
loop is always running, needs no tricks. What to ask and what to make of the answers is the business of
``server_probe.py`` and ``api_teacher.py``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

T = TypeVar("T")
NO_KEY = "none"
QUOTED = 300  # characters of a server's own words that an error shows


class Fault(Exception):
    """A request that failed. The message is for people and holds no secret.

    passing: another attempt may succeed. wait: seconds that the server asked for. status: of the HTTP answer, if any.
    """

    def __init__(self, message: str, *, passing: bool = False, wait: float | None = None, status: int | None = None):
        super().__init__(message)
        self.passing, self.wait, self.status = passing, wait, status

    @property
    def refusal(self) -> bool:
        """The server is there and answers, but does not do this. Some say so with a 400, some with a 500."""
        return self.status in (400, 404, 405, 415, 422, 500, 501)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server wrote: the text, why it ended there, and what it says about tokens, None where it says nothing."""

    text: str
    finish: str | None
    ids: list[int] | None = None
    written: int | None = None
    prompt: int | None = None

    @classmethod
    def read(cls, data: Any) -> Answer:
        """Read the body of a completion or a chat completion; a passing ``Fault`` where there is no text in it."""
        choices = data.get("choices") if isinstance(data, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            found = len(choices) if isinstance(choices, list) else "no"
            raise Fault(f"the server's answer holds {found} choices instead of one", passing=True)
        choice = choices[0]
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        if not isinstance(text, str):
            raise Fault("the server's answer holds no text", passing=True)
        ids, usage = choice.get("token_ids"), data.get("usage")
        return cls(
            text=text,
            finish=choice.get("finish_reason"),
            ids=ids if isinstance(ids, list) and all(type(i) is int for i in ids) else None,
            written=_count(usage, "completion_tokens"),
            prompt=_count(usage, "prompt_tokens"),
        )


class APIClient:
    """Asks one server, with retries, at most ``concurrency`` requests at a time; any number of threads may share it.

    ``base_url`` may hold ``user:password@`` and a query; they are sent, and we show them nowhere (but the HTTP library
    logs whole URLs at level INFO: a query is no place for a key). Copies and pickles carry no credentials: they take
    the key from ``OPENAI_API_KEY`` where they wake up. The other parameters are explained at ``APITeacher``.

    Raises ValueError for a URL, a key or a number that cannot work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url has to look like http://127.0.0.1:8000/v1")
        if concurrency < 1 or retries < 0 or timeout <= 0 or backoff < 0 or max_backoff < 0:
            raise ValueError("concurrency is at least 1, timeout positive, and retries and backoffs not negative")
        # A key read from a file brings its line break, which no header can hold and whose error would quote the key.
        self._key = (api_key if api_key is not None else os.environ.get("OPENAI_API_KEY", "")).strip() or NO_KEY
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError("the API key holds characters that no HTTP header can carry")
        user, at, self.host = parts.netloc.rpartition("@")
        self.url = urlunsplit((parts.scheme, self.host, parts.path.rstrip("/"), "", ""))
        self._query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._login = base64.b64encode(unquote(user).encode()).decode() if at else None
        password = unquote(user.partition(":")[2])
        hidden = {self._key, password, self._login or "", *self._query.values()} - {NO_KEY}
        # In every form that an answer may quote them in; those of 3 characters and less would blot out ordinary words.
        forms = {form for s in hidden if len(s) > 3 for form in (s, quote(s, safe=""), json.dumps(s)[1:-1])}
        self._secrets = sorted(forms, key=len, reverse=True)  # a secret within another must not leave the other's rest
        self._options = dict(
            concurrency=concurrency, timeout=timeout, retries=retries, backoff=backoff, max_backoff=max_backoff
        )
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._max_backoff, self._backoff = max_backoff, backoff
        self._exponential = wait_exponential_jitter(multiplier=backoff, max=max_backoff, jitter=backoff)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"APIClient({self.url!r})"

    def __reduce__(self) -> tuple:
        return _revive, (self.url, self._options)

    def scrub(self, text: str) -> str:
        """The text without the key, the password and the values of the URL's query."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    # The thread -------------------------------------------------------------------------------------------------------

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on the loop and wait for it; an interrupt cancels it and its requests."""
        loop = self._loop_of_ours()
        future = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _loop_of_ours(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # a forked child has no threads
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="relaylab-api", daemon=True)
                self._slots = asyncio.Semaphore(self._concurrency)
                self._openai = openai.AsyncOpenAI(
                    base_url=self.url,
                    api_key=self._key,
                    default_query=self._query,
                    default_headers={"Authorization": f"Basic {self._login}"} if self._login else None,
                    max_retries=0,  # the policy is ours, and there is one
                    timeout=None,  # the same: theirs bounds the silence between two bytes, ours the whole request
                )
                self._thread.start()
                running = (os.getpid(), self._loop, self._thread, self._openai)
                self._stop = weakref.finalize(self, _stop, *running)  # runs at exit, too
            return self._loop

    def close(self) -> None:
        """Cancel what runs, close the connections and end the thread; a later request starts anew."""
        with self._lock:
            if self._thread is not None:
                self._stop()
                self._thread = None

    # Requests ---------------------------------------------------------------------------------------------------------

    async def ask(self, path: str, body: dict[str, Any] | None = None, *, read: Callable[[Any], T] = Answer.read) -> T:
        """POST ``body``, or GET without one, until ``read`` is content with the answer or the retries are used up.

        Retried: refused and broken connections, timeouts, 408, 409, 429, 5xx, and answers that ``read`` refuses with a
        passing fault. The wait doubles from ``backoff`` seconds, or is the time that the server names, and up to
        ``backoff`` seconds of jitter come on top; it is never longer than ``max_backoff``. Raises ``Fault``.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=self._wait,
            retry=retry_if_exception(lambda e: isinstance(e, Fault) and e.passing),
            reraise=True,
        )
        try:
            return await retrying(self._once, path, body, read)
        except Fault as fault:
            tries = retrying.statistics["attempt_number"]
            text = self.scrub(f"{fault} (after {tries} attempts)" if tries > 1 else str(fault))
            raise Fault(text, passing=fault.passing, status=fault.status) from None

    def _wait(self, state: RetryCallState) -> float:
        asked = state.outcome.exception().wait
        if asked is None:
            return self._exponential(state)
        return min(self._max_backoff, asked + random.uniform(0, self._backoff))

    async def _once(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        try:
            # A slot is held for a request and not for the wait after it: a dead server is found out in one round.
            async with self._slots, asyncio.timeout(self._timeout):
                if body is None:
                    data = await self._openai.get(path, cast_to=object)
                else:
                    data = await self._openai.post(path, body=body, cast_to=object)
            return read(json.loads(data) if isinstance(data, str) else data)
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            raise Fault(f"the connection to {self.url} failed: {_root(error)}", passing=True) from None
        except TimeoutError:
            raise Fault(f"no answer from {self.url} within {self._timeout:g} s", passing=True) from None
        except UnicodeEncodeError as error:
            raise Fault(f"the text cannot be sent: {error.reason}") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise Fault("the server's answer is not JSON", passing=True) from None

    def _refused(self, error: openai.APIStatusError) -> Fault:
        status = error.status_code
        # Scrubbed before it is cut: half a key would not be recognised any more.
        text = f"HTTP {status}: {self.scrub(_said(error.body))[:QUOTED]}"
        if status in (401, 403):
            text += "; the server did not take the key: set OPENAI_API_KEY or give api_key"
        passing = status in (408, 409, 429) or status >= 500
        return Fault(text, passing=passing, wait=_retry_after(error.response.headers), status=status)


def _revive(url: str, options: dict[str, Any]) -> APIClient:
    return APIClient(url, **options)


def _stop(pid: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: openai.AsyncOpenAI) -> None:
    """End a thread of this process. A child collects its parent's garbage, too, and would wait for what it has not."""
    if pid != os.getpid():
        return

    async def finish() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.close()

    if thread.is_alive() and thread is not threading.current_thread():
        with contextlib.suppress(TimeoutError):  # the thread is a daemon: whatever it hangs on ends with the process
            asyncio.run_coroutine_threadsafe(finish(), loop).result(timeout=5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        if not thread.is_alive():
            loop.close()


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int else None


def _retry_after(headers: Any) -> float | None:
    """Seconds from now that a ``Retry-After`` header asks for, in either of its forms; None without a readable one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _said(body: Any) -> str:
    """The message in an error's body, wherever this server puts it, on one line."""
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    text = body if isinstance(body, str) else json.dumps(body or "", ensure_ascii=False).strip('"')
    return " ".join(text.split()) or "no reason given"


def _root(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__
