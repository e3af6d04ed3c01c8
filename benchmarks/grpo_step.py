"""One GRPO step with relay rollouts against TRL's own step with plain generation of the same number of tokens.

    B="python benchmarks/grpo_step.py --threads 2"
    $B                                                # any calls, after the warm-up
    $B --student warmup --settings embedded/relay     # the first step of this training
    $B --student relay --settings embedded/relay      # and its last

16 prompts x 8 rollouts of exactly 128 completion tokens in both (nobody may stop early), LoRA on the student, the
teacher in the same process; beta 0.01, so both compute the reference too. With ``--settings`` rollouts have the caps
of that training. The two are measured in turn, each time in a new trainer whose first step is not counted.
Seconds are TRL's own ``step_time``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from relaylab.relay.pair import load_teacher
from relaylab.tasks.suites import SUITES, problems
from relaylab.training import grpo as module
from relaylab.training.config import CAPS, make_config
from relaylab.training.policy_model import PolicyModel, load_trainable

PROMPTS, GROUP, TOKENS = 16, 8, 128


class Endless(PolicyModel):
    """A policy whose answers have no end token."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.engine.end_ids = frozenset()


def caps_of(settings: str | None) -> dict[str, Any]:
    """Those of a training, but for the length of an answer."""
    if settings is None:
        return {}
    caps = asdict(make_config(settings, output_dir="none").relay)
    return {name: caps[name] for name in CAPS}


class Times(TrainerCallback):
    """The metrics of every step."""

    def __init__(self):
        self.seen: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "step_time" in logs:
            self.seen.append(dict(logs))


def relay_step(student: str, caps: dict[str, int], steps: int) -> tuple[list[float], float]:
    """Seconds of each counted step, and the mean of teacher tokens per rollout."""
    times, module.PolicyModel = Times(), Endless
    chosen = [p for s in SUITES for p in problems(s, 8, split="train")]
    teacher = load_teacher("teacher")
    teacher.engine.end_ids = frozenset()
    with tempfile.TemporaryDirectory() as out:
        module.train(
            student=student, teachers=[teacher], problems=chosen, output_dir=f"{out}/run", max_steps=steps + 1,
            per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_completion_length=TOKENS, **caps,
            keep_rollouts=0, callbacks=[times], disable_tqdm=True,
        )  # fmt: skip
    assert all(line["tokens"] == TOKENS for line in times.seen)
    share = sum(line["call_ratio"] for line in times.seen) / len(times.seen)
    return [line["step_time"] for line in times.seen[1:]], share * TOKENS


def plain_step(student: str, steps: int) -> list[float]:
    model, tokenizer = load_trainable(student)
    chosen = [p for s in SUITES for p in problems(s, 8, split="train")]
    rows = [{"prompt": [{"role": "user", "content": p.question}]} for p in chosen] * 2
    cuda = model.device.type == "cuda"
    times = Times()
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out, max_steps=steps + 1, num_generations=GROUP, per_device_train_batch_size=PROMPTS * GROUP,
            gradient_accumulation_steps=1, max_completion_length=TOKENS, generation_kwargs={"min_new_tokens": TOKENS},
            temperature=1.0, beta=0.01, loss_type="grpo", use_bias_correction_kl=False, learning_rate=1e-6,
            activation_checkpointing=False, bf16=cuda, use_cpu=not cuda, logging_steps=1, report_to="none",
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
            reward_funcs=lambda completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids], callbacks=[times],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [line["step_time"] for line in times.seen[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="warmup")
    parser.add_argument("--settings", help="of a training, whose caps hold")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each in a round")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    pairs, written = [], []
    for _ in range(args.rounds):
        ours, teacher = relay_step(args.student, caps_of(args.settings), args.steps)
        pairs.append((median(ours), median(plain_step(args.student, args.steps))))
        written.append(teacher)
    ratios = sorted(a / b for a, b in pairs)
    print(json.dumps({
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}",
        "relay_s": median(a for a, _ in pairs), "trl_s": median(b for _, b in pairs),
        "ratio": median(ratios), "lowest": ratios[0], "highest": ratios[-1],
        "teacher_tokens_a_rollout": sum(written) / len(written),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
