"""A teacher that only chats: each of its replies is a new turn, so a call can only ask for the continuation in words.

What comes back may repeat the end of the answer, or begin with chatter. Both are cut here. The rest is what the model
would write next as far as it did as it was told: such calls are *approximate* in the trace.
"""

from __future__ import annotations

import re
from itertools import accumulate

from relaylab.relay.api_client import Answer, ServerError
from relaylab.relay.teachers import Message, TeacherOutput

SPARE = 48  # tokens of a reply beyond the n of the call, for what is cut
TAIL = 60  # characters of the answer that the instruction quotes
OVERLAP = 3  # characters that count as a repetition, spaces aside
ASK = (
    "Your answer above is not finished. Continue it from exactly where it stops, up to its end. Write only the text "
    "that comes next: repeat nothing, comment on nothing, and begin in the middle of a line if it stops there. It "
    "stops at: {tail}"
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
    """The chat that asks for the continuation of a begun answer."""
    begun_turn = {"role": "assistant", "content": begun}
    return [*messages, begun_turn, {"role": "user", "content": ASK.format(tail=begun[-TAIL:])}]


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
        ServerError: for a refusal, and where nothing is added.
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
    squeezed, words = "".join(text.split()), begun.split()
    for size in [*accumulate(map(len, reversed(words)))][::-1]:
        if OVERLAP <= size <= len(ends) and "".join(words)[-size:] == squeezed[:size]:
            text = text[ends[size - 1] :]
            break
    else:  # a reply has no space at its beginning
        if _are_words(begun[-1:], text[:1]):
            text = " " + text
    # 3) Spaces that stand there already.
    text = text.lstrip() if begun[-1:].isspace() else text
    if not text.strip():
        raise ServerError(f"the service's reply adds nothing to the answer: {reply[:200]!r}")
    return text


def _are_words(last: str, first: str) -> bool:
    """Whether a space belongs between two characters. Two digits are taken for one number."""
    return (first.isalpha() and (last.isalnum() or last in tuple(",.;:!?)"))) or (first.isdigit() and last.isalpha())
