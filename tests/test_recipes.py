"""Every embedded model has a recipe, and a recipe that is cut short still makes a model that loads."""

from __future__ import annotations

import json

import pytest
import torch

from relaylab.engine.load import embedded, load_engine
from relaylab.training import recipes, run
from relaylab.zoo.recipes import make
from relaylab.zoo.recipes import recipes as names


def test_every_embedded_model_has_a_recipe():
    assert set(embedded()) <= set(names())


def test_a_name_without_a_recipe_says_which_there_are(tmp_path):
    with pytest.raises(ValueError, match="relay-no-filter"):
        make("nothing", tmp_path)


def test_the_embedded_students_say_what_made_them():
    for name, path in embedded().items():
        record = json.loads((path / "training.json").read_text())
        assert {"recipe", "seconds", "device"} <= set(record), name
        assert "seed" in record["recipe"], name


def test_a_recipe_that_is_cut_short_keeps_the_first_of_its_stages():
    lead = run.read_config("embedded/relay-once")["lead"]
    assert recipes._shortened("relay-once", 50) == {"steps": 50, "lead": [lead[0], lead[1] | {"steps": 10}]}
    assert recipes._shortened("relay-once", 200) == {"steps": 200, "lead": lead}
    assert recipes._shortened("relay", 3) == {"steps": 3, "lead": []}


def test_a_run_of_stage_two_becomes_an_adapter(tmp_path, monkeypatch):
    small = tmp_path / "configs"
    small.mkdir()
    (small / "tiny.yaml").write_text("unused: here\n")
    monkeypatch.setattr(recipes, "CONFIGS", small)
    settings = dict(student="warm", teacher="none", reward="outcome", suites=["savings"], count=4, steps=2, prompts=2,
                    group=2, limits={"max_tokens": 16}, progress=False)  # fmt: skip
    monkeypatch.setattr("relaylab.training.run.read_config", lambda name: dict(settings))
    make("tiny", tmp_path / "out", steps=1)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["recipe"]["steps"] == 1
    engine, warm = load_engine(tmp_path / "out", device="cpu"), load_engine("warm", device="cpu")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert engine.model(ids).logits.shape == warm.model(ids).logits.shape
