"""One row of a relay: the student's history, the teacher's view of it, and the record of both.

The row is where tokens become a ``Trace``: every token goes through ``student`` (sampled), ``force`` (a command
written by a policy or a fork) or ``deliver`` (from the teacher), and each of these keeps ids, sources, calls and the
teacher's context in step. Running models is the relay's business.
"""

from __future__ import annotations

import codecs
from collections.abc import Hashable
from dataclasses import dataclass, replace

from relaylab.command import Command, format_call
from relaylab.models.sampling import Uniforms
from relaylab.models.teachers import Context, Continuation, Message, Segment
from relaylab.models.text import TokenText, Turn
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace


@dataclass(frozen=True, slots=True)
class Limits:
    """The caps of a relay; None is no cap.

    max_tokens: completion tokens in all, commands included. max_calls: answered calls; later ones are refused and the
    student goes on. max_call_tokens: tokens a call may be granted. max_teacher_tokens: delivered tokens in all.
    """

    max_tokens: int = 512
    max_calls: int | None = None
    max_call_tokens: int | None = None
    max_teacher_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None and value < (1 if name == "max_tokens" else 0):
                raise ValueError(f"{name} is {value}; a cap is a positive number, or None for no cap")


class RelayRow:
    """The state of one completion; ``trace()`` is its record so far."""

    def __init__(
        self,
        text: TokenText,
        messages: list[Message],
        prompt_ids: list[int],
        *,
        key: Hashable,
        seed: int,
        temperature: float,
        limits: Limits,
        end_ids: frozenset[int],
        shared: bool,
        record: bool,
    ):
        self._text, self._end_ids, self._shared = text, end_ids, shared
        self.key, self.seed, self.temperature, self.limits = key, seed, temperature, limits
        self.prompt_ids = prompt_ids
        self.messages = messages
        self.uniforms = Uniforms(seed)
        self.ids: list[int] = []
        self.source: list[str] = []
        self.pieces: list[str] = []
        self.calls: list[Call] = []
        self.logprobs: list[float | None] | None = [] if record else None
        self.entropies: list[float | None] | None = [] if record else None
        self.stop = ""
        self.waiting: Call | None = None  # the call that a teacher has to answer
        self.forbidden_until = 0  # no call may begin before this completion position
        self.forbidden_at: tuple[int, int] | None = None  # a completion position, and a token that must not come there
        self.context = Context(key, messages, seed=seed, whole_characters=not shared)
        self._turn = Turn(text)
        self._turn_start = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def turn_tail(self) -> bytes:
        """The last bytes that the student has written since the last hand-off."""
        return bytes(self._turn.bytes[-16:])

    @property
    def since_handoff(self) -> int:
        """Tokens since the teacher's last one, or since the beginning."""
        return len(self.ids) - self._turn_start

    @property
    def room(self) -> int:
        """Completion tokens left under ``max_tokens``."""
        return self.limits.max_tokens - len(self.ids)

    @property
    def open(self) -> bool:
        return not self.stop

    # What is written --------------------------------------------------------------------------------------------------

    def student(self, token: int) -> Call | None:
        """A token of the student; the call that it closes and that somebody has to answer, if any."""
        if token in self._end_ids:
            self._append(token, STUDENT, self._decoder.decode(b"", final=True))
            self.finish("end")
            return None
        return self._write(token, forced=False)

    def force(self, n: int) -> Call | None:
        """Write the command for n tokens as if the student had; less room than it needs ends the row at its limit."""
        for token in self._text.encode(format_call(n)):
            if not self.open:
                break
            self._write(token, forced=True)
        return self.waiting

    def _write(self, token: int, *, forced: bool) -> Call | None:
        self._append(token, STUDENT, self._decoder.decode(self._text.bytes[token]))
        for command in self._turn.append(token):
            self._close_call(command, forced)
        if not self.waiting and self.room <= 0:
            self.finish("length")
        return self.waiting

    def _append(self, token: int, source: str, piece: str) -> None:
        self.ids.append(token)
        self.source.append(source)
        self.pieces.append(piece)
        if self.logprobs is not None:
            self.logprobs.append(None)
            self.entropies.append(None)

    def _close_call(self, command: Command, forced: bool) -> None:
        tokens = self._turn.tokens(command.start, command.end)
        start = self._turn_start + tokens.start
        for i in range(start, len(self.ids)):
            if self.source[i] == STUDENT:
                self.source[i] = COMMAND
        call = Call(start, len(self.ids), command.n, status=command.problem or "answered", forced=forced)
        self.calls.append(call)
        if not command.problem:
            self._grant(call)

    def _grant(self, call: Call) -> None:
        """What the caps leave of a request; nothing left, or a call that waits already, refuses it."""
        limits = self.limits
        spent = self.source.count(TEACHER)
        budget = None if limits.max_teacher_tokens is None else limits.max_teacher_tokens - spent
        caps = [c for c in (call.requested, limits.max_call_tokens, budget, self.room) if c is not None]
        answered = sum(c.status == "answered" and c is not call for c in self.calls)
        full = limits.max_calls is not None and answered >= limits.max_calls
        busy = self.waiting is not None and self.waiting is not call  # a token can close two calls: the first is asked
        call.granted = 0 if full or busy else max(0, min(caps))
        if call.granted:
            self.waiting = call
        else:
            call.status = "refused"
            self.waiting = self.waiting if busy else None

    def deliver(self, said: Continuation, teacher: str, *, ids: list[int] | None = None) -> Call:
        """The teacher's answer to the call that waits; returns the call, filled in.

        ``ids`` are the student's tokens for it where a replay knows them. Else they are the teacher's own where the two
        share a tokenizer, and otherwise its text, tokenised here and never again.
        """
        call = self.waiting
        assert call is not None
        self.waiting = None
        call.teacher, call.latency = teacher, said.latency
        if said.error is not None:
            call.status, call.error = "failed", said.error
            if self.room <= 0:
                self.finish("length")
            return call
        if ids is None:
            ids = (
                list(said.ids[: call.granted])
                if self._shared and said.ids is not None
                else self._text.encode(said.text)
            )
        ids = ids[: self.room]
        for token in ids:
            self._append(token, TEACHER, self._decoder.decode(self._text.bytes[token]))
        own = said.ids if said.ids is not None else tuple(ids) if self._shared else None
        if said.text or own:
            self.context.segments.append(Segment(said.text, own))
        self._turn_start = len(self.ids)
        call.delivered, call.written, call.finish = len(ids), said.tokens or len(ids), said.finish
        if said.finish == "stop":
            self.finish("teacher_end")
        elif self.room <= 0:
            self.finish("length")
        return call

    def hand_over(self) -> None:
        """Show the teacher what the student wrote since the last hand-off, without the calls: its turn ends here."""
        self._note_unclosed()
        ids, data = self._turn.without_calls()
        if data:
            self.context.segments.append(Segment(data.decode(errors="replace"), tuple(ids) if self._shared else None))
        self._turn, self._turn_start = Turn(self._text), len(self.ids)

    def _note_unclosed(self) -> None:
        for command in self._turn.unclosed():
            tokens = self._turn.tokens(command.start, command.end)
            place = self._turn_start + tokens.start
            self.calls.append(Call(place, self._turn_start + tokens.stop, status="unclosed"))
        self.calls.sort(key=lambda c: c.start)

    def finish(self, why: str) -> None:
        """End the row; ``why`` is one of ``trace.STOPS``."""
        self.stop = why
        self._note_unclosed()
        self._turn, self._turn_start = Turn(self._text), len(self.ids)
        if self.pieces:
            self.pieces[-1] += self._decoder.decode(b"", final=True)

    def replay(self, trace: Trace, at: int) -> None:
        """Take over the first ``at`` completion tokens of a trace, with their sources, calls and statistics.

        A cut directly behind a command leaves its call to be answered anew; a cut within an answer keeps that much of
        it.
        """
        limits, self.limits = self.limits, Limits(max_tokens=2**62)  # what was granted was granted
        old = {c.end: c for c in trace.calls if c.status != "unclosed"}
        while len(self.ids) < at:
            self._write(trace.completion_ids[len(self.ids)], forced=False)
            if self.waiting and not (len(self.ids) == at and old[at].status == "answered"):
                call = old[len(self.ids)]
                ids = trace.completion_ids[call.end : min(call.end + call.delivered, at)]
                text = "".join(trace.pieces[call.end : call.end + len(ids)])
                failed = None if call.status == "answered" else call.error or call.status
                said = Continuation(text, "error" if failed else "length", error=failed)
                self.hand_over()
                self.deliver(said, call.teacher or "", ids=ids)
        self.limits = limits
        for i, call in enumerate(self.calls):
            if (was := old.get(call.end)) and call is not self.waiting:
                self.calls[i] = replace(was, delivered=min(was.delivered, at - was.end))
        if self.waiting:
            self._grant(self.waiting)
        for name in ("logprobs", "entropies"):
            if getattr(self, name) is not None and getattr(trace, name) is not None:
                setattr(self, name, getattr(trace, name)[:at])

    def trace(self) -> Trace:
        """The record so far; a copy that later tokens do not change."""
        return Trace(
            prompt=self.messages[-1]["content"] if self.messages else "",
            prompt_ids=list(self.prompt_ids),
            completion_ids=list(self.ids),
            source="".join(self.source),
            pieces=list(self.pieces),
            calls=[replace(c) for c in self.calls],
            stop=self.stop,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            entropies=None if self.entropies is None else list(self.entropies),
            seed=self.seed,
            temperature=self.temperature,
        )
