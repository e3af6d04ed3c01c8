"""Stage 1, the supervised warm-up: the student learns the syntax of a call, not when to call (method: stage 1).

Responses are sampled from the student itself, so that nothing but the commands is new to it. Commands go in at random
*token* positions and ask for n = d * 10**k tokens, d in 1..9, clipped to what is left of the response; the ids around
them stay as they were sampled. The loss is cross-entropy over the whole response, or where the student was sure, on
TRL's SFTTrainer.

Where the defaults are not the paper's, and why:

- ``counts``: half of the responses stay without a command. With one or more in every response the student learns that
  an answer *must* hold one, and GRPO then finds no group that is solved alone (docs/training.md has the numbers).
- ``sure`` (off by default, 0.5 for ``warm-sure``): nothing but the commands is new, and yet a small student forgets
  much. A token that it drew by chance, say a digit of a product that it cannot do, pulls hardest, and unlearns what is
  stored nearby. Such tokens are then read, not learned.
- ``exponents`` are the paper's, 0 to 3. With answers of 75 tokens nearly all of those are clipped to "all the rest",
  and no number lies between 10 and 20; so the embedded student gets the ``numbers`` 4 to 24 instead (``recipes.py``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from relaylab.call_tag import format_call
from relaylab.engine.engine import Engine
from relaylab.relay.pair import Pair
from relaylab.relay.teachers import NoTeacher, ScriptedTeacher, TeacherOutput
from relaylab.tasks.suites import Problem
from relaylab.trace import Trace
from relaylab.training.policy_model import PolicyModel, load_trainable, save_student

NO_LOSS = -100  # the label of a token that is read and not learned


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

    counts: the probability of 0, 1, 2 ... commands. Each asks for d * 10**k tokens, k from ``exponents``, or
    for one of ``numbers`` where these are given, clipped to what is left before the end token. ``encode`` turns the
    command's text into ids.

    >>> insert_calls([5, 6, 7, 8, 2], lambda text: [text], rng=random.Random(3), counts=(0, 1))
    [5, '<call>3</call>', 6, 7, 8, 2]
    """
    many = min(rng.choices(range(len(counts)), counts)[0], len(ids) - 1)
    places = rng.sample(range(len(ids) - 1), many)  # never after the last token, the end token
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
    sure: float = 0.0,
    counts: Sequence[float] = (0.5, 0.35, 0.15),
    exponents: Sequence[int] = (0, 1, 2, 3),
    numbers: Sequence[int] | None = None,
    max_tokens: int = 512,
    suffix: str = "",
    rows_at_a_time: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """Pre-tokenised rows (``input_ids``, ``labels``) of the student's own responses, with commands in them.

    samples: responses of each problem. Those that did not end are left out; so are wrong ones with ``keep_correct``.
    sure: tokens of a smaller probability, at temperature 1, have the label -100: they are read and not learned. suffix:
    put behind each question. rows_at_a_time: responses sampled together.
    Raises ValueError where no response is left, and for a probability that is none.
    """
    if not 0 <= sure <= 1:
        raise ValueError(f"sure is {sure}; it must be a probability, 0 to learn every token")
    rows, traces, rng = [], list[Trace](), random.Random(seed)
    calls = dict(counts=counts, exponents=exponents, numbers=numbers)
    options = dict(temperature=temperature, max_tokens=max_tokens, batch_size=rows_at_a_time, progress=progress)
    options["record"] = sure > 0
    for k in range(samples):
        traces += Pair(student, NoTeacher()).decode(_asked(problems, suffix), seed=seed + k, **options)
    for trace in traces:
        if trace.stop == "end" and (trace.correct or not keep_correct):
            told = insert_calls(_labelled(trace, sure), lambda text: _same(student.text.encode(text)), rng=rng, **calls)
            told = [(i, NO_LOSS) for i in trace.prompt_ids] + told
            rows.append({"input_ids": [i for i, _ in told], "labels": [label for _, label in told]})
    if not rows:
        ended = sum(t.stop == "end" for t in traces)
        remedy = "raise max_tokens, or turn keep_correct off"
        raise ValueError(f"none of the {len(traces)} responses can be used: {ended} ended within their limit; {remedy}")
    return Dataset.from_list(rows)


def _labelled(trace: Trace, sure: float) -> list[tuple[int, int]]:
    """The tokens of a response, each with its label."""
    if not sure:
        return _same(trace.completion_ids)
    return [(i, i if p >= math.log(sure) else NO_LOSS) for i, p in zip(trace.completion_ids, trace.logprobs)]


def _same(ids: Sequence[int]) -> list[tuple[int, int]]:
    return [(i, i) for i in ids]


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a warm-up did: the student's folder, rows of data, and on the check problems accuracy alone (calls
    forbidden) before and after, and afterwards the calls that a response makes by itself."""

    student: Path
    rows: int
    before: float | None = None
    after: float | None = None
    calls: float | None = None

    def __str__(self) -> str:
        told = f"warmed up on {self.rows} responses: {self.student}"
        if self.before is None:
            return told
        change = f"accuracy alone {100 * self.before:.1f} % before, {100 * self.after:.1f} % after"
        return f"{told}\n{change}, {self.calls:.2f} calls a response"


def warmup(
    student: str | Path,
    problems: Sequence[Problem],
    out: str | Path,
    *,
    check: Sequence[Problem] = (),
    steps: int = 250,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    lora: dict[str, Any] | None = None,
    full: bool = False,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    **data: Any,
) -> Warmed:
    """Teach ``student`` (a name or folder) the syntax of a call; the warmed-up student is in ``out``.

    problems: whose responses are sampled; further keywords are those of ``warmup_data``. check: problems, others than
    those, on which accuracy at temperature 1 is measured before and after. lora, full: see ``policy.load_trainable``.

    Raises ValueError where no response can be used.
    """
    set_seed(seed)
    out = Path(out)
    model, tokenizer = load_trainable(student, full=full, lora=lora, device=device, dtype=dtype)
    policy = PolicyModel(model, tokenizer, name=str(student))
    cuda = policy.engine.device.type == "cuda"
    before = _alone(policy.engine, check, seed, data)
    rows = warmup_data(policy.engine, problems, seed=seed, progress=progress, **data)
    config = SFTConfig(
        output_dir=str(out / "run"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, steps // 10),
        weight_decay=0.0,
        activation_checkpointing=gradient_checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        seed=seed,
        max_length=None,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=not progress,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    save_student(model, tokenizer, student, out)
    policy.sync()
    after, calls = _alone(policy.engine, check, seed, data), _calls(policy.engine, check, seed, data)
    return Warmed(out, len(rows), before, after, calls)


def _asked(problems: Sequence[Problem], suffix: str) -> list[Problem]:
    return [replace(p, question=p.prompt(suffix)) for p in problems]


def _alone(engine: Engine, check: Sequence[Problem], seed: int, data: dict[str, Any]) -> float | None:
    if not check:
        return None
    check = _asked(check, data.get("suffix", ""))
    traces = Pair(engine, NoTeacher()).decode(check, seed=seed, temperature=1.0, progress=False, **_limit(data))
    return sum(bool(t.correct) for t in traces) / len(traces)


def _calls(engine: Engine, check: Sequence[Problem], seed: int, data: dict[str, Any]) -> float | None:
    """Closed calls a response, with a teacher that has nothing to say: what the student does by itself."""
    if not check:
        return None
    check = _asked(check, data.get("suffix", ""))
    teacher = ScriptedTeacher([TeacherOutput("", "error", error="only counting")])
    traces = Pair(engine, teacher).decode(check, seed=seed, temperature=1.0, progress=False, **_limit(data))
    return sum(len(t.calls) for t in traces) / len(traces)


def _limit(data: dict[str, Any]) -> dict[str, Any]:
    return {"max_tokens": data.get("max_tokens", 512), "batch_size": data.get("rows_at_a_time", 128)}
