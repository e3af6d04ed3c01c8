"""What a server can do, found out by asking it: "OpenAI-compatible" says too little.

Real servers differ in whether they take token ids, give them back, keep to ``max_tokens``, and in what they do with a
chat that ends in half an assistant's message. That they accept a request is no evidence: unknown fields are mostly
ignored. So each question here is a small request whose answer could not have come about otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from relaylab.relay.api_client import Answer, APIClient, Fault

TEXT = "Count: one, two, three, four,"
LIMIT = 3
# Longer than LIMIT tokens can be: an answer that begins with all of it repeats it, and did not write it anew.
PREFIX = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
ASK = [{"role": "user", "content": "Count in words."}]
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
CUT = "\ufffd"  # what half a character decodes to

Prefix = Literal["new text", "repeats", "new turn", "refused"]
_PREFIX_SAYS = {
    "new text": "continued, answers hold the new text only",
    "repeats": "continued, answers repeat what they continue",
    "new turn": "not continued: a new turn begins",
    "refused": "refused",
}


@dataclass(frozen=True, slots=True)
class ServerProbe:
    """What was seen of a server. Where ``error`` is set, nothing else is known.

    models: those that the server lists. model: the one that is asked.
    completions: ``/completions`` takes a text. token_prompts: it takes token ids. token_ids: it gives those it wrote.
    keeps_limit: it never wrote more than ``max_tokens``; None where it does not say how many it wrote.
    prefix: what it makes of a chat that ends in the beginning of an answer.
    no_thinking: its chats take ``enable_thinking=False``.
    begins: tokens that it puts before a text of its own accord; None where that is not known.
    context: tokens that a prompt and its continuation may have together; None where that is not known.
    tokenizer: the given one counts and reads as the server's does; None where that is not known.
    """

    url: str
    error: str | None = None
    models: tuple[str, ...] = ()
    model: str | None = None
    completions: bool = False
    token_prompts: bool = False
    token_ids: bool = False
    keeps_limit: bool | None = None
    prefix: Prefix = "refused"
    no_thinking: bool = False
    begins: int | None = None
    context: int | None = None
    tokenizer: bool | None = None

    @property
    def reachable(self) -> bool:
        return self.error is None

    def __str__(self) -> str:
        if not self.reachable:
            return f"{self.url}: {self.error}"
        said = {True: "yes", False: "no", None: "not known"}
        listed = "" if self.model in self.models else f", not in its list ({', '.join(self.models) or 'empty'})"
        lines = {
            "text prompts": said[self.completions],
            "token-id prompts": said[self.token_prompts],
            "returns token ids": said[self.token_ids],
            "keeps to max_tokens": said[self.keeps_limit],
            "begun chat answers": _PREFIX_SAYS[self.prefix],
            "context": f"{self.context} tokens" if self.context else "not known",
        }
        if self.tokenizer is not None:
            lines["tokenizer given"] = "the server's" if self.tokenizer else "NOT the server's"
        return f"{self.url}: model {self.model}{listed}\n" + "\n".join(f"  {k:<20} {v}" for k, v in lines.items())


async def probe_server(client: APIClient, *, model: str | None = None, tokenizer: Any = None) -> ServerProbe:
    """Ask a server what it can do, in up to eight small requests; ``model`` may be None where it serves just one."""
    try:
        listed = await _models(client)
        model = _choose(model, list(listed))
        return await _Questions(client, model, tokenizer).ask(listed)
    except Fault as fault:
        return ServerProbe(client.url, error=str(fault))


async def _models(client: APIClient) -> dict[str, dict[str, Any]]:
    def read(data: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(data, dict):
            raise Fault("the server's list of models is not readable", passing=True)
        entries = data.get("data") if isinstance(data.get("data"), list) else []
        return {e["id"]: e for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)}

    try:
        return await client.ask("/models", read=read)
    except Fault as fault:
        if fault.refusal:
            return {}
        raise


def _choose(model: str | None, models: list[str]) -> str:
    if model is None and len(models) != 1:
        raise Fault(
            f"name a model; the server has: {', '.join(models)}"
            if models
            else "name a model: the server does not list what it has"
        )
    return model or models[0]


class _Questions:
    def __init__(self, client: APIClient, model: str, tokenizer: Any):
        self._client, self._model, self._tokenizer = client, model, tokenizer
        self._refusals: list[Fault] = []
        self._written: list[int] = []

    async def _try(self, path: str, **body: Any) -> Answer | None:
        """The answer, or None where the server refuses; raises Fault where it could not be asked."""
        common = {"model": self._model, "max_tokens": LIMIT, "temperature": 0}
        try:
            answer = await self._client.ask(path, common | body)
        except Fault as fault:
            if not fault.refusal:
                raise
            self._refusals.append(fault)
            return None
        if answer.written is not None:
            self._written.append(answer.written)
        return answer

    async def ask(self, listed: dict[str, dict[str, Any]]) -> ServerProbe:
        text = await self._try("/completions", prompt=TEXT)
        # Without a tokenizer any few ids will do: every vocabulary has the first ones.
        ids = self._encode(TEXT) if self._tokenizer else [5, 6, 7]
        by_ids = text and await self._try("/completions", prompt=ids)
        with_ids = text and await self._try("/completions", prompt=TEXT, return_token_ids=True)
        prefix, no_thinking = await self._prefix()
        if text is None and prefix == "refused" and not await self._try("/chat/completions", messages=ASK):
            raise Fault(self._remedy(list(listed)))
        begins = text.prompt - len(ids) if self._tokenizer and text and text.prompt else None
        context = listed.get(self._model, {}).get("max_model_len")
        return ServerProbe(
            url=self._client.url,
            models=tuple(listed),
            model=self._model,
            completions=text is not None,
            # A server may also take the list's text, or every id for a prompt of its own: then it counts otherwise.
            token_prompts=bool(by_ids) and by_ids.prompt in (None, len(ids)),
            token_ids=bool(with_ids and with_ids.ids),
            keeps_limit=max(self._written) <= LIMIT if self._written else None,
            prefix=prefix,
            no_thinking=no_thinking,
            begins=begins,
            context=context if type(context) is int else None,
            tokenizer=self._same(begins, with_ids),
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _same(self, begins: int | None, answer: Answer | None) -> bool | None:
        if begins is None:
            return None
        if begins not in (0, 1, 2):  # a beginning-of-text token and an end token are all that servers add
            return False
        if not answer or not answer.ids:
            return True
        return reads_as(self._tokenizer, answer.ids, answer.text)

    async def _prefix(self) -> tuple[Prefix, bool]:
        begun = [*ASK, {"role": "assistant", "content": PREFIX}]
        told = await self._try("/chat/completions", messages=begun, **CONTINUE, **NO_THINKING)
        no_thinking = told is not None
        told = told or await self._try("/chat/completions", messages=begun, **CONTINUE)
        if told is None:
            return "refused", False
        if told.text.startswith(PREFIX):
            return "repeats", no_thinking
        # Who ignores the request to continue closes the message and opens another: the same prompt as without it.
        untold = await self._try("/chat/completions", messages=begun, **(NO_THINKING if no_thinking else {}))
        if untold is None:
            return "new text", no_thinking
        fewer = told.prompt is not None and untold.prompt is not None and told.prompt < untold.prompt
        return ("new text" if fewer else "new turn"), no_thinking

    def _remedy(self, models: list[str]) -> str:
        """Why nothing works, from the first refusal."""
        said = self._refusals[0]
        if models and self._model not in models:
            return f"model {self._model!r} not found; the server has: {', '.join(models)} ({said})"
        if said.status == 404 and not models:
            return f"{said}; is this the address of the API? It often ends in /v1"
        return str(said)


def reads_as(tokenizer: Any, ids: list[int], text: str) -> bool:
    """Are these the ids of that text, special tokens aside?

    Half a character at the end is written in several ways, and some tokenizers drop a space at the beginning.
    """
    read = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return read.rstrip(CUT).lstrip(" ") == text.rstrip(CUT).lstrip(" ")
