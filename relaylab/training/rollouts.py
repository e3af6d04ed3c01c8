"""Rollouts for TRL's GRPOTrainer: the relay writes them, and their traces give reward and loss mask.

``Rollouts`` is the trainer's ``rollout_func`` (an instance is called with prompts), and its method ``reward`` is the
trainer's reward function. A rollout is a function of the run's seed, the optimiser step and its place in the batch, so
a resumed run writes the same ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from relaylab.relay.pair import graded, problem_seed
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Message, NamedTeachers, Teacher
from relaylab.tasks.suites import Problem
from relaylab.trace import PROBLEMS, TEACHER, Call, Trace, TraceWriter
from relaylab.training.config import RelayGRPOConfig
from relaylab.training.policy_model import PolicyModel
from relaylab.training.rewards import call_credits, helped, kind_of, ratios, rolled_back, score

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer

Forks = list[list[tuple[Call, Trace]]]  # of each rollout: its calls, and the graded fork without each


class TeacherGone(RuntimeError):
    """Too many rollouts of a batch were excluded after failures of the teacher."""


class Rollouts:
    """Relay rollouts of one run. ``credits`` holds (call, credit) of the last batch, a list per rollout.

    Args:
        config: of the run.
        policy: the model in training.
        teachers: the groups of a batch take them in turn.
        problems: those of the dataset by the ``prompt_key`` of their messages.
        folder: where every ``keep_rollouts``-th batch is kept.
    """

    def __init__(
        self,
        config: RelayGRPOConfig,
        policy: PolicyModel,
        teachers: Sequence[Teacher],
        problems: dict[str, Problem],
        folder: Path,
    ):
        self.config, self.policy, self.problems, self.folder = config, policy, problems, folder
        options: dict[str, Any] = dict(
            temperature=config.temperature, on_failure=config.on_failure, batch_size=config.decode_batch_size
        )
        self.relays = [Relay(policy.engine, t, config=config.relay, **options) for t in teachers]
        self.names = sorted({name for t in teachers if isinstance(t, NamedTeachers) for name in t.names})
        self._score = partial(score, **config.reward_options)
        self.credits: list[list[tuple[Call, float]]] = []

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's rollout function: prompts of this process, each repeated once a rollout of its group.

        Raises:
            TeacherGone: after a checkpoint, where more than ``max_excluded`` of the batch was excluded.
        """
        size, step, process = trainer.num_generations or 1, trainer.state.global_step, trainer.accelerator.process_index
        if any(prompts[i : i + size] != [prompts[i]] * size for i in range(0, len(prompts), size)):
            raise ValueError(
                f"the batch is not whole groups of {size}: make the rollouts of a process a multiple of it"
            )
        self.policy.sync()
        first = process * len(prompts) // size
        traces = self.run(prompts, size, tag=str(step), first=first)
        self._keep(traces, step, process)
        self._check_teacher(traces, trainer)
        trained = [rolled_back(t) for t in traces] if self.config.released_code else traces
        masks = [[int(s != TEACHER or not self.config.mask_teacher) for s in t.source] for t in trained]
        # TRL takes what has no end token for truncated, and takes no empty completion (of a prompt that fills the
        # context). Both get an end token that is masked.
        end = trainer.eos_token_ids[0]
        more = [t.stop == "teacher_end" or not t.completion_ids for t in trained]
        return {
            "prompt_ids": [t.prompt_ids for t in trained],
            "completion_ids": [t.completion_ids + [end] * extra for t, extra in zip(trained, more)],
            "logprobs": None,  # on-policy: the trainer's own forward pass is the behaviour policy's
            "env_mask": [mask + [0] * extra for mask, extra in zip(masks, more)],
            "trace": traces,
            "group": [i // size for i in range(len(prompts))],
        } | ({"forks": self._forks(traces, prompts, size, first)} if self.config.credit_calls else {})

    def run(self, prompts: Sequence[list[Message]], size: int, *, tag: str, first: int = 0) -> list[Trace]:
        """The graded traces of some prompts, in order. The groups take the teachers in turn.

        Args:
            prompts: each stands ``size`` times in a row.
            size: rollouts per group.
            tag: tells batches apart.
            first: the number of the first group in its batch; a rollout is the same however many processes share it.
        """
        traces: dict[int, Trace] = {}
        for k, relay in enumerate(self.relays):
            places = self._places(k, len(prompts), size, first)
            names = [f"{first + i // size}/{i % size}" for i in places]
            seeds = [problem_seed(self.config.seed, f"{tag}/{name}") for name in names]
            for i, name, trace in zip(places, names, relay.run([prompts[i] for i in places], seeds=seeds)):
                problem = self.problems[prompt_key(prompts[i])]
                traces[i] = graded(trace, problem)
                trace.id = f"{problem.id}/{name}"
        return [traces[i] for i in range(len(prompts))]

    def _places(self, k: int, count: int, size: int, first: int) -> list[int]:
        """Of ``count`` rollouts, those whose group the ``k``-th teacher has."""
        return [i for i in range(count) if (first + i // size) % len(self.relays) == k]

    def _forks(self, traces: list[Trace], prompts: Sequence[list[Message]], size: int, first: int) -> Forks:
        """The answered calls with a command, each with the graded fork in which it is forbidden."""
        forks: Forks = [[] for _ in traces]
        for k, relay in enumerate(self.relays):
            own = [i for i in self._places(k, len(traces), size, first) if traces[i].stop != "excluded"]
            calls = [(i, c) for i in own for c in traces[i].answered if c.start < c.end]
            stream = relay.forks([traces[i] for i, _ in calls], [c.start for _, c in calls], forbid=True)
            for _ in stream:
                pass
            for (i, call), fork in zip(calls, stream.traces):
                if fork.stop != "excluded":
                    forks[i].append((call, graded(fork, self.problems[prompt_key(prompts[i])])))
        return forks

    def reward(
        self, trace: list[Trace], group: list[int], log_metric: Callable[[str, float], None],
        forks: Forks | None = None, **_: Any,
    ) -> list:  # fmt: skip
        """TRL's reward function: one number per rollout, None for one that a teacher's failure excluded."""
        groups: dict[int, list[Trace]] = {}
        for number, t in zip(group, trace, strict=True):
            groups.setdefault(number, []).append(t)
        usable = [u for g in groups.values() if (u := [t for t in g if t.stop != "excluded"])]
        rewards = {id(t): r for g, values in zip(usable, self._score(usable)) for t, r in zip(g, values)}
        failed = sum(c.status == "failed" for t in trace for c in t.calls) / len(trace)
        excluded = sum(t.stop == "excluded" for t in trace) / len(trace)
        for name, value in (statistics(usable, self.names) | {"failed_calls": failed, "excluded": excluded}).items():
            log_metric(name, value)
        if forks is not None:
            self._credit(trace, usable, forks, log_metric)
        return [rewards.get(id(t)) for t in trace]

    def _credit(self, traces: list[Trace], groups: list[list[Trace]], forks: Forks, log_metric: Any) -> None:
        """Set ``credits``; log their mean, the share of needless calls (the fork is right, too) and the forks' cost."""
        own = {id(t): pairs for t, pairs in zip(traces, forks)}
        credits: dict[int, list[tuple[Call, float]]] = {}
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
        if len(excluded) <= self.config.max_excluded * len(everywhere):
            return
        if trainer.state.global_step:  # the weights of this moment; the rollouts are written again
            trainer._save_checkpoint(trainer.accelerator.unwrap_model(trainer.model), trial=None)
        last = next((error[0] for error in reversed(excluded) if error), "no reason")
        raise TeacherGone(
            f"the teacher failed in {len(excluded)} of {len(everywhere)} rollouts ({last}); the same command goes on "
            f"from step {trainer.state.global_step} (max_excluded is {self.config.max_excluded})"
        )

    def _keep(self, traces: list[Trace], step: int, process: int) -> None:
        every = self.config.keep_rollouts * self.config.steps_per_batch
        if not every or step % every:
            return
        path = self.folder / (f"{step:06d}.jsonl" if not process else f"{step:06d}-{process}.jsonl")
        path.unlink(missing_ok=True)  # of a run that was killed after this step and is resumed from before it
        with TraceWriter(path) as out:
            for trace in traces:
                out.write(trace)


def prompt_key(messages: Sequence[Message]) -> str:
    """A conversation as one text. Two may end alike, so the last message does not do."""
    return json.dumps(messages, sort_keys=True)


def statistics(groups: Sequence[Sequence[Trace]], names: Sequence[str] = ()) -> dict[str, float]:
    """What is measured of a batch of rollouts: shares in 0..1, counts a rollout. Empty without a rollout.

    ``names``: of several teachers; ``calls_to_NAME`` is the share of the answered calls that this one answered.
    """
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
        measures |= {f"calls_to_{name}": fmean(c.to == name for c in answered) for name in names}
    return measures
