"""Students: whoever writes between the calls. One protocol for an engine in this process and for a server.

``LocalStudent`` writes one token of each sequence a step. A student behind a server (``api_student.py``) writes until
a call, and answers when it can.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from relaylab.call_tag import OPEN
from relaylab.engine.sampling import sample, token_statistics
from relaylab.relay.sequence import Event
from relaylab.relay.sequence import Sequence as Row

if TYPE_CHECKING:
    from relaylab.engine.engine import Engine
    from relaylab.engine.token_text import TokenText
    from relaylab.relay.relay import Relay

MAX_LOGITS = 2**27  # floats of one recorded forward pass: a long answer times a large vocabulary fills memory fast


class Student(Protocol):
    """What a relay needs of a student besides its step. An ``Engine`` has it; ``APIStudent`` is the other one."""

    name: str
    text: TokenText
    tokenizer: Any
    end_ids: frozenset[int]
    vocabulary: int

    @property
    def context(self) -> int:
        """The longest sequence that may be continued, in tokens."""
        ...

    @property
    def slots(self) -> Sequence[Any]:
        """The open slots."""
        ...

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]: ...
    def raw_ids(self, text: str, ids: Sequence[int] | None = None) -> list[int]: ...
    def open_many(self, prompts: Sequence[Sequence[int]]) -> Sequence[Any]: ...
    def crop(self, slot: Any, length: int) -> None: ...
    def close(self, slot: Any) -> None: ...


class LocalStudent:
    """The steps of a student in this process.

    Args:
        relay: whose ``student`` is an ``Engine``.
    """

    def __init__(self, relay: Relay):
        self._relay, self._engine = relay, cast("Engine", relay.student)

    def step(self, active: Sequence[Row], seconds: float = 0) -> Generator[Event, None, int]:
        """One token, or one command that a rule or a fork wants, for every active sequence. Returns how many wrote."""
        relay, student = self._relay, self._engine
        # Each pending token that is followed by a completion token has a distribution worth recording.
        counts = [min(s.slot.pending, len(s.ids) + 1) if relay.record else 1 for s in active]
        most = max(1, MAX_LOGITS // (student.vocabulary * max(counts)))
        for first in range(0, len(active), most):
            part, wanted = active[first : first + most], counts[first : first + most]
            # 1) The student reads what it has not read yet: its own last token, and what the teacher wrote.
            slots, states = [s.slot for s in part], None
            if getattr(relay.call_rule, "uses_hidden", False):
                logits, states = student.forward(slots, positions=max(wanted), hidden=True)
            else:
                logits = student.forward(slots, positions=max(wanted))
            before = [len(s.ids) for s in part]
            # 2) Where a call rule or a fork wants a call, it is written.
            called = set()
            if relay.call_rule or any(s.forced_call is not None for s in part):
                called = self._calls(part, logits[:, -1], states)
            # 3) All others draw their next token. If it closes a call, the turn is the teacher's (``write_student``).
            drawing = [i for i in range(len(part)) if i not in called]
            if drawing:
                rows = [part[i] for i in drawing]
                tokens = sample(
                    logits[:, -1] if len(rows) == len(part) else logits[drawing, -1],
                    temperatures=[s.config.temperature for s in rows],
                    uniforms=[s.uniforms[len(s.ids)] if s.config.temperature > 0 else 0.0 for s in rows],
                    top_p=[s.config.top_p for s in rows],
                    top_k=[s.config.top_k for s in rows],
                    forbidden={i: s.forbidden() for i, s in enumerate(rows) if s.barred},
                )
                for s, token in zip(rows, tokens):
                    s.write_student(token)
            # 4) The student will read what was written, the command included.
            for s, start in zip(part, before):
                s.slot.ids += s.ids[start:]
            if relay.record:
                self._record(part, before, wanted, logits)
            for s, start in zip(part, before):
                yield from s.events(start)
        return len(active)

    def _calls(self, part: Sequence[Row], logits: torch.Tensor, states: torch.Tensor | None) -> set[int]:
        """Write the calls that a fork or the call rule wants. Returns which sequences got one."""
        rule = self._relay.written_rule
        needed = getattr(rule, "uses_entropy", False)
        entropies = token_statistics(logits)[1].tolist() if needed else [None] * len(part)
        called = set()
        for i, s in enumerate(part):
            before = len(s.ids)
            if s.wanted_call(rule, entropies[i], logits[i], None if states is None else states[i, -1]):
                called.add(i)
                # Nothing was written: the last token is run again, with the teacher's after it.
                if len(s.ids) == before:
                    s.slot.cached -= 1
        return called

    def _record(self, part: Sequence[Row], before: list[int], wanted: list[int], logits: torch.Tensor) -> None:
        """Note the statistics of the tokens that the last ``wanted`` distributions of each sequence were for.

        logits (B, K, V) are right-aligned: the last ones were for the token now at ``before``, the others for those in
        front of it.
        """
        logp, entropies = token_statistics(logits)
        targets = torch.zeros(logits.shape[:2], dtype=torch.long)
        spans = [slice(end + 1 - n, min(end + 1, len(s.ids))) for s, end, n in zip(part, before, wanted)]
        for row, s, span, n in zip(targets, part, spans, wanted):
            ids = s.ids[span]  # the last distribution may have been for nothing: a silent call
            row[-n : len(ids) - n or None] = torch.tensor(ids, dtype=torch.long)
        chosen = logp.gather(-1, targets.to(logp.device)[..., None])[..., 0]
        recorded = {"logprobs": chosen.tolist(), "entropies": entropies.tolist()}
        if self._relay.alternatives:
            recorded["alternatives"] = [[self._alternatives(p) for p in r[-n:]] for r, n in zip(logp, wanted)]
        for name, values in recorded.items():
            for row, s, span, n in zip(values, part, spans, wanted):
                s.statistics[name][span] = row[-n:][: span.stop - span.start]

    def _alternatives(self, logp: torch.Tensor) -> dict[str, float]:
        """The likeliest texts with their probabilities, and of a call that begins; the end of the answer is no text."""
        text, end_ids, likely = self._engine.text, self._engine.end_ids, dict[str, float]()
        top = logp.topk(min(self._relay.alternatives, len(logp)))
        for token, value in zip(top.indices.tolist(), top.values.exp().tolist()):
            known = token < len(text.bytes) and token not in end_ids
            piece = text.bytes[token].decode(errors="replace") if known else ""
            likely[piece] = round(likely.get(piece, 0.0) + value, 4)
        begins = torch.from_numpy(text.call_begins).to(logp.device)
        return likely | {OPEN: round(logp[begins].exp().sum().item(), 4)}
