"""GRPO with the relay: the loss, the mask, what a run leaves behind, and a killed run's end."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl.trainer.utils
from safetensors.torch import load_file

from relaylab.engine.load import load_engine
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import problems
from relaylab.trace import read_traces
from relaylab.training import grpo as module
from relaylab.training.grpo import train
from relaylab.training.policy_model import PolicyModel, load_trainable
from relaylab.training.rewards import advantages, score
from relaylab.training.rollouts import Rollouts, TeacherGone, prompt_key
from relaylab.training.run_dir import RunDir, read_metrics

SMALL = dict(
    student="warmup", max_steps=2, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-3,
    max_completion_length=48, save_steps=1, disable_tqdm=True, use_cpu=True, keep_rollouts=1,
)  # fmt: skip


def calling(view):
    """A teacher that says digits, so that every call is answered."""
    return TeacherOutput("7" * min(view.n, 3), "length", tokens=min(view.n, 3))


def some_problems(count: int = 4):
    return problems("depot", count, split="train")


@pytest.fixture(scope="module")
def teacher():
    return LocalTeacher(load_engine("teacher", device="cpu"))


def short_run(out: Path, teacher, **settings) -> Path:
    teachers = teacher if isinstance(teacher, list) else [teacher]
    return train(teachers=teachers, problems=some_problems(), output_dir=out, **SMALL | settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher):
    """A short run with everything kept."""
    out = tmp_path_factory.mktemp("grpo") / "run"
    short_run(out, teacher, max_calls=9)
    return out


def same_weights(one: Path, two: Path, name: str = "student/adapter_model.safetensors") -> bool:
    """Whether two folders hold the same weights, to the bit."""
    a, b = load_file(one / name), load_file(two / name)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rollouts(out: Path, step: int = 0) -> list:
    return list(read_traces(out / "rollouts" / f"{step:06d}.jsonl"))


# The loss ----------------------------------------------------------------------------------------------------------


class Captured(module.CompletionTrainer):
    """The trainer, stopped before its first update; gradients are those of one whole batch."""

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
    monkeypatch.setattr(module, "CompletionTrainer", Captured)
    short_run(tmp_path / "run", teacher, **{"seed": 1} | options)
    trainer, traces = Captured.last, rollouts(tmp_path / "run")
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


def test_logits_are_of_completions_alone(monkeypatch, tmp_path, teacher):
    rows, real = [], trl.trainer.utils._ChunkedLogProbFunction.apply

    def counted(hidden, *rest):
        rows.append(len(hidden))
        return real(hidden, *rest)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=counted))
    short_run(tmp_path / "run", teacher, beta=0.0)
    assert rows == [sum(len(t.completion_ids) for t in rollouts(tmp_path / "run", step)) for step in (0, 1)]


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
    trainer, traces = captured(monkeypatch, tmp_path, teacher, max_completion_length=160, seed=3)
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
    expected = {"reward", "accuracy", "call_ratio", "group_ratio", "calls", "malformed_calls", "kl", "entropy"}
    assert expected | {f"groups_{k}" for k in ("solvable", "dependent", "unsolvable")} <= set(metrics)
    traces = rollouts(run, 1)
    assert len({t.id for t in traces}) == len(traces) == 8
    assert [t.prompt for t in traces] == [traces[0].prompt] * 4 + [traces[4].prompt] * 4
    assert metrics["accuracy"][1] == pytest.approx(sum(t.correct for t in traces) / 8)
    assert metrics["call_ratio"][1] == pytest.approx(sum(t.call_ratio for t in traces) / 8)
    assert not (run / "checkpoints").exists()
    settings = json.loads((run / "student" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "warmup"
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert json.loads((run / "student" / "relay_config.json").read_text()) == {"max_tokens": 48, "max_calls": 9}
    trained, start = load_engine(run / "student", device="cpu"), load_engine("warmup", device="cpu")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert not torch.equal(trained.model(ids).logits, start.model(ids).logits)


def test_the_same_call_again_is_done_already_and_another_is_refused(run, teacher):
    before = (run / "student" / "adapter_model.safetensors").stat().st_mtime_ns
    assert short_run(run, teacher, max_calls=9) == run / "student"
    assert (run / "student" / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"beta was 0\.01, is 0\.5"):
        short_run(run, teacher, max_calls=9, beta=0.5)
    others = [replace(p, answer="0") for p in some_problems()]
    with pytest.raises(ValueError, match="problem_texts was"):
        train(teachers=[teacher], problems=others, output_dir=run, max_calls=9, **SMALL)


def test_folders_that_are_not_a_runs_own_stay_as_they_are(run, teacher, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes is not empty and holds no config"):
        short_run(tmp_path / "notes", teacher)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "mine"
    for out in (run, run / "student"):
        with pytest.raises(ValueError, match="holds the model"):
            short_run(out, teacher, student=str(run / "student"))


def test_full_fine_tuning_trains_all_weights_and_keeps_a_reference(tmp_path, teacher):
    out = short_run(tmp_path / "run", teacher, full=True)
    assert (out / "config.json").exists()
    assert not (out / "adapter_config.json").exists()
    metrics = read_metrics(tmp_path / "run")
    assert metrics["kl"][0] == pytest.approx(0, abs=1e-5)
    assert metrics["kl"][1] > 0
    assert load_engine(out, device="cpu").model.config.vocab_size == load_engine("student").model.config.vocab_size


def test_a_call_can_be_for_the_rest_of_its_line(tmp_path, teacher):
    student = short_run(tmp_path / "run", teacher, call_end="line", max_call_tokens=12)
    calls = [(c, t) for step in (0, 1) for t in rollouts(tmp_path / "run", step) for c in t.answered]
    ended = [c for c, _ in calls if c.finish_reason == "line"]
    assert any(c.delivered < min(c.requested, 12) for c in ended), "the line was shorter than the request"
    assert any(c.delivered > c.requested for c, _ in calls), "and longer"
    assert all("\n" not in "".join(t.pieces[c.end : c.end + c.delivered - 1]) for c, t in calls)
    assert json.loads((student / "relay_config.json").read_text())["call_end"] == "line"


def test_problems_that_cannot_be_trained_on_are_named(tmp_path, teacher):
    (one,) = some_problems(1)
    for problems_, words in (([], "no problems"), ([one, replace(one, answer="7")], "the same question")):
        with pytest.raises(ValueError, match=words):
            train(teachers=[teacher], problems=problems_, output_dir=tmp_path / words[:2], **SMALL)
    assert not [*tmp_path.iterdir()]


# Teachers that fail ------------------------------------------------------------------------------------------------

BROKEN = TeacherOutput("", "error", error="the server is on fire")


def test_several_teachers_take_the_groups_in_turn_and_a_failure_leaves_its_group(tmp_path):
    teachers = [ScriptedTeacher(calling, name="good"), ScriptedTeacher([BROKEN], name="broken")]
    settings = dict(max_steps=1, per_device_train_batch_size=16, num_generations=8)
    short_run(tmp_path / "run", teachers, **settings)
    traces = rollouts(tmp_path / "run")
    assert [t.teacher for t in traces] == ["good"] * 8 + ["broken"] * 8
    excluded = [t for t in traces if t.stop == "excluded"]
    assert {t.teacher for t in excluded} == {"broken"}
    metrics = read_metrics(tmp_path / "run")
    assert metrics["excluded"][0] == pytest.approx(len(excluded) / 16)
    assert metrics["failed_calls"][0] == pytest.approx(sum(c.error is not None for t in excluded for c in t.calls) / 16)


def test_the_groups_of_a_batch_have_their_teachers_however_many_processes_share_it(teacher):
    """Six groups and two teachers: of two processes the second begins in the middle of the rotation."""
    config = module.make_config(None, output_dir="x", **SMALL | {"max_completion_length": 12})
    teachers = [ScriptedTeacher(calling, name=name) for name in ("a", "b")]
    chosen = problems("depot", 6, split="train")
    asked = {prompt_key(p.messages()): p for p in chosen}
    some = Rollouts(config, PolicyModel(*load_trainable("warmup", device="cpu")), teachers, asked, Path("x"))
    prompts = [p.messages() for p in chosen for _ in range(2)]
    whole = some.run(prompts, 2, tag="0")
    assert [t.teacher for t in whole[::2]] == ["a", "b"] * 3
    halves = some.run(prompts[:6], 2, tag="0") + some.run(prompts[6:], 2, tag="0", first=3)
    assert [(t.id, t.teacher, t.completion_ids) for t in halves] == [(t.id, t.teacher, t.completion_ids) for t in whole]


def test_a_teacher_that_is_gone_stops_the_run_and_one_that_is_back_resumes_it(tmp_path):
    """The weights are those of a run whose teacher never failed."""

    def dies(view):  # after the first step
        return BROKEN if (tmp_path / "run" / "metrics.jsonl").exists() else calling(view)

    settings = dict(max_steps=3, max_excluded=0.2, save_steps=3)
    with pytest.raises(TeacherGone, match=r"of 8 rollouts \(the server is on fire\); the same command goes on"):
        short_run(tmp_path / "run", ScriptedTeacher(dies), **settings)
    assert read_metrics(tmp_path / "run")["step"].tolist() == [1]
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1").exists(), "save_steps alone would keep nothing"
    short_run(tmp_path / "run", ScriptedTeacher(calling), **settings)
    short_run(tmp_path / "whole", ScriptedTeacher(calling), **settings)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_teacher_that_can_be_probed_is_probed_before_anything_is_written(tmp_path):
    teacher = ScriptedTeacher(calling)
    teacher.probe = lambda: SimpleNamespace(reachable=False, error="nothing listens there")
    with pytest.raises(ValueError, match="the teacher script cannot be reached: nothing listens there"):
        short_run(tmp_path / "run", teacher)
    assert not (tmp_path / "run").exists()


def test_an_answer_that_the_teacher_ended_is_not_truncated(tmp_path):
    """TRL tells truncation by the last token, and leaves truncated rollouts out of the loss on request."""
    ends = ScriptedTeacher(lambda view: TeacherOutput("7", "stop", tokens=1))
    settings = dict(
        mask_truncated_completions=True, max_completion_length=24, per_device_train_batch_size=16, max_steps=1
    )
    short_run(tmp_path / "run", ends, **settings)
    traces = rollouts(tmp_path / "run")
    assert any(t.stop == "teacher_end" for t in traces)
    truncated = sum(t.stop == "length" for t in traces) / len(traces)
    assert 0 < truncated < 1
    assert read_metrics(tmp_path / "run")["completions/clipped_ratio"][0] == pytest.approx(truncated)


# Resume ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from relaylab.tasks.suites import problems
from relaylab.training.grpo import train
out, count, batch, steps, per = sys.argv[1], *map(int, sys.argv[2:])
train(student="warmup", problems=problems("depot", count, split="train"), output_dir=out, max_steps=steps,
      per_device_train_batch_size=batch, steps_per_generation=per, num_generations=4, learning_rate=1e-3,
      max_completion_length=40, save_steps=4, disable_tqdm=True, use_cpu=True, keep_rollouts=1)
"""
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def start(out: Path) -> subprocess.Popen:
    """Two optimiser steps a batch of rollouts and five problems, so that both windows and epochs are crossed."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), "5", "4", "12", "2"], env=ENV, stdout=subprocess.PIPE
    )


def wait_for_metrics(process: subprocess.Popen, out: Path, lines: int) -> None:
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= lines):
        time.sleep(0.01)


@pytest.mark.posix
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for lines in (1, 5):  # before the first checkpoint, and within a window after one
        process = start(killed)
        wait_for_metrics(process, killed, lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(killed)
    wait_for_metrics(process, killed, 7)
    process.send_signal(signal.SIGTERM)  # ends after the present batch of rollouts, with a checkpoint
    assert process.wait() != 0
    assert "stopping after this batch" in process.stdout.read().decode()
    assert not (killed / "finished").exists()
    steps = len(read_metrics(killed))
    assert steps % 2 == 0
    newest = killed / "checkpoints" / f"checkpoint-{steps}"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])  # as a power cut leaves it
    assert start(killed).wait() == 0
    assert same_weights(whole, killed)
    a, b = (read_metrics(d) for d in (whole, killed))
    assert a["step"].tolist() == b["step"].tolist() == list(range(1, 13))
    names = ["reward", "accuracy", "kl", "loss"]
    assert a[names].equals(b[names])
    for step in range(0, 12, 2):
        ours, theirs = (rollouts(d, step) for d in (whole, killed))
        assert [(t.id, t.completion_ids) for t in ours] == [(t.id, t.completion_ids) for t in theirs]


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path):
    run = RunDir(tmp_path / "run", {})
    for step in (2, 4, 6):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        torch.save({"a": torch.ones(100)}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text("{}" if step < 6 else "")
    (run.checkpoints / "checkpoint-old").mkdir()
    run.metrics.write_text("".join(f'{{"step": {i}}}\n' for i in range(1, 7)) + '{"step": 7')
    data = bytearray((run.checkpoints / "checkpoint-4" / "optimizer.pt").read_bytes())
    data[200] ^= 255
    (run.checkpoints / "checkpoint-4" / "optimizer.pt").write_bytes(data)
    assert run.resume() == str(run.checkpoints / "checkpoint-2")
    assert read_metrics(run.out)["step"].tolist() == [1, 2]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-old"]


# Several processes ---------------------------------------------------------------------------------------------------


def test_two_processes_take_the_steps_of_one_with_twice_the_prompts(tmp_path):
    """The second step's loss and KL are those of the weights that the first left."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("save_steps=4", "save_steps=1"))
    two, one = tmp_path / "two", tmp_path / "one"
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    several += ["--nproc_per_node", "2"]
    for command in (
        [*several, str(script), str(two), "4", "8", "2", "1"],
        [sys.executable, str(script), str(one), "4", "16", "2", "1"],
    ):
        run = subprocess.run(command, env=ENV, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert not (two / "checkpoints").exists()
    a, b = read_metrics(two), read_metrics(one)
    names = ["reward", "accuracy", "call_ratio", "calls", "tokens", "num_tokens", "loss", "kl", "grad_norm"]
    assert b["calls"].min() > 0
    assert b["grad_norm"].min() > 0
    for name in names:
        assert a[name].tolist() == pytest.approx(b[name].tolist(), rel=1e-3, abs=1e-6), name


def test_a_reward_of_ones_own_is_part_of_what_a_run_is_bound_to(tmp_path, monkeypatch):
    config = module.make_config("embedded/relay", output_dir=str(tmp_path))
    assert "own_code" not in module._bound(config, [], [], [])
    for text in ("[0.0]", "[1.0]"):
        (tmp_path / f"mine{text[1]}.py").write_text(f"def mine(group, **options):\n    return {text} * len(group)\n")
    monkeypatch.syspath_prepend(tmp_path)
    bound = []
    for name in ("mine0", "mine1"):
        monkeypatch.setitem(module.rewards.SCHEMES, config.reward, importlib.import_module(name).mine)
        bound.append(module._bound(config, [], [], [])["own_code"]["mine"])
    assert bound[0] != bound[1]
