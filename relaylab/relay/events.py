"""What happens in a relay, as ``Relay.stream`` yields it."""

from __future__ import annotations

from dataclasses import dataclass

from relaylab.trace import Call, Trace


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token at completion ``position`` of row ``row``; ``source`` is ``s`` or ``t``; calls come later."""

    row: int
    position: int
    id: int
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    """The teacher is asked; ``call.start`` to ``call.end`` are the tokens of the command."""

    row: int
    call: Call


@dataclass(frozen=True, slots=True)
class CallClosed:
    """The teacher has answered, or failed to; its tokens have been sent as events, from ``call.end`` on.

    If ``call.withdrawn`` holds tokens, these were sent before and no longer count.
    """

    row: int
    call: Call


@dataclass(frozen=True, slots=True)
class Done:
    row: int
    trace: Trace


Event = TokenEvent | CallOpened | CallClosed | Done
