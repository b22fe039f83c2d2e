"""One derivative for many seeds: every operation of a traced graph with an axis P in front of what depends on the seed.

What torch.func.vmap does, kept to operations that leave the batch symbolic and copy nothing of what the seeds share: a
product with a value that all seeds have in common is one product with P times the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Many:
    """A value (...) of each of P seeds, stacked to (P,...)."""

    stacked: torch.Tensor

    @property
    def ndim(self) -> int:
        """The number of dimensions that one seed's value has."""
        return self.stacked.ndim - 1

    def of_rank(self, rank: int) -> torch.Tensor:
        """Stacked, with dimensions of size 1 behind P, so that it broadcasts as one seed's value would."""
        ones = (1,) * (rank - self.ndim)
        return self.stacked.reshape(self.stacked.shape[0], *ones, *self.stacked.shape[1:]) if ones else self.stacked


def for_many(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation of which some arguments are Many; its results are."""
    rule = _RULES.get(target)
    if rule is None and not kwargs and torch.Tag.pointwise in getattr(target, "tags", ()):
        rule = _pointwise
    result = rule(target, args, kwargs) if rule is not None else None
    return _one_by_one(target, args, kwargs) if result is None else result


def _one_by_one(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """For any operation: P times."""
    count = next(value.stacked.shape[0] for value in _flat((args, kwargs.values())) if isinstance(value, Many))

    def of(index: int) -> Any:
        mine = fx.node.map_aggregate(
            (args, kwargs), lambda value: value.stacked[index] if isinstance(value, Many) else value
        )
        return target(*mine[0], **mine[1])

    results = [of(index) for index in range(count)]
    if isinstance(results[0], (tuple, list)):
        return type(results[0])(
            Many(torch.stack(part)) if isinstance(part[0], torch.Tensor) else part[0]
            for part in zip(*results, strict=True)
        )
    return Many(torch.stack(results))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") or isinstance(value, torch.Tensor):
            yield value
        else:
            yield from _flat(value)


def _pointwise(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many:
    rank = max(value.ndim for value in args if isinstance(value, (torch.Tensor, Many)))
    return Many(target(*(value.of_rank(rank) if isinstance(value, Many) else value for value in args)))


def _like(target: Any, args: tuple[Any, ...], kwargs: Any) -> Many:
    return Many(target(args[0].stacked, *args[1:], **kwargs))


def _reshape(_target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many:
    return Many(args[0].stacked.reshape(args[0].stacked.shape[0], *args[1]))


def _expand(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many:
    return Many(target(args[0].of_rank(len(args[1])), [args[0].stacked.shape[0], *args[1]]))


def _permute(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many:
    return Many(target(args[0].stacked, [0, *(dim % args[0].ndim + 1 for dim in args[1])]))


def _along(target: Any, args: tuple[Any, ...], kwargs: Any) -> Many | None:
    """Operations on one or several dimensions of their first argument: slice, select, sum, softmax, ..."""
    first, *rest = args
    if not isinstance(first, Many) or not rest or rest[0] is None or rest[0] == []:
        return None
    dims, *rest = rest
    rank = first.ndim + (target is aten.unsqueeze.default)
    moved = [dim % rank + 1 for dim in dims] if isinstance(dims, (list, tuple)) else dims % rank + 1
    return Many(target(first.stacked, moved, *rest, **kwargs))


def _cat(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many:
    parts, dim = args[0], (*args[1:], 0)[0]
    count = next(part.stacked.shape[0] for part in parts if isinstance(part, Many))
    stacked = [part.stacked if isinstance(part, Many) else part.expand(count, *part.shape) for part in parts]
    return Many(target(stacked, dim % parts[0].ndim + 1))


def _size(_target: Any, args: tuple[Any, ...], _kwargs: Any) -> Any:
    return args[0].stacked.shape[args[1] % args[0].ndim + 1]


def _mm(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many | None:
    left, right = args
    if not isinstance(left, Many) or isinstance(right, Many):
        return None
    count, rows, inner = left.stacked.shape
    return Many(target(left.stacked.reshape(count * rows, inner), right).reshape(count, rows, right.shape[1]))


def _bmm(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many:
    """(B,m,k) x (B,k,n): P goes with the rows of the left or the columns of the right, or else with the batch."""
    left, right = args
    if isinstance(left, Many) and isinstance(right, Many):
        count, batch = left.stacked.shape[:2]
        product = target(left.stacked.flatten(0, 1), right.stacked.flatten(0, 1))
        return Many(product.reshape(count, batch, *product.shape[1:]))
    if isinstance(left, Many):
        count, batch, rows, inner = left.stacked.shape
        product = target(left.stacked.transpose(0, 1).reshape(batch, count * rows, inner), right)
        return Many(product.reshape(batch, count, rows, right.shape[2]).transpose(0, 1))
    count, batch, inner, columns = right.stacked.shape
    product = target(left, right.stacked.permute(1, 2, 0, 3).reshape(batch, inner, count * columns))
    return Many(product.reshape(batch, left.shape[1], count, columns).permute(2, 0, 1, 3))


def _convolution(target: Any, args: tuple[Any, ...], _kwargs: Any) -> Many | None:
    """Seeds become images."""
    x, *rest = args
    if not isinstance(x, Many) or any(isinstance(value, Many) for value in rest):
        return None
    result = target(x.stacked.flatten(0, 1), *rest)
    return Many(result.reshape(*x.stacked.shape[:2], *result.shape[1:]))


_RULES: dict[Any, Callable[[Any, tuple[Any, ...], Any], Any]] = {
    **dict.fromkeys([aten.view.default, aten._unsafe_view.default, aten.reshape.default], _reshape),
    **dict.fromkeys(
        [
            aten.clone.default,
            aten.alias.default,
            aten.detach.default,
            aten._to_copy.default,
            aten.full_like.default,
            aten.zeros_like.default,
            aten.ones_like.default,
            aten.constant_pad_nd.default,
        ],
        _like,
    ),
    **dict.fromkeys(
        [
            aten.unsqueeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.select.int,
            aten.slice.Tensor,
            aten.sum.dim_IntList,
            aten.mean.dim,
            aten.amax.default,
            aten.amin.default,
            aten._softmax.default,
        ],
        _along,
    ),
    aten.expand.default: _expand,
    aten.permute.default: _permute,
    aten.cat.default: _cat,
    aten.sym_size.int: _size,
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.convolution.default: _convolution,
}
