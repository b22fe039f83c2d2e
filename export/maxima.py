"""Max poolings in operations whose derivatives are short and have an ONNX form."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from finercam_rt.export.rewriter import Rewriter, arguments

aten = torch.ops.aten


def adaptive_max_pool2d(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Windows of one size are a max pooling; one of all positions is the maximum along them.

    Others are the largest of each row's columns and then of the rows: of equal values the first, as PyTorch's.
    """
    values = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    x, size = node.args
    sizes, wanted = x.meta["val"].shape[-2:], pair(size)  # type: ignore[union-attr]
    if len(values) != len(node.users) or not all(isinstance(size, int) for size in (*sizes, *wanted)):
        return None
    if any(old % new for old, new in zip(sizes, wanted, strict=True)):
        found = _largest_of_windows(rewriter, _largest_of_windows(rewriter, x, -1, wanted[1]), -2, wanted[0])
    elif wanted == (1, 1):
        found = _largest_of_all(rewriter, x)
    else:
        kernel = [old // new for old, new in zip(sizes, wanted, strict=True)]
        found = rewriter.emit(aten.max_pool2d.default, x, kernel, kernel)
    for value in values:
        value.replace_all_uses_with(found)
    return found


def max_pool2d(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """One window of all positions is the maximum along them: its derivative would take a step for each of them.

    Zeros around what is pooled are 2^-24, the least number of float16. ONNX Runtime makes a padding with zeros the
    pooling's own (Pad_Fusion, 1.17 to 1.31 at least), which is one with minus infinity: another result wherever a
    window's values are all negative.
    """
    padded, kernel, _, padding = arguments(node, None, None, [], 0)[:4]
    if pair(kernel) == tuple(padded.meta["val"].shape[-2:]) and not any(pair(padding)):
        return _largest_of_all(rewriter, padded)
    if padded.target is not aten.pad.default:
        return None
    x, widths, mode, value = arguments(padded, None, None, "constant", None)
    if mode != "constant" or value:
        return None
    apart = rewriter.emit(aten.constant_pad_nd.default, x, widths, 2.0**-24)
    return rewriter.emit(aten.max_pool2d.default, apart, *node.args[1:])


def pair(value: Any) -> tuple[int, int]:
    """One number for both axes, or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _largest_of_all(rewriter: Rewriter, x: Any) -> fx.Node:
    """The maximum over the positions of (N,C,h,w), as (N,C,1,1)."""
    flat = rewriter.emit(aten.flatten.using_ints, x, -2)
    largest = rewriter.emit(operator.getitem, rewriter.emit(aten.max.dim, flat, -1, True), 0)
    return rewriter.emit(aten.unsqueeze.default, largest, -1)


def _largest_of_windows(rewriter: Rewriter, x: Any, dim: int, count: int) -> fx.Node:
    """The maxima of so many windows along an axis, which may overlap, as those of adaptive poolings."""
    size = x.meta["val"].shape[dim]
    windows = [(place * size // count, -(-(place + 1) * size // count)) for place in range(count)]
    parts = [rewriter.emit(aten.slice.Tensor, x, dim, first, end) for first, end in windows]
    largest = [rewriter.emit(operator.getitem, rewriter.emit(aten.max.dim, part, dim, True), 0) for part in parts]
    return rewriter.emit(aten.cat.default, largest, dim)
