"""The adapter over a real student that ships in the repository, and not in the wheel."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from relaylab.engine.load import base_of, relay_defaults

FOLDER = Path(__file__).parents[1] / "benchmarks" / "adapters" / "qwen2.5-coder-0.5b-savings"


def test_the_shipped_adapter_is_small_and_changes_the_last_third_alone():
    weights = load_file(FOLDER / "adapter_model.safetensors")
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in weights}
    assert (
        layers
        == set(range(16, 24))
        == set(json.loads((FOLDER / "adapter_config.json").read_text())["layers_to_transform"])
    )
    assert len(weights) == 8 * 7 * 2, "two matrices for each of seven layers"
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert all(w.isfinite().all() and w.any() for w in weights.values()), "it was trained"
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 10e6


def test_the_shipped_adapter_names_its_base_and_its_caps():
    assert base_of(FOLDER) == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert relay_defaults(FOLDER) == {"max_call_tokens": 24, "call_end": "line"}
    assert "Apache-2.0" in (FOLDER / "README.md").read_text()
