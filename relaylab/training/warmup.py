"""Stage 1, the supervised warm-up: the student learns the syntax of a call, not when to call (method: stage 1).

It is trained on its own responses with commands in them (``warmup_data.py``), on TRL's SFTTrainer. Not all defaults are
the paper's; docs/trials.md has the numbers behind them:

- ``loss``: the paper's is cross-entropy over the whole response, which unlearns what is stored near tokens drawn by
  chance. ``distill`` learns the commands alone by cross-entropy. Every other token keeps the untouched student's
  distribution of the next token, by KL. The untouched student reads the response without commands.
- ``counts``: half of the responses stay without a command, or GRPO finds no group that is solved alone.
- ``exponents`` are the paper's. Short answers clip nearly all such numbers, so the embedded students get ``numbers``.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from transformers import PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.engine.load import load_engine
from relaylab.files import bind_folder, check_config, check_replaceable, plain, read_json, replaced_folder, write_json
from relaylab.relay.names import models_of, without_secrets
from relaylab.relay.pair import Pair, load_teacher
from relaylab.relay.teachers import NamedTeachers, NoTeacher, ScriptedTeacher, Teacher, TeacherOutput
from relaylab.stopping import stop_signals
from relaylab.tasks.suites import Problem, problem_texts
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
from relaylab.training.warmup_data import NO_LOSS, collate, warmup_data, with_suffix, without_commands

Loss = Literal["distill", "cross_entropy"]
RECORD = "warmup.json"  # in a student's folder: how it was warmed up, and what came of it


def distill_loss(
    logits: torch.Tensor, reference: torch.Tensor, batch: dict[str, torch.Tensor], *, tag: int, keep: float
) -> torch.Tensor:
    """Cross-entropy (nats, summed) of the commands' tokens, and KL to the untouched student at all others.

    The divergence has two parts: whether the token begins a command, and which one it is if it does not. ``keep`` is
    the weight of the second. At 1 their sum is the divergence. A larger one forgets less, and calls as often.

    Args:
        logits: of the student in training for the last L of the T columns of ``batch``, (B, L, V).
        reference: of the untouched student for the rows of ``batch`` without commands, from the same column on.
        batch: from ``collate``.
        tag: the first token of a command.
        keep: see above.
    """
    begin = batch["labels"].shape[1] - logits.shape[1]
    labels, command = batch["labels"][:, begin + 1 :], batch["command"][:, begin + 1 :].bool()
    learned, logits = labels != NO_LOSS, logits[:, :-1]
    # 1) The commands: what the untouched student never writes.
    new = learned & command
    loss = torch.nn.functional.cross_entropy(logits[new].float(), labels[new], reduction="sum")
    # 2) Everything else: token t of the row is token k of the row without commands, predicted at k - 1.
    kept = learned & ~command
    k = (1 - batch["command"]).cumsum(1)[:, begin + 1 :] - 1 - begin
    row = torch.arange(len(k), device=k.device)[:, None].expand_as(k)
    target = reference[row[kept], k[kept] - 1].float().log_softmax(-1)
    logp = logits[kept].float().log_softmax(-1)
    loss = loss + torch.nn.functional.kl_div(logp, target, reduction="sum", log_target=True)
    # 3) The same among the tokens that begin no command.
    other = torch.arange(logp.shape[-1], device=logp.device) != tag
    target, logp = target[:, other], logp[:, other]
    given = target - target.logsumexp(-1, keepdim=True) - logp + logp.logsumexp(-1, keepdim=True)
    return loss + (keep - 1) * (target.exp() * given).sum()


class DistillTrainer(SFTTrainer):
    """SFTTrainer with ``distill_loss``. ``reference`` is the untouched student; None: the model without its adapter."""

    def __init__(self, model: Any, reference: Any, pad_id: int, *, tag: int, keep: float, **options: Any):
        self.frozen = reference and reference.eval().requires_grad_(False)
        self.pad_id, self.weights = pad_id, {"tag": tag, "keep": keep}
        super().__init__(model=model, data_collator=lambda rows: collate(rows, pad_id), **options)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of ``distill_loss`` over the tokens that are learned."""
        learned = inputs["labels"][:, 1:] != NO_LOSS
        begin = int(learned.any(0).int().argmax())  # before it stand prompts alone, whose logits nobody needs
        reference = self._untouched(without_commands(inputs, self.pad_id), begin)
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**read, use_cache=False, logits_to_keep=inputs["labels"].shape[1] - begin)
        learned = learned.sum() if num_items_in_batch is None else num_items_in_batch
        loss = distill_loss(outputs.logits, reference, inputs, **self.weights) / learned
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _untouched(self, plain: dict[str, torch.Tensor], begin: int) -> torch.Tensor:
        options: Any = plain | {"use_cache": False, "logits_to_keep": plain["input_ids"].shape[1] - begin}
        if self.frozen is not None:
            return self.frozen(**options).logits
        policy: Any = self.accelerator.unwrap_model(self.model)
        with policy.disable_adapter():
            return policy(**options).logits


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a warm-up did."""

    student: Path  # its folder
    rows: int  # responses that it was trained on
    before: float | None = None  # accuracy alone (calls forbidden) on the check problems before it,
    after: float | None = None  # and after it
    calls: float | None = None  # calls that a response makes by itself after it

    def __str__(self) -> str:
        text = f"warmed up on {self.rows} responses: {self.student}"
        if self.before is None or self.after is None:
            return text
        change = f"accuracy alone {100 * self.before:.1f} % before, {100 * self.after:.1f} % after"
        return f"{text}\n{change}, {self.calls:.2f} calls per response"


def warmup(
    student: str | Path,
    problems: Sequence[Problem],
    out: str | Path,
    *,
    check: Sequence[Problem] = (),
    teacher: str | Path | None = None,
    loss: Loss = "distill",
    keep: float = 4.0,
    max_steps: int = 250,
    per_device_train_batch_size: int = 32,
    learning_rate: float = 1e-3,
    lora: dict[str, Any] | None = None,
    full: bool = False,
    activation_checkpointing: bool = False,
    save_steps: int = 200,
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
        teacher: a name, folder or URL: it writes what the commands ask for (``warmup_data``). Several, as in
            ``"small=student large=teacher"``: each command names one.
        loss: ``distill``, or the paper's ``cross_entropy`` over the whole response.
        keep: of ``distill``: the weight of what the student knew (``distill_loss``).
        max_steps: optimiser steps.
        per_device_train_batch_size: responses a step.
        learning_rate: at its highest.
        lora, full, device, dtype: see ``load_trainable``.
        activation_checkpointing: compute activations again instead of keeping them.
        save_steps: steps between two checkpoints; a process that is killed goes on from the last one.
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
    free = ("out", "problems", "check", "progress", "device", "save_steps")  # these decide nothing, or are digested
    settings = {k: v for k, v in locals().items() if k not in ("free", *free)}
    teachers = models_of(str(teacher)) if teacher else {}
    settings["teacher"] = without_secrets(str(teacher)) if teacher else teacher
    settings |= {"weights": [weights_digest(m) for m in (student, *teachers.values())]}
    config = plain(settings | {"problems": problem_texts(problems), "check": problem_texts(check)})
    check_apart(out, student)
    check_replaceable(out, marker=RECORD)
    if (out / RECORD).exists():
        return _measured(out, config, check, seed, data, device=device, dtype=dtype)
    work = bind_folder(out.with_name(f"{out.name}.work"), config)
    set_seed(seed)
    model, tokenizer = load_trainable(student, full=full, lora=lora, device=device, dtype=dtype)
    policy = PolicyModel(model, tokenizer, name=str(student))
    before = _accuracy(policy.engine, check, seed, data)
    rows = warmup_data(
        policy.engine, problems, teacher=load_teacher(str(teacher), temperature=0.0) if teacher else None, seed=seed,
        progress=progress, responses=work, **data,
    )  # fmt: skip
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
            save_strategy="steps",
            save_steps=save_steps,
            save_total_limit=2,  # one may be torn
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
        # Padding is masked, so any token will do where a tokenizer has none for it.
        pad_id: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        tag = policy.engine.text.encode(format_call(1, next(iter(teachers), "") or None))[0]
        trainer = DistillTrainer(model, reference, pad_id, tag=tag, keep=keep, **options)
    else:
        trainer = SFTTrainer(model=model, **options)
    trainer.remove_callback(PrinterCallback)
    with stop_signals("step") as stop:
        trainer.add_callback(StopCallback(stop, 1))
        _, checkpoint = last_checkpoint(work / "run")
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
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
        accuracy = _accuracy(engine, check, seed, data)
        silent: Teacher = ScriptedTeacher([TeacherOutput("", "error", error="only counting")])
        if len(names := models_of(config["teacher"] or "")) > 1:
            silent = NamedTeachers(dict.fromkeys(names, silent))
        calls = [len(t.calls) for t in _decoded(engine, silent, check, seed, data)]
        record["result"] |= {"after": accuracy, "calls": sum(calls) / len(calls)}
        write_json(out / RECORD, record)
    return Warmed(out, **record["result"])


def _accuracy(engine: Engine, check: Sequence[Problem], seed: int, data: Any) -> float | None:
    traces = _decoded(engine, NoTeacher(), check, seed, data)
    return sum(bool(t.correct) for t in traces) / len(traces) if traces else None


def _decoded(engine: Engine, teacher: Teacher, check: Sequence[Problem], seed: int, data: Any) -> list[Trace]:
    check = with_suffix(check, data.get("prompt_suffix", ""))
    limit = dict(max_tokens=data.get("max_tokens", 512), batch_size=data.get("decode_batch_size", 128))
    return Pair(engine, teacher).decode(check, seed=seed, temperature=1.0, progress=False, **limit)
