"""Policies: who calls when the student does not, or before it can.

A call_rule looks at a moment of a row, before the student's next token is drawn, and may return an n: then the command
``<call>n</call>`` is written as if the student had written it, and the relay goes on as always. An untrained student
never calls by itself; with a call_rule it takes part in a relay all the same.

No call rule is asked where calls are forbidden, where the caps leave nothing to grant, inside a call that the student
is writing itself, or directly behind a call that got no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class StepState:
    """What a call_rule may look at.

    position: in the completion. since: tokens since the last closed call and its answer, or since the beginning. calls:
    closed calls so far, answered or not. entropy: of the student's next token in nats, where the call_rule uses it.
    seed: the sequence's, for rules that draw. logits (V,): of the student's next token. hidden (H,): the student's last
    hidden state, for rules with ``uses_hidden``.
    """

    position: int
    since: int
    calls: int
    entropy: float | None
    seed: int = 0
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


class CallRule(Protocol):
    """Any function will do. One with ``uses_entropy = True`` is given the entropy of the next token."""

    def __call__(self, moment: StepState) -> int | None: ...


@dataclass(frozen=True, slots=True)
class CallAt:
    """Call at given completion positions: ``CallAt({12: 4})`` asks for 4 tokens before the 13th.

    Positions count the command's and the teacher's tokens too; one that a hand-off jumps over is passed by.
    """

    calls: Mapping[int, int]
    uses_entropy = False

    def __call__(self, moment: StepState) -> int | None:
        return self.calls.get(moment.position)


@dataclass(frozen=True, slots=True)
class CallEvery:
    """Call for ``n`` tokens wherever ``every`` tokens have gone by since the last call."""

    every: int
    n: int
    uses_entropy = False

    def __call__(self, moment: StepState) -> int | None:
        return self.n if moment.since >= self.every else None


@dataclass(frozen=True, slots=True)
class CallWhenUnsure:
    """Call for ``n`` tokens where the student's entropy is above ``threshold`` nats: a relay without any training.

    It is silent once a row has ``most`` calls, since a student far from what it knows is unsure of everything; calls
    that the student writes itself count, and only ``RelayConfig.max_calls`` can refuse them.

    >>> CallWhenUnsure(1.0, 4)(StepState(position=9, since=9, calls=0, entropy=1.5))
    4
    """

    threshold: float
    n: int
    most: int | None = None
    uses_entropy = True

    def __call__(self, moment: StepState) -> int | None:
        full = self.most is not None and moment.calls >= self.most
        assert moment.entropy is not None
        return self.n if moment.entropy > self.threshold and not full else None
