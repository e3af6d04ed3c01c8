"""The reward lab: edit a group of rollouts and see the rewards and advantages of every scheme at once.

The numbers are those of ``training/rewards.py``. The page works without a kernel, so it computes them by a port
(``reward_lab.js``); a test compares the two. A rollout here is made up: counts of tokens, with the student's own tokens
spread evenly around its calls.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from relaylab.cost import even_parts, even_trace
from relaylab.evaluation.table import each_row
from relaylab.trace import STUDENT, Trace
from relaylab.training.rewards import Ratio, advantages, kind_of, ratios, score
from relaylab.views.theme import Html
from relaylab.views.widget import static_view

MAX_ROLLOUTS = 8
MAX_TOKENS = 10_000  # of one sort in a rollout, and requested by a call that nobody answers
TOKENS = {"command_tokens": 6, "requested": 8}  # of a command, and requested by each ignored call
CAP = "exploration_cap"  # the option of ``score`` that caps what an unsolvable group earns by calling
# By the name on the page: the scheme of ``score`` and its options.
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "outcome": ("outcome", {}),
    "simple": ("simple", {}),
    "difficulty-aware": ("difficulty_aware", {"bonus": 1.5, "penalty": -1.0, CAP: 1.0}),
    "no independence bonus": ("difficulty_aware", {"bonus": 1.0, "penalty": -1.0, CAP: 1.0}),
    "no exploration": ("difficulty_aware", {"bonus": 1.5, "penalty": -1.0, CAP: 0.0}),
    "released code": ("released", {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout in counts.

    Args:
        correct: Whether its answer is right.
        own: Tokens of the student, without commands.
        teacher: Tokens of the teacher.
        calls: Answered calls.
        ignored: Calls at the end that nobody answered.

    Raises:
        ValueError: A count is below 0 or above 10,000, or the calls and the teacher's tokens do not fit together.

    >>> Rollout(correct=True, own=4, teacher=3, calls=2).trace(command_tokens=1).source
    'sctscttss'
    """

    correct: bool
    own: int
    teacher: int = 0
    calls: int = 0
    ignored: int = 0

    def __post_init__(self) -> None:
        for name in ("own", "teacher", "calls", "ignored"):
            if not 0 <= (value := getattr(self, name)) <= MAX_TOKENS:
                raise ValueError(f"{name} is {value}; it must be in 0 .. {MAX_TOKENS}")
        if self.calls > self.teacher or (self.teacher and not self.calls):
            raise ValueError(
                f"{self.teacher} teacher tokens of {self.calls} calls: each answered call delivers at least one token, "
                "and nothing is delivered without a call; calls that nobody answers are `ignored`"
            )

    def trace(self, *, command_tokens: int = 6, requested: int = 8) -> Trace:
        """The rollout as a graded trace. Each ignored call requests ``requested`` tokens."""
        delivered = even_parts(self.teacher, self.calls) if self.calls else []
        made = {"prompt": 1, "command_tokens": command_tokens, "ignored": self.ignored, "requested": requested}
        return replace(even_trace(self.own, delivered, **made), correct=self.correct)


EXAMPLE = (
    Rollout(correct=True, own=70),
    Rollout(correct=True, own=68, teacher=4, calls=1),
    Rollout(correct=True, own=40, teacher=35, calls=1),
    Rollout(correct=True, own=70, teacher=6, calls=2, ignored=3),
    Rollout(correct=False, own=72),
    Rollout(correct=False, own=75, ignored=1),
    Rollout(correct=False, own=60, teacher=10, calls=1),
    Rollout(correct=False, own=30, teacher=40, calls=2),
)


def reward_table(
    group: Sequence[Rollout],
    *,
    ratio: Ratio = "group",
    command_tokens: int = 6,
    requested: int = 8,
    batch_solved: bool = False,
) -> pd.DataFrame:
    """Rewards and advantages of a group under every scheme; one row per scheme and rollout (numbered from 1).

    Args:
        group: 1 to 8 rollouts.
        ratio: How rho is measured, see ``training.rewards``; the released code has its own way.
        command_tokens: Tokens of one command.
        requested: Tokens that each ignored call requests.
        batch_solved: Another prompt of the batch was solved alone. Only the released code looks at it.

    Raises:
        ValueError: An unknown ratio, or a group of another size.

    >>> table = reward_table([Rollout(correct=True, own=8, teacher=2, calls=1), Rollout(correct=False, own=10)])
    >>> table[table.scheme == "difficulty-aware"][["rollout", "rho", "reward"]].values.tolist()
    [[1.0, 0.2, 0.8], [2.0, 0.0, -1.0]]
    """
    traces = _traces(group, command_tokens, requested)
    rho = ratios(traces, ratio)
    other = [Trace("", [0], [0], STUDENT, ["x"], correct=True)]
    rows = []
    for name, (scheme, options) in SCHEMES.items():
        if scheme == "released":
            rewards = score([traces, other][: 1 + batch_solved], released_code=True)[0]
        else:
            measured: dict[str, Any] = {} if scheme == "outcome" else {"ratio": ratio}
            rewards = score([traces], scheme, **options, **measured)[0]
        for k, (share, reward, advantage) in enumerate(zip(rho, rewards, advantages(rewards)), 1):
            rows.append({"scheme": name, "rollout": k, "rho": share, "reward": reward, "advantage": advantage})
    return pd.DataFrame(rows)


def reward_lab(group: Sequence[Rollout] = EXAMPLE) -> Html:
    """The lab, with ``group`` (1 to 8 rollouts) at the start.

    >>> reward_lab([Rollout(correct=True, own=10), Rollout(correct=False, own=10)])
    Reward lab: a solvable group of 2 rollouts. Highest advantage under outcome: rollout 1 (+0.71); under simple: ...
    """
    table, kind = reward_table(group), kind_of(_traces(group, **TOKENS))
    best = table.loc[table.groupby("scheme", sort=False)["advantage"].idxmax()]
    highest = "; ".join(f"under {r.scheme}: rollout {r.rollout} ({r.advantage:+.2f})" for r in each_row(best))
    label = f"Reward lab: a {kind} group of {len(group)} rollouts. Highest advantage {highest}."
    words = f"<p>{html.escape(label)} rho is measured by: group.</p>"
    for k, (rollout, rows) in enumerate(zip(group, (r for _, r in table.groupby("rollout"))), 1):
        paid = "; ".join(f"{r.scheme} {r.reward:.2f}, advantage {r.advantage:+.2f}" for r in each_row(rows))
        words += (
            f"<p>Rollout {k}, {'right' if rollout.correct else 'wrong'}, {rollout.own} own tokens, {rollout.teacher} "
            f"of the teacher in {rollout.calls} answered calls, {rollout.ignored} calls that nobody answered, rho "
            f"{rows.rho.iloc[0]:.2f}. {paid}.</p>"
        )
    schemes = [
        {"name": name, "scheme": scheme, "bonus": o.get("bonus"), "penalty": o.get("penalty"), "cap": o.get(CAP)}
        for name, (scheme, o) in SCHEMES.items()
    ]
    state = {"group": [asdict(r) for r in group], "schemes": schemes}
    state["settings"] = {"ratio": "group", **TOKENS, "batch_solved": False}
    state |= {"most": MAX_ROLLOUTS, "longest": MAX_TOKENS}
    return static_view("reward_lab", state, label=label, words=words)


def _traces(group: Sequence[Rollout], command_tokens: int, requested: int) -> list[Trace]:
    if not 1 <= len(group) <= MAX_ROLLOUTS:
        raise ValueError(f"the group has {len(group)} rollouts; the lab takes 1 to {MAX_ROLLOUTS}")
    if min(command_tokens, requested) < 1 or max(command_tokens, requested) > MAX_TOKENS:
        raise ValueError(
            f"command_tokens and requested are {command_tokens} and {requested}; they must be in 1 .. {MAX_TOKENS}"
        )
    return [rollout.trace(command_tokens=command_tokens, requested=requested) for rollout in group]
