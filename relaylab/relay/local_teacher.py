"""A teacher in this process: an engine that keeps each sequence's cache between calls.

Only what is new is run: the student's text since the last call, and the last token that the teacher wrote itself. The
engine may be the student's own (one model in both roles) and may have another tokenizer than the student.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from relaylab.engine.engine import Engine
from relaylab.engine.kv_cache import CacheSlot
from relaylab.engine.sampling import Uniforms, sample, token_statistics
from relaylab.relay.students import MAX_LOGITS
from relaylab.relay.teachers import FinishReason, Scores, TeacherOutput, TeacherView


class LocalTeacher:
    """A teacher over an ``Engine``.

    Args:
        engine: of the teacher's model.
        temperature: 0 is greedy; else each sequence is sampled with its own seed.
        top_p: as in ``RelayConfig``.
        top_k: as in ``RelayConfig``.
        name: for traces; the engine's by default.

    >>> from relaylab.engine.load import load_engine
    >>> from relaylab.relay.teachers import complete
    >>> view = TeacherView([{"role": "user", "content": "What is 7+5?"}], n=3)
    >>> output = complete(LocalTeacher(load_engine("student")), [view])[0]
    >>> len(output.ids) == output.tokens <= 3
    True
    """

    def __init__(self, engine: Engine, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, name: str = ""):
        self.engine = engine
        self.name = name or engine.name or "local"
        self.fingerprint = engine.text.fingerprint
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._histories: dict[TeacherView, _History] = {}
        self._turns: dict[TeacherView, _TeacherTurn] = {}  # submitted and not answered yet

    def submit(self, views: Sequence[TeacherView]) -> None:
        self._turns.update((view, _TeacherTurn(view, Uniforms(view.seed, stream=1))) for view in views)

    def poll(self, views: Collection[TeacherView], *, wait: bool = False) -> list[tuple[TeacherView, TeacherOutput]]:
        """One more token for each of these views that were submitted; the answers that are complete.

        ``latency`` is the time of the passes that a view took part in, whatever else was done in between.
        """
        turns = [self._turns[v] for v in views if v in self._turns]
        ready: list[_TeacherTurn] = []
        while turns and not ready:
            started, error = time.perf_counter(), ""
            try:
                # 1) New turns read what is new. 2) Every turn that has room gets a token.
                self._read([t for t in turns if t.history is None])
                self._write([t for t in turns if not t.finish_reason])
            except RuntimeError as raised:
                # An accelerator has an exception of its own for it; a CPU's says so in its text only.
                texts, words = ("can't allocate memory", "not enough memory"), str(raised)
                if not (isinstance(raised, torch.OutOfMemoryError) or any(text in words for text in texts)):
                    raise
                error = f"{self.name}: out of memory: {words.splitlines()[0]}; lower the batch size or the context"
            for turn in turns:
                turn.latency += time.perf_counter() - started
            if error:  # only here: within the handler, the exception still holds the failed pass
                self.release([t.view for t in turns])
                return [(t.view, TeacherOutput("", "error", latency=t.latency, error=error)) for t in turns]
            ready = [t for t in turns if t.finish_reason]
            if not wait:
                break
        # 3) Complete turns are answers.
        for turn in ready:
            del self._turns[turn.view]
        return [(t.view, self._output(t)) for t in ready]

    def release(self, views: Sequence[TeacherView]) -> None:
        for view in views:
            self._turns.pop(view, None)
            if history := self._histories.pop(view, None):
                self.engine.close(history.slot)

    def score(self, views: Sequence[TeacherView]) -> list[Scores]:
        """What the teacher thinks of the student's turn at the end of each view.

        The turn is read in one pass, as a hand-off would, and the cache keeps it: a hand-off that follows reads nothing
        again.

        Raises:
            ValueError: for a prompt that the teacher cannot take.
        """
        turns = [_TeacherTurn(view, Uniforms(view.seed, stream=1)) for view in views]
        LocalTeacher._read(self, turns)
        if error := next((turn.error for turn in turns if turn.error), ""):
            raise ValueError(error)
        return self._score(turns)

    def _score(self, turns: list[_TeacherTurn]) -> list[Scores]:
        """Scores of what these turns have read, in as few passes as memory allows."""
        counts = [t.begin - t.last for t in turns]
        most, scores = max(1, MAX_LOGITS // (self.engine.vocabulary * (max(counts, default=0) + 1))), list[Scores]()
        for first in range(0, len(turns), most):
            part, lengths = turns[first : first + most], counts[first : first + most]
            for turn in part:  # the distribution before the first new token comes of the token in front of it
                turn.history.slot.cached = min(turn.history.slot.cached, turn.last - 1)
            logits = self.engine.forward([t.history.slot for t in part], positions=max(lengths) + 1)
            for turn, row, n in zip(part, logits, lengths):
                ids = turn.history.ids[turn.last :]
                logp, entropies = token_statistics(row[len(row) - n - 1 : -1])
                chosen = logp.gather(-1, torch.tensor(ids, dtype=torch.long, device=logp.device)[:, None])[:, 0]
                scores.append(Scores(ids, chosen.tolist(), logp.argmax(-1).tolist(), entropies.tolist()))
        return scores

    def _read(self, turns: list[_TeacherTurn]) -> None:
        """Bring the histories of new turns up to date. Prompts that come several times are read once."""
        engine = self.engine
        # 1) A prompt that this teacher cannot take, such as one that its chat template refuses, fails one turn alone.
        prompts: dict[TeacherView, list[int]] = {}
        for turn in turns:
            if (view := turn.view) not in self._histories:
                try:
                    ids = engine.raw_ids(view.raw.text, view.raw.ids) if view.raw else engine.prompt_ids(view.messages)
                    if not ids:
                        raise ValueError("the prompt has no token")
                    prompts[view] = ids
                except ValueError as error:
                    turn.error, turn.finish_reason = f"{self.name}: {error}", "error"
        slots = engine.open_many([*prompts.values()])
        self._histories.update((view, _History(slot, list(slot.ids))) for view, slot in zip(prompts, slots))
        # 2) What is new in each view is appended; the pass that writes will run it.
        for turn in [t for t in turns if not t.error]:
            turn.history = history = self._histories[turn.view]
            turn.last, slot = len(history.ids), history.slot
            for segment in turn.view.segments[history.segments :]:
                turn.last = len(history.ids)
                history.ids += segment.ids if segment.ids is not None else engine.text.encode(segment.text)
            history.segments, turn.begin = len(turn.view.segments), len(history.ids)
            if slot.ids != history.ids[: len(slot.ids)]:  # what the teacher wrote was cut: keep what is the same
                engine.crop(slot, next(i for i, (a, b) in enumerate(zip(slot.ids, [*history.ids, -1])) if a != b))
            slot.ids += history.ids[len(slot.ids) :]
            if slot.cached == len(slot.ids):  # called again without new text: the last token is run once more
                slot.cached -= 1
            if len(slot.ids) > engine.context:
                turn.finish_reason = "length"

    def _write(self, turns: list[_TeacherTurn]) -> None:
        """One token for each of these turns; those with their last one have a ``finish_reason``."""
        if not turns:
            return
        tokens = sample(
            self.engine.forward([t.history.slot for t in turns])[:, -1],
            temperatures=[self.temperature] * len(turns),
            uniforms=[t.uniforms[t.begin + len(t.ids)] if self.temperature > 0 else 0.0 for t in turns],
            top_p=[self.top_p] * len(turns),
            top_k=[self.top_k] * len(turns),
        )
        for turn, token in zip(turns, tokens):
            slot = turn.history.slot
            if token in self.engine.end_ids:
                turn.finish_reason = "stop"
                continue
            turn.ids.append(token)
            slot.ids.append(token)
            if turn.view.line and b"\n" in self.engine.text.bytes[token]:
                turn.finish_reason = "line"
            elif len(turn.ids) == turn.view.n or len(slot.ids) > self.engine.context:
                turn.finish_reason = "length"

    def _output(self, turn: _TeacherTurn) -> TeacherOutput:
        if turn.error:
            return TeacherOutput("", "error", latency=turn.latency, error=turn.error)
        text, ids = self.engine.text, turn.ids
        data = b"".join(text.bytes[i] for i in ids)
        if turn.view.whole_characters:
            while ids and data.decode(errors="ignore") != data.decode(errors="replace"):
                data = data[: len(data) - len(text.bytes[ids.pop()])]
        if not ids and turn.finish_reason == "length":
            full = len(turn.history.slot.ids) >= self.engine.context
            error = f"{self.name}: " + ("the context is full" if full else "no whole character in its tokens")
            return TeacherOutput("", "error", latency=turn.latency, error=error)
        assert turn.finish_reason is not None
        return TeacherOutput(
            data.decode(errors="replace"), turn.finish_reason, tuple(ids), len(ids), turn.latency,
            withdraw=turn.withdraw,
        )  # fmt: skip


class Verifier(LocalTeacher):
    """A teacher that is shown a turn of the student and writes only what it does not accept (SpecReason).

    A turn whose tokens surprise it by more than ``threshold`` nats on average is taken back, and the teacher writes in
    its place.

    >>> from relaylab.engine.load import load_engine
    >>> from relaylab.relay.teachers import Segment, complete
    >>> view = TeacherView([{"role": "user", "content": "What is 7+5?"}], [Segment("nonsense")], n=3)
    >>> output = complete(Verifier(load_engine("student"), threshold=1.0), [view])[0]
    >>> output.withdraw, len(output.ids)
    (True, 3)
    """

    def __init__(self, engine: Engine, *, threshold: float, **options: Any):
        super().__init__(engine, **options)
        self.threshold = threshold

    def _read(self, turns: list[_TeacherTurn]) -> None:
        super()._read(turns)
        turns = [t for t in turns if not t.finish_reason]
        for turn, scores in zip(turns, self._score(turns)):
            history, slot = turn.history, turn.history.slot
            if scores.surprise <= self.threshold:
                turn.finish_reason = "accepted"
                continue
            turn.withdraw, turn.begin = True, turn.last
            del history.ids[turn.last :]
            history.segments -= 1
            self.engine.crop(slot, turn.last)
            slot.cached -= 1


@dataclass(slots=True)
class _History:
    """A view that the teacher has met: its slot, and the ids of its prompt and of the segments taken in so far."""

    slot: CacheSlot
    ids: list[int]
    segments: int = 0


@dataclass(eq=False)
class _TeacherTurn:
    """One view to continue by ``view.n`` tokens.

    ``begin``: tokens of the teacher's view before its answer; from ``last`` on they are the student's latest turn.
    ``error``: why there can be no answer.
    """

    view: TeacherView
    uniforms: Uniforms
    history: Any = None  # its _History, once it was read
    begin: int = 0
    last: int = 0
    error: str = ""
    withdraw: bool = False
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # once it is complete
    latency: float = 0.0
