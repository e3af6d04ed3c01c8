"""What a teacher and a student behind an OpenAI-compatible server share: the client, the probe, and open requests."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, ClassVar, Self
from urllib.parse import unquote

from relaylab.call_tag import visible
from relaylab.engine.token_text import prompt_ids, prompt_text, raw_ids
from relaylab.relay.api_client import RENAMED, Answer, APIClient, ServerError
from relaylab.relay.server_probe import CUT, ServerProbe, probe_server
from relaylab.relay.teachers import Message, TeacherView

REST_SECONDS = 10.0  # for which a server that could not be asked is left alone; longer if asking it took longer

_tokenizing = threading.Lock()  # a tokenizer changes its settings from call to call


class APIModel:
    """One model of a server. The arguments are those of ``APITeacher`` and ``APIStudent``.

    Raises:
        ValueError: for arguments that cannot work.
    """

    ours: ClassVar[set[str]] = {  # fields of a request that no ``extra_body`` may hold
        "model", "prompt", "messages", "max_tokens", RENAMED, "temperature", "seed", "n", "best_of", "stream", "echo",
    }  # fmt: skip

    def __init__(
        self, base_url: str, model: str | None, *, tokenizer: Any, name: str | None, temperature: float,
        extra_body: dict[str, Any] | None, **options: Any,
    ):  # fmt: skip
        if taken := self.ours & set(extra_body or {}):
            raise ValueError(f"extra_body cannot hold {', '.join(sorted(taken))}: relaylab sets them")
        base_url, _, fragment = base_url.partition("#")
        if model and fragment and model != unquote(fragment):
            raise ValueError(f"the address names the model {unquote(fragment)!r}, model is {model!r}")
        self._client = APIClient(base_url, **options)
        self.model = model or unquote(fragment) or None
        self.shared_tokenizer = SharedTokenizer(tokenizer) if tokenizer is not None else None
        self.temperature, self.extra_body = temperature, dict(extra_body or {})
        self.name = self._client.scrub(name or f"{self.model or 'model'}@{self._client.host}")
        self._server: ServerProbe | None = None
        self.__setstate__({})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client.url!r}, model={self.model!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_probing", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._probing = threading.Lock()
        self._rest, self._absent = 0.0, ""  # until when the server is left alone, and why
        self._open: dict[Any, Future] = {}  # the answers that were asked for, by what they are for; none of them raises

    def probe(self) -> ServerProbe:
        """What the server can do, found out once; a server that cannot be asked is asked again after a while.

        ``print(model.probe())`` is readable.
        """
        with self._probing:
            if self._server is None and time.monotonic() >= self._rest:
                start = time.monotonic()
                seen = probe_server(self._client, self.model, self.shared_tokenizer, self.temperature)
                self._server = seen if seen.reachable else None
                self._leave_alone(seen.error, time.monotonic() - start)
            return self._server or ServerProbe(self._client.url, error=self._absent)

    def close(self) -> None:
        """Cancel all requests and close the connections. New ones are opened if the model is used again."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests under way -----------------------------------------------------------------------------------------------

    def _take(self, keys: Collection[Any], seconds: float) -> list[tuple[Any, Any]]:
        """Of these, the answers that are there; None for one that was cancelled.

        Waits for the first one, at most for so many seconds. An interrupt of the waiting cancels the requests.
        """
        answers = {key: self._open[key] for key in keys if key in self._open}
        if seconds and answers:
            try:
                self._client.wait(answers.values(), seconds)
            except BaseException:
                self._drop(list(answers))
                raise
        done = [(key, self._open.pop(key)) for key, answer in answers.items() if answer.done()]
        return [(key, None if answer.cancelled() else answer.result()) for key, answer in done]

    def _drop(self, keys: Collection[Any]) -> None:
        """Forget these, and cancel their requests."""
        self._client.cancel([answer for key in keys if (answer := self._open.pop(key, None))])

    def _failure(self, error: BaseException) -> ServerError:
        """What a request failed of. A server that is not there is left alone for a while."""
        if not isinstance(error, ServerError):  # a panic of a tokenizer is no Exception; it is this request's alone
            error = ServerError(visible(self._client.scrub(f"{type(error).__name__}: {error}")))
        if error.absent:
            self._leave_alone(str(error))
        return error

    def _leave_alone(self, error: str | None, took: float = 0.0) -> None:
        if error is not None:
            self._rest, self._absent = time.monotonic() + max(REST_SECONDS, took), error

    def _check_there(self, server: ServerProbe) -> None:
        if not server.reachable or time.monotonic() < self._rest:
            raise ServerError(self._absent)
        if server.tokenizer is False:
            raise ServerError(f"the tokenizer given is not that of {server.model}: give its own, or none")


class SharedTokenizer:
    """A tokenizer that the threads of a client share: a copy, so that the caller's is left alone.

    What looks like a special token in the text of a message or a student stays text.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = copy.deepcopy(tokenizer)
        self.bos: str | None = getattr(tokenizer, "bos_token", None)

    @cached_property
    def _vocabulary(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab().values())

    def opening(self, messages: list[Message]) -> str:
        """The prompt's text, up to where the answer begins."""
        with _tokenizing:
            return prompt_text(self.tokenizer, messages)

    def opening_ids(self, view: TeacherView) -> list[int]:
        if view.raw and view.raw.ids is not None:
            return list(view.raw.ids)
        with _tokenizing:
            if view.raw:
                return raw_ids(self.tokenizer, view.raw.text)
            return prompt_ids(self.tokenizer, view.messages)

    def segment_ids(self, view: TeacherView) -> list[int]:
        """The answer so far. Each segment is tokenised by itself, so its ids never change."""
        return [i for s in view.segments for i in (self.encode(s.text) if s.ids is None else s.ids)]

    def encode(self, text: str) -> list[int]:
        with _tokenizing:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int], **options: bool) -> str:
        with _tokenizing:
            return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False, **options)

    def check_plain(self, texts: list[str]) -> None:
        """Refuse what a server would take for a special token: it could forge the end of a message."""
        for token in self.tokenizer.all_special_tokens:
            if any(token in text for text in texts):
                raise ServerError(f"the text holds {token!r}, which stays text only as token ids")

    def text_ids(self, answer: Answer) -> tuple[int, ...] | None:
        """The ids of an answer's text, without an end token. None if they are not those of the text."""
        if answer.ids is None or not self._vocabulary.issuperset(answer.ids):
            return None
        ids = list(answer.ids)
        while answer.finish == "stop" and ids and not self.decode(ids[-1:], skip_special_tokens=True):
            ids.pop()
        # Half a character at the end is written in several ways, and some tokenizers drop a space at the beginning.
        decoded = self.decode(ids, skip_special_tokens=True)  # a stop string is in the ids alone
        return tuple(ids) if decoded.rstrip(CUT).lstrip(" ") == answer.text.rstrip(CUT).lstrip(" ") else None
