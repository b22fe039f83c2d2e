"""torch.nn.MultiheadAttention in operations that the passes understand.

PyTorch computes it with the positions before the batch and the heads folded into the batch, which keeps selections from
sinking and perturbations from being carried, and its queries, keys and values are products of transposed values.
Attention that the exporter has no form for is another matter, which rewrite.py has a rule for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Until the block ends, the model's attention modules compute the same with (N,heads,L,d) queries, keys, values.

    Nor do transformer layers take PyTorch's fast path for inference, one operation without a derivative.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    changed = [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and "forward" not in vars(module)
    ]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in changed:
            module.forward = partial(_attend, module)  # type: ignore[method-assign]
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in changed:
            vars(module).pop("forward", None)


def _attend(
    module: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> Any:
    """What the module's forward gives, for the calls of a forward pass; others are left to it."""
    mask, simple = options.get("attn_mask"), {"need_weights", "attn_mask", "average_attn_weights"}
    plain = (
        not args
        and set(options) <= simple
        and options.get("need_weights") is False
        and query.ndim == 3
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
        and (mask is None or (mask.dtype != torch.bool and mask.ndim == 2))
    )
    if not plain:
        return nn.MultiheadAttention.forward(module, query, key, value, *args, **options)
    given = (query, key, value)
    if not module.batch_first:
        query, key, value = (x.transpose(0, 1) for x in given)
    if all(x is given[0] for x in given):
        projected = functional.linear(query, module.in_proj_weight, module.in_proj_bias)
        q, k, v = _heads(projected, 3, module.num_heads)
    else:
        width = module.embed_dim
        biases = (None,) * 3 if module.in_proj_bias is None else torch.split(module.in_proj_bias, width)
        weights = torch.split(module.in_proj_weight, width)
        q, k, v = (
            _heads(functional.linear(x, weight, bias), 1, module.num_heads)[0]
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
    attended = functional.scaled_dot_product_attention(q, k, v, mask)
    joined = module.out_proj(attended.transpose(1, 2).reshape(*query.shape[:2], module.embed_dim))
    return (joined if module.batch_first else joined.transpose(0, 1)), None


def _heads(projected: torch.Tensor, parts: int, heads: int) -> tuple[torch.Tensor, ...]:
    """(N,L,parts*E) as so many of (N,heads,L,E/heads)."""
    batch, length, width = projected.shape
    split = projected.reshape(batch, length, parts, heads, width // (parts * heads))
    return split.permute(2, 0, 3, 1, 4).unbind(0)
