"""Stage 2: GRPO with the relay as its rollout (method: stage 2), on TRL's GRPOTrainer.

The trainer is TRL's own but for two small things. Ours are a rollout function, a reward function and two callbacks.
``docs/training.md`` says how each setting relates to the paper's.

A run is exact to resume. Prompts are drawn into one long order beforehand (TRL's sampler replays the first epoch's
order after a resume), rollouts are seeded by step, and checkpoints lie between batches of rollouts.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import trl.trainer.utils
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from relaylab.files import locked, own_code, read_json, replaced_folder, write_json
from relaylab.relay.names import models_of
from relaylab.relay.pair import load_teacher, request_fields
from relaylab.relay.teachers import NamedTeachers, NoTeacher, Teacher, every_teacher
from relaylab.stopping import stop_signals
from relaylab.tasks.data import load_problems
from relaylab.tasks.suites import Problem, mixture, problem_texts
from relaylab.training import rewards
from relaylab.training.config import RelayGRPOConfig, make_config
from relaylab.training.data_filter import Rate, keep, load_rates, pass_rates
from relaylab.training.policy_model import (
    CAPS_FILE,
    PolicyModel,
    check_apart,
    load_trainable,
    lora_config,
    save_student,
    weights_digest,
)
from relaylab.training.rollouts import Rollouts, prompt_key
from relaylab.training.run_dir import MetricsCallback, RunDir, StopCallback, processes

# A rollout without a reward is one that a teacher's failure excluded; TRL would print a page for each batch with one.
logging.getLogger("trl.trainer.grpo_trainer").addFilter(lambda r: "returned None" not in r.getMessage())


def train(
    config: RelayGRPOConfig | str | Path | None = None,
    /,
    *,
    teachers: Sequence[Teacher] | None = None,
    problems: Sequence[Problem] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> Path:
    """Train a student with GRPO. Interrupted or killed, the same call goes on from the last checkpoint, exactly.

    Args:
        config: settings, a YAML file of them, or the name of a shipped run.
        teachers: ready teachers, instead of the setting ``teacher``.
        problems: ready problems, instead of those that the settings name. One that comes again is taken once.
        callbacks: of transformers; ``on_log`` gets the metrics of each step.
        settings: those of ``RelayGRPOConfig``; they win over ``config``.

    Returns:
        The folder of the trained student, ``student`` in ``output_dir``.

    Raises:
        ValueError: for settings that cannot be, for a question with two answers, and where ``output_dir`` holds
            something else.
        TeacherGone: where the teacher fails too often; the same call goes on from there.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint.
    """
    config, workers = make_config(config, **settings), processes()
    config.trl_config(Path(config.output_dir), bf16=False)  # TRL's own checks, before anything is written
    check_apart(config.output_dir, config.student)
    lora_config(config.lora)
    names = config.teacher if teachers is None else []
    if teachers is None:
        teachers = [_teacher(name, config.teacher_options or {}) for name in names]
    _check_sizes(config.teacher_size, teachers)
    problems = _problems(config) if problems is None else list(_distinct(problems))
    if not problems:
        raise ValueError("there are no problems to train on; give at least one")
    for teacher in every_teacher(teachers):
        probe = getattr(teacher, "probe", None)
        if probe and not (server := probe()).reachable:
            raise ValueError(f"the teacher {teacher.name} cannot be reached: {server.error}")
    with workers.main_process_first():
        run = RunDir(config.output_dir, _bound(config, teachers, problems, names))
    if run.finished:
        return run.student
    with locked(run.out / "run") if workers.is_main_process else nullcontext():
        if config.filter_threshold:
            problems = _filtered(config, teachers[0], problems, run)
        with stop_signals() as stop:
            _train(config, teachers, problems, run, [StopCallback(stop, config.steps_per_batch), *callbacks], stop)
    return run.student


def _train(
    config: RelayGRPOConfig,
    teachers: Sequence[Teacher],
    problems: Sequence[Problem],
    run: RunDir,
    callbacks: Sequence[TrainerCallback],
    stop: threading.Event,
) -> None:
    prompts = {prompt_key(p.messages(config.prompt_suffix)): p for p in problems}
    workers = processes()
    set_seed(config.seed)  # a new adapter begins at random
    device = "cpu" if config.use_cpu else None
    model, tokenizer = load_trainable(
        config.student, full=config.full, lora=config.lora, device=device, dtype=config.dtype
    )
    policy = PolicyModel(model, tokenizer, name=run.out.name)
    rollouts = Rollouts(config, policy, teachers, prompts, run.rollouts)
    args = config.trl_config(run.checkpoints, bf16=policy.engine.dtype == torch.bfloat16)
    count = config.max_steps // config.steps_per_batch * config.prompts_per_batch * workers.num_processes
    metrics = MetricsCallback(run, config.max_steps, progress=not config.disable_tqdm)
    trainer = (CallCreditTrainer if config.credit_calls else CompletionTrainer)(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=_order(list(prompts), count, config.seed),
        rollout_func=rollouts,
        reward_funcs=rollouts.reward,
        callbacks=[metrics, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    with workers.main_process_first():
        checkpoint = run.resume()
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < config.max_steps:
        return
    stop.clear()  # it came too late
    workers.wait_for_everyone()  # the others list the checkpoints, which are now removed
    if workers.is_main_process:
        with replaced_folder(run.student, marker=CAPS_FILE) as folder:
            trained = trainer.accelerator.unwrap_model(trainer.model)
            save_student(trained, tokenizer, config.student, folder, config.relay)
        run.finish()
    workers.wait_for_everyone()  # a launcher may stop all once one has left


class CompletionTrainer(GRPOTrainer):
    """TRL's trainer, but logits are of completions only.

    Without Triton, as on a CPU, TRL computes those of the prompts, too, and masks them. With the vocabulary of a real
    model, and solved examples in the prompt, that is a good part of a step.
    """

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with patch.object(trl.trainer.utils, "_use_triton", lambda device: True):  # "only tokens that have a label"
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)


class CallCreditTrainer(CompletionTrainer):
    """TRL's trainer with ``Rollouts.credits`` as the advantages of the tokens of commands. Its loss takes one a token.

    A credit is divided by what TRL divides the advantages of the group by. Where rewards are nearly equal, that is
    nearly 0. So a credit is at most what any of N rewards can be once they are standardised, (N - 1) / sqrt(N).
    """

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)[:, 0]  # of all processes
        return self._rewards[:, None]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        advantages = output["advantages"][:, None].repeat(1, output["completion_ids"].shape[1])  # (B, T)
        spread, most = torch.ones_like(self._rewards), math.inf
        if self.scale_rewards != "none":
            count: Any = self.num_generations if self.scale_rewards == "group" else len(self._rewards)
            spread, most = nanstd(self._rewards.view(-1, count), dim=1) + 1e-4, (count - 1) / count**0.5
            spread = spread.nan_to_num(nan=math.inf).repeat_interleave(count)  # of one reward: TRL's advantage is 0
        rollouts: Any = self.rollout_func
        spread = spread[self.accelerator.process_index * len(inputs) :].tolist()
        for row, scale, credits in zip(advantages, spread, rollouts.credits):
            for call, credit in credits:
                row[call.start : call.end] = max(-most, min(most, credit / scale))
        return output | {"advantages": advantages}


def _order(questions: list[str], count: int, seed: int) -> Dataset:
    """``count`` prompts: all questions once in a random order, then again in another, and so on."""
    rng, order = random.Random(seed), list[str]()
    while len(order) < count:
        order += rng.sample(questions, len(questions))
    return Dataset.from_list([{"prompt": json.loads(q)} for q in order[:count]])


def _bound(
    config: RelayGRPOConfig, teachers: Sequence[Teacher], problems: Sequence[Problem], names: Sequence[str]
) -> dict[str, Any]:
    """What decides a run: settings, the student's weights, teachers, and the texts of the problems."""
    texts = json.dumps(problem_texts(problems))
    every = every_teacher(teachers)
    own = own_code(rewards.SCHEMES[config.reward], *every)
    return config.bound | {
        "student_weights": weights_digest(config.student),
        "teachers": [_told(teacher) for teacher in every],
        "teacher_weights": [weights_digest(model) for name in names for model in models_of(name).values()],
        **({"own_code": own} if own else {}),
        "problems": len(problems),
        "problem_texts": hashlib.sha256(texts.encode(errors="surrogatepass")).hexdigest(),
    }


def _told(teacher: Teacher) -> dict[str, Any]:
    """What decides the words of a teacher. Its own name holds no password."""
    told = {name: getattr(teacher, name, None) for name in ("name", "temperature", "top_p", "top_k")}
    threshold = getattr(teacher, "threshold", None)
    return told | request_fields(teacher) | ({} if threshold is None else {"threshold": threshold})


def _teacher(name: str, options: dict[str, Any]) -> Teacher:
    try:
        return load_teacher(name, **(options if name != "none" else {}))
    except TypeError as error:
        raise ValueError(f"teacher_options: {error}") from None


def _check_sizes(sizes: Any, teachers: Sequence[Teacher]) -> None:
    """Sizes by name are for teachers of just these names."""
    for teacher in teachers if isinstance(sizes, dict) else ():
        if set(names := getattr(teacher, "names", ())) != set(sizes):
            known = f"the teacher {teacher.name!r} has the names {', '.join(names) or '(none)'}"
            raise ValueError(f"teacher_size has the names {', '.join(sizes) or '(none)'}; {known}")


def _problems(config: RelayGRPOConfig) -> list[Problem]:
    if config.data:
        fields = {"question_field": config.question_field, "answer_field": config.answer_field}
        return list(_distinct(load_problems(config.data, limit=config.num_problems, **fields)))
    stream = mixture(seed=config.data_seed, suites=tuple(config.suites))
    return list(islice(_distinct(stream), config.num_problems or 900))


def _distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Each question once: a rollout knows its problem by the prompt alone. ValueError if it has several answers."""
    first: dict[str, Problem] = {}
    for problem in problems:
        key = prompt_key(problem.messages())
        if key not in first:
            first[key] = problem
            yield problem
        elif problem.answer != first[key].answer:
            both = f"{first[key].id!r} and {problem.id!r} have the same question and different answers"
            raise ValueError(f"the problems {both}; a rollout could not tell which is right, so remove one")


def _filtered(config: RelayGRPOConfig, teacher: Teacher, problems: Sequence[Problem], run: RunDir) -> list[Problem]:
    """The problems that the teacher solves often enough. A resumed run has those that it began with."""
    # 1) What can be wrong is found by every process: one that fails within step 2 would keep the others waiting.
    rates = _filed_rates(config.filter_rates, problems) if config.filter_rates else []
    asked = teacher if rates else _rater(config, teacher)
    # 2) The first process measures the rates; the others find them in the file.
    with processes().main_process_first():
        if not run.kept.exists():
            rates = rates or pass_rates(
                asked, problems, run.out / "rates.jsonl", samples=config.filter_samples, seed=config.filter_seed,
                max_tokens=config.filter_max_tokens, batch_size=config.filter_batch_size,
                prompt_suffix=config.prompt_suffix, progress=not config.disable_tqdm,
            )  # fmt: skip
            if kept := keep(rates, config.filter_threshold):
                write_json(run.kept, sorted(p.id for p in kept))
    if not run.kept.exists():
        raise ValueError("the data filter leaves no problems to train on; lower filter_threshold")
    names = set(read_json(run.kept))
    return [p for p in problems if p.id in names]


def _filed_rates(file: str, problems: Sequence[Problem]) -> list[Rate]:
    """The rates of just these problems in a file."""
    rates = {_text(rate.problem): rate for rate in load_rates(file)}
    if missing := [p.id for p in problems if _text(p) not in rates]:
        told = f"{file} has no rate of {len(missing)} problems, {missing[0]!r} first"
        raise ValueError(f"{told}: their ids, questions, answers and grading must be the same; run the filter on them")
    return [rates[_text(p)] for p in problems]


def _rater(config: RelayGRPOConfig, teacher: Teacher) -> Teacher:
    """The teacher whose pass rates count: the largest one, at temperature 1."""
    if isinstance(teacher, NoTeacher):
        raise ValueError("a data filter needs a teacher, or a file of rates that one made (filter_rates)")
    if isinstance(teacher, NamedTeachers):
        if not isinstance(sizes := config.teacher_size, dict):
            reason = f"a data filter asks the largest of {', '.join(teacher.names)}"
            raise ValueError(f"{reason}: give teacher_size by name, or a file of rates that one made (filter_rates)")
        teacher = teacher.teachers[max(sizes, key=lambda name: sizes[name])]
    if getattr(teacher, "temperature", 1.0) != 1.0:
        teacher = copy.copy(teacher)
        setattr(teacher, "temperature", 1.0)  # noqa: B010 - a pass rate is of samples
    return teacher


def _text(problem: Problem) -> str:
    return json.dumps(problem_texts([problem]))
