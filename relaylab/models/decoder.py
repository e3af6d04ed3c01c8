"""The forward pass of a Llama-like decoder, flat: what transformers' own modules sum, in fewer operations (128 of 211).

A pass over a few tokens takes the time of calling operations, not of computing them: on a CPU with a small model, on a
GPU with any. The weights stay where they are. Linear layers are called as modules, so that adapters, biases and
quantised weights do what they do; norms, rotary positions and attention are computed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from relaylab.models.front_cache import FrontCache
from relaylab.models.kernels import attend

FLAT = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROTARY = ("default", "linear", "llama3", "yarn")  # where an angle is a function of the position alone


def is_flat(model: PreTrainedModel) -> bool:
    """Whether ``logits`` may compute this model: its class and its positions are known, and it lies on one device.

    accelerate moves weights between devices in wrappers around each module's ``forward``.
    """
    known = type(model).__name__ in FLAT and model.model.rotary_emb.rope_type in ROTARY
    return known and not any(hasattr(m, "_hf_hook") for m in model.modules())


def check_attention(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """What can be seen without running a model. ValueError where its attention needs other caches than the engine's."""
    name, types = type(model).__name__, getattr(config, "layer_types", None)
    odd = sorted(set(types or ()) - {"full_attention"})
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if types is None and window is not None and window < config.max_position_embeddings:
        odd = [f"sliding_attention (window of {window})"]
    if odd or config.is_encoder_decoder:
        raise ValueError(f"{name} has {odd or 'encoder'} layers; relaylab keeps caches of full attention only")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{name} does not use transformers' AttentionInterface, through which relaylab's engine works")


def hooks(model: PreTrainedModel) -> list[dict]:
    """The hooks of all modules, empty or not: while there are any, the modules have to be called."""
    return [found for m in model.modules() for found in (m._forward_hooks, m._forward_pre_hooks)]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """A model in evaluation mode; a trainer that holds it too gets it back as it was."""
    training = [m for m in model.modules() if m.training] if model.training else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def causal(places: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, T, columns) of tokens at places (B, T): each sees its row's columns up to its own."""
    hidden = torch.arange(length, device=places.device) > places[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=places.device).masked_fill_(hidden, -torch.inf)


def logits(model: PreTrainedModel, ids: Tensor, places: Tensor, mask: Tensor, cache: FrontCache, keep: int) -> Tensor:
    """Logits (B, keep, vocabulary) after the last ``keep`` tokens of ids (B, T), which enter the cache.

    places (B, T): their positions. mask (B, 1, T, columns): 0 or -inf, added to the scores.
    """
    body = model.model
    x = body.embed_tokens(ids)
    cos, sin = _angles(body, x, places, cache)
    heads, size = model.config.num_attention_heads, cos.shape[-1]
    if ids.shape[1] > 1:
        mask = mask.repeat(1, 1, heads // cache.keys[0].shape[1], 1)
    for i, layer in enumerate(body.layers[: len(cache.keys)]):
        x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), i, heads, size, cos, sin, mask, cache)
        y, mlp = _norm(layer.post_attention_layernorm, x), layer.mlp
        x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(y)) * mlp.up_proj(y))
    return model.lm_head(_norm(body.norm, x[:, -keep:]))


def _angles(body: nn.Module, x: Tensor, places: Tensor, cache: FrontCache) -> list[Tensor]:
    """Cosines and sines (B, T, 1, D) of places (B, T), the first half of the sines negated.

    Looked up: the model's own module takes a dozen operations. The table grows with the caches.
    """
    columns, table = cache.keys[0].shape[2], cache.angles
    if not table or len(table[0]) != columns or table[0].dtype != x.dtype:
        cos, sin = (p[0, :, None] for p in body.rotary_emb(x, torch.arange(columns, device=x.device)[None]))
        half = cos.shape[-1] // 2
        table = cache.angles = [cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)]
    return [angles[places] for angles in table]


def _attention(
    own: nn.Module, x: Tensor, i: int, heads: int, size: int, cos: Tensor, sin: Tensor, mask: Tensor, cache: FrontCache
) -> Tensor:
    batch, time, _ = x.shape
    query, key, value = (p(x).view(batch, time, -1, size) for p in (own.q_proj, own.k_proj, own.v_proj))
    if hasattr(own, "q_norm"):
        query, key = _norm(own.q_norm, query), _norm(own.k_norm, key)
    query, key = (torch.addcmul(p * cos, p.roll(size // 2, -1), sin) for p in (query, key))
    keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2), i)
    query = query.transpose(1, 2).reshape(batch, keys.shape[1], -1, size)
    out = attend(query, keys, values, mask, own.scaling).reshape(batch, heads, time, size)
    return own.o_proj(out.transpose(1, 2).reshape(batch, time, heads * size))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    out = nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return out.to(x.dtype)  # which autocast makes float32
