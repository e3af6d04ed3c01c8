"""One answer in progress: the student's history, the teacher's view of it, and the record of both.

A sequence has a ``turn``: it says who writes its next token. Every token goes through ``write_student`` (sampled),
``wanted_call`` (a command written for a call rule or a fork) or ``write_teacher``. These keep ids, sources, calls and
the teacher's view in step. Running models is the relay's business.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from relaylab.engine.sampling import Uniforms
from relaylab.engine.token_text import StudentTurn
from relaylab.relay.call_rules import CallRule, StepState
from relaylab.relay.config import RelayConfig
from relaylab.relay.teachers import Message, Segment, TeacherOutput, TeacherView
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace

if TYPE_CHECKING:
    from relaylab.relay.students import Student

REQUESTED = ("answered", "failed", "interrupted")  # how calls end that a teacher was asked for


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


Event = TokenEvent | CallOpened | CallClosed | Done  # what happens in a relay, as ``Relay.stream`` yields it


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
        statistics: what is kept of each token: ``logprobs``, ``entropies``, ``alternatives``.
        raw: the prompt, if no chat template belongs around it.
        names: of several teachers; a call without a name is for the first. Empty: calls name none.
    """

    def __init__(
        self, index: int, messages: list[Message], prompt_ids: list[int], *, student: Student, config: RelayConfig,
        seed: int, shared: bool, statistics: Iterable[str] = (), raw: Segment | None = None, names: Iterable[str] = (),
    ):  # fmt: skip
        self._text, self._end_ids, self._shared, self._names = student.text, student.end_ids, shared, tuple(names)
        self.index, self.messages, self.prompt_ids, self.config, self.seed = index, messages, prompt_ids, config, seed
        self.uniforms = Uniforms(seed)
        self.slot: Any = None  # the student's CacheSlot, while it decodes
        raw = raw if raw is None or shared else replace(raw, ids=None)
        line = config.call_end == "line"
        self.view = TeacherView(messages, seed=seed, line=line, whole_characters=not shared, raw=raw)
        self.ids: list[int] = []
        self.source: list[str] = []
        self.pieces: list[str] = []
        self.calls: list[Call] = []
        self.statistics: dict[str, list[Any]] = {name: [] for name in statistics}
        self.turn: Literal["student", "teacher", "done"] = "student"  # who writes the next token
        self.stop = ""
        self.failure = ""  # why a student behind a server could not go on
        self.id, self.problem = "", dict[str, Any]()  # those of the trace that a fork goes on from
        self.waiting: Call | None = None  # the call that the teacher has to answer
        self.submitted = False  # whether the teacher works on it
        self.forced_call: int | tuple[int, str] | None = None  # a fork's call, to be written before the next token
        self.counted = config.call_end == "tokens"  # a call is for the tokens that it asks for; that of a fork always
        self.no_call_before = 0  # no call may begin before this completion position
        self.banned: tuple[int, int] | None = None  # a completion position, and a token that must not come there
        self._turn, self._turn_start = StudentTurn(self._text, named=bool(self._names)), 0
        self._handed = 0, 0  # where the last student's turn began: its completion position, its segment of the view
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def room(self) -> int:
        """Completion tokens left under ``max_tokens``."""
        return self.config.max_tokens - len(self.ids)

    @property
    def barred(self) -> bool:
        """No call may begin here."""
        return self.config.forbid_calls or len(self.ids) < self.no_call_before

    def forbidden(self) -> np.ndarray:
        """Where no call may begin, the tokens that must not come next: those that begin one, and what a fork bans."""
        ban = self._text.forbidden(self._turn.bytes)
        if self.banned and self.banned[0] == len(self.ids):
            ban = ban.copy()
            ban[self.banned[1]] = True
        return ban

    def _step_state(
        self, entropy: float | None, logits: torch.Tensor | None, hidden: torch.Tensor | None
    ) -> StepState | None:
        """What a call rule may look at; None where no rule may write a call.

        That is where the caps leave nothing, inside a call that the student is writing itself, and right after a call
        that added nothing, which would be asked for ever.
        """
        if self.barred or self._turn.in_call:
            return None
        closed = [c for c in self.calls if c.status != "unclosed"]
        since = len(self.ids) - max((c.end + c.delivered for c in closed), default=0)
        if not self._allowance() or (closed and not since and not closed[-1].delivered):
            return None
        line = "".join(self.pieces).rpartition("\n")[2]
        return StepState(len(self.ids), since, len(closed), entropy, self.seed, logits, hidden, line)

    def wanted_call(
        self, rule: CallRule | None, entropy: float | None = None, logits: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> bool:  # fmt: skip
        """Write the call that a fork or a call rule wants here; False if there is none, or none that fits."""
        # 1) How many tokens are asked for, and of whom?
        asked, self.forced_call = self.forced_call, None
        if rule and asked is None and (state := self._step_state(entropy, logits, hidden)):
            asked = rule(state)
        if asked is None:
            return False
        n, name = asked if isinstance(asked, tuple) else (asked, None)
        if name is not None and name not in self._names:
            raise ValueError(f"a call rule asks the teacher {name!r}; there are {', '.join(self._names) or 'no names'}")
        tokens = self._text.call(n, name)  # ValueError for a number that no command holds
        # 2) A silent call has no command: the student does not learn that the teacher writes.
        if not self.config.write_call:
            self._request(Call(len(self.ids), len(self.ids), n, status="waiting", forced=True, to=name))
            return True
        # 3) Else the command is written as if the student had.
        if len(tokens) >= self.room:
            return False
        for token in tokens:
            self.write_student(token, forced=True)
        return True

    # The student writes -----------------------------------------------------------------------------------------------

    def write_student(self, token: int, *, forced: bool = False) -> None:
        """A token of the student. If it closes a call that can be granted, the turn is the teacher's."""
        if token in self._end_ids and not forced:
            self._append(token, STUDENT, b"")
            self.finish("end")
            return
        self._append(token, STUDENT, self._text.bytes[token])
        for command in self._turn.append(token):
            start = self._turn_start + self._turn.tokens(command).start
            self.source[start:] = [COMMAND] * (len(self.ids) - start)
            status = command.problem or "waiting"
            self._request(Call(start, len(self.ids), command.n, status=status, forced=forced, to=command.to))
        if not self.waiting and self.room <= 0:
            self.finish("length")

    def _request(self, call: Call) -> None:
        """Note a call, and grant what the caps leave. One token can close two calls: the second is refused."""
        self.calls.append(call)
        if self._names:
            call.to = self._names[0] if call.to is None else call.to
            call.status = "unknown" if call.status == "waiting" and call.to not in self._names else call.status
        if call.status != "waiting":  # nobody can answer it
            return
        wanted = self.config.fixed_call_tokens or call.requested or 0 if self.counted else self.room
        call.granted = 0 if self.waiting else min(wanted, self._allowance())
        if call.granted:
            self.view.line = self.config.call_end == "line" and not self.counted
            self.waiting, self.turn, self.counted = call, "teacher", self.config.call_end == "tokens"
        else:
            call.status = "refused"

    def _allowance(self) -> int:
        """The most tokens that the caps leave for a call; 0 if it would be refused."""
        config, left = self.config, self.room
        if config.forbid_calls:
            return 0
        if config.max_calls is not None and sum(c.status == "answered" for c in self.calls) >= config.max_calls:
            return 0
        if config.max_call_tokens is not None:
            left = min(left, config.max_call_tokens)
        if config.max_teacher_tokens is not None:
            left = min(left, config.max_teacher_tokens - self.source.count(TEACHER))
        return max(0, left)

    def _append(self, token: int, source: str, data: bytes) -> None:
        """Note a token, whose bytes may end inside a character."""
        self.ids.append(token)
        self.source.append(source)
        self.pieces.append(self._decoder.decode(data))
        for values in self.statistics.values():
            values.append(None)

    # The teacher writes -----------------------------------------------------------------------------------------------

    def start_teacher_turn(self) -> TeacherView:
        """Show the teacher what the student wrote since the last hand-off, without the calls."""
        self._handed = self._turn_start, len(self.view.segments)
        self._end_student_turn()
        if len(self.view.segments) == self._handed[1]:  # the last segment is always the student's latest turn
            self.view.segments.append(Segment("", () if self._shared else None))
        assert self.waiting is not None
        self.submitted, self.view.n, self.view.to = True, self.waiting.granted, self.waiting.to
        return self.view

    def write_teacher(self, output: TeacherOutput, teacher: str) -> Call:
        """The teacher's answer to the waiting call. Returns the call, filled in; the turn is the student's again.

        Where the two share a tokenizer, the teacher's ids are taken as they are. Otherwise its text is tokenised here
        once. More than was granted, than the line, or than there is room for, is cut off.
        """
        call, self.waiting, self.submitted, self.turn = self.waiting, None, False, "student"
        assert call is not None
        call.teacher, call.latency = output.teacher or teacher, output.latency
        call.error = output.error or self._fault(output)
        if call.error is not None:
            call.status = "failed"
        else:
            if output.withdraw:
                self._withdraw(call)
            # The caps were applied when the call was granted; another tokenizer counts other tokens.
            allowed = call.granted if self._shared or output.approximate else self._allowance()
            exact = output.ids if self._shared else None
            every = self._text.encode(output.text) if exact is None else list(exact)
            ids = every[:allowed]
            line = self.view.line and next((i for i, t in enumerate(ids, 1) if b"\n" in self._text.bytes[t]), 0)
            ids = ids[: line or None]
            cut = len(ids) < len(every)
            text = "".join(self._text.pieces(ids)) if cut else output.text
            self._take(ids, text, tuple(ids) if self._shared else None if cut else output.ids)
            call.status, call.delivered, call.written = "answered", len(ids), output.tokens or len(ids)
            call.approximate = output.approximate
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
        for record in (self.ids, self.source, self.pieces, *self.statistics.values()):
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
        surrogate = any("\ud800" <= c <= "\udfff" for c in output.text)
        return "the teacher's text is not valid Unicode" if surrogate else None

    def _take(self, ids: list[int], text: str, own: tuple[int, ...] | None) -> None:
        """Tokens of the teacher: the student's ids for them, and its own where they are known."""
        for token in ids:
            self._append(token, TEACHER, self._text.bytes[token])
        if text or own:
            self.view.segments.append(Segment(text, own))
        self._turn_start = len(self.ids)

    def _end_student_turn(self) -> None:
        """The turn's calls that were never closed are noted, its text without calls is shown to the teacher."""
        for command in self._turn.unclosed():
            tokens = self._turn.tokens(command)
            self.calls.append(Call(self._turn_start + tokens.start, self._turn_start + tokens.stop, status="unclosed"))
        self.calls.sort(key=lambda c: c.start)
        kept = list(self._turn.kept())
        if data := b"".join(rest for _, _, rest in kept):
            ids = tuple(i for _, some, _ in kept for i in some) if self._shared else None
            self.view.segments.append(Segment(data.decode(errors="replace"), ids))
        self._turn, self._turn_start = StudentTurn(self._text, named=bool(self._names)), len(self.ids)

    def finish(self, why: str) -> None:
        """End the sequence; ``why`` is one of ``trace.STOPS``."""
        self.stop, self.turn = why, "done"
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
        known = all(0 <= i < len(self._text.bytes) for i in body)
        if not known or not trace.text.startswith("".join(self._text.pieces(body)).rstrip("\ufffd")):
            raise ValueError(f"trace {trace.id!r} does not fit this student: was it made with another tokenizer?")
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
            # It was a fork's own if it ended after the tokens that it asked for.
            self.counted |= call.forced and call.finish_reason == "length" and call.granted == call.requested
            self._request(Call(call.start, call.end, call.requested, status="waiting", forced=call.forced, to=call.to))
        self.calls.sort(key=lambda c: c.start)
        if end_token:
            self._append(ids[-1], STUDENT, b"")
        for name in self.statistics:
            if (values := getattr(trace, name)) is not None:
                self.statistics[name] = list(values[:at])
        if ended:
            self.finish(trace.stop)
        elif self.turn == "student" and self.room <= 0:
            self.finish("length")

    def _give(self, ids: list[int]) -> None:
        """Tokens of the student whose calls are known already."""
        begin = len(self.ids)
        for token in ids:
            self._append(token, STUDENT, self._text.bytes[token])
            self._turn.append(token)
        for call in self.calls:
            if begin <= call.start and call.end <= len(self.ids):
                self.source[call.start : call.end] = [COMMAND] * (call.end - call.start)

    def events(self, start: int) -> Iterator[TokenEvent]:
        """The tokens from a completion position on, as events."""
        for i in range(start, len(self.ids)):
            source = TEACHER if self.source[i] == TEACHER else STUDENT
            yield TokenEvent(self.index, i, self.ids[i], self.pieces[i], source)

    def trace(self, student: str, teacher: str) -> Trace:
        """The record so far; a copy that later tokens do not change."""
        statistics: dict[str, Any] = {name: list(values) for name, values in self.statistics.items()}
        return Trace(
            prompt=self.messages[-1]["content"] if self.messages else "", prompt_ids=list(self.prompt_ids),
            completion_ids=list(self.ids), source="".join(self.source), pieces=list(self.pieces),
            calls=[replace(c) for c in self.calls], stop=self.stop, seed=self.seed,
            temperature=self.config.temperature, student=student, teacher=teacher, id=self.id,
            problem=dict(self.problem), history=self.messages[:-1] or None, **statistics,
        )  # fmt: skip
