"""``credit_calls``: a command's tokens get the reward less that of a fork without the call, all others the group's."""

from __future__ import annotations

import re
from statistics import fmean, stdev

import pytest
import torch
from test_grpo import Captured, calling, rollouts, same_weights, short_run
from transformers import TrainerCallback

from relaylab.engine.load import load_engine
from relaylab.relay.local_teacher import LocalTeacher
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import ScriptedTeacher, TeacherOutput
from relaylab.tasks.grading import grade
from relaylab.tasks.suites import problems
from relaylab.training import grpo as module
from relaylab.training.grpo import CallCreditTrainer
from relaylab.training.run_dir import read_metrics

STUDENT, SEED = "relay", 1
CREDIT = dict(credit_calls=True, max_calls=2, max_completion_length=130, reward="simple", ratio="paper")


class CapturedCredit(Captured, CallCreditTrainer):
    """Stopped before its first update, as ``Captured`` is."""


@pytest.fixture(scope="module")
def teacher():
    return LocalTeacher(load_engine("teacher", device="cpu"))


def captured(monkeypatch, out, teachers, **settings):
    monkeypatch.setattr(module, "CallCreditTrainer", CapturedCredit)
    monkeypatch.setattr("test_grpo.some_problems", lambda: problems("tiles", 4, split="train"))
    short_run(out, teachers, **{"seed": SEED, "beta": 0.0, "student": STUDENT} | CREDIT | settings)
    return CapturedCredit.last, rollouts(out)


def rows(trainer, traces):
    """The row of the batch in which TRL put each trace."""
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(*map(trainer.inputs.get, ("completion_ids", "completion_mask")))
    ]
    return [ids.index(t.completion_ids) for t in traces]


def right(text, problem):
    return grade(re.sub(r"<call>\d+</call>", "", text), problem["answer"])


def slow_credits(traces, teachers, **caps):
    """Each call by itself: the student goes on from before the command, alone in its batch; reward 1[right] - rho."""
    student = load_engine(STUDENT, device="cpu")

    def reward(trace):
        return float(right(trace.text, trace.problem)) - trace.source.count("t") / len(trace.source)

    credits = []
    for number, trace in enumerate(traces):
        relay = Relay(student, teachers[number // 4 % len(teachers)], temperature=1.0, **caps)
        forks = {}
        for call in [c for c in trace.calls if c.status == "answered"]:
            stream = relay.fork(trace, call.start, forbid=True)
            list(stream)
            forks[call.start, call.end] = stream.traces[0]
        credits.append({span: reward(trace) - reward(fork) for span, fork in forks.items()})
    return credits, [reward(t) for t in traces]


@pytest.mark.parametrize("scale", ["batch", "group", "none"])
def test_advantages_equal_those_of_one_fork_after_another(monkeypatch, tmp_path, teacher, scale):
    teachers = [ScriptedTeacher(calling), teacher]
    trainer, traces = captured(monkeypatch, tmp_path / "run", teachers, scale_rewards=scale)
    credits, rewards = slow_credits(traces, teachers, max_calls=2, max_tokens=130)
    every = [credit for spans in credits for credit in spans.values()]
    assert max(every) > 0.5 > 0 > min(every), "one call made its answer right, others only cost"
    for number, (trace, row, spans) in enumerate(zip(traces, rows(trainer, traces), credits)):
        group = rewards[number // 4 * 4 :][:4]
        spread = {"batch": stdev(rewards), "group": stdev(group), "none": 1 - 1e-4}[scale] + 1e-4
        most = {"batch": 7 / 8**0.5, "group": 3 / 2, "none": 9}[scale]
        expected = [(rewards[number] - fmean(group)) / spread] * len(trace.source)
        for (start, end), credit in spans.items():
            assert set(trace.source[start:end]) == {"c"}
            expected[start:end] = [max(-most, min(most, credit / spread))] * (end - start)
        assert trainer.inputs["advantages"][row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_gradient_of_a_command_has_the_credits_size_and_sign(monkeypatch, tmp_path, teacher):
    trainer, traces = captured(monkeypatch, tmp_path / "run", teacher)
    gradients, mask = trainer.logps[0].grad, trainer.inputs["tool_mask"] * trainer.inputs["completion_mask"]
    expected = -trainer.inputs["advantages"] * mask / mask.sum(1, keepdim=True) / len(mask)
    assert torch.allclose(gradients, expected, atol=1e-7)
    spans = [(row, c) for row, t in zip(rows(trainer, traces), traces) for c in t.answered]
    signs = {gradients[row, c.start].sign().item() for row, c in spans}
    assert signs == {-1.0, 1.0}, "some calls helped and some did not"
    assert any(gradients[row, c.start] * gradients[row, c.start - 1] < 0 for row, c in spans if c.start)


def test_a_fork_that_a_failure_excluded_leaves_the_groups_advantage(monkeypatch, tmp_path):
    """The teacher fails from the first fork on: calls whose forks call again have no credit."""
    forking = []
    inner = Relay.forks

    def forks(self, *args, **change):
        forking.append(True)
        return inner(self, *args, **change)

    monkeypatch.setattr(Relay, "forks", forks)
    fails = ScriptedTeacher(lambda view: TeacherOutput("", "error", error="gone") if forking else calling(view))
    trainer, traces = captured(monkeypatch, tmp_path / "run", fails)
    credited = [len(some) for some in trainer.rollout_func.credits]
    assert 0 < sum(credited) < sum(len(t.answered) for t in traces)
    for trace, row, count in zip(traces, rows(trainer, traces), credited):
        values = set(trainer.inputs["advantages"][row, : len(trace.source)].tolist())
        assert len(values) <= 1 + count


def test_without_answered_calls_the_weights_are_those_of_the_plain_run(tmp_path, teacher):
    for credit in (True, False):
        short_run(tmp_path / str(credit), teacher, max_calls=0, credit_calls=credit)
    assert same_weights(tmp_path / "True", tmp_path / "False")
    plain, credited = read_metrics(tmp_path / "False"), read_metrics(tmp_path / "True")
    assert credited["fork_tokens"].tolist() == [0, 0]
    assert not {"fork_tokens", "call_credit", "needless_calls"} & {*plain}


def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(tmp_path, teacher):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 2:
                raise KeyboardInterrupt

    settings = CREDIT | dict(max_steps=4)
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "cut", teacher, **settings, callbacks=[Interrupt()])
    for name in ("cut", "whole"):
        short_run(tmp_path / name, teacher, **settings)
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    names = ["reward", "loss", "call_credit", "needless_calls", "fork_tokens"]
    a, b = (read_metrics(tmp_path / name)[names] for name in ("cut", "whole"))
    assert a.equals(b)
    assert (b["fork_tokens"] > 0).all()
    assert b["call_credit"].abs().min() > 0
