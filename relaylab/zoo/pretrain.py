"""How the embedded models were made: tokenizer, drills, training from scratch, and training on into the worlds.

All models see *drills*, packed lines such as ``47*83=3901.``, and solved problems of the suites. Width, depth and the
number of steps differ. The loss covers results and solutions, not operands and questions. A base learns the plain
suites. Training on gives it a world: its wording, and to a student its misconceptions.

Muon trains the matrices, AdamW the rest. A run writes a checkpoint every ``save_every`` steps and continues from it.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from relaylab.call_tag import format_call
from relaylab.stopping import stop_signals
from relaylab.tasks.suites import ALL_SUITES, SUITES, Problem, mixture

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen's pre-tokenizer: one token a digit, words with their leading space, punctuation with its line break.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides an embedded model."""

    steps: int  # optimiser steps of ``batch`` sequences
    seed: int  # of the data, and of the weights without a ``base``
    width: int = 48
    layers: int = 2
    heads: int = 4
    base: str = ""  # the recipe whose model is trained on
    worlds: tuple[str, ...] = ("plain",)  # of the solved problems; each batch draws one
    textbook: bool = False  # learn the student's textbook: misconceptions included, and no results of hard steps
    suites: tuple[str, ...] = SUITES  # of the solved problems, in turn
    drills: tuple[float, float, float] = (0.8, 0.5, 0.3)  # the share of batches of drills, early, in the middle, late
    weights: dict[str, float] = field(default_factory=dict)  # of kinds of drills, over those of ``DRILLS``
    batch: int = 64
    learning_rate: float = 4e-3
    vocabulary: int = 1024


# Trained on from the models of no world, with the suites that have misconceptions.
_WORLD: dict[str, Any] = dict(suites=ALL_SUITES, learning_rate=2e-3)
_STUDENT: dict[str, Any] = _WORLD | dict(
    base="base/student", textbook=True, drills=(0.3, 0.3, 0.3), weights={"product_2x2": 0.3, "copy": 2.0}
)
RECIPES = {
    "base/student": Recipe(4500, 1),
    "base/teacher": Recipe(4000, 2, width=128, layers=4),
    "base/teacher-small": Recipe(3000, 3, width=80, layers=3),
    "base/teacher-large": Recipe(3000, 4, width=160, layers=4),
    "student": Recipe(1500, 11, worlds=("lifelike",), **_STUDENT),
    "plain/student": Recipe(1500, 12, worlds=("plain",), **_STUDENT),
    "wordy/student": Recipe(1500, 13, worlds=("wordy",), **_STUDENT),
    "stubborn/student": Recipe(1500, 14, worlds=("stubborn",), **_STUDENT),
    "teacher": Recipe(
        550, 15, width=128, layers=4, base="base/teacher", worlds=("lifelike", "lifelike", "lifelike", "plain"),
        drills=(0.2, 0.2, 0.2), **_WORLD,
    ),
    "teacher-small": Recipe(
        550, 16, width=80, layers=3, base="base/teacher-small", worlds=("lifelike", "lifelike", "lifelike", "plain"),
        drills=(0.2, 0.2, 0.2), **_WORLD,
    ),
    # Larger, trained for longer, and in one wording only.
    "teacher-large": Recipe(
        1000, 17, width=160, layers=4, base="base/teacher-large", drills=(0.2, 0.2, 0.2), **_WORLD
    ),
}  # fmt: skip

# kind -> (weight in the drills, draw of "expression", result)
DRILLS = {
    "sum": (1.5, lambda r: _line(r.randint(2, 99), "+", r.randint(2, 99))),
    "long_sum": (1.0, lambda r: _line(r.randint(100, 9999), "+", r.randint(11, 99))),
    "difference": (1.5, lambda r: _line(a := r.randint(12, 150), "-", r.randint(2, min(99, a - 1)))),
    "product_1x1": (0.7, lambda r: _line(r.randint(2, 9), "*", r.randint(2, 9))),
    "product_2x1": (0.7, lambda r: _line(r.randint(12, 99), "*", r.randint(2, 9))),
    "product_2x2": (3.0, lambda r: _line(r.randint(12, 99), "*", r.randint(12, 99))),
    "product_3x3": (0.2, lambda r: _line(r.randint(112, 989), "*", r.randint(112, 989))),
    "quotient": (0.4, lambda r: _quotient(r, 2, 9)),
    "long_quotient": (0.7, lambda r: _quotient(r, 12, 99)),
    "tenfold": (0.3, lambda r: _line(r.randint(100, 99999), "*", 10)),
    "copy": (0.0, lambda r: _copy(*(r.randint(12, 99) for _ in "ab"), *(r.randint(11, 39) for _ in "cd"))),
}


def _line(a: int, sign: str, b: int) -> tuple[str, str]:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{a}{sign}{b}=", f"{result}.\n"


def _copy(a: int, b: int, c: int, d: int) -> tuple[str, str]:
    """A product, a sum, and the sum of both. Where the product stands right, the rest is easy; it has to be read."""
    return f"{a}*{b}={a * b}.\n{c}+{d}={c + d}.\n", f"{a * b}+{c + d}={a * b + c + d}.\n"


def _quotient(r: random.Random, low: int, high: int) -> tuple[str, str]:
    a, b = r.randint(low, high), r.randint(low, high)
    return f"{a * b}/{b}=", f"{a}.\n"


def train_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, so that any text can be encoded, with ChatML special tokens and template."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    # With calls in the corpus `<call>` is a few tokens, as in a large vocabulary. No model is trained on them here.
    corpus = enumerate(islice(mixture(suites=SUITES, world="plain"), 6000))
    texts = [f"user\n{p.question}\nassistant\n{p.solution}\n{format_call(i % 9 + 1)}" for i, p in corpus]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(recipe: Recipe, tokenizer: Any) -> Qwen3ForCausalLM:
    """A Qwen3 of the recipe's size with random weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=recipe.width, intermediate_size=recipe.width * 3,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads // 2,
        head_dim=max(16, recipe.width // recipe.heads), max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def batch(tokenizer: Any, recipe: Recipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The training batch ``(input_ids, labels)`` of a step, each (B, T): a function of the seed and the step."""
    r = random.Random(f"{recipe.seed}/{step}")
    early, middle, late = recipe.drills
    done = step / recipe.steps
    drill_share = early if done < 0.3 else middle if done < 0.6 else late
    return (_drills if r.random() < drill_share else _problems)(tokenizer, recipe, r)


def _drills(tokenizer: Any, recipe: Recipe, r: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    size = recipe.batch * 96  # tokens
    weights = [recipe.weights.get(kind, weight) for kind, (weight, _) in DRILLS.items()]
    lines = [DRILLS[kind][1](r) for kind in r.choices(list(DRILLS), weights, k=size // 6)]
    # One stream cut into rows: a row may begin in the middle of a line, which costs a little and needs no padding.
    encoded = tokenizer([part for line in lines for part in line], add_special_tokens=False)["input_ids"]
    ids = [i for part in encoded for i in part]
    labels = [i if k % 2 else -100 for k, part in enumerate(encoded) for i in part]
    assert len(ids) >= size
    return torch.tensor(ids[:size]).view(recipe.batch, -1), torch.tensor(labels[:size]).view(recipe.batch, -1)


def _problems(tokenizer: Any, recipe: Recipe, r: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    seed = r.getrandbits(48) + 1
    stream = mixture(seed=seed, suites=recipe.suites, world=r.choice(recipe.worlds), textbook=recipe.textbook)
    chosen = list(islice(stream, recipe.batch))
    chats = [[{"role": "user", "content": p.question}] for p in chosen]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    solutions = [p.solution + "<|im_end|>" for p in chosen]
    encoded = tokenizer(solutions, add_special_tokens=False, return_offsets_mapping=True)
    answers = encoded["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers))
    ids, labels = torch.full((recipe.batch, width), tokenizer.pad_token_id), torch.full((recipe.batch, width), -100)
    for row, (p, a) in enumerate(zip(prompts, answers)):
        answer = slice(len(p), len(p) + len(a))
        ids[row, : answer.stop] = torch.tensor(p + a)
        labels[row, answer] = torch.tensor(a)
        for begin, end in _hard_results(chosen[row]) if recipe.textbook else ():
            hidden = [begin <= start < end for start, _ in encoded["offset_mapping"][row]]
            labels[row, answer][torch.tensor(hidden)] = -100
    return ids, labels


def _hard_results(p: Problem) -> list[tuple[int, int]]:
    """Where the results of hard steps stand in the solution. A student's textbook does not teach them."""
    found = (re.search(rf"{re.escape(step.expression)}=(\d+)", p.solution) for step in p.steps if step.hard)
    return [match.span(1) for match in found if match]


def _loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the labelled tokens. Logits are made for these alone: half of a small model's time."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    labelled = labels[:, 1:] >= 0
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[labelled]), labels[:, 1:][labelled])


def pretrain(
    recipe: Recipe, tokenizer: Any, work: Path, *, base: str | None = None, device: str = "cpu", save_every: int = 200
) -> dict[str, Any]:
    """Train one embedded model and save it to ``work/model``. Interrupted, the same call goes on from its checkpoint.

    Ctrl-C and SIGTERM save one first.

    Args:
        base: the folder of the model that is trained on; without it the weights begin at random.

    Returns:
        For ``training.json``: the seconds of all attempts, the number of parameters, and losses by step.
    """
    torch.manual_seed(recipe.seed)
    model: Any = new_model(recipe, tokenizer) if base is None else Qwen3ForCausalLM.from_pretrained(base)
    model.to(device=device, dtype=torch.float32)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    step, seconds, losses, checkpoint = 0, 0.0, [], work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        step, seconds, losses = state["step"], state["seconds"], state["losses"]
    started = time.monotonic()
    model.train()
    bar = tqdm(total=recipe.steps, initial=step, desc="pretraining", mininterval=5)
    with stop_signals("step") as stop, bar:
        while step < recipe.steps and not stop.is_set():
            done = step / recipe.steps
            rate = recipe.learning_rate * min(1.0, (step + 1) / 100) * min(1.0, max(0.01, (1 - done) / 0.5))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            ids, labels = batch(tokenizer, recipe, step)
            loss = _loss(model, ids.to(device), labels.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            bar.update()
            planned = step % save_every == 0 or step == recipe.steps
            if planned:
                losses.append([step, round(loss.item(), 4)])
                bar.set_postfix(loss=losses[-1][1])
            if planned or stop.is_set():
                state: dict[str, Any] = dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers])
                state |= dict(step=step, seconds=seconds + time.monotonic() - started, losses=losses)
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
        if step == recipe.steps:
            stop.clear()  # it came too late
    model.eval().save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    seconds = round(seconds + time.monotonic() - started)
    return {"seconds": seconds, "parameters": model.num_parameters(), "losses": losses}
