"""What a request may hold and what an answer looks like: OpenAI's fields, and ``relay``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import Message
from relaylab.trace import COMMAND, TEACHER, Trace

# Fields that change no answer are ignored. Of others that the relay has not, only the value that means "no" is taken.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
NEUTRAL = {
    "best_of": 1, "echo": False, "frequency_penalty": 0, "functions": [], "logit_bias": {}, "logprobs": False,
    "modalities": ["text"], "presence_penalty": 0, "response_format": {"type": "text"}, "suffix": "",
    "tool_choice": "none", "tools": [], "top_logprobs": 0,
}  # fmt: skip
STOP_LENGTH = 256  # characters of a stop string: each text that is sent is compared with all its beginnings
SHAPES = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": f"a text of 1 to {STOP_LENGTH} characters, or a list of at most 16 such texts",
}
REASONS = {"end": "stop", "teacher_end": "stop", "interrupted": "stop", "length": "length", "context": "length"}


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: names the input and the remedy.
        param: the field at fault.
        code: for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        self.status, kind = status, kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_what_says_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        no = {k for k, v in data.items() if v is None or k in IGNORED or (k in NEUTRAL and v == NEUTRAL[k])}
        return {k: v for k, v in data.items() if k not in no}


class RelayLimits(_Strict):
    """Fields of ``RelayConfig`` that a request may tighten."""

    max_calls: int | None = Field(default=None, ge=0)
    max_call_tokens: int | None = Field(default=None, ge=0)
    max_teacher_tokens: int | None = Field(default=None, ge=0)
    forbid_calls: bool = False


class StreamOptions(_Strict):
    include_usage: bool = False


class AnswerRequest(_Strict):
    """What both kinds of requests share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: str | list[str] = []
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = None
    relay: RelayLimits | None = None

    @field_validator("stop")
    @classmethod
    def _list_of_stops(cls, stop: str | list[str]) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if len(stops) > 16 or not all(1 <= len(s) <= STOP_LENGTH for s in stops):
            raise ValueError
        return stops

    def config(self, base: RelayConfig) -> RelayConfig:
        """The settings of this request. It may ask for less than the server allows, never for more.

        Raises:
            Refusal: for more tokens than the server allows.
        """
        if self.max_tokens and self.max_tokens > base.max_tokens:
            limit = f"this server writes at most {base.max_tokens} tokens (its --max-tokens)"
            raise Refusal(400, f"max_tokens is {self.max_tokens}; {limit}", param="max_tokens")
        own = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        limits = self.relay or RelayLimits()
        for name in ("max_calls", "max_call_tokens", "max_teacher_tokens"):
            own[name] = min((v for v in (getattr(limits, name), getattr(base, name)) if v is not None), default=None)
        own["forbid_calls"] = base.forbid_calls or limits.forbid_calls
        return replace(base, **{name: value for name, value in own.items() if value is not None})


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str = ""  # no template shows it


class ChatRequest(AnswerRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self

    @property
    def chat(self) -> list[Message]:
        """The messages as a chat template takes them."""
        texts = [m.content if isinstance(m.content, str) else "".join(p.text for p in m.content) for m in self.messages]
        roles = [m.role.replace("developer", "system") for m in self.messages]
        return [{"role": role, "content": text} for role, text in zip(roles, texts)]


class CompletionRequest(AnswerRequest):
    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry for each prompt."""
        single = isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int))
        return [self.prompt] if single else self.prompt  # type: ignore[list-item,return-value]


def parse(kind: type[AnswerRequest], body: bytes) -> Any:
    """The request in a body.

    Raises:
        Refusal: names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    message = f"{name}: {first['msg']}" if name else first["msg"]
    if first["type"] == "extra_forbidden":
        message = f"{name}: this server does not have this field, or not this value of it; leave it out"
    elif first["loc"] and first["loc"][0] in SHAPES and first["type"] != "missing":
        name = str(first["loc"][0])
        message = f"{name}: {SHAPES[name]}"
    raise Refusal(400, message, param=name or None)


class Reply:
    """Writes the answer to one request.

    Args:
        number: of the request, in its id.
        model: as the request calls it.
        chat: whether messages or texts are answered.
        seed: of the request, if it wants to know what the relay did.
    """

    def __init__(self, number: str, model: str, *, chat: bool, seed: int | None):
        self.chat, self.seed = chat, seed
        self._head = {"id": ("chatcmpl-" if chat else "cmpl-") + number, "created": int(time.time()), "model": model}

    def whole(self, texts: list[str], traces: list[Trace], usage: dict[str, Any]) -> dict[str, Any]:
        """All choices at once."""
        choices = []
        for i, (text, trace) in enumerate(zip(texts, traces)):
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": i, **said, **self._end(trace)})
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head | {"object": kind, "choices": choices, "usage": usage}

    def chunk(self, index: int, text: str, trace: Trace | None = None, *, first: bool = False) -> dict[str, Any]:
        """A part of one choice; ``trace`` comes with its last one."""
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        end = self._end(trace) if trace else {"finish_reason": None, "logprobs": None}
        choice = {"index": index, **({"delta": delta} if self.chat else {"text": text}), **end}
        return self._head | {"object": self._chunk, "choices": [choice]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The counts, after the last chunk."""
        return self._head | {"object": self._chunk, "choices": [], "usage": usage}

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _end(self, trace: Trace) -> dict[str, Any]:
        end: dict[str, Any] = {"finish_reason": REASONS[trace.stop], "logprobs": None}
        if self.seed is None:
            return end
        # Positions count the completion's tokens, commands included.
        calls = [
            {"asked": c.requested, "granted": c.granted, "delivered": c.delivered, "start": c.start, "end": c.end,
             "status": c.status, "error": c.error}
            for c in trace.calls
        ]  # fmt: skip
        return end | {"relay": {"seed": self.seed, "stop": trace.stop, "calls": calls}}


def usage_of(traces: list[Trace], prompt_tokens: int) -> dict[str, Any]:
    """Tokens of an answer in all, and of each model. ``written_tokens`` counts in the teacher's own tokenizer."""
    total, teacher = sum(len(t.completion_ids) for t in traces), sum(t.count(TEACHER) for t in traces)
    answered = [call for t in traces for call in t.answered]
    models = {
        "student": {"model": traces[0].student, "completion_tokens": total - teacher,
                    "command_tokens": sum(t.count(COMMAND) for t in traces)},
        "teacher": {"model": traces[0].teacher, "completion_tokens": teacher, "calls": len(answered),
                    "written_tokens": sum(call.written for call in answered)},
    }  # fmt: skip
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": total, "total_tokens": prompt_tokens + total}
    return counts | {"models": models}
