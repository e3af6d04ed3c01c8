"""A router for single tokens in CITER's manner: an MLP on the student's hidden state says who writes the next token.

Labels come from the two models alone. 1) The teacher answers each problem; right answers are kept. 2) At every position
of such an answer the student names its own next token. Where both agree, the student may write. 3) Where they differ,
the student goes on from its own token to the end, alone. The position needed the teacher if that answer is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from relaylab.engine.engine import Engine
from relaylab.files import plain, write_whole
from relaylab.relay.call_rules import StepState
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.pair import Pair, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.sequence import Done
from relaylab.relay.teachers import NoTeacher
from relaylab.tasks.grading import grade_problem
from relaylab.tasks.suites import Problem


@dataclass(eq=False)
class TokenRouter:
    """A call rule: the teacher writes ``n`` tokens if the MLP's probability of needing it is above ``threshold``.

    It sees the student's last hidden state and the ``top`` largest logits. Of its training: ``positions`` with a label,
    the share that ``needed`` the teacher, the held-back ``accuracy``, and the probabilities of those that it ``needs``.
    """

    net: nn.Module
    threshold: float = 0.5
    n: int = 1
    positions: int = 0
    needed: float = 0.0
    accuracy: float = 0.0
    top: int = 0
    needs: list[float] = field(default_factory=list, repr=False)
    uses_entropy = False
    uses_hidden = True

    def __repr__(self) -> str:
        return f"TokenRouter(threshold={self.threshold}, n={self.n}, positions={self.positions})"

    def __call__(self, state: StepState) -> int | None:
        assert state.hidden is not None
        assert state.logits is not None
        return self.n if float(self.probability(state.hidden, state.logits)) > self.threshold else None

    @torch.inference_mode()
    def probability(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """That the next token needs the teacher, of last hidden states (..., H) and logits (..., V)."""
        return torch.sigmoid(self.net(_features(hidden, logits, self.top)))[..., 0]

    def threshold_for(self, recall: float) -> float:
        """The threshold that this share of the positions which need the teacher lie above."""
        return float(np.quantile(self.needs, 1 - recall, method="lower")) * (1 - 1e-6) if self.needs else 1.0


def train_token_router(
    student: Engine, teacher: LocalTeacher, problems: Sequence[Problem], *, max_tokens: int = 512, width: int = 64,
    top: int = 0, seed: int = 0, batch_size: int = 64, progress: bool = True,
) -> TokenRouter:  # fmt: skip
    """Train a router on problems, which should be training problems.

    Args:
        student: whose hidden states it reads.
        teacher: with the student's tokenizer.
        problems: a tenth of them is held back to measure the router.
        max_tokens: of the answers that labels come from.
        width: of the hidden layer; 0 for a linear probe.
        top: it sees so many of the largest logits, too.
        seed: random seed.
        batch_size: rows decoded together.
        progress: show bars.

    Raises:
        ValueError: for different tokenizers, or if the teacher solves none of the problems.
    """
    if student.text.fingerprint != teacher.fingerprint:
        raise ValueError("a token router compares tokens: student and teacher must have one tokenizer")
    states, labels, groups = _labels(student, teacher, problems, max_tokens, batch_size, seed, top, progress)
    held = torch.tensor([problem_seed(seed, p) % 10 == 0 for p in groups], device=states.device)
    net = fit_probe(states, labels.float(), ~held, width=width, seed=seed)
    with torch.no_grad():
        logits = net(states)[:, 0].cpu()
    right, needs = ((logits > 0) == labels)[held.cpu()].float(), logits[labels].sigmoid().tolist()
    return TokenRouter(
        net, positions=len(labels), needed=float(labels.float().mean()), accuracy=float(right.mean()), top=top,
        needs=needs,
    )  # fmt: skip


def kept_router(folder: Path, config: dict[str, Any], train: Callable[[], TokenRouter]) -> TokenRouter:
    """The router that was trained with this ``config``, from a file in ``folder``; trained now if there is none."""
    digest = hashlib.blake2b(json.dumps(plain(config), sort_keys=True).encode(), digest_size=8).hexdigest()
    path = folder / f"router-{digest}.safetensors"
    if not path.exists():
        router = train()
        record = {f.name: getattr(router, f.name) for f in fields(router) if f.name != "net"}
        write_whole(path, save(router.net.state_dict(), {"router": json.dumps(record)}))
        return router
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        record = json.loads(file.metadata()["router"])
    net = _net(weights["0.weight"].shape[1], config["width"])
    net.load_state_dict(weights)
    return TokenRouter(net.eval(), **record)


def margins(logits: Tensor) -> np.ndarray:
    """(T,): the largest probability less the second largest, of logits (T, V)."""
    best = logits.softmax(-1).topk(2).values
    return (best[:, 0] - best[:, 1]).cpu().numpy()


def _features(hidden: Tensor, logits: Tensor, top: int) -> Tensor:
    """What a router sees: (..., H + top)."""
    largest = logits.float().topk(min(top, logits.shape[-1])).values
    return torch.cat([hidden.float(), largest], -1) if top else hidden.float()


def fit_probe(states: Tensor, labels: Tensor, train: Tensor, *, width: int = 64, seed: int = 0) -> nn.Sequential:
    """A classifier of hidden states by cross-entropy, from (positions, H) to logits (positions, 1).

    Args:
        states: (positions, H), float32.
        labels: (positions,), 0 or 1.
        train: (positions,), which ones to learn from, in full batches.
        width: of the hidden layer; 0 for a linear classifier.
        seed: of the initial weights.
    """
    device = states.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _net(states.shape[1], width).to(device)
    mean, std = states[train].mean(0), states[train].std(0) + 1e-6
    x, y = (states[train] - mean) / std, labels.to(device)[train]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(200):
        loss = nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first: Any = net[0]
    with torch.no_grad():  # fold the scaling into the first layer
        first.bias -= first.weight @ (mean / std)
        first.weight /= std
    return net.eval()


def _net(size: int, width: int) -> nn.Sequential:
    layers = [nn.Linear(size, width), nn.GELU(), nn.Linear(width, 1)] if width else [nn.Linear(size, 1)]
    return nn.Sequential(*layers)


def _labels(
    student: Engine, teacher: LocalTeacher, problems: Sequence[Problem], max_tokens: int, batch_size: int, seed: int,
    top: int, progress: bool,
) -> tuple[Tensor, Tensor, list[str]]:  # fmt: skip
    """Features (positions, H + top), labels (positions,) and the problem of each position."""
    options = {"max_tokens": max_tokens, "batch_size": batch_size, "progress": progress}
    # 1) the teacher's right answers
    worked = [t for t in Pair(teacher.engine, NoTeacher()).decode(problems, seed=seed, **options) if t.correct]
    if not worked:
        raise ValueError(f"the teacher solves none of the {len(problems)} problems; a router learns from its answers")
    # 2) the student's own next token at every position
    states, needed, groups, forks = list[Tensor](), list[bool](), list[str](), []
    for trace in worked:
        logits, hidden = student.read(trace.prompt_ids, trace.completion_ids)
        states.append(_features(hidden, logits, top))
        own = logits.argmax(-1).tolist()
        forks += [(len(needed) + i, trace, i) for i, (a, b) in enumerate(zip(own, trace.completion_ids)) if a != b]
        needed += [False] * len(own)
        groups += [trace.id] * len(own)
    # 3) greedy forks: their first token is the student's own
    relay = Relay(student, NoTeacher(), RelayConfig(max_tokens=max_tokens), batch_size=batch_size)
    stream = relay.forks([trace for _, trace, _ in forks], [at for _, _, at in forks])
    for _ in tqdm((e for e in stream if isinstance(e, Done)), "labelling", len(forks), disable=not progress):
        pass
    by_id = {p.id: p for p in problems}
    for (place, trace, _), alone in zip(forks, stream.traces, strict=True):
        needed[place] = not grade_problem(alone.teacher_view, by_id[trace.id])
    return torch.cat(states), torch.tensor(needed), groups
