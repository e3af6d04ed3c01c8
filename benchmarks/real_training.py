"""Teach a real pretrained student to call, and measure what it learned (docs/real-models.md).

    python benchmarks/real_training.py --student $STUDENT --teacher $TEACHER --out runs/real-training

The questions are those of one suite, asked for short lines and behind one solved problem: ``savings`` with a few words
in each line, or ``shopping`` with one, where nearly all answers take at most 64 tokens. Only the last third of the
student's layers is trained, which shortens the backward pass. The steps are ``warmup``, ``train`` and ``measure``;
--only chooses some. Each goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from real_study import teacher_share
from transformers import TrainerCallback

import relaylab as rl
from relaylab import defaults
from relaylab.evaluation.counterfactual import call_effects, verdicts
from relaylab.evaluation.eval_run import EvalRun, ModelCache
from relaylab.evaluation.stats import mean, paired
from relaylab.evaluation.systems import SYSTEMS, system
from relaylab.evaluation.table import write_table
from relaylab.files import bind_folder, plain
from relaylab.relay.config import RelayConfig
from relaylab.relay.relay import Relay
from relaylab.tasks.suites import Problem, Split
from relaylab.trace import Trace
from relaylab.training.grpo import train
from relaylab.training.warmup import warmup

STYLE = (
    "Solve the problem in short lines, one line for each event, as in '{example}' Write no other text. "
    "The last line is: The answer is \\boxed{{number}}."
)
# Of each suite: what a line looks like, how much of its label is kept, and the limit of tokens.
SUITES = {"savings": ("What it is: 12+34=46.", r".*", 140), "shopping": ("Shop: 12+34=46.", r"\w+", 100)}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# A call is answered to the end of its line. Any number of calls: a command that is refused begets more commands.
CAPS = {"max_call_tokens": 24, "call_end": "line"}
# Most commands stand where the student is in doubt, and never inside a word or a number.
WARMUP = {
    "max_steps": 96, "per_device_train_batch_size": 4, "save_steps": 16, "temperature": 0.7, "counts": (0.2, 0.5, 0.3),
    "exponents": (0,), "uniform": 0.3, "whole_words": True, "decode_batch_size": 40,
}  # fmt: skip
# 8 groups of 4 rollouts. A rollout earns 1 if it is right, less the teacher's share of it.
GRPO = CAPS | {
    "num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "learning_rate": 3e-4,
    "beta": 0.0, "temperature": 0.7, "reward": "simple",
    "scale_rewards": "batch", "save_steps": 4, "keep_rollouts": 1, "dtype": "bfloat16",
}  # fmt: skip
NO_STUDENT = ("*.pt", "*.pth", "*.bin", "trainer_state.json")  # files of a checkpoint
STEPS = ("warmup", "train", "measure")


def questions(suite: str, indices: Sequence[int], split: Split) -> list[Problem]:
    """Problems with these indices, asked for short lines, behind one solved problem."""
    example, label, _ = SUITES[suite]
    solved = rl.problem(suite, 0, split="train", world="plain")
    lines = [
        re.sub(rf"^.*?({label}):", lambda kept: f"{kept[1][0].upper()}{kept[1][1:]}:", x)
        for x in solved.solution.split("\n")
    ]
    turns = (("system", STYLE.format(example=example)), ("user", solved.question), ("assistant", "\n".join(lines)))
    history = tuple({"role": role, "content": content} for role, content in turns)
    return [replace(rl.problem(suite, i, split=split, world="plain"), history=history) for i in indices]


def last_third(student: Path) -> dict:
    """A LoRA adapter of the last third of the layers."""
    from transformers import AutoConfig

    layers = AutoConfig.from_pretrained(student).num_hidden_layers
    return {"target_modules": LINEAR, "layers_to_transform": [*range(layers - layers // 3, layers)]}


class Snapshots(TrainerCallback):
    """Keeps the adapter of every 8th step and of the last, to be measured later."""

    def __init__(self, out: Path):
        self.out = out

    def on_save(self, args, state, control, **_):
        home = self.out / str(state.global_step)
        if (state.global_step % 8 == 0 or state.global_step == state.max_steps) and not home.exists():
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            beside = self.out / f".{state.global_step}"
            shutil.copytree(checkpoint, beside, ignore=shutil.ignore_patterns(*NO_STUDENT), dirs_exist_ok=True)
            beside.rename(home)

    def on_train_begin(self, args, state, control, **_):
        if state.global_step:  # a run that was killed between its checkpoint and the copy
            self.on_save(args, state, control)


def measured(asked: argparse.Namespace, tests: list[Problem], trained: dict[str, Path], settings: dict) -> None:
    """Every snapshot greedily on the test questions, with its calls and without; each against the student alone.

    Each answered call is forked: the same student goes on from there without it. So is each of the step's rollouts.
    All caps are those of the training's ``settings``.
    """
    names = {"student": str(asked.student), "teacher": str(asked.teacher), "suite": asked.suite}
    folder = bind_folder(asked.out / "tests", plain(names | {"count": asked.count, "settings": settings}))
    limit, caps = settings["max_completion_length"], {k: v for k, v in settings.items() if k in defaults.CAPS}
    models = ModelCache(str(asked.teacher), [], limit, {"dtype": torch.bfloat16}, untrained=str(asked.student))
    config = RelayConfig(max_tokens=limit, **caps)
    run = EvalRun(models, tests, folder, config, batch_size=34)
    alone = right(run.traces(SYSTEMS["student"]))
    for name in ("student", "teacher", "plan:n=14", "entropy:threshold=1.2,n=4"):
        told(name, run.traces(system(name)), alone)
    for step, path in trained.items():
        told(f"step {step}, no calls", run.traces(system(f"teacher-free:student={path}")), alone)
        traces = run.traces(system(f"relay:student={path}"))
        told(f"step {step}", traces, alone)
        relay = Relay(models.engine(str(path)), models.teacher, config, batch_size=64)
        judged(folder / f"effects-{step}.csv", traces, relay)
        sampled = asked.out / "run" / "rollouts" / f"{int(step):06}.jsonl"  # the next step's, by this student
        if sampled.exists():
            relay = Relay(
                relay.student, models.teacher, replace(config, temperature=settings["temperature"]), batch_size=64
            )
            judged(folder / f"sampled-{step}.csv", list(rl.read_traces(sampled)), relay)


def judged(path: Path, traces: Sequence[Trace], relay: Relay) -> None:
    """Which calls were needed, wasted or harmful; each is forked without it."""
    if not path.exists():
        write_table(call_effects(traces, relay), path)
    effects = pd.read_csv(path).astype({"arm": pd.CategoricalDtype(["with", "without", "alone"])})
    print(f"    {path.stem}, calls: {verdicts(effects)['verdict'].value_counts(sort=False).to_dict()}", flush=True)


def right(traces: Sequence[Trace]) -> np.ndarray:
    return np.array([float(bool(t.correct)) for t in traces])


def told(name: str, traces: Sequence[Trace], alone: np.ndarray) -> None:
    here, calls = right(traces), np.array([len(t.answered) for t in traces])
    print(f"{name}: right {mean(here)}, minus the student {paired(here, alone)},")
    print(f"    {teacher_share(traces)}, calls per answer {mean(calls)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", choices=SUITES, default="savings")
    parser.add_argument("--settings", type=yaml.safe_load, default={}, help="others for the GRPO, as YAML")
    parser.add_argument("--max-steps", type=int, default=16)
    parser.add_argument("--count", type=int, default=102, help="test questions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=STEPS, choices=STEPS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    training = questions(asked.suite, range(200, 500), "train")
    tests, limit = questions(asked.suite, range(asked.count), "test"), SUITES[asked.suite][-1]
    warm, run, snapshots = (asked.out / name for name in ("warm", "run", "snapshots"))
    began = time.time()
    if "warmup" in asked.only:
        warmup(
            str(asked.student), training[:200], warm, teacher=str(asked.teacher), lora=last_third(asked.student),
            dtype=torch.bfloat16, max_tokens=min(limit, 110), **WARMUP,
        )  # fmt: skip
    settings = {"teacher": [str(asked.teacher)], "max_completion_length": limit} | GRPO | asked.settings
    if "train" in asked.only:
        run_options = {"max_steps": asked.max_steps, "callbacks": [Snapshots(snapshots)]} | settings
        train(student=str(warm), output_dir=str(run), problems=training, **run_options)
    trained = {"0": warm} | {p.name: p for p in sorted(snapshots.glob("[0-9]*"), key=lambda p: int(p.name))}
    if "measure" in asked.only:
        measured(asked, tests, trained, settings)
    print(f"{time.time() - began:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
