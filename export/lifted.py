"""Activations and a perturbation of theirs that is carried apart from them; see lift.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


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


@dataclass(frozen=True)
class Flattened:
    """A pair whose channels and positions, the dimensions `dims`, a reshape has made the last dimension of `value`.

    A linear layer takes it apart again; for anything else it is merged.
    """

    value: torch.Tensor
    pair: Lifted
    dims: tuple[int, ...]

    def merged(self) -> torch.Tensor:
        """As of a Lifted."""
        return self.pair.merged().reshape(self.value.shape)


CARRIED = (Lifted, Flattened)
"""What is carried through operations until it is merged."""


class _Merge(torch.autograd.Function):
    """value + mask * delta for a delta of zeros: nothing to add forward, a masked sum over positions backward."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, delta: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.mask, ctx.sizes = mask, delta.shape
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        positions = [i for i, size in enumerate(ctx.sizes) if is_one(size)]
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


def is_one(size: int | torch.SymInt) -> bool:
    """Whether a dimension is known to be 1; the symbolic batch never is."""
    return isinstance(size, int) and size == 1


def on_masks(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives for masks, which are real tensors, outside of the trace."""
    with _disable_current_modes():
        return function(*args)


def equal_masks(mask: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two masks are the same."""
    with _disable_current_modes():
        return torch.equal(mask, other)


def full_size(mask: torch.Tensor, sizes: Sequence[int | torch.SymInt], dims: Sequence[int]) -> torch.Tensor:
    """The mask at the value's full size along `dims`."""
    wanted = [int(sizes[i]) if i in dims else size for i, size in enumerate(mask.shape)]
    return mask.expand(wanted)


def is_position(pair: Lifted, dim: int) -> bool:
    """Whether a dimension is one of positions, along which delta is the same."""
    return is_one(pair.delta.shape[dim]) and not is_one(pair.value.shape[dim])


def flat(values: Any) -> Iterator[Any]:
    """The values of nested lists and tuples."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value
