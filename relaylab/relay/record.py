"""What a relay records beside its tokens: log-probabilities, entropies, and on request the likeliest tokens."""

from __future__ import annotations

import torch

from relaylab.call_tag import OPEN
from relaylab.engine.engine import Engine
from relaylab.engine.sampling import token_statistics
from relaylab.relay.sequence import Sequence


def record_statistics(
    part: list[Sequence], before: list[int], wanted: list[int], logits: torch.Tensor, *, student: Engine, most: int
) -> None:
    """Log-probabilities and entropies of the tokens that the last ``wanted`` distributions of each sequence were for.

    logits (B, K, V) are right-aligned: the last ones were for the token now at ``before``, the others for those in
    front of it. With ``most``, so many of the likeliest tokens are kept, too.
    """
    logp, entropy = token_statistics(logits)
    targets = torch.zeros(logits.shape[:2], dtype=torch.long)
    spans = [slice(end + 1 - n, min(end + 1, len(s.ids))) for s, end, n in zip(part, before, wanted)]
    for i, (s, span, n) in enumerate(zip(part, spans, wanted)):  # the last may have been for nothing: a silent call
        ids = s.ids[span]
        targets[i, -n : len(ids) - n or None] = torch.tensor(ids, dtype=torch.long)
    chosen = logp.gather(-1, targets.to(logp.device)[..., None])[..., 0].tolist()
    for i, (s, span, n) in enumerate(zip(part, spans, wanted)):
        many = span.stop - span.start
        assert s.logprobs is not None
        assert s.entropies is not None
        s.logprobs[span] = chosen[i][-n:][:many]
        s.entropies[span] = entropy[i, -n:].tolist()[:many]
        if s.alternatives is not None:
            s.alternatives[span] = [_alternatives(row, student, most) for row in logp[i, -n:][:many]]


def _alternatives(logp: torch.Tensor, student: Engine, most: int) -> dict[str, float]:
    """The likeliest texts with their probabilities, and of a call that begins; the end of the answer is no text."""
    likely: dict[str, float] = {}
    top = logp.topk(min(most, len(logp)))
    for token, value in zip(top.indices.tolist(), top.values.exp().tolist()):
        known = token < len(student.text.bytes) and token not in student.end_ids
        text = student.text.bytes[token].decode(errors="replace") if known else ""
        likely[text] = round(likely.get(text, 0.0) + value, 4)
    begins = torch.from_numpy(student.text.call_begins).to(logp.device)
    return likely | {OPEN: round(logp[begins].exp().sum().item(), 4)}
