"""What a model thinks of text that others wrote: ``score_traces`` reads traces and gives one row per token.

A teacher reads the text as in a relay, without commands. The student's entropy beside the divergence of the two is the
map of TIP (2604.14084): low entropy with a high divergence is a confident error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from relaylab.engine.engine import Engine
from relaylab.engine.sampling import token_statistics
from relaylab.engine.token_text import StudentTurn, TokenText
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.students import MAX_LOGITS
from relaylab.relay.teachers import Segment, TeacherView
from relaylab.trace import TEACHER, Trace

if TYPE_CHECKING:
    from relaylab.relay.api_teacher import APITeacher

COLUMNS = ("trace", "id", "position", "source", "token", "logprob", "top", "entropy", "rank")
SERVED = COLUMNS[:-2]  # a server gives no distributions


def score_traces(
    model: Engine | LocalTeacher | APITeacher, traces: Sequence[Trace], *, against: Engine | None = None,
    commands: bool = False, topk: int = 0, hidden: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """The log-probability, entropy and likeliest token of a model before every token of some traces.

    Args:
        model: with the tokenizer of the traces' student. Of a teacher behind a server, only ``SERVED`` is known.
        traces: read in batches.
        against: another model; adds ``divergence``, KL(``against`` || ``model``) in nats.
        commands: the model sees the student's commands, as a student does; else it reads as a teacher, without them.
        topk: adds ``logits``, the largest so many in their order, an array (topk,).
        hidden: adds ``hidden``, the last hidden state before the token, an array (H,).

    Returns:
        ``COLUMNS`` and those asked for, one row per token of a trace that the model sees. ``rank`` counts the likelier
        tokens; ``top`` is the text of the likeliest one.

    Raises:
        ValueError: for traces with another tokenizer, and where distributions are asked of a server.
        ServerError: if a server gives no scores.

    >>> from relaylab.relay.pair import load_pair
    >>> from relaylab.tasks.suites import problem
    >>> pair = load_pair(teacher="teacher")
    >>> trace = pair.solve(problem("tiles", 0), max_tokens=9)
    >>> score_traces(pair.teacher, [trace], against=pair.student)["divergence"].ge(-1e-5).all().item()
    True
    """
    model = model.engine if isinstance(model, LocalTeacher) else model
    if not isinstance(model, Engine):
        if against or topk or hidden:
            raise ValueError("a server gives no distributions: leave out against, topk and hidden")
        return _served(model, traces, commands)
    views = [_seen(trace, model.text, commands) for trace in traces]
    prompts, texts = [trace.prompt_ids for trace in traces], [ids for ids, _ in views]
    others = _read(against, prompts, texts) if against else [(None, None)] * len(traces)
    rows = []
    for k, (trace, (ids, at), (logits, states), (other, _)) in enumerate(
        zip(traces, views, _read(model, prompts, texts), others)
    ):
        logp, entropy = token_statistics(logits)
        chosen = logp.gather(-1, torch.tensor(ids, dtype=torch.long, device=logp.device)[:, None])
        columns: list[list[Any]] = [
            chosen[:, 0].tolist(),
            [model.text.pieces([i])[0] for i in logp.argmax(-1).tolist()],
        ]
        columns += [entropy.tolist(), (logp > chosen).sum(-1).tolist()]
        if other is not None:
            # Models of one tokenizer may be padded to different sizes; no token stands behind these numbers.
            size = min(other.shape[-1], logp.shape[-1])
            beside = torch.log_softmax(other[..., :size], -1)
            columns.append((beside.exp() * (beside - logp[..., :size])).nan_to_num(0.0).sum(-1).tolist())
        columns += [list(logits.topk(topk).values.cpu().numpy())] if topk else []
        columns += [list(states.float().cpu().numpy())] if hidden else []
        for i, *values in zip(at, *columns):
            if i is not None:
                rows.append((k, trace.id, i, trace.source[i], trace.pieces[i], *values))
    asked = [("divergence", against is not None), ("logits", topk > 0), ("hidden", hidden)]
    return pd.DataFrame(rows, columns=[*COLUMNS, *(name for name, wanted in asked if wanted)])


def recorded(
    model: Engine | LocalTeacher | APITeacher, traces: Sequence[Trace], *, against: Engine | None = None
) -> list[Trace]:
    """The traces with ``teacher_logprobs`` and ``teacher_top``, and with ``divergences`` if there is an ``against``.

    They are those of ``score_traces``, and None for commands. The player shows them; the atlas draws divergences.
    """
    frame = score_traces(model, traces, against=against)
    fields = {"teacher_logprobs": "logprob", "teacher_top": "top"} | ({"divergences": "divergence"} if against else {})
    columns = [{name: [None] * len(trace.completion_ids) for name in fields} for trace in traces]
    for k, at, *values in frame[["trace", "position", *fields.values()]].itertuples(index=False):
        for name, value in zip(fields, values):
            columns[k][name][at] = value
    return [replace(trace, **given) for trace, given in zip(traces, columns)]


def _served(teacher: APITeacher, traces: Sequence[Trace], commands: bool) -> pd.DataFrame:
    """``score_traces`` by a server."""
    if teacher.shared_tokenizer is None:
        raise ValueError("scores of a server need its model's tokenizer: give it to the teacher")
    text = TokenText(teacher.shared_tokenizer.tokenizer)
    seen = [_seen(trace, text, commands) for trace in traces]
    views = [
        TeacherView([], [Segment("", tuple(ids))], raw=Segment("", tuple(trace.prompt_ids)))
        for trace, (ids, _) in zip(traces, seen)
    ]
    rows = [
        (k, trace.id, i, trace.source[i], trace.pieces[i], logprob, text.pieces([top])[0])
        for k, (trace, (_, at), scores) in enumerate(zip(traces, seen, teacher.score(views)))
        for i, logprob, top in zip(at, scores.logprobs, scores.top)
        if i is not None
    ]
    return pd.DataFrame(rows, columns=list(SERVED))


def _seen(trace: Trace, text: TokenText, commands: bool) -> tuple[list[int], list[int | None]]:
    """The completion as a model reads it: ids, and the position of each; None for what is left beside a command."""
    n, ended = len(trace.completion_ids), trace.stop == "end" and bool(trace.completion_ids)
    body = trace.completion_ids[: n - ended]
    if not all(0 <= i < len(text.bytes) for i in body) or not trace.text.startswith(
        "".join(text.pieces(body)).rstrip("\ufffd")
    ):
        raise ValueError(f"trace {trace.id!r} has another tokenizer than the model that should read it")
    if commands:
        return trace.completion_ids, list(range(n))
    cuts = {0, len(body)} | {at for c in trace.calls if c.status != "unclosed" for at in (c.end, c.end + c.delivered)}
    ids, places, ends = list[int](), list[int | None](), sorted(at for at in cuts if at <= len(body))
    for start, end in pairwise(ends):
        if TEACHER in trace.source[start:end]:
            kept = [(k, [body[start + k]], b"") for k in range(end - start)]
        else:
            turn = StudentTurn(text, named=trace.named)
            for token in body[start:end]:
                turn.append(token)
            kept = list(turn.kept())
        for k, left, _ in kept:
            ids += left
            places += [start + k] if left == [body[start + k]] else [None] * len(left)
    return (ids + trace.completion_ids[-1:], [*places, n - 1]) if ended else (ids, places)


def _read(
    model: Engine, prompts: Sequence[list[int]], texts: Sequence[list[int]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (T, V) and hidden states (T, H) before each token of the texts, in as few passes as memory allows."""
    most = max(1, MAX_LOGITS // (model.vocabulary * max(1, *map(len, texts))))
    for first in range(0, len(texts), most):
        part = texts[first : first + most]
        slots = model.open_many(prompts[first : first + most])
        try:
            for slot, ids in zip(slots, part):
                slot.ids += ids[:-1]
            logits, states = model.forward(slots, positions=max(1, *map(len, part)), hidden=True)
        finally:
            for slot in slots:
                model.close(slot)
        yield from (
            (row[len(row) - len(ids) :], state[len(state) - len(ids) :])
            for row, state, ids in zip(logits, states, part)
        )
