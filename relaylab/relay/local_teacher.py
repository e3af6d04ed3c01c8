"""A teacher in this process: an engine that keeps each row's cache between calls.

Of each context only what is new is run: the student's text since the last call and the last token that the teacher
wrote itself. The engine may be a student's own (one model in both roles) and may have another tokenizer than the
student.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Sequence

import torch

from relaylab.engine.engine import Engine, Row
from relaylab.engine.sampling import Uniforms, sample
from relaylab.relay.teachers import Context, Finish, TeacherOutput


class LocalTeacher:
    """A teacher over an ``Engine``; greedy at ``temperature`` 0, else sampled with each row's own seed.

    >>> from relaylab.engine.load import load_engine
    >>> teacher = LocalTeacher(load_engine("student"))
    >>> said = teacher.continue_([Context(0, [{"role": "user", "content": "What is 7+5?"}])], [3])[0]
    >>> len(said.ids) == said.tokens <= 3
    True
    """

    def __init__(self, engine: Engine, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, name: str = ""):
        self.engine = engine
        self.name = name or engine.name or "local"
        self.fingerprint = engine.text.fingerprint
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self._rows: dict[Hashable, _Known] = {}
        self._jobs: dict[Hashable, _Job] = {}  # asked and not answered yet

    def continue_(self, contexts: Sequence[Context], n: Sequence[int]) -> list[TeacherOutput]:
        said: dict[Hashable, TeacherOutput] = {}
        self.ask(contexts, n)
        while waiting := {c.row for c in contexts} - said.keys():
            said.update(self.answers(waiting))
        return [said[c.row] for c in contexts]

    def ask(self, contexts: Sequence[Context], n: Sequence[int]) -> None:
        """Take these contexts in, to be continued by at most n tokens each; ``answers`` does the work."""
        for context, count in zip(contexts, n, strict=True):
            self._jobs[context.row] = _Job(context, count)

    def answers(self, rows: Collection[Hashable]) -> list[tuple[Hashable, TeacherOutput]]:
        """One token more for those of these rows that were asked; the answers that are done, by row.

        ``latency`` is the time of the passes that a context took part in, whatever else was done in between.
        """
        started = time.perf_counter()
        jobs = [job for row, job in self._jobs.items() if row in rows]
        try:
            self._step([job for job in jobs if self._ready(job)])
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            why = f"{self.name}: out of memory: {str(error).splitlines()[0]}; lower the batch size or the context"
        else:
            why = ""
        took = time.perf_counter() - started
        for job in jobs:
            job.latency += took
        if why:  # only here: within the handler, the error still holds the failed pass
            self.release([job.context.row for job in jobs])
            self.engine.forget()
            return [(j.context.row, TeacherOutput("", "error", latency=j.latency, error=why)) for j in jobs]
        done = [job for job in jobs if not self._ready(job)]
        for job in done:
            del self._jobs[job.context.row]
        return [(job.context.row, self._said(job)) for job in done]

    def release(self, rows: Sequence[Hashable]) -> None:
        for key in rows:
            self._jobs.pop(key, None)
            if known := self._rows.pop(key, None):
                self.engine.close(known.row)

    def _ready(self, job: _Job) -> bool:
        """Whether a job has a token to come; its row is brought up to date when it is first looked at."""
        if job.known is None:
            job.begin(self._known(job.context))
        return job.finish == "length" and job.room(self.engine.context)

    def _known(self, context: Context) -> _Known:
        """The row of a context, brought up to date; what it shares with its past is not run again."""
        known = self._rows.get(context.row)
        if known is None:
            known = self._rows[context.row] = _Known(self.engine.open(self.engine.prompt_ids(context.messages)))
            known.ids = list(known.row.ids)
        for segment in context.segments[known.segments :]:
            known.ids += segment.ids if segment.ids is not None else self.engine.text.encode(segment.text)
        known.segments = len(context.segments)
        row = known.row
        same = next(
            (i for i, (a, b) in enumerate(zip(row.ids, known.ids)) if a != b), min(len(row.ids), len(known.ids))
        )
        self.engine.crop(row, same)
        self.engine.extend(row, known.ids[same:])
        if not row.pending:  # asked again without a new segment: the last token's distribution is needed once more
            row.cached -= 1
        return known

    def _step(self, active: list[_Job]) -> None:
        if not active:
            return
        tokens = sample(
            self.engine.forward([j.known.row for j in active])[:, -1],
            temperatures=[self.temperature] * len(active),
            uniforms=[j.uniform(self.temperature) for j in active],
            top_p=self.top_p,
            top_k=self.top_k,
        )
        for job, token in zip(active, tokens):
            if token in self.engine.end_ids:
                job.finish = "stop"
            else:
                job.ids.append(token)
                self.engine.extend(job.known.row, [token])

    def _said(self, job: _Job) -> TeacherOutput:
        text, latency = self.engine.text, job.latency
        data = b"".join(text.bytes[i] for i in job.ids)
        if job.context.whole_characters:
            while job.ids and data.decode(errors="ignore") != data.decode(errors="replace"):
                data = data[: len(data) - len(text.bytes[job.ids.pop()])]
        if not job.ids and job.finish == "length":
            why = (
                "the context is full"
                if len(job.known.row.ids) >= self.engine.context
                else "no whole character in its tokens"
            )
            return TeacherOutput("", "error", latency=latency, error=f"{self.name}: {why}")
        return TeacherOutput(data.decode(errors="replace"), job.finish, tuple(job.ids), len(job.ids), latency)


def _out_of_memory(error: RuntimeError) -> bool:
    """An accelerator has an exception of its own for it; a CPU's says so in its text only."""
    texts = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(t in str(error) for t in texts)


class _Known:
    """A row that the teacher has met: its engine row, and the ids of the segments taken in so far."""

    def __init__(self, row: Row):
        self.row, self.ids, self.segments = row, list[int](), 0


class _Job:
    """One context to continue by ``n`` tokens."""

    def __init__(self, context: Context, n: int):
        self.context, self.n = context, n
        self.known: _Known | None = None
        self.ids: list[int] = []
        self.finish: Finish = "length"
        self.latency = 0.0
        self._uniforms = Uniforms(context.seed, stream=1)

    def begin(self, known: _Known) -> None:
        self.known, self._begin = known, len(known.ids)

    def room(self, context: int) -> bool:
        return len(self.ids) < self.n and len(self.known.row.ids) <= context

    def uniform(self, temperature: float) -> float:
        """The draw for a position of the teacher's view, prompt included."""
        return self._uniforms[self._begin + len(self.ids)] if temperature > 0 else 0.0
