"""What a server can do, found out by small requests: "OpenAI-compatible" says too little.

Servers differ in whether they take token ids, return them, put a template around a completion, and continue a chat that
ends in half an assistant's message. That a server accepts a field is no evidence: most ignore fields that they do not
know. So each request here has an answer that could not have come about otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from relaylab.call_tag import visible
from relaylab.relay.api_client import Answer, APIClient, ServerError

TEXT = "Count: one, two, three, four,"
LIMIT = 3
# Longer than LIMIT tokens can be: an answer that begins with all of it repeats it, and did not write it anew.
PREFIX = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
QUESTION = [{"role": "user", "content": "Count in words."}]
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
CUT = "\ufffd"  # what half a character decodes to
TEMPLATE_TOKENS = 4  # more than servers add to a text, which is a token at its beginning and one at its end
SGLANG_KEEPS = 6  # tokens of its context that SGLang gives to nobody: a prompt has at most 7 less
REFUSALS = (400, 404, 405, 415, 422, 500, 501)  # the server is there, but does not do this; some say so with a 500


@dataclass(frozen=True, slots=True)
class ServerProbe:
    """What was seen of a server. If ``error`` is set, nothing else is known."""

    url: str
    error: str | None = None  # why it could not be asked
    models: tuple[str, ...] = ()  # those that it lists
    model: str | None = None  # the one to use
    completions: bool = False  # /completions continues a text
    template: bool = False  # it puts a chat template of its own around the text, which is no continuation
    token_prompts: bool = False  # /completions takes token ids
    token_ids: bool = False  # it returns those that it wrote
    path: str = "/completions"  # where it does so; llama.cpp has an address of its own
    # What it makes of a chat that ends in the beginning of an answer. "repeats": its answers hold this beginning again.
    prefix: Literal["new text", "repeats", "new turn", "refused"] = "refused"
    no_thinking: bool = False  # its chats take enable_thinking=False
    begins: int | None = None  # tokens that it puts before a text, if known
    context: int | None = None  # tokens of a prompt and its continuation together, if known
    tokenizer: bool | None = None  # the tokenizer given is the server's, if known
    sglang: bool = False  # its log-probabilities are those after temperature and bias

    @property
    def reachable(self) -> bool:
        return self.error is None

    @property
    def llama_cpp(self) -> bool:
        """Token ids go to llama.cpp's own address, whose fields have other names."""
        return self.path != "/completions"

    @property
    def wants_ids(self) -> dict[str, bool]:
        """The field that asks for the ids of what is written."""
        return {"return_tokens" if self.llama_cpp else "return_token_ids": True}

    @property
    def continues(self) -> bool:
        """Its chats continue a begun answer."""
        return self.prefix in ("new text", "repeats")

    def __str__(self) -> str:
        if not self.reachable:
            return f"{self.url}: {self.error}"
        listed = "" if self.model in self.models else f", not in its list ({_names(self.models) or 'empty'})"
        word = {True: "yes", False: "no", None: "not known"}
        lines = {
            "text prompts": "no: within a chat template of the server" if self.template else word[self.completions],
            "token-id prompts": word[self.token_prompts],
            "returns token ids": word[self.token_ids],
            "begun chat answers": f"{'' if self.continues else 'not '}continued ({self.prefix})"
            + ("" if self.continues or self.completions else "; only --chat-only can use it"),
            "context": f"{self.context} tokens" if self.context else word[None],
            "right tokenizer": word[self.tokenizer],
        }
        rows = [f"{self.url}: model {self.model}{listed}", *(f"  {k:<20} {v}" for k, v in lines.items())]
        return "\n".join(map(visible, rows))


def probe_server(client: APIClient, model: str | None, tokenizer: Any, temperature: float) -> ServerProbe:
    """Find out what a server can do, in at most nine small requests.

    Args:
        client: of the server.
        model: as the server calls it; None if it serves just one.
        tokenizer: of the model (a ``SharedTokenizer``), or None.
        temperature: of the requests. Some servers do not take every value.

    Returns:
        What was seen. A server that cannot be asked is an ``error`` in it, and no exception.
    """
    try:
        return _probe(client, model, tokenizer, temperature)
    except ServerError as error:
        return ServerProbe(client.url, error=client.scrub(str(error)))


def _probe(client: APIClient, model: str | None, tokenizer: Any, temperature: float) -> ServerProbe:
    refusals: list[ServerError] = []

    def answer(path: str, **body: Any) -> Answer | None:
        """None if the server refuses."""
        body |= {"model": model, "max_tokens": LIMIT, "temperature": temperature}
        try:
            reply = client.ask(path, body, read=Answer.parse if "messages" in body else read_completion)
            if reply.has_text:
                return reply
            raise ServerError("this server's chat answers hold no text; perhaps it reasons first", status=REFUSALS[0])
        except ServerError as error:
            if error.status not in REFUSALS:
                raise
            refusals.append(error)
            return None

    # 1) The models.
    listed = _models(client)
    if model is None and len(listed) != 1:
        names = f"the server has: {_names(listed)}" if listed else "the server does not list what it has"
        raise ServerError(f"name a model, as URL#model or apart; {names}")
    model = model or next(iter(listed))

    # 2) Completions: of a text, of twice that text, of ids; with the ids that were written.
    text = answer("/completions", prompt=TEXT)
    twice = text and answer("/completions", prompt=f"{TEXT} {TEXT}")
    # Without a tokenizer any few ids will do: every vocabulary has the first ones.
    ids = tokenizer.encode(TEXT) if tokenizer else [5, 6, 7]
    by_ids = text and answer("/completions", prompt=ids)
    with_ids = text and answer("/completions", prompt=TEXT, return_token_ids=True)
    path, entry = "/completions", listed.get(model, {})
    if by_ids and entry.get("owned_by") == "llamacpp":
        own = client.url.removesuffix("/v1") + "/completion"
        with suppress(ServerError):  # a proxy may not let it through
            if (reply := answer(own, prompt=TEXT, return_tokens=True)) and reply.ids:
                path, with_ids = own, reply
    # A template adds the same to both texts. A count that does not grow leaves out what the server had in a cache.
    one, two = (seen.prompt or 0 if seen else 0 for seen in (text, twice))
    template = one < two and 2 * one - two > TEMPLATE_TOKENS

    # 3) Chats of a begun answer.
    chat, begun = "/chat/completions", [*QUESTION, {"role": "assistant", "content": PREFIX}]
    reply = answer(chat, messages=begun, **CONTINUE, **NO_THINKING)
    no_thinking = reply is not None
    reply = reply or answer(chat, messages=begun, **CONTINUE)
    prefix = "refused" if reply is None else "repeats" if reply.text.startswith(PREFIX) else "new text"
    if reply and prefix == "new text":
        # Who ignores the request to continue closes the message and opens another: the same prompt as without it.
        other = answer(chat, messages=begun, **NO_THINKING if no_thinking else {})
        if other and not (reply.prompt is not None and other.prompt is not None and reply.prompt < other.prompt):
            prefix = "new turn"
    if not (text or reply or answer(chat, messages=QUESTION)):
        if listed and model not in listed:
            raise ServerError(f"model {model!r} not found; the server has: {_names(listed)} ({refusals[-1]})")
        address = "; is this the address of the API? It often ends in /v1"
        raise ServerError(str(refusals[-1]) + (address if refusals[-1].status == 404 and not listed else ""))

    begins = text.prompt - len(ids) if tokenizer and text and text.prompt and not template else None
    ours = None if begins is None else 0 <= begins < 3
    if ours and with_ids and with_ids.ids:
        ours = tokenizer.text_ids(with_ids) is not None
    meta = entry.get("meta")
    context = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    if (sglang := entry.get("owned_by") == "sglang") and type(context) is int:
        context -= SGLANG_KEEPS
    return ServerProbe(
        client.url, None, tuple(listed), model, completions=text is not None and not template, template=template,
        # A server may also take the list's text, or every id for a prompt of its own: then it counts otherwise.
        token_prompts=by_ids is not None and by_ids.prompt in (None, len(ids)),
        token_ids=bool(with_ids and with_ids.ids), path=path, prefix=prefix, no_thinking=no_thinking, begins=begins,
        context=context if type(context) is int else None, tokenizer=ours, sglang=sglang,
    )  # fmt: skip


def read_completion(data: Any) -> Answer:
    """As ``Answer.read``, and what llama.cpp's own address gives. There, tokens of a stop string have no logprobs."""
    if not isinstance(data, dict) or "stop_type" not in data:
        return Answer.read(data)
    ids, likely = ([] if not isinstance(data.get(k), list) else data[k] for k in ("tokens", "completion_probabilities"))
    known = [entry.get("logprob") if isinstance(entry, dict) else "" for entry in likely]
    choice = {
        "text": data.get("content"), "finish_reason": data["stop_type"], "stop_reason": data.get("stopping_word"),
        "token_ids": ids, "logprobs": {"token_logprobs": known + [None] * (len(ids) - len(known))},
    }  # fmt: skip
    counts = {"completion_tokens": data.get("tokens_predicted"), "prompt_tokens": data.get("tokens_evaluated")}
    return Answer.read({"choices": [choice], "usage": counts})


def _models(client: APIClient) -> dict[str, dict[str, Any]]:
    def read(data: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(data, dict):
            raise ServerError("the server's list of models is not readable", passing=True)
        entries = data["data"] if isinstance(data.get("data"), list) else []
        return {e["id"]: e for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)}

    try:
        return client.ask("/models", read=read)
    except ServerError as error:
        if error.status not in REFUSALS:
            raise
        return {}


def _names(models: Collection[str]) -> str:
    return ", ".join([*models][:20]) + (f" and {len(models) - 20} more" if len(models) > 20 else "")
