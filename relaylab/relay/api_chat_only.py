"""A teacher that only chats: each of its replies is a new turn, so a call can only ask for the continuation in words.

What comes back repeats the last line, as asked, and may begin with chatter. Both are cut here. The rest is what the
model would write next as far as it did as it was told: such calls are *approximate* in the trace.
"""

from __future__ import annotations

import re
from itertools import accumulate

from relaylab.relay.api_client import Answer, ServerError
from relaylab.relay.teachers import Message, TeacherOutput

SPARE = 48  # tokens of a reply beyond the n of the call, for what is cut
TAIL = 80  # characters of the last line that are asked for again
OVERLAP = 3  # characters that count as a repetition, spaces aside
ANEW = 12  # and as the repetition of an earlier line
# The seam is known if the end is repeated. A turn that stands in the chat as finished is less often gone on with.
ALREADY = "The beginning of the answer is written already:"
ASK = f"{{question}}\n\n{ALREADY}\n{{begun}}\n\n" + (
    "Write the rest. First write the last line again, word for word as far as it goes, and go on from there. "
    "The last line so far is:\n{tail}"
)
REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very |so )?sorry\b|sorry,|i apologi[sz]e\b|as an ai\b|(?:unfortunately, )?i"
    r"(?: can['’]?t| cannot| won['’]?t|['’]?m unable to| am unable to| am not able to)"
    r"(?: \w+)? (?:help|assist|continue|comply|provide|answer|fulfil|complete|do)\b)",
    re.I,
)
_SURE = r"(?:sure|certainly|of course|absolutely)"
PREFACE = re.compile(  # a word of assent; a line about the continuation, up to its colon
    rf"\s*(?:{_SURE}(?: thing)?[!.]\s+)?(?:(?:{_SURE},? )?(?:here (?:it is|you go)|(?:here(?: is|['’]s) )?"
    r"(?:the |my |your )?(?:continu\w+|rest of \w+ \w+|next part|text that comes next)\b[^\n]{0,60}?):\s+)?",
    re.I,
)
FENCE = re.compile(r"\s*(```|~~~)\w*\n(.*?)(?:\n?\1.*)?", re.S)
QUOTES = {'"': '"', "“": "”", "«": "»"}


def instruction(messages: list[Message], begun: str) -> list[Message]:
    """The chat that asks for the continuation of a begun answer, in its last message."""
    *before, question = messages
    asked = ASK.format(question=question["content"], begun=begun, tail=_tail(begun))
    return [*before, question | {"content": asked}]


def approximate(answer: Answer, begun: str) -> TeacherOutput:
    """A reply as an output. ``tokens`` counts all that the service wrote, if it counts.

    The end of a reply does not end the answer: a chat often stops after the next step. The student goes on.
    """
    if answer.finish not in ("stop", "length", None):
        raise ServerError(f"the server ended its answer with finish_reason {answer.finish!r}")
    text = continuation(answer.text.rstrip("\ufffd"), begun)
    return TeacherOutput(text, "length", tokens=answer.written or 0, approximate=True)


def continuation(reply: str, begun: str) -> str:
    """What a reply adds to a begun answer.

    >>> continuation("Sure! Here is the continuation:\\n\\n84*7=588 tiles.", "They lay 84*7=")
    '588 tiles.'

    Raises:
        ServerError: for a refusal, where nothing is added, and where another beginning is written.
    """
    if REFUSAL.match(reply):
        raise ServerError(f"the service refused: {reply[:200]}")
    # 1) What the text is wrapped in.
    preface = PREFACE.match(reply)
    text = reply[preface.end() :] if preface and preface[0].strip() else reply
    if (fenced := FENCE.fullmatch(text)) and "```" not in begun:
        text = fenced[2]
    bare = text.strip()
    if bare and (close := QUOTES.get(bare[0])) and close not in bare[1:-1]:
        text = bare[1:].removesuffix(close)
    text = re.sub(r"^\s*(?:\.\.\.|…)\s*", "", text)
    # 2) The repetition of the end, from the beginning of one of its words on; spaces may differ.
    ends = [i for i, c in enumerate(text, 1) if not c.isspace()]
    squeezed, so_far, tail = _squeezed(text), _squeezed(begun), _squeezed(_tail(begun))
    sizes = [n for n in accumulate(map(len, reversed(begun.split()))) if n == len(tail) or n >= OVERLAP]
    repeated = max((n for n in sizes if n <= len(ends) and so_far[-n:] == squeezed[:n]), default=0)
    # An earlier line begins another answer. Without a repetition, only a whole line goes on from the end.
    first, earlier = _squeezed(text.strip().partition("\n")[0]), map(_squeezed, begun.split("\n")[:-1])
    anew = repeated <= len(tail) and len(first) >= ANEW and first != tail and first in earlier
    if ALREADY in reply or (squeezed and (anew or not (repeated or begun.endswith("\n")))):
        raise ServerError(f"the service did not go on from the end of the answer: {reply[:200]!r}")
    text = text[ends[repeated - 1] :] if repeated else text
    # 3) Spaces that stand there already.
    text = text.lstrip() if begun[-1:].isspace() else text
    if not text.strip():
        raise ServerError(f"the service's reply adds nothing to the answer: {reply[:200]!r}")
    return text


def _tail(begun: str) -> str:
    """The last line that is not empty, or as many of its last words as ``TAIL`` characters hold."""
    line = begun.strip().rpartition("\n")[2]
    return line if len(line) <= TAIL else line[-TAIL:].partition(" ")[2] or line[-TAIL:]


def _squeezed(text: str) -> str:
    return "".join(text.split())
