"""GRPO with the relay: the loss, the mask, what a run leaves behind, and a killed run's end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relaylab.engine.load import load_engine
from relaylab.relay.config import RelayConfig
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces
from relaylab.training import grpo as module
from relaylab.training.grpo import grpo
from relaylab.training.policy_model import PolicyModel, load_trainable
from relaylab.training.rewards import advantages, score
from relaylab.training.run_dir import read_metrics

SMALL = dict(
    steps=2, prompts=2, group=4, learning_rate=1e-3, limits=RelayConfig(max_tokens=48), save_every=1, progress=False,
    device="cpu", keep_rollouts=1,
)  # fmt: skip


def calling(context, n):
    """A teacher that says digits, so that calls are answered whatever is asked."""
    return TeacherOutput("7" * min(n, 3), "length", tokens=min(n, 3))


def some_problems(count: int = 4):
    return problems("depot", count, split="train")


@pytest.fixture(scope="module")
def teacher():
    return LocalTeacher(load_engine("teacher", device="cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher):
    """A short run with everything kept."""
    out = tmp_path_factory.mktemp("grpo") / "run"
    grpo("warm", [teacher], some_problems(), out, **SMALL)
    return out


# The loss ----------------------------------------------------------------------------------------------------------


class Captured(module.GRPOTrainer):
    """TRL's trainer, stopped before its first update; gradients are those of one whole batch."""

    last: Captured

    def train(self, resume_from_checkpoint=None):
        type(self).last = self
        self.model.train()
        self._metrics["train"].clear()
        self.current_gradient_accumulation_steps = 1
        batch = next(iter(self.get_train_dataloader()))
        self.inputs = self._prepare_inputs(batch)
        # The policy moves away from its reference, or the KL would be at its minimum and say nothing.
        torch.manual_seed(1)
        for name, p in self.model.named_parameters():
            if ".default." in name:
                p.data += 0.02 * torch.randn_like(p)
        self.logps: list[torch.Tensor] = []
        inner = self._get_per_token_logps_and_entropies

        def kept(*args, **kwargs):
            logps, *rest = inner(*args, **kwargs)
            if logps.requires_grad:
                logps.retain_grad()
                self.logps.append(logps)
            return logps, *rest

        self._get_per_token_logps_and_entropies = kept
        self.compute_loss(self.model, self.inputs).backward()


def captured(monkeypatch, tmp_path, teacher, **options):
    monkeypatch.setattr(module, "GRPOTrainer", Captured)
    grpo("warm", [teacher], some_problems(), tmp_path / "run", **SMALL | {"seed": 1} | options)
    trainer = Captured.last
    traces = list(read_traces(tmp_path / "run" / "rollouts" / "000000.jsonl"))
    assert any("t" in t.source for t in traces)
    assert any("t" not in t.source for t in traces)
    return trainer, traces


def logps(model, ids, start):
    logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, ids[0, start:, None])[:, 0]


def naive_gradients(trainer, traces, group, beta):
    """The same loss, one rollout after another, from the traces: -(A exp(logp - logp') - beta k3), mean over tokens."""
    model = trainer.model
    model.zero_grad()
    batches = [traces[i : i + group] for i in range(0, len(traces), group)]
    rewards = score(batches, ratio="group")
    for traces_, values in zip(batches, rewards):
        for trace, advantage in zip(traces_, advantages(values)):
            ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
            start = len(trace.prompt_ids)

            with torch.no_grad():
                model.set_adapter("ref")
                reference = logps(model, ids, start)
                model.set_adapter("default")
            now = logps(model, ids, start)
            ratio = torch.exp(now - now.detach())
            kl = torch.exp(reference - now) - (reference - now) - 1
            student = torch.tensor([s != "t" for s in trace.source])
            loss = -(ratio * advantage - beta * kl)[student].mean() / len(traces)
            loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_gradients_equal_a_naive_loop_over_rollouts(monkeypatch, tmp_path, teacher, beta):
    trainer, traces = captured(monkeypatch, tmp_path, teacher, beta=beta)
    ours = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    theirs = naive_gradients(trainer, traces, 4, beta)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    for name, grad in ours.items():
        assert (grad - theirs[name]).norm() < 1e-3 * theirs[name].norm(), name
    assert max(g.abs().max() for g in ours.values()) > 1e-3


def test_teacher_tokens_get_exactly_nothing_and_without_the_mask_they_do(monkeypatch, tmp_path, teacher):
    trainer, traces = captured(monkeypatch, tmp_path, teacher)
    gradients, sources = trainer.logps[0].grad, trainer.inputs["tool_mask"].bool()
    completion = trainer.inputs["completion_mask"].bool()
    assert (~sources & completion).any()
    assert (gradients[~sources] == 0).all()
    assert (gradients[sources & completion] != 0).any()
    count = sum(t.source.count("t") for t in traces)
    assert int((~sources & completion).sum()) == count

    trainer, _ = captured(monkeypatch, tmp_path / "unmasked", teacher, mask_teacher=False)
    gradients = trainer.logps[0].grad
    assert (gradients[~sources & completion] != 0).any()


def test_the_sampled_end_token_is_trained(monkeypatch, tmp_path, teacher):
    trainer, traces = captured(monkeypatch, tmp_path, teacher, limits=RelayConfig(max_tokens=160), seed=3)
    ended = [i for i, t in enumerate(traces) if t.stop == "end"]
    assert ended
    by_length = {len(t.completion_ids): t for t in (traces[i] for i in ended)}
    mask, ids = trainer.inputs["tool_mask"] * trainer.inputs["completion_mask"], trainer.inputs["completion_ids"]
    lengths = trainer.inputs["completion_mask"].sum(1).tolist()
    ends = {trainer.processing_class.eos_token_id}
    last = [(int(ids[r, n - 1]), int(mask[r, n - 1])) for r, n in enumerate(lengths) if n in by_length]
    assert last
    assert all(m == 1 for i, m in last if i in ends)
    assert any(i in ends for i, _ in last)


# What a run leaves behind ------------------------------------------------------------------------------------------


def test_a_run_leaves_metrics_rollouts_and_an_adapter_that_loads(run):
    metrics = read_metrics(run)
    assert metrics["step"].tolist() == [1, 2]
    wanted = {"reward", "accuracy", "call_ratio", "group_ratio", "calls", "malformed_calls", "kl", "entropy"}
    assert wanted | {f"groups_{k}" for k in ("solvable", "dependent", "unsolvable")} <= set(metrics)
    traces = list(read_traces(run / "rollouts" / "000001.jsonl"))
    assert len(traces) == 8
    assert len({t.id for t in traces}) == 8
    assert [t.prompt for t in traces] == [traces[0].prompt] * 4 + [traces[4].prompt] * 4
    assert metrics["accuracy"][1] == pytest.approx(sum(t.correct for t in traces) / 8)
    assert metrics["call_ratio"][1] == pytest.approx(sum(t.call_ratio for t in traces) / 8)
    assert not (run / "checkpoints").exists()
    assert json.loads((run / "student" / "adapter_config.json").read_text())["base_model_name_or_path"] == "warm"
    trained, start = load_engine(run / "student", device="cpu"), load_engine("warm", device="cpu")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert not torch.equal(trained.model(ids).logits, start.model(ids).logits)


def test_the_same_call_again_is_done_already_and_another_is_refused(run, teacher):
    before = (run / "student" / "adapter_model.safetensors").stat().st_mtime_ns
    assert grpo("warm", [teacher], some_problems(), run, **SMALL) == run / "student"
    assert (run / "student" / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"beta was 0\.01, is 0\.5"):
        grpo("warm", [teacher], some_problems(), run, **SMALL, beta=0.5)


def test_the_policy_decodes_with_the_trained_weights():
    model, tokenizer = load_trainable("warm", device="cpu")
    policy = PolicyModel(model, tokenizer)
    ids = torch.arange(12)[None]
    for scale in (1.0, 3.0):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.mul_(scale)
            policy.sync()
            assert torch.allclose(policy.engine.model(ids).logits, model(ids).logits, atol=1e-4)
    assert not any("lora" in n for n, _ in policy.engine.model.named_parameters())


def test_full_fine_tuning_trains_all_weights_and_keeps_a_reference(tmp_path, teacher):
    out = grpo("warm", [teacher], some_problems(), tmp_path / "run", **SMALL, full=True)
    assert (out / "config.json").exists()
    assert not (out / "adapter_config.json").exists()
    assert read_metrics(tmp_path / "run")["kl"][0] == pytest.approx(0, abs=1e-5)
    assert read_metrics(tmp_path / "run")["kl"][1] > 0
    assert load_engine(out, device="cpu").model.config.vocab_size == load_engine("student").model.config.vocab_size


def test_plain_grpo_has_no_calls(tmp_path):
    grpo("warm", [NoTeacher()], some_problems(), tmp_path / "run", **SMALL, reward="outcome")
    metrics = read_metrics(tmp_path / "run")
    assert (metrics["calls"] == 0).all()
    assert (metrics["call_ratio"] == 0).all()


def test_several_teachers_take_the_groups_in_turn_and_a_failure_leaves_its_group(tmp_path):
    good = ScriptedTeacher(calling, name="good")
    broken = ScriptedTeacher([TeacherOutput("", "error", error="down")], name="broken")
    grpo("warm", [good, broken], some_problems(), tmp_path / "run", **SMALL | {"steps": 1, "group": 8})
    traces = list(read_traces(tmp_path / "run" / "rollouts" / "000000.jsonl"))
    assert [t.teacher for t in traces] == ["good"] * 8 + ["broken"] * 8
    excluded = [t for t in traces if t.stop == "excluded"]
    assert excluded
    assert {t.teacher for t in excluded} == {"broken"}
    assert read_metrics(tmp_path / "run")["excluded"][0] == pytest.approx(len(excluded) / 16)


def test_a_fixed_length_is_granted_whatever_is_asked(tmp_path, teacher):
    limits = RelayConfig(max_tokens=48, fixed_call_tokens=5)
    grpo("warm", [teacher], some_problems(), tmp_path / "run", **SMALL | {"limits": limits})
    calls = [c for f in (tmp_path / "run" / "rollouts").iterdir() for t in read_traces(f) for c in t.answered]
    assert calls
    assert all(c.granted == 5 or c.end + c.granted == 48 for c in calls)


def test_the_caps_of_the_first_steps_give_way_to_others(tmp_path, teacher):
    lead = [(1, RelayConfig(max_tokens=48, fixed_call_tokens=5)), (2, RelayConfig(max_tokens=48, max_call_tokens=3))]
    options = SMALL | {"lead": lead, "limits": RelayConfig(max_tokens=48, max_calls=0), "steps": 4, "keep_rollouts": 1}
    grpo("warm", [teacher], some_problems(), tmp_path / "run", **options)
    granted = []
    for file in sorted((tmp_path / "run" / "rollouts").iterdir()):
        granted.append([(c.requested, c.granted) for t in read_traces(file) for c in t.calls if c.end < 40])
    assert len(granted) == 4
    assert all(got == 5 for _, got in granted[0] if got)
    for step in (1, 2):
        assert all(got == min(asked, 3) for asked, got in granted[step] if got)
    assert [any(got for _, got in step) for step in granted] == [True, True, True, False]
    assert grpo("warm", [teacher], some_problems(), tmp_path / "run", **options).exists(), "the same terms, read again"


def test_settings_that_do_not_fit_are_named(tmp_path, teacher, run):
    for options, words in (
        ({"group": 1}, "group is 1"),
        ({"updates": 3}, "cannot be cut into 3 updates"),
        ({"micro_batch": 3}, "micro batches of 3"),
        ({"save_every": 0}, "save_every is 0"),
        ({"lead": [(99, RelayConfig(max_tokens=48))]}, "steps of lead are more"),
    ):
        with pytest.raises(ValueError, match=words):
            grpo("warm", [teacher], some_problems(), tmp_path / "run", **SMALL | options)
    with pytest.raises(ValueError, match="no problems"):
        grpo("warm", [teacher], [], tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match="brings an adapter"):
        load_trainable(run / "student", lora={"r": 4})
    with pytest.raises(ValueError, match="exclude each other"):
        load_trainable("student", lora={"r": 4}, full=True)
    with pytest.raises(ValueError, match="lora_dropout"):
        load_trainable("student", lora={"lora_dropout": 0.1})


# Resume ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from relaylab.relay.pair import load_teacher
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import problems
from relaylab.training.grpo import grpo
grpo("warm", [load_teacher("teacher")], problems("depot", 5, split="train"), sys.argv[1], steps=6, prompts=2, group=4,
     updates=2, learning_rate=1e-3, limits=RelayConfig(max_tokens=40), save_every=2, progress=False, device="cpu",
     keep_rollouts=1)
"""


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], env=os.environ | {"OMP_NUM_THREADS": "1"})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "adapter_model.safetensors")


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    """Two optimiser steps a batch of rollouts and five problems, so that both windows and epochs are crossed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for lines in (1, 5, 9):  # before the first checkpoint, within a window behind one, and near the end
        process = start(killed)
        metrics = killed / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "finished").exists()
    assert start(killed).wait() == 0
    one, two = weights(whole), weights(killed)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    a, b = (read_metrics(d).drop(columns=[c for c in read_metrics(d) if "second" in c or "time" in c or "runtime" in c])
            for d in (whole, killed))  # fmt: skip
    assert a["step"].tolist() == b["step"].tolist() == list(range(1, 13))
    assert a[["reward", "accuracy", "kl", "loss"]].equals(b[["reward", "accuracy", "kl", "loss"]])
    names = sorted(p.name for p in (whole / "rollouts").iterdir())
    assert names == sorted(p.name for p in (killed / "rollouts").iterdir())
    for name in names:
        ours, theirs = (list(read_traces(d / "rollouts" / name)) for d in (whole, killed))
        assert [(t.id, t.completion_ids) for t in ours] == [(t.id, t.completion_ids) for t in theirs]


# Several processes ---------------------------------------------------------------------------------------------------

TWO = """
import sys, torch
torch.set_num_threads(1)
from relaylab.relay.pair import load_teacher
from relaylab.relay.config import RelayConfig
from relaylab.tasks.suites import problems
from relaylab.training.grpo import grpo
grpo("warm", [load_teacher("teacher")], problems("depot", 4, split="train"), sys.argv[1], steps=2,
     prompts=int(sys.argv[2]), group=4, learning_rate=1e-3, limits=RelayConfig(max_tokens=40), progress=False,
     device="cpu")
"""


def test_two_processes_take_the_steps_of_one_with_twice_the_prompts(tmp_path):
    """The second step's loss and KL are those of the weights that the first left."""
    script = tmp_path / "train.py"
    script.write_text(TWO)
    two, one = tmp_path / "two", tmp_path / "one"
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([*several, str(script), str(two), "2"], [sys.executable, str(script), str(one), "4"]):
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    a, b = read_metrics(two), read_metrics(one)
    seen = ["reward", "accuracy", "call_ratio", "calls", "tokens", "num_tokens", "loss", "kl", "grad_norm"]
    assert b["calls"].min() > 0
    assert b["grad_norm"].min() > 0
    for name in seen:
        assert a[name].tolist() == pytest.approx(b[name].tolist(), rel=1e-3, abs=1e-6), name
