"""Derivatives that have no exportable form of their own, written with operations that ONNX and TensorRT take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import core_aten_decompositions
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The core ATen decompositions and ours, into operations that the exporter to ONNX has forms for."""
    core = dict(core_aten_decompositions())
    core.pop(aten.squeeze.dim, None)  # it would become squeeze.dims, which the exporter takes apart again
    return {
        **core,
        aten.convolution_backward.default: _convolution_backward,
        aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
        aten.avg_pool2d_backward.default: _avg_pool2d_backward,
        aten.native_layer_norm.default: _layer_norm,
        aten.native_layer_norm_backward.default: _layer_norm_backward,
        aten.slice_backward.default: _slice_backward,
        aten.select_backward.default: _select_backward,
        aten.unfold_backward.default: _unfold_backward,
        aten.squeeze.dims: _squeeze,
        aten.copy.default: _copy,
        aten.empty_permuted.default: _empty,
    }


def _squeeze(x: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """One axis after the other, the last first."""
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.squeeze(dim)
    return x


def _empty(size: Sequence[int], _order: Sequence[int], **options: Any) -> torch.Tensor:
    """What is written to before it is read; the exporter has no form for the one whose axes are out of order."""
    return torch.zeros(size, dtype=options.get("dtype"))


def _copy(into: torch.Tensor, values: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What an assignment makes of the values: the exporter's own form forgets to broadcast them."""
    values = values.to(into.dtype)
    return values if values.shape == into.shape else values.expand(into.shape)


def _of_input(output_mask: Sequence[bool]) -> bool:
    """Whether a gradient is asked for, and that it is the input's: weights are constants of the engine."""
    if output_mask[1] or output_mask[2]:
        raise NotImplementedError("a weight that depends on the target layer's output")
    return output_mask[0]


def _convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, None, None]:
    """The gradient with respect to the input alone."""
    if not _of_input(output_mask):
        return None, None, None
    if transposed:
        return aten.convolution(grad, weight, None, stride, padding, dilation, False, [0, 0], groups), None, None
    missing = [
        x.shape[i + 2]
        - ((grad.shape[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[i + 2] - 1) + 1)
        for i in range(len(stride))
    ]
    if max(stride) > 1 and max(dilation) > 1:  # for which TensorRT-RTX has no kernel; for either alone it has
        grad, missing = _spread_apart(grad, stride, missing), [0] * len(missing)
        stride = [1] * len(missing)
    return aten.convolution(grad, weight, None, stride, padding, dilation, True, missing, groups), None, None


def _spread_apart(grad: torch.Tensor, stride: Sequence[int], missing: Sequence[int]) -> torch.Tensor:
    """Zeros between the positions, `stride` - 1 of them, and `missing` behind the last: (N,C,h,..) -> (N,C,h2,..)."""
    lead, sizes = grad.shape[:2], grad.shape[2:]
    columns = grad.reshape(*lead, *(part for size in sizes for part in (size, 1)))
    borders = [border for step in reversed(stride) for border in (0, step - 1, 0, 0)]
    spread: torch.Tensor = aten.constant_pad_nd(columns, borders).reshape(
        *lead, *(size * step for size, step in zip(sizes, stride, strict=True))
    )
    for axis, (size, step, more) in enumerate(zip(sizes, stride, missing, strict=True)):
        spread = spread.narrow(axis + 2, 0, (size - 1) * step + 1 + more)
    return spread


def _max_pool2d_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Sends each cotangent to the first maximum of its window, as PyTorch does, without indices or a scatter."""
    (kernel_h, kernel_w), (pad_h, pad_w), (dilation_h, dilation_w) = map(_pair, (kernel_size, padding, dilation))
    stride_h, stride_w = _pair(stride) if stride else (kernel_h, kernel_w)
    rows, columns = grad.shape[2:]
    span_h = (rows - 1) * stride_h + (kernel_h - 1) * dilation_h + 1
    span_w = (columns - 1) * stride_w + (kernel_w - 1) * dilation_w + 1
    height, width = x.shape[2:]
    lowest = torch.finfo(x.dtype).min
    padded = functional.pad(
        x, (pad_w, max(0, span_w - width - pad_w), pad_h, max(0, span_h - height - pad_h)), value=lowest
    )
    total_h, total_w = padded.shape[2:]

    def window(i: int, j: int) -> torch.Tensor:
        top, left = i * dilation_h, j * dilation_w
        return padded[
            :,
            :,
            top : top + (rows - 1) * stride_h + 1 : stride_h,
            left : left + (columns - 1) * stride_w + 1 : stride_w,
        ]

    offsets = [(i, j) for i in range(kernel_h) for j in range(kernel_w)]
    pooled = window(0, 0)
    for i, j in offsets[1:]:
        pooled = torch.maximum(pooled, window(i, j))
    free = torch.ones_like(grad)
    total = torch.zeros_like(padded)
    for i, j in offsets:
        hit = free * (window(i, j) == pooled)
        free = free - hit
        spread = _dilate(_dilate(hit * grad, 2, stride_h), 3, stride_w)
        top, left = i * dilation_h, j * dilation_w
        total = total + functional.pad(
            spread, (left, total_w - left - spread.shape[3], top, total_h - top - spread.shape[2])
        )
    return total[:, :, pad_h : pad_h + height, pad_w : pad_w + width]


def _avg_pool2d_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    """Spreads each cotangent over its window, divided by the number of positions that the mean counted."""
    kernel, border = _pair(kernel_size), _pair(padding)
    step = _pair(stride) if stride else kernel
    counts = [
        _counted(x.shape[i + 2], grad.shape[i + 2], kernel[i], step[i], border[i], count_include_pad) for i in range(2)
    ]
    divisors = [[divisor_override or rows * columns for columns in counts[1]] for rows in counts[0]]
    scaled = grad / torch.tensor(divisors, dtype=grad.dtype)
    missing = [
        x.shape[i + 2] - ((grad.shape[i + 2] - 1) * step[i] - 2 * border[i] + kernel[i]) for i in range(2)
    ]  # positive where a remainder was left out, negative where ceil_mode reached beyond the border
    channels = grad.shape[1]
    window = torch.ones(channels, 1, *kernel)
    extra = [max(0, m) for m in missing]
    spread: torch.Tensor = aten.convolution(scaled, window, None, step, border, [1, 1], True, extra, channels)
    return spread[:, :, : x.shape[2], : x.shape[3]]


def _counted(size: int, out: int, kernel: int, step: int, border: int, count_include_pad: bool) -> list[int]:
    """How many positions along one dimension each pooling window counts."""
    counts = []
    for index in range(out):
        first = index * step - border
        last = min(first + kernel, size + border)
        counts.append(last - first if count_include_pad else min(last, size) - max(first, 0))
    return counts


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spelled out, because the derivative reads mean and 1 / deviation, outputs that TensorRT's operation lacks."""
    dims = list(range(-len(normalized_shape), 0))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    rstd = ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    normal = centred * rstd
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias, mean, rstd


def _layer_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, None, None]:
    """rstd (g - mean(g) - n mean(g n)) of the normal values n, by means as the norm itself: runtimes fuse those."""
    if not _of_input(output_mask):
        return None, None, None
    dims = list(range(-len(normalized_shape), 0))
    normal = (x - mean) * rstd
    scaled = grad if weight is None else grad * weight
    rest = scaled - scaled.mean(dims, keepdim=True) - normal * (scaled * normal).mean(dims, keepdim=True)
    return rest * rstd, None, None


def _slice_backward(
    grad: torch.Tensor, input_sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> torch.Tensor:
    """Zeros around the cotangent, where the usual form scatters."""
    dim = dim % grad.ndim
    spread = _dilate(grad, dim, step)
    first = start % input_sizes[dim] if start < 0 else start
    return _surround(spread, dim, first, input_sizes[dim])


def _select_backward(grad: torch.Tensor, input_sizes: Sequence[int], dim: int, index: int) -> torch.Tensor:
    """Zeros around the cotangent, where the usual form scatters."""
    dim = dim % len(input_sizes)
    return _surround(grad.unsqueeze(dim), dim, index % input_sizes[dim], input_sizes[dim])


def _unfold_backward(grad: torch.Tensor, input_sizes: Sequence[int], dim: int, size: int, step: int) -> torch.Tensor:
    """Windows (..., count, ..., size) along `dim` summed at their places: a product with a matrix of zeros and ones."""
    dim = dim % len(input_sizes)
    length, count = input_sizes[dim], grad.shape[dim]
    with _disable_current_modes():
        places = torch.arange(count)[:, None] * step + torch.arange(size)
        matrix = functional.one_hot(places.flatten(), length).float()
    return (grad.movedim(dim, -2).flatten(-2) @ matrix).movedim(-1, dim)


def _surround(x: torch.Tensor, dim: int, first: int, size: int) -> torch.Tensor:
    """x as the part of `size` zeros along `dim` that begins at `first`."""
    if x.is_complex():  # for which the exporter has no padding
        return torch.view_as_complex(_surround(torch.view_as_real(x), dim, first, size))
    after = size - first - x.shape[dim]
    return functional.pad(x, (0, 0) * (x.ndim - dim - 1) + (first, after)) if first or after else x


def _dilate(x: torch.Tensor, dim: int, step: int) -> torch.Tensor:
    """Puts step - 1 zeros between neighbours along `dim`: size n becomes (n - 1) * step + 1."""
    if step == 1:
        return x
    size = x.shape[dim]
    spread = functional.pad(x.unsqueeze(dim + 1), (0, 0) * (x.ndim - dim - 1) + (0, step - 1))
    return spread.flatten(dim, dim + 1).narrow(dim, 0, (size - 1) * step + 1)


def _pair(values: Sequence[int] | int) -> tuple[int, int]:
    if isinstance(values, int):
        return values, values
    return (values[0], values[-1])
