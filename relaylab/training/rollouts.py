"""Rollouts for TRL's GRPOTrainer: the relay writes them, and their traces give reward and loss mask.

``Rollouts`` is the trainer's ``rollout_func`` (an instance is called with prompts), and its method ``reward`` is the
trainer's reward function. A rollout is a function of the run's seed, the optimiser step and its place in the batch, so
a resumed run writes the same ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from relaylab.relay.pair import graded, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Message
from relaylab.tasks.suites import Problem
from relaylab.trace import TEACHER, Call, Trace, TraceWriter
from relaylab.training.policy_model import PolicyModel
from relaylab.training.rewards import call_credits, helped, kind_of, ratios, rolled_back, score

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer

Groups = Sequence[tuple[list[Message], int]]  # (prompt, rollouts) each
Forks = list[list[tuple[Call, Trace]]]  # of each rollout: its calls, and the graded fork without each

PROBLEMS = ("empty", "malformed", "zero", "too_large", "unclosed")  # calls that are none


class TeacherGone(RuntimeError):
    """Too many rollouts of a batch were excluded after failures of the teacher."""


class Rollouts:
    """Relay rollouts of one run.

    Args:
        policy: the model in training.
        stages: (optimiser steps, relays); the last stage holds for all further steps. A stage has one relay a teacher,
            and the groups of a batch take them in turn.
        problems: those of the dataset by the ``prompt_key`` of their messages.
        reward: ``score`` with its options.
        seed: of the run.
        mask_teacher: keep teacher tokens out of the loss.
        released_code: train on what ``rolled_back`` leaves, with nothing masked.
        keep: folder and interval in optimiser steps of the traces to keep.
        max_excluded: the largest share of a batch that a failing teacher may take.
        credit_calls: fork each answered call; ``credits`` holds (call, credit) of the last batch, a list a rollout.
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
        max_excluded: float = 1.0,
        credit_calls: bool = False,
    ):
        self.policy, self.stages, self.problems = policy, list(stages), problems
        self._score, self.seed, self.mask_teacher, self.released_code = reward, seed, mask_teacher, released_code
        self.keep, self.max_excluded, self.credit_calls = keep, max_excluded, credit_calls
        self.credits: list[list[tuple[Call, float]]] = []

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's rollout function: prompts of this process, each repeated once a rollout of its group.

        Raises:
            TeacherGone: after a checkpoint, where more than ``max_excluded`` of the batch was excluded.
        """
        groups = _groups(prompts, trainer.num_generations or 1)
        self.policy.sync()
        step, process = trainer.state.global_step, trainer.accelerator.process_index
        relays = self._relays(step)
        traces = self.run(groups, relays, tag=str(step), first=process * len(groups))
        self._keep(traces, step, process)
        self._check_teacher(traces, trainer)
        trained = [rolled_back(t) for t in traces] if self.released_code else traces
        masks = [[int(s != TEACHER or not self.mask_teacher) for s in t.source] for t in trained]
        # TRL takes what has no end token for truncated, and takes no empty completion (of a prompt that fills the
        # context). Both get an end token that is masked.
        end = trainer.eos_token_ids[0]
        numbers = [i for i, (_, count) in enumerate(groups) for _ in range(count)]
        more = [t.stop == "teacher_end" or not t.completion_ids for t in trained]
        return {
            "prompt_ids": [t.prompt_ids for t in trained],
            "completion_ids": [t.completion_ids + [end] * extra for t, extra in zip(trained, more)],
            "logprobs": None,  # on-policy: the trainer's own forward pass is the behaviour policy's
            "env_mask": [mask + [0] * extra for mask, extra in zip(masks, more)],
            "trace": traces,
            "group": numbers,
        } | ({"forks": self._forks(traces, groups, numbers, relays)} if self.credit_calls else {})

    def _relays(self, step: int) -> Sequence[Relay]:
        """Those of the stage that an optimiser step belongs to."""
        ends = accumulate(count for count, _ in self.stages)
        return next((stage[1] for end, stage in zip(ends, self.stages) if step < end), self.stages[-1][1])

    def run(self, groups: Groups, relays: Sequence[Relay], *, tag: str, first: int = 0) -> list[Trace]:
        """The graded traces of some groups, in order.

        Args:
            groups: (prompt, rollouts) each.
            relays: the groups take them in turn.
            tag: tells batches apart.
            first: the number of the first group in its batch; a rollout is the same however many processes share it.
        """
        traces: list[list[Trace]] = [[] for _ in groups]
        for k, relay in enumerate(relays):
            places = [(i, j) for i in range(k, len(groups), len(relays)) for j in range(groups[i][1])]
            seeds = [problem_seed(self.seed, f"{tag}/{first + i}/{j}") for i, j in places]
            for (i, j), trace in zip(places, relay.run([groups[i][0] for i, _ in places], seeds=seeds)):
                problem = self.problems[prompt_key(groups[i][0])]
                graded(trace, problem).id = f"{problem.id}/{first + i}/{j}"
                traces[i].append(trace)
        return [t for group in traces for t in group]

    def _forks(self, traces: list[Trace], groups: Groups, numbers: list[int], relays: Sequence[Relay]) -> Forks:
        """The answered calls with a command, each with the graded fork in which it is forbidden."""
        forks: Forks = [[] for _ in traces]
        for k, relay in enumerate(relays):
            own = [i for i, n in enumerate(numbers) if n % len(relays) == k and traces[i].stop != "excluded"]
            calls = [(i, c) for i in own for c in traces[i].answered if c.start < c.end]
            stream = relay.forks([traces[i] for i, _ in calls], [c.start for _, c in calls], forbid=True)
            for _ in stream:
                pass
            for (i, call), fork in zip(calls, stream.traces):
                if fork.stop != "excluded":
                    forks[i].append((call, graded(fork, self.problems[prompt_key(groups[numbers[i]][0])])))
        return forks

    def reward(
        self, trace: list[Trace], group: list[int], log_metric: Callable[[str, float], None],
        forks: Forks | None = None, **_: Any,
    ) -> list:  # fmt: skip
        """TRL's reward function: one number a rollout, None for one that a teacher's failure excluded."""
        groups: dict[int, list[Trace]] = {}
        for number, t in zip(group, trace, strict=True):
            groups.setdefault(number, []).append(t)
        usable = [u for g in groups.values() if (u := [t for t in g if t.stop != "excluded"])]
        rewards = {id(t): r for g, values in zip(usable, self._score(usable)) for t, r in zip(g, values)}
        failed = sum(c.status == "failed" for t in trace for c in t.calls) / len(trace)
        excluded = sum(t.stop == "excluded" for t in trace) / len(trace)
        for name, value in (statistics(usable) | {"failed_calls": failed, "excluded": excluded}).items():
            log_metric(name, value)
        if forks is not None:
            self._credit(trace, usable, forks, log_metric)
        return [rewards.get(id(t)) for t in trace]

    def _credit(self, traces: list[Trace], groups: list[list[Trace]], forks: Forks, log_metric: Any) -> None:
        """Set ``credits``; log their mean, the share of needless calls (the fork is right, too) and the forks' cost."""
        own, credits = {id(t): pairs for t, pairs in zip(traces, forks)}, dict[int, list[tuple[Call, float]]]()
        for group in groups:
            values = call_credits(group, [[fork for _, fork in own[id(t)]] for t in group], self._score)
            for t, some in zip(group, values):
                credits[id(t)] = [(call, value) for (call, _), value in zip(own[id(t)], some)]
        self.credits = [credits.get(id(t), []) for t in traces]
        every = [(t, call, fork) for t in traces for call, fork in own[id(t)]]
        log_metric("fork_tokens", sum(len(fork.completion_ids) - call.start for _, call, fork in every) / len(traces))
        if every:
            log_metric("call_credit", fmean(value for some in self.credits for _, value in some))
            log_metric("needless_calls", fmean(bool(t.correct and fork.correct) for t, _, fork in every))

    def _check_teacher(self, traces: list[Trace], trainer: GRPOTrainer) -> None:
        errors = [[c.error for c in t.calls if c.error][-1:] if t.stop == "excluded" else None for t in traces]
        everywhere = gather_object(errors)
        excluded = [error for error in everywhere if error is not None]
        if len(excluded) <= self.max_excluded * len(everywhere):
            return
        if trainer.state.global_step:  # the weights of this moment; the rollouts are written again
            trainer._save_checkpoint(trainer.accelerator.unwrap_model(trainer.model), trial=None)
        last = next((error[0] for error in reversed(excluded) if error), "no reason")
        raise TeacherGone(
            f"the teacher failed in {len(excluded)} of {len(everywhere)} rollouts ({last}); the same command goes on "
            f"from step {trainer.state.global_step} (max_excluded is {self.max_excluded})"
        )

    def _keep(self, traces: list[Trace], step: int, process: int) -> None:
        if self.keep is None or step % self.keep[1]:
            return
        path = self.keep[0] / (f"{step:06d}.jsonl" if not process else f"{step:06d}-{process}.jsonl")
        path.unlink(missing_ok=True)  # of a run that was killed after this step and is resumed from before it
        with TraceWriter(path) as out:
            for trace in traces:
                out.write(trace)


def prompt_key(messages: Sequence[Message]) -> str:
    """A conversation as one text. Two may end alike, so the last message does not do."""
    return json.dumps(messages, sort_keys=True)


def _groups(prompts: list[list[Message]], size: int) -> list[tuple[list[Message], int]]:
    """The batch as (prompt, count); ValueError unless it is whole groups of ``size`` equal prompts in a row."""
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    if any(len(g) != size or any(p != g[0] for p in g) for g in groups):
        raise ValueError(f"the batch is not whole groups of {size}: make the rollouts of a process a multiple of it")
    return [(g[0], size) for g in groups]


def statistics(groups: Sequence[Sequence[Trace]]) -> dict[str, float]:
    """What is measured of a batch of rollouts: shares in 0..1, counts a rollout. Empty without a rollout."""
    traces = [t for group in groups for t in group]
    if not traces:
        return {}
    calls = [c for t in traces for c in t.calls]
    answered = [c for c in calls if c.status == "answered"]
    kinds = Counter(kind_of(group) for group in groups)
    measures = {
        "accuracy": fmean(bool(t.correct) for t in traces),
        "call_ratio": fmean(t.call_ratio for t in traces),
        "group_ratio": fmean(r for group in groups for r in ratios(group, "group")),
        "helped": fmean(helped(t) for t in traces),
        "calls": len(answered) / len(traces),
        "malformed_calls": sum(c.status in PROBLEMS for c in calls) / len(traces),
        "tag_tokens": fmean(t.tag_tokens for t in traces),
        "tokens": fmean(len(t.completion_ids) for t in traces),
        "ended": fmean(t.stop in ("end", "teacher_end") for t in traces),
        **{f"groups_{kind}": kinds[kind] / len(groups) for kind in ("solvable", "dependent", "unsolvable")},
    }
    if answered:
        measures["mean_n"] = fmean(c.delivered for c in answered)
    return measures
