"""Every embedded model has a recipe, and a recipe that is cut short still makes a model that loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from relaylab.engine.load import checksum, embedded, embedded_tokenizer, load_engine
from relaylab.evaluation.method_map import pair_of, students, worlds
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import problems
from relaylab.training.config import make_config
from relaylab.training.configs import read_config
from relaylab.training.policy_model import adapter_card
from relaylab.zoo import pretrain, recipes
from relaylab.zoo.recipes import make
from relaylab.zoo.recipes import recipes as names


def test_every_embedded_model_has_a_recipe():
    assert set(embedded()) <= set(names())


def test_a_name_without_a_recipe_says_which_there_are(tmp_path):
    with pytest.raises(ValueError, match="ablations/no-filter"):
        make("nothing", tmp_path)


def test_the_embedded_students_say_what_made_them():
    for name, path in embedded().items():
        record = json.loads((path / "training.json").read_text())
        assert {"recipe", "seconds", "device"} <= set(record), name
        assert "seed" in record["recipe"], name
        if (path / "adapter_config.json").exists():
            recipe = make_config(f"embedded/{name}", output_dir="x")
            assert record["recipe"] == {"seed": 0} | read_config(f"embedded/{name}")
            assert RelayConfig(**json.loads((path / "relay_config.json").read_text())) == recipe.relay
            base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
            assert (path / "README.md").read_text() == adapter_card(base)


def test_a_signal_ends_a_training_from_scratch_with_a_checkpoint(tmp_path, monkeypatch):
    recipe = pretrain.Recipe(6, 1, width=16, layers=1, batch=2)
    tokenizer = embedded_tokenizer()

    def trained(name: str) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir(exist_ok=True)
        pretrain.pretrain(recipe, tokenizer, tmp_path / name)
        return load_file(tmp_path / name / "model" / "model.safetensors")

    whole, loss = trained("whole"), pretrain._loss
    losses = []

    def interrupted(*args):
        losses.append(loss(*args))
        if len(losses) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses[-1]

    monkeypatch.setattr(pretrain, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("stopped")
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["step"] == 3
    again = trained("stopped")
    assert len(losses) == 6
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_run_of_stage_two_becomes_an_adapter(tmp_path, monkeypatch):
    settings = dict(
        student="warmup", teacher="none", reward="outcome", suites=["savings"], num_problems=4, max_steps=2,
        per_device_train_batch_size=4, num_generations=2, max_completion_length=16, disable_tqdm=True,
    )  # fmt: skip
    monkeypatch.setattr(recipes, "config_names", lambda: ["embedded/tiny"])
    monkeypatch.setattr(recipes, "read_config", lambda name: dict(settings))
    make("tiny", tmp_path / "out", steps=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "relay_config.json", "training.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert json.loads((tmp_path / "out" / "training.json").read_text())["recipe"]["max_steps"] == 1
    engine, warm = load_engine(tmp_path / "out", device="cpu"), load_engine("warmup", device="cpu")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert engine.model(ids).logits.shape == warm.model(ids).logits.shape


def test_pretraining_resumes_to_the_same_weights_and_replaces_only_what_is_ours(tmp_path, monkeypatch):
    for name in ("base/student", "student"):
        tiny = replace(pretrain.RECIPES[name], width=16, layers=1, heads=2, batch=4, steps=4)
        monkeypatch.setitem(recipes.RECIPES, name, tiny)
    tokenizer = embedded_tokenizer()
    monkeypatch.setattr(recipes, "train_tokenizer", lambda vocabulary: tokenizer)
    monkeypatch.setattr(recipes, "pretrain", partial(pretrain.pretrain, save_every=2))
    make("student", tmp_path / "whole")
    base = checksum(tmp_path / "base-student")
    steps = iter(range(3))
    loss = pretrain._loss

    def interrupted(*args):
        if next(steps) == 2:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(pretrain, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("student", tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(pretrain, "_loss", loss)
    make("student", tmp_path / "killed")
    whole, killed = (checksum(tmp_path / name) for name in ("whole", "killed"))
    assert whole == killed != base == checksum(tmp_path / "base-student"), "trained on from one base"
    make("student", tmp_path / "short", steps=2)
    assert not {p.name for p in tmp_path.iterdir()} - {"whole", "killed", "short", "base-student"}
    make("base/student", tmp_path / "tried" / "base-student", steps=2)
    with pytest.raises(ValueError, match="base-student was made in 2 steps, and the recipe of base/student has 4; rem"):
        make("student", tmp_path / "tried" / "student")
    shutil.rmtree(tmp_path / "tried")
    make("student", tmp_path / "killed")  # once more in its place
    assert checksum(tmp_path / "killed") == whole
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    with pytest.raises(ValueError, match="this command did not make it"):
        make("student", tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["text"]


def test_a_world_by_its_dials_gets_its_models_one_from_the_other(tmp_path, monkeypatch):
    for name in ("base/student", "student"):
        tiny = replace(pretrain.RECIPES[name], width=16, layers=1, heads=2, batch=4, steps=2)
        monkeypatch.setitem(recipes.RECIPES, name, tiny)
    tokenizer = embedded_tokenizer()
    monkeypatch.setattr(recipes, "train_tokenizer", lambda vocabulary: tokenizer)
    small = {"num_problems": 4, "max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2}
    small |= {"filter_threshold": 0.0, "max_completion_length": 16, "disable_tqdm": True}
    monkeypatch.setattr(recipes, "read_config", lambda name: read_config(name) | small)
    monkeypatch.setitem(recipes.WARMUPS, "warmup", recipes.DISTILLED | {"num_problems": 8, "max_steps": 1})
    monkeypatch.setattr(recipes, "problems", lambda suite, count: problems(suite, 1))
    make("h2c1/relay", tmp_path / "h2c1-relay")
    made = ["base-student", "h2c1-relay", "h2c1-student", "h2c1-warmup"]
    assert sorted(p.name for p in tmp_path.iterdir()) == made
    recipe = {name: json.loads((tmp_path / name / "training.json").read_text())["recipe"] for name in made}
    assert recipe["h2c1-student"]["worlds"] == ["h2c1"]
    assert recipe["h2c1-warmup"]["student"] == "h2c1/student"
    assert recipe["h2c1-relay"]["rho_weight"] == 2.0, "it is the relay of the lifelike world, elsewhere"
    adapter = json.loads((tmp_path / "h2c1-relay" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "h2c1-warmup")
    assert worlds(tmp_path) == ["h2c1"]
    assert students("h2c1", "relay", tmp_path) == [str(tmp_path / "h2c1-relay")]
    with pytest.raises(ValueError, match=r"no student of the world 'h3c4' is in .*; of: h2c1"):
        pair_of("h3c4", tmp_path)
