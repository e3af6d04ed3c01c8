"""The folder of a training run.

config.json      what decided the run; another run is refused the folder
metrics.jsonl    one line an optimiser step
rates.jsonl      of the data filter
kept.json        ids of the problems that the filter kept
rollouts/        traces, one file a kept batch of rollouts
checkpoints/     TRL's, the last two
student/         the trained student; with the file ``finished`` beside it, the run is over
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import re
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import safe_open
from tqdm.auto import tqdm
from transformers import TrainerCallback

from relaylab.files import bind_folder, naming, read_json, read_lines, write_whole

SHOWN = ("reward", "accuracy", "call_ratio", "calls")  # in the progress bar


@functools.cache
def processes() -> PartialState:
    """Those that ``accelerate launch`` or ``torchrun`` started for a run; one without a launcher.

    Without ``cpu`` accelerate takes each of several processes on a machine without a GPU for the only one. Their group
    is left before Python ends: threads that are still open then can abort a process whose work is done.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    atexit.register(state.destroy_process_group)
    return state


class RunDir:
    """The folder ``out`` of a run with this configuration.

    Raises:
        ValueError: where it holds a run with another one, or something else.
    """

    def __init__(self, out: str | Path, config: dict[str, Any]):
        self.out = bind_folder(out, config)
        self.metrics, self.rollouts = self.out / "metrics.jsonl", self.out / "rollouts"
        self.checkpoints, self.student = self.out / "checkpoints", self.out / "student"
        self.kept = self.out / "kept.json"
        self.finished = (self.out / "finished").exists()

    def finish(self) -> None:
        """The run is over; its checkpoints are not needed any more."""
        (self.out / "finished").touch()
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def resume(self) -> str | None:
        """The last whole checkpoint, or None. Broken ones, and metrics of later steps, are removed."""
        step, path = last_checkpoint(self.checkpoints)
        if self.metrics.exists():
            lines = (json.dumps(line) + "\n" for line in read_lines(self.metrics) if line["step"] <= step)
            write_whole(self.metrics, "".join(lines))
        return path


def last_checkpoint(folder: Path) -> tuple[int, str | None]:
    """The last whole checkpoint in a folder and its step; (0, None) without one. Broken ones are removed."""
    numbered = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("*"))
    checkpoints = sorted((int(match[1]), path) for match, path in numbered if match)
    while checkpoints and not _whole(checkpoints[-1][1]):
        shutil.rmtree(checkpoints.pop()[1])
    return (checkpoints[-1][0], str(checkpoints[-1][1])) if checkpoints else (0, None)


def _whole(checkpoint: Path) -> bool:
    """Can every file of a checkpoint be read? ``trainer_state.json`` is written last."""
    try:
        read_json(checkpoint / "trainer_state.json")
        for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
            with zipfile.ZipFile(path) as file:
                if file.testzip() is not None:
                    return False
        for path in checkpoint.rglob("*.safetensors"):
            with safe_open(path, "pt") as file:
                file.keys()
        return (checkpoint / "optimizer.pt").exists()
    except Exception:  # each library has errors of its own for a broken file
        return False


class StopCallback(TrainerCallback):
    """Ends a run with a checkpoint once ``stop`` is set in any process, after the present batch of rollouts.

    Args:
        stop: from ``stop_signals``.
        steps_per_batch: optimiser steps of a batch of rollouts; 1 for a run without rollouts.
    """

    def __init__(self, stop: threading.Event, steps_per_batch: int):
        self.stop, self.steps_per_batch = stop, steps_per_batch

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.steps_per_batch == 0 and any(gather_object([self.stop.is_set()])):
            self.stop.set()
            control.should_save = control.should_training_stop = True


class MetricsCallback(TrainerCallback):
    """Writes metrics as they come and moves the progress bar.

    Args:
        run: the run.
        steps: optimiser steps of the run.
        progress: show the bar.
    """

    def __init__(self, run: RunDir, steps: int, *, progress: bool = True):
        self.run, self.steps, self.progress = run, steps, progress

    def on_train_begin(self, args, state, control, **_):
        show = self.progress and state.is_world_process_zero
        self._bar = tqdm(total=self.steps, initial=state.global_step, desc="training", disable=not show)
        self._at = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **_):
        if not (logs and state.is_world_process_zero and "loss" in logs):
            return  # the trainer's closing summary
        now = time.perf_counter()
        line = {"step": state.global_step, "seconds": now - self._at}
        self._at = now
        line |= {k: v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
        with naming(self.run.metrics), open(self.run.metrics, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        self._bar.set_postfix({k: f"{line[k]:.2f}" for k in SHOWN if k in line}, refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args, state, control, **_):
        self._bar.close()


def read_metrics(out: str | Path) -> pd.DataFrame:
    """The metrics of a run, one row an optimiser step: ``step``, ``seconds``, ``reward``, ``accuracy`` ...

    Raises:
        OSError: where the folder holds no run.
        ValueError: for a broken line; one that is being written is left out.
    """
    return pd.DataFrame(list(read_lines(Path(out) / "metrics.jsonl")))
