"""Names to models, and adapters that come merged."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from relaylab.engine import load as zoo
from relaylab.engine.load import checksum, embedded, load_engine, load_model, load_tokenizer, resolve
from relaylab.relay.pair import load_teacher
from relaylab.training.policy_model import load_trainable


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter of the embedded student with random weights, and the logits of the model under it."""
    out = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_model("student", device="cpu")[0], config).eval()
    model.peft_config["default"].base_model_name_or_path = "student"
    model.save_pretrained(out, save_embedding_layers=False)
    with torch.no_grad():
        return out, model(input_ids=torch.arange(20)[None]).logits


def copied(name: str, to: Path, file: str, **changes) -> Path:
    """A copy of an embedded model with fields of a JSON file changed."""
    folder = to / "copy"
    shutil.copytree(resolve(name), folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


def test_an_embedded_name_comes_first():
    assert {"student", "teacher"} <= set(embedded())
    assert resolve("student") == str(embedded()["student"])
    engine = load_engine("student", device="cpu")
    assert (engine.name, engine.dtype, engine.model.training) == ("student", torch.float32, False)


def test_hub_ids_stay_as_they_are():
    assert resolve("someone/something") == "someone/something"


def test_without_a_way_to_the_hub_the_cache_is_all_there_is(monkeypatch, capsys):
    """Its library would try each file several times."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setattr(zoo.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setattr(zoo.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(zoo, "getproxies", dict)
        zoo._look_for_hub.cache_clear()
        with pytest.raises(OSError, match="find them in the cached files"):
            load_model("someone/something", device="cpu")
        assert zoo.constants.HF_HUB_OFFLINE
    assert "cannot be reached" in capsys.readouterr().err
    monkeypatch.undo()
    zoo._look_for_hub.cache_clear()


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./somewhere/else", "~/nowhere", "/no/where"])
def test_what_stands_for_nothing_says_what_would(name):
    with pytest.raises(ValueError, match="student"):
        resolve(name)


def test_a_directory_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        resolve(tmp_path)


def test_an_adapter_is_merged_into_its_base(adapter):
    path, expected = adapter
    model, tokenizer = load_model(path, device="cpu")
    assert not any("lora" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        logits = model(input_ids=torch.arange(20)[None]).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    base = load_model("student", device="cpu")[0]
    with torch.no_grad():
        assert not torch.allclose(base(input_ids=torch.arange(20)[None]).logits, expected, atol=1e-2)
    assert tokenizer.get_vocab() == load_model("student", device="cpu")[1].get_vocab()


def test_an_adapter_without_safetensors_is_refused_before_any_pickle_is_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "student"}))
    (tmp_path / "adapter_model.bin").write_bytes(b"not to be read")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, r"adapter_config\.json names no base model"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "gone/for/good"}, r"adapter_config\.json names is not there: no model 'gone/for"),
    ],
)
def test_an_adapter_without_its_base_is_named(tmp_path, config, words):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path, device="cpu")


def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(load_model("student", device="cpu")[0], config)
    model.peft_config["default"].base_model_name_or_path = "student"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="adapter of type PROMPT_TUNING, which cannot be merged"):
        load_model(tmp_path, device="cpu")


def test_what_somebody_has_changed_is_one_error_that_names_the_model(tmp_path):
    """Kinds of errors that transformers lets through."""
    for number, change in enumerate(({"dtype": "__import__('os')"}, {"hidden_act": "evil"})):
        folder = tmp_path / str(number)
        shutil.copytree(resolve("student"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=f"{number} holds no model that can be loaded: "):
            load_model(folder, device="cpu")


def test_pickles_are_not_read_as_shards_of_safetensors(tmp_path):
    """transformers reads them by torch.load."""
    shutil.copytree(resolve("student"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(48)}, tmp_path / "model" / "a.bin")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "a.bin"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names 'a\.bin', which is no safetensors file"):
        load_model(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("nested", [False, True])
def test_more_layers_than_the_files_have_tensors_are_refused(tmp_path, nested):
    """transformers would make 10^8 layers before it looks for their weights."""
    folder = copied("student", tmp_path, "config.json", num_hidden_layers=10**8, layer_types=None)
    if nested:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "text_config": config}))
    with pytest.raises(ValueError, match=r"config\.json asks for 100000000 layers, and .* files hold \d\d tensors"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("setting", ["target_modules", "rank_pattern", "modules_to_save"])
def test_a_pattern_that_takes_without_end_is_refused(tmp_path, monkeypatch, setting):
    pattern = "model.(.*.*)*(.*.*)*x"
    change = {"target_modules": pattern, "rank_pattern": {pattern: 2}, "modules_to_save": [pattern]}[setting]
    folder = copied("relay", tmp_path, "adapter_config.json", **{setting: change})
    monkeypatch.setattr(zoo, "PATTERN_SECONDS", 1.0)
    for load in (load_model, load_trainable):
        if load is load_model or setting != "modules_to_save":  # which is no setting of a student
            with pytest.raises(ValueError, match=r"adapter_config\.json: matching a pattern in it takes too long"):
                load(folder, device="cpu")


def test_a_pattern_is_as_good_as_names(tmp_path):
    config = json.loads((embedded()["relay"] / "adapter_config.json").read_text())
    kinds = "|".join({name.rpartition(".")[2] for name in config["target_modules"]})
    folder = copied("relay", tmp_path, "adapter_config.json", target_modules=rf"model\.layers\.\d+\..*\.({kinds})")
    ours, expected = load_model(folder, device="cpu")[0].state_dict(), load_model("relay", device="cpu")[0].state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_what_is_not_embedded_is_announced_on_stderr(tmp_path, capsys):
    load_model("student", device="cpu")
    assert capsys.readouterr() == ("", "")
    folder = copied("relay", tmp_path, "adapter_config.json")
    load_model(folder, device="cpu")
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", f"loading {folder}")
    assert load_tokenizer("relay").get_vocab() == load_tokenizer("student").get_vocab()  # it has none of its own


def test_a_checksum_sees_every_file_that_matters(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = checksum(tmp_path)
    (tmp_path / "notes.txt").write_text("aside")
    assert checksum(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert checksum(tmp_path) != before


# 4 bits -----------------------------------------------------------------------------------------------------------


def with_cuda(monkeypatch, package=True):
    """A machine with a CUDA device, with or without bitsandbytes; what is asked of transformers instead of a model."""
    asked = {}

    def from_pretrained(path, **options):
        asked.update(options, path=path)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(zoo, "find_spec", lambda name: package or None)
    monkeypatch.setattr(zoo, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=from_pretrained))
    return asked


def test_four_bits_are_loaded_to_where_they_are_run(monkeypatch):
    asked = with_cuda(monkeypatch)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    teacher = load_teacher("teacher", quantize="4bit")
    config = asked["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == asked["dtype"] == torch.bfloat16
    assert asked["device_map"] == {"": "cuda"}
    assert (asked["use_safetensors"], asked["trust_remote_code"]) == (True, False)
    assert teacher.name == "teacher (4bit)"  # a run with a teacher in 4 bits is not one with the teacher itself
    monkeypatch.setenv("LOCAL_RANK", "2")
    load_model("teacher", quantize="4bit")
    assert asked["device_map"] == {"": "cuda:2"}


def test_four_bits_that_cannot_be_say_what_would_help(monkeypatch, adapter):
    with pytest.raises(ValueError, match="can be '4bit'"):
        load_model("teacher", quantize="8bit")
    with pytest.raises(ValueError, match="not merged into 4-bit weights; load it without quantize"):
        load_model(adapter[0], quantize="4bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="need a CUDA device, and there is none; leave quantize out, or serve"):
        load_teacher("teacher", quantize="4bit")
    with_cuda(monkeypatch, package=False)
    with pytest.raises(ValueError, match="the model is to go to 'cpu'"):
        load_model("teacher", device="cpu", quantize="4bit")
    with pytest.raises(ValueError, match=r"pip install 'relaylab\[quant\]'"):
        load_model("teacher", quantize="4bit")
