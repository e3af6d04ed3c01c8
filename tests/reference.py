"""A slow relay that shares the grammar and the sampler with the fast one, no more: both contexts are run anew always.

No cache, no batch, no spans kept between tokens: after each token the turn is decoded as a whole and searched, and the
teacher's context is put together from the beginning. What the engine, the rows and the relay do must equal this.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from relaylab.call_tag import find_calls, format_call
from relaylab.engine.sampling import Uniforms, sample


@dataclass
class Slow:
    ids: list[int] = field(default_factory=list)
    source: str = ""
    logprobs: list[float] = field(default_factory=list)
    calls: list[tuple[int, int, int]] = field(default_factory=list)  # start, end, delivered
    stop: str = ""
    student_runs: int = 0


@torch.no_grad()
def slow_relay(
    student, teacher, tokenizer, prompt, *, end_ids, max_tokens, seed=0, temperature=0.0, call_rule=None, caps=None
):
    """One row. ``call_rule(position) -> n | None``; ``caps`` bounds granted n. The teacher is greedy."""
    out = Slow()
    done_turns: list[tuple[str, list[int]]] = []  # finished turns as the teacher sees them
    turn: list[int] = []
    student_draws = Uniforms(seed)

    def logits_of(model, ids):
        return model(input_ids=torch.tensor([ids])).logits[0, -1].float()

    def note(token, logits):
        out.logprobs.append(float(torch.log_softmax(logits, -1)[token]))

    def text_of(ids):
        return tokenizer.decode(ids, skip_special_tokens=False)

    while not out.stop:
        n = call_rule(len(out.ids)) if call_rule and not within_call(text_of(turn)) else None
        if n and len(tokenizer(format_call(n), add_special_tokens=False)["input_ids"]) >= max_tokens - len(out.ids):
            n = None  # a command that does not fit is not written
        forced = tokenizer(format_call(n), add_special_tokens=False)["input_ids"] if n else [None]
        closed = None
        for want in forced:
            logits = logits_of(student, prompt + out.ids)
            token = want
            if token is None:
                draw = student_draws[len(out.ids)]
                token = sample(logits[None], temperatures=[temperature], uniforms=[draw])[0]
            note(token, logits)
            out.ids.append(token)
            out.source += "s"
            if token in end_ids:
                out.stop = "end"
                break
            before = len(find_closed(text_of(turn)))
            turn.append(token)
            new = find_closed(text_of(turn))[before:]
            for c in new:  # label the tokens that overlap it
                for i in range(len(turn)):
                    a, b = len(text_of(turn[:i])), len(text_of(turn[: i + 1]))
                    if a < c.end and b > c.start:
                        at = len(out.ids) - len(turn) + i
                        out.source = out.source[:at] + "c" + out.source[at + 1 :]
            closed = next((c for c in new if c.n), None)
        if out.stop:
            break
        if closed is None:
            if len(out.ids) >= max_tokens:
                out.stop = "length"
            continue
        start = out.source.rfind("c")
        while start > 0 and out.source[start - 1] == "c":
            start -= 1
        granted = min(closed.n, max_tokens - len(out.ids), caps or closed.n)
        if granted <= 0:
            out.stop = "length"
            break
        done_turns.append(("s", seen_by_teacher(tokenizer, turn)))
        turn, said, end = [], [], len(out.ids)
        teacher_stop = False
        for _ in range(granted):
            context = prompt + [i for _, ids in done_turns for i in ids] + said
            token = int(logits_of(teacher, context).argmax())
            if token in end_ids:
                teacher_stop = True
                break
            said.append(token)
        for token in said:
            note(token, logits_of(student, prompt + out.ids))
            out.ids.append(token)
            out.source += "t"
        done_turns.append(("t", said))
        out.calls.append((start, end, len(said)))
        if teacher_stop:
            out.stop = "teacher_end"
        elif len(out.ids) >= max_tokens:
            out.stop = "length"
    return out


def within_call(text):
    """Whether a call may still be closed: a call rule waits until the student has finished or given up its own."""
    done = find_closed(text)
    tail = text[done[-1].end :] if done else text
    begin = tail.rfind("<call")
    return begin >= 0 and len(tail) - begin < len("<call></call>") + 32


def find_closed(text):
    return [c for c in find_calls(text) if c.closed]


def seen_by_teacher(tokenizer, turn):
    """The turn's ids without its calls: whole tokens as they are, text left of a straddling token encoded anew."""
    text = tokenizer.decode(turn, skip_special_tokens=False)
    calls = find_closed(text)
    ids = []
    for i in range(len(turn)):
        a = len(tokenizer.decode(turn[:i], skip_special_tokens=False))
        b = len(tokenizer.decode(turn[: i + 1], skip_special_tokens=False))
        inside = [k for k in range(a, b) if any(c.start <= k < c.end for c in calls)]
        if not inside:
            ids.append(turn[i])
        else:
            rest = "".join(text[k] for k in range(a, b) if k not in inside)
            ids += tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
    return ids
