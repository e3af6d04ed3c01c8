"""The relay (method: section 3). The student writes; a call hands the turn to the teacher for n tokens; and back.

Each sequence has a turn. At every step each model writes one token of every sequence whose turn it has:

    while sequences are open:
        the student writes a token of each sequence whose turn it has    # a call makes it the teacher's turn
        the teacher writes on those whose turn it has                    # after n tokens it is the student's again

One loop serves one question in a notebook and a thousand rollouts in training. A sequence's tokens are a function of
its prompt and seed alone, so the order of turns is only a matter of speed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Many
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.relay.call_rules import CallRule
from relaylab.relay.config import RelayConfig
from relaylab.relay.sequence import CallClosed, CallOpened, Done, Event, Sequence
from relaylab.relay.students import LocalStudent, Student
from relaylab.relay.teachers import Message, NoTeacher, Segment, Teacher
from relaylab.trace import TEACHER, Trace

if TYPE_CHECKING:
    from relaylab.relay.api_student import APIStudent

Prompt = str | list[Message] | Segment  # a question, a chat, or a raw prompt without a chat template
Feed = Callable[[int, bool], list[Sequence]]

FORBIDDEN_SPAN = 8  # tokens from a fork that forbids a call, in which none may begin
GATHER, MANY = 4, 16  # with 16 or more open sequences, wait up to 4 steps so that hand-offs happen in batches
PAUSE = 0.002  # seconds that a student behind a server is waited for, if a teacher may be ready sooner


class ModelFailed(RuntimeError):
    """A model failed and ``on_failure`` is ``raise``. ``traces`` holds all sequences as far as they came."""

    def __init__(self, message: str, traces: list[Trace]):
        super().__init__(message)
        self.traces = traces


class TeacherFailed(ModelFailed):
    """It was a teacher."""


class StudentFailed(ModelFailed):
    """It was a student behind a server."""


class Stream(Iterator[Event]):
    """The events of some sequences. ``traces`` are their records at any time, ``interrupted`` if closed early.

    Args:
        relay: the models and their settings.
        sequences: those that are known from the beginning.
        feed: asked before each pass for sequences that join. ``feed(places, idle)`` returns at most so many; ``idle``
            says that only the teacher is at work, and nothing came of it. It may ``finish`` sequences, too. The stream
            ends once it returns none and nothing is left. ``traces`` are those of the answers under way.
    """

    def __init__(self, relay: Relay, sequences: list[Sequence], feed: Feed | None = None):
        self._relay, self._sequences, self._feed = relay, sequences, feed
        self._events: Any = self._decode()

    def _decode(self) -> Iterator[Event]:
        relay, queue, live = self._relay, self._sequences[::-1], list[Sequence]()
        student, teacher, feed, idle = relay.student, relay.teacher, self._feed, False
        try:
            for step in count():
                # 1) Fill the batch. A prompt that comes several times is read once.
                fresh = [queue.pop() for _ in range(min(len(queue), relay.batch_size - len(live)))]
                if feed:
                    fresh += (joined := feed(relay.batch_size - len(live) - len(fresh), idle))
                    self._sequences += joined
                if fresh:
                    live += fresh
                    for s, slot in zip(fresh, student.open_many([s.prompt_ids for s in fresh])):
                        s.slot = slot
                        slot.ids += s.ids
                if not live:
                    return
                for s in live:
                    if s.turn == "student" and len(s.slot.ids) > student.context:
                        s.finish("context")
                # 2) The student writes one token of every sequence whose turn it has. A pass over a few sequences with
                #    teacher text to read costs as much as one over all, so in a large batch these wait for each other.
                gather = step % GATHER == 0 or len(live) < MANY
                able = [s for s in live if s.turn == "student"]
                active, wrote = [s for s in able if gather or s.slot.pending == 1] or able, 0
                if active:
                    patient = not feed and len(able) == len(live)
                    wrote = yield from relay.writer.step(active, math.inf if patient else PAUSE)
                    if failed := [s.failure for s in active if s.failure]:  # only a server's; it is excluded by now
                        self._fail(StudentFailed, student.name, failed)
                # 3) The teacher takes over the turns that are new, and writes on those that it has.
                idle = False
                if waiting := [s for s in live if s.turn == "teacher"]:
                    patient = not active and not feed
                    ready = yield from self._teacher_step(waiting, gather=gather or not active, wait=patient)
                    idle = not wrote and not ready
                # 4) Finished sequences give their caches back.
                for s in [s for s in live if s.turn == "done"]:
                    live.remove(s)
                    if feed:
                        self._sequences.remove(s)
                    student.close(s.slot)
                    teacher.release([s.view])
                    yield Done(s.index, s.trace(student.name, teacher.name))
        finally:
            self._interrupt()  # those that are not done: closed early, or an error
            for s in live:
                if s.slot is not None:
                    student.close(s.slot)
                teacher.release([s.view])

    def _teacher_step(self, waiting: list[Sequence], *, gather: bool, wait: bool) -> Generator[Event, None, int]:
        """Hand sequences over, and take the answers that are ready back; returns how many.

        wait: no student can write, so wait for an answer.
        """
        relay = self._relay
        # 1) The teacher is shown what the student wrote since the last hand-off, without the commands.
        if fresh := [s for s in waiting if gather and not s.submitted]:
            relay.teacher.submit([s.start_teacher_turn() for s in fresh])
            for s in fresh:
                assert s.waiting is not None
                yield CallOpened(s.index, replace(s.waiting))
        # 2) It writes, at most the n tokens of the call, and the turn is the student's again (``write_teacher``).
        by_view = {s.view: s for s in waiting if s.submitted}
        answers, failed = relay.teacher.poll(list(by_view), wait=wait), []
        for view, output in answers:
            s = by_view[view]
            call = s.write_teacher(output, relay.teacher.name)
            if call.withdrawn:  # the last token that is left is run again: another one follows it now
                relay.student.crop(s.slot, len(s.prompt_ids) + call.end)
                s.slot.cached -= 1
            s.slot.ids += s.ids[call.end :]  # 3) The student will read the answer.
            # 4) A failure is that of one call.
            if call.error is not None:
                failed.append(call.error)
                if relay.config.on_failure == "exclude":
                    s.finish("excluded")
            yield from s.events(call.end)
            yield CallClosed(s.index, replace(call))
        if failed:
            self._fail(TeacherFailed, relay.teacher.name, failed)
        return len(answers)

    # What a caller sees -----------------------------------------------------------------------------------------------

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop decoding and give the caches back."""
        self._events.close()
        self._interrupt()  # a stream that was never begun has nothing else to end it

    @property
    def traces(self) -> list[Trace]:
        relay = self._relay
        return [s.trace(relay.student.name, relay.teacher.name) for s in self._sequences]

    def _interrupt(self) -> None:
        for s in self._sequences:
            if s.turn != "done":
                s.finish("interrupted")

    def _fail(self, error: type[ModelFailed], name: str, failures: list[str]) -> None:
        """End everything if ``on_failure`` is ``raise``. Else warn of a student's failure; a call tells of its own."""
        if self._relay.config.on_failure == "raise":
            self._interrupt()
            raise error(f"{name}: {failures[0]}", self.traces)
        for failure in failures if error is StudentFailed else ():
            warnings.warn(f"{name}: {failure}", stacklevel=2)


class Relay:
    """A student, a teacher, and the settings between them.

    Args:
        student: the engine of the student, or an ``APIStudent``.
        teacher: whoever answers calls; with ``NoTeacher`` no call can be written.
        config: the settings; ``overrides`` are fields of it by name.
        call_rule: writes calls for the student (``call_rules.py``).
        record: keep log-probabilities and entropies of the student. Those of teacher tokens that the student never had
            to run stay None.
        alternatives: record so many of the likeliest next tokens, too, and always that of a call.
        batch_size: sequences decoded at a time.

    Raises:
        ValueError: for what a student behind a server cannot give.

    >>> from relaylab.engine.load import load_engine
    >>> from relaylab.relay.call_rules import CallAt
    >>> from relaylab.relay.teachers import ScriptedTeacher
    >>> relay = Relay(load_engine("student"), ScriptedTeacher(["twelve"]), call_rule=CallAt({0: 6}))
    >>> trace = relay.run(["What is 7+5?"])[0]
    >>> trace.text.startswith("<call>6</call>twelve"), trace.calls[0].granted
    (True, 6)
    """

    def __init__(
        self, student: Student, teacher: Teacher, config: RelayConfig | None = None, *,
        call_rule: CallRule | None = None, record: bool = False, alternatives: int = 0, batch_size: int = 64,
        **overrides: Any,
    ):  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.student, self.teacher = student, teacher
        self.config = replace(config or RelayConfig(), **overrides)
        self.call_rule, self.record, self.batch_size = call_rule, record or alternatives > 0, batch_size
        self.alternatives = alternatives
        self.forbid_calls = self.config.forbid_calls or isinstance(teacher, NoTeacher)
        self.shared = teacher.fingerprint == student.text.fingerprint
        self.writer = LocalStudent(self) if isinstance(student, Engine) else cast("APIStudent", student).steps(self)

    @property
    def engine(self) -> Engine:
        """The student, in this process.

        Raises:
            ValueError: for a student behind a server, which gives no logits.
        """
        if not isinstance(self.student, Engine):
            raise ValueError(f"this needs the student's logits, which the server of {self.student.name} does not give")
        return self.student

    @property
    def written_rule(self) -> CallRule | None:
        """The call rule, unless no call may be written."""
        return None if self.forbid_calls else self.call_rule

    def run(self, prompts: Many[Prompt], *, seeds: Many[int] | None = None) -> list[Trace]:
        """Relay all prompts; one trace a prompt, in order. ``seeds``: one a prompt; 0, 1, 2 ... by default."""
        stream = self.stream(prompts, seeds=seeds)
        for _ in stream:
            pass
        return stream.traces

    def stream(self, prompts: Many[Prompt], *, seeds: Many[int] | None = None) -> Stream:
        """The events of a relay, as it happens. A prompt is a question or a list of chat messages."""
        if isinstance(prompts, str):
            raise ValueError("prompts is one text; pass a list of prompts")
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
        return Stream(self, [self.sequence(i, p, seed) for i, (p, seed) in enumerate(zip(prompts, seeds))])

    def fork(
        self, trace: Trace, at: int, *, call: int | tuple[int, str] | None = None, write_call: bool | None = None,
        forbid: bool = False, seed: int | None = None, prompt: Prompt | None = None,
    ) -> Stream:  # fmt: skip
        """The relay from completion position ``at`` of a trace on: as it was before, with one thing changed.

        Args:
            call: the student calls for so many tokens here. A resized call is a fork at its start with another n, of
                the same teacher. Of several teachers, ``(n, name)`` asks one. A command that does not fit under
                ``max_tokens`` is left out.
            write_call: write the command, or let the teacher take over silently; the relay's own way by default.
            forbid: the student's token at ``at`` must not come again, and no call may begin there or shortly after.
            seed: with the trace's own seed (the default), tokens after the change use the same random numbers.
            prompt: another one for the teacher than that of the trace.

        Raises:
            ValueError: for a position outside of the trace, and for a call that cannot be made.
        """
        return self.forks([trace], [at], call=call, write_call=write_call, forbid=forbid, seed=seed, prompt=prompt)

    def forks(self, traces: Many[Trace], at: Many[int], **change: Any) -> Stream:
        """``fork`` of many traces in one stream, each at its own position.

        ``change`` holds for all of them; ``call`` and ``write_call`` may also be lists with one value per trace.
        """
        lists = {name: values for name, values in change.items() if name != "prompt" and isinstance(values, list)}
        for name, values in lists.items():
            if len(values) != len(traces):
                raise ValueError(f"{len(values)} values of {name} for {len(traces)} traces")
        sequences = []
        for i, (trace, place) in enumerate(zip(traces, at, strict=True)):
            own = change | {name: values[i] for name, values in lists.items()}
            sequences.append(self._forked(i, trace, place, **own))
        return Stream(self, sequences)

    def _forked(
        self, index: int, trace: Trace, at: int, call: int | tuple[int, str] | None = None,
        write_call: bool | None = None, forbid: bool = False, seed: int | None = None, prompt: Prompt | None = None,
    ) -> Sequence:  # fmt: skip
        if not 0 <= at <= len(trace.completion_ids):
            raise ValueError(f"a trace of {len(trace.completion_ids)} tokens cannot be forked at {at}")
        own = self._prompt_of(trace) if prompt is None else prompt
        sequence = self.sequence(index, own, (trace.seed or 0) if seed is None else seed)
        sequence.prompt_ids = list(trace.prompt_ids)
        sequence.take_over(trace, at)
        if forbid:
            sequence.no_call_before = at + FORBIDDEN_SPAN
            if at < len(trace.completion_ids) and trace.source[at] != TEACHER:
                sequence.banned = (at, trace.completion_ids[at])
        elif call is not None:
            if self.forbid_calls or sequence.turn != "student":
                before = f"the call before position {at} is answered first; fork at its start"
                why = "the answer ended" if sequence.turn == "done" else before
                raise ValueError(f"no call can be forced: {'calls are forbidden' if self.forbid_calls else why}")
            n, name = call if isinstance(call, tuple) else (call, None)
            format_call(n)  # ValueError for a number that no command holds
            if name is None:  # a call anew asks the same teacher
                asked = {c.to for c in trace.calls if c.start == at}
                name = next((known for known in getattr(self.teacher, "names", ()) if known in asked), None)
            sequence.forced_call, sequence.counted = n if name is None else (n, name), True
            if write_call is not None:
                sequence.config = replace(sequence.config, write_call=write_call)
        return sequence

    def _prompt_of(self, trace: Trace) -> Prompt:
        """The prompt of a trace: a raw one if its tokens are its text, and a chat would have others."""
        ids, known = trace.prompt_ids, self.student.text.bytes
        body = ids[1:] if ids[:1] == [self.student.tokenizer.bos_token_id] else ids
        text = b"".join(known[i] for i in body if i < len(known)).decode(errors="replace")
        chat = [*(trace.history or ()), {"role": "user", "content": trace.prompt}]
        if not trace.history and text == trace.prompt and self.student.prompt_ids(chat) != ids:
            return Segment(trace.prompt, tuple(ids))
        return chat

    def sequence(
        self, index: int, prompt: Prompt, seed: int, *, config: RelayConfig | None = None, ids: list[int] | None = None
    ) -> Sequence:
        """An answer that is to begin.

        Args:
            index: its number in events.
            prompt: a question, chat messages, or a raw prompt.
            seed: of its random numbers.
            config: its own settings; ``on_failure`` stays the relay's.
            ids: those of the prompt, if they are known.

        Raises:
            ValueError: for a negative seed, and for a prompt that the student cannot take.
        """
        if seed < 0:
            raise ValueError(f"a seed is 0 or more, not {seed}")
        raw = prompt if isinstance(prompt, Segment) else None
        text = prompt.text if isinstance(prompt, Segment) else prompt
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        if ids is None:
            ids = self.student.raw_ids(raw.text, raw.ids) if raw else self.student.prompt_ids(messages)
        config, entropies = config or self.config, self.record and isinstance(self.student, Engine)
        kept = {"logprobs": self.record, "entropies": entropies, "alternatives": self.alternatives}
        return Sequence(
            index, messages, ids, student=self.student, seed=seed,
            config=replace(config, forbid_calls=True) if self.forbid_calls else config,
            shared=self.shared, statistics=[name for name, wanted in kept.items() if wanted], raw=raw,
            names=getattr(self.teacher, "names", ()),
        )  # fmt: skip
