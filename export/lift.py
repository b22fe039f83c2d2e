"""The tail, run with a perturbation of the activations that is carried apart while operations are linear in it.

Grad-CAM needs, per channel, the sum of the gradients over positions: the gradient with respect to one number delta_c
that is added to channel c at every position of the map. The interpreter here holds Lifted(value, delta, mask), the
number value + mask * delta at delta = 0, through linear operations, and merges it at the first other one, so that
autograd never forms the gradients at each position where the way to the logits is linear. DESIGN, section 2.1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten


@dataclass(frozen=True)
class Lifted:
    """value + mask * delta, at delta = 0.

    delta has size 1 along the positions and the value's size along every other dimension; mask, a constant, has size 1
    or the value's along the positions and 1 elsewhere. value may depend on delta by other ways.
    """

    value: torch.Tensor
    delta: torch.Tensor
    mask: torch.Tensor

    def merged(self) -> torch.Tensor:
        """The value as one tensor that autograd can go back from to delta."""
        return _Merge.apply(self.value, self.delta, self.mask)  # type: ignore[no-any-return]


class _Merge(torch.autograd.Function):
    """value + mask * delta for a delta of zeros: nothing to add forward, a masked sum over positions backward."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, delta: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.mask, ctx.sizes = mask, delta.shape
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        positions = [i for i, size in enumerate(ctx.sizes) if _is_one(size)]
        return grad, _masked_sum(grad, ctx.mask, positions), None


def _masked_sum(grad: torch.Tensor, mask: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """sum over positions of mask * grad, by a slice where the mask is one run of a constant between zeros."""
    with _disable_current_modes():
        varying = [i for i, size in enumerate(mask.shape) if size != 1]
        levels = sorted(set(mask.flatten().tolist()))
        inside = mask.flatten().nonzero().flatten().tolist()
    nonzero = [level for level in levels if level != 0]
    if len(varying) <= 1 and len(nonzero) == 1 and inside[-1] - inside[0] + 1 == len(inside):
        if varying and len(inside) < mask.shape[varying[0]]:
            grad = grad.narrow(varying[0], inside[0], len(inside))
        total = grad.sum(list(positions), keepdim=True) if positions else grad
        return total if nonzero[0] == 1 else total * nonzero[0]
    return (grad * mask).sum(list(positions), keepdim=True)


class LiftedTail(fx.Interpreter):
    """Runs a tail on Lifted activations; `merged_at` names the operations where a pair was merged, in order."""

    def __init__(
        self, tail: fx.GraphModule, at_mark: Callable[[torch.Tensor, int], torch.Tensor | Lifted] | None = None
    ) -> None:
        """Take the tail, and what becomes of the activations of a target layer (by index) that is marked in it."""
        super().__init__(tail)
        self.merged_at: list[str] = []
        self._at_mark = at_mark

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation: by its rule where it is linear in the pair, on the merged value otherwise."""
        if target is operator.getitem:
            return args[0][args[1]]
        if target is torch.ops.finercam.tap.default:
            assert self._at_mark is not None
            return self._at_mark(args[0].merged() if isinstance(args[0], Lifted) else args[0], args[1])
        if any(isinstance(value, Lifted) for value in _flat(args)):
            rule = _RULES.get(target)
            kept = rule(target, args, kwargs) if rule is not None and not kwargs else None
            if kept is not None:
                return _without_dead(kept)
            self.merged_at.append(str(target))
            args = fx.node.map_aggregate(args, lambda v: v.merged() if isinstance(v, Lifted) else v)
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
        NotImplementedError: dropout, causal or grouped-query attention.
    """
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("attention that is causal, grouped or has dropout")
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def _is_one(size: int | torch.SymInt) -> bool:
    """Whether a dimension is known to be 1; the symbolic batch never is."""
    return isinstance(size, int) and size == 1


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _without_dead(result: Any) -> Any:
    """A pair whose mask is zero everywhere is a plain value: a class token has no part in the map."""
    if isinstance(result, (list, tuple)):
        return type(result)(_without_dead(value) for value in result)
    if isinstance(result, Lifted):
        with _disable_current_modes():
            dead = not result.mask.any()
        return result.value if dead else result
    return result


def _constant(function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """Computes on masks, which are real tensors, outside of the trace."""
    with _disable_current_modes():
        return function(*args)


def _spread(mask: torch.Tensor, sizes: Sequence[int | torch.SymInt], dims: Sequence[int]) -> torch.Tensor:
    """The mask at the value's full size along `dims`."""
    wanted = [int(sizes[i]) if i in dims else size for i, size in enumerate(mask.shape)]
    return mask.expand(wanted)


def _is_position(pair: Lifted, dim: int) -> bool:
    return _is_one(pair.delta.shape[dim]) and not _is_one(pair.value.shape[dim])


def _only_pair(args: tuple[Any, ...]) -> Lifted | None:
    """The first argument, if it is the only pair among the arguments."""
    pairs = [value for value in _flat(args) if isinstance(value, Lifted)]
    return args[0] if len(pairs) == 1 and args[0] is pairs[0] else None


def _linear(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or _is_position(pair, -1):
        return None
    return Lifted(target(pair.value, *args[1:]), functional.linear(pair.delta, args[1]), pair.mask)


def _conv2d(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """A 1x1 convolution of stride 1 mixes channels only."""
    pair = _only_pair(args)
    defaults: tuple[Any, ...] = (None, [1], [0], [1], 1)
    weight, _, stride, padding, _, groups = (*args[1:], *defaults[len(args) - 2 :])
    if (
        pair is None
        or _is_position(pair, 1)
        or set(weight.shape[2:]) != {1}
        or set(stride) != {1}
        or set(padding) != {0}
    ):
        return None
    return Lifted(target(pair.value, *args[1:]), functional.conv2d(pair.delta, weight, groups=groups), pair.mask)


def _batch_norm(target: Any, args: tuple[Any, ...], _kwargs: Any) -> tuple[Any, ...] | None:
    pair = _only_pair(args)
    if pair is None or _is_position(pair, 1):
        return None
    _, weight, _, _, variance, _, eps = args
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    value, *statistics = target(pair.value, *args[1:])
    delta = pair.delta * scale.reshape(-1, *(1,) * (pair.delta.ndim - 2))
    return (Lifted(value, delta, pair.mask), *statistics)


def _rearrange(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """permute, transpose, unsqueeze, clone: the same for all three."""
    pair = _only_pair(args)
    if pair is None:
        return None
    rest = args[1:]
    return Lifted(target(pair.value, *rest), target(pair.delta, *rest), _constant(target, pair.mask, *rest))


def _select(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None:
        return None
    dim, index = args[1], args[2]
    return Lifted(
        target(pair.value, dim, index),
        target(pair.delta, dim, 0 if _is_position(pair, dim) else index),
        _constant(target, pair.mask, dim, 0 if pair.mask.shape[dim] == 1 else index),
    )


def _slice(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or len(args) < 2:
        return None
    dim, rest = args[1], args[1:]
    whole = pair.mask.shape[dim] == 1
    return Lifted(
        target(pair.value, *rest),
        pair.delta if _is_position(pair, dim) else target(pair.delta, *rest),
        pair.mask if whole else _constant(target, pair.mask, *rest),
    )


def _unbind(_target: Any, args: tuple[Any, ...], kwargs: Any) -> list[Any] | None:
    pair = _only_pair(args)
    if pair is None:
        return None
    dim = args[1] if len(args) > 1 else 0
    return [_select(aten.select.int, (pair, dim, i), kwargs) for i in range(int(pair.value.shape[dim]))]


def _reshape(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None:
        return None
    value = target(pair.value, *args[1:])
    groups = match_dimensions(pair.value.shape, value.shape)
    if groups is None:
        return None
    mask = pair.mask
    delta_shape: list[int | torch.SymInt] = []
    mask_shape: list[int] = []
    for old, new in groups:
        positions = [_is_position(pair, i) for i in old]
        full = [i for i in old if not _is_one(pair.delta.shape[i])]
        if any(positions) and full:
            return None
        delta_shape += [1 if any(positions) else value.shape[j] for j in new]
        if any(mask.shape[i] != 1 for i in old):
            mask = _constant(_spread, mask, pair.value.shape, old)
            mask_shape += [int(value.shape[j]) for j in new]
        else:
            mask_shape += [1] * len(new)
    return Lifted(value, pair.delta.reshape(delta_shape), _constant(torch.reshape, mask, mask_shape))


def match_dimensions(
    old: Sequence[int | torch.SymInt], new: Sequence[int | torch.SymInt]
) -> list[tuple[list[int], list[int]]] | None:
    """The least groups of dimensions that a reshape maps onto each other; None where the batch is folded."""
    batch_old = [i for i, size in enumerate(old) if not isinstance(size, int)]
    batch_new = [i for i, size in enumerate(new) if not isinstance(size, int)]
    if len(batch_old) != len(batch_new) or len(batch_old) > 1:
        return None
    if not batch_old:
        return _match_static(list(old), list(new), 0, 0)  # type: ignore[arg-type]
    i, j = batch_old[0], batch_new[0]
    if str(old[i]) != str(new[j]):
        return None
    before = _match_static(list(old[:i]), list(new[:j]), 0, 0)  # type: ignore[arg-type]
    after = _match_static(list(old[i + 1 :]), list(new[j + 1 :]), i + 1, j + 1)  # type: ignore[arg-type]
    if before is None or after is None:
        return None
    return [*before, ([i], [j]), *after]


def _match_static(
    old: list[int], new: list[int], old_offset: int, new_offset: int
) -> list[tuple[list[int], list[int]]] | None:
    groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left = old[i] if i < len(old) else 1
        right = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif right < left and j < len(new):
                right, j = right * new[j], j + 1
            else:
                return None
        groups.append(([old_offset + d for d in range(first_i, i)], [new_offset + d for d in range(first_j, j)]))
    return groups


def _mean(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or len(args) < 2 or args[1] is None:
        return None
    keep = bool(args[2]) if len(args) > 2 else False
    dims = [dim % pair.value.ndim for dim in args[1]]
    positions = [dim for dim in dims if _is_position(pair, dim)]
    summed = target is aten.sum.dim_IntList
    # a mean over positions is a mean of the mask, a mean over anything else is one of delta
    spread = _constant(_spread, pair.mask, pair.value.shape, positions) if summed else pair.mask
    reduce = aten.sum.dim_IntList if summed else aten.mean.dim
    mask = _constant(reduce, spread, dims, keep) if dims else pair.mask
    return Lifted(target(pair.value, *args[1:]), reduce(pair.delta, dims, keep), mask)


def _avg_pool2d(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or not (_is_position(pair, -1) and _is_position(pair, -2)):
        return None
    mask = _constant(_spread, pair.mask, pair.value.shape, [pair.value.ndim - 2, pair.value.ndim - 1])
    return Lifted(target(pair.value, *args[1:]), pair.delta, _constant(target, mask, *args[1:]))


def _scale(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """mul and div by what does not vary along the positions."""
    pairs = [value for value in args if isinstance(value, Lifted)]
    if len(pairs) != 1 or len(args) != 2 or (target is aten.div.Tensor and args[1] is pairs[0]):
        return None
    pair, other = pairs[0], args[1] if args[0] is pairs[0] else args[0]
    value = target(*(v.value if v is pair else v for v in args))
    if not isinstance(other, torch.Tensor):
        return Lifted(value, target(pair.delta, other), pair.mask)
    if value.ndim != pair.value.ndim or not _same_shape(value, pair.value):
        return None
    shape = (*(1,) * (value.ndim - other.ndim), *other.shape)
    if any(_is_position(pair, i) and not _is_one(size) for i, size in enumerate(shape)):
        return None
    # delta is zero, so it says nothing about what it is multiplied with
    return Lifted(value, target(pair.delta, other.detach().reshape(shape)), pair.mask)


def _add(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    if len(args) != 2:
        return None
    pairs = [value for value in args if isinstance(value, Lifted)]
    value = target(*(v.value if isinstance(v, Lifted) else v for v in args))
    if any(not _same_shape(value, pair.value) for pair in pairs):
        return None
    if len(pairs) == 1:
        negative = target is aten.sub.Tensor and args[1] is pairs[0]
        return Lifted(value, -pairs[0].delta if negative else pairs[0].delta, pairs[0].mask)
    first, second = pairs
    same = first.mask.shape == second.mask.shape and bool(_constant(torch.eq, first.mask, second.mask).all())
    if not same or not _same_shape(first.delta, second.delta):
        return None
    return Lifted(value, target(first.delta, second.delta), first.mask)


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    return [str(size) for size in a.shape] == [str(size) for size in b.shape]


def _cat(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """Positions beside the map's, such as a class token, are perturbed by nothing."""
    parts, dim = args[0], args[1] if len(args) > 1 else 0
    pairs = [part for part in parts if isinstance(part, Lifted)]
    if len(pairs) != 1 or not _is_position(pairs[0], dim):
        return None
    pair = pairs[0]
    value = target([part.value if part is pair else part for part in parts], dim)
    mask = _constant(_spread, pair.mask, pair.value.shape, [dim % pair.value.ndim])
    blocks = []
    for part in parts:
        size = list(mask.shape)
        size[dim] = int(part.value.shape[dim] if part is pair else part.shape[dim])
        blocks.append(mask if part is pair else _constant(torch.zeros, size))
    return Lifted(value, pair.delta, _constant(torch.cat, blocks, dim))


def _pad(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """Zeros around the map are perturbed by nothing."""
    pair = _only_pair(args)
    constant = all(value in ("constant", None, 0) for value in args[2:])
    if pair is None or not constant:
        return None
    dims = [pair.value.ndim - 1 - i for i in range(len(args[1]) // 2) if args[1][2 * i] or args[1][2 * i + 1]]
    if not all(_is_position(pair, dim) for dim in dims):
        return None
    mask = _constant(_spread, pair.mask, pair.value.shape, dims)
    return Lifted(target(pair.value, *args[1:]), pair.delta, _constant(_pad_only, mask, args[1], dims))


def _pad_only(mask: torch.Tensor, pads: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Pads a mask along `dims`; along others it is constant and stays of size 1."""
    kept = [size if mask.ndim - 1 - i // 2 in dims else 0 for i, size in enumerate(pads)]
    return functional.pad(mask, kept)


_RULES: dict[Any, Callable[[Any, tuple[Any, ...], Any], Any]] = {
    aten.linear.default: _linear,
    aten.conv2d.default: _conv2d,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.permute.default: _rearrange,
    aten.transpose.int: _rearrange,
    aten.unsqueeze.default: _rearrange,
    aten.clone.default: _rearrange,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.unbind.int: _unbind,
    aten.reshape.default: _reshape,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _mean,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.mul.Tensor: _scale,
    aten.div.Tensor: _scale,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _add,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.pad.default: _pad,
}
