"""Call rules: who calls when the student does not, or before it can.

A call rule looks at a step, before the student's next token is drawn, and may return an n. Then the command
``<call>n</call>`` is written as if the student had written it, and the relay goes on as always. An untrained student
never calls by itself; with a call rule it takes part in a relay all the same.

No call rule is asked where calls are forbidden, where the caps leave nothing to grant, inside a call that the student
is writing itself, or directly after a call that got no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class StepState:
    """What a call rule may look at.

    Args:
        position: in the completion.
        since: tokens since the last closed call and its answer, or since the beginning.
        calls: closed calls so far, answered or not.
        entropy: of the student's next token in nats, for rules with ``uses_entropy``.
        seed: the sequence's, for rules that draw.
        logits: (V,), of the student's next token.
        hidden: (H,), the student's last hidden state, for rules with ``uses_hidden``.
        line: the text of the present line so far; empty at its beginning.
    """

    position: int
    since: int
    calls: int
    entropy: float | None
    seed: int = 0
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    line: str = ""

    @property
    def margin(self) -> float:
        """The largest probability of the student's next token less the second largest."""
        assert self.logits is not None
        first, second = self.logits.float().softmax(-1).topk(2).values.tolist()
        return first - second


Asked = int | tuple[int, str]  # n tokens; of several teachers, by the one with this name


class CallRule(Protocol):
    """Any function will do. One with ``uses_entropy = True`` is given the entropy of the next token."""

    def __call__(self, state: StepState) -> Asked | None: ...


@dataclass(frozen=True, slots=True)
class CallAt:
    """Call at given completion positions: ``CallAt({12: 4})`` asks for 4 tokens before the 13th.

    Positions count the command's and the teacher's tokens too; one that a hand-off jumps over is passed by.
    """

    calls: Mapping[int, int]

    def __call__(self, state: StepState) -> int | None:
        return self.calls.get(state.position)


@dataclass(frozen=True, slots=True)
class CallEvery:
    """Call for ``n`` tokens wherever ``every`` have gone by since the last call; with ``line``, between lines only."""

    every: int
    n: int
    line: bool = False

    def __call__(self, state: StepState) -> int | None:
        return self.n if state.since >= self.every and not (self.line and state.line) else None


@dataclass(frozen=True, slots=True)
class CallWhenUnsure:
    """Call for ``n`` tokens where the student is unsure of its next token: a relay without any training.

    Args:
        threshold: call where the entropy (nats) is above it; with ``margin``, where the margin is below it.
        n: tokens of a call.
        most: no more calls than these; calls that the student writes itself count.
        line: look at the first token of each line only, as GlimpRouter does at the first token of a step.
        margin: look at the margin of the two most probable tokens instead of the entropy.

    >>> CallWhenUnsure(1.0, 4)(StepState(position=9, since=9, calls=0, entropy=1.5))
    4
    """

    threshold: float
    n: int
    most: int | None = None
    line: bool = False
    margin: bool = False
    uses_entropy = True

    def __call__(self, state: StepState) -> int | None:
        if (self.most is not None and state.calls >= self.most) or (self.line and state.line):
            return None
        if self.margin:
            return self.n if state.margin < self.threshold else None
        assert state.entropy is not None
        return self.n if state.entropy > self.threshold else None
