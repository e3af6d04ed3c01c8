"""The model that writes rollouts is the model in training, and what is saved of it loads as it was trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, get_peft_model

from relaylab.engine.load import load_engine, load_model, resolve
from relaylab.relay.config import RelayConfig
from relaylab.training.policy_model import PolicyModel, check_apart, load_trainable, save_student, weights_digest

IDS = torch.arange(12)[None]


def moved(model, scale: float = 0.05) -> None:
    """Move the weights, as some training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and ".ref." not in name:
                p.add_(scale * torch.randn_like(p))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "lora",
    [
        None, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"init_lora_weights": "olora"}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "orthogonal"},
        {"target_modules": ".*q_proj"}, {"exclude_modules": ["q_proj"]},
    ],
    ids=str,
)  # fmt: skip
def test_rollouts_and_the_saved_student_are_of_the_model_in_training(tmp_path, lora):
    model, tokenizer = load_trainable("warmup", device="cpu", lora=lora)
    policy = PolicyModel(model, tokenizer)
    for _ in range(2):
        moved(model)
        policy.sync()
        assert torch.allclose(logits(policy.engine.model), logits(model), atol=1e-3)
    assert not any("lora" in n for n, _ in policy.engine.model.named_parameters())
    save_student(model, tokenizer, "warmup", tmp_path)
    assert torch.allclose(logits(load_engine(tmp_path, device="cpu").model), logits(model), atol=1e-3)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"use_dora": True}, "use_dora cannot be trained"),
        ({"lora_bias": True}, "lora_bias cannot be trained"),
        ({"bias": "all"}, "bias cannot be trained"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save cannot be trained"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices cannot be trained"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens cannot be trained here; on linear layers it can"),
        ({"target_modules": ["lm_head"]}, "lm_head is tied to the embedding"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' would not be loaded as it was saved"),
        ({"lora_dropout": 0.1}, "lora_dropout must be 0"),
        ({"rank": 4}, "lora: got an unexpected keyword argument 'rank'"),
    ],
    ids=str,
)
def test_adapters_that_rollouts_could_not_follow_are_refused(lora, words):
    with pytest.raises(ValueError, match=words):
        PolicyModel(*load_trainable("warmup", device="cpu", lora=lora))


def adapter(folder, config):
    model = get_peft_model(load_model("warmup", device="cpu")[0], config)
    model.peft_config["default"].base_model_name_or_path = "warmup"
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def test_adapters_of_other_kinds_are_refused_as_students(tmp_path):
    kinds = {
        "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        "use_dora": LoraConfig(target_modules=["k_proj"], use_dora=True, task_type="CAUSAL_LM"),
    }
    for words, config in kinds.items():
        with pytest.raises(ValueError, match=words):
            load_trainable(adapter(tmp_path / words, config), device="cpu")


@pytest.mark.parametrize("scale", [0.05, 1e-3])
def test_whatever_moves_without_the_rollouts_is_seen_after_the_first_step(scale):
    """As a kind of adapter would that nobody here knows of: here a norm is trained besides."""
    model, tokenizer = load_trainable("warmup", device="cpu")
    policy = PolicyModel(model, tokenizer)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    moved(model, scale)
    with pytest.raises(RuntimeError, match="rollouts would not be of the model in training"):
        policy.sync()


def test_what_excludes_each_other_is_named(tmp_path):
    folder = adapter(tmp_path / "a", LoraConfig(target_modules=["k_proj"], task_type="CAUSAL_LM"))
    for name, options, words in (
        (folder, {"lora": {"r": 4}}, "brings an adapter"),
        (folder, {"full": True}, "is an adapter, and full trains a whole model"),
        ("student", {"lora": {"r": 4}, "full": True}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=words):
            load_trainable(name, device="cpu", **options)


def test_an_adapter_names_its_base_so_that_it_loads_from_anywhere(tmp_path, monkeypatch):
    model, tokenizer = load_trainable("warmup", full=True, device="cpu")
    save_student(model, tokenizer, "warmup", tmp_path / "base", RelayConfig(max_tokens=9, call_end="line"))
    caps = json.loads((tmp_path / "base" / "relay_config.json").read_text())
    assert caps == {"max_tokens": 9, "call_end": "line"}, "what is not the default"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").mkdir()
    save_student(*load_trainable("base", device="cpu"), "base", tmp_path / "tuned")
    monkeypatch.chdir(os.path.dirname(tmp_path))
    assert load_engine(tmp_path / "tuned", device="cpu").name == "tuned"
    for out in (tmp_path, tmp_path / "base", tmp_path / "tuned"):
        with pytest.raises(ValueError, match="holds the model"):
            check_apart(out, tmp_path / "tuned")
    check_apart(tmp_path / "other", tmp_path / "tuned", "warmup")


def test_a_saved_adapter_has_its_tokenizer_and_a_card_that_loads_it(tmp_path, monkeypatch):
    save_student(*load_trainable("warmup", full=True, device="cpu"), "warmup", tmp_path / "mine")
    for base, folder in (("warmup", tmp_path / "over-embedded"), (tmp_path / "mine", tmp_path / "over-mine")):
        model, tokenizer = load_trainable(base, device="cpu")
        moved(model)
        save_student(model, tokenizer, base, folder, RelayConfig(max_tokens=9))
        assert (folder / "tokenizer.json").exists() == (base != "warmup")
        monkeypatch.chdir(folder)
        with_relaylab, with_peft = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        found: dict = {}
        exec(with_relaylab.replace('load_pair(".")', 'load_pair(".", "none")'), found)
        exec(with_peft, found)
        assert found["pair"].defaults == {"max_tokens": 9}
        assert found["pair"].student.tokenizer.get_vocab() == tokenizer.get_vocab()
        for loaded in (found["pair"].student.model, found["model"]):
            assert torch.allclose(logits(loaded), logits(model), atol=1e-3)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "over-mine")
    assert torch.allclose(logits(auto), logits(model), atol=1e-3), "PEFT finds the base"


SAVE = """
import sys, torch
from pathlib import Path
from relaylab.training.policy_model import load_trainable, save_student
torch.manual_seed(0)
excluded = {"exclude_modules": list("abcdef")}
save_student(*load_trainable("warmup", device="cpu", lora=excluded), "warmup", Path(sys.argv[1]))
"""


def test_the_bytes_of_an_adapter_do_not_depend_on_the_hash_seed(tmp_path):
    seeds = ("1", "2")
    processes = [
        subprocess.Popen([sys.executable, "-c", SAVE, tmp_path / seed], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in seeds
    ]
    assert [p.wait() for p in processes] == [0, 0]
    contents = [{f.name: f.read_bytes() for f in (tmp_path / seed).iterdir()} for seed in seeds]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= contents[0].keys()
    assert contents[0] == contents[1]


def test_a_digest_tells_models_of_one_name_apart(tmp_path):
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=["k_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        adapter(tmp_path / str(seed), config)
    one, two = weights_digest(tmp_path / "1"), weights_digest(tmp_path / "2")
    assert one != two
    assert one == weights_digest(tmp_path / "1")
    assert weights_digest("warmup") == weights_digest(resolve("warmup"))
    assert weights_digest("owner/name") is None
    large = tmp_path / "1" / "more.safetensors"
    for middle in (b"a", b"b"):
        large.write_bytes(bytes(2**21) + middle + bytes(2**21))
        assert one != (one := weights_digest(tmp_path / "1")), "one byte in the middle"
