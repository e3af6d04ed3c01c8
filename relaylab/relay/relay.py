"""The relay: a student writes, calls, a teacher continues, the student goes on (method: section 3).

One loop for one question in a notebook and for a thousand rollouts in training. Rows are decoded together, and those
that wait for the teacher are continued by it, together, in turn with the others; a teacher that cannot work in turns
is asked once all rows have ended or wait. Since a row's tokens are a function of its prompt and seed alone, this order
is only a matter of speed.

``Relay.stream`` yields events while it happens; ``Relay.run`` returns the traces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine, Row
from relaylab.engine.sampling import sample, token_statistics
from relaylab.relay.call_rules import CallRule, StepState
from relaylab.relay.config import RelayConfig
from relaylab.relay.events import CallClosed, CallOpened, Done, Event, TokenEvent
from relaylab.relay.sequence import RelayRow
from relaylab.relay.teachers import Message, NoTeacher, PatientTeacher, Teacher, TeacherOutput
from relaylab.trace import Trace

Prompt = str | list[Message]

_keys = itertools.count()  # rows are known to teachers by a number that no other row of this process has
FORBIDDEN_SPAN = 8  # tokens from a fork that forbids a call, in which none may begin
GATHER, MANY = 4, 16  # of so many rows, those that change hands wait for each other, up to so many turns
MAX_LOGITS = 2**27  # floats of one recorded forward pass: a long answer times a large vocabulary fills memory fast


class TeacherFailed(RuntimeError):
    """A teacher failed and the call_rule is ``raise``. ``traces`` holds all rows as far as they came."""

    def __init__(self, message: str, traces: list[Trace]):
        super().__init__(message)
        self.traces = traces


@dataclass(slots=True, eq=False)
class _Live:
    index: int
    row: RelayRow
    cache: Row


class Relay:
    """A student, a teacher, and the terms between them.

    config: see ``RelayConfig``; ``overrides`` are fields of it. call_rule: writes calls for the student. forbid_calls: teacher-free decoding, no
    call can be written; always so with ``NoTeacher``. on_failure: what happens where the teacher fails: ``carry_on``
    alone with the failed call in the trace, ``raise`` TeacherFailed, or ``exclude`` the row, whose trace then ends
    there. record: keep log-probabilities and entropies of the student; those of teacher tokens that the student never
    had to run stay None. batch_size: rows decoded at a time.

    >>> from relaylab.engine.load import load_engine
    >>> from relaylab.relay.teachers import ScriptedTeacher
    >>> from relaylab.relay.call_rules import CallAt
    >>> relay = Relay(load_engine("student"), ScriptedTeacher(["twelve"]), call_rule=CallAt({0: 6}))
    >>> trace = relay.run(["What is 7+5?"])[0]
    >>> trace.text.startswith("<call>6</call>twelve"), trace.calls[0].granted
    (True, 6)
    """

    def __init__(
        self,
        student: Engine,
        teacher: Teacher,
        config: RelayConfig | None = None,
        *,
        call_rule: CallRule | None = None,
        record: bool = False,
        batch_size: int = 64,
        **overrides: Any,
    ):
        if batch_size < 1:
            raise ValueError("batch_size is at least 1")
        self.student, self.teacher = student, teacher
        self.config = replace(config or RelayConfig(), **overrides)
        self.call_rule, self.record, self.batch_size = call_rule, record, batch_size
        self.forbid_calls = self.config.forbid_calls or isinstance(teacher, NoTeacher)
        self._shared = teacher.fingerprint == student.text.fingerprint

    def run(self, prompts: Sequence[Prompt], *, seeds: Sequence[int] | None = None) -> list[Trace]:
        """Relay all prompts; one trace a prompt, in order. ``seeds``: one a prompt, 0, 1, 2 ... where not given."""
        stream = self.stream(prompts, seeds=seeds)
        for _ in stream:
            pass
        return stream.traces

    def stream(self, prompts: Sequence[Prompt], *, seeds: Sequence[int] | None = None) -> Stream:
        """The events of a relay, as it happens. A prompt is a question or a list of chat messages."""
        if isinstance(prompts, str):
            raise ValueError("prompts is one text; pass a list of prompts")
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
        return Stream(self, [self._row(p, seed) for p, seed in zip(prompts, seeds)])

    def fork(
        self,
        trace: Trace,
        at: int,
        *,
        call: int | None = None,
        forbid: bool = False,
        seed: int | None = None,
        prompt: Prompt | None = None,
    ) -> Stream:
        """The relay from completion position ``at`` of a trace on: as it was before, with one thing changed.

        call: a command for so many tokens is written first; a call resized is a fork at its start with another n.
        forbid: the token at ``at`` must not come again and no call may begin there or shortly after; forbids a call
        when ``at`` is its start. With the trace's own seed, positions behind the change meet the same luck as before.
        ``prompt`` are the messages, where they were more than the one question of ``trace.prompt``.
        """
        return Stream(self, [self._forked(trace, at, call, forbid, seed, prompt)])

    def forks(self, traces: Sequence[Trace], at: Sequence[int], **change: Any) -> Stream:
        """``fork`` of many traces in one stream, each at its own position, all with the same change."""
        change = {"call": None, "forbid": False, "seed": None, "prompt": None} | change
        return Stream(self, [self._forked(t, i, **change) for t, i in zip(traces, at, strict=True)])

    def _forked(
        self, trace: Trace, at: int, call: int | None, forbid: bool, seed: int | None, prompt: Prompt | None
    ) -> RelayRow:
        if not 0 <= at <= len(trace.completion_ids):
            raise ValueError(f"a trace of {len(trace.completion_ids)} tokens cannot be forked at {at}")
        row = self._row(prompt or trace.prompt, (trace.seed or 0) if seed is None else seed)
        row.prompt_ids = list(trace.prompt_ids)
        row.replay(trace, at)
        if forbid:
            row.forbidden_until = at + FORBIDDEN_SPAN
            if at < len(trace.completion_ids):
                row.forbidden_at = (at, trace.completion_ids[at])
        elif call is not None:
            if self.forbid_calls or not row.open:
                raise ValueError(
                    "no call can be forced: " + ("calls are forbidden" if row.open else "the answer ended")
                )
            format_call(call)  # ValueError for a number that is none
            row.force_next = call
        return row

    def _row(self, prompt: Prompt, seed: int) -> RelayRow:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return RelayRow(
            self.student.text,
            messages,
            self.student.prompt_ids(messages),
            key=next(_keys),
            seed=seed,
            temperature=self.config.temperature,
            config=self.config,
            end_ids=self.student.end_ids,
            shared=self._shared,
            record=self.record,
        )


class Stream(Iterator[Event]):
    """The events of some rows. ``traces`` are their records at any time; closed early, they end ``interrupted``."""

    def __init__(self, relay: Relay, rows: list[RelayRow]):
        self._relay, self._rows = relay, rows
        self._live: list[_Live] = []
        self._asked: set[_Live] = set()  # rows whose teacher is writing
        self._events = self._decode()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop decoding; caches are given back."""
        self._events.close()
        self._interrupt()  # a stream that was never begun has nothing else to end it

    @property
    def traces(self) -> list[Trace]:
        return [self._trace(row) for row in self._rows]

    def _trace(self, row: RelayRow) -> Trace:
        trace = row.trace()
        trace.student, trace.teacher = self._relay.student.name, self._relay.teacher.name
        return trace

    def _decode(self) -> Iterator[Event]:
        queue = list(enumerate(self._rows))[::-1]
        live, turns = self._live, itertools.count()
        try:
            while queue or live:
                while queue and len(live) < self._relay.batch_size:
                    index, row = queue.pop()
                    live.append(_Live(index, row, self._open(row)))
                # A pass over a few rows with a turn to read costs as much as one over all that write: these gather.
                gather = next(turns) % GATHER == 0 or len(live) < MANY
                able = [x for x in live if x.row.open and not x.row.waiting and self._fits(x)]
                if active := [x for x in able if gather or x.cache.pending == 1] or able:
                    yield from self._step(active)
                if waiting := [x for x in live if x.row.waiting]:
                    yield from self._ask(waiting, idle=not active, gather=gather)
                for x in [x for x in live if not x.row.open]:
                    live.remove(x)
                    self._give_back(x)
                    yield Done(x.index, self._trace(x.row))
        finally:
            self._interrupt()
            for x in live:
                self._give_back(x)
            live.clear()

    def _open(self, row: RelayRow) -> Row:
        """A place in the engine. Kept caches may lend what has its statistics already, or needs none."""
        student = self._relay.student
        if row.logprobs is None or None not in row.logprobs:
            return student.open(row.prompt_ids + row.ids)
        cache = student.open(row.prompt_ids)
        student.extend(cache, row.ids)
        return cache

    def _interrupt(self) -> None:
        for row in self._rows:
            if row.open:
                row.finish("interrupted")

    def _fits(self, x: _Live) -> bool:
        if len(x.cache.ids) > self._relay.student.context:
            x.row.finish("context")
        elif x.row.room <= 0:
            x.row.finish("length")
        return x.row.open

    def _give_back(self, x: _Live) -> None:
        self._relay.student.close(x.cache)
        self._relay.teacher.release([x.row.key])

    # The student ------------------------------------------------------------------------------------------------------

    def _step(self, active: list[_Live]) -> Iterator[Event]:
        """One token, or one forced command, for every active row."""
        relay = self._relay
        # Each pending token that is followed by a completion token has a distribution worth recording.
        counts = [min(x.cache.pending, len(x.row.ids) + 1) if relay.record else 1 for x in active]
        most = max(1, MAX_LOGITS // (relay.student.vocabulary * max(counts)))
        for begin in range(0, len(active), most):
            part, wanted = active[begin : begin + most], counts[begin : begin + most]
            logits = relay.student.forward([x.cache for x in part], positions=max(wanted))
            before = [len(x.row.ids) for x in part]
            self._choose(part, logits[:, -1])
            if relay.record:
                _record(part, before, wanted, logits)
            for x, start in zip(part, before):
                yield from self._tokens(x, start)

    def _choose(self, active: list[_Live], logits: torch.Tensor) -> None:
        forced = self._forced(active, logits)
        free = [i for i, done in enumerate(forced) if not done]
        rows = [active[i].row for i in free]
        if free:
            tokens = sample(
                logits if len(free) == len(active) else logits[free],
                temperatures=[r.temperature for r in rows],
                uniforms=[r.uniforms[len(r.ids)] if r.temperature > 0 else 0.0 for r in rows],
                top_p=self._relay.config.top_p,
                top_k=self._relay.config.top_k,
                forbidden=self._forbidden(rows),
            )
            for row, token in zip(rows, tokens):
                row.student(token)
        for x in active:
            self._relay.student.extend(x.cache, x.row.ids[len(x.cache.ids) - len(x.row.prompt_ids) :])

    def _forced(self, active: list[_Live], logits: torch.Tensor) -> list[bool]:
        """Write the calls that a fork or the call_rule asks for; which rows got one."""
        call_rule = self._relay.call_rule
        nothing = [None] * len(active)
        entropies = token_statistics(logits)[1].tolist() if call_rule and call_rule.uses_entropy else nothing
        return [
            self._force(x, call_rule, h, scores)
            for x, h, scores in zip(active, entropies, logits if call_rule else nothing)
        ]

    def _force(self, x: _Live, call_rule: CallRule | None, entropy: float | None, logits: torch.Tensor | None) -> bool:
        row = x.row
        if row.force_next is not None:
            n, row.force_next = row.force_next, None
            return row.force(n)
        if call_rule is None or self._relay.forbid_calls or len(row.ids) < row.forbidden_until or not row.may_force():
            return False
        n = call_rule(StepState(len(row.ids), row.since_call, len(row.closed_calls), entropy, row.seed, logits))
        if n is None or self._relay.config.write_call:
            return n is not None and row.force(n)
        row.take_over(n)
        x.cache.cached -= 1  # nothing was written: the last token is run again, with the teacher's behind it
        return True

    def _forbidden(self, rows: list[RelayRow]) -> dict:
        bans = {}
        for i, row in enumerate(rows):
            here = len(row.ids)
            if not (self._relay.forbid_calls or here < row.forbidden_until):
                continue
            bans[i] = self._relay.student.text.forbidden(row.turn_tail)
            if row.forbidden_at is not None and row.forbidden_at[0] == here:
                bans[i] = bans[i].copy()
                bans[i][row.forbidden_at[1]] = True
        return bans

    def _tokens(self, x: _Live, before: int) -> Iterator[Event]:
        for i in range(before, len(x.row.ids)):
            source = "t" if x.row.source[i] == "t" else "s"
            yield TokenEvent(x.index, i, x.row.ids[i], x.row.pieces[i], source)

    # The teacher ------------------------------------------------------------------------------------------------------

    def _ask(self, waiting: list[_Live], *, idle: bool, gather: bool) -> Iterator[Event]:
        """Hand rows over and take answers back; a teacher that lets nobody go on is asked once all others wait."""
        teacher = self._relay.teacher
        patient = isinstance(teacher, PatientTeacher)
        if not (patient or idle):
            return
        fresh = [x for x in waiting if x not in self._asked] if gather or idle else []
        for x in fresh:
            x.row.hand_over()
            yield CallOpened(x.index, replace(x.row.waiting))
        contexts, granted = [x.row.context for x in fresh], [x.row.waiting.granted for x in fresh]
        if patient:
            if fresh:
                teacher.ask(contexts, granted)
            self._asked.update(fresh)
            said = dict(teacher.answers({x.row.key for x in waiting}))
            answered = [x for x in waiting if x.row.key in said]
            self._asked.difference_update(answered)
            yield from self._deliver([(x, said[x.row.key]) for x in answered])
        else:
            yield from self._deliver(list(zip(fresh, teacher.continue_(contexts, granted), strict=True)))

    def _deliver(self, answers: list[tuple[_Live, TeacherOutput]]) -> Iterator[Event]:
        relay = self._relay
        for x, continuation in answers:
            before = len(x.row.ids)
            call = x.row.deliver(continuation, relay.teacher.name)
            relay.student.extend(x.cache, x.row.ids[before:])
            if call.error is not None and relay.config.on_failure == "exclude":
                x.row.finish("excluded")
            yield from self._tokens(x, before)
            yield CallClosed(x.index, replace(call))
        failed = [c for _, c in answers if c.error is not None]
        if failed and relay.config.on_failure == "raise":
            self._interrupt()
            raise TeacherFailed(f"{relay.teacher.name}: {failed[0].error}", self.traces)


def _record(part: list[_Live], before: list[int], wanted: list[int], logits: torch.Tensor) -> None:
    """Log-probabilities and entropies of the tokens that the last ``wanted`` distributions of each row were for.

    logits (B, K, V) are right-aligned: the last ones were for the token now at ``before``, the others for those in
    front of it.
    """
    logp, entropy = token_statistics(logits)
    targets = torch.zeros(logits.shape[:2], dtype=torch.long)
    spans = [slice(end + 1 - count, min(end + 1, len(x.row.ids))) for x, end, count in zip(part, before, wanted)]
    for i, (x, span, count) in enumerate(zip(part, spans, wanted)):  # the last may have been for nothing: take_over
        ids = x.row.ids[span]
        targets[i, -count : len(ids) - count or None] = torch.tensor(ids, dtype=torch.long)
    chosen = logp.gather(-1, targets.to(logp.device)[..., None])[..., 0].tolist()
    for i, (x, span, count) in enumerate(zip(part, spans, wanted)):
        many = span.stop - span.start
        x.row.logprobs[span] = chosen[i][-count:][:many]
        x.row.entropies[span] = entropy[i, -count:].tolist()[:many]
