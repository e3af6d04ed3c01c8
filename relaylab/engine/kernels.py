"""Where the engine computes otherwise than torch and transformers do, to the same sums: attention over grouped heads,
and linear layers over a few tokens on a CPU. The model itself is not changed; both hold during a forward pass of the
engine alone.
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
    mask = mask if time == 1 else mask.repeat(1, 1, heads // kv_heads, 1)
    out = attend(query.reshape(batch, kv_heads, -1, size), key, value, mask, scaling)
    return out.reshape(batch, heads, time, size).transpose(1, 2).contiguous(), None


_SMALL = 2**21  # scores, or numbers in the keys: about what the cores' caches hold


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


ATTENTION = "relaylab_grouped"
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
