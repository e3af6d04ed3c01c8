"""Stage 1, the supervised warm-up: the student learns the syntax of a call, not when to call (method: stage 1).

Responses are sampled from the student itself, so nothing but the commands is new to it. Commands go in at random
*token* positions and ask for n = d * 10**k tokens, d in 1..9, clipped to what is left of the response; the ids around
them stay as they were sampled. The loss is cross-entropy over the whole response.

The paper draws k from 0..3. With answers of 75 tokens nearly all of these are clipped to "all the rest", so the
embedded student is warmed up with k = 0 alone.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from relaylab.command import format_call
from relaylab.decoding.pair import Pair
from relaylab.decoding.row import Limits
from relaylab.models.engine import Engine
from relaylab.models.teachers import NoTeacher
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace


def insert_calls(
    ids: Sequence[int],
    encode,
    *,
    rng: random.Random,
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    exponents: Sequence[int] = (0, 1, 2, 3),
) -> list[int]:
    """A response with commands put in at random token positions.

    counts: the probability of 0, 1, 2 ... commands. Each asks for d * 10**k tokens, k from ``exponents``, clipped to
    what is left before the end token. ``encode`` turns the command's text into ids.

    >>> insert_calls([5, 6, 7, 8, 2], lambda text: [text], rng=random.Random(3), counts=(0, 1))
    [5, '<call>3</call>', 6, 7, 8, 2]
    """
    many = rng.choices(range(len(counts)), counts)[0]
    places = sorted(
        rng.sample(range(len(ids) - 1), min(many, len(ids) - 1))
    )  # never after the last token, the end token
    out: list[int] = []
    for i, token in enumerate(ids):
        if i in places:
            n = rng.randint(1, 9) * 10 ** rng.choice(exponents)
            out += encode(format_call(min(n, len(ids) - 1 - i)))
        out.append(token)
    return out


def warmup_data(
    student: Engine,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.7,
    keep_correct: bool = False,
    seed: int = 0,
    exponents: Sequence[int] = (0, 1, 2, 3),
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    max_tokens: int = 512,
) -> Dataset:
    """Pre-tokenised rows (``input_ids``, ``labels``) of the student's own responses, with commands.

    Responses that did not end are left out; so are wrong ones with ``keep_correct``.
    """
    traces = Pair(student, NoTeacher()).decode(
        problems, seed=seed, temperature=temperature, limits=Limits(max_tokens=max_tokens)
    )
    rng = random.Random(seed)
    rows = []
    for trace in traces:
        if trace.stop != "end" or (keep_correct and not trace.correct):
            continue
        ids = insert_calls(trace.completion_ids, student.text.encode, rng=rng, counts=counts, exponents=exponents)
        rows.append({"input_ids": trace.prompt_ids + ids, "labels": [-100] * len(trace.prompt_ids) + ids})
    if not rows:
        raise ValueError(f"none of the {len(traces)} responses can be used: {_why(traces)}")
    return Dataset.from_list(rows)


def _why(traces: Sequence[Trace]) -> str:
    ended = sum(t.stop == "end" for t in traces)
    return f"{ended} ended within their limit; raise max_tokens, or turn keep_correct off"


def warmup(
    student: Engine,
    data: Dataset,
    out: Path,
    *,
    steps: int = 500,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Fine-tune the student on ``data`` with TRL's SFTTrainer, all weights, and save the model to ``out``.

    All weights, because a student may never have seen the tokens of the tags: the embedded one holds them at
    log-probabilities near -30, and an adapter of the layers alone can only lift them together with every other token
    that it never saw. Works on a copy; the engine's model stays as it is.
    """
    set_seed(seed)
    config = SFTConfig(
        output_dir=str(out / "run"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.0,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        use_cpu=student.device.type == "cpu",
    )
    model = copy.deepcopy(student.model)
    SFTTrainer(model=model, args=config, train_dataset=data, processing_class=student.tokenizer).train()
    model.eval().to(torch.bfloat16).save_pretrained(out)
    student.tokenizer.save_pretrained(out)
    shutil.rmtree(out / "run", ignore_errors=True)
