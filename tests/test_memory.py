"""The memory arithmetic, against the code that allocates; the shipped Qwen3 runs are what it says."""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from relaylab import memory
from relaylab.engine.engine import MAX_CHUNK_TOKENS
from relaylab.engine.load import load_engine
from relaylab.memory import GB, QWEN3, RUNTIME, Shape, TrainingMemory, reserved_rows, reserved_tokens, shipped, total
from relaylab.training import configs, grpo, rollouts
from relaylab.training.config import make_config
from relaylab.training.configs import config_names, read_config
from relaylab.training.policy_model import LORA

RUNS = [name for name in config_names() if name.startswith("qwen3/")]
SUFFIX = r"Please reason step by step, and put your final answer within \boxed{}."


def sizes(shape: Shape) -> dict[str, int]:
    return {field: getattr(shape, field) for field in shape.__slots__}


@pytest.mark.parametrize("name", QWEN3)
def test_parameters_and_cache_are_those_of_transformers(name):
    from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**sizes(QWEN3[name]))).to(torch.bfloat16)
        cache = DynamicCache(config=model.config)
        model(torch.zeros(1, 3, dtype=torch.long), past_key_values=cache)
    assert QWEN3[name].parameters == model.num_parameters()
    assert QWEN3[name].cache * 3 == sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def test_adapter_is_that_of_peft():
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Shape(32, 2, 4, 2, 16, 48, 100, True)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**sizes(shape)))
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert shape.lora(4) == adapted.get_nb_trainable_parameters()[0]


def test_constants_are_those_of_the_code():
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    assert memory.CHUNK == MAX_CHUNK_TOKENS
    assert LORA["r"] == memory.RANK
    assert memory.TILE == (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_an_engine_reserves_what_the_arithmetic_says(rows):
    student, rng = load_engine("student", device="cpu"), random.Random(rows)
    slots = student.open_many([[5] * rng.randint(3, 40) for _ in range(rows)])
    for _ in range(12):
        for slot in slots:
            slot.ids += [5] * rng.randint(1, 20)
        student.forward(slots)
        longest = max(len(slot.ids) for slot in slots)
        assert student.cache.room == reserved_rows(rows)
        assert longest < student.cache.columns <= reserved_tokens(longest)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it held at a time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        inputs = {StorageWeakRef(t.untyped_storage()).cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for t in tree_leaves(out):
            if torch.is_tensor(t) and (ref := StorageWeakRef(t.untyped_storage())).cdata not in inputs:
                self.live[ref.cdata] = (ref, t.untyped_storage().nbytes())
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


@pytest.mark.parametrize("full", [False, True])
def test_an_update_holds_what_the_arithmetic_says(full):
    """The layers of a small model shaped like Qwen3-0.6B, without the output matrix and its kernel."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape, rows, tokens = Shape(128, 6, 2, 1, 128, 384, 64, True), 2, 160
    config = Qwen3Config(**sizes(shape), attn_implementation="sdpa")
    model = base = Qwen3ForCausalLM(config).to(torch.float32 if full else torch.bfloat16)
    if not full:
        model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
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
    width = 4 if full else 2
    counted = TrainingMemory(shape, None, rows=1, micro=rows, tokens=tokens, full=full, width=width).update.size
    counted -= memory.TILE[0] * memory.TILE[1] * width + (2 * shape.vocab_size * shape.hidden_size * 4 if full else 0)
    assert 0.8 * counted < measured.peak < 1.02 * counted


# The shipped runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_qwen3_runs_are_the_papers_where_memory_allows(name):
    from relaylab.training.config import make_config

    run, config = shipped()[name], make_config(name)
    assert (config.prompt_suffix, config.num_generations, config.beta, config.temperature) == (SUFFIX, 8, 0.01, 1.0)
    assert config.learning_rate == (1e-6 if config.full else 1e-5)
    assert (config.filter_threshold, config.filter_samples) == (0.5, 10)
    assert config.activation_checkpointing
    update = config.per_device_train_batch_size * config.gradient_accumulation_steps * run.gpus
    assert update // config.num_generations == 32  # prompts of a mini-batch
    # In bf16 a step of 1e-6 is lost; in float32 without autocast, since caches have the type of the weights.
    assert (config.dtype == "float32") == (config.bf16 is False) == config.full
    assert str(config.student).endswith("-full") == config.full


@pytest.mark.parametrize("name", RUNS)
def test_the_memory_in_the_comment_is_that_of_the_arithmetic(name):
    run, text = shipped()[name], (Path(configs.__file__).parent / "qwen3.yaml").read_text()
    comment = re.search(rf"^# Memory: (.*) = ([\d.]+) GB of (\d+)( on each GPU)?\n(#.*\n)*{name}:", text, re.MULTILINE)
    summands, peak, card, each = comment.groups()[:4]
    assert summands == " + ".join(f"{t.what} {t.size / GB:.1f}" for t in run.terms)
    assert float(peak) == round(total(run.terms) / GB, 1)
    assert (int(card), bool(each)) == (run.card, run.gpus > 1)
    assert total(run.terms) < 0.95 * run.card * GB


@pytest.mark.parametrize("name", RUNS)
def test_the_data_filter_fits_before_the_student_is_there(name):
    run, config = shipped()[name], read_config(name)
    if run.teacher is not None and "filter_rates" not in config:
        assert config["filter_max_tokens"] == config["max_completion_length"]
        rows = config["filter_batch_size"] // 10 * 10
        tokens = memory.PROMPT + config["filter_max_tokens"]
        caches = reserved_rows(rows) * reserved_tokens(tokens) * run.teacher.cache
        assert run.terms[0].size + caches + RUNTIME < 0.95 * run.card * GB


def test_the_documentation_has_the_table_as_it_is_printed():
    assert memory.memory_table() in (Path(__file__).parents[1] / "docs" / "single-gpu.md").read_text()


def test_sums_are_asked_for_by_names_that_there_are(capsys):
    memory.main(["qwen3/06b-80gb"])
    assert capsys.readouterr().out.startswith("qwen3/06b-80gb: teacher 8.19 B x 2 B = 16.4 GB + ")
    with pytest.raises(SystemExit, match="no settings 'qwen3/06b-80gbs'; did you mean 'qwen3/06b-80gb'"):
        memory.main(["qwen3/06b-80gbs"])


def test_the_benchmark_takes_settings_that_can_be_and_calls_at_fixed_places(tmp_path, monkeypatch):
    """``benchmarks/gpu.py memory`` up to the training, which is too long for a CPU."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import gpu

    asked = []

    def train(name, *, teachers, problems, **settings):
        config, out = make_config(name, **settings), Path(settings["output_dir"])
        assert config.tf32 is None
        asked.append((config.max_steps // config.steps_per_batch, rollouts.Relay.keywords["call_rule"].calls))
        out.mkdir()
        (out / "metrics.jsonl").write_text('{"seconds": 2.0, "tokens": 160.0}\n{"seconds": 1.0}\n')

    for module, name in ((rollouts, "Relay"), (grpo, "PolicyModel")):  # which it replaces
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(grpo, "train", train)
    gpu.memory(gpu.Bench(argparse.Namespace(out=tmp_path, device="cpu", tiny=True, max_tokens=160), "memory"))
    assert asked == [(1, {40: 64, 80: 64, 120: 8})] * 2, "one batch of rollouts"
    results = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert [(r["settings"], r["lengths"], r["step_s"]) for r in results] == [
        ("qwen3/06b-80gb", [160.0], [2.0, 1.0]),
        ("qwen3/17b-80gb", [160.0], [2.0, 1.0]),
    ]
