"""``APITeacher``: a teacher behind an OpenAI-compatible server, such as vLLM, SGLang or llama.cpp.

A teacher continues the middle of an answer, which the API was not made for. There are three ways, best first:

- *token ids*: the prompt goes as the teacher's own token ids. Nothing is ever tokenised twice.
- *text*: the prompt goes as text, the chat template applied here.
- *chat*: the answer so far goes as a begun assistant's message, and the server applies its own template.

A service with none of them only chats. On request it is asked for the continuation in words (``api_chat_only.py``).
``server_probe.py`` finds out which of them a server knows; ``api_client.py`` sends the requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from relaylab.engine.token_text import fingerprint
from relaylab.relay.api_chat_only import SPARE, approximate, instruction
from relaylab.relay.api_client import Answer, ServerError
from relaylab.relay.api_model import APIModel
from relaylab.relay.server_probe import CONTINUE, CUT, NO_THINKING, ServerProbe, read_completion
from relaylab.relay.teachers import Message, Scores, TeacherOutput, TeacherView

Mode = Literal["auto", "completions", "chat", "chat_only"]


class APITeacher(APIModel):
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
        mode: Mode = "auto", concurrency: int = 16, timeout: float = 60.0, retries: int = 4, temperature: float = 0.0,
        name: str | None = None, extra_body: dict[str, Any] | None = None,
    ):  # fmt: skip
        if mode not in get_args(Mode):
            raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
        super().__init__(
            base_url, model, tokenizer=tokenizer, name=name, temperature=temperature, extra_body=extra_body,
            api_key=api_key, concurrency=concurrency, timeout=timeout, retries=retries,
        )  # fmt: skip
        self.mode = mode
        self._tells_stops = True  # as far as is known, the server names the stop string that ended an answer

    @property
    def fingerprint(self) -> str | None:
        """Equal for equal tokenizers; None without one."""
        return None if self.shared_tokenizer is None else fingerprint(self.shared_tokenizer.tokenizer)

    def submit(self, views: Sequence[TeacherView]) -> None:
        if any(view.n < 1 for view in views):  # which means "no limit" to some servers
            raise ValueError(f"a teacher is asked for at least one token, not {min(view.n for view in views)}")
        for view in views:
            present = replace(view, segments=list(view.segments))
            self._open[view] = self._client.start(self._answer, present, time.perf_counter())

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        gone = TeacherOutput("", "error", error="the request was cancelled")
        return [(view, output or gone) for view, output in self._take(views, math.inf if wait else 0)]

    def release(self, views: Sequence[TeacherView]) -> None:
        self._drop(views)

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

    # One answer, in a thread of the client ----------------------------------------------------------------------------

    def _answer(self, view: TeacherView, start: float) -> TeacherOutput:
        try:
            began = time.perf_counter()
            server = self.probe()
            start += time.perf_counter() - began
            output = self._request(view, server)
        except BaseException as error:
            output = TeacherOutput("", "error", error=str(self._failure(error)))
        return replace(output, latency=time.perf_counter() - start)

    def _score(self, view: TeacherView) -> Scores:
        server, tokenizer = self.probe(), self.shared_tokenizer
        self._check_there(server)
        if tokenizer is None or not server.token_prompts:
            raise ServerError("scores take a server whose completions take token ids, and its model's tokenizer")
        ids = tokenizer.opening_ids(view) + tokenizer.segment_ids(view)
        begin = len(ids) - len(tokenizer.segment_ids(replace(view, segments=view.segments[-1:])))
        body = {"model": server.model, "prompt": ids, "max_tokens": 1, "temperature": self.temperature}
        body |= {"prompt_logprobs": 1} | self.extra_body
        return self._client.ask("/completions", body, read=lambda data: _read_scores(data, ids, begin))

    def _request(self, view: TeacherView, server: ServerProbe) -> TeacherOutput:
        n, tokenizer = view.n, self.shared_tokenizer
        self._check_there(server)
        # 1) What every request holds.
        written = tokenizer.segment_ids(view) if tokenizer else []
        ids = tokenizer.opening_ids(view) + written if tokenizer else []
        if ids and server.context and (n := min(n, server.context - len(ids))) < 1:
            raise ServerError(f"the sequence's {len(ids)} tokens fill the teacher's context of {server.context}")
        draw = (view.seed + 1_000_003 * len(view.text)) % 2**31  # each call of a sequence draws other numbers
        body = {"model": server.model, "max_tokens": n, "temperature": self.temperature, "seed": draw}
        if tokenizer and server.token_ids:
            body |= server.wants_ids
        # 2) The prompt, in one of three ways.
        path, begun, by_chat = "/completions", view.text, self._by_chat(server)
        if view.raw and self.mode == "auto" and server.completions:
            by_chat = False
        if ids and server.token_prompts and not by_chat:
            path, body["prompt"] = server.path, ids
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
        ask = partial(self._client.ask, path, read=read_completion)
        answer = ask(body | self.extra_body)
        if "stop" in body and answer.finish == "stop" and answer.stopped is None:  # at a line's end, or at its own?
            self._tells_stops = False  # from now on whole answers are asked for, and cut by the relay
            answer = ask({k: v for k, v in body.items() if k != "stop"} | self.extra_body)
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
        if self.shared_tokenizer is not None and server.token_prompts:
            return False
        return not server.completions or (self.shared_tokenizer is None and server.continues)

    def _opening(self, view: TeacherView, server: ServerProbe) -> str:
        if view.raw:
            return view.raw.text
        if self.shared_tokenizer is None:
            return "".join(f"{m['content']}\n\n" for m in view.messages)
        text, bos = self.shared_tokenizer.opening(view.messages), self.shared_tokenizer.bos
        return text.removeprefix(bos) if bos and server.begins else text  # the server would write it a second time

    def _read(self, answer: Answer, n: int, whole_characters: bool) -> TeacherOutput:
        text, tokens, finish, tokenizer = answer.text, answer.written, answer.finish, self.shared_tokenizer
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
