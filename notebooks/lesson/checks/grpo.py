"""Lesson 03, GRPO."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean, median, pstdev, stdev, variance

from lesson.checks.function import NotYet, exercise, number, short
from relaylab.trace import COMMAND, STUDENT, TEACHER, Call, Trace
from relaylab.training.rewards import advantages, difficulty_aware, helped, kind_of, ratios, simple

Groups = list[list[Trace]]


def _rollout(source: str, correct: bool, *, more: int = 0, stray: int = 0) -> Trace:
    """A graded rollout, one letter a token. ``t`` behind ``c`` is an answered call, which asked for ``more`` tokens
    than it got; ``c`` alone is a call that nobody answered. ``stray``: stray tags behind it all."""
    calls = []
    for m in re.finditer(f"({COMMAND}+)({TEACHER}*)", source):
        n = len(m[2])
        calls.append(Call(m.start(), m.end(1), n + more or None, n, n, n, "answered" if n else "refused"))
    pieces = ["" if letter == COMMAND else "x" for letter in source] + ["<call"] * stray
    source += STUDENT * stray
    return Trace("q", [1], list(range(len(source))), source, pieces, calls, stop="end", correct=correct)


def _random_rollout(rng: random.Random) -> Trace:
    turns = [STUDENT * rng.randint(1, 9)]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        turns.append(COMMAND * rng.randint(1, 4) + TEACHER * rng.choice((0, 2, 5, 9)) + STUDENT * rng.randint(1, 6))
    return _rollout("".join(turns), rng.random() < 0.4, more=rng.choice((0, 3)), stray=rng.choice((0, 0, 4)))


def _lesson_group() -> list[Trace]:
    """The four rollouts that lesson 03 pays by hand."""
    return [
        _rollout("ssssssssss", True),
        _rollout("ssssccttss", True),
        _rollout("ssssssssss", False),
        _rollout("sccttttsss", False, more=4),
    ]


def _batches(rng: random.Random) -> Iterator[tuple[Groups]]:
    alone, called, wrong, tried = _lesson_group()
    nobody = [replace(t, correct=False) for t in _lesson_group()]
    yield ([[alone, called, wrong, tried]],)
    yield ([[wrong, called, wrong, tried]],)
    yield ([nobody],)
    yield ([[alone, called], [wrong, called, tried], nobody],)
    yield ([[_rollout("scss", True), wrong, called]],)
    for _ in range(30):
        yield ([[_random_rollout(rng) for _ in range(rng.randint(2, 8))] for _ in range(rng.randint(1, 3))],)


def _groups(rng: random.Random) -> Iterator[tuple[list[Trace]]]:
    yield (_lesson_group(),)
    yield ([_rollout("scttttttttt", True), _rollout("ss", False), _rollout("sss", False)],)
    for _ in range(30):
        yield ([_random_rollout(rng) for _ in range(rng.randint(2, 8))],)


def _reward_lists(rng: random.Random) -> Iterator[tuple[list[list[float]]]]:
    yield ([[1.5, 0.8, 0.0, 0.0]],)
    yield ([[1.5, 0.8, 0.0, 0.0], [-1.0, 0.8, -1.0, 0.0]],)
    yield ([[1.0, 1.0, 1.0]],)
    for _ in range(10):
        yield ([[rng.choice((1.5, 0.0, -1.0, rng.random())) for _ in range(8)] for _ in range(3)],)


def _show_groups(groups: Groups) -> str:
    return "; ".join(f"group {k + 1}: {_show_group(group)}" for k, group in enumerate(groups))


def _show_group(group: Sequence[Trace]) -> str:
    """Each rollout as its sources, a letter a token."""
    return ", ".join(f"{t.source} {'right' if t.correct else 'wrong'}" for t in group)


def _paid(groups: Groups, *, help_: Callable[[Trace], bool] = helped, rho: Callable[[Trace], float] | None = None):
    """The difficulty-aware rewards with another idea of help, or of its share."""
    rho, out = rho or (lambda t: t.call_ratio), []
    for group in groups:
        right = [t for t in group if t.correct]
        kind = "unsolvable" if not right else "dependent" if all(map(help_, right)) else "solvable"
        wrong = {"solvable": lambda t: 0, "dependent": lambda t: 0 if help_(t) else -1, "unsolvable": rho}[kind]
        out.append([((1 - rho(t)) if help_(t) else 1.5) if t.correct else wrong(t) for t in group])
    return out


def _flags_of_the_batch(groups: Groups) -> list[list[float]]:
    rewards = iter(difficulty_aware([t for group in groups for t in group]))
    return [[next(rewards) for _ in group] for group in groups]


def _punished(groups: Groups) -> list[list[float]]:
    return [
        [-1 if kind_of(group) == "dependent" and not t.correct else r for t, r in zip(group, difficulty_aware(group))]
        for group in groups
    ]


def _requested(trace: Trace) -> float:
    return sum(c.requested for c in trace.answered) / len(trace.completion_ids)


def _has_command(trace: Trace) -> bool:
    return COMMAND in trace.source


def _standard_of_the_batch(groups: list[list[float]]) -> list[list[float]]:
    gains = iter(advantages([r for group in groups for r in group]))
    return [[next(gains) for _ in group] for group in groups]


def _content(trace: Trace) -> int:
    return len(trace.source) - trace.tag_tokens


def _over(
    group: Sequence[Trace],
    *,
    content: Callable[[Trace], int] = _content,
    own: bool = False,
    others: int | None = None,
    capped: bool = True,
) -> list[float]:
    """The share of the teacher over the mean content of the others, with its own content among them if ``own``."""
    lengths = [content(t) for t in group]
    others = others or len(group) - (not own)
    means = [(sum(lengths) - (0 if own else length)) / others for length in lengths]
    shares = [t.count(TEACHER) / max(1, mean) for t, mean in zip(group, means)]
    return [min(1.0, share) for share in shares] if capped else shares


@number
def largest_rho(rho: float) -> bool:
    """The share from which on the helped one of [right alone, right helped, wrong, wrong] is discouraged."""
    below, above = (advantages([1.5, 1 - r, 0, 0])[1] for r in (rho - 0.01, rho + 0.01))
    if below <= 0:
        raise NotYet(f"at ρ = {rho - 0.01:.2f} it is negative already: is the bonus of 1.5 in your mean?")
    if above >= 0:
        raise NotYet(
            f"at ρ = {rho + 0.01:.2f} it is still positive: the mean is over all four, the wrong ones included"
        )
    return True


@exercise(inputs=_batches, show=_show_groups)
def my_rewards(groups):
    """The difficulty-aware rewards, rho as in the paper, group by group."""
    return [difficulty_aware(group) for group in groups]


my_rewards.mistake("Is a flag taken over the whole batch? What kind of problem it is, each group says itself.")(
    _flags_of_the_batch
)


@my_rewards.mistake("ρ counts the tokens that were delivered, not those that were asked for.")
def rho_of_requested_tokens(gs):
    return _paid(gs, rho=_requested)


@my_rewards.mistake("A command that nobody answered is no help: look for teacher tokens, not for commands.")
def any_command_is_help(gs):
    return _paid(gs, help_=_has_command)


my_rewards.mistake("Wrong, but called: that is no reason for the penalty; it is for those that did not ask.")(_punished)


@my_rewards.mistake("The paper's ρ is over all tokens, those of commands and tags included.")
def rho_of_content(gs):
    return [difficulty_aware(group, ratio="content") for group in gs]


@my_rewards.mistake("Right alone in a solvable group earns 1.5, the bonus for independence.")
def no_bonus(gs):
    return [difficulty_aware(group, bonus=1.0) for group in gs]


@my_rewards.mistake("In an unsolvable group a wrong rollout that was helped earns ρ: that is exploration.")
def no_exploration(gs):
    return [difficulty_aware(group, exploration_cap=0.0) for group in gs]


@my_rewards.mistake("A right answer that was helped pays for it: 1 − ρ.")
def help_is_free(gs):
    return [[1 if t.correct and helped(t) else r for t, r in zip(group, difficulty_aware(group))] for group in gs]


@exercise(inputs=_reward_lists, show=lambda groups: f"rewards {short(groups)}", tolerance=0.002)
def group_advantages(groups):
    """Advantages. The eps is small beside the tolerance."""
    return [advantages(group) for group in groups]


@group_advantages.mistake("The standard deviation is the sample's: divide by one less than there are rollouts.")
def population_deviation(gs):
    return [[(r - fmean(g)) / (pstdev(g) + 0.0001) for r in g] for g in gs]


group_advantages.mistake("Mean and deviation are the group's own, not those of the whole batch.")(
    _standard_of_the_batch
)


@group_advantages.mistake("Divide by the standard deviation.")
def not_divided(gs):
    return [[r - fmean(g) for r in g] for g in gs]


@group_advantages.mistake("Take the group's mean off first.")
def not_centred(gs):
    return [[r / (stdev(g) + 0.0001) for r in g] for g in gs]


@exercise(inputs=_groups, show=_show_group)
def undilutable(group):
    """Of each rollout the teacher's share that its own text cannot make smaller."""
    return ratios(group, "group")


@undilutable.mistake("Its own length is in the mean: a rollout that pads still pays less. Take the others only.")
def own_length_in_the_mean(g):
    return _over(g, own=True)


@undilutable.mistake("Tokens of commands and stray tags are no content (Trace.tag_tokens).")
def tags_are_content(g):
    return _over(g, content=lambda t: len(t.source))


@undilutable.mistake("A share is at most 1, however short the others are.")
def not_capped(g):
    return _over(g, capped=False)


@undilutable.mistake("That is over its own content, which other padding still dilutes.")
def content_ratio(g):
    return ratios(g, "content")


@undilutable.mistake("That is the paper's, over all tokens of its own.")
def paper_ratio(g):
    return ratios(g, "paper")


@exercise(
    inputs=lambda rng: ((t,) for t in (*_lesson_group(), *(_random_rollout(rng) for _ in range(20)))),
    show=lambda trace: trace.source,
)
def loss_mask(trace):
    """1 for the tokens that the loss is taken over, else 0."""
    return [int(s != TEACHER) for s in trace.source]


@loss_mask.mistake("The student wrote its commands: they are what it is to learn.")
def commands_masked(t):
    return [int(s == STUDENT) for s in t.source]


@loss_mask.mistake("The teacher's tokens are in it: the student did not write them and could not have.")
def teacher_trained(t):
    return [1 for _ in t.source]


@loss_mask.mistake("It is upside down: 1 is for the tokens that are trained.")
def upside_down(t):
    return [int(s == TEACHER) for s in t.source]


@group_advantages.mistake("Divide by the standard deviation, not by the variance.")
def by_the_variance(gs):
    return [[(r - fmean(g)) / (variance(g) + 0.0001) for r in g] for g in gs]


@group_advantages.mistake("Subtract the mean of the group, not its best reward.")
def from_the_best(gs):
    return [[(r - max(g)) / (stdev(g) + 0.0001) for r in g] for g in gs]


@group_advantages.mistake("Subtract the mean, not the median.")
def from_the_median(gs):
    return [[(r - median(g)) / (stdev(g) + 0.0001) for r in g] for g in gs]


@group_advantages.mistake("Keep the groups: a list of lists, one per group.")
def one_list(gs):
    return [a for g in gs for a in advantages(g)]


@loss_mask.mistake("The student's other tokens are trained, too: only the teacher's are masked.")
def commands_only(t):
    return [int(s == COMMAND) for s in t.source]


@my_rewards.mistake("That is the simple reward. Here the kind of the group decides what an answer earns.")
def simple_reward(gs):
    return [simple(g) for g in gs]


@my_rewards.mistake("In a dependent group a wrong rollout that was helped gets 0. It does not pay.")
def dependent_pays(gs):
    return [
        [
            -t.call_ratio if kind_of(g) == "dependent" and helped(t) and not t.correct else r
            for t, r in zip(g, difficulty_aware(g))
        ]
        for g in gs
    ]


@my_rewards.mistake(
    "A group is dependent if all its right rollouts were helped. One that was right alone makes it solvable."
)
def any_is_dependent(gs):
    return [
        [
            -1.0 if any(u.correct and helped(u) for u in g) and not t.correct and not helped(t) else r
            for t, r in zip(g, difficulty_aware(g))
        ]
        for g in gs
    ]


@my_rewards.mistake("A group without a right rollout is unsolvable. Note that all() of nothing is True.")
def nobody_is_dependent(gs):
    return [
        [float(-1 + helped(t)) if kind_of(g) == "unsolvable" else r for t, r in zip(g, difficulty_aware(g))] for g in gs
    ]


@undilutable.mistake("Divide by the mean content of the others, not by the sum.")
def sum_of_the_others(g):
    return _over(g, others=1)


@undilutable.mistake("Stray tags are no content either: trace.tag_tokens counts both.")
def commands_alone_left_out(g):
    return _over(g, content=lambda t: len(t.source) - t.count(COMMAND))


@undilutable.mistake("Content holds the teacher's tokens, too: all tokens but those of tags.")
def students_content(g):
    return _over(g, content=lambda t: len(t.source) - t.tag_tokens - t.count(TEACHER))
