"""How an operation that is linear in a Lifted pair gives a pair; each rule returns None where it is not.

A rule takes the operation, its arguments, of which one or several are pairs, and its keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from finercam_rt.export.dimensions import match_dimensions
from finercam_rt.export.lifted import Flattened, Lifted, equal_masks, flat, full_size, is_one, is_position, on_masks

aten = torch.ops.aten


def _only_pair(args: tuple[Any, ...]) -> Lifted | None:
    """The first argument, if it is the only pair among the arguments."""
    pairs = [value for value in flat(args) if isinstance(value, Lifted)]
    return args[0] if len(pairs) == 1 and args[0] is pairs[0] else None


def _linear(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    if isinstance(args[0], Flattened):
        return _linear_of_flattened(args[0], target, args[1:])
    pair = _only_pair(args)
    if pair is None or is_position(pair, -1):
        return None
    return Lifted(target(pair.value, *args[1:]), functional.linear(pair.delta, args[1]), pair.mask)


def _linear_of_flattened(flattened: Flattened, target: Any, rest: tuple[Any, ...]) -> Lifted | None:
    """Every position of a channel is moved alike, so the channel's weights are added up, once and for all."""
    pair, dims, weight = flattened.pair, flattened.dims, rest[0]
    shape = (len(weight), *(pair.value.shape[i] for i in dims))
    mask = on_masks(torch.reshape, pair.mask, (1, *(pair.mask.shape[i] for i in dims)))
    summed = _summed(weight, shape, mask, [1 + rank for rank, i in enumerate(dims) if is_position(pair, i)])
    if summed is None:
        return None
    value = target(flattened.value, *rest)
    delta = functional.linear(pair.delta.reshape(*flattened.value.shape[:-1], -1), summed.reshape(len(weight), -1))
    return Lifted(value, delta, on_masks(torch.ones, (1,) * value.ndim))


def _summed(weight: torch.Tensor, shape: Sequence[int], mask: torch.Tensor, dims: Sequence[int]) -> torch.Tensor | None:
    """A weight, in this shape, times a mask, summed over positions; None where it is no constant of the model."""
    if isinstance(weight, FakeTensor):
        return None

    def add_up() -> torch.Tensor:
        return (weight.detach().reshape(shape) * mask).sum(list(dims), keepdim=True)

    found: torch.Tensor = on_masks(add_up)
    return found


def _conv2d(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """A 1x1 convolution of stride 1 mixes channels only; one as large as the map leaves one position."""
    pair = _only_pair(args)
    defaults: tuple[Any, ...] = (None, [1], [0], [1], 1)
    weight, _, stride, padding, _, groups = (*args[1:], *defaults[len(args) - 2 :])
    if pair is None or is_position(pair, 1) or set(padding) != {0}:
        return None
    mask = pair.mask
    if tuple(weight.shape[2:]) == tuple(pair.value.shape[2:]) and is_position(pair, 2) and is_position(pair, 3):
        weight = _summed(weight, weight.shape, mask, (2, 3))
        if weight is None:
            return None
        mask = on_masks(torch.ones, (1,) * 4)
    elif set(weight.shape[2:]) != {1} or set(stride) != {1}:
        return None
    return Lifted(target(pair.value, *args[1:]), functional.conv2d(pair.delta, weight, groups=groups), mask)


def _batch_norm(target: Any, args: tuple[Any, ...], _kwargs: Any) -> tuple[Any, ...] | None:
    pair = _only_pair(args)
    if pair is None or is_position(pair, 1):
        return None
    _, weight, _, _, variance, _, eps = args
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    value, *statistics = target(pair.value, *args[1:])
    delta = pair.delta * scale.reshape(-1, *(1,) * (pair.delta.ndim - 2))
    return (Lifted(value, delta, pair.mask), *statistics)


def _rearrange(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """permute, transpose, unsqueeze, squeeze, roll: the same for all three."""
    pair = _only_pair(args)
    if pair is None or (target is aten.roll.default and len(args) < 3):
        return None
    rest = args[1:]
    value, delta = target(pair.value, *rest), target(pair.delta, *rest)
    # an axis that is not squeezed may be of size 1 in the perturbation
    return Lifted(value, delta, on_masks(target, pair.mask, *rest)) if value.ndim == delta.ndim else None


def _copy(target: Any, args: tuple[Any, ...], kwargs: Any) -> Lifted | None:
    """clone and alias, in whatever memory format."""
    pair = _only_pair(args)
    return None if pair is None else Lifted(target(pair.value, **kwargs), pair.delta, pair.mask)


def _select(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None:
        return None
    dim, index = args[1], args[2]
    return Lifted(
        target(pair.value, dim, index),
        target(pair.delta, dim, 0 if is_position(pair, dim) else index),
        on_masks(target, pair.mask, dim, 0 if pair.mask.shape[dim] == 1 else index),
    )


def _slice(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or len(args) < 2:
        return None
    dim, rest = args[1], args[1:]
    whole = pair.mask.shape[dim] == 1
    return Lifted(
        target(pair.value, *rest),
        pair.delta if is_position(pair, dim) else target(pair.delta, *rest),
        pair.mask if whole else on_masks(target, pair.mask, *rest),
    )


def _unbind(_target: Any, args: tuple[Any, ...], kwargs: Any) -> list[Any] | None:
    pair = _only_pair(args)
    if pair is None:
        return None
    dim = args[1] if len(args) > 1 else 0
    return [_select(aten.select.int, (pair, dim, i), kwargs) for i in range(int(pair.value.shape[dim]))]


def _split(target: Any, args: tuple[Any, ...], _kwargs: Any) -> list[Any] | None:
    """The pieces of a split, by one size or by several; chunk has become one."""
    pair = _only_pair(args)
    if pair is None:
        return None
    sizes, dim = args[1], args[2] if len(args) > 2 else 0
    values = target(pair.value, sizes, dim)
    deltas = [pair.delta] * len(values) if is_position(pair, dim) else target(pair.delta, sizes, dim)
    masks = [pair.mask] * len(values) if pair.mask.shape[dim] == 1 else on_masks(target, pair.mask, sizes, dim)
    return [Lifted(*piece) for piece in zip(values, deltas, masks, strict=True)]


def _reshape(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | Flattened | None:
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
        positions = [is_position(pair, i) for i in old]
        full = [i for i in old if not is_one(pair.delta.shape[i])]
        if any(positions) and full:
            apart = len(groups[-1][1]) == 1 and old is groups[-1][0]
            plain = all(
                len(before) == len(after) == 1 and not is_position(pair, *before) for before, after in groups[:-1]
            )
            return Flattened(value, pair, tuple(old)) if apart and plain else None
        delta_shape += [1 if any(positions) else value.shape[j] for j in new]
        if any(mask.shape[i] != 1 for i in old):
            mask = on_masks(full_size, mask, pair.value.shape, old)
            mask_shape += [int(value.shape[j]) for j in new]
        else:
            mask_shape += [1] * len(new)
    return Lifted(value, pair.delta.reshape(delta_shape), on_masks(torch.reshape, mask, mask_shape))


def _mean(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or len(args) < 2 or args[1] is None:
        return None
    keep = bool(args[2]) if len(args) > 2 else False
    dims = [dim % pair.value.ndim for dim in args[1]]
    positions = [dim for dim in dims if is_position(pair, dim)]
    summed = target is aten.sum.dim_IntList
    # a mean over positions is a mean of the mask, a mean over anything else is one of delta
    spread = on_masks(full_size, pair.mask, pair.value.shape, positions) if summed else pair.mask
    reduce = aten.sum.dim_IntList if summed else aten.mean.dim
    mask = on_masks(reduce, spread, dims, keep) if dims else pair.mask
    return Lifted(target(pair.value, *args[1:]), reduce(pair.delta, dims, keep), mask)


def _avg_pool2d(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    pair = _only_pair(args)
    if pair is None or not (is_position(pair, -1) and is_position(pair, -2)):
        return None
    mask = on_masks(full_size, pair.mask, pair.value.shape, [pair.value.ndim - 2, pair.value.ndim - 1])
    return Lifted(target(pair.value, *args[1:]), pair.delta, on_masks(target, mask, *args[1:]))


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
    if any(is_position(pair, i) and not is_one(size) for i, size in enumerate(shape)):
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
    if not equal_masks(first.mask, second.mask) or not _same_shape(first.delta, second.delta):
        return None
    return Lifted(value, target(first.delta, second.delta), first.mask)


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    return [str(size) for size in a.shape] == [str(size) for size in b.shape]


def _cat(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """Positions beside the map's, such as a class token, are perturbed by nothing."""
    parts, dim = args[0], args[1] if len(args) > 1 else 0
    pairs = [part for part in parts if isinstance(part, Lifted)]
    if len(pairs) != 1 or not is_position(pairs[0], dim):
        return None
    pair = pairs[0]
    value = target([part.value if part is pair else part for part in parts], dim)
    mask = on_masks(full_size, pair.mask, pair.value.shape, [dim % pair.value.ndim])
    blocks = []
    for part in parts:
        size = list(mask.shape)
        size[dim] = int(part.value.shape[dim] if part is pair else part.shape[dim])
        blocks.append(mask if part is pair else on_masks(torch.zeros, size))
    return Lifted(value, pair.delta, on_masks(torch.cat, blocks, dim))


def _pad(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Lifted | None:
    """Zeros around the map are perturbed by nothing."""
    pair = _only_pair(args)
    constant = all(value in ("constant", None, 0) for value in args[2:])
    if pair is None or not constant:
        return None
    dims = [pair.value.ndim - 1 - i for i in range(len(args[1]) // 2) if args[1][2 * i] or args[1][2 * i + 1]]
    if not all(is_position(pair, dim) for dim in dims):
        return None
    mask = on_masks(full_size, pair.mask, pair.value.shape, dims)
    return Lifted(target(pair.value, *args[1:]), pair.delta, on_masks(_pad_only, mask, args[1], dims))


def _pad_only(mask: torch.Tensor, pads: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Pads a mask along `dims`; along others it is constant and stays of size 1."""
    kept = [size if mask.ndim - 1 - i // 2 in dims else 0 for i, size in enumerate(pads)]
    return functional.pad(mask, kept)


WITH_KEYWORDS = (aten.clone.default,)
"""Operations whose rules take keyword arguments; those of the others say something that their rules do not know."""

RULES: dict[Any, Callable[[Any, tuple[Any, ...], Any], Any]] = {
    aten.linear.default: _linear,
    aten.conv2d.default: _conv2d,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.permute.default: _rearrange,
    aten.transpose.int: _rearrange,
    aten.unsqueeze.default: _rearrange,
    aten.squeeze.dim: _rearrange,
    aten.roll.default: _rearrange,
    aten.clone.default: _copy,
    aten.alias.default: _copy,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.reshape.default: _reshape,
    aten._unsafe_view.default: _reshape,
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
