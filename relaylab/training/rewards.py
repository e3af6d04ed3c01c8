"""Rewards of stage 2: one prompt's rollouts in, one number each out (method: stage 2).

A rollout is a graded ``Trace``. ``simple`` is r = 1[correct] - rho. ``difficulty_aware`` first decides what kind of
problem the group shows it to be:

    group      rule                              correct, alone  correct, helped  wrong, alone  wrong, helped
    solvable   a rollout is correct, rho = 0     ``bonus``       1 - rho          0             0
    dependent  the correct ones were all helped  -               1 - rho          ``penalty``   0
    unsolvable none is correct                   -               -                0             rho

*Helped* means that teacher tokens were delivered (rho > 0). A call without an answer is no help. The ablations of
table 3 are ``bonus=1`` (no independence bonus) and ``exploration_cap=0`` (no exploration reward).

Three ways to measure rho, the teacher's share:

- ``paper``: teacher tokens over all tokens of the response. Each other token makes it smaller, a stray ``<call>`` most
  easily. A student in training finds that out and pads.
- ``content``: tokens of commands and tags do not count (``Trace.content_ratio``). Other padding still dilutes.
- ``group``: teacher tokens over the mean content length of the *other* rollouts of the group, at most 1. A rollout
  writes nothing of its own denominator, so it cannot dilute. The default in training.

``cost_aware`` is r = 1[correct] - weight x cost / cost of the teacher alone, as in PyroDash (2607.20327). The cost
counts what both models read and write (``cost.py``).

``score(..., released_code=True)`` is what the authors' released code computes instead, for a lesson.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from relaylab.trace import STATISTICS, STUDENT, TEACHER, Trace

Ratio = Literal["paper", "content", "group"]
Kind = Literal["solvable", "dependent", "unsolvable"]
Group = Sequence[Trace]


def helped(trace: Trace) -> bool:
    """Whether a teacher wrote part of the trace."""
    return TEACHER in trace.source


def kind_of(group: Group) -> Kind:
    """What a prompt's rollouts show the problem to be, for the present student.

    >>> kind_of([Trace("q", [1], [5], "s", ["x"], correct=True), Trace("q", [1], [6], "t", ["y"], correct=True)])
    'solvable'
    """
    return _kind([helped(t) for right, t in zip(outcome(group), group) if right])


def _kind(correct: Sequence[bool]) -> Kind:
    """The rule of the table; for each correct rollout, whether it was helped."""
    return "unsolvable" if not correct else "dependent" if all(correct) else "solvable"


def ratios(group: Group, ratio: Ratio = "paper") -> list[float]:
    """rho of every rollout, in [0, 1].

    The ``group`` ratio of a rollout without companions, or whose companions have no content, is its ``content`` ratio.

    Raises:
        ValueError: for an unknown ratio.

    >>> a = Trace("q", [1], [5, 6], "st", ["x", "y"], correct=True)
    >>> b = Trace("q", [1], [5, 6, 7, 8], "ssss", ["x", "y", "z", "."], correct=True)
    >>> ratios([a, b]), ratios([a, b], "group")
    ([0.5, 0.0], [0.25, 0.0])
    """
    if ratio == "paper":
        return [t.call_ratio for t in group]
    if ratio == "content":
        return [t.content_ratio for t in group]
    if ratio != "group":
        raise ValueError(f"ratio is {ratio!r}; it must be 'paper', 'content' or 'group'")
    lengths = [len(t.completion_ids) - t.tag_tokens for t in group]
    total, others = sum(lengths), len(group) - 1
    return [
        min(1.0, t.count(TEACHER) * others / (total - own)) if total > own else t.content_ratio
        for t, own in zip(group, lengths)
    ]


def outcome(group: Group) -> list[float]:
    """r = 1[correct]: plain GRPO, without a teacher or blind to its cost.

    Raises:
        ValueError: for a trace that is not graded.
    """
    if ungraded := [t.id for t in group if t.correct is None]:
        raise ValueError(f"trace {ungraded[0]!r} is not graded; a reward needs to know whether it is right")
    return [float(bool(t.correct)) for t in group]


def simple(group: Group, *, ratio: Ratio = "paper") -> list[float]:
    """r = 1[correct] - rho (method: stage 2, simple reward)."""
    return [right - rho for right, rho in zip(outcome(group), ratios(group, ratio))]


def cost_aware(
    group: Group, *, cost_weight: float = 0.1, teacher_size: float | Mapping[str, float] = 10.0
) -> list[float]:
    """r = 1[correct] - cost_weight x cost / cost of the teacher alone, in FLOPs.

    The teacher alone writes answers as long as those of the *other* rollouts of the group, on average. So a rollout
    cannot make its cost look smaller by its own length. Without companions its own length counts.

    Args:
        group: the rollouts of one prompt.
        cost_weight: what an answer of the teacher alone costs, in right answers.
        teacher_size: parameters of the teacher, in those of the student. Of several teachers, by name; the largest one
            is the teacher alone.

    >>> from relaylab.trace import Call
    >>> alone = Trace("q", [1], [5, 6], "ss", ["x", "y"], correct=True)
    >>> called = Trace("q", [1], [5, 6], "st", ["x", "y"], [Call(1, 1, 1, 1, 1, 1)], correct=True)
    >>> [round(r, 2) for r in cost_aware([alone, called])]
    [0.99, 0.89]
    """
    from relaylab.cost import ModelPrices, Prices, alone, costs, usage  # pandas is slow to import
    from relaylab.cost_by_teacher import costs_by_teacher

    sizes = teacher_size if isinstance(teacher_size, Mapping) else {}
    models = {name: ModelPrices(parameters=size) for name, size in sizes.items()}
    largest = max(sizes.values()) if isinstance(teacher_size, Mapping) else teacher_size
    prices = Prices(student=ModelPrices(parameters=1), teacher=ModelPrices(parameters=largest))
    used, others = usage(group), len(group) - 1
    own = (costs_by_teacher(group, prices, models) if models else costs(used, prices))["flops"].to_numpy()
    whole = costs(alone(used, "teacher"), prices)["flops"].to_numpy()
    whole = (whole.sum() - whole) / others if others else whole
    return [right - cost_weight * float(share) for right, share in zip(outcome(group), own / whole)]


def difficulty_aware(
    group: Group,
    *,
    ratio: Ratio = "paper",
    bonus: float = 1.5,
    penalty: float = -1.0,
    exploration_cap: float = 1.0,
    rho_weight: float = 1.0,
) -> list[float]:
    """The difficulty-aware reward of one prompt's rollouts: the table above.

    Args:
        group: the rollouts of one prompt.
        ratio: how rho is measured.
        bonus: of a right answer without help in a solvable group.
        penalty: of a wrong answer without help in a dependent group.
        exploration_cap: the most that a wrong, helped rollout of an unsolvable group gets. 1 is the paper's rho, where
            a longer call pays more; 0.1 pays for the call and not for its length; 0 pays nothing.
        rho_weight: of rho in the reward of a right, helped rollout. Above 1, tokens cost more than in the paper.

    Raises:
        ValueError: for a trace that is not graded.

    >>> alone = Trace("q", [1], [5, 6], "ss", ["x", "y"], correct=False)
    >>> called = Trace("q", [1], [5, 6], "st", ["x", "y"], correct=True)
    >>> difficulty_aware([alone, called])
    [-1.0, 0.5]
    """
    kind = kind_of(group)
    shape = {"bonus": bonus, "penalty": penalty, "exploration_cap": exploration_cap, "rho_weight": rho_weight}
    return [_cell(kind, t.correct, helped(t), rho, **shape) for t, rho in zip(group, ratios(group, ratio))]


def _cell(
    kind: Kind, correct: bool | None, helped: bool, rho: float, *,
    bonus: float = 1.5, penalty: float = -1.0, exploration_cap: float = 1.0, rho_weight: float = 1.0,
) -> float:  # fmt: skip
    """The cell of the table that one rollout is in."""
    if correct:
        return 1 - rho_weight * rho if helped else bonus
    if kind == "dependent" and not helped:
        return penalty
    return min(rho, exploration_cap) if kind == "unsolvable" else 0.0


def advantages(rewards: Sequence[float], *, eps: float = 1e-4) -> list[float]:
    """(r - mean) / (std + eps) over one prompt's rollouts, with the sample standard deviation, as TRL computes it.

    >>> [round(a, 3) for a in advantages([1.5, 0.0, 0.0, 0.0])]
    [1.5, -0.5, -0.5, -0.5]
    """
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards) - 1)) ** 0.5
    return [(r - mean) / (std + eps) for r in rewards]


def call_credits(
    group: list[Trace], forks: Sequence[Group], reward: Callable[[list[list[Trace]]], list[list[float]]]
) -> list[list[float]]:
    """What each call brought: the reward of its rollout less that of a fork in which this call is forbidden.

    The fork is scored in its rollout's place among the same others. So its reward is what the rollout would have got
    without the call, under every scheme: the kind of the group, rho and the cost follow from it. A fork has the random
    numbers of its rollout and may call elsewhere, so a call is measured against what the student does without it.

    Args:
        group: the rollouts of one prompt.
        forks: of each rollout, one a call.
        reward: ``score`` with its options.

    >>> called = Trace("q", [1], [5, 6], "st", ["x", "y"], correct=True)
    >>> wrong = Trace("q", [1], [5, 6], "ss", ["x", "z"], correct=False)
    >>> call_credits([called, wrong], [[wrong], []], score)  # 1 - rho, and 0 in a group where nothing is right
    [[0.5], []]
    """
    own = reward([group])[0]
    return [
        [own[i] - rewards[i] for rewards in reward([[*group[:i], fork, *group[i + 1 :]] for fork in some])]
        for i, some in enumerate(forks)
    ]


# What the released code does -----------------------------------------------------------------------------------------


def rolled_back(trace: Trace) -> Trace:
    """The trace as the released code trains on it: each student turn that ended in an answered call is gone.

    The executed command goes with its turn, so a helped answer looks unaided. Teacher tokens look like the student's
    own, since their mask is commented out there.

    >>> from relaylab.trace import Call
    >>> t = Trace("q", [1], [1, 2, 3, 4, 5], "sccts", ["a", "<call>1", "</call>", "b", "c"], [Call(1, 3, 1, 1, 1, 1)])
    >>> rolled_back(t).text, rolled_back(t).source
    ('bc', 'ss')
    """
    gone: set[int] = set()
    begin = 0
    for call in sorted(trace.answered, key=lambda c: c.start):
        gone.update(range(begin, call.end))
        begin = call.end + call.delivered
    kept = [i for i in range(len(trace.completion_ids)) if i not in gone]
    return replace(
        trace,
        completion_ids=[trace.completion_ids[i] for i in kept],
        source=STUDENT * len(kept),
        pieces=[trace.pieces[i] for i in kept],
        calls=[],
        **STATISTICS,
    )


def _released(groups: Sequence[Group]) -> list[list[float]]:
    """The difficulty-aware reward as the released code computes it (method, last section, points 1, 2 and 4).

    The kind is that of the whole batch. An executed command is gone with its turn, so only calls without an answer are
    seen. rho is the *requested* n over the length of what is left.
    """

    def visible_n(trace: Trace) -> int:
        """Tokens that the calls without an answer requested; their commands stay in the text."""
        return sum(c.requested or 0 for c in trace.calls if c.status != "answered")

    def reward(trace: Trace) -> float:
        n = visible_n(trace)
        rho = min(1.0, n / max(1, len(rolled_back(trace).completion_ids)))
        return _cell(kind, trace.correct, n > 0, rho)

    everything = [t for group in groups for t in group]
    kind: Kind = _kind([visible_n(t) > 0 for right, t in zip(outcome(everything), everything) if right])
    return [[reward(trace) for trace in group] for group in groups]


# What trainers call --------------------------------------------------------------------------------------------------

SCHEMES: dict[str, Callable[..., list[float]]] = {
    scheme.__name__: scheme for scheme in (outcome, simple, cost_aware, difficulty_aware)
}


def score(
    groups: Sequence[Group], scheme: str = "difficulty_aware", *, released_code: bool = False, **options: Any
) -> list[list[float]]:
    """The rewards of a batch of prompts, group by group.

    Args:
        groups: the rollouts of each prompt.
        scheme: a name in ``SCHEMES``.
        released_code: the difficulty-aware reward as the authors' code computes it; it has no options.
        options: keywords of the scheme.

    Raises:
        ValueError: for an unknown scheme, and for options with ``released_code``.

    >>> a = Trace("q", [1], [5, 6], "st", ["x", "y"], correct=True)
    >>> score([[a], [a]], "simple"), score([[a]], released_code=True)
    ([[0.5], [0.5]], [[1.5]])
    """
    if released_code:
        if scheme != "difficulty_aware" or options:
            raise ValueError("released_code is the difficulty-aware reward of the authors' code; it takes no options")
        return _released(groups)
    if scheme not in SCHEMES:
        raise ValueError(f"no reward {scheme!r}; there are {', '.join(SCHEMES)}")
    return [SCHEMES[scheme](group, **options) for group in groups]
