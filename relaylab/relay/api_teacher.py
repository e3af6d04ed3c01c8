"""``APITeacher``: a teacher behind an OpenAI-compatible server, such as vLLM, SGLang or llama.cpp.

A teacher continues the middle of an answer, which the API was not made for. There are three ways, best first:

- *token ids*: the prompt goes as the teacher's own token ids. Nothing is ever tokenised twice.
- *text*: the prompt goes as text, the chat template applied here.
- *chat*: the answer so far goes as a begun assistant's message, and the server applies its own template. It is for who
  has no tokenizer of the teacher, and for servers that continue such a message.

What the server can do is asked of the server (``server_probe.py``); requests, retries and secrets are in
``api_client.py``. What becomes of a row whose teacher fails is not decided here: that is the relay's policy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from relaylab.relay.api_client import Answer, APIClient, Fault
from relaylab.relay.server_probe import CONTINUE, CUT, NO_THINKING, ServerProbe, probe_server, reads_as
from relaylab.relay.teachers import Context, Message, Segment, TeacherOutput

OURS = {"model", "prompt", "messages", "max_tokens", "temperature", "seed", "n", "best_of", "stream", "echo"}


class APITeacher:
    """Continues rows through a server; ``continue_`` is synchronous, its rows run concurrently.

    base_url: of the API, mostly ending in ``/v1``.
    model: as the server calls it; None where it serves just one.
    tokenizer: the teacher's (transformers). With it prompts are exact, continuations are cut exactly and, where the
        server gives token ids, come with their ids. Without it the server's own chat template is used, if its chat
        continues a begun answer; else the prompt is the messages' contents, a blank line after each.
    api_key: None takes ``OPENAI_API_KEY``. It is in no repr, name, error, trace or pickle; pickles hold no credentials.
    mode: ``completions`` or ``chat`` forces that endpoint.
    concurrency: requests under way at a time.
    timeout: seconds a request, its wait for a turn not counted.
    retries: further attempts after the first.
    temperature: 0 is greedy. Each row is sampled with its own seed.
    backoff, max_backoff: the first and the longest wait between attempts, in seconds.
    name: for traces; None is model@host.
    extra_body: further fields of every request (``top_p``, ``stop``, ...), sent as they are.

    Raises ValueError for arguments that cannot work. Never for the server's faults: they become continuations with the
    finish ``error``, each for its row alone.

    >>> teacher = APITeacher("http://user:secret@127.0.0.1:8000/v1?key=secret", model="m", api_key="secret")
    >>> teacher
    APITeacher('http://127.0.0.1:8000/v1', model='m')
    >>> teacher.name
    'm@127.0.0.1:8000'
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        tokenizer: Any = None,
        api_key: str | None = None,
        mode: Literal["auto", "completions", "chat"] = "auto",
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 4,
        temperature: float = 0.0,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
        name: str | None = None,
        extra_body: dict[str, Any] | None = None,
    ):
        if mode not in ("auto", "completions", "chat"):
            raise ValueError(f"mode is auto, completions or chat, not {mode!r}")
        if taken := OURS & set(extra_body or {}):
            raise ValueError(f"extra_body cannot hold {', '.join(sorted(taken))}: the teacher sets them")
        self._client = APIClient(
            base_url,
            api_key=api_key,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            max_backoff=max_backoff,
        )
        self.model = model
        self.tokenizer = tokenizer
        self.mode = mode
        self.temperature = temperature
        self.extra_body = dict(extra_body or {})
        self.name = self._client.scrub(name or f"{model or 'model'}@{self._client.host}")
        self._server: ServerProbe | None = None
        self._rows: dict[Hashable, _Prompt] = {}

    def __repr__(self) -> str:
        return f"APITeacher({self._client.url!r}, model={self.model!r})"

    @cached_property
    def fingerprint(self) -> str | None:
        """Equal for equal tokenizers; None without one."""
        if self.tokenizer is None:
            return None
        from relaylab.engine.token_text import fingerprint

        return fingerprint(self.tokenizer)

    def probe(self) -> ServerProbe:
        """What the server can do, asked once; a server that could not be asked is asked again the next time.

        ``print(teacher.probe())`` is readable. Raises nothing for a server's faults: see its ``error``.
        """
        if self._server is None:
            found = self._client.run(lambda: probe_server(self._client, model=self.model, tokenizer=self.tokenizer))
            if not found.reachable:
                return found
            self._server = found
        return self._server

    def continue_(self, contexts: Sequence[Context], n: Sequence[int]) -> list[TeacherOutput]:
        """Continue every context by at most its n >= 1 of the teacher's tokens; one continuation a context, in order.

        Never more than n tokens: what a server writes beyond is cut by its ids, else by the tokenizer, and is an error
        where there is neither. Where ids are not known, text that ends within a character is cut to whole characters.
        ``tokens`` counts ids; else it is what the server counted (without a tokenizer an end token may be among them);
        else what the tokenizer counts; else n. ``latency`` is the time from this call to the row's answer, waits and
        retries included.

        Raises ValueError for an n below 1 (to some servers it means "no limit"). An interrupt cancels all requests.
        """
        if any(count < 1 for count in n):
            raise ValueError(f"a teacher is asked for at least one token, not {min(n)}")
        pairs = list(zip(contexts, n, strict=True))
        start = time.perf_counter()
        server = self.probe() if pairs else ServerProbe("")

        async def rows() -> list[TeacherOutput]:
            return await asyncio.gather(*(self._row(context, count, server, start) for context, count in pairs))

        return self._client.run(rows)

    def release(self, rows: Sequence[Hashable]) -> None:
        """Forget the tokens of these rows."""
        for row in rows:
            self._rows.pop(row, None)

    def close(self) -> None:
        """Close the connections; the teacher opens new ones when it is used again. At exit it happens by itself."""
        self._client.close()

    def __enter__(self) -> APITeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One row ----------------------------------------------------------------------------------------------------------

    async def _row(self, context: Context, n: int, server: ServerProbe, start: float) -> TeacherOutput:
        try:
            said = await self._ask(context, n, server)
        except Fault as fault:
            said = TeacherOutput("", "error", error=str(fault))
        except Exception as error:  # whatever it is, it is this row's: the others get their answers
            said = TeacherOutput("", "error", error=self._client.scrub(f"{type(error).__name__}: {error}"))
        return replace(said, latency=time.perf_counter() - start)

    async def _ask(self, context: Context, n: int, server: ServerProbe) -> TeacherOutput:
        if not server.reachable:
            raise Fault(server.error)
        if server.tokenizer is False:
            raise Fault(f"the tokenizer given is not that of {server.model}: give its own, or none")
        chat = self._by_chat(server)
        ids = self._prompt_ids(context) if self.tokenizer else None
        if ids and server.context:
            n = min(n, server.context - len(ids))
            if n < 1:
                raise Fault(f"the row's {len(ids)} tokens fill the teacher's context of {server.context}")
        body = {"model": server.model, "max_tokens": n, "temperature": self.temperature, "seed": context.seed % 2**31}
        if self.tokenizer and server.token_ids:
            body["return_token_ids"] = True
        begun = ""
        if chat:
            begun = self._written(context)
            path, body = "/chat/completions", body | self._chat(context.messages, begun, server)
        elif ids and server.token_prompts:
            path, body["prompt"] = "/completions", ids
        else:
            path, body["prompt"] = "/completions", self._plain(context, server)
        answer = await self._client.ask(path, body | self.extra_body)
        if begun and server.prefix == "repeats":
            if not answer.text.startswith(begun):
                raise Fault("the server repeated another text than the one it was to continue")
            answer = replace(answer, text=answer.text[len(begun) :])
        return self._read(answer, n)

    def _by_chat(self, server: ServerProbe) -> bool:
        continues = server.prefix in ("new text", "repeats")
        if self.mode == "auto":
            return not server.completions or (self.tokenizer is None and continues)
        return self.mode == "chat"

    def _chat(self, messages: list[Message], begun: str, server: ServerProbe) -> dict[str, Any]:
        body: dict[str, Any] = dict(NO_THINKING) if server.no_thinking else {}
        if not begun:
            return body | {"messages": messages}
        if server.prefix not in ("new text", "repeats"):
            raise Fault(
                "this server's chat does not continue a begun answer"
                + ("; use mode='completions'" if server.completions else ", and it has no completions")
            )
        return body | CONTINUE | {"messages": [*messages, {"role": "assistant", "content": begun}]}

    # Prompts ----------------------------------------------------------------------------------------------------------

    def _prompt_ids(self, context: Context) -> list[int]:
        row = self._rows.get(context.row)
        if row is None or not row.begins(context):
            row = self._rows[context.row] = _Prompt(context.messages, self._encode(self._opening(context.messages)))
        for segment in context.segments[len(row.segments) :]:
            # What looks like a special token in a student's text is text.
            ids = segment.ids if segment.ids is not None else self._encode(segment.text, split_special_tokens=True)
            row.segments.append(segment)
            row.ids += ids
        return list(row.ids)

    def _encode(self, text: str, **how: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **how)["input_ids"]

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        how = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return self.tokenizer.decode(list(ids), **how)

    def _opening(self, messages: list[Message]) -> str:
        """The prompt's text, up to where the answer begins."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return "".join(f"{m['content']}\n\n" for m in messages)
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def _plain(self, context: Context, server: ServerProbe) -> str:
        text = self._opening(context.messages) + self._written(context)
        bos = getattr(self.tokenizer, "bos_token", None)
        return text.removeprefix(bos) if bos and server.begins else text  # or the server would begin it twice

    def _written(self, context: Context) -> str:
        """The answer so far as text. A character that lies in two segments is in neither's text, but in their ids."""
        text = context.text
        if CUT in text and self.tokenizer:
            row = self._rows[context.row]
            text = self._decode(row.ids[row.opening :])
        return text.rstrip(CUT)

    # Answers ----------------------------------------------------------------------------------------------------------

    def _read(self, answer: Answer, n: int) -> TeacherOutput:
        if answer.finish not in ("stop", "length"):
            raise Fault(f"the server ended its answer with finish_reason {answer.finish!r}")
        text, finish, ids, tokens = answer.text, answer.finish, self._ids(answer), answer.written
        if ids is not None:
            if len(ids) > n:
                ids, finish = ids[:n], "length"
                text = self._decode(ids)
            tokens = len(ids)
        else:
            if self.tokenizer and (tokens is None or tokens > n):
                kept = self._encode(text, split_special_tokens=True)
                if len(kept) > n:
                    text, finish = self._decode(kept[:n]), "length"
                tokens = min(len(kept), n)
            elif self.tokenizer and finish == "stop":
                tokens = min(tokens, len(self._encode(text)))  # servers count the end token, too
            if tokens is not None and tokens > n:
                raise Fault(f"the server wrote {tokens} tokens where {n} were asked for; a tokenizer could cut them")
            tokens = n if tokens is None else tokens
            text = text.rstrip(CUT)
        if not text and not ids and finish == "length":
            raise Fault(f"the server wrote no whole character in {n} tokens")
        return TeacherOutput(text, finish, ids=ids, tokens=tokens)

    def _ids(self, answer: Answer) -> tuple[int, ...] | None:
        """The ids of the text, its end token not among them; None where they are not known to be those of the text."""
        if answer.ids is None or self.tokenizer is None:
            return None
        ids = list(answer.ids)
        while answer.finish == "stop" and ids and not self._decode(ids[-1:], skip_special_tokens=True):
            ids.pop()
        return tuple(ids) if reads_as(self.tokenizer, ids, answer.text) else None  # a stop string is in the ids alone


class _Prompt:
    """The tokens of one row: the opening's, and those of each segment, tokenised once."""

    def __init__(self, messages: list[Message], ids: list[int]):
        self.messages = [dict(m) for m in messages]
        self.segments: list[Segment] = []
        self.ids = list(ids)
        self.opening = len(ids)

    def begins(self, context: Context) -> bool:
        """Is this the beginning of that context, or another one's under the same name?"""
        return self.messages == context.messages and self.segments == context.segments[: len(self.segments)]
