"""What the student writes between two hand-offs: which of its tokens are calls, and what is left without them.

Calls are found in bytes, not in decoded text. The grammar of a call is ASCII, and no byte of a longer UTF-8 character
is an ASCII one, so byte offsets are as good as characters.
"""

from __future__ import annotations

from collections.abc import Iterator

from relaylab.call_tag import CLOSE, MAX_BODY, OPEN, Command, find_calls
from relaylab.engine.token_text import FORBIDDEN, TokenText


class StudentTurn:
    """The tokens of one turn, their bytes, and the calls closed so far."""

    def __init__(self, text: TokenText):
        self._text = text
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
        # Latin-1 keeps a byte a character: the offsets are right and the ASCII grammar reads the same.
        start = self.calls[-1].end if self.calls else 0
        found = find_calls(self.bytes[start:].decode("latin-1"))
        closed = [Command(c.start + start, c.end + start, c.n, c.problem) for c in found if c.closed]
        self.calls += closed
        return closed

    @property
    def in_call(self) -> bool:
        """Whether the turn ends within an opening tag or the body of a call that may still be closed."""
        tail = self.bytes[self.calls[-1].end if self.calls else 0 :]
        begin = tail.rfind(FORBIDDEN)
        return begin >= 0 and len(tail) - begin < len(OPEN) + MAX_BODY + len(CLOSE)

    def unclosed(self) -> list[Command]:
        """Opening tags that were never closed; final once the turn is over."""
        return [c for c in find_calls(self.bytes.decode("latin-1")) if not c.closed]

    def tokens(self, start: int, end: int) -> range:
        """The tokens that overlap bytes ``start`` to ``end``, and those without bytes between them."""
        first = next(i for i, stop in enumerate(self.ends) if stop > start)
        last = next(i for i, stop in enumerate(self.ends) if stop >= end)
        return range(first, last + 1)

    def without_calls(self) -> tuple[list[int], bytes]:
        """Ids and bytes of the turn with its closed calls removed."""
        kept = list(self.kept())
        return [i for _, ids, _ in kept for i in ids], b"".join(data for _, _, data in kept)

    def kept(self) -> Iterator[tuple[int, list[int], bytes]]:
        """What is left without the closed calls: places in the turn, with the ids and bytes of each.

        A token that holds a call's beginning or end and other text besides, such as ``>=``, leaves that text, encoded
        anew; all other ids are the sampled ones.
        """
        begin = 0
        for place, (token, end) in enumerate(zip(self.ids, self.ends, strict=True)):
            touching = [c for c in self.calls if c.start < end and c.end > begin]
            inside = begin == end and any(c.start < begin < c.end for c in self.calls)
            if touching:
                rest = bytes(
                    b
                    for k, b in enumerate(self.bytes[begin:end], begin)
                    if not any(c.start <= k < c.end for c in touching)
                )
                yield place, self._text.encode_bytes(rest) if rest else [], rest
            elif not inside:
                yield place, [token], bytes(self.bytes[begin:end])
            begin = end
