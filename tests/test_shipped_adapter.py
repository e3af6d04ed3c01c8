"""The adapters over a real student that ship in the repository, and not in the wheel, and their scripts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from relaylab.engine.load import base_of, relay_defaults
from relaylab.evaluation.interventions import COLUMNS
from relaylab.tasks.suites import problem

if TYPE_CHECKING:
    from relaylab.relay.relay import Relay
    from relaylab.trace import Trace

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FOLDERS = {name: BENCHMARKS / "adapters" / f"qwen2.5-coder-0.5b-{name}" for name in ("savings", "shopping")}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_a_shipped_adapter_is_small_and_changes_the_last_third_alone(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in weights}
    told = json.loads((folder / "adapter_config.json").read_text())["layers_to_transform"]
    assert layers == set(range(16, 24)) == set(told)
    assert len(weights) == 8 * 7 * 2, "two matrices for each of seven layers"
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert all(w.isfinite().all() and w.any() for w in weights.values()), "it was trained"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_a_shipped_adapter_names_its_base_and_its_caps(folder):
    assert base_of(folder) == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert relay_defaults(folder) == {"max_call_tokens": 24, "call_end": "line"}
    assert "Apache-2.0" in (folder / "README.md").read_text()


SAVINGS = """\
People after the first stop: 57+34=91.
People after the school: 91-15=76.
People after the park: 76+33=109.
People left on the bus: 109-16=93.
The answer is \\boxed{93}."""
SHOPPING = """\
Bags: 9*7=63.
Boxes: 4*5=20.
Boxes: 63+20=83.
Together: 83+21=104.
The answer is \\boxed{104}."""


@pytest.mark.parametrize(
    ("suite", "line", "solved"),
    [("savings", "What it is: 12+34=46.", SAVINGS), ("shopping", "Shop: 12+34=46.", SHOPPING)],
)
def test_the_prompt_that_an_adapter_knows_stays_as_it_is(suite, line, solved, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from real_training import questions

    (question,) = questions(suite, [7], "test")
    system, asked, answer = question.messages()[:-1]
    assert system["content"] == (
        f"Solve the problem in short lines, one line for each event, as in '{line}' Write no other text. "
        "The last line is: The answer is \\boxed{number}."
    )
    assert asked["content"] == problem(suite, 0, split="train", world="plain").question
    assert answer["content"] == solved


def test_what_is_killed_after_a_checkpoint_is_copied_when_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from real_training import Snapshots

    for step in (8, 12, 16):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors").write_text(str(step))
    keep, args = Snapshots(tmp_path / "snapshots"), SimpleNamespace(output_dir=tmp_path / "run")
    keep.on_train_begin(args, SimpleNamespace(global_step=0, max_steps=20), None)
    keep.on_train_begin(args, SimpleNamespace(global_step=8, max_steps=20), None)
    keep.on_save(args, SimpleNamespace(global_step=12, max_steps=20), None)
    keep.on_save(args, SimpleNamespace(global_step=16, max_steps=16), None)
    files = sorted((tmp_path / "snapshots").glob("*/adapter_model.safetensors"))
    assert [(file.parent.name, file.read_text()) for file in files] == [("16", "16"), ("8", "8")]


def test_interventions_at_a_carriage_return_are_kept(tmp_path, monkeypatch):
    """A CSV file in which it stands bare has a line too many, and the whole chunk was forked again."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import real_study

    row = dict.fromkeys(COLUMNS, 0) | {"trace": 0, "token": "a\rb"}
    forked = []

    def forks(traces, relay, places, **options):
        forked.append(places)
        return pd.DataFrame([row | {"position": p} for p in places[0]])[list(COLUMNS)]

    monkeypatch.setattr(real_study, "interventions", forks)
    for _ in range(2):
        found = real_study.kept(tmp_path, [cast("Trace", None)], cast("Relay", None), [[3, 5]], 4)
        assert found["position"].tolist() == [3, 5]
        assert found["token"].tolist() == ["a\rb"] * 2
    assert forked == [[[3, 5]]]
