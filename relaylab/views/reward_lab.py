"""The reward lab: edit a group of rollouts and see the rewards and advantages of every scheme at once.

The numbers are those of ``training/rewards.py``. The page computes them by a port of its few lines
(``reward_lab.js``), since it works without a kernel; a test holds the port against the original. A rollout here is a
made-up one: counts of tokens, with the student's own spread evenly around its calls.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace
from relaylab.training.rewards import Ratio, advantages, kind_of, ratios, score
from relaylab.views.frontend import fragment
from relaylab.views.theme import Html

MOST = 8  # rollouts of a group
LONGEST = 10_000  # tokens of one sort in a rollout, and of a call that nobody answers
# By the name that the page shows: the scheme of ``score`` and its options. The released code has neither.
SCHEMES = {
    "outcome": ("outcome", {}),
    "simple": ("simple", {}),
    "difficulty-aware": ("difficulty_aware", {"bonus": 1.5, "penalty": -1.0, "explore": 1.0}),
    "no independence bonus": ("difficulty_aware", {"bonus": 1.0, "penalty": -1.0, "explore": 1.0}),
    "no exploration": ("difficulty_aware", {"bonus": 1.5, "penalty": -1.0, "explore": 0.0}),
    "released code": ("released", {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout in counts: the student's ``own`` tokens (commands not among them), the ``teacher``'s, the answered
    ``calls`` that these came by, and ``ignored`` calls, at the end, which nobody answered.

    >>> Rollout(correct=True, own=4, teacher=3, calls=2).trace(command_tokens=1).source
    'sctscttss'

    Raises ValueError for a count below 0 or above 10,000, and where calls and the teacher's tokens do not fit together.
    """

    correct: bool
    own: int
    teacher: int = 0
    calls: int = 0
    ignored: int = 0

    def __post_init__(self) -> None:
        for name in ("own", "teacher", "calls", "ignored"):
            if not 0 <= (value := getattr(self, name)) <= LONGEST:
                raise ValueError(f"{name} is {value}; it must be in 0 .. {LONGEST}")
        if self.calls > self.teacher or (self.teacher and not self.calls):
            raise ValueError(
                f"{self.teacher} teacher tokens of {self.calls} calls: each answered call delivers at least one token, "
                "and nothing is delivered without a call; calls that nobody answers are `ignored`"
            )

    def trace(self, *, command_tokens: int = 6, asked: int = 8) -> Trace:
        """The rollout as a graded trace. ``asked``: tokens asked for by each ignored call."""
        source, calls = "", []
        for k in range(self.calls + self.ignored):
            answered = k < self.calls
            source += STUDENT * (_share(self.own, k, self.calls) if answered or k == self.calls else 0)
            n = _share(self.teacher, k, self.calls - 1) if answered else 0
            start = len(source)
            source += COMMAND * command_tokens + TEACHER * n
            status = "answered" if answered else "refused"
            calls.append(Call(start, start + command_tokens, n if answered else asked, n, n, n, status))
        if not self.ignored:
            source += STUDENT * _share(self.own, self.calls, self.calls)
        pieces = ["" if s == COMMAND else "x" for s in source]
        return Trace("", [0], [0] * len(source), source, pieces, calls, correct=self.correct)


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
    asked: int = 8,
    batch_solved: bool = False,
) -> pd.DataFrame:
    """Rewards and advantages of a group under every scheme; one row a scheme and rollout (from 1).

    ratio: how rho is measured, see ``training.rewards``; the released code has its own. batch_solved: another prompt of
    the batch was solved alone, which only the released code looks at. Raises ValueError for an unknown ratio and for a
    group that does not have 1 to 8 rollouts.

    >>> table = reward_table([Rollout(correct=True, own=8, teacher=2, calls=1), Rollout(correct=False, own=10)])
    >>> table[table.scheme == "difficulty-aware"][["rollout", "rho", "reward"]].values.tolist()
    [[1.0, 0.2, 0.8], [2.0, 0.0, -1.0]]
    """
    traces = _traces(group, command_tokens, asked)
    rho = ratios(traces, ratio)
    other = [Trace("", [0], [0], STUDENT, ["x"], correct=True)]
    rows = []
    for name, (scheme, options) in SCHEMES.items():
        if scheme == "released":
            rewards = score([traces, other][: 1 + batch_solved], released_code=True)[0]
        else:
            more = {} if scheme == "outcome" else {"ratio": ratio}
            rewards = score([traces], scheme, **options, **more)[0]
        for k, (share, reward, advantage) in enumerate(zip(rho, rewards, advantages(rewards)), 1):
            rows.append({"scheme": name, "rollout": k, "rho": share, "reward": reward, "advantage": advantage})
    return pd.DataFrame(rows)


def reward_lab(
    group: Sequence[Rollout] = EXAMPLE, *, ratio: Ratio = "group", command_tokens: int = 6, asked: int = 8
) -> Html:
    """The lab, beginning with ``group``, as HTML that computes by itself. Arguments as for ``reward_table``.

    >>> reward_lab([Rollout(correct=True, own=10), Rollout(correct=False, own=10)])
    Reward lab: a solvable group of 2 rollouts. Highest advantage under outcome: rollout 1 (+0.71); under simple: ...
    """
    settings = {"ratio": ratio, "command_tokens": command_tokens, "asked": asked}
    table = reward_table(group, **settings)
    kind = kind_of(_traces(group, command_tokens, asked))
    best = table.loc[table.groupby("scheme", sort=False)["advantage"].idxmax()]
    told = "; ".join(f"under {r.scheme}: rollout {r.rollout} ({r.advantage:+.2f})" for r in best.itertuples())
    text = f"Reward lab: a {kind} group of {len(group)} rollouts. Highest advantage {told}."
    words = [f"<p>{html.escape(text)} rho is measured by: {ratio}.</p>"]
    for k, (rollout, rows) in enumerate(zip(group, (r for _, r in table.groupby("rollout"))), 1):
        paid = "; ".join(f"{r.scheme} {r.reward:.2f}, advantage {r.advantage:+.2f}" for r in rows.itertuples())
        words.append(f"<p>Rollout {k}, {_describe(rollout)}, rho {rows.rho.iloc[0]:.2f}. {paid}.</p>")
    data = {
        "group": [asdict(r) for r in group],
        "settings": settings | {"batch_solved": False},
        "schemes": [{"name": name, "scheme": scheme, **options} for name, (scheme, options) in SCHEMES.items()],
        "most": MOST,
        "longest": LONGEST,
    }
    return Html(fragment("reward_lab", data, label=text, words="".join(words)), text)


def _traces(group: Sequence[Rollout], command_tokens: int, asked: int) -> list[Trace]:
    if not 1 <= len(group) <= MOST:
        raise ValueError(f"the group has {len(group)} rollouts; the lab takes 1 to {MOST}")
    if min(command_tokens, asked) < 1 or max(command_tokens, asked) > LONGEST:
        raise ValueError(f"command_tokens and asked are {command_tokens} and {asked}; they must be in 1 .. {LONGEST}")
    return [rollout.trace(command_tokens=command_tokens, asked=asked) for rollout in group]


def _share(tokens: int, k: int, last: int) -> int:
    """The tokens of part k of 0 .. last when they are spread evenly."""
    return tokens * (k + 1) // (last + 1) - tokens * k // (last + 1)


def _describe(rollout: Rollout) -> str:
    return (
        f"{'right' if rollout.correct else 'wrong'}, {rollout.own} own tokens, {rollout.teacher} of the teacher in "
        f"{rollout.calls} answered calls, {rollout.ignored} calls that nobody answered"
    )
