"""Fourier transforms between real values and half of their spectrum, by the whole of it.

Their derivatives fill in or double the other half in place, of which a graph knows nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from finercam_rt.export.rewriter import Rewriter

aten = torch.ops.aten


def half_spectrum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """rfft, rfft2 and rfftn: the whole spectrum along the last of their axes, of which the first half is kept."""
    found = _arguments(node)
    if found is None:
        return None
    x, sizes, dims, norm = found
    last, length = dims[-1], node.meta["val"].shape[dims[-1]]
    for dim, size in zip(dims, sizes or (), strict=False):  # as they are real: complex numbers are not padded in ONNX
        present = x.meta["val"].shape[dim]
        if size > present:
            borders = [0, 0] * (x.meta["val"].ndim - dim - 1) + [0, size - present]
            x = rewriter.emit(aten.constant_pad_nd.default, x, borders)
        elif size < present:
            x = rewriter.emit(aten.slice.Tensor, x, dim, 0, size)
    whole = rewriter.emit(aten.fft_fftn.default, x, None, dims, norm)
    return rewriter.emit(aten.slice.Tensor, whole, last, 0, length)


def of_half_spectrum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """irfft, irfft2 and irfftn: the real part of the inverse of the spectrum with its other half, the conjugate of the
    first in the other direction."""
    found = _arguments(node)
    if found is None:
        return None
    x, sizes, dims, norm = found
    *others, last = dims
    size = node.meta["val"].shape[last]
    half = size // 2 + 1
    if x.meta["val"].shape[last] < half:
        return None
    if others:
        x = rewriter.emit(aten.fft_ifftn.default, x, None if sizes is None else sizes[:-1], others, norm)
    kept = rewriter.emit(aten.slice.Tensor, x, last, 0, half)
    again = rewriter.emit(aten.flip.default, rewriter.emit(aten.slice.Tensor, x, last, 1, size - half + 1), [last])
    whole = rewriter.emit(aten.cat.default, [kept, rewriter.emit(aten._conj.default, again)], last)
    return rewriter.emit(aten.real.default, rewriter.emit(aten.fft_ifft.default, whole, None, last, norm))


def magnitude(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """abs of complex numbers, as the length of the pair of their parts; as PyTorch's, its derivative is 0 at 0."""
    x: Any = node.args[0]
    if not x.meta["val"].is_complex():
        return None
    return rewriter.emit(aten.linalg_vector_norm.default, rewriter.emit(aten.view_as_real.default, x), 2, [-1])


def _arguments(node: fx.Node) -> tuple[Any, list[int] | None, list[int], str | None] | None:
    """The values, the sizes that are asked for, the axes from the front, and the norm; None where a size is unknown."""
    names = [(argument.name, argument.default_value) for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    positional = {name: value for (name, _), value in zip(names, node.args, strict=False)}
    x, sizes, dims, norm = ({**dict(names), **positional, **node.kwargs}[name] for name, _ in names)
    rank = x.meta["val"].ndim
    sizes = [sizes] if isinstance(sizes, int) else sizes
    dims = [dims] if isinstance(dims, int) else dims
    if dims is None:
        dims = range(-(rank if sizes is None else len(sizes)), 0)
    axes = [int(dim) % rank for dim in dims]
    known = [*(node.meta["val"].shape[axis] for axis in axes), *(sizes or [])]
    return (x, sizes, axes, norm) if all(isinstance(size, int) for size in known) else None
