"""``APIStudent``: a student behind an OpenAI-compatible server: vLLM, SGLang or llama.cpp. Everything goes as ids.

A turn is one request: the prompt and the answer so far, up to ``</call>`` or the end. The server's prefix cache makes
it cost what is new. What a request writes is taken token by token, as if it had been written here. Where a call is
granted, where one may not begin or where a rule wants one, the rest is dropped. A greedy answer is that of a student in
this process. The tokens of a sampled one are drawn by the server.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from relaylab.call_tag import CLOSE
from relaylab.engine.token_text import FORBIDDEN, TokenText, prompt_ids, raw_ids
from relaylab.relay.api_client import Answer, ServerError
from relaylab.relay.api_model import APIModel
from relaylab.relay.sequence import Event
from relaylab.relay.sequence import Sequence as Row
from relaylab.relay.server_probe import ServerProbe, read_completion

if TYPE_CHECKING:
    from relaylab.relay.relay import Relay

AHEAD = 16  # tokens asked for at a time where a call rule may want a call at any of them
NEVER = -100  # the bias of a token that must not come


@dataclass(slots=True, eq=False)
class ServerSlot:
    """One sequence: its ``ids``, and tokens that were drawn next although they must not come."""

    ids: list[int]
    banned: list[int] = field(default_factory=list)
    cached: int = 0  # of an engine's slot; here all is sent each time

    @property
    def pending(self) -> int:
        return 1


class APIStudent(APIModel):
    """A student on a server that takes token ids as a prompt and returns those that it writes.

    Requests run in threads of their own. A request that fails excludes its answer, unless ``on_failure`` is ``raise``;
    nobody else could go on with it.

    Args:
        base_url: of the API, mostly ending in ``/v1``; ``URL#model`` names a model.
        model: as the server calls it; None if it serves just one.
        tokenizer: the model's (transformers).
        end_ids: the tokens that end an answer; those of the tokenizer by default.
        api_key: None takes ``OPENAI_API_KEY``. It is in no repr, name, error, trace or pickle.
        concurrency: requests under way at a time.
        timeout: seconds per attempt of a request.
        retries: further attempts after the first.
        name: for traces; None is model@host.
        extra_body: further fields of every request, sent as they are.

    Raises:
        ValueError: for arguments that cannot work.
        ServerError: from the first use on, for a server that cannot be asked or lacks something; the message says what.
    """

    ours: ClassVar = APIModel.ours | {
        "stop", "stop_token_ids", "include_stop_str_in_output", "return_token_ids", "logit_bias", "logprobs", "top_p",
        "top_k", "skip_special_tokens", "return_tokens", "n_probs",
    }  # fmt: skip

    def __init__(
        self, base_url: str, model: str | None = None, *, tokenizer: Any, end_ids: Sequence[int] = (),
        api_key: str | None = None, concurrency: int = 256, timeout: float = 600.0, retries: int = 4,
        name: str | None = None, extra_body: dict[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__(
            base_url, model, tokenizer=tokenizer, name=name, temperature=0.0, extra_body=extra_body,
            api_key=api_key, concurrency=concurrency, timeout=timeout, retries=retries,
        )  # fmt: skip
        self.tokenizer, self.text = tokenizer, TokenText(tokenizer)
        self.end_ids = frozenset(end_ids) or frozenset({tokenizer.eos_token_id} - {None})
        self.vocabulary = len(self.text.bytes)
        self.slots: list[ServerSlot] = []

    @property
    def context(self) -> int:
        """Tokens of a sequence that may be continued. A server counts what it writes, too: one less than an engine."""
        return (self.server.context or 2**40) - 1

    @cached_property
    def server(self) -> ServerProbe:
        """What the server can do, if that is enough.

        Raises:
            ServerError: names what is missing.
        """
        server = self.probe()
        self._check_there(server)
        needs = {"token-id prompts": server.token_prompts, "the ids of what it writes": server.token_ids}
        if missing := [name for name, there in needs.items() if not there]:
            raise ServerError(f"a student needs {' and '.join(missing)}, which {server.url} does not give")
        return server

    # As of an engine --------------------------------------------------------------------------------------------------

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        return prompt_ids(self.tokenizer, messages)

    def raw_ids(self, text: str, ids: Sequence[int] | None = None) -> list[int]:
        return raw_ids(self.tokenizer, text) if ids is None else list(ids)

    def open_many(self, prompts: Sequence[Sequence[int]]) -> list[ServerSlot]:
        opened = [ServerSlot(list(ids)) for ids in prompts]
        self.slots += opened
        return opened

    def crop(self, slot: ServerSlot, length: int) -> None:
        del slot.ids[length:]

    def close(self, slot: ServerSlot | None = None) -> None:
        """Give a slot back and cancel its request; without one, cancel all requests and close the connections."""
        if slot is None:
            return super().close()
        self._drop([slot])
        if slot in self.slots:
            self.slots.remove(slot)

    def steps(self, relay: Relay) -> APISteps:
        """The student's side of a relay.

        Raises:
            ValueError: for what only logits or hidden states could give.
        """
        rule = relay.call_rule
        for flag, what in {"uses_hidden": "hidden states", "uses_entropy": "logits"}.items():
            if getattr(rule, flag, False):
                raise ValueError(f"{rule!r} reads the student's {what}, which the server of {self.name} does not give")
        if relay.alternatives:
            raise ValueError(f"alternatives need the student's logits, which the server of {self.name} does not give")
        assert self.server  # one that is down or lacks something is noticed now
        return APISteps(self, relay)


class APISteps:
    """The steps of a student behind a server: requests that begin, and answers that are there."""

    def __init__(self, student: APIStudent, relay: Relay):
        self._student, self._relay = student, relay

    def step(self, active: Sequence[Row], seconds: float) -> Generator[Event, None, int]:
        """Ask for what each sequence has not asked for yet, and take the answers. Returns how many wrote.

        seconds: to wait for an answer.
        """
        student, rule, wrote = self._student, self._relay.written_rule, 0
        rows = {s.slot: s for s in active}
        # 1) Where a call rule or a fork wants a call, it is written. All others ask the server to go on.
        for s in [s for s in active if s.slot not in student._open]:
            before = len(s.ids)
            if s.wanted_call(rule):
                wrote += 1
                s.slot.ids += s.ids[before:]
                yield from s.events(before)
            else:
                student._open[s.slot] = student._client.start(self._ask, self._body(s))
        # 2) What the server wrote is taken up to a call, or to where it may not go on.
        for slot, answer in student._take(list(rows), 0 if wrote else seconds):
            s, before = rows[slot], len(rows[slot].ids)
            wrote += 1
            try:
                self._write(s, answer)
            except ServerError as error:
                s.failure = str(error)
                s.finish("excluded")
            slot.ids += s.ids[before:]
            yield from s.events(before)
        return wrote

    def _body(self, s: Row) -> dict[str, Any]:
        """The request that goes on with a sequence."""
        student, config, slot, at = self._student, s.config, s.slot, len(s.ids)
        server = student.server
        if s.banned and s.banned[0] == at:
            slot.banned = np.flatnonzero(s.forbidden()).tolist()
        once, ahead = bool(slot.banned), AHEAD if self._relay.written_rule else s.room
        # Requests of one seed at one place must not draw the same numbers if the first one drew what may not come.
        draw = (s.seed * 1_000_003 + 2 * at + once) % 2**31
        # A server may have settings of its own, such as those of the model's ``generation_config.json``.
        plain = {"min_p": 0.0, "repetition_penalty": 1.0}
        body = plain | student.extra_body | {
            "model": server.model, "prompt": list(slot.ids), "temperature": config.temperature, "seed": draw,
            "top_p": config.top_p, "top_k": config.top_k or -1,
            "max_tokens": 1 if once else min(s.room, ahead, student.context + 1 - len(slot.ids)),
            "stop": [FORBIDDEN.decode() if config.forbid_calls else CLOSE], "include_stop_str_in_output": True,
            "stop_token_ids": sorted(student.end_ids), **server.wants_ids,
            "skip_special_tokens": False,  # a tag may be one; the server looks for it in the text
        }  # fmt: skip
        body |= {"repeat_penalty": 1.0} if server.llama_cpp else {}
        raw = not server.sglang or (config.temperature in (0.0, 1.0) and not once)
        body |= {"n_probs" if server.llama_cpp else "logprobs": 1} if self._relay.record and raw else {}
        return body | ({"logit_bias": {str(i): NEVER for i in slot.banned}} if once else {})

    def _ask(self, body: dict[str, Any]) -> Answer | ServerError:
        """In a thread of the client."""
        student = self._student
        try:
            if time.monotonic() < student._rest:
                raise ServerError(student._absent)
            return student._client.ask(student.server.path, body, read=read_completion)
        except BaseException as error:
            return student._failure(error)

    def _write(self, s: Row, answer: Answer | ServerError | None) -> None:
        """The tokens of an answer, as far as they may follow."""
        text, rule, slot = self._student.text, self._relay.written_rule, s.slot
        # 1) Is it an answer?
        if not isinstance(answer, Answer):
            raise answer or ServerError("the request was cancelled")
        if not answer.ids or not all(0 <= i < len(text.bytes) and text.known[i] for i in answer.ids):
            raise ServerError("the server's answer holds no token ids, or some that its tokenizer does not have")
        logprobs = answer.logprobs if len(answer.logprobs or ()) == len(answer.ids) else None
        # 2) Its tokens, as if they were drawn here one by one.
        tried, slot.banned, data = slot.banned, [], b""
        for i, token in enumerate(answer.ids):
            if i and s.wanted_call(rule):
                return
            if s.barred and s.forbidden()[token]:
                if tried:
                    raise ServerError("the server does not obey logit_bias, by which calls are forbidden")
                slot.banned = np.flatnonzero(s.forbidden()).tolist()
                return
            s.write_student(token)
            if logprobs and "logprobs" in s.statistics:
                s.statistics["logprobs"][-1] = logprobs[i]
            data += text.bytes[token]
            if s.turn != "student":
                return
        # 3) An end that is none of ours cannot be told from a call that was cut off.
        if answer.finish not in ("length", "stop") or (answer.finish == "stop" and CLOSE.encode() not in data):
            raise ServerError(
                f"the server ended with {answer.finish!r} after token {answer.ids[-1]} ({data[-20:]!r}); its ids must "
                "hold the end token and the stop string, and the tokenizer must know the end token"
            )
