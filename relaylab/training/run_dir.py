"""The folder of a training run: its terms, metrics, kept rollouts, checkpoints, and the trained student.

terms.json       what decided the run; another run is refused the folder
metrics.jsonl    one line an optimiser step
rollouts/        traces, one file a kept step
checkpoints/     TRL's, the last two
student/         the trained student; with the file ``finished`` beside it, the run is over
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainerCallback

Watch = Callable[[dict[str, float]], None]
SHOWN = ("reward", "accuracy", "call_ratio", "calls")  # in the progress bar


def processes() -> PartialState:
    """Those that ``accelerate launch`` or ``torchrun`` started for a run; one, where nothing did.

    Without ``cpu`` accelerate takes each of several processes on a machine without a GPU for the only one.
    """
    return PartialState(cpu=not torch.cuda.is_available())


class Run:
    """The folder ``out``. Raises ValueError where it holds a run with other terms."""

    def __init__(self, out: str | Path, terms: dict[str, Any]):
        self.out = Path(out)
        self.metrics, self.rollouts = self.out / "metrics.jsonl", self.out / "rollouts"
        self.checkpoints, self.student = self.out / "checkpoints", self.out / "student"
        self._terms, self._finished = self.out / "terms.json", self.out / "finished"
        now = json.loads(json.dumps(terms, default=str))
        if self._terms.exists():
            was = json.loads(self._terms.read_text())
            if other := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
                told = "; ".join(f"{k} was {_short(was.get(k))}, is {_short(now.get(k))}" for k in other)
                raise ValueError(f"{self.out} holds a run with other terms: {told}. Choose another folder or remove it")
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(self._terms, json.dumps(now, indent=1))

    @property
    def finished(self) -> bool:
        return self._finished.exists()

    def finish(self) -> None:
        """The run is over; its checkpoints are not needed any more."""
        self._finished.touch()
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def resume(self) -> str | None:
        """The last whole checkpoint, or None; broken ones, and metrics from behind it, are removed.

        A checkpoint is whole once its ``trainer_state.json``, which is written last, can be read.
        """
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        while found and not _readable(found[-1] / "trainer_state.json"):
            shutil.rmtree(found.pop())
        step = int(found[-1].name.split("-")[1]) if found else 0
        if self.metrics.exists():
            whole = [line for line in self.metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(self.metrics, "".join(line for line in whole if json.loads(line)["step"] <= step))
        return str(found[-1]) if found else None


def _readable(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it, whenever, finds the old text or the new one."""
    rest = path.with_name(f"{path.name}.tmp")
    rest.write_text(text)
    rest.replace(path)


class MetricsCallback(TrainerCallback):
    """Writes metrics as they come, moves the progress bar, and tells ``watch``."""

    def __init__(self, run: Run, steps: int, *, watch: Watch | None = None, progress: bool = True):
        self.run, self.steps, self.watch, self.progress = run, steps, watch, progress
        self._bar: tqdm | None = None
        self._at = 0.0

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            self._bar = tqdm(total=self.steps, initial=state.global_step, desc="training", disable=not self.progress)
            self._at = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **_):
        if not (logs and state.is_world_process_zero and "loss" in logs):
            return  # the trainer's closing summary
        now = time.perf_counter()
        line = {"step": state.global_step, "seconds": now - self._at}
        self._at = now
        line |= {k: v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
        with open(self.run.metrics, "a") as out:
            out.write(json.dumps(line) + "\n")
        if self._bar is not None:
            self._bar.set_postfix({k: f"{line[k]:.2f}" for k in SHOWN if k in line}, refresh=False)
            self._bar.update(state.global_step - self._bar.n)
        if self.watch:
            self.watch(line)

    def on_train_end(self, args, state, control, **_):
        if self._bar is not None:
            self._bar.close()


def read_metrics(out: str | Path) -> pd.DataFrame:
    """The metrics of a run, one row an optimiser step: ``step``, ``seconds``, ``reward``, ``accuracy`` ...

    Raises OSError where the folder holds no run. A last line that is being written is left out.
    """
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines(keepends=True)
    return pd.DataFrame([json.loads(line) for line in lines if line.endswith("\n")])
