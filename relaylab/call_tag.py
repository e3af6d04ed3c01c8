"""The grammar of a call: ``<call>n</call>`` asks the teacher for the next n tokens (method: section 3).

    command  = "<call>" spaces digits spaces "</call>"      digits 0-9 only, 1 <= n < 10**12

A closed tag with any other body of up to 32 characters is a call all the same, but one that nobody answers: it has a
``problem``. So has an opening tag that is never closed, or whose body runs longer or opens another tag. This module
knows text and character spans only; which token holds which character is the business of ``engine/token_text.py``.

With several teachers (``relay.teachers.NamedTeachers``) the opening tag may name one: ``<call to=NAME>``. This grammar
is on where ``named`` is; elsewhere such a tag is text like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "<call>", "</call>"
LIMIT = 10**12
MAX_BODY = 32


# The body may not hold another opening tag, so an unclosed tag can be told from what follows without looking further.
def _grammar(tag: str) -> re.Pattern[str]:
    return re.compile(
        rf"{tag}(?:(?P<body>(?:(?!{tag.replace('(?P<to>', '(?:')}).){{0,{MAX_BODY}}}?){CLOSE})?", re.DOTALL
    )


_CALL, _NAMED = _grammar(OPEN), _grammar(rf"{OPEN[:-1]}(?: to=(?P<to>[^<>]{{0,{MAX_BODY}}}))?>")
TAG = re.compile("</?call>?")  # a tag or the debris of one, wherever it stands
_NUMBER = re.compile(r"[ \t\r\n]*([0-9]+)[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Command:
    """A call found in a text, at characters ``start`` to ``end``.

    ``n`` is the number asked for, or None with a ``problem``: ``empty`` (nothing between the tags), ``malformed`` (no
    number), ``zero``, ``too_large`` (n >= 10**12) or ``unclosed`` (the span is that of the opening tag alone). ``to``
    is the name in the opening tag.
    """

    start: int
    end: int
    n: int | None
    problem: str | None = None
    to: str | None = None

    @property
    def closed(self) -> bool:
        return self.problem != "unclosed"


def format_call(n: int, to: str | None = None) -> str:
    """The command that asks for ``n`` tokens, of the teacher named ``to``.

    >>> format_call(20)
    '<call>20</call>'

    Raises ValueError where n is not in 1 .. 10**12 - 1.
    """
    if not 1 <= n < LIMIT:
        raise ValueError(f"a call asks for 1 to {LIMIT - 1} tokens, not {n}")
    return f"{OPEN if to is None else f'{OPEN[:-1]} to={to}>'}{n}{CLOSE}"


def find_calls(text: str, start: int = 0, *, named: bool = False) -> list[Command]:
    """All calls in a text from a character on, in order, those that nobody can answer included.

    >>> [(c.n, c.problem) for c in find_calls("a <call> 12 </call> b <call></call> <call>3")]
    [(12, None), (None, 'empty'), (None, 'unclosed')]
    >>> [(c.n, c.to) for c in find_calls("<call to=large>12</call><call>3</call>", named=True)]
    [(12, 'large'), (3, None)]
    """
    found = []
    for match in (_NAMED if named else _CALL).finditer(text, start):
        body, n, problem = match["body"], None, None
        if body is None:
            problem = "unclosed"
        elif not body.strip(" \t\r\n"):
            problem = "empty"
        elif not (number := _NUMBER.fullmatch(body)):
            problem = "malformed"
        elif not 1 <= (n := int(number[1])) < LIMIT:
            n, problem = None, "too_large" if n else "zero"
        found.append(Command(*match.span(), n, problem, match["to"] if named else None))
    return found


def strip_calls(text: str, *, named: bool = False) -> str:
    """The text without its closed calls: what a reader sees who must not know of them.

    Opening tags that are never closed are no commands; they stay.

    >>> strip_calls("12*<call>4</call>7=84")
    '12*7=84'
    """
    return (_NAMED if named else _CALL).sub(lambda m: m[0] if m["body"] is None else "", text)


def settled(text: str, *, named: bool = False) -> int:
    """How many characters at the beginning of a text cannot become part of a call any more, whatever follows.

    >>> settled("7*<call>2"), settled("a <b"), settled("x <ca"), settled("<call>4</call>7")
    (2, 4, 2, 15)
    >>> settled("7*<call to=la", named=True), settled("7*<call to=la")
    (2, 13)
    """
    # 1) A call may be open: the last opening tag has no closing one, and room is left for it.
    last = next(reversed([*(_NAMED if named else _CALL).finditer(text)]), None)
    if last and last["body"] is None and len(text) < last.end() + MAX_BODY + len(CLOSE):
        return last.start()
    # 2) Or the text ends within an opening tag.
    begin = text.rfind("<")
    tag, naming = text[begin:] if begin >= 0 else "", f"{OPEN[:-1]} to="
    name = tag.removeprefix(naming) if named and tag.startswith(naming) else None
    within = OPEN.startswith(tag) or (named and naming.startswith(tag))
    return begin if tag and (within or (name is not None and len(name) <= MAX_BODY and ">" not in name)) else len(text)


# Controls, bidirectional and other invisible formatting, fillers, lone surrogates, non-characters, tag characters. The
# joiners U+200C and U+200D stay: emoji and several scripts need them.
HOSTILE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def visible(text: str, keep: str = "") -> str:
    """A text of a model or a server, safe to print: characters that could steer a terminal or hide are written out.

    Args:
        text: any text.
        keep: characters that are left alone.

    >>> print(visible("a\\x1b[31m\\u202eb\\n"))
    a\\x1b[31m\\u202eb\\n
    """
    return HOSTILE.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)
