"""The doctor: sums that can be checked elsewhere, verdicts on machines that are made up, and no exception anywhere."""

from __future__ import annotations

import io
import socket
import sys

import pytest
from rich.console import Console

from relaylab import capacity, doctor
from relaylab.capacity import GB, QWEN3, Machine, estimates, survey
from relaylab.doctor import Check, diagnose, report

LAPTOP = Machine(cores=4, memory=16 * GB, memory_free=12 * GB)
CARD_24 = Machine(8, 64 * GB, 60 * GB, "a card", 24 * GB, 24 * GB)
CARD_80 = Machine(16, 128 * GB, 120 * GB, "a card", 80 * GB, 80 * GB)


def checks(**options) -> dict[str, Check]:
    return {c.name: c for c in diagnose(**options)}


# ------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("name", QWEN3)
def test_parameters_and_cache_are_those_of_transformers(name):
    import torch
    from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

    shape = QWEN3[name]
    sizes = {field: getattr(shape, field) for field in shape.__slots__}
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**sizes)).to(torch.bfloat16)
        cache = DynamicCache(config=model.config)
        model(torch.zeros(1, 3, dtype=torch.long), past_key_values=cache)
    assert shape.parameters == model.num_parameters()
    kept = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert shape.cache * 3 == kept


def test_adapter_is_that_of_peft():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = capacity.Shape(32, 2, 4, 2, 16, 48, 100, True)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**{field: getattr(shape, field) for field in shape.__slots__}))
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape.lora(4) == adapted.get_nb_trainable_parameters()[0]


def test_an_estimate_is_the_sum_of_its_terms_and_shows_them():
    estimate = estimates(CARD_80)[1]
    assert estimate.need == pytest.approx(2 * 8190735360 + 2 * 596049920 + 2048 * (147456 + 114688) + capacity.RUNTIME)
    assert "teacher 8.19 B x 2 B = 16.4 GB" in estimate.arithmetic
    assert estimate.arithmetic.endswith(f": {estimate.need / GB:.1f} GB")


# ------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("machine", "verdicts"),
    [
        (LAPTOP, {False}),
        (CARD_24, {"decoding": True, "24gb-4bit": True, "24gb-server": True, "80gb": False}),
        (CARD_80, {True}),
    ],
    ids=["laptop", "24 GB", "80 GB"],
)
def test_what_machines_can_run(machine, verdicts):
    found = {e.name: e.ok for e in estimates(machine)[1:]}
    assert len(found) == 8
    if isinstance(verdicts, dict):
        assert found == {name: next(ok for end, ok in verdicts.items() if name.endswith(end)) for name in found}
    else:
        assert set(found.values()) == verdicts


def test_a_verdict_says_what_is_short_and_what_would_help():
    by_name = {e.name: e for e in estimates(CARD_24)}
    large = by_name["GRPO, qwen3/17b-80gb"]
    assert large.why == "43.9 GB short; with its teacher behind an API it takes at most 51.5 GB and does not fit either"
    # On a CPU weights are loaded in fp32.
    pair = {e.name: e for e in estimates(LAPTOP)}["Qwen3-0.6B + Qwen3-8B, decoding"]
    assert "8.19 B x 4 B" in pair.arithmetic
    assert pair.why.endswith("with its teacher behind an API it takes at most 5.0 GB and fits")


def test_as_many_rows_fit_as_it_says():
    estimate = estimates(CARD_80)[1]
    one = 2048 * (147456 + 114688)
    rows = int(estimate.why.removeprefix("fits, up to ").removesuffix(" rows at once"))
    assert estimate.need + (rows - 1) * one <= 80 * GB < estimate.need + rows * one


def test_training_wants_a_gpu_whatever_the_memory():
    server = Machine(64, 1000 * GB, 900 * GB)
    assert [e.ok for e in estimates(server)[1:]] == [True, True, *6 * [False]]
    assert estimates(server)[3].why == "made for a GPU, and there is none"


def test_unknown_memory_is_unknown_not_no():
    assert [e.ok for e in estimates(Machine(2, None, None))[1:3]] == [None, None]
    assert checks(machine=Machine(2, None, None))["memory"].ok is None


def test_the_embedded_pair_is_read_from_its_configs(monkeypatch, tmp_path):
    monkeypatch.setattr(capacity, "WEIGHTS", tmp_path)
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    assert estimates(LAPTOP)[0].ok is False
    assert checks()["embedded models"].remedy == "relaylab zoo train student"
    for role in ("relay", "student", "teacher", "warm"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "model.safetensors").write_bytes(bytes(2_000_000))
        (tmp_path / role / "config.json").write_text(
            '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, '
            '"head_dim": 16, "intermediate_size": 192, "vocab_size": 1024, "tie_word_embeddings": true, "extra": 1}'
        )
    assert estimates(LAPTOP)[0].ok is True
    assert checks()["embedded models"].detail == "relay 2.0 MB, student 2.0 MB, teacher 2.0 MB, warm 2.0 MB"
    assert estimates(Machine(2, 2 * GB, GB))[0].ok is False
    (tmp_path / "teacher" / "config.json").write_text("{")
    assert estimates(LAPTOP)[0].ok is False


# ------------------------------------------------------------------------------------------------- this machine


def test_a_container_limit_counts(tmp_path, monkeypatch):
    host = capacity.psutil.virtual_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert capacity._memory(tmp_path)[0] == host.total
    (tmp_path / "memory.max").write_text("2000000\n")
    assert capacity._memory(tmp_path) == (2_000_000, 1_999_000)


def test_memory_that_nobody_tells(monkeypatch):
    def locked():
        raise PermissionError("/proc is locked away")

    monkeypatch.setattr(capacity.psutil, "virtual_memory", locked)
    assert survey().memory is None


def test_an_accelerator_is_named_with_its_memory(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    machine = survey()
    assert (machine.accelerator, machine.device_memory, machine.device_free) == ("H200", 80 * GB, 70 * GB)
    assert checks(machine=machine)["torch"].detail.endswith("2 x H200, 80.0 GB, 70.0 GB of it free, bf16 in hardware")


def test_a_broken_driver_is_no_accelerator(monkeypatch):
    import torch

    def broken():
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert survey().accelerator is None
    assert checks(machine=LAPTOP)["torch"].ok


# ------------------------------------------------------------------------------------------------- checks


def test_a_check_that_breaks_is_a_check_that_failed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` raises
    found = checks()
    assert found["torch"].ok is False
    assert "ImportError" in found["torch"].detail or "ModuleNotFoundError" in found["torch"].detail
    assert found["python"].ok


def test_versions_are_held_against_the_constraints(monkeypatch, tmp_path):
    versions = dict.fromkeys(doctor.KEY_PACKAGES, "1.0")
    monkeypatch.setattr(doctor, "version", versions.__getitem__)
    monkeypatch.setattr(doctor, "CONSTRAINTS", tmp_path / "constraints.txt")
    assert checks()["packages"].ok is True
    doctor.CONSTRAINTS.write_text("# tested\ntorch==1.0\ntrl==0.9\n")
    versions["torch"] = "1.0+cpu"
    assert checks()["packages"].detail == "not as tested: trl 1.0 (tested: 0.9)"
    assert checks()["packages"].ok is None

    def gone(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", gone)
    assert checks()["packages"].detail.startswith("missing: torch, transformers")


def test_runs_folder_is_looked_at_and_not_made(tmp_path):
    assert checks(runs=tmp_path / "a" / "b")["runs folder"].ok
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    assert checks(runs=tmp_path / "file" / "b")["runs folder"].ok is False


def test_browser_and_extras_are_optional(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    found = checks()
    assert [found[name].ok for name in ("static figures", "ray", "vllm", "xllamacpp")] == [None] * 4
    assert found["jupyter kernel"].ok is False
    assert found["ray"].remedy == "pip install 'relaylab[ray]'"


def test_no_network_unless_an_address_is_given(monkeypatch):
    def connect(*_):
        raise AssertionError("the doctor reached for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    found = diagnose()
    assert not [c for c in found if "reached for the network" in c.detail]
    assert "API teacher" not in {c.name for c in found}


def test_a_server_that_is_not_there_is_a_finding():
    found = checks(api="http://127.0.0.1:9/v1")["API teacher"]
    assert found.ok is False
    assert "127.0.0.1:9" in found.detail


def test_report_prints_both_tables_and_returns_the_verdict(monkeypatch):
    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: [Check("x [y]", None, "z")])
    out = Console(file=io.StringIO(), width=200)
    assert report(console=out) is True
    text = out.file.getvalue()
    assert "x [y]" in text
    assert "Qwen3-8B, decoding: teacher" in text
    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: [Check("x", False, "z", "mend it")])
    assert report(console=out) is False
    assert "mend it" in out.file.getvalue()
