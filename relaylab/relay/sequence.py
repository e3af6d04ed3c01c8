"""One answer in progress: the student's history, the teacher's view of it, and the record of both.

A sequence has a ``turn``: it says who writes its next token. Every token goes through ``write_student`` (sampled),
``append_call`` (a command written by a call rule or a fork) or ``write_teacher``. These keep ids, sources, calls and
the teacher's view in step. Running models is the relay's business.
"""

from __future__ import annotations

import codecs
from dataclasses import replace
from typing import Any, Literal

from relaylab.call_tag import Command
from relaylab.engine.engine import Engine
from relaylab.engine.sampling import Uniforms
from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import Message, Segment, TeacherOutput, TeacherView
from relaylab.relay.turn import StudentTurn
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace

REQUESTED = ("answered", "failed", "interrupted")  # how calls end that a teacher was asked for


class Sequence:
    """The state of one answer.

    Args:
        index: its number among the prompts.
        messages: the prompt.
        prompt_ids: its ids in the student's tokenizer.
        student: whose tokens these are.
        config: the caps.
        seed: of its random numbers.
        shared: student and teacher have one tokenizer.
        record: keep log-probabilities and entropies.
        alternatives: keep so many of the likeliest tokens, too.
        raw: the prompt, if no chat template belongs around it.
    """

    def __init__(
        self,
        index: int,
        messages: list[Message],
        prompt_ids: list[int],
        *,
        student: Engine,
        config: RelayConfig,
        seed: int,
        shared: bool,
        record: bool,
        alternatives: int = 0,
        raw: Segment | None = None,
    ):
        self._text, self._end_ids, self._shared = student.text, student.end_ids, shared
        self.index, self.messages, self.prompt_ids, self.config, self.seed = index, messages, prompt_ids, config, seed
        self.uniforms = Uniforms(seed)
        self.slot: Any = None  # the student's CacheSlot, while it decodes
        raw = raw if raw is None or shared else replace(raw, ids=None)
        self.view = TeacherView(
            messages, seed=seed, line=config.call_end == "line", whole_characters=not shared, raw=raw
        )
        self.ids: list[int] = []
        self.source: list[str] = []
        self.pieces: list[str] = []
        self.calls: list[Call] = []
        self.logprobs: list[float | None] | None = [] if record else None
        self.entropies: list[float | None] | None = [] if record else None
        self.alternatives: list[dict[str, float] | None] | None = [] if alternatives else None
        self.stop = ""
        self.id, self.problem = "", dict[str, Any]()  # those of the trace that a fork goes on from
        self.waiting: Call | None = None  # the call that the teacher has to answer
        self.submitted = False  # whether the teacher works on it
        self.forced_call: int | None = None  # a fork's call, to be written before the next token
        self.no_call_before = 0  # no call may begin before this completion position
        self.banned: tuple[int, int] | None = None  # a completion position, and a token that must not come there
        self._turn, self._turn_start = StudentTurn(self._text), 0
        self._handed = 0, 0  # where the last student's turn began: its completion position, its segment of the view
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def turn(self) -> Literal["student", "teacher", "done"]:
        """Who writes the next token."""
        return "done" if self.stop else "teacher" if self.waiting else "student"

    @property
    def room(self) -> int:
        """Completion tokens left under ``max_tokens``."""
        return self.config.max_tokens - len(self.ids)

    @property
    def closed_calls(self) -> list[Call]:
        return [c for c in self.calls if c.status != "unclosed"]

    @property
    def line(self) -> str:
        """The text of the present line so far."""
        text = ""
        for piece in reversed(self.pieces):
            if "\n" in piece:
                return piece.rpartition("\n")[2] + text
            text = piece + text
        return text

    @property
    def since_call(self) -> int:
        """Tokens since the last closed call and its answer, or since the beginning."""
        return len(self.ids) - max((c.end + c.delivered for c in self.closed_calls), default=0)

    @property
    def turn_tail(self) -> bytes:
        """The last bytes of the student's turn."""
        return bytes(self._turn.bytes[-16:])

    def may_call(self) -> bool:
        """Whether a call rule may write a call here.

        Not where the caps leave nothing, not inside a call that the student is writing itself, and not right after a
        call that got no answer, which would be asked for ever.
        """
        if len(self.ids) < self.no_call_before or self._turn.in_call or not self._allowance():
            return False
        return self.since_call > 0 or not (calls := self.closed_calls) or calls[-1].status == "answered"

    # The student writes -----------------------------------------------------------------------------------------------

    def write_student(self, token: int, *, forced: bool = False) -> None:
        """A token of the student. If it closes a call that can be granted, the turn is the teacher's."""
        if token in self._end_ids and not forced:
            self._append(token, STUDENT, self._decoder.decode(b"", final=True))
            self.finish("end")
            return
        self._append(token, STUDENT, self._decoder.decode(self._text.bytes[token]))
        for command in self._turn.append(token):
            self._close_call(command, forced)
        if not self.waiting and self.room <= 0:
            self.finish("length")

    def append_call(self, n: int) -> bool:
        """Write the command for n tokens as if the student had; False, and nothing, if it does not fit."""
        tokens = self._text.call(n)
        if len(tokens) >= self.room:
            return False
        for token in tokens:
            self.write_student(token, forced=True)
        return True

    def silent_call(self, n: int) -> None:
        """A call for n tokens without a command: the student does not learn that the teacher writes."""
        self._request(Call(len(self.ids), len(self.ids), n, forced=True))

    def _close_call(self, command: Command, forced: bool) -> None:
        start = self._turn_start + self._turn.tokens(command.start, command.end).start
        self.source[start:] = [COMMAND] * (len(self.ids) - start)
        call = Call(start, len(self.ids), command.n, status=command.problem or "waiting", forced=forced)
        if command.problem:
            self.calls.append(call)
        else:
            self._request(call)

    def _request(self, call: Call) -> None:
        """Grant what the caps leave. One token can close two calls: the first is answered, the second refused."""
        wanted = self.config.fixed_call_tokens or call.requested or 0
        wanted = wanted if self.config.call_end == "tokens" else self.room
        call.granted = 0 if self.waiting else min(wanted, self._allowance())
        call.status = "waiting" if call.granted else "refused"
        self.calls.append(call)
        if call.granted:
            self.waiting = call

    def _allowance(self) -> int:
        """The most tokens that the caps leave for a call; 0 if it would be refused."""
        config, left = self.config, self.room
        if config.max_calls is not None and sum(c.status == "answered" for c in self.calls) >= config.max_calls:
            return 0
        if config.max_call_tokens is not None:
            left = min(left, config.max_call_tokens)
        if config.max_teacher_tokens is not None:
            left = min(left, config.max_teacher_tokens - self.source.count(TEACHER))
        return max(0, left)

    def _append(self, token: int, source: str, piece: str) -> None:
        self.ids.append(token)
        self.source.append(source)
        self.pieces.append(piece)
        for values in (self.logprobs, self.entropies, self.alternatives):
            if values is not None:
                values.append(None)

    # The teacher writes -----------------------------------------------------------------------------------------------

    def start_teacher_turn(self) -> TeacherView:
        """Show the teacher what the student wrote since the last hand-off, without the calls."""
        self._handed = self._turn_start, len(self.view.segments)
        self._end_student_turn()
        assert self.waiting is not None
        self.submitted, self.view.n = True, self.waiting.granted
        return self.view

    def write_teacher(self, output: TeacherOutput, teacher: str) -> Call:
        """The teacher's answer to the waiting call. Returns the call, filled in; the turn is the student's again.

        Where the two share a tokenizer, the teacher's ids are taken as they are. Otherwise its text is tokenised here
        once. More than was granted, than the line, or than there is room for, is cut off.
        """
        call, self.waiting, self.submitted = self.waiting, None, False
        assert call is not None
        call.teacher, call.latency, call.error = teacher, output.latency, output.error or self._fault(output)
        if call.error is not None:
            call.status = "failed"
        else:
            if output.withdraw:
                self._withdraw(call)
            # The caps were applied when the call was granted; another tokenizer counts other tokens.
            allowed = call.granted if self._shared else self._allowance()
            exact = output.ids if self._shared else None
            every = self._text.encode(output.text) if exact is None else list(exact)
            ids = every[:allowed]
            line = self.view.line and next((i for i, t in enumerate(ids, 1) if b"\n" in self._text.bytes[t]), 0)
            ids = ids[: line or None]
            cut = len(ids) < len(every)
            text = "".join(self._text.pieces(ids)) if cut else output.text
            self._take(ids, text, tuple(ids) if self._shared else None if cut else output.ids)
            call.status, call.delivered, call.written = "answered", len(ids), output.tokens or len(ids)
            call.finish_reason = "line" if line else "length" if cut else output.finish_reason
        if call.finish_reason == "stop":
            self.finish("teacher_end")
        elif self.room <= 0:
            self.finish("length")
        return call

    def _withdraw(self, call: Call) -> None:
        """Take the student's turn before a call back, commands included. The call keeps its text."""
        start, segments = self._handed
        call.withdrawn, call.start, call.end, self._turn_start = self.pieces[start:], start, start, start
        for record in (self.ids, self.source, self.pieces, self.logprobs, self.entropies, self.alternatives):
            if record is not None:
                del record[start:]
        del self.view.segments[segments:]
        self.calls = [c for c in self.calls if c.end <= start]
        self._decoder.reset()
        self._decoder.decode(b"".join(self._text.bytes[i] for i in self.ids))

    def _fault(self, output: TeacherOutput) -> str | None:
        """What makes an output useless, whoever made it: no text and no end, unknown ids, text that is no Unicode."""
        if not output.text and not output.ids and output.finish_reason == "length":
            return "the teacher wrote nothing and did not end the answer"
        if self._shared and not all(0 <= i < len(self._text.bytes) for i in output.ids or ()):
            return "the teacher's ids are outside of the tokenizer"
        return None if output.text.isascii() or _is_unicode(output.text) else "the teacher's text is not valid Unicode"

    def _take(self, ids: list[int], text: str, own: tuple[int, ...] | None) -> None:
        """Tokens of the teacher: the student's ids for them, and its own where they are known."""
        for token in ids:
            self._append(token, TEACHER, self._decoder.decode(self._text.bytes[token]))
        if text or own:
            self.view.segments.append(Segment(text, own))
        self._turn_start = len(self.ids)

    def _end_student_turn(self) -> None:
        """The turn's calls that were never closed are noted, its text without calls is shown to the teacher."""
        for command in self._turn.unclosed():
            tokens = self._turn.tokens(command.start, command.end)
            self.calls.append(Call(self._turn_start + tokens.start, self._turn_start + tokens.stop, status="unclosed"))
        self.calls.sort(key=lambda c: c.start)
        ids, data = self._turn.without_calls()
        if data:
            self.view.segments.append(Segment(data.decode(errors="replace"), tuple(ids) if self._shared else None))
        self._turn, self._turn_start = StudentTurn(self._text), len(self.ids)

    def finish(self, why: str) -> None:
        """End the sequence; ``why`` is one of ``trace.STOPS``."""
        self.stop = why
        if self.waiting:
            self.waiting.status, self.waiting = "interrupted", None
        self._end_student_turn()
        if self.pieces:
            self.pieces[-1] += self._decoder.decode(b"", final=True)

    # Records ----------------------------------------------------------------------------------------------------------

    def take_over(self, trace: Trace, at: int) -> None:
        """Begin with the first ``at`` completion tokens of a trace: their sources, calls and statistics are given.

        What was granted, refused or failed stays so, whatever the caps are now. Only a call that ends at ``at`` is
        requested anew; a cut within an answer keeps that much of it. A finished trace taken whole is finished.

        Raises:
            ValueError: where the trace was made with another tokenizer.
        """
        self.id, self.problem = trace.id, trace.problem
        ids, ended = trace.completion_ids[:at], at == len(trace.completion_ids) and trace.stop in ("end", "teacher_end")
        end_token = ended and trace.stop == "end" and bool(ids)
        body = ids[:-1] if end_token else ids
        self._check(body, trace)
        calls = [replace(c) for c in trace.calls if c.end <= at and (c.end < at or c.start < c.end or ended)]
        self.calls = [c for c in calls if c.status != "unclosed"]
        again = [c for c in self.calls if c.end == at and c.status in REQUESTED] if not ended else []
        # 1) Turn by turn: the student's tokens up to a call that the teacher was asked for, then the teacher's.
        for call in [c for c in self.calls if c.status in REQUESTED and c not in again]:
            self._give(body[len(self.ids) : call.end])
            self._end_student_turn()
            call.status = "failed" if call.error else "answered"
            own = body[call.end : call.end + call.delivered]
            call.delivered = len(own)
            text = "".join(trace.pieces[call.end : call.end + len(own)])
            self._take(own, text, tuple(own) if self._shared else None)
        self._give(body[len(self.ids) :])
        # 2) A call right before the cut is requested anew, under the present caps.
        for call in again:
            self.calls.remove(call)
            self._request(Call(call.start, call.end, call.requested, forced=call.forced))
        self.calls.sort(key=lambda c: c.start)
        if end_token:
            self._append(ids[-1], STUDENT, self._decoder.decode(b"", final=True))
        for name in ("logprobs", "entropies", "alternatives"):
            if getattr(self, name) is not None and getattr(trace, name) is not None:
                setattr(self, name, list(getattr(trace, name)[:at]))
        if ended:
            self.finish(trace.stop)
        elif self.turn == "student" and self.room <= 0:
            self.finish("length")

    def _give(self, ids: list[int]) -> None:
        """Tokens of the student whose calls are known already."""
        begin = len(self.ids)
        for token in ids:
            self._append(token, STUDENT, self._decoder.decode(self._text.bytes[token]))
            self._turn.append(token)
        for call in self.calls:
            if begin <= call.start and call.end <= len(self.ids):
                self.source[call.start : call.end] = [COMMAND] * (call.end - call.start)

    def _check(self, ids: list[int], trace: Trace) -> None:
        known = all(0 <= i < len(self._text.bytes) for i in ids)
        if not known or not "".join(trace.pieces).startswith("".join(self._text.pieces(ids)).rstrip("\ufffd")):
            raise ValueError(f"trace {trace.id!r} does not fit this student: was it made with another tokenizer?")

    def trace(self, student: str, teacher: str) -> Trace:
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
            alternatives=None if self.alternatives is None else list(self.alternatives),
            seed=self.seed,
            temperature=self.config.temperature,
            student=student,
            teacher=teacher,
            id=self.id,
            problem=dict(self.problem),
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
