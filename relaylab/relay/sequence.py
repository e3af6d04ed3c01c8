"""One row of a relay: the student's history, the teacher's view of it, and the record of both.

The row is where tokens become a ``Trace``: every token goes through ``student`` (sampled), ``force`` (a command
written by a policy or a fork) or ``deliver`` (from the teacher), and each of these keeps ids, sources, calls and the
teacher's context in step. Running models is the relay's business.
"""

from __future__ import annotations

import codecs
from collections.abc import Hashable
from dataclasses import replace

from relaylab.call_tag import Command
from relaylab.engine.sampling import Uniforms
from relaylab.engine.token_text import TokenText, Turn
from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import Context, Message, Segment, TeacherOutput
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace


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
        config: RelayConfig,
        end_ids: frozenset[int],
        shared: bool,
        record: bool,
    ):
        self._text, self._end_ids, self._shared = text, end_ids, shared
        self.key, self.seed, self.temperature, self.config = key, seed, temperature, config
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
        self.force_next: int | None = None  # a fork's call, to be written before the next token
        self.forbidden_until = 0  # no call may begin before this completion position
        self.forbidden_at: tuple[int, int] | None = None  # a completion position, and a token that must not come there
        self.context = Context(key, messages, seed=seed, whole_characters=not shared)
        self._turn = Turn(text)
        self._turn_start = 0
        self._call_end = 0
        self._recorded: list[Call] | None = None  # during a replay: the calls still to come, the next one last
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def turn_tail(self) -> bytes:
        """The last bytes that the student has written since the last hand-off."""
        return bytes(self._turn.bytes[-16:])

    @property
    def since_call(self) -> int:
        """Tokens since the last closed call and its answer, or since the beginning."""
        return len(self.ids) - self._call_end

    @property
    def closed_calls(self) -> list[Call]:
        return [c for c in self.calls if c.status != "unclosed"]

    @property
    def room(self) -> int:
        """Completion tokens left under ``max_tokens``."""
        return self.config.max_tokens - len(self.ids)

    @property
    def open(self) -> bool:
        return not self.stop

    def may_force(self) -> bool:
        """Whether a policy may write a call here: not where the caps leave nothing, not inside a call that the student
        is writing itself, and not directly behind a call that got no answer, which would be asked for ever."""
        if self._turn.in_call or not self._allowance():
            return False
        return self.since_call > 0 or not (calls := self.closed_calls) or calls[-1].status == "answered"

    # What is written --------------------------------------------------------------------------------------------------

    def student(self, token: int) -> None:
        """A token of the student. A call that it closes, and that somebody has to answer, is then ``waiting``."""
        if token in self._end_ids:
            self._append(token, STUDENT, self._decoder.decode(b"", final=True))
            self.finish("end")
        else:
            self._write(token, forced=False)

    def force(self, n: int) -> bool:
        """Write the command for n tokens as if the student had; False, and nothing, where it does not fit."""
        tokens = self._text.call(n)
        if len(tokens) >= self.room:
            return False
        for token in tokens:
            self._write(token, forced=True)
        return True

    def take_over(self, n: int) -> None:
        """A call for n tokens without a command: the student does not learn that somebody else writes."""
        call = Call(len(self.ids), len(self.ids), n, forced=True)
        self._grant(call)
        self.calls.append(call)
        self.waiting, self._call_end = call, len(self.ids)

    def _write(self, token: int, *, forced: bool) -> None:
        self._append(token, STUDENT, self._decoder.decode(self._text.bytes[token]))
        for command in self._turn.append(token):
            self._close_call(command, forced)
        if not self.waiting and self.room <= 0:
            self.finish("length")

    def _append(self, token: int, source: str, piece: str) -> None:
        self.ids.append(token)
        self.source.append(source)
        self.pieces.append(piece)
        if self.logprobs is not None:
            self.logprobs.append(None)
            self.entropies.append(None)

    def _close_call(self, command: Command, forced: bool) -> None:
        start = self._turn_start + self._turn.tokens(command.start, command.end).start
        for i in range(start, len(self.ids)):
            if self.source[i] == STUDENT:
                self.source[i] = COMMAND
        self._call_end = len(self.ids)
        call = Call(start, len(self.ids), command.n, status=command.problem or "waiting", forced=forced)
        if self._recorded is not None:
            call = self._recorded_call(call)
        elif call.status == "waiting":
            self._grant(call)
        self.calls.append(call)
        if call.status == "waiting":
            self.waiting = call

    def _allowance(self) -> int:
        """The most tokens that the caps leave for a call; 0 where it would be refused."""
        config, left = self.config, self.room
        if config.max_calls is not None and sum(c.status == "answered" for c in self.calls) >= config.max_calls:
            return 0
        if config.max_call_tokens is not None:
            left = min(left, config.max_call_tokens)
        if config.max_teacher_tokens is not None:
            left = min(left, config.max_teacher_tokens - self.source.count(TEACHER))
        return max(0, left)

    def _grant(self, call: Call) -> None:
        """What the caps leave of a request; nothing, or a call that waits already, refuses it: one token can close two
        calls, and the first of them is asked."""
        wanted = self.config.fixed_call_tokens or call.requested
        call.granted = 0 if self.waiting else min(wanted, self._allowance())
        call.status = "waiting" if call.granted else "refused"

    def hand_over(self) -> None:
        """Show the teacher what the student wrote since the last hand-off, without the calls: its turn ends here."""
        self._note_unclosed()
        ids, data = self._turn.without_calls()
        if data:
            self.context.segments.append(Segment(data.decode(errors="replace"), tuple(ids) if self._shared else None))
        self._turn, self._turn_start = Turn(self._text), len(self.ids)

    def deliver(self, said: TeacherOutput, teacher: str) -> Call:
        """The teacher's answer to the call that waits; returns the call, filled in.

        The teacher's ids are taken as they are where the two share a tokenizer; otherwise its text is tokenised here
        and never again. More than was granted, or than there is room for, is cut off.
        """
        call = self.waiting
        assert call is not None
        self.waiting = None
        call.teacher, call.latency, call.error = teacher, said.latency, said.error
        if said.error is not None:
            call.status = "failed"
        else:
            allowed = min(self._allowance(), call.granted if self._shared else self.room)
            exact = self._shared and said.ids is not None
            every = list(said.ids) if exact else self._text.encode(said.text)
            ids = every[:allowed]
            cut = len(ids) < len(every)
            text = "".join(self._text.pieces(ids)) if cut else said.text
            self._take(ids, text, tuple(ids) if self._shared else None if cut else said.ids)
            call.status, call.delivered, call.written = "answered", len(ids), said.tokens or len(ids)
            call.finish = "length" if cut else said.finish
        if call.finish == "stop":
            self.finish("teacher_end")
        elif self.room <= 0:
            self.finish("length")
        return call

    def _take(self, ids: list[int], text: str, own: tuple[int, ...] | None) -> None:
        """Tokens of the teacher: the student's ids for them, and its own where they are known."""
        for token in ids:
            self._append(token, TEACHER, self._decoder.decode(self._text.bytes[token]))
        if text or own:
            self.context.segments.append(Segment(text, own))
        self._turn_start = self._call_end = len(self.ids)

    def _note_unclosed(self) -> None:
        for command in self._turn.unclosed():
            tokens = self._turn.tokens(command.start, command.end)
            self.calls.append(Call(self._turn_start + tokens.start, self._turn_start + tokens.stop, status="unclosed"))
        self.calls.sort(key=lambda c: c.start)

    def finish(self, why: str) -> None:
        """End the row; ``why`` is one of ``trace.STOPS``."""
        self.stop = why
        if self.waiting:
            self.waiting.status, self.waiting = "interrupted", None
        self._note_unclosed()
        self._turn, self._turn_start = Turn(self._text), len(self.ids)
        if self.pieces:
            self.pieces[-1] += self._decoder.decode(b"", final=True)

    # Taking over a trace ----------------------------------------------------------------------------------------------

    def replay(self, trace: Trace, at: int) -> None:
        """Take over the first ``at`` completion tokens of a trace, with their sources, calls and statistics.

        What was granted, refused or failed stays so, whatever the caps are now. Only a call that the cut lies directly
        behind is asked anew; a cut within an answer keeps that much of it. A finished trace taken whole is finished.
        ValueError where the trace does not fit this tokenizer.
        """
        config, self.config = self.config, RelayConfig(max_tokens=2**62)
        self._recorded = [c for c in trace.calls if c.status != "unclosed"][::-1]
        finished = at == len(trace.completion_ids) and trace.stop in ("end", "teacher_end")
        while len(self.ids) < at:
            token = trace.completion_ids[len(self.ids)]
            if self._recorded and self._recorded[-1].start == self._recorded[-1].end == len(self.ids):
                self.calls.append(self._recorded_call(self._recorded[-1]))  # one without a command: take_over
                self.waiting = self.calls[-1] if self.calls[-1].status == "waiting" else None
                self._call_end = len(self.ids)
            elif token in self._end_ids:
                self._append(token, STUDENT, self._decoder.decode(b"", final=True))
                break
            else:
                self._write(token, forced=False)
            if (call := self.waiting) and (len(self.ids) < at or finished):
                self.waiting = None
                self.hand_over()
                call.status = "failed" if call.error else "answered"
                ids = trace.completion_ids[call.end : min(call.end + call.delivered, at)]
                call.delivered = len(ids)
                text = "".join(trace.pieces[call.end : call.end + len(ids)])
                self._take(ids, text, tuple(ids) if self._shared else None)
        self._recorded, self.config = None, config
        if self.waiting:
            call, self.waiting = self.waiting, None
            call.teacher = call.latency = call.error = call.finish = None
            call.delivered = call.written = 0
            self._grant(call)
            self.waiting = call if call.granted else None
        for name in ("logprobs", "entropies"):
            if getattr(self, name) is not None and getattr(trace, name) is not None:
                setattr(self, name, getattr(trace, name)[:at])
        if finished:
            self.finish(trace.stop)

    def _recorded_call(self, found: Call) -> Call:
        """The record of a call that a replay has come to; one that the teacher was asked waits for its answer again."""
        old = self._recorded.pop() if self._recorded else None
        if old is None or (old.start, old.end, old.requested) != (found.start, found.end, found.requested):
            raise ValueError(f"the trace has {old} where its tokens hold {found}: was it made with another tokenizer?")
        asked = old.status in ("answered", "failed", "interrupted")
        return replace(old, status="waiting" if asked else old.status)

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
