"""Rollouts for TRL's GRPOTrainer: the relay writes them, and reward and loss mask are read from their traces.

``Rollouts`` is both the trainer's ``rollout_func`` (an instance is called with prompts) and, by its method ``reward``,
the trainer's reward function. Everything that decides a rollout is a function of the run's seed, the optimiser step and
the rollout's place in the batch, so that a resumed run writes the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from relaylab.relay.pair import graded, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Message
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Trace, TraceWriter
from relaylab.training.policy_model import PolicyModel
from relaylab.training.rewards import helped, kind_of, ratios, rolled_back, score

if TYPE_CHECKING:
    from trl import GRPOTrainer

PROBLEMS = ("empty", "malformed", "zero", "too_large", "unclosed")  # calls that are none


class Rollouts:
    """Relay rollouts of one run.

    stages: (optimiser steps, relays), the last for all that follow. relays: one a teacher; the groups of a batch take
    them in turn, so that one group has one teacher. problems: those of the dataset, found by their prompt.
    mask_teacher: keep teacher tokens out of the loss. reward: ``score`` with its options bound. released_code: train on
    what is left after ``rolled_back``, nothing masked. keep: folder and interval in optimiser steps of the traces to
    keep, or None.
    """

    def __init__(
        self,
        policy: PolicyModel,
        stages: Sequence[tuple[int, Sequence[Relay]]],
        problems: dict[str, Problem],
        *,
        reward: Callable[[list[list[Trace]]], list[list[float]]] = score,
        seed: int = 0,
        mask_teacher: bool = True,
        released_code: bool = False,
        keep: tuple[Path, int] | None = None,
    ):
        if not stages or not all(relays for _, relays in stages):
            raise ValueError("rollouts need a relay, with a teacher or with NoTeacher")
        self.policy, self.stages, self.problems = policy, list(stages), problems
        self._score, self.seed, self.mask_teacher, self.released_code = reward, seed, mask_teacher, released_code
        self.keep = keep

    def __call__(self, prompts: list[list[Message]], trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's rollout function: prompts of this process, each already repeated once a rollout of its group."""
        groups = _groups(prompts, trainer.num_generations)
        self.policy.sync()
        step, process = trainer.state.global_step, trainer.accelerator.process_index
        traces = self.run(groups, self.relays(step), tag=str(step), first=process * len(groups))
        self._keep(traces, step, process)
        trained = [rolled_back(t) for t in traces] if self.released_code else traces
        return {
            "prompt_ids": [t.prompt_ids for t in trained],
            # A prompt that fills the context leaves no completion; the trainer takes no empty row: a masked token.
            "completion_ids": [t.completion_ids or [trainer.eos_token_ids[0]] for t in trained],
            "logprobs": None,  # on-policy: the trainer's own forward pass is the behaviour policy's
            "env_mask": [self._mask(t) or [0] for t in trained],
            "trace": traces,
            "group": [i for i, (_, count) in enumerate(groups) for _ in range(count)],
        }

    def relays(self, step: int) -> Sequence[Relay]:
        """Those of the stage that an optimiser step belongs to."""
        ends = accumulate(count for count, _ in self.stages)
        return next((stage[1] for end, stage in zip(ends, self.stages) if step < end), self.stages[-1][1])

    def run(
        self, groups: Sequence[tuple[list[Message], int]], relays: Sequence[Relay], *, tag: str, first: int = 0
    ) -> list[Trace]:
        """The graded traces of some groups, (prompt, rollouts) each, in order.

        ``tag`` tells batches apart, ``first`` is the number of the first group in its batch: a rollout is the same
        however many processes share the batch.
        """
        traces: list[list[Trace]] = [[] for _ in groups]
        for k, relay in enumerate(relays):
            mine = range(k, len(groups), len(relays))
            prompts = [groups[i][0] for i in mine for _ in range(groups[i][1])]
            places = [(i, j) for i in mine for j in range(groups[i][1])]
            seeds = [problem_seed(self.seed, f"{tag}/{first + i}/{j}") for i, j in places]
            for (i, j), trace in zip(places, relay.run(prompts, seeds=seeds)):
                problem = self.problems[groups[i][0][-1]["content"]]
                graded(trace, problem).id = f"{problem.id}/{first + i}/{j}"
                traces[i].append(trace)
        return [t for group in traces for t in group]

    def reward(self, trace: list[Trace], group: list[int], log_metric: Callable[[str, float], None], **_: Any) -> list:
        """TRL's reward function: one number a rollout, None for one that a teacher's failure excluded."""
        groups: dict[int, list[Trace]] = {}
        for number, t in zip(group, trace, strict=True):
            groups.setdefault(number, []).append(t)
        usable = [[t for t in g if t.stop != "excluded"] for g in groups.values()]
        scored = iter(self._score([g for g in usable if g]))
        rewards: list[float | None] = []
        for g, kept in zip(groups.values(), usable):
            values = iter(next(scored) if kept else [])
            rewards += [None if t.stop == "excluded" else next(values) for t in g]
        for name, value in statistics([g for g in usable if g]).items():
            log_metric(name, value)
        log_metric("excluded", sum(r is None for r in rewards) / len(rewards))
        return rewards

    def _mask(self, trace: Trace) -> list[int]:
        """1 for what the student wrote and is trained on: its text, its commands, its end token."""
        return [int(s != TEACHER or not self.mask_teacher) for s in trace.source]

    def _keep(self, traces: list[Trace], step: int, process: int) -> None:
        if self.keep is None or step % self.keep[1]:
            return
        path = self.keep[0] / (f"{step:06d}.jsonl" if not process else f"{step:06d}-{process}.jsonl")
        path.unlink(missing_ok=True)  # of a run that was killed behind this step and is resumed from before it
        with TraceWriter(path) as out:
            for trace in traces:
                out.write(trace)


def _groups(prompts: list[list[Message]], size: int) -> list[tuple[list[Message], int]]:
    """The batch as (prompt, count); ValueError unless it is whole groups of ``size`` equal prompts in a row."""
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    if any(len(g) != size or any(p != g[0] for p in g) for g in groups):
        raise ValueError(f"the batch is not whole groups of {size}: make the rollouts of a process a multiple of it")
    return [(g[0], size) for g in groups]


def statistics(groups: Sequence[Sequence[Trace]]) -> dict[str, float]:
    """What is measured of a batch of rollouts: shares in 0..1, counts a rollout. Empty where there is no rollout."""
    traces = [t for group in groups for t in group]
    if not traces:
        return {}
    calls = [c for t in traces for c in t.calls]
    answered = [c for c in calls if c.status == "answered"]
    kinds = Counter(kind_of(group) for group in groups)
    found = {
        "accuracy": fmean(bool(t.correct) for t in traces),
        "call_ratio": fmean(t.call_ratio for t in traces),
        "group_ratio": fmean(r for group in groups for r in ratios(group, "group")),
        "helped": fmean(helped(t) for t in traces),
        "calls": len(answered) / len(traces),
        "malformed_calls": sum(c.status in PROBLEMS for c in calls) / len(traces),
        "failed_calls": sum(c.status == "failed" for c in calls) / len(traces),
        "tag_tokens": fmean(t.tag_tokens for t in traces),
        "tokens": fmean(len(t.completion_ids) for t in traces),
        "ended": fmean(t.stop in ("end", "teacher_end") for t in traces),
        **{f"groups_{kind}": kinds[kind] / len(groups) for kind in ("solvable", "dependent", "unsolvable")},
    }
    if answered:
        found["mean_n"] = fmean(c.delivered for c in answered)
    return found
