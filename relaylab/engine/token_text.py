"""Which token holds which bytes: the bridge between ids and the text in which calls are found.

Ids are never derived from decoded text: decoding and encoding again moves token boundaries. Instead every token has its
bytes, a completion's text is their concatenation, and a character span is mapped to the tokens that overlap it. Spans
are byte offsets, which for the ASCII grammar of a call are as good as characters: no byte of a longer UTF-8 character
is an ASCII one.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from relaylab.call_tag import CLOSE, MAX_BODY, OPEN, Command, find_calls, format_call, settled

# No text that the sampler can write may contain this; a shorter prefix than the whole tag leaves less behind.
FORBIDDEN = OPEN[:-1].encode()
TEMPLATE_STEPS = 10_000_000  # that a chat template may take; Qwen's takes some hundred per message


# Byte-level vocabularies spell each byte as a printable character, as GPT-2's did first.
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All of a tokenizer, as its ``tokenizer.json`` has it."""
    backend: Any = tokenizer.backend_tokenizer
    return json.loads(backend.to_str())


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of what turns text into ids and back; equal for tokenizers that can exchange ids."""
    state = _state(tokenizer)
    parts = {k: state.get(k) for k in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class TokenText:
    """The bytes of every token of a tokenizer, byte-level (Qwen, Llama 3, GPT-2) or with byte fallback (Llama 2,
    Gemma).

    >>> from relaylab.engine.load import embedded_tokenizer
    >>> text = TokenText(embedded_tokenizer())
    >>> ids = text.encode("12*7=<call>2</call>")
    >>> b"".join(text.bytes[i] for i in ids).decode()
    '12*7=<call>2</call>'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not getattr(tokenizer, "is_fast", False):
            kind = type(tokenizer).__name__
            raise ValueError(f"{kind} is not backed by the tokenizers library; use a fast tokenizer")
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint(tokenizer)
        self.size = len(tokenizer)
        self.bytes = self._table()
        self.known = np.zeros(len(self.bytes), bool)  # which ids have a token at all
        self.known[list(tokenizer.get_vocab().values())] = True
        self._bans: dict[int, np.ndarray] = {}
        self._calls: dict[tuple[int, str | None], list[int]] = {}
        self._check()

    def _check(self) -> None:
        """The bytes of tokens must join to what the tokenizer decodes; those of WordPiece do not."""
        ids = self._encode("What is 12 + 34?\nIt is playing 46.")
        joined = b"".join(self.bytes[i] for i in ids).decode(errors="replace").strip()
        decoded = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()
        if joined != decoded:
            kind = _state(self.tokenizer)["model"]["type"]
            raise ValueError(
                f"the tokens of this {kind} tokenizer join to {joined!r}, and it decodes {decoded!r}; relaylab needs "
                "tokens that hold the bytes of the text, as those of Qwen, Llama, Mistral, Gemma or GPT-2 do"
            )

    def _table(self) -> list[bytes]:
        state, vocabulary = _state(self.tokenizer), self.tokenizer.get_vocab()
        byte_level = '"ByteLevel"' in json.dumps(state["decoder"])
        literal = {t["id"]: t["content"] for t in state["added_tokens"]}
        table = [b""] * (max(vocabulary.values()) + 1)
        for token, i in vocabulary.items():
            if i in literal:
                table[i] = literal[i].encode()
            elif byte_level:
                if not BYTE_OF.keys() >= set(token):
                    raise ValueError(
                        f"the byte-level token {token!r} (id {i}) holds a character that stands for no byte"
                    )
                table[i] = bytes(BYTE_OF[c] for c in token)
            elif len(token) == 6 and token.startswith("<0x"):
                table[i] = bytes([int(token[3:5], 16)])
            else:
                table[i] = token.replace("▁", " ").encode()
        return table

    def encode(self, text: str) -> list[int]:
        """Ids of untrusted text, with its very bytes: what looks like a special token in it stays text.

        Some tokenizers put a space before every text (Llama 2); such a text is encoded behind a newline that is taken
        off again. Where a normaliser changes characters (NFC), these are encoded one by one, and as bytes where the
        vocabulary has them; only a character that it cannot spell at all comes out as the tokenizer wants it.
        """
        data = text.encode()
        for before in ("", "\n"):
            ids = self._encode(before + text)
            begin, missing = len(ids), len(data)
            while begin > 0 and missing > 0:
                begin -= 1
                missing -= len(self.bytes[ids[begin]])
            if b"".join(self.bytes[i] for i in ids[begin:]) == data:
                return ids[begin:]
        if len(text) > 1:
            return self.encode(text[: len(text) // 2]) + self.encode(text[len(text) // 2 :])
        return [self._single[b] for b in data] if all(b in self._single for b in data) else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def call(self, n: int, to: str | None = None) -> list[int]:
        """Ids of the command for n tokens. ValueError for a number that no command holds."""
        if (n, to) not in self._calls:
            self._calls[n, to] = self.encode(format_call(n, to))
        return self._calls[n, to]

    @functools.cached_property
    def call_begins(self) -> np.ndarray:
        """The ids of the tokens that can begin a call: those that end in a part of its opening tag, or hold it."""
        texts = [token.decode("latin-1") for token in self.bytes]
        return np.array([i for i, text in enumerate(texts) if settled(text) < len(text)], dtype=np.int64)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of a piece of a token's bytes, which may not be whole characters."""
        try:
            return self.encode(data.decode())
        except UnicodeDecodeError:
            return [self._single[b] for b in data if b in self._single]

    @functools.cached_property
    def _single(self) -> dict[int, int]:
        return {token[0]: i for i, token in reversed(list(enumerate(self.bytes))) if len(token) == 1}

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each token; joined, the text of all. A character of several tokens belongs to its last one.

        What is no character becomes U+FFFD; a cut-off one at the end goes to the last token.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.bytes[t], final=i == len(ids) - 1) for i, t in enumerate(ids)]

    def forbidden(self, turn: bytes | bytearray) -> np.ndarray:
        """Which tokens must not come after the bytes of a turn where no call may be: a bool array (vocabulary,).

        However a call is cut into tokens, the last byte of ``<call`` belongs to some token; that one is in the array.
        So is the first token of a command (``call``). Else a student that begins one leaves debris, as ``< call>5``.
        """
        matched = next((k for k in range(len(FORBIDDEN) - 1, 0, -1) if turn.endswith(FORBIDDEN[:k])), 0)
        if matched not in self._bans:
            # "<" stands at the beginning of the pattern alone, so no other partial match can be under way.
            rest = FORBIDDEN[matched:]
            self._bans[matched] = np.array([FORBIDDEN in b or (matched > 0 and b.startswith(rest)) for b in self.bytes])
            self._bans[matched][self.call(1)[0]] = True
        return self._bans[matched]


class StudentTurn:
    """What the student writes between two hand-offs: its tokens, their bytes, and the calls closed so far.

    ``named``: calls may name a teacher.
    """

    def __init__(self, text: TokenText, *, named: bool = False):
        self._text, self._named = text, named
        self.ids: list[int] = []
        self.ends: list[int] = []  # byte offset after each token
        self.bytes = bytearray()
        self.calls: list[Command] = []

    def append(self, token: int) -> list[Command]:
        """Add a token; the calls that it closes, in order (nearly always none or one)."""
        data = self._text.bytes[token]
        self.ids.append(token)
        self.bytes += data
        self.ends.append(len(self.bytes))
        if b">" not in data:
            return []
        start = self.calls[-1].end if self.calls else 0
        closed = [c for c in self._find(start) if c.problem != "unclosed"]
        self.calls += closed
        return closed

    def unclosed(self) -> list[Command]:
        """Opening tags that were never closed; final once the turn is over."""
        return [c for c in self._find() if c.problem == "unclosed"]

    def _find(self, start: int = 0) -> list[Command]:
        return find_calls(self.bytes.decode("latin-1"), start, named=self._named)  # where each byte is a character

    @property
    def in_call(self) -> bool:
        """Whether the turn ends within an opening tag or the body of a call that may still be closed."""
        begin = self.bytes.rfind(FORBIDDEN, self.calls[-1].end if self.calls else 0)
        name = len(" to=") + MAX_BODY if self._named else 0
        return begin >= 0 and len(self.bytes) - begin < len(OPEN) + name + MAX_BODY + len(CLOSE)

    def tokens(self, command: Command) -> range:
        """The tokens that hold bytes of a command, and those without bytes between them."""
        return range(bisect_right(self.ends, command.start), bisect_left(self.ends, command.end) + 1)

    def kept(self) -> Iterator[tuple[int, list[int], bytes]]:
        """What is left without the closed calls: places in the turn, with the ids and bytes of each.

        A token that holds a call's beginning or end and other text besides, such as ``>=``, leaves that text, encoded
        anew; all other ids are the sampled ones.
        """
        begin = 0
        for place, (token, end) in enumerate(zip(self.ids, self.ends, strict=True)):
            touching = [c for c in self.calls if c.start < end and begin < c.end]
            outside = (k for k in range(begin, end) if not any(c.start <= k < c.end for c in touching))
            rest = bytes(self.bytes[k] for k in outside)
            ids = [token] if not touching else self._text.encode_bytes(rest) if rest else []
            yield place, ids, rest
            begin = end


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a prompt: the chat template applied, ready for an answer, in non-thinking mode where there is one.

    A tokenizer without a template gets the messages' contents, a blank line after each. What looks like a special
    token in a message stays text.

    Raises:
        ValueError: where the template fails or leaves nothing, and for text that is no Unicode.
    """
    try:
        "".join(m["content"] for m in messages).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"a question holds {half}, half of a surrogate pair, which is no character") from None
    special = [t for t in tokenizer.all_special_tokens if any(t in m["content"] for m in messages)]
    # Contents with special tokens are put in by marks and encoded apart.
    marks = {f"\ue000{i}\ue001": m["content"] for i, m in enumerate(messages)} if special else {}
    shown = [m | {"content": mark} for m, mark in zip(messages, marks)] if special else messages
    text = prompt_text(tokenizer, shown)
    # What begins a text stands in a template; without one the tokenizer knows it.
    begin = [] if getattr(tokenizer, "chat_template", None) else raw_ids(tokenizer, "")[:1]
    ids: list[int] = [i for i in begin if i == tokenizer.bos_token_id]
    for part in re.split("(\ue000[0-9]+\ue001)", text) if special else [text]:
        is_content = part in marks
        ids += tokenizer(marks.get(part, part), add_special_tokens=False, split_special_tokens=is_content)["input_ids"]
    if not ids:
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} makes an empty prompt of {messages}")
    return ids


def raw_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a prompt without a chat template, begun as the tokenizer begins a text. Special tokens stay text."""
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The text of a prompt, up to where the answer begins.

    Raises:
        ValueError: where the chat template fails.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return "".join(f"{m['content']}\n\n" for m in messages)
    try:
        with _limited_steps():
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
        return str(text)
    except Exception as error:  # a template is a program: besides TemplateError it can raise TypeError and others
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} fails: {error}") from error


@contextlib.contextmanager
def _limited_steps() -> Iterator[None]:
    """Raise TimeoutError after ``TEMPLATE_STEPS`` lines of Python in this thread; jinja2 turns templates into these."""
    left, before = TEMPLATE_STEPS, sys.gettrace()

    def step(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TimeoutError(f"it takes more than {TEMPLATE_STEPS} steps")
        return step

    sys.settrace(step)
    try:
        yield
    finally:
        sys.settrace(before)
