"""``APITeacher``: a teacher behind an OpenAI-compatible server, such as vLLM, SGLang or llama.cpp.

A teacher continues the middle of an answer, which the API was not made for. There are three ways, best first:

- *token ids*: the prompt goes as the teacher's own token ids. Nothing is ever tokenised twice.
- *text*: the prompt goes as text, the chat template applied here.
- *chat*: the answer so far goes as a begun assistant's message, and the server applies its own template.

A service with none of them only chats. On request it is asked for the continuation in words (``api_chat_only.py``).
``server_probe.py`` finds out which of them a server knows; ``api_client.py`` sends the requests.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal
from urllib.parse import unquote

from relaylab.call_tag import visible
from relaylab.relay.api_chat_only import SPARE, approximate, instruction
from relaylab.relay.api_client import RENAMED, Answer, APIClient, ServerError
from relaylab.relay.server_probe import CONTINUE, CUT, NO_THINKING, ServerProbe, probe_server
from relaylab.relay.teachers import Message, Scores, TeacherOutput, TeacherView

OURS = {"model", "prompt", "messages", "max_tokens", RENAMED, "temperature", "seed", "n", "best_of", "stream", "echo"}
MODES = ("auto", "completions", "chat", "chat_only")
REST_SECONDS = 10.0  # for which a server that could not be asked is left alone; longer if asking it took longer

_tokenizing = threading.Lock()  # a tokenizer changes its settings from call to call


class APITeacher:
    """Continues answers through a server. Its requests run in threads of their own.

    A failure of the server is the ``TeacherOutput.error`` of its view alone. An output never has more than n tokens:
    what a server writes beyond is cut by its ids, else by the tokenizer, else it is an error. ``tokens`` counts ids,
    else it is what the server counted (without a tokenizer an end token may be among them), what the tokenizer counts,
    or n. ``latency`` runs from ``submit`` on, waits and retries included. The probe before the first answer is not in
    it.

    Args:
        base_url: of the API, mostly ending in ``/v1``; ``URL#model`` names a model.
        model: as the server calls it; None if it serves just one.
        tokenizer: the teacher's (transformers), which makes prompts exact. Without it the server's own chat template is
            used, if its chat continues a begun answer; else the messages' contents, a blank line after each. A text
            that looks like a special token stays text as token ids, and is an error in the other two ways. Without a
            tokenizer nobody here knows the special tokens, and the server does what it likes.
        api_key: None takes ``OPENAI_API_KEY``. It is in no repr, name, error, trace or pickle.
        mode: ``completions`` or ``chat`` forces that endpoint. ``chat_only`` asks a chat that begins a new turn for the
            continuation in words: such calls are approximate, and may write and cost more than n tokens.
        concurrency: requests under way at a time.
        timeout: seconds per attempt of a request.
        retries: further attempts after the first.
        temperature: 0 is greedy. Each view is sampled with its own seed.
        name: for traces; None is model@host.
        extra_body: further fields of every request (``top_p``, ``stop``, ...), sent as they are.

    Raises:
        ValueError: for arguments that cannot work.

    >>> teacher = APITeacher("http://user:secret@127.0.0.1:8000/v1?key=secret", model="m", api_key="secret")
    >>> teacher
    APITeacher('http://127.0.0.1:8000/v1', model='m')
    >>> teacher.name
    'm@127.0.0.1:8000'
    """

    def __init__(
        self, base_url: str, model: str | None = None, *, tokenizer: Any = None, api_key: str | None = None,
        mode: Literal["auto", "completions", "chat", "chat_only"] = "auto", concurrency: int = 16,
        timeout: float = 60.0, retries: int = 4, temperature: float = 0.0, name: str | None = None,
        extra_body: dict[str, Any] | None = None,
    ):  # fmt: skip
        if mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
        if taken := OURS & set(extra_body or {}):
            raise ValueError(f"extra_body cannot hold {', '.join(sorted(taken))}: the teacher sets them")
        base_url, _, fragment = base_url.partition("#")
        if model and fragment and model != unquote(fragment):
            raise ValueError(f"the address names the model {unquote(fragment)!r}, model is {model!r}")
        self._client = APIClient(base_url, api_key=api_key, concurrency=concurrency, timeout=timeout, retries=retries)
        self.model = model or unquote(fragment) or None
        self.tokenizer = TeacherTokenizer(tokenizer) if tokenizer is not None else None
        self.mode, self.temperature, self.extra_body = mode, temperature, dict(extra_body or {})
        self.name = self._client.scrub(name or f"{self.model or 'model'}@{self._client.host}")
        self._server: ServerProbe | None = None
        self.__setstate__({})

    def __repr__(self) -> str:
        return f"APITeacher({self._client.url!r}, model={self.model!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_probing", "_answers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._probing = threading.Lock()
        self._rest, self._absent = 0.0, ""  # until when the server is left alone, and why
        self._answers: dict[TeacherView, Future[TeacherOutput]] = {}
        self._tells_stops = True  # as far as is known, the server names the stop string that ended an answer

    @property
    def fingerprint(self) -> str | None:
        """Equal for equal tokenizers; None without one."""
        from relaylab.engine.token_text import fingerprint  # transformers is slow to import

        return None if self.tokenizer is None else fingerprint(self.tokenizer.tokenizer)

    def probe(self) -> ServerProbe:
        """What the server can do, found out once; a server that cannot be asked is asked again after a while.

        ``print(teacher.probe())`` is readable.
        """
        with self._probing:
            if self._server is None and time.monotonic() >= self._rest:
                start = time.monotonic()
                seen = probe_server(self._client, self.model, self.tokenizer, self.temperature)
                self._server = seen if seen.reachable else None
                self._leave_alone(seen.error, time.monotonic() - start)
            return self._server or ServerProbe(self._client.url, error=self._absent)

    def submit(self, views: Sequence[TeacherView]) -> None:
        """Begin to continue each view by at most ``view.n`` tokens.

        Raises:
            ValueError: for an n below 1, which means "no limit" to some servers.
        """
        if any(view.n < 1 for view in views):
            raise ValueError(f"a teacher is asked for at least one token, not {min(view.n for view in views)}")
        for view in views:
            present = replace(view, segments=list(view.segments))
            self._answers[view] = self._client.start(self._answer, present, time.perf_counter())

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        """Of these views, those whose answers are there. An interrupt of the waiting cancels their requests."""
        answers = {view: self._answers[view] for view in views if view in self._answers}
        if wait and answers:
            try:
                self._client.wait(answers.values())
            except BaseException:
                self.release(list(answers))
                raise
        done = [view for view, answer in answers.items() if answer.done()]
        gone = TeacherOutput("", "error", error="the request was cancelled")
        return [(v, gone if (a := self._answers.pop(v)).cancelled() else a.result()) for v in done]

    def release(self, views: Sequence[TeacherView]) -> None:
        """Forget these views, and cancel their requests."""
        self._client.cancel([answer for view in views if (answer := self._answers.pop(view, None))])

    def score(self, views: Sequence[TeacherView]) -> list[Scores]:
        """What the model thinks of the turn at the end of each view, by ``prompt_logprobs`` as vLLM gives them.

        Raises:
            ServerError: if the server does not give them, and if a request fails. It takes the model's tokenizer.
        """
        answers = [self._client.start(self._score, view) for view in views]
        try:
            for answer in answers:
                self._client.wait([answer])
            return [answer.result() for answer in answers]
        except BaseException:
            self._client.cancel(answers)
            raise

    def close(self) -> None:
        """Cancel all requests and close the connections. The teacher opens new ones if it is used again."""
        self._client.close()

    def __enter__(self) -> APITeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One answer, in a thread of the client ----------------------------------------------------------------------------

    def _answer(self, view: TeacherView, start: float) -> TeacherOutput:
        try:
            began = time.perf_counter()
            server = self.probe()
            start += time.perf_counter() - began
            output = self._request(view, server)
        except ServerError as error:
            output = TeacherOutput("", "error", error=str(error))
            if error.absent:
                self._leave_alone(str(error))
        except BaseException as error:  # a panic of a tokenizer is no Exception; whatever it is, it is this view's
            output = TeacherOutput("", "error", error=visible(self._client.scrub(f"{type(error).__name__}: {error}")))
        return replace(output, latency=time.perf_counter() - start)

    def _score(self, view: TeacherView) -> Scores:
        server, tokenizer = self.probe(), self.tokenizer
        if not server.reachable:
            raise ServerError(self._absent)
        if tokenizer is None or server.tokenizer is False or not server.token_prompts:
            raise ServerError("scores take a server whose completions take token ids, and its model's tokenizer")
        ids = tokenizer.opening_ids(view) + tokenizer.segment_ids(view)
        begin = len(ids) - len(tokenizer.segment_ids(replace(view, segments=view.segments[-1:])))
        body = {"model": server.model, "prompt": ids, "max_tokens": 1, "temperature": self.temperature}
        body |= {"prompt_logprobs": 1} | self.extra_body
        return self._client.ask("/completions", body, read=lambda data: _read_scores(data, ids, begin))

    def _leave_alone(self, error: str | None, took: float = 0.0) -> None:
        if error is not None:
            self._rest, self._absent = time.monotonic() + max(REST_SECONDS, took), error

    def _request(self, view: TeacherView, server: ServerProbe) -> TeacherOutput:
        n, tokenizer = view.n, self.tokenizer
        if not server.reachable or time.monotonic() < self._rest:
            raise ServerError(self._absent)
        if server.tokenizer is False:
            raise ServerError(f"the tokenizer given is not that of {server.model}: give its own, or none")
        # 1) What every request holds.
        written = tokenizer.segment_ids(view) if tokenizer else []
        ids = tokenizer.opening_ids(view) + written if tokenizer else []
        if ids and server.context and (n := min(n, server.context - len(ids))) < 1:
            raise ServerError(f"the sequence's {len(ids)} tokens fill the teacher's context of {server.context}")
        body = {"model": server.model, "max_tokens": n, "temperature": self.temperature, "seed": view.seed % 2**31}
        if tokenizer and server.token_ids:
            body["return_token_ids"] = True
        # 2) The prompt, in one of three ways.
        path, begun, by_chat = "/completions", view.text, self._by_chat(server)
        if view.raw and self.mode == "auto" and server.completions:
            by_chat = False
        if ids and server.token_prompts and not by_chat:
            body["prompt"] = ids
        else:
            if tokenizer:
                begun = tokenizer.decode(written) if CUT in begun else begun
                tokenizer.check_plain([*(m["content"] for m in view.messages), begun])
            begun = begun.rstrip(CUT)  # a character in two segments is in neither's text, but in their ids
            if by_chat and view.raw:
                raise ServerError("a prompt without a chat template needs a server with completions")
            if by_chat and self.mode == "chat_only" and begun:
                body |= {"messages": instruction(view.messages, begun), "max_tokens": n + SPARE} | _settings(server)
                return approximate(self._client.ask("/chat/completions", body | self.extra_body), begun)
            if by_chat:
                path, body = "/chat/completions", body | _chat(view.messages, begun, server)
            elif server.template:
                raise ServerError("this server puts a chat template around completions; only its chat can be used")
            else:
                body["prompt"] = self._opening(view, server) + begun
        # 3) The answer, as much of it as was asked for.
        if view.line and self._tells_stops:
            body["stop"] = ["\n"]
        answer = self._client.ask(path, body | self.extra_body)
        if "stop" in body and answer.finish == "stop" and answer.stopped is None:  # at a line's end, or at its own?
            self._tells_stops = False  # from now on whole answers are asked for, and cut by the relay
            answer = self._client.ask(path, {k: v for k, v in body.items() if k != "stop"} | self.extra_body)
        elif answer.stopped == "\n":
            answer = replace(answer, text=answer.text + "\n", finish="length")
            line = tokenizer.decode(answer.ids, skip_special_tokens=True) if tokenizer and answer.ids else ""
            answer = replace(answer, text=line) if line.startswith(answer.text) else answer  # its last token, whole
        if by_chat and begun and server.prefix == "repeats":
            if not answer.text.startswith(begun):
                raise ServerError("the server repeated another text than the one it was to continue")
            answer = replace(answer, text=answer.text[len(begun) :])
        return self._read(answer, n, view.whole_characters)

    def _by_chat(self, server: ServerProbe) -> bool:
        if self.mode != "auto":
            return self.mode != "completions"
        if self.tokenizer is not None and server.token_prompts:
            return False
        return not server.completions or (self.tokenizer is None and server.continues)

    def _opening(self, view: TeacherView, server: ServerProbe) -> str:
        if view.raw:
            return view.raw.text
        if self.tokenizer is None:
            return "".join(f"{m['content']}\n\n" for m in view.messages)
        text, bos = self.tokenizer.opening(view.messages), self.tokenizer.bos
        return text.removeprefix(bos) if bos and server.begins else text  # the server would write it a second time

    def _read(self, answer: Answer, n: int, whole_characters: bool) -> TeacherOutput:
        text, tokens, finish, tokenizer = answer.text, answer.written, answer.finish, self.tokenizer
        ids = tokenizer.text_ids(answer) if tokenizer else None
        if tokenizer and (ids is not None or tokens is None or tokens > n):
            counted = tokenizer.encode(text) if ids is None else ids
            tokens, text = len(counted), tokenizer.decode(counted[:n]) if len(counted) > n else text
        elif tokenizer and tokens and finish == "stop":
            tokens = min(tokens, len(tokenizer.encode(text)))  # servers count the end token, too
        if finish is None and tokens is not None:
            finish = "length" if tokens >= n else "stop"
        if finish not in ("stop", "length"):
            raise ServerError(f"the server ended its answer with finish_reason {finish!r}")
        if tokens is not None and tokens > n:
            if not tokenizer:
                raise ServerError(f"the server wrote {tokens} tokens instead of {n}; a tokenizer could cut them")
            tokens, finish = n, "length"
        ids = None if ids is None else ids[:n]
        while tokenizer and ids and whole_characters and tokenizer.decode(ids).endswith(CUT):
            ids, tokens = ids[:-1], len(ids) - 1
        text = text.rstrip(CUT) if ids is None or whole_characters else text
        if not text and not ids and finish == "length":
            raise ServerError(f"the server wrote no whole character in {n} tokens")
        return TeacherOutput(text, finish, ids=ids, tokens=n if tokens is None else tokens)


def _read_scores(data: Any, ids: list[int], begin: int) -> Scores:
    """The scores of a prompt's tokens from ``begin`` on. Each entry maps ids to log-probabilities, the token's too."""
    Answer.parse(data)
    entries, turn = data["choices"][0].get("prompt_logprobs"), ids[begin:]
    if not isinstance(entries, list):
        raise ServerError("this server gives no prompt_logprobs; completions of vLLM do")
    try:
        likely = [{int(i): float(entry["logprob"]) for i, entry in some.items()} for some in entries[begin:]]
        logprobs = [some[i] for some, i in zip(likely, turn, strict=True)]
        top = [max(some, key=lambda i: some[i]) for some in likely]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise ServerError("the server's prompt_logprobs are not those of the prompt's tokens") from None
    if not all(math.isfinite(p) for some in likely for p in some.values()):
        raise ServerError("the server's prompt_logprobs hold a number that is not finite")
    return Scores(turn, logprobs, top)


def _settings(server: ServerProbe) -> dict[str, Any]:
    return NO_THINKING if server.no_thinking else {}


def _chat(messages: list[Message], begun: str, server: ServerProbe) -> dict[str, Any]:
    if not begun:
        return _settings(server) | {"messages": messages}
    if not server.continues:
        words = ", and it has no completions; mode='chat_only' (--chat-only) asks for the continuation in words"
        other = "; use mode='completions'" if server.completions else words
        raise ServerError(f"this server's chat does not continue a begun answer{other}")
    return _settings(server) | CONTINUE | {"messages": [*messages, {"role": "assistant", "content": begun}]}


class TeacherTokenizer:
    """A tokenizer that the threads of a teacher share: a copy, so that the student's is left alone.

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
        from relaylab.engine.token_text import prompt_text

        with _tokenizing:
            return prompt_text(self.tokenizer, messages)

    def opening_ids(self, view: TeacherView) -> list[int]:
        from relaylab.engine.token_text import prompt_ids, raw_ids

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
