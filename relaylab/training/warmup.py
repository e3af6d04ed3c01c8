"""Stage 1, the supervised warm-up: the student learns the syntax of a call, not when to call (method: stage 1).

Responses are sampled from the student itself, so that nothing but the commands is new to it. Commands go in at random
*token* positions and ask for n = d * 10**k tokens, d in 1..9, clipped to what is left of the response. The ids around
them stay as they were sampled. Training is on TRL's SFTTrainer.

Where the defaults are not the paper's, and why:

- ``loss``: the paper's is cross-entropy over the whole response. A token that the student drew by chance pulls hardest
  there, and unlearns what is stored nearby. ``distill`` learns the commands alone by cross-entropy. Every other token
  keeps the untouched student's whole distribution of the next token, by the KL divergence to it. The untouched student
  reads the response without commands. At the start of training this divergence has no gradient.
- ``counts``: half of the responses stay without a command. With a command in every response the student learns that
  an answer *must* hold one, and GRPO finds no group that is solved alone (docs/training.md has the numbers).
- ``min_token_prob`` (off by default) is a patch of cross-entropy: tokens of a smaller probability are not learned.
- ``exponents`` are the paper's, 0 to 3. With answers of 75 tokens nearly all of those are clipped to "all the rest",
  and no number lies between 10 and 20. So the embedded students get ``numbers`` up to 24 instead (``recipes.py``).
"""

from __future__ import annotations

import copy
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.files import bind_folder, check_config, check_replaceable, plain, read_json, replaced_folder, write_json
from relaylab.relay.pair import Pair
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, Teacher, TeacherOutput
from relaylab.stopping import stop_signals
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace
from relaylab.training.policy_model import (
    PolicyModel,
    base_model,
    check_apart,
    load_trainable,
    save_student,
    weights_digest,
)
from relaylab.training.run_dir import StopCallback, last_checkpoint

Loss = Literal["distill", "cross_entropy"]
NO_LOSS = -100  # the label of a token that is read and not learned
RECORD = "warmup.json"  # in a student's folder: how it was warmed up, and what came of it


def insert_calls(
    ids: Sequence[Any],
    encode: Callable[[str], list],
    *,
    rng: random.Random,
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    exponents: Sequence[int] = (0, 1, 2, 3),
    numbers: Sequence[int] | None = None,
) -> list:
    """A response with commands put in at random token positions.

    Args:
        ids: the tokens, the last of which is the end token.
        encode: turns a command's text into ids.
        rng: decides places and numbers.
        counts: the probability of 0, 1, 2 ... commands.
        exponents: a command asks for d * 10**k tokens, k of these, clipped to what is left before the end token.
        numbers: a command asks for one of these instead.

    >>> insert_calls([5, 6, 7, 8, 2], lambda text: [text], rng=random.Random(3), counts=(0, 1))
    [5, '<call>3</call>', 6, 7, 8, 2]
    """
    count = min(rng.choices(range(len(counts)), counts)[0], len(ids) - 1)
    places = rng.sample(range(len(ids) - 1), count)  # never after the end token
    out: list = []
    for i, token in enumerate(ids):
        if i in places:
            n = rng.choice(numbers) if numbers else rng.randint(1, 9) * 10 ** rng.choice(exponents)
            out += encode(format_call(min(n, len(ids) - 1 - i)))
        out.append(token)
    return out


def warmup_data(
    student: Engine,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    keep_correct: bool = False,
    min_token_prob: float = 0.0,
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    exponents: Sequence[int] = (0, 1, 2, 3),
    numbers: Sequence[int] | None = None,
    max_tokens: int = 512,
    prompt_suffix: str = "",
    decode_batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
    responses: Path | None = None,
) -> Dataset:
    """The student's own responses with commands in them, one row each.

    A row has ``input_ids``, ``labels`` (-100 for the prompt) and ``command``, which is 1 for the tokens of a command.

    Args:
        student: whose responses are sampled. Those that do not end are left out.
        problems: with ids that differ.
        samples: responses of each problem.
        temperature: at which they are sampled.
        keep_correct: leave wrong responses out.
        min_token_prob: tokens of a smaller probability, at temperature 1, are read and not learned (label -100).
        counts, exponents, numbers: see ``insert_calls``.
        max_tokens: of a response.
        prompt_suffix: put after each question.
        decode_batch_size: responses sampled together.
        seed: of responses and commands.
        progress: show a bar.
        responses: a folder that keeps the responses; interrupted, the same call goes on from them.

    Raises:
        ValueError: where no response is left, and for a probability that is none.
    """
    if not 0 <= min_token_prob <= 1:
        raise ValueError(f"min_token_prob is {min_token_prob}; it must be a probability, 0 to learn every token")
    options: dict[str, Any] = dict(temperature=temperature, max_tokens=max_tokens, batch_size=decode_batch_size)
    options |= {"record": min_token_prob > 0, "progress": progress}
    problems, pair, traces = _with_suffix(problems, prompt_suffix), Pair(student, NoTeacher()), list[Trace]()
    for k in range(samples):
        out = None if responses is None else responses / f"responses-{k}.jsonl"
        traces += pair.decode(problems, seed=seed + k, out=out, **options)
    rows, rng = [], random.Random(seed)
    for trace in traces:
        if trace.stop == "end" and (trace.correct or not keep_correct):
            row = insert_calls(
                _labelled(trace, min_token_prob), lambda text: [(i, i, 1) for i in student.text.encode(text)],
                rng=rng, counts=counts, exponents=exponents, numbers=numbers,
            )  # fmt: skip
            ids, labels, command = map(list, zip(*[(i, NO_LOSS, 0) for i in trace.prompt_ids], *row))
            rows.append({"input_ids": ids, "labels": labels, "command": command})
    if not rows:
        ended = sum(t.stop == "end" for t in traces)
        remedy = "raise max_tokens, or turn keep_correct off"
        raise ValueError(f"none of the {len(traces)} responses can be used: {ended} ended within their limit; {remedy}")
    return Dataset.from_list(rows)


def _labelled(trace: Trace, min_token_prob: float) -> list[tuple[int, int, int]]:
    """The tokens of a response, each with its label and 0, since it is none of a command."""
    if not min_token_prob or trace.logprobs is None:
        return [(i, i, 0) for i in trace.completion_ids]
    least = math.log(min_token_prob)
    return [(i, i if (p or 0.0) >= least else NO_LOSS, 0) for i, p in zip(trace.completion_ids, trace.logprobs)]


def collate(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of ``warmup_data`` as tensors (B, T), padded on the right; with ``attention_mask``."""

    def padded(name: str, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)

    ids = padded("input_ids", pad_id)
    mask = pad_sequence([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], batch_first=True)
    labels, command = padded("labels", NO_LOSS), padded("command", 0)
    return {"input_ids": ids, "labels": labels, "command": command, "attention_mask": mask}


def distill_loss(logits: torch.Tensor, reference: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy (nats, summed) of the commands' tokens, and KL to the untouched student at all others.

    Args:
        logits: of the student in training for ``batch``, (B, T, V).
        reference: of the untouched student for the rows of ``batch`` without commands, (B, T', V).
        batch: from ``collate``.
    """
    labels, command = batch["labels"][:, 1:], batch["command"][:, 1:].bool()
    learned, logits = labels != NO_LOSS, logits[:, :-1]
    # 1) The commands: what the untouched student never writes.
    new = learned & command
    loss = torch.nn.functional.cross_entropy(logits[new].float(), labels[new], reduction="sum")
    # 2) Everything else: token t of the row is token k of the row without commands, predicted at k - 1.
    kept = learned & ~command
    k = (1 - batch["command"]).cumsum(1)[:, 1:] - 1
    row = torch.arange(len(k), device=k.device)[:, None].expand_as(k)
    target = reference[row[kept], k[kept] - 1].float().log_softmax(-1)
    logp = logits[kept].float().log_softmax(-1)
    return loss + torch.nn.functional.kl_div(logp, target, reduction="sum", log_target=True)


def without_commands(batch: dict[str, torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """The ids and attention mask of the rows of ``batch`` as the student had sampled them."""
    keep = (batch["command"] == 0) & (batch["attention_mask"] == 1)
    ids = [row[kept] for row, kept in zip(batch["input_ids"], keep)]
    mask = [torch.ones_like(row) for row in ids]
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence(mask, batch_first=True)}  # fmt: skip


class DistillTrainer(SFTTrainer):
    """SFTTrainer with ``distill_loss``.

    Args:
        model: the student in training.
        reference: the untouched student; None for the model itself with its adapter switched off.
        pad_id: of the tokenizer.
        options: of SFTTrainer.
    """

    def __init__(self, model: Any, reference: Any, pad_id: int, **options: Any):
        self.frozen = reference and reference.eval().requires_grad_(False)
        self.pad_id = pad_id
        super().__init__(model=model, data_collator=lambda rows: collate(rows, pad_id), **options)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of ``distill_loss`` over the tokens that are learned."""
        plain = without_commands(inputs, self.pad_id)
        with torch.no_grad():
            reference = self._untouched(plain)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        learned = (inputs["labels"][:, 1:] != NO_LOSS).sum() if num_items_in_batch is None else num_items_in_batch
        loss = distill_loss(outputs.logits, reference, inputs) / learned
        return (loss, outputs) if return_outputs else loss

    def _untouched(self, plain: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.frozen is not None:
            return self.frozen(**plain, use_cache=False).logits
        policy: Any = self.accelerator.unwrap_model(self.model)
        with policy.disable_adapter():
            return policy(**plain, use_cache=False).logits


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a warm-up did.

    Args:
        student: its folder.
        rows: responses that it was trained on.
        before: accuracy alone (calls forbidden) on the check problems before it.
        after: the same after it.
        calls: calls that a response makes by itself after it.
    """

    student: Path
    rows: int
    before: float | None = None
    after: float | None = None
    calls: float | None = None

    def __str__(self) -> str:
        text = f"warmed up on {self.rows} responses: {self.student}"
        if self.before is None or self.after is None:
            return text
        change = f"accuracy alone {100 * self.before:.1f} % before, {100 * self.after:.1f} % after"
        return f"{text}\n{change}, {self.calls:.2f} calls a response"


def warmup(
    student: str | Path,
    problems: Sequence[Problem],
    out: str | Path,
    *,
    check: Sequence[Problem] = (),
    loss: Loss = "distill",
    max_steps: int = 250,
    per_device_train_batch_size: int = 32,
    learning_rate: float = 1e-3,
    lora: dict[str, Any] | None = None,
    full: bool = False,
    activation_checkpointing: bool = False,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    dtype: Any = None,
    **data: Any,
) -> Warmed:
    """Teach ``student`` the syntax of a call. Interrupted, the same call goes on from what ``OUT.work`` has.

    Args:
        student: a name or folder.
        problems: whose responses are sampled.
        out: the folder of the warmed-up student; responses and a checkpoint are in ``OUT.work`` until it is there.
        check: other problems, to measure accuracy at temperature 1 before and, once the student is saved, after.
        loss: ``distill``, or the paper's ``cross_entropy`` over the whole response.
        max_steps: optimiser steps.
        per_device_train_batch_size: responses a step.
        learning_rate: at its highest.
        lora, full, device, dtype: see ``load_trainable``.
        activation_checkpointing: compute activations again instead of keeping them.
        seed: of responses, commands and training.
        progress: show bars.
        data: keywords of ``warmup_data``.

    Raises:
        ValueError: where no response can be used, for an unknown loss, and where ``out`` holds something else.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, in training with a checkpoint.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(get_args(Loss))}")
    out = Path(out)
    settings = {k: v for k, v in locals().items() if k not in ("out", "problems", "check", "progress", "device")}
    texts = [[[p.id, p.question, p.answer] for p in part] for part in (problems, check)]
    config = plain(settings | {"weights": weights_digest(student), "problems": texts[0], "check": texts[1]})
    check_apart(out, student)
    check_replaceable(out, marker=RECORD)
    if (out / RECORD).exists():
        return _measured(out, config, check, seed, data, device=device, dtype=dtype)
    work = bind_folder(out.with_name(f"{out.name}.work"), config)
    set_seed(seed)
    model, tokenizer = load_trainable(student, full=full, lora=lora, device=device, dtype=dtype)
    policy = PolicyModel(model, tokenizer, name=str(student))
    before = _accuracy(_decoded(policy.engine, NoTeacher(), check, seed, data))
    rows = warmup_data(policy.engine, problems, seed=seed, progress=progress, responses=work, **data)
    cuda = policy.engine.device.type == "cuda"
    options: dict[str, Any] = dict(
        args=SFTConfig(
            output_dir=str(work / "run"),
            max_steps=max_steps,
            per_device_train_batch_size=per_device_train_batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(20, max_steps // 10),
            weight_decay=0.0,
            activation_checkpointing=activation_checkpointing,
            bf16=cuda,
            use_cpu=not cuda,
            seed=seed,
            max_length=None,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=not progress,
            remove_unused_columns=loss != "distill",  # the loss reads ``command``
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    if loss == "distill":
        # An adapter that begins as zero and is switched off is the untouched student.
        zero = base_model(student) == str(student) and (lora or {}).get("init_lora_weights", True) in (True, "gaussian")
        reference = None if isinstance(model, PeftModel) and zero else copy.deepcopy(model)
        pad_id: Any = tokenizer.pad_token_id
        trainer = DistillTrainer(model, reference, pad_id, **options)
    else:
        trainer = SFTTrainer(model=model, **options)
    trainer.remove_callback(PrinterCallback)
    with stop_signals("step") as stop:
        trainer.add_callback(StopCallback(stop, 1))
        trainer.train(resume_from_checkpoint=last_checkpoint(work / "run")[1])
        if (step := trainer.state.global_step) == max_steps:
            stop.clear()  # it came too late
        else:
            print(f"{step} of {max_steps} steps are saved in {work}; the same call goes on from there")
    with replaced_folder(out, marker=RECORD) as folder:
        save_student(model, tokenizer, student, folder)
        write_json(folder / RECORD, {"config": config, "result": {"rows": len(rows), "before": before}})
    shutil.rmtree(work)
    return _measured(out, config, check, seed, data, device=device, dtype=dtype)


def _measured(out: Path, config: Any, check: Sequence[Problem], seed: int, data: Any, **where: Any) -> Warmed:
    """What the record of a saved student says, measured now where it was not yet."""
    record = read_json(out / RECORD)
    check_config(out, record["config"], config)
    if check and record["result"].get("after") is None:
        engine = load_engine(out, **where)
        accuracy = _accuracy(_decoded(engine, NoTeacher(), check, seed, data))
        silent = ScriptedTeacher([TeacherOutput("", "error", error="only counting")])
        calls = [len(t.calls) for t in _decoded(engine, silent, check, seed, data)]
        record["result"] |= {"after": accuracy, "calls": sum(calls) / len(calls)}
        write_json(out / RECORD, record)
    return Warmed(out, **record["result"])


def _with_suffix(problems: Sequence[Problem], suffix: str) -> list[Problem]:
    return [replace(p, question=p.prompt(suffix)) for p in problems]


def _accuracy(traces: list[Trace]) -> float | None:
    return sum(bool(t.correct) for t in traces) / len(traces) if traces else None


def _decoded(engine: Engine, teacher: Teacher, check: Sequence[Problem], seed: int, data: Any) -> list[Trace]:
    check = _with_suffix(check, data.get("prompt_suffix", ""))
    limit = dict(max_tokens=data.get("max_tokens", 512), batch_size=data.get("decode_batch_size", 128))
    return Pair(engine, teacher).decode(check, seed=seed, temperature=1.0, progress=False, **limit)
