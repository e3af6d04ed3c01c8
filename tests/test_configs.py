"""The shipped settings: known keys, numbers that divide, and memory that is what the arithmetic says."""

from __future__ import annotations

import functools
import inspect
import random
import re
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from relaylab.engine import engine
from relaylab.engine.load import load_engine
from relaylab.relay import pair
from relaylab.relay.config import RelayConfig
from relaylab.training import grpo, memory, policy, run
from relaylab.training.memory import GB, RUNTIME, Shape, Training, columns, places, shipped, total

FILES = {str(f.relative_to(run.CONFIGS).with_suffix("")): f for f in sorted(run.CONFIGS.glob("*/*.yaml"))}
QWEN3 = sorted(name for name in FILES if name.startswith("qwen3/"))
SUFFIX = r"Please reason step by step, and put your final answer within \boxed{}."
DEFAULTS = {n: p.default for n, p in inspect.signature(grpo.grpo).parameters.items() if p.default is not p.empty}


@pytest.fixture
def settings(name, monkeypatch):
    """What ``train`` would run with, after its own checks."""
    monkeypatch.setattr(run, "_train", functools.wraps(run._train)(lambda **given: given))
    return run.train(name, **({} if "out" in run.read_config(name) else {"out": "runs/x"}))


@pytest.mark.parametrize("name", QWEN3)
def test_the_memory_in_the_comment_is_that_of_the_arithmetic(name):
    run_ = shipped()[name]
    told = re.search(r"^# Memory: (.*) = ([\d.]+) GB of (\d+)( on each GPU)?$", FILES[name].read_text(), re.MULTILINE)
    summands, peak, card, each = told.groups()
    assert summands == " + ".join(f"{t.what} {t.size / GB:.1f}" for t in run_.terms)
    assert float(peak) == round(total(run_.terms) / GB, 1)
    assert (int(card), bool(each)) == (run_.card, run_.gpus > 1)
    assert total(run_.terms) < 0.95 * run_.card * GB


@pytest.mark.parametrize("name", QWEN3)
def test_the_data_filter_fits_before_the_student_is_there(name, settings):
    run_, sieve = shipped()[name], settings["filter"]
    if run_.teacher is None or "rates" in sieve:
        return
    assert sieve["max_tokens"] == settings["limits"]["max_tokens"]
    rows = sieve["batch_size"] // 10 * 10
    tokens = memory.PROMPT + sieve["max_tokens"]
    caches = places(rows + memory.KEPT) * columns(tokens) * run_.teacher.cache
    assert run_.terms[0].size + caches + RUNTIME < 0.95 * run_.card * GB


def test_the_documentation_has_the_table_as_it_is_printed():
    assert memory.table() in (Path(__file__).parents[1] / "docs" / "single-gpu.md").read_text()


# The arithmetic, against the code whose memory it counts -------------------------------------------------------------


def test_constants_are_those_of_the_code():
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    assert memory.KEPT == pair.KEEP
    assert memory.CHUNK == engine.MAX_CHUNK_TOKENS
    assert policy.LORA["r"] == memory.RANK
    assert memory.TILE == (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE)


@pytest.mark.parametrize("rows", [1, 5, 8, 12])
def test_an_engine_reserves_what_the_arithmetic_says(rows):
    student, rng = load_engine("student", device="cpu"), random.Random(rows)
    opened, longest = [], 0
    for _ in range(rows):
        opened.append(student.open([5] * rng.randint(3, 40)))
        student.forward(opened[-1:])
    for _ in range(12):
        for row in opened:
            student.extend(row, [5] * rng.randint(1, 20))
        student.forward(opened)
        longest = max(len(row.ids) for row in opened)
        assert student._slots == places(rows)
        assert longest < student._columns <= columns(longest)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it held at a time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {StorageWeakRef(t.untyped_storage()).cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for t in tree_leaves(out):
            if torch.is_tensor(t) and (ref := StorageWeakRef(t.untyped_storage())).cdata not in given:
                self.live[ref.cdata] = (ref, t.untyped_storage().nbytes())
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


@pytest.mark.parametrize("full", [False, True])
def test_an_update_holds_what_the_arithmetic_says(full):
    """The layers of a small model shaped like Qwen3-0.6B; the output matrix with its own kernel is left out."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape, rows, tokens = Shape(128, 6, 2, 1, 128, 384, 64, True), 2, 160
    config = Qwen3Config(**{field: getattr(shape, field) for field in shape.__slots__}, attn_implementation="sdpa")
    model = Qwen3ForCausalLM(config).to(torch.float32 if full else torch.bfloat16)
    base = model
    if not full:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
        base = model.get_base_model()
    model.activation_checkpointing_enable()
    model.train()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    ids, mask = torch.ones(rows, tokens, dtype=torch.long), torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :9] = 0
    with Peak() as measured:
        with torch.autocast("cpu", torch.bfloat16, enabled=not full):
            hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden.backward(torch.ones_like(hidden))
    counted = Training(shape, None, rows=1, micro=rows, tokens=tokens, full=full, width=4 if full else 2).update.size
    counted -= memory.TILE[0] * memory.TILE[1] * (4 if full else 2)
    counted -= 2 * shape.vocab_size * shape.hidden_size * 4 if full else 0
    assert 0.8 * counted < measured.peak < 1.02 * counted
