"""Where the engine computes otherwise than torch and transformers do, to the same sums. All of it is optional.

1) Attention over grouped heads, for any model. 2) Linear layers over a few tokens of a large model on a CPU. 3) A whole
forward pass of the Llama family in fewer operations: a pass over a few tokens takes the time of calling operations, not
of computing them, on a CPU with a small model and on a GPU with any. The model is not changed: linear layers are called
as modules, so that adapters, biases and quantised weights do what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel

from relaylab.engine.kv_cache import KVCache

ATTENTION = "relaylab_grouped"
_SMALL = 2**21  # scores, or numbers in the keys: about what the cores' caches hold


def _grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention in which the query heads that share a key head stand as further queries of it.

    The same sums as transformers' own, which copies keys and values once a query head: several times faster when
    decoding. query (B, heads, T, D), key and value (B, kv heads, columns, D), mask (B, 1, T, columns).
    """
    if odd := [k for k in ("softcap", "s_aux") if options.get(k) is not None]:
        raise ValueError(f"{type(module).__name__} wants {odd}, which relaylab's engine does not compute")
    batch, heads, time, size = query.shape
    kv_heads = key.shape[1]
    mask = mask if time == 1 else mask.repeat(1, 1, heads // kv_heads, 1)
    out = attend(query.reshape(batch, kv_heads, -1, size), key, value, mask, scaling)
    return out.reshape(batch, heads, time, size).transpose(1, 2).contiguous(), None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention of query (B, kv heads, N, D) to key and value (B, kv heads, columns, D), mask (B, 1, N or 1, columns).

    Small ones on a CPU as two products of matrices: torch's own kernel takes up to 3 times as long with two threads.
    """
    batch, heads, count, size = query.shape
    columns = key.shape[2]
    small = batch * heads * columns * max(count, size) <= _SMALL
    if not (small and query.device.type == "cpu" and query.dtype == torch.float32):
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    mask = mask.expand(-1, heads, count, -1).reshape(-1, count, columns)
    query, key, value = (x.reshape(batch * heads, -1, size) for x in (query, key, value))
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=size**-0.5 if scale is None else scale)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, count, size)


AttentionInterface.register(ATTENTION, _grouped_attention)


FEW = 8  # tokens of a pass up to which the linear layers of a large model are turned around
_AT_ONCE = 5  # tokens that one product takes well; more go four at a time, where the layer is tall
_TALL = 4  # outputs an input of such a layer: the output layer, and a feed-forward's first


class FewTokens(TorchFunctionMode):
    """Linear layers over 2 to 8 tokens as W @ x.T, the same sums in a kernel that reads the weights once.

    MKL's for x @ W.T takes up to 5 times as long there (docs/benchmarks.md), and reading the weights is all that
    decoding with a large model on a CPU does. A tall layer reads them twice for 6 to 8 tokens and is faster still.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not nn.functional.linear or kwargs:
            return function(*args, **(kwargs or {}))
        x, weight, *bias = args
        rows = x.reshape(-1, x.shape[-1])
        if 2 <= len(rows) <= _AT_ONCE:
            out = torch.mm(weight, rows.t()).t()
        elif _AT_ONCE < len(rows) <= FEW and weight.shape[0] >= _TALL * weight.shape[1]:
            out = torch.cat([torch.mm(weight, some.t()).t() for some in rows.split(4)])
        else:
            return function(*args)
        out = out.reshape(*x.shape[:-1], -1)
        return out + bias[0] if bias and bias[0] is not None else out


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
    # 1) Rotary angles, looked up: the model's own module takes a dozen operations. The tables (columns, 1, D) grow with
    #    the caches; the first half of the sines is negated.
    if not cache.angles or len(cache.angles[0]) != cache.columns or cache.angles[0].dtype != x.dtype:
        places = torch.arange(cache.columns, device=x.device)[None]
        cos, sin = (p[0, :, None] for p in body.rotary_emb(x, places))
        half = cos.shape[-1] // 2
        cache.angles = [cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)]
    cos, sin = (table[positions] for table in cache.angles)  # (B, T, 1, D)
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


def _norm(norm: Any, x: Tensor) -> Tensor:
    out = nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return out.to(x.dtype)  # which autocast makes float32
