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
    withdrawn: list[tuple[int, str]] = field(default_factory=list)  # place, text
    named: list[tuple[str | None, int, int]] = field(default_factory=list)  # teacher, end, delivered


@torch.no_grad()
def slow_relay(
    student, teacher, tokenizer, prompt, *, end_ids, max_tokens, seed=0, temperature=0.0, call_rule=None, caps=None,
    call_end="tokens",
):  # fmt: skip
    """One row. ``call_rule(position) -> n | None``; ``caps`` bounds granted n. The teacher is greedy.

    With several teachers, ``teacher`` maps names to models and a rule returns (n, name); a call is in ``named``, too.
    """
    out, named = Slow(), isinstance(teacher, dict)
    teachers = teacher if named else {None: teacher}
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
        asked = call_rule(len(out.ids)) if call_rule and not within_call(text_of(turn)) else None
        command = format_call(*(asked if isinstance(asked, tuple) else (asked,))) if asked else ""
        if asked and len(tokenizer(command, add_special_tokens=False)["input_ids"]) >= max_tokens - len(out.ids):
            asked = None  # a command that does not fit is not written
        forced = tokenizer(command, add_special_tokens=False)["input_ids"] if asked else [None]
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
            before = len(find_closed(text_of(turn), named))
            turn.append(token)
            new = find_closed(text_of(turn), named)[before:]
            for c in new:  # label the tokens that overlap it
                for i in range(len(turn)):
                    a, b = len(text_of(turn[:i])), len(text_of(turn[: i + 1]))
                    if a < c.end and b > c.start:
                        at = len(out.ids) - len(turn) + i
                        out.source = out.source[:at] + "c" + out.source[at + 1 :]
            closed = next((c for c in new if c.n and (c.to is None or c.to in teachers)), None)
        if out.stop:
            break
        if closed is None:
            if len(out.ids) >= max_tokens:
                out.stop = "length"
            continue
        start = out.source.rfind("c")
        while start > 0 and out.source[start - 1] == "c":
            start -= 1
        wanted = closed.n if call_end == "tokens" else max_tokens
        granted = min(wanted, max_tokens - len(out.ids), caps or wanted)
        if granted <= 0:
            out.stop = "length"
            break
        done_turns.append(("s", seen_by_teacher(tokenizer, turn, named)))
        turn, said, end, writer = [], [], len(out.ids), closed.to or next(iter(teachers))
        teacher_stop = False
        for _ in range(granted):
            context = prompt + [i for _, ids in done_turns for i in ids] + said
            token = int(logits_of(teachers[writer], context).argmax())
            if token in end_ids:
                teacher_stop = True
                break
            said.append(token)
            if call_end == "line" and "\n" in text_of([token]):
                break
        for token in said:
            note(token, logits_of(student, prompt + out.ids))
            out.ids.append(token)
            out.source += "t"
        done_turns.append(("t", said))
        out.calls.append((start, end, len(said)))
        out.named.append((writer, end, len(said)))
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


def find_closed(text, named=False):
    return [c for c in find_calls(text, named=named) if c.closed]


def seen_by_teacher(tokenizer, turn, named=False):
    """The turn's ids without its calls: whole tokens as they are, text left of a straddling token encoded anew."""
    text = tokenizer.decode(turn, skip_special_tokens=False)
    calls = find_closed(text, named)
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


@torch.no_grad()
def slow_lines(
    student, teacher, tokenizer, prompt, *, end_ids, max_tokens, call_end="line", unsure=None, surprise=None
):
    """One greedy row in which the teacher takes over silently; every token runs the whole text anew.

    ``unsure``: it writes where the student's entropy is above, at the beginning of a line or, for ``call_end`` answer,
    anywhere. ``surprise``: it writes anew what the student wrote since the last hand-off, if that surprises it more.
    """
    out, handed = Slow(), 0

    def logp_of(model, ids):
        return torch.log_softmax(model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].float(), -1)

    while not out.stop:
        text = tokenizer.decode(out.ids, skip_special_tokens=False)
        begins, take = not text or text.endswith("\n"), False
        if surprise is not None and begins and len(out.ids) > handed:
            line = out.ids[handed:]
            nats = [-float(logp_of(teacher, out.ids[: handed + i])[token]) for i, token in enumerate(line)]
            take = sum(nats) / len(nats) > surprise
            if take:
                out.withdrawn.append((handed, tokenizer.decode(line)))
                out.ids, out.source = out.ids[:handed], out.source[:handed]
            else:
                out.calls.append((len(out.ids), len(out.ids), 0))
                handed = len(out.ids)
        logp = logp_of(student, out.ids)
        if unsure is not None and (begins or call_end == "answer"):
            take = float(-(logp.exp() * logp).sum()) > unsure
        if not take:
            token = int(logp.argmax())
            out.ids.append(token)
            out.source += "s"
            out.stop = "end" if token in end_ids else "length" if len(out.ids) >= max_tokens else ""
            continue
        start = len(out.ids)
        while not out.stop and not (
            call_end == "line" and "\n" in tokenizer.decode(out.ids[-1:] if start < len(out.ids) else [])
        ):
            token = int(logp_of(teacher, out.ids).argmax())
            if token in end_ids:
                out.stop = "teacher_end"
                break
            out.ids.append(token)
            out.source += "t"
            out.stop = "length" if len(out.ids) >= max_tokens else ""
        handed = len(out.ids)
        out.calls.append((start, start, handed - start))
    return out
