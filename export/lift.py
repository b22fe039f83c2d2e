"""The tail, run with a perturbation of the activations that is carried apart while operations are linear in it.

Grad-CAM needs, per channel, the sum of the gradients over positions: the gradient with respect to one number delta_c
that is added to channel c at every position of the map. The interpreter here holds Lifted(value, delta, mask), the
number value + mask * delta at delta = 0, through linear operations, and merges it at the first other one, so that
autograd never forms the gradients at each position where the way to the logits is linear. DESIGN, section 2.1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from finercam_rt.export.lift_rules import RULES, WITH_KEYWORDS
from finercam_rt.export.lifted import CARRIED, Flattened, Lifted, flat

aten = torch.ops.aten


class LiftedTail(fx.Interpreter):
    """Runs a tail on Lifted activations; `merged_at` names the operations where a pair was merged, in order."""

    def __init__(
        self, tail: fx.GraphModule, at_mark: Callable[[torch.Tensor, int], torch.Tensor | Lifted] | None = None
    ) -> None:
        """Take the tail, and what becomes of the activations of a target layer (by index) that is marked in it."""
        super().__init__(tail)
        self.merged_at: list[str] = []
        self.at = ""
        self._at_mark = at_mark

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the tail. `at` names the operation that it stopped at, if it did not come through."""
        result = super().run(*args, **kwargs)
        self.at = ""
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation: by its rule where it is linear in the pair, on the merged value otherwise."""
        self.at = str(target)
        if target is operator.getitem:
            return args[0][args[1]]
        if target is torch.ops.finercam.tap.default:
            assert self._at_mark is not None
            return self._at_mark(args[0].merged() if isinstance(args[0], CARRIED) else args[0], args[1])
        if any(isinstance(value, CARRIED) for value in flat(args)):
            flattened = any(isinstance(value, Flattened) for value in flat(args))
            rule = None if flattened and target is not aten.linear.default else RULES.get(target)
            kept = rule(target, args, kwargs) if rule and (not kwargs or target in WITH_KEYWORDS) else None
            if kept is not None:
                return _without_dead(kept)
            self.merged_at.append(str(target))
            args = fx.node.map_aggregate(args, lambda v: v.merged() if isinstance(v, CARRIED) else v)
        if target is aten.scaled_dot_product_attention.default:
            return attention(*args, **kwargs)
        if target is aten.linear.default and not args[0].is_contiguous():
            # else the product becomes one for each position, with a copy of the weight for each
            args = (args[0].contiguous(), *args[1:])
        return super().call_function(target, args, kwargs)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(scale * Q K^T + mask) V in operations that have an exportable derivative.

    Raises:
        NotImplementedError: dropout, which would give another map each time.
    """
    if dropout_p:
        raise NotImplementedError("attention with dropout")
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def _without_dead(result: Any) -> Any:
    """A pair whose mask is zero everywhere is a plain value: a class token has no part in the map."""
    if isinstance(result, (list, tuple)):
        return type(result)(_without_dead(value) for value in result)
    if isinstance(result, Lifted):
        with _disable_current_modes():
            dead = not result.mask.any()
        return result.value if dead else result
    return result
