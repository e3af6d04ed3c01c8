"""Stage 2: GRPO with the relay as its rollout (method: stage 2), on TRL's GRPOTrainer.

The trainer is TRL's own; what is ours comes in by its doors: a rollout function, a reward function, a callback.
``docs/training.md`` says how each setting relates to the paper's.

A run is exact to resume: prompts are drawn into one long order beforehand (TRL's sampler replays the first epoch's
order after a resume), rollouts are seeded by step, and checkpoints lie between batches of rollouts.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental, and trl is pinned for it

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from relaylab.relay.config import OnFailure, RelayConfig
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import Teacher
from relaylab.tasks.suites import Problem
from relaylab.training.policy_model import PolicyModel, load_trainable, save_student
from relaylab.training.rewards import score
from relaylab.training.rollouts import Rollouts
from relaylab.training.run_dir import MetricsCallback, Run, Watch, processes


def grpo(
    student: str | Path,
    teachers: Sequence[Teacher],
    problems: Sequence[Problem],
    out: str | Path,
    *,
    # the reward
    reward: str = "difficulty_aware",
    reward_options: dict[str, Any] | None = None,
    released_code: bool = False,
    mask_teacher: bool = True,
    # the rollouts
    suffix: str = "",
    steps: int = 200,
    prompts: int = 16,
    group: int = 8,
    temperature: float = 1.0,
    limits: RelayConfig | None = None,
    lead: Sequence[tuple[int, RelayConfig]] = (),
    on_failure: OnFailure = "exclude",
    batch_size: int = 128,
    # the update
    beta: float = 0.01,
    learning_rate: float = 1e-6,
    warmup_steps: int = 0,
    schedule: str = "constant",
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    updates: int = 1,
    micro_batch: int | None = None,
    loss_type: str = "grpo",
    lora: dict[str, Any] | None = None,
    full: bool = False,
    gradient_checkpointing: bool = False,
    # the run
    seed: int = 0,
    save_every: int = 50,
    keep_rollouts: int = 10,
    watch: Watch | None = None,
    progress: bool = True,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    **trl: Any,
) -> Path:
    """Train a student to call; the folder of the trained student, ``out/student``.

    student: a name or folder. An adapter (a warm-up) is trained further, and its frozen copy is the KL reference; a
    full model gets a new adapter with ``lora`` (rank ``r``, ``lora_alpha`` ... of PEFT's LoraConfig) and is the
    reference itself; with ``full`` all weights are trained. teachers: the groups of a batch take them in turn;
    ``[NoTeacher()]`` with the reward ``outcome`` is plain GRPO.

    reward, reward_options, released_code: see ``rewards.score``; without options rho is the ``group`` ratio, which
    cannot be diluted. mask_teacher: keep teacher tokens out of the loss (off only to see what happens).

    suffix: put behind each question. steps: batches of rollouts, ``prompts`` x ``group`` of them each in every
    process. limits: the caps of a rollout (160 tokens by default); ``fixed_call_tokens`` trains with a fixed n.
    lead: (steps, limits) in front of these, one after the other; under a fixed n it learns when to call before for how
    long. They are part of ``steps``.
    on_failure: of a teacher; by default the rollout leaves its group. batch_size: rollouts decoded at a time.

    updates: optimiser steps on each batch of rollouts (the paper: 4). micro_batch: rollouts of one forward and backward
    pass; all of an update by default. Further keywords go to TRL's GRPOConfig.

    save_every: steps between checkpoints. keep_rollouts: every so many steps the traces are kept in ``out/rollouts``; 0
    for never. Metrics are lines of ``out/metrics.jsonl``, and ``watch`` gets each as a dict when it is there.

    Interrupted or killed, the same call goes on from the last checkpoint, to the same weights. Raises ValueError where
    ``out`` holds another run, and for settings that do not fit together.
    """
    limits = limits or RelayConfig(max_tokens=160)
    terms = {
        k: v for k, v in locals().items() if k not in ("out", "teachers", "problems", "watch", "progress", "device")
    }
    told = [{k: getattr(t, k, None) for k in ("name", "temperature", "top_p", "top_k")} for t in teachers]
    terms |= {
        "limits": asdict(limits),
        "lead": [(count, asdict(caps)) for count, caps in lead],
        "teachers": told,
        "problems": [p.id for p in problems],
    }
    _check(problems, prompts * group, group, updates, micro_batch, save_every)
    if sum(count for count, _ in lead) > steps:
        raise ValueError(f"the steps of lead are more than the run's {steps}")
    workers = processes()
    with workers.main_process_first():
        run = Run(out, terms)
    if run.finished:
        return run.student
    set_seed(seed)  # a new adapter begins at random
    model, tokenizer = load_trainable(student, full=full, lora=lora, device=device, dtype=dtype)
    policy = PolicyModel(model, tokenizer, name=run.out.name)
    options = {"temperature": temperature, "on_failure": on_failure, "batch_size": batch_size}
    stages = [
        (count * updates, [Relay(policy.engine, teacher, config=caps, **options) for teacher in teachers])
        for count, caps in (*lead, (steps, limits))
    ]
    asked = {p.prompt(suffix): p for p in problems}
    if len(asked) < len(problems):
        raise ValueError("two problems have the same question; a rollout could not tell which answer is right")
    rollouts = Rollouts(
        policy,
        stages,
        asked,
        reward=partial(
            score, scheme=reward, released_code=released_code, **_rewarded(reward, reward_options, released_code)
        ),
        seed=seed,
        mask_teacher=mask_teacher,
        released_code=released_code,
        keep=(run.rollouts, keep_rollouts * updates) if keep_rollouts else None,
    )
    cuda = policy.engine.device.type == "cuda"
    micro = micro_batch or prompts * group // updates
    accumulate = prompts * group // updates // micro
    settings = dict(
        output_dir=str(run.checkpoints),
        max_steps=steps * updates,
        num_generations=group,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        steps_per_generation=accumulate * updates,
        temperature=temperature,
        max_completion_length=max(caps.max_tokens for caps in (limits, *(caps for _, caps in lead))),
        beta=beta,
        loss_type=loss_type,
        use_bias_correction_kl=False,  # plain k3, as in the paper
        learning_rate=learning_rate,
        warmup_steps=warmup_steps * updates,
        lr_scheduler_type=schedule,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        activation_checkpointing=gradient_checkpointing,
        bf16=policy.engine.dtype == torch.bfloat16,  # under autocast, float32 weights would fill caches of another type
        use_cpu=not cuda,
        seed=seed,
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=save_every * updates,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(**settings | trl),
        processing_class=tokenizer,
        train_dataset=_order(list(asked), steps * prompts * workers.num_processes, seed),
        rollout_func=rollouts,
        reward_funcs=rollouts.reward,
        callbacks=[MetricsCallback(run, steps * updates, watch=watch, progress=progress)],
    )
    trainer.remove_callback(PrinterCallback)
    with workers.main_process_first():
        checkpoint = run.resume()
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.accelerator.is_main_process:
        save_student(trainer.accelerator.unwrap_model(trainer.model), tokenizer, student, run.student)
        run.finish()
    return run.student


def _rewarded(reward: str, options: dict[str, Any] | None, released_code: bool) -> dict[str, Any]:
    """The options of a reward, with the ratio that cannot be diluted where nothing else is asked for."""
    if released_code or reward == "outcome":
        return options or {}
    return {"ratio": "group"} | (options or {})


def _order(questions: list[str], count: int, seed: int) -> Dataset:
    """``count`` prompts: all questions once in a random order, then again in another, and so on."""
    rng, order = random.Random(seed), list[str]()
    while len(order) < count:
        order += rng.sample(questions, len(questions))
    return Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in order[:count]])


def _check(problems: Sequence[Problem], rollouts: int, group: int, updates: int, micro: int | None, save: int) -> None:
    if not problems:
        raise ValueError("there are no problems to train on; with a data filter, lower its threshold")
    if group < 2:
        raise ValueError(f"group is {group}; an advantage compares at least 2 rollouts of a prompt")
    if rollouts % updates or (rollouts // updates) % (micro or 1):
        raise ValueError(
            f"{rollouts} rollouts a step cannot be cut into {updates} updates of micro batches of {micro}; "
            "choose numbers that divide"
        )
    if save < 1:
        raise ValueError(f"save_every is {save}; it must be at least 1")
