"""The two places where the engine computes otherwise than the model's own code, to the same sums: attention over
grouped heads, and linear layers over a few tokens on a CPU. The model itself is not changed; both hold during a forward
pass of the engine alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface


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
    group = heads // kv_heads
    mask = mask if time == 1 else mask.repeat(1, 1, group, 1)
    out = nn.functional.scaled_dot_product_attention(
        query.reshape(batch, kv_heads, group * time, size), key, value, attn_mask=mask, scale=scaling
    )
    return out.reshape(batch, heads, time, size).transpose(1, 2).contiguous(), None


ATTENTION = "relaylab_grouped"
AttentionInterface.register(ATTENTION, _grouped_attention)


class FewTokens(TorchFunctionMode):
    """Linear layers over 2 to 4 tokens as W @ x.T, the same sums in a kernel that reads the weights once.

    MKL's for x @ W.T takes 1.3 to 5 times as long there (docs/benchmarks.md), and reading the weights is all that
    decoding with a large model on a CPU does.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear and not kwargs and 2 <= args[0].shape[:-1].numel() <= 4:
            x, weight, *bias = args
            out = torch.mm(weight, x.reshape(-1, x.shape[-1]).t()).t().reshape(*x.shape[:-1], -1)
            return out + bias[0] if bias and bias[0] is not None else out
        return function(*args, **(kwargs or {}))
