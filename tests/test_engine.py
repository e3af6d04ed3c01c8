"""Rows of the engine against fresh forward passes of the model over all their tokens."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionInterface,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from relaylab.engine import engine as module
from relaylab.engine import fast
from relaylab.engine.engine import Engine
from relaylab.engine.fast import FewTokens
from relaylab.engine.load import embedded_tokenizer
from relaylab.engine.sampling import sample

TOKENIZER = embedded_tokenizer()
SIZES = dict(
    vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, initializer_range=0.3,
)  # fmt: skip


def make(kind: str = "qwen3", **changes) -> Engine:
    torch.manual_seed(0)
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES | changes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4} | changes))
    return Engine(model, TOKENIZER)


ENGINES = {kind: make(kind) for kind in ("qwen3", "llama")}


def fresh(engine: Engine, ids: list[int], positions: int = 1) -> torch.Tensor:
    with torch.no_grad():
        return engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -positions:].float()


def close_to(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def ids(n: int, start: int = 0) -> list[int]:
    return [(start + 37 * k) % SIZES["vocab_size"] for k in range(n)]


@settings(max_examples=40)
@given(st.sampled_from(list(ENGINES)), st.data())
def test_any_sequence_of_operations_leaves_every_slot_as_if_run_afresh(kind, data):
    engine = ENGINES[kind]
    for slot in engine.slots:  # of an example that failed
        engine.close(slot)
    opened, counted, passes, start = [], 0, engine.passes, engine.forwarded
    unlike = itertools.count() if data.draw(st.booleans()) else itertools.repeat(0)
    counts = isinstance(unlike, itertools.count)  # equal prompts are read once
    token = st.integers(0, SIZES["vocab_size"] - 1)
    for _ in range(data.draw(st.integers(1, 14))):
        action = data.draw(st.sampled_from(["open", "open", "extend", "crop", "close", "forward", "forward"]))
        slot = data.draw(st.sampled_from(opened)) if opened else None
        if action == "open":
            prompts = [
                [next(unlike), *data.draw(st.lists(token, max_size=29))] for _ in range(data.draw(st.integers(1, 3)))
            ]
            opened += engine.open_many(prompts)
        elif slot is None:
            continue
        elif action == "extend":
            slot.ids += data.draw(st.lists(token, min_size=1, max_size=3))
        elif action == "crop":
            engine.crop(slot, data.draw(st.integers(1, len(slot.ids))))
        elif action == "close":
            engine.close(slot)
            opened.remove(slot)
        else:
            some = [s for s in opened if s.pending and len(s.ids) <= engine.context and data.draw(st.booleans())]
            if some:
                some = data.draw(st.permutations(some))
                counted += sum(s.pending for s in some)
                passes += len(module._groups(some))
                for logits, s in zip(engine.forward(some), some, strict=True):
                    assert close_to(logits[-1], fresh(engine, s.ids)[-1])
                    assert s.cached == len(s.ids)
        assert set(engine.slots) == set(opened)
        assert all(engine.cache.at[s.index] is s for s in opened)
    assert (engine.forwarded - start, engine.passes) == (counted, passes) or not counts
    for slot in opened:
        engine.close(slot)
    assert engine.cache.keys[0].numel() == 0


def test_positions_are_right_aligned_and_groups_ragged():
    engine = make()
    lengths = [40, 1, 3, 80, 2]
    rows = [engine.open(ids(n, n)) for n in lengths]
    groups = module._groups(rows)
    assert len(groups) > 1
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3, 4]
    logits = engine.forward(rows, positions=5)
    assert logits.shape == (5, 5, engine.vocabulary)
    for row, n, got in zip(rows, lengths, logits, strict=True):
        k = min(n, 5)
        assert close_to(got[-k:], fresh(engine, row.ids, k))
    assert (engine.forwarded, engine.passes) == (sum(lengths), len(groups))


@pytest.mark.parametrize("positions", [1, 3, 4, 9, 23])
def test_a_long_row_is_run_in_chunks(monkeypatch, positions):
    engine, other_engine = make(), make()
    whole = other_engine.forward([other_engine.open(ids(23))], positions=positions)
    monkeypatch.setattr(module, "MAX_CHUNK_TOKENS", 4)
    engine.forwarded = engine.passes = 0
    row, other = engine.open(ids(23)), engine.open(ids(2))
    chunked = engine.forward([row, other], positions=positions)
    assert torch.allclose(chunked[:1], whole, atol=1e-5)
    assert (engine.forwarded, engine.passes) == (25, 7)


def test_equal_prompts_are_read_once():
    """Seven slots of three prompts, extended apart before they are run; then more of the same, late."""
    engine = make()
    prompts = [ids(20, 1), ids(20, 2), ids(6, 3)]
    slots = engine.open_many([prompts[k] for k in (0, 1, 0, 2, 0, 1, 0)])
    assert [s.cached for s in slots] == [19, 19, 19, 0, 19, 19, 19]
    for k, slot in enumerate(slots[:4]):
        slot.ids += ids(k, 40 + k)
    for logits, slot in zip(engine.forward(slots), slots, strict=True):
        assert close_to(logits, fresh(engine, slot.ids, 1))
        assert slot.cached == len(slot.ids)
    assert engine.forwarded == 19 + 19 + 6 + 6 + (0 + 1 + 2 + 3)

    before, late = engine.forwarded, engine.open_many([prompts[0]] * 2)  # an open slot lends what it has read
    for logits, slot in zip(engine.forward(late), late, strict=True):
        assert close_to(logits, fresh(engine, slot.ids, 1))
    assert engine.forwarded - before == 2


def test_a_prompt_is_lent_only_while_it_is_there():
    engine, prompt = make(), ids(12)
    gone, cut, other = engine.open_many([prompt, prompt[:8], ids(9, 5)])
    engine.forward([gone, cut, other])
    engine.close(gone)
    engine.crop(cut, 3)
    cut.ids += ids(5, 77)  # as long as its prompt, and not the same
    engine.crop(other, 2)  # shorter than its prompt
    engine.forward([cut])
    for k, again in enumerate([prompt, prompt[:8], ids(9, 5)]):
        before, slot = engine.forwarded, engine.open(again)
        assert close_to(engine.forward([slot])[0], fresh(engine, slot.ids, 1)), k
        assert engine.forwarded - before == len(again)


def test_memory_that_runs_out_while_prompts_are_read_leaves_no_slot(monkeypatch):
    engine = make()
    monkeypatch.setattr(engine, "_pass", mock.Mock(side_effect=torch.OutOfMemoryError("none left")))
    with pytest.raises(torch.OutOfMemoryError):
        engine.open_many([ids(5)] * 3)
    assert not engine.slots


def test_what_fails_half_way_leaves_no_slot(monkeypatch):
    engine = make()
    with pytest.raises(ValueError, match="context"):
        engine.read([5] * (engine.context + 10), [5, 6])
    assert not engine.slots
    place, placed = engine.cache.place, []

    def fail(ids):
        placed.append(ids)
        if len(placed) == 3:
            raise torch.OutOfMemoryError("none left")
        return place(ids)

    monkeypatch.setattr(engine.cache, "place", fail)
    with pytest.raises(torch.OutOfMemoryError):
        engine.open_many([ids(5), ids(6), ids(7)])
    assert not engine.slots


@pytest.mark.parametrize("flat", [True, False])
def test_hidden_states_are_the_models_last_ones(flat, monkeypatch):
    if not flat:
        monkeypatch.setattr(fast, "CLASSES", ())
    engine = make()
    slots = engine.open_many([ids(9), ids(4, 3)])
    logits, hidden = engine.forward(slots, positions=2, hidden=True)
    for k, slot in enumerate(slots):
        with torch.no_grad():
            out = engine.model(torch.tensor([slot.ids]), output_hidden_states=True)
        assert close_to(hidden[k], out.hidden_states[-1][0, -2:])
        assert close_to(logits[k], out.logits[0, -2:])


def test_a_long_beginning_of_several_prompts_is_read_once(monkeypatch):
    """Also for a sequence that comes later; an unlike prompt and a short one stand between."""
    monkeypatch.setattr(module, "MIN_SHARED", 8)
    engine, begin = make(), ids(12, 1)
    prompts = [begin + ids(3, 7), ids(9, 50), begin + ids(5, 8), begin, ids(3, 60), begin + ids(1, 9), begin]
    slots = engine.open_many(prompts)
    assert [s.cached for s in slots] == [12, 0, 12, 11, 0, 12, 11]
    assert engine.forwarded == 12
    for logits, slot in zip(engine.forward(slots), slots, strict=True):
        assert close_to(logits, fresh(engine, slot.ids))
    late = engine.open(begin + ids(4, 7))
    assert late.cached == 15, "the three tokens behind the beginning are alike, too"
    assert close_to(engine.forward([late])[0], fresh(engine, late.ids))


def test_caches_stay_within_the_context_and_are_given_back():
    engine = make()
    rows = [engine.open(ids(4, k)) for k in range(16)]
    engine.forward(rows)
    shape = engine.cache.keys[0].shape
    assert shape[:2] == (16, 2)
    for row in rows[:4]:
        engine.close(row)
        engine.close(row)  # closing twice does nothing
    rows[:4] = [engine.open(ids(4)) for _ in range(4)]
    assert engine.cache.keys[0].shape == shape  # rows that come and go move nothing
    rows[-1].ids += ids(engine.context - 4)
    logits = engine.forward(rows[-1:])
    assert engine.cache.keys[0].shape[2] == engine.context + 1
    assert close_to(logits[0], fresh(engine, rows[-1].ids))
    rows[-1].ids += [1]
    with pytest.raises(ValueError, match="context"):
        engine.forward(rows[-1:])
    for row in rows[2:]:
        engine.close(row)
    assert engine.cache.room * engine.cache.columns < 4 * 2 * engine.cache.enough(4)  # two short rows are left
    rows[1].ids += [9]
    assert close_to(engine.forward([rows[1]])[0], fresh(engine, rows[1].ids))
    for row in rows[:2]:
        engine.close(row)
    assert engine.cache.keys[0].numel() == 0


def test_memory_that_runs_out_while_growing_leaves_the_rows_whole(monkeypatch):
    engine = make()
    row = engine.open(ids(10))
    engine.forward([row])
    row.ids += ids(80)
    zeros, made = torch.zeros, []

    def scarce(*shape, **options):
        made.append(shape)
        if len(made) > 1:
            raise torch.OutOfMemoryError("none left")
        return zeros(*shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", scarce)
        with pytest.raises(torch.OutOfMemoryError):
            engine.forward([row])
    engine.crop(row, 12)
    assert close_to(engine.forward([row])[0], fresh(engine, row.ids))
    row.ids += ids(80)
    assert close_to(engine.forward([row])[0], fresh(engine, row.ids))


def test_ids_without_a_token_never_come():
    engine = make(vocab_size=len(TOKENIZER) + 20)
    engine.model.get_output_embeddings().weight.data[len(TOKENIZER) :] *= 100
    logits = engine.forward([engine.open(ids(4))])[:, -1]
    assert bool((logits[:, len(TOKENIZER) :] == -torch.inf).all())
    assert torch.isfinite(logits[:, : len(TOKENIZER)]).all()
    draws = [sample(logits, temperatures=[5.0], uniforms=[k / 50])[0] for k in range(50)]
    assert max(draws) < len(engine.text.bytes)


def test_a_trainer_gets_its_model_back_as_it_was():
    engine = make(attention_dropout=0.5)
    model = engine.model.train()
    model.gradient_checkpointing_enable()
    model.model.layers[0].eval()
    before = {name: m.training for name, m in model.named_modules()}
    row, fork = engine.open(ids(6)), engine.open(ids(6))
    first = engine.forward([row])
    assert {name: m.training for name, m in model.named_modules()} == before
    assert model.config._attn_implementation != module.ATTENTION
    model.eval()
    assert close_to(first[0], fresh(engine, row.ids))
    model.train()
    engine.forward([fork])  # among training steps, outside of any mode
    model(input_ids=torch.tensor([ids(6)]), labels=torch.tensor([ids(6)])).loss.backward()
    fork.ids += [3]
    assert engine.forward([fork]).shape == (1, 1, engine.vocabulary)


def test_models_that_would_be_run_wrong_are_refused():
    for changes in (dict(sliding_window=8), dict(sliding_window=127)):
        with pytest.raises(ValueError, match="sliding"):
            Engine(MistralForCausalLM(MistralConfig(**SIZES | changes)), TOKENIZER)
    assert Engine(MistralForCausalLM(MistralConfig(**SIZES | dict(sliding_window=None))), TOKENIZER).passes == 0
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    model._supports_attention_backend = False
    with pytest.raises(ValueError, match="AttentionInterface"):
        Engine(model, TOKENIZER)
    latent = DeepseekV3Config(**SIZES | dict(n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2))
    with pytest.raises(ValueError, match="keys and values of different sizes; serve it"):
        Engine(DeepseekV3ForCausalLM(latent), TOKENIZER)
    larger = embedded_tokenizer()
    larger.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=f"has {len(larger)} tokens and Qwen3ForCausalLM has embeddings for"):
        Engine(Qwen3ForCausalLM(Qwen3Config(**SIZES | {"vocab_size": len(larger) - 1})), larger)


def test_a_longrope_model_ends_where_its_positions_switch():
    """Beyond the switch all positions change, so a row would depend on the longest row of its batch."""
    size = SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * size, "long_factor": [4.0] * size}
    rope = {"rope_type": "longrope", "rope_theta": 1e4} | factors
    config = Phi3Config(**SIZES | {"rope_parameters": rope, "original_max_position_embeddings": 32, "pad_token_id": 0})
    engine = Engine(Phi3ForCausalLM(config), TOKENIZER)
    assert (SIZES["max_position_embeddings"], engine.context) == (128, 32)


def test_the_trial_at_construction_finds_wrong_logits(monkeypatch):
    right = fast._grouped_attention
    wrong = lambda *args, **options: (right(*args, **options)[0] * 1.1, None)  # noqa: E731
    AttentionInterface.register(fast.ATTENTION, wrong)
    try:
        assert make()._fast, "which does not ask the interface"
        monkeypatch.setattr(fast, "CLASSES", ())
        with pytest.raises(ValueError, match="differ"):
            make()
    finally:
        AttentionInterface.register(fast.ATTENTION, right)
    engine = make()
    assert (engine.forwarded, engine.passes, engine.slots, engine.cache.keys[0].numel()) == (0, 0, [], 0)


@pytest.mark.parametrize(
    "model",
    [
        (Qwen2ForCausalLM, Qwen2Config, {}),  # biases before attention
        (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12, "tie_word_embeddings": True, "attention_bias": True}),
        (MistralForCausalLM, MistralConfig, {"sliding_window": None, "hidden_act": "gelu"}),
        (LlamaForCausalLM, LlamaConfig, {"mlp_bias": True, "num_key_value_heads": 1}),
        (LlamaForCausalLM, LlamaConfig, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
        (Qwen3ForCausalLM, Qwen3Config, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    ],
    ids=lambda m: f"{m[0].__name__}-{'-'.join(m[2])}",
)
def test_the_flat_pass_has_the_models_own_logits(model, monkeypatch):
    """Norms, biases and positions that are not what a new model has; a prefill, ragged rows, and one token each."""
    kind, config, changes = model
    torch.manual_seed(0)
    net = kind(config(**SIZES | changes))
    for name, parameter in net.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.uniform_(parameter, -1, 2)
    engine = Engine(net, TOKENIZER)
    assert engine._fast
    rows = [engine.open(ids(n, 7 * n)) for n in (21, 20, 17)]
    monkeypatch.setattr(net, "forward", None)  # whose own pass is not asked
    some = [engine.forward(rows, positions=3)]
    for row, more in zip(rows, ([4, 5], [6], [7, 8])):
        row.ids += more
    some.append(engine.forward(rows))
    for row in rows:
        row.ids += [9]
    some.append(engine.forward(rows))
    monkeypatch.undo()
    for row, first, second, third in zip(rows, *some):
        every = fresh(engine, row.ids, len(row.ids))
        begin = len(row.prompt)
        assert close_to(first, every[begin - 3 : begin])
        assert close_to(second, every[-2:-1])
        assert close_to(third, every[-1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_flat_pass_through_torchs_attention(dtype, monkeypatch):
    """As on a GPU, whose kernels may return what they computed in another layout than the query's."""

    attend = fast.attend

    def elsewhere(*args):
        out = attend(*args)
        return out.transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(fast, "_SMALL", 0)
    monkeypatch.setattr(fast, "attend", elsewhere)
    torch.manual_seed(0)
    engine = Engine(Qwen3ForCausalLM(Qwen3Config(**SIZES)).to(dtype), TOKENIZER)
    assert engine._fast
    rows = [engine.open(ids(n, 7 * n)) for n in (21, 17)]
    for more in ([4], [5]):  # a prefill, then one token
        logits = engine.forward(rows)[0, -1]
        near = 1e-4 if dtype == torch.float32 else 0.1 * logits.abs().max().item()
        assert torch.allclose(logits, fresh(engine, rows[0].ids)[-1], atol=near)
        for row in rows:
            row.ids += more


def test_positions_are_right_after_the_caches_have_grown_and_shrunk():
    """The flat pass looks its angles up in a table as long as the caches."""
    engine = make(max_position_embeddings=600)
    row = engine.open(ids(5))
    engine.forward([row])
    before = engine.cache.columns
    row.ids += ids(500, 3)
    engine.forward([row])
    assert engine.cache.columns > before
    row.ids += [7]
    assert close_to(engine.forward([row])[0], fresh(engine, row.ids))
    engine.close(row)
    short = engine.open(ids(9, 2))
    assert close_to(engine.forward([short])[0], fresh(engine, short.ids))
    assert engine.cache.columns < 500


def test_angles_that_depend_on_the_length_are_asked_of_the_model():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    engine = make(rope_parameters=rope)
    assert not engine._fast
    row = engine.open(ids(20))
    assert close_to(engine.forward([row])[0], fresh(engine, row.ids))


def test_what_the_flat_pass_would_run_wrong_runs_by_the_models_own_code():
    class Llama(LlamaForCausalLM):
        """A model of a known name that computes something else."""

        def forward(self, *args, **options):
            out = super().forward(*args, **options)
            out.logits = 2 * out.logits
            return out

    Llama.__name__ = "LlamaForCausalLM"
    odd = LlamaForCausalLM(LlamaConfig(**SIZES))
    odd.model.norm = torch.nn.Identity()  # has neither weight nor eps
    for model in (Llama(LlamaConfig(**SIZES)), odd):
        engine = Engine(model, TOKENIZER)
        assert not engine._fast
        assert (engine.forwarded, engine.passes, engine.slots, engine.cache.keys[0].numel()) == (0, 0, [], 0)
        assert close_to(engine.forward([engine.open(ids(9))])[0], fresh(engine, ids(9)))


def test_hooks_are_called_from_when_they_are_there():
    engine = make()

    def alone() -> torch.Tensor:
        row = engine.open(ids(9))
        logits = engine.forward([row])[0]
        engine.close(row)
        return logits

    usual = alone()
    hook = engine.model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    hooked = alone()
    assert close_to(hooked, fresh(engine, ids(9)))
    assert not close_to(hooked, usual)
    hook.remove()
    assert engine._fast
    assert close_to(alone(), usual)


def test_misuse_says_what_is_wrong():
    engine = make()
    row = engine.open(ids(3))
    with pytest.raises(ValueError, match="twice"):
        engine.forward([row, row])
    engine.forward([row])
    with pytest.raises(ValueError, match="pending"):
        engine.forward([row])
    with pytest.raises(ValueError, match="at least one token"):
        engine.open([])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [3, 7])
def test_few_tokens_of_a_wide_model_take_another_kernel_to_the_same_logits(bias, count):
    """Only models of 512 units and more on a CPU; 2 to 8 tokens in a pass, and from 6 on in tall layers alone."""
    engine = make(hidden_size=512, intermediate_size=2048, attention_bias=bias)
    model = engine.model
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    seen = []
    original = FewTokens.__torch_function__

    def spy(self, function, types, args=(), kwargs=None):
        seen.append(function)
        return original(self, function, types, args, kwargs)

    with mock.patch.object(FewTokens, "__torch_function__", spy):
        rows = [engine.open([5 + k, 9, 11 + k]) for k in range(count)]
        engine.forward(rows)  # 9 tokens and more: the usual kernel
        assert not seen
        for row in rows:
            row.ids += [7]
        with mock.patch.object(torch, "mm", wraps=torch.mm) as product:
            logits = engine.forward(rows)[:, -1]
    assert torch.nn.functional.linear in seen
    shapes = [m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Linear)]
    tall = sum(wide >= 4 * narrow for wide, narrow in shapes)  # those take two products, of at most four tokens
    assert 0 < tall < len(shapes)
    assert product.call_count == (len(shapes) if count == 3 else 2 * tall)
    expected = model(torch.tensor([r.ids for r in rows])).logits[:, -1]
    assert torch.allclose(logits, expected, atol=1e-4)
