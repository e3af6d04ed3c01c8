"""The rows of the warm-up: the student's own responses with commands in them (method: stage 1).

Responses are sampled from the student itself, so that nothing but the commands is new to it. Commands stand at random
*token* positions and ask for n = d * 10**k tokens, d in 1..9, clipped to what is left. All other ids stay as sampled.

With a ``teacher`` a response is what a relay will be: the teacher writes n tokens at the place of the command, without
seeing one, and the student goes on from there. So the student also reads right results that it cannot write. Of
several teachers (``NamedTeachers``) each command names one, drawn evenly, and this one writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.relay.pair import Pair
from relaylab.relay.relay import Relay
from relaylab.relay.sequence import Done
from relaylab.relay.teachers import NoTeacher, Teacher
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Call, Trace

NO_LOSS = -100  # the label of a token that is read and not learned


def insert_calls(
    ids: Sequence[Any],
    encode: Callable[[str], list],
    *,
    rng: random.Random,
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    exponents: Sequence[int] = (0, 1, 2, 3),
    numbers: Sequence[int] | None = None,
) -> list:
    """A response with commands put in at random token positions.

    Args:
        ids: the tokens, the last of which is the end token.
        encode: turns a command's text into ids.
        rng: decides places and numbers.
        counts: the probability of 0, 1, 2 ... commands.
        exponents: a command asks for d * 10**k tokens, k of these, clipped to what is left before the end token.
        numbers: a command asks for one of these instead.

    >>> insert_calls([5, 6, 7, 8, 2], lambda text: [text], rng=random.Random(3), counts=(0, 1))
    [5, '<call>3</call>', 6, 7, 8, 2]
    """
    last = len(ids) - 1  # the end token; no command stands after it
    count = rng.choices(range(len(counts)), counts)[0]
    places = rng.sample(range(last), min(count, last))
    commands = {i: format_call(_draw_n(rng, exponents, numbers, last - i)) for i in sorted(places)}
    return _with_commands(ids, encode, commands)


def _with_commands(ids: Sequence[Any], encode: Callable[[str], list], commands: Mapping[int, str]) -> list:
    """The tokens, with each command before its place."""
    out: list = []
    for i, token in enumerate(ids):
        out += encode(commands[i]) if i in commands else []
        out.append(token)
    return out


def draw_place(
    rng: random.Random, trace: Trace, begin: int, last: int, uniform: float, whole_words: bool = False
) -> int:
    """A token of ``begin .. last - 1``: any with probability ``uniform``, else by the student's entropy before it.

    ``whole_words``: if the token stands inside a word or a number, the first token of it instead.
    """
    entropies = [trace.entropies[i] or 0.0 for i in range(begin, last)] if trace.entropies and uniform < 1 else []
    if not any(entropies) or rng.random() < uniform:
        place = rng.randrange(begin, last)
    else:
        place = rng.choices(range(begin, last), entropies)[0]
    while whole_words and place > begin and _inside_word(trace.pieces, place):
        place -= 1
    return place


def _inside_word(pieces: Sequence[str], i: int) -> bool:
    return pieces[i - 1][-1:].isalnum() and pieces[i][:1].isalnum()


def _draw_n(rng: random.Random, exponents: Sequence[int], numbers: Sequence[int] | None, most: int) -> int:
    return min(most, rng.choice(numbers) if numbers else rng.randint(1, 9) * 10 ** rng.choice(exponents))


def help_at_random(
    relay: Relay,
    traces: Sequence[Trace],
    *,
    rng: random.Random,
    counts: Sequence[float],
    uniform: float = 1.0,
    whole_words: bool = False,
    progress: bool = False,
    **lengths: Any,
) -> list[Trace]:
    """Responses anew, with silent calls at random tokens: the teacher writes n of them, and the student goes on.

    Args:
        relay: student and teacher. Of several teachers each call is for one of them, drawn evenly.
        traces: responses of the student alone.
        rng, counts: see ``insert_calls``; a second call comes after the first one's answer.
        uniform: the share of places drawn evenly; the others are drawn by the student's entropy, if it is recorded.
        whole_words: no place inside a word or a number.
        progress: show a bar.
        lengths: ``exponents`` and ``numbers`` of ``insert_calls``.
    """
    traces, wanted = list(traces), rng.choices(range(len(counts)), counts, k=len(traces))
    names = getattr(relay.teacher, "names", ())
    for earlier in range(len(counts) - 1):
        places = {}
        for i, trace in enumerate(traces):
            begin = max((c.end + c.delivered for c in trace.calls), default=0)
            last = len(trace.completion_ids) - 1  # the end token
            if wanted[i] > earlier and trace.stop == "end" and begin < last:
                at = draw_place(rng, trace, begin, last, uniform, whole_words)
                n = _draw_n(rng, most=last - at, **lengths)
                places[i] = at, (n, rng.choice(names)) if names else n
        chosen, at, call = [traces[i] for i in places], [p[0] for p in places.values()], [p[1] for p in places.values()]
        stream = relay.forks(chosen, at, call=call, write_call=False)
        for _ in tqdm((e for e in stream if isinstance(e, Done)), "helping", len(chosen), disable=not progress):
            pass
        for i, fork in zip(places, stream.traces):
            traces[i] = fork
    return traces


def warmup_data(
    student: Engine,
    problems: Sequence[Problem],
    *,
    teacher: Teacher | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    keep_correct: bool = False,
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    exponents: Sequence[int] = (0, 1, 2, 3),
    numbers: Sequence[int] | None = None,
    max_tokens: int = 512,
    prompt_suffix: str = "",
    decode_batch_size: int = 128,
    uniform: float = 1.0,
    whole_words: bool = False,
    seed: int = 0,
    progress: bool = True,
    responses: Path | None = None,
) -> Dataset:
    """The student's own responses with commands in them, one row each.

    A row has ``input_ids``, ``labels`` (-100 for the prompt) and ``command``, which is 1 for the tokens of a command.

    Args:
        student: whose responses are sampled. Those that do not end are left out.
        problems: with ids that differ.
        teacher: writes what the commands ask for, see above; without one, nothing is written for them.
        samples: responses of each problem.
        temperature: at which they are sampled.
        keep_correct: leave wrong responses out. What a teacher's tokens make of a right one is not graded again.
        counts, exponents, numbers: see ``insert_calls``.
        max_tokens: of a response.
        prompt_suffix: put after each question.
        decode_batch_size: responses sampled together.
        uniform: the share of commands at places drawn evenly; the others stand by the student's entropy. Below 1 it
            needs a teacher.
        whole_words: with a teacher, no command stands inside a word or a number.
        seed: of responses and commands.
        progress: show a bar.
        responses: a folder that keeps the responses; interrupted, the same call goes on from them.

    Raises:
        ValueError: where no response is left, and for places without a teacher.
    """
    if not 0 <= uniform <= 1 or (uniform < 1 and not teacher):
        raise ValueError(f"uniform is {uniform}; it is a share of the places, and needs a teacher where it is below 1")
    options: dict[str, Any] = dict(temperature=temperature, max_tokens=max_tokens, batch_size=decode_batch_size)
    options |= {"record": uniform < 1}
    problems, pair, traces = with_suffix(problems, prompt_suffix), Pair(student, NoTeacher()), list[Trace]()
    for k in range(samples):
        out = None if responses is None else responses / f"responses-{k}.jsonl"
        traces += pair.decode(problems, seed=seed + k, out=out, progress=progress, **options)
    chosen = [trace for trace in traces if trace.stop == "end" and (trace.correct or not keep_correct)]
    drawing: dict[str, Any] = dict(rng=random.Random(seed), counts=counts, exponents=exponents, numbers=numbers)
    if teacher:
        relay = Relay(student, teacher, on_failure="raise", **options)
        chosen = help_at_random(relay, chosen, uniform=uniform, whole_words=whole_words, progress=progress, **drawing)
        # A student that calls by itself would get its own commands a second time.
        chosen = [t for t in chosen if t.stop in ("end", "teacher_end") and all(map(_is_help, t.calls))]
    rows = []
    for trace in chosen:
        tokens, encode = _labelled(trace), lambda text: [(i, i, 1) for i in student.text.encode(text)]
        if teacher:
            commands = {call.start: format_call(call.requested or 0, call.to) for call in trace.calls}
            row = _with_commands(tokens, encode, commands)
        else:
            row = insert_calls(tokens, encode, **drawing)
        ids, labels, command = map(list, zip(*[(i, NO_LOSS, 0) for i in trace.prompt_ids], *row))
        rows.append({"input_ids": ids, "labels": labels, "command": command})
    if not rows:
        ended = sum(t.stop == "end" for t in traces)
        remedy = "raise max_tokens, or turn keep_correct off"
        remedy += ", or take a student that does not call yet" if teacher else ""
        raise ValueError(f"none of the {len(traces)} responses can be used: {ended} ended within their limit; {remedy}")
    return Dataset.from_list(rows)


def _is_help(call: Call) -> bool:
    """A silent call of ``help_at_random`` that was answered."""
    return call.forced and call.start == call.end and call.status == "answered"


def _labelled(trace: Trace) -> list[tuple[int, int, int]]:
    """The tokens of a response: id, label, and 0 as it is none of a command. The teacher's have no loss."""
    return [(i, NO_LOSS if s == TEACHER else i, 0) for i, s in zip(trace.completion_ids, trace.source)]


def collate(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of ``warmup_data`` as tensors (B, T), padded on the right; with ``attention_mask``."""
    fill = {"input_ids": pad_id, "labels": NO_LOSS, "command": 0, "attention_mask": 0}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {name: _padded([torch.tensor(row[name]) for row in rows], value) for name, value in fill.items()}


def without_commands(batch: dict[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """The ids and attention mask of the rows of ``batch`` as the student had sampled them."""
    keep = (batch["command"] == 0) & (batch["attention_mask"] == 1)
    ids = [row[kept] for row, kept in zip(batch["input_ids"], keep)]
    return {"input_ids": _padded(ids, pad_id), "attention_mask": _padded([torch.ones_like(row) for row in ids], 0)}


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def with_suffix(problems: Sequence[Problem], suffix: str) -> list[Problem]:
    return [replace(p, question=p.prompt(suffix)) for p in problems]
