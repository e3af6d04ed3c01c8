"""The doctor: verdicts on machines that are made up, and no exception anywhere."""

from __future__ import annotations

import io
import socket
import sys

import pytest
from rich.console import Console

from relaylab import doctor, memory
from relaylab.doctor import Check, Machine, diagnose, estimates, print_diagnosis, survey
from relaylab.memory import GB, arithmetic, total

LAPTOP = Machine(cores=4, memory=16 * GB, memory_free=12 * GB)
CARD_24 = Machine(8, 64 * GB, 60 * GB, "a card", 24 * GB, 24 * GB)
CARD_80 = Machine(16, 128 * GB, 120 * GB, "a card", 80 * GB, 80 * GB)


# Estimates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "verdicts"),
    [
        (LAPTOP, {"": False}),
        (CARD_24, {"decoding": True, "24gb-4bit": True, "24gb-server": True, "80gb": False}),
        (CARD_80, {"": True}),
        (Machine(64, 1000 * GB, 900 * GB), {"decoding": True, "gb": False, "4bit": False, "server": False}),
    ],
    ids=["laptop", "24 GB", "80 GB", "large, without a GPU"],
)
def test_what_machines_can_run(machine, verdicts):
    embedded, *rest = estimates(machine)
    assert (embedded.ok, len(rest)) == (True, 8)
    assert {e.name: e.ok for e in rest} == {
        e.name: next(ok for end, ok in verdicts.items() if e.name.endswith(end)) for e in rest
    }


def test_a_verdict_says_what_is_short_and_what_would_help():
    by_name = {e.name: e for e in estimates(LAPTOP)}
    pair = by_name["Qwen3-0.6B + Qwen3-8B, decoding"]
    assert "8.19 B x 4 B" in arithmetic(pair.terms), "on a CPU weights are loaded in fp32"
    assert pair.why == "25.7 GB short; with its teacher behind an API it takes at most 5.0 GB"
    assert by_name["GRPO, qwen3/17b-80gb"].why == "made for a GPU, and there is none"
    assert [e.ok for e in estimates(Machine(2, None, None))[1:3]] == [None, None], "unknown is not no"
    assert estimates(Machine(2, 2 * GB, GB))[0].ok is False


def test_as_many_rows_fit_as_it_says():
    estimate, row = estimates(CARD_80)[1], 2048 * (147456 + 114688)
    assert total(estimate.terms) == pytest.approx(2 * 8190735360 + 2 * 596049920 + row + memory.RUNTIME)
    rows = int(estimate.why.removeprefix("fits, up to ").removesuffix(" rows at once"))
    assert total(estimate.terms) + (rows - 1) * row <= 80 * GB < total(estimate.terms) + rows * row


# This machine ---------------------------------------------------------------------------------------------------------


def test_a_container_limit_counts(tmp_path):
    host = doctor.psutil.virtual_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert survey(tmp_path).memory == host.total
    (tmp_path / "memory.max").write_text("2000000\n")
    assert survey(tmp_path)[1:3] == (2_000_000, 1_999_000)


def test_a_machine_that_tells_nothing(monkeypatch):
    def broken(*_):
        raise RuntimeError("/proc is locked away, and the driver is too old")

    monkeypatch.setattr(doctor.psutil, "virtual_memory", broken)
    monkeypatch.setattr("torch.cuda.is_available", broken)
    assert survey()[1:] == (None, None, None, None, None)
    assert diagnose(machine=survey())["memory"].ok is None


def test_an_accelerator_is_named_with_its_memory(monkeypatch):
    import torch

    facts = {"is_available": True, "mem_get_info": (70 * GB, 80 * GB), "get_device_name": "H200", "device_count": 2}
    for name, value in (facts | {"is_bf16_supported": True}).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value, **_: value)
    machine = survey()
    assert machine[3:] == ("H200", 80 * GB, 70 * GB)
    assert "2 x H200, 80.0 GB, 70.0 GB of it free, bf16 in hardware" in diagnose(machine=machine)["torch"].detail


# Checks ---------------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_check_that_failed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` raises
    checks = diagnose()
    assert checks["torch"].ok is False
    assert "torch" in checks["torch"].detail
    assert checks["python"].ok


def test_versions_are_held_against_the_declared_ones(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=2.10", "trl<2,>=1", 'ray>=2.54; extra == "ray"'])
    monkeypatch.setattr(doctor, "version", {"torch": "2.13.0+cpu", "trl": "1.16", "ray": "2.60"}.__getitem__)
    assert diagnose()["packages"][:2] == (True, "2 packages in the declared versions")
    assert diagnose()["extra ray"][:2] == (True, "ray 2.60: sweeps on a cluster")
    monkeypatch.setattr(doctor, "version", {"torch": "2.9", "trl": "1.16", "ray": "2.50"}.__getitem__)
    assert diagnose()["packages"][:2] == (False, "torch 2.9 (>=2.10)")
    assert diagnose()["extra ray"].ok is None

    def gone(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", gone)
    assert diagnose()["packages"].detail == "torch is missing, trl is missing"
    assert diagnose()["extra ray"].remedy == "pip install 'relaylab[ray]'"


def test_folders_and_programs(tmp_path, monkeypatch):
    assert diagnose(runs=tmp_path / "a" / "b")["runs folder"].ok
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    checks = diagnose(runs=tmp_path / "file" / "b")
    assert (checks["runs folder"].ok, checks["static figures"].ok) == (False, None)
    assert checks["embedded models"].remedy == "relaylab zoo train student"


def test_no_network_unless_an_address_is_given(monkeypatch):
    check = diagnose(api="http://127.0.0.1:9/v1")["API teacher"]
    assert check.ok is False
    assert "127.0.0.1:9" in check.detail

    def connect(*_):
        raise AssertionError("the doctor reached for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    checks = diagnose()
    assert not [c for c in checks.values() if "reached for the network" in c.detail]
    assert "API teacher" not in checks


@pytest.mark.parametrize("ok", [None, False])
def test_the_diagnosis_is_printed_and_returned(monkeypatch, ok):
    monkeypatch.setattr(doctor, "diagnose", lambda *_, **__: {"x [y]": Check(ok, "z\x1b[2J", "mend it")})
    out = Console(file=io.StringIO(), width=200)
    assert print_diagnosis(console=out) is (ok is None)
    text = out.file.getvalue()
    assert "x [y]" in text
    assert "z\\x1b[2J" in text, "what a server says cannot steer the terminal"
    assert "mend it" in text
    assert "Qwen3-8B, decoding" in text
