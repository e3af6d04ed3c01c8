"""The supervised warm-up: where commands go, what they ask for, what is trained, and what it costs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_grpo import same_weights
from torch.distributions import Categorical

from relaylab.call_tag import find_calls
from relaylab.engine.load import embedded, load_engine, resolve
from relaylab.relay.pair import load_pair, load_teacher
from relaylab.relay.relay import Relay
from relaylab.relay.teachers import ScriptedTeacher
from relaylab.tasks.suites import problems
from relaylab.trace import Trace, read_traces
from relaylab.training import warmup as module
from relaylab.training.warmup import DistillTrainer, distill_loss, warmup
from relaylab.training.warmup_data import collate, draw_place, insert_calls, warmup_data, without_commands


def encode(text: str) -> list[str]:
    return [text]


@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=60),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 3), min_size=1),
)
def test_what_was_sampled_stays_and_every_n_fits_what_is_left(ids, seed, exponents):
    out = insert_calls(ids, encode, rng=random.Random(seed), counts=(0, 1, 1, 1), exponents=exponents)
    assert [i for i in out if not isinstance(i, str)] == ids
    assert 1 <= len(out) - len(ids) <= 3
    assert out[-1] == ids[-1], "nothing stands behind the end token"
    for at, item in enumerate(out):
        if isinstance(item, str):
            (call,) = find_calls(item)
            left = sum(not isinstance(i, str) for i in out[at:]) - 1
            assert 1 <= call.n <= left
            assert call.n == left or call.n in {d * 10**k for d in range(1, 10) for k in exponents}
            assert not isinstance(out[at + 1], str), "one place takes one command"


def test_places_and_numbers_are_spread():
    rng, ids = random.Random(0), list(range(41))
    outs = [insert_calls(ids, encode, rng=rng, counts=(0.5, 0.5), exponents=(0, 1)) for _ in range(4000)]
    places = [next(i for i, x in enumerate(o) if isinstance(x, str)) for o in outs if len(o) > len(ids)]
    assert len(places) == pytest.approx(2000, abs=150)
    assert set(places) == set(range(40))
    assert max(map(places.count, range(40))) < 2.5 * min(map(places.count, range(40)))
    asked = [find_calls(o[0])[0].n for o in outs if isinstance(o[0], str)]
    assert {n // 10 if n >= 10 else n for n in asked} >= {1, 2, 3}
    assert max(asked) == 40


@pytest.fixture(scope="module")
def student():
    return load_engine("student", device="cpu")


def test_rows_are_the_students_own_responses_with_commands(student):
    chosen = problems("savings", 24, split="train")
    data = warmup_data(student, chosen, counts=(0, 1), exponents=(0,), max_tokens=160, progress=False)
    assert 20 <= len(data) <= 24
    for row in data:
        begin = sum(label == -100 for label in row["labels"])
        assert row["labels"][:begin] == [-100] * begin
        assert row["labels"][begin:] == row["input_ids"][begin:]
        text = student.tokenizer.decode(row["input_ids"][begin:])
        assert len(find_calls(text)) == 1
        assert find_calls(text)[0].n <= 9
        assert row["input_ids"][-1] in student.end_ids
    again = warmup_data(student, chosen, counts=(0, 1), exponents=(0,), max_tokens=160, progress=False)
    assert again["input_ids"] == data["input_ids"]
    assert len(warmup_data(student, chosen, samples=2, max_tokens=160, progress=False)) > len(data)


def test_a_teacher_writes_what_the_commands_ask_for(student):
    """Against transformers: the teacher's greedy tokens after the text so far, which holds no command."""
    teacher = load_teacher("teacher")
    options: dict[str, Any] = dict(counts=(0, 1), numbers=[5], max_tokens=160, progress=False)
    rows = warmup_data(student, problems("tiles", 12, split="train"), teacher=teacher, **options)
    begin = student.text.encode("<call>5</call>")
    helped = 0
    for row in rows:
        ids, labels, command = row["input_ids"], row["labels"], row["command"]
        at = command.index(1)
        n = int(re.match(r"<call>(\d+)</call>", student.tokenizer.decode(ids[at:]))[1])
        end = at + sum(command)
        assert n <= 5
        assert labels[at:end] == ids[at:end]
        assert labels[end : end + n] == [-100] * n, "the teacher's tokens are read and not learned"
        assert labels[end + n :] == ids[end + n :]
        if n == 5:
            assert ids[at:end] == begin
            so_far = torch.tensor([ids[:at]])
            wrote = teacher.engine.model.generate(so_far, max_new_tokens=n, do_sample=False)[0, at:].tolist()
            assert ids[end : end + n] == wrote
            helped += 1
    assert helped > 6


def test_places_follow_the_entropy_as_far_as_they_are_not_even():
    rng, trace = random.Random(0), Trace("q", [1], [5] * 5, "sssss", ["x"] * 5, entropies=[9.0, 0.0, 3.0, 1.0, 9.0])
    drawn = {u: Counter(draw_place(rng, trace, 1, 4, u) for _ in range(4000)) for u in (0.0, 0.5, 1.0)}
    assert set(drawn[0.0]) == {2, 3}, "never where the student is sure, before the begin, or at the last token"
    assert drawn[0.0][2] / 4000 == pytest.approx(3 / 4, abs=0.03)
    assert drawn[0.5][1] / 4000 == pytest.approx(1 / 6, abs=0.03)
    assert [drawn[1.0][i] / 4000 for i in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert draw_place(rng, replace(trace, entropies=None), 3, 4, 0.0) == 3


def test_commands_at_whole_words_stand_before_a_number_and_not_inside():
    pieces, rng = ["The", " sum", ": ", "4", "8", "*", "7", "2", "=", "3", "4", "5", "6", "."], random.Random(0)
    trace = Trace("q", [1], [5] * len(pieces), "s" * len(pieces), pieces)
    places = {draw_place(rng, trace, 1, len(pieces), 1.0, whole_words=True) for _ in range(400)}
    assert places == {1, 2, 3, 5, 6, 8, 9, 13}
    assert draw_place(rng, trace, 11, 12, 1.0, whole_words=True) == 11, "never before what is drawn from"


def test_commands_at_uncertain_tokens_are_drawn_from_what_was_recorded(student):
    problems_, options = problems("tiles", 24, split="train"), dict(counts=(0, 1), numbers=[3], max_tokens=160)
    teacher, entropies = load_teacher("teacher"), {}
    for uniform in (0.0, 1.0):
        rows = warmup_data(student, problems_, teacher=teacher, uniform=uniform, progress=False, **options)
        places = [row["command"].index(1) for row in rows]
        logits = [student.read([], row["input_ids"][: at + 1])[0][-1] for row, at in zip(rows, places)]
        entropies[uniform] = sum(float(Categorical(logits=row).entropy()) for row in logits) / len(rows)
    assert entropies[0.0] > 3 * entropies[1.0]


@pytest.fixture(scope="module")
def batch(student):
    options = dict(counts=(0, 1, 1), numbers=[3, 12], max_tokens=160, progress=False)
    return collate(list(warmup_data(student, problems("savings", 6, split="train"), **options)), pad_id=0)


@pytest.mark.parametrize("keep", [1, 3])
def test_self_distillation_is_cross_entropy_of_commands_and_kl_of_the_rest(student, batch, keep):
    """Against a slow reference: token by token, each row alone."""
    tag = 7
    torch.manual_seed(0)
    logits = torch.randn(*batch["input_ids"].shape, 40)
    batch = batch | {
        "input_ids": batch["input_ids"] % 40,
        "labels": batch["labels"].where(batch["labels"] < 0, batch["labels"] % 40),
    }
    plain = without_commands(batch, pad_id=0)
    reference = torch.randn(*plain["input_ids"].shape, 40)
    total = 0.0
    for r in range(6):
        kept = [t for t in range(int(batch["attention_mask"][r].sum())) if not batch["command"][r, t]]
        assert plain["input_ids"][r, : len(kept)].tolist() == batch["input_ids"][r, kept].tolist()
        assert plain["attention_mask"][r].sum() == len(kept)
        for t in range(1, int(batch["attention_mask"][r].sum())):
            logp = logits[r, t - 1].log_softmax(-1)
            if batch["command"][r, t]:
                total -= logp[batch["input_ids"][r, t]]
            elif batch["labels"][r, t] >= 0:
                p, q = logp.exp(), reference[r, kept.index(t) - 1].softmax(-1)
                if keep == 1:
                    total += (q * (q.log() - p.log())).sum()
                    continue
                total += q[tag] * (q[tag] / p[tag]).log() + (1 - q[tag]) * ((1 - q[tag]) / (1 - p[tag])).log()
                for v in set(range(40)) - {tag}:
                    total += keep * q[v] * (q[v] / (1 - q[tag]) / (p[v] / (1 - p[tag]))).log()
    begin = int((batch["labels"][:, 1:] >= 0).any(0).int().argmax())
    assert begin > 40, "the prompts; their logits may be left out"
    for first in (0, begin):
        loss = distill_loss(logits[:, first:], reference[:, first:], batch, tag=tag, keep=keep)
        assert loss.item() == pytest.approx(float(total), rel=1e-5)


def test_an_adapter_switched_off_is_the_untouched_student(tmp_path, batch, monkeypatch):
    """The reference of a new adapter is the base model, however far the adapter has moved."""
    seen = []

    def compare(self, model, inputs, **options):
        plain = without_commands(inputs, self.pad_id)
        expected = load_engine("student").model(**plain).logits[:, 9:]
        seen.append((self._untouched(plain, 9) - expected).abs().max().item())
        loss = DistillTrainer.compute_loss(self, model, inputs)
        with torch.no_grad():  # the loss of all logits, those of the prompts among them
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            whole = distill_loss(logits, self._untouched(plain, 0), inputs, **self.weights)
        assert loss.item() * (inputs["labels"][:, 1:] >= 0).sum().item() == pytest.approx(whole.item(), rel=1e-4)
        return DistillTrainer.compute_loss(self, model, inputs, **options)

    checked = type("Checked", (DistillTrainer,), {"compute_loss": compare})
    monkeypatch.setattr(module, "DistillTrainer", checked)
    quick = QUICK | {"max_steps": 3, "learning_rate": 1e-2, "counts": (0, 1)}
    for full in (False, True):
        warmup("student", problems("savings", 12, split="train"), tmp_path / f"{full}", full=full, **quick)
    assert len(seen) == 6
    assert max(seen) < 1e-4


@pytest.mark.parametrize(("uniform", "teacher"), [(0.5, None), (1.5, "teacher"), (-0.1, "teacher")])
def test_places_that_cannot_be_drawn_are_refused(student, uniform, teacher):
    with pytest.raises(ValueError, match="uniform is"):
        warmup_data(student, problems("tiles", 1), teacher=teacher and load_teacher(teacher), uniform=uniform)


def test_wrong_responses_can_be_left_out_and_none_left_is_an_error(student):
    hard = problems("galaxy", 6, split="train")
    assert len(warmup_data(student, hard, max_tokens=160, progress=False)) > 0
    with pytest.raises(ValueError, match="none of the 6 responses"):
        warmup_data(student, hard, keep_correct=True, max_tokens=160, progress=False)
    with pytest.raises(ValueError, match="raise max_tokens"):
        warmup_data(student, hard, max_tokens=5, progress=False)


def test_a_few_steps_teach_the_command_and_say_what_they_cost(tmp_path):
    done = warmup(
        "student", problems("savings", 120, split="train"), tmp_path / "warmup", check=problems("savings", 16),
        max_steps=60, learning_rate=6e-3, full=True, counts=(0, 1), exponents=(0,), max_tokens=160, progress=False,
        device="cpu",
    )  # fmt: skip
    assert done.before > 0.8
    assert 0.1 < done.after < done.before
    assert done.calls > 0.1, "the untouched student never calls"
    assert f"{100 * done.before:.1f} % before, {100 * done.after:.1f} % after" in str(done)
    assert (done.student / "model.safetensors").exists()
    assert load_engine(done.student, device="cpu").name == "warmup"
    assert [p.name for p in tmp_path.iterdir()] == ["warmup"]


QUICK = dict(max_steps=2, per_device_train_batch_size=4, max_tokens=160, progress=False, device="cpu")


def test_interrupted_a_warm_up_goes_on_from_its_responses(tmp_path, monkeypatch):
    chosen, out = problems("savings", 12, split="train"), tmp_path / "warmup"
    whole = warmup("student", chosen, tmp_path / "whole", **QUICK)
    monkeypatch.setattr(module.SFTTrainer, "train", lambda self, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        warmup("student", chosen, out, **QUICK)
    assert not out.exists()
    assert len(list(read_traces(tmp_path / "warmup.work" / "responses-0.jsonl"))) == 12
    monkeypatch.undo()
    sampled = []
    monkeypatch.setattr(Relay, "sequence", lambda *args: sampled.append(args))
    again = warmup("student", chosen, out, **QUICK)
    assert not sampled, "nothing is sampled again"
    assert again.rows == whole.rows
    assert same_weights(whole.student, again.student, "adapter_model.safetensors")
    assert warmup("student", chosen, out, **QUICK) == again, "the same call again is done already"
    with pytest.raises(ValueError, match="max_steps was 2, is 3"):
        warmup("student", chosen, out, **QUICK | {"max_steps": 3})


@pytest.mark.parametrize(("number", "full"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_ends_training_with_a_checkpoint_and_the_same_call_goes_on(
    tmp_path, monkeypatch, capsys, number, full
):
    chosen, out = problems("savings", 12, split="train"), tmp_path / "warmup"  # three steps an epoch
    options = QUICK | {"max_steps": 7, "full": full, "loss": "distill" if full else "cross_entropy"}
    whole = warmup("student", chosen, tmp_path / "whole", **options)

    class Interrupting(module.StopCallback):
        def on_step_end(self, args, state, control, **rest):
            if state.global_step == 5:
                os.kill(os.getpid(), number)
            super().on_step_end(args, state, control, **rest)

    monkeypatch.setattr(module, "StopCallback", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        warmup("student", chosen, out, **options)
    monkeypatch.undo()
    assert not out.exists()
    said = capsys.readouterr().out
    assert "stopping after this step" in said
    assert f"5 of 7 steps are saved in {out}.work; the same call goes on from there" in said
    steps, step = [], module.SFTTrainer.training_step
    monkeypatch.setattr(module.SFTTrainer, "training_step", lambda self, *args: steps.append(1) or step(self, *args))
    again = warmup("student", chosen, out, **options)
    assert len(steps) == 2
    assert same_weights(whole.student, again.student, "model.safetensors" if full else "adapter_model.safetensors")


def test_killed_in_training_the_same_call_goes_on_from_the_last_checkpoint(tmp_path, monkeypatch):
    chosen, options = problems("savings", 12, split="train"), QUICK | {"max_steps": 7, "full": True, "save_steps": 2}
    whole = warmup("student", chosen, tmp_path / "whole", **options)
    steps, step = [], module.SFTTrainer.training_step

    def counted(self, *args):
        steps.append(1)
        if len(steps) == 6:
            raise RuntimeError("killed")
        return step(self, *args)

    monkeypatch.setattr(module.SFTTrainer, "training_step", counted)
    with pytest.raises(RuntimeError, match="killed"):
        warmup("student", chosen, tmp_path / "warmup", **options)
    again = warmup("student", chosen, tmp_path / "warmup", **options)
    assert len(steps) == 6 + 3, "steps 5 to 7 after the checkpoint of step 4"
    assert same_weights(whole.student, again.student, "model.safetensors")


def test_the_student_is_saved_before_it_is_measured(tmp_path, monkeypatch):
    chosen, out = problems("savings", 12, split="train"), tmp_path / "warmup"
    options = QUICK | {"check": problems("savings", 4), "full": True}
    monkeypatch.setattr(module, "load_engine", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        warmup("student", chosen, out, **options)
    monkeypatch.undo()
    weights = (out / "model.safetensors").read_bytes()
    assert load_engine(out, device="cpu").name == "warmup"
    monkeypatch.setattr(module.SFTTrainer, "train", None)  # only what is missing is done
    done = warmup("student", chosen, out, **options)
    assert (done.rows, done.before > 0.4, 0 <= done.after <= 1, done.calls >= 0) == (12, True, True, True)
    assert (out / "model.safetensors").read_bytes() == weights


def test_what_a_warm_up_did_not_make_stays(tmp_path):
    chosen = problems("savings", 2, split="train")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis").write_text("mine")
    with pytest.raises(ValueError, match="this command did not make it"):
        warmup("student", chosen, tmp_path / "notes", **QUICK)
    with pytest.raises(ValueError, match="loss is 'kl'; it must be one of distill, cross_entropy"):
        warmup("student", chosen, tmp_path / "out", loss="kl", **QUICK)
    shutil.copytree(resolve("student"), tmp_path / "models" / "me")
    for out in (tmp_path / "models" / "me", tmp_path / "models"):
        with pytest.raises(ValueError, match="holds the model"):
            warmup(tmp_path / "models" / "me", chosen, out, **QUICK)
    assert (tmp_path / "models" / "me" / "model.safetensors").exists()
    assert (tmp_path / "notes" / "thesis").read_text() == "mine"


def test_the_password_of_a_teacher_reaches_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_teacher", lambda name, **_: ScriptedTeacher(["1"] * 99))
    url = "http://ann:SECRET@127.0.0.1:1/v1?token=TOKEN#large"
    warmup("student", problems("savings", 4, split="train"), tmp_path / "w", teacher=url, counts=(0, 1), **QUICK)
    assert (
        json.loads((tmp_path / "w" / "warmup.json").read_text())["config"]["teacher"] == "http://127.0.0.1:1/v1#large"
    )
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert not any(word in file.read_bytes() for word in (b"SECRET", b"TOKEN")), file


def test_a_student_that_calls_by_itself_gets_no_command_twice():
    """Its own commands are left as they are, and such responses are left out."""
    pair, chosen = load_pair("relay"), problems("tiles", 12, split="train")
    options = dict(counts=(0, 1), numbers=[2, 3, 4], max_tokens=160, temperature=0.7, progress=False)
    rows = warmup_data(pair.student, chosen, teacher=pair.teacher, **options)
    texts = [pair.student.tokenizer.decode(row["input_ids"]) for row in rows]
    assert texts
    assert not any("</call><call>" in text for text in texts)
    assert {text.count("<call>") for text in texts} <= {0, 1}


def test_a_tokenizer_without_a_token_for_padding_will_do(tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(embedded()["student"], mine)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (mine / name).exists():
            settings = json.loads((mine / name).read_text())
            settings.pop("pad_token", None)
            (mine / name).write_text(json.dumps(settings))
    assert load_engine(mine).tokenizer.pad_token_id is None
    done = warmup(str(mine), problems("savings", 8, split="train"), tmp_path / "w", counts=(0, 1), **QUICK)
    assert (done.student / "warmup.json").exists()
