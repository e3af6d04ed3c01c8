"""A router for single tokens in CITER's manner: an MLP looks at the student's state and says who writes the next one.

Its labels come from the two models alone. Along an answer of the teacher that is right, the student is asked for its
own next token at every position. Where both agree the student may write. Where they differ the student goes on from its
own token to the end, alone: only if the answer is wrong then did the position need the teacher (CITER's shortcut: a
label costs rollouts only where the two differ).

What it looks at is the last hidden state. The logits are its product with the output matrix, so it is read back from
them, and the relay need not hand anything else to a policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relaylab.engine.engine import Engine
from relaylab.relay.call_rules import StepState
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.answers import grade_problem
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace


class Hidden:
    """Reads the student's last hidden state back from its logits: h with W h = logits, by least squares."""

    def __init__(self, student: Engine):
        weight = student.model.get_output_embeddings().weight.detach().float()  # (V, H)
        self.known = torch.from_numpy(student.text.known[: len(weight)]).to(weight.device)
        self.known = nn.functional.pad(self.known, (0, len(weight) - len(self.known)))
        self.inverse = torch.linalg.pinv(weight[self.known])  # (H, known V)

    def __call__(self, logits: Tensor) -> Tensor:
        """(..., V) to (..., H)."""
        return logits[..., self.known] @ self.inverse.T


@dataclass(eq=False)
class TokenRouter:
    """A policy: the teacher writes ``n`` tokens where the MLP gives more than ``threshold`` probability to needing it.

    ``positions``, ``needed`` and ``accuracy`` tell of its training: labels, the share of them that needed the teacher,
    and how many of those held back it gets right.
    """

    hidden: Hidden
    net: nn.Module
    threshold: float = 0.5
    n: int = 1
    positions: int = 0
    needed: float = 0.0
    accuracy: float = 0.0
    uses_entropy = False

    def __repr__(self) -> str:
        return f"TokenRouter(threshold={self.threshold}, n={self.n}, positions={self.positions})"

    def __call__(self, moment: StepState) -> int | None:
        return self.n if self.probability(moment.logits) > self.threshold else None

    @torch.inference_mode()
    def probability(self, logits: Tensor) -> float:
        """That the next token needs the teacher; ``logits`` (V,) are the student's."""
        return float(torch.sigmoid(self.net(self.hidden(logits)))[..., 0])


def train_token_router(
    student: Engine,
    teacher: LocalTeacher,
    problems: Sequence[Problem],
    *,
    max_tokens: int = 512,
    threshold: float = 0.5,
    n: int = 1,
    width: int = 64,
    epochs: int = 200,
    seed: int = 0,
    batch_size: int = 64,
) -> TokenRouter:
    """A router trained on ``problems``, which should be training problems.

    width: of the MLP's hidden layer. epochs: over all positions, full batch. A tenth of the problems is held back to
    measure it. Raises ValueError where the two have different tokenizers, and where the teacher solves none of them.
    """
    if student.text.fingerprint != teacher.fingerprint:
        raise ValueError("a token router compares tokens: student and teacher must have one tokenizer")
    hidden = Hidden(student)
    states, labels, groups = _labels(student, teacher, problems, hidden, max_tokens, batch_size, seed)
    held = torch.tensor([problem_seed(seed, p) % 10 == 0 for p in groups])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(states.shape[1], width), nn.GELU(), nn.Linear(width, 1)).to(states.device)
    mean, std = states[~held].mean(0), states[~held].std(0) + 1e-6
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    x, y = (states - mean) / std, labels.to(states.device).float()
    weight = (~held).to(states.device).float()
    weight = weight / weight.sum()
    for _ in range(epochs):
        loss = (nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y, reduction="none") * weight).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # the scaling goes into the first layer
        net[0].bias -= net[0].weight @ (mean / std)
        net[0].weight /= std
        right = ((net(states)[:, 0] > 0) == (y > 0.5))[held.to(states.device)].float()
    return TokenRouter(hidden, net.eval(), threshold, n, len(y), float(y.mean()), float(right.mean()))


def _labels(
    student: Engine,
    teacher: LocalTeacher,
    problems: Sequence[Problem],
    hidden: Hidden,
    max_tokens: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor, list[str]]:
    """Hidden states (positions, H), labels (positions,) and the problem of each position."""
    options = {"max_tokens": max_tokens, "batch_size": batch_size, "progress": False}
    worked = [t for t in Pair(teacher.engine, NoTeacher()).decode(problems, seed=seed, **options) if t.correct]
    if not worked:
        raise ValueError(
            f"the teacher solves none of the {len(problems)} problems; a router needs answers to learn from"
        )
    asked_of = {p.id: p for p in problems}
    states, needed, groups = list[Tensor](), list[bool](), list[str]()
    asked: list[tuple[int, Trace, int]] = []  # where the two differ: the label's place, the answer, the token's place
    for trace in worked:
        row = student.open(trace.prompt_ids + trace.completion_ids[:-1])
        logits = student.forward([row], positions=len(trace.completion_ids))[0]  # (T, V)
        student.close(row)
        states.append(hidden(logits))
        own = logits.argmax(-1).tolist()
        asked += [(len(needed) + i, trace, i) for i, (a, b) in enumerate(zip(own, trace.completion_ids)) if a != b]
        needed += [False] * len(own)
        groups += [trace.id] * len(own)
    # Greedy, a fork's next token is the student's own.
    forks = Relay(student, NoTeacher(), config=RelayConfig(max_tokens=max_tokens), batch_size=batch_size).forks(
        [trace for _, trace, _ in asked], [at for _, _, at in asked]
    )
    for _ in forks:
        pass
    for (place, trace, _), alone in zip(asked, forks.traces):
        needed[place] = not grade_problem(alone.teacher_view, asked_of[trace.id])
    return torch.cat(states), torch.tensor(needed), groups
