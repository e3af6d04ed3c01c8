"""An optional faster forward pass for the Llama family: the same sums as transformers' modules, in fewer operations.

A pass over a few tokens takes the time of calling operations, not of computing them: on a CPU with a small model, on a
GPU with any. Linear layers are called as modules, so that adapters, biases and quantised weights do what they do.
Norms, rotary positions and attention are computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from relaylab.engine.kernels import attend
from relaylab.engine.kv_cache import KVCache

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROTARY = ("default", "linear", "llama3", "yarn")  # where an angle is a function of the position alone

# (model, ids (B, T), positions (B, T), mask (B, 1, T, columns), cache, keep) -> hidden states (B, keep, H)
Forward = Callable[[PreTrainedModel, Tensor, Tensor, Tensor, KVCache, int], Tensor]


def fast_forward(model: PreTrainedModel) -> Forward | None:
    """The faster pass for this model, or None where its class or its positions are others.

    Models whose weights accelerate moves between devices (in wrappers around each module) have none.
    """
    if type(model).__name__ not in CLASSES or model.model.rotary_emb.rope_type not in ROTARY:
        return None
    return None if any(hasattr(m, "_hf_hook") for m in model.modules()) else forward


def forward(model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor, cache: KVCache, keep: int) -> Tensor:
    """Last hidden states (B, keep, H) of the last ``keep`` tokens of ids (B, T), which enter the cache.

    Args:
        positions: (B, T).
        mask: (B, 1, T, columns), 0 or -inf, added to the scores.
    """
    body = model.model
    x = body.embed_tokens(ids)
    # 1) Rotary angles of the positions, looked up: the model's own module takes a dozen operations.
    angles = _angles(body, x, cache)
    cos, sin = (table[positions] for table in angles)  # (B, T, 1, D)
    heads, size = model.config.num_attention_heads, cos.shape[-1]
    if ids.shape[1] > 1:  # query heads that share a key head stand as further queries of it
        mask = mask.repeat(1, 1, heads // cache.heads, 1)
    for i, layer in enumerate(body.layers[: len(cache.keys)]):
        # 2) Attention: write keys and values into the cache, read the columns so far.
        own, y = layer.self_attn, _norm(layer.input_layernorm, x)
        query, key, value = (p(y).view(*ids.shape, -1, size) for p in (own.q_proj, own.k_proj, own.v_proj))
        if hasattr(own, "q_norm"):
            query, key = _norm(own.q_norm, query), _norm(own.k_norm, key)
        query, key = (torch.addcmul(p * cos, p.roll(size // 2, -1), sin) for p in (query, key))
        keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2), i)
        query = query.transpose(1, 2).reshape(len(ids), keys.shape[1], -1, size)
        out = attend(query, keys, values, mask, own.scaling).reshape(len(ids), heads, -1, size)
        x = x + own.o_proj(out.transpose(1, 2).reshape(*ids.shape, heads * size))
        # 3) Feed-forward.
        y, mlp = _norm(layer.post_attention_layernorm, x), layer.mlp
        x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(y)) * mlp.up_proj(y))
    return _norm(body.norm, x[:, -keep:])


def causal_mask(places: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, T, length) of tokens at places (B, T): each sees its sequence's columns up to its own."""
    unseen = torch.arange(length, device=places.device) > places[:, None, :, None]
    return torch.zeros(unseen.shape, dtype=dtype, device=places.device).masked_fill_(unseen, -torch.inf)


def _angles(body: Any, x: Tensor, cache: KVCache) -> list[Tensor]:
    """Tables (columns, 1, D) of cosines and sines, the first half of the sines negated. They grow with the caches."""
    table = cache.angles
    if not table or len(table[0]) != cache.columns or table[0].dtype != x.dtype:
        places = torch.arange(cache.columns, device=x.device)[None]
        cos, sin = (p[0, :, None] for p in body.rotary_emb(x, places))
        half = cos.shape[-1] // 2
        table = cache.angles = [cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)]
    return table


def _norm(norm: Any, x: Tensor) -> Tensor:
    out = nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return out.to(x.dtype)  # which autocast makes float32
