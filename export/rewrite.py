"""Part of stage 1: captured operations that autograd or ONNX has no form for, written with others that they have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from finercam_rt.export.distances import distances
from finercam_rt.export.maxima import adaptive_max_pool2d, max_pool2d, pair
from finercam_rt.export.rewriter import Rewriter, Rule, arguments
from finercam_rt.export.spectra import half_spectrum, magnitude, of_half_spectrum
from finercam_rt.export.values import dependents

aten = torch.ops.aten


def rewrite(graph_module: fx.GraphModule, marks: Sequence[fx.Node]) -> None:
    """Replace, in place, the operations that have a rule by what the rule makes of them.

    What follows a mark will be differentiated; what does not goes to the exporter as it is.
    """
    rewriter = Rewriter(graph_module)
    behind = dependents(graph_module.graph.nodes, marks)
    for node in list(graph_module.graph.nodes):
        rules = TAIL if node in behind else TRUNK
        rule = rules.get(node.target) if node.op == "call_function" else None
        found = None if rule is None else rule(rewriter.at(node), node)
        if found is not None:
            node.replace_all_uses_with(found)
            graph_module.graph.erase_node(node)
    graph_module.graph.lint()
    graph_module.recompile()


def _copy(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """What an assignment in place leaves behind: the source, in the shape and type of what it was written to."""
    destination, source = (argument.meta["val"] for argument in node.args[:2])  # type: ignore[union-attr]
    found: Any = node.args[1]
    if source.dtype != destination.dtype:
        found = rewriter.emit(aten._to_copy.default, found, dtype=destination.dtype)
    if [str(size) for size in source.shape] != [str(size) for size in destination.shape]:
        found = rewriter.emit(aten.expand_as.default, found, node.args[0])
    assert isinstance(found, fx.Node)
    return found


def _slice_scatter(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """x with a part along one dimension replaced: the parts before and behind it, and the new one."""
    x, source, dim, start, stop, step = arguments(node, None, None, 0, None, None, 1)
    return _with_part(rewriter, x, source, dim, start, stop, step)


def _select_scatter(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    x, source, dim, index = node.args
    size = x.meta["val"].shape[dim]  # type: ignore[union-attr]
    if not isinstance(size, int):
        return None
    first = int(index) % size  # type: ignore[arg-type]
    row = rewriter.emit(aten.unsqueeze.default, source, int(dim) % x.meta["val"].ndim)  # type: ignore[union-attr, arg-type]
    return _with_part(rewriter, x, row, dim, first, first + 1, 1)


def _with_part(rewriter: Rewriter, x: Any, part: Any, dim: Any, start: Any, stop: Any, step: Any) -> fx.Node | None:
    size = x.meta["val"].shape[dim]
    if not isinstance(size, int) or any(isinstance(value, fx.Node) for value in (start, stop, step)):
        return None
    places = range(*slice(start, stop, step).indices(size))
    runs = [(places.start, part)] if step == 1 else []
    if step != 1:
        rows = range(len(places))
        runs = [(places[row], rewriter.emit(aten.slice.Tensor, part, dim, row, row + 1)) for row in rows]
    pieces: list[Any] = []
    done = 0
    for place, run in runs:
        if done < place:
            pieces.append(rewriter.emit(aten.slice.Tensor, x, dim, done, place))
        pieces.append(run)
        done = place + (len(places) if step == 1 else 1)
    if done < size:
        pieces.append(rewriter.emit(aten.slice.Tensor, x, dim, done, size))
    return rewriter.emit(aten.cat.default, pieces, dim)


def _clamp(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Bounds that are constants of one element are numbers, and infinite ones are none."""
    x, *bounds = arguments(node, None, None, None)
    limits: list[float | None] = []
    for name, bound in zip(("min", "max"), bounds, strict=True):
        bound = node.kwargs.get(name, bound)
        number = None if bound is None else rewriter.number(bound)
        if bound is not None and number is None:
            return None
        limits.append(None if number is None or math.isinf(number) else number)
    if limits == [None, None]:
        assert isinstance(x, fx.Node)
        return x
    return rewriter.emit(aten.clamp.default, x, *limits)


def _attention(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """softmax(scale * Q K^T + mask) V step by step where queries are not (N,heads,L,D), all that the exporter takes."""
    query, key, value, mask, dropout, causal = arguments(node, None, None, None, None, 0.0, False)
    ranks = {argument.meta["val"].ndim for argument in (query, key, value)}
    mask = node.kwargs.get("attn_mask", mask)
    causal, dropout = node.kwargs.get("is_causal", causal), node.kwargs.get("dropout_p", dropout)
    if ranks == {4} or causal or dropout or node.kwargs.get("enable_gqa"):
        return None
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        return None
    given = node.kwargs.get("scale")
    scale = query.meta["val"].shape[-1] ** -0.5 if given is None else given
    scaled = rewriter.emit(aten.mul.Tensor, query, scale)
    scores = rewriter.emit(aten.matmul.default, scaled, rewriter.emit(aten.transpose.int, key, -2, -1))
    if mask is not None:
        scores = rewriter.emit(aten.add.Tensor, scores, mask)
    return rewriter.emit(aten.matmul.default, rewriter.emit(aten.softmax.int, scores, -1), value)


def _adaptive_avg_pool(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """All positions: a mean. Windows of one size: an average pooling. Others: products with constant matrices.

    As captured, the global one of channels-last values goes through as_strided, behind which autograd is lost.
    """
    x: Any = node.args[0]
    wanted = [int(size) for size in node.args[1]]  # type: ignore[union-attr, arg-type]
    dims = list(range(-len(wanted), 0))
    sizes = [int(size) for size in x.meta["val"].shape[-len(wanted) :]]
    if set(wanted) == {1}:
        return rewriter.emit(aten.mean.dim, x, dims, True)
    if len(wanted) == 2 and all(old % new == 0 for old, new in zip(sizes, wanted, strict=True)):
        kernel = [old // new for old, new in zip(sizes, wanted, strict=True)]
        return rewriter.emit(aten.avg_pool2d.default, x, kernel, kernel)
    for dim, old, new in zip(dims, sizes, wanted, strict=True):
        x = _by_matrix(
            rewriter, x, dim, functional.adaptive_avg_pool1d(torch.eye(old, dtype=torch.float64)[None], new)[0]
        )
    return x  # type: ignore[no-any-return]


def _by_matrix(rewriter: Rewriter, x: fx.Node, dim: int, matrix: torch.Tensor) -> fx.Node:
    """The product with a constant matrix along an axis.

    From the left for -2 alone, where pooling and resizing ask for it. Axes counted from the front are those of tokens,
    whose selection the passes know as a product from the right, between two transpositions.
    """
    matrix = matrix.to(x.meta["val"].dtype)
    if dim == -2:
        return rewriter.emit(aten.matmul.default, rewriter.constant(matrix.T.contiguous()), x)
    constant = rewriter.constant(matrix.contiguous())
    if dim == -1:
        return rewriter.emit(aten.matmul.default, x, constant)
    last = rewriter.emit(aten.transpose.int, x, dim, -1)
    return rewriter.emit(aten.transpose.int, rewriter.emit(aten.matmul.default, last, constant), dim, -1)


def _avg_pool2d(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """One window of all positions is a mean.

    In transformers' EfficientNet it is larger than the map, which OpenVINO and TensorRT do not take.
    """
    x, kernel, _, padding, _, _, divisor = arguments(node, None, None, [], 0, False, True, None)
    sizes = x.meta["val"].shape[-2:]
    whole = tuple(node.meta["val"].shape[-2:]) == (1, 1) and all(
        k >= size for k, size in zip(pair(kernel), sizes, strict=True)
    )
    if not whole or any(pair(padding)) or divisor is not None:
        return None
    return rewriter.emit(aten.mean.dim, x, [-2, -1], True)


def _einsum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """The same in small letters, the only ones that TensorRT takes."""
    equation, *operands = node.args
    assert isinstance(equation, str)
    letters = sorted({letter for letter in equation if letter.isalpha()})  # what is not said goes by their order
    if equation == equation.lower() or len(letters) > len(ascii_lowercase):
        return None
    names = str.maketrans(dict(zip(letters, ascii_lowercase, strict=False)))
    return rewriter.emit(aten.einsum.default, equation.translate(names), *operands)


def _im2col(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """Windows, as a convolution that copies: each channel has one kernel for each place in a window."""
    x, kernel, dilation, padding, stride = node.args
    value = x.meta["val"]  # type: ignore[union-attr]
    channels = value.shape[1]
    weight = rewriter.constant(_copying(channels, pair(kernel)).to(value.dtype))
    windows = rewriter.emit(aten.conv2d.default, x, weight, None, stride, padding, dilation, channels)
    return rewriter.emit(aten.flatten.using_ints, windows, 2)


def _col2im(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """The sum of windows at their places: the transposed convolution."""
    x, size, *geometry = node.args
    kernel, dilation, padding, stride = map(pair, geometry)
    rows, columns = pair(size)
    value = x.meta["val"]  # type: ignore[union-attr]
    if value.ndim != 3:
        return None
    channels = value.shape[1] // math.prod(kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    counts = [(n + 2 * p - s) // t + 1 for n, p, s, t in zip((rows, columns), padding, spans, stride, strict=True)]
    reached = [(c - 1) * t - 2 * p + s for c, t, p, s in zip(counts, stride, padding, spans, strict=True)]
    missing = [rows - reached[0], columns - reached[1]]
    windows = rewriter.emit(aten.unflatten.int, x, 2, counts)
    weight = rewriter.constant(_copying(channels, kernel).to(value.dtype))
    return rewriter.emit(
        aten.conv_transpose2d.input, windows, weight, None, stride, padding, missing, channels, dilation
    )


def _copying(channels: int, kernel: tuple[int, int]) -> torch.Tensor:
    """Kernels (channels * places, 1, *kernel) of which each has its one at another place."""
    places = math.prod(kernel)
    return torch.eye(places).reshape(places, 1, *kernel).repeat(channels, 1, 1, 1)


def _resize(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """R_h X R_w^T, for a resize that works on rows and columns apart; the matrices are its answers to unit vectors.

    The derivative of the operation itself scatters, which TensorRT cannot do.
    """
    target: Any = node.target
    x: Any = node.args[0]
    height, width = (int(size) for size in x.meta["val"].shape[-2:])
    down, across = (int(size) for size in node.meta["val"].shape[-2:])
    if target.overloadpacket in _ALIGNED:
        options, scales = [bool(node.args[2])], node.args[3:]
    else:
        options, scales = [], node.args[2:]
    if target._overloadname == "vec":
        scales = tuple(scales[0]) if scales and scales[0] is not None else ()  # type: ignore[arg-type]
    scale_h, scale_w = (*scales, None, None)[:2]
    resize = target.overloadpacket.default
    # of full size along the other axis: PyTorch's antialiased resizes are wrong for a width of 1
    dtype = torch.promote_types(x.meta["val"].dtype, torch.float32)
    tall = torch.eye(height, dtype=dtype)[:, None, :, None].expand(-1, -1, -1, width).contiguous()
    wide = torch.eye(width, dtype=dtype)[:, None, None, :].expand(-1, -1, height, -1).contiguous()
    if height != down:
        x = _by_matrix(rewriter, x, -2, resize(tall, [down, width], *options, scale_h, None)[:, 0, :, 0])
    if width != across:
        x = _by_matrix(rewriter, x, -1, resize(wide, [height, across], *options, None, scale_w)[:, 0, 0, :])
    return x  # type: ignore[no-any-return]


def _pad(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Rows and columns repeated at the edges, as products with zeros and ones.

    Their derivatives scatter, and the padding that goes around is written in place, of which a graph knows nothing.
    """
    x, widths, mode, _ = arguments(node, None, None, "constant", None)
    value = x.meta["val"]
    if mode == "constant" or not value.is_floating_point():
        return None
    for axis, edges in enumerate(zip(widths[::2], widths[1::2], strict=True), start=1):
        size = value.shape[-axis]
        if not isinstance(size, int):
            return None
        if any(edges):
            places = functional.pad(torch.arange(size, dtype=torch.float64)[None, None], edges, mode)[0, 0].long()
            x = _by_matrix(rewriter, x, -axis, functional.one_hot(places, size).T)
    return x  # type: ignore[no-any-return]


def _prod(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """One half of an axis times the other, and so on: a product's own derivative has no ONNX form."""
    x, dim, keep = arguments(node, None, None, False)
    size = x.meta["val"].shape[dim]
    if not isinstance(size, int) or size == 0 or node.kwargs.get("dtype") is not None:
        return None
    while size > 1:
        half, odd = divmod(size, 2)
        parts = [rewriter.emit(aten.slice.Tensor, x, dim, first, first + half) for first in (0, half)]
        rest = [rewriter.emit(aten.slice.Tensor, x, dim, 2 * half, size)] if odd else []
        x = rewriter.emit(aten.mul.Tensor, *parts)
        x = rewriter.emit(aten.cat.default, [x, *rest], dim) if odd else x
        size = half + odd
    return x if keep else rewriter.emit(aten.squeeze.dim, x, dim)


def _cumprod(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Each number times the one before it, then those two before, four, and so on."""
    x, dim = arguments(node, None, None)
    size = x.meta["val"].shape[dim]
    if not isinstance(size, int) or node.kwargs.get("dtype") is not None:
        return None
    step = 1
    while step < size:
        bounds = ((0, step), (step, size), (0, size - step))
        first, later, before = (rewriter.emit(aten.slice.Tensor, x, dim, *each) for each in bounds)
        x = rewriter.emit(aten.cat.default, [first, rewriter.emit(aten.mul.Tensor, later, before)], dim)
        step *= 2
    return x  # type: ignore[no-any-return]


def _bilinear(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """x W y + b, of one matrix W for each output."""
    one, other, weight, bias = arguments(node, None, None, None, None)
    found = rewriter.emit(aten.einsum.default, "...i,oij,...j->...o", [one, weight, other])
    return found if bias is None else rewriter.emit(aten.add.Tensor, found, bias)


def _squeeze(_rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Nothing where no axis is of size 1: the exporter has no form for what is left of it."""
    x: Any = node.args[0]
    return x if x.meta["val"].ndim == node.meta["val"].ndim else None


def _squeeze_all(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """One axis of size 1 after the other, the last first. The batch stays, even where it is one image."""
    x: Any = node.args[0]
    for dim, size in reversed(list(enumerate(x.meta["val"].shape))):
        if isinstance(size, int) and size == 1:
            x = rewriter.emit(aten.squeeze.dim, x, dim)
    return x  # type: ignore[no-any-return]


def _constant_index(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Rows taken by constant indices, as a product with zeros and ones: the derivative of an index scatters."""
    arguments: tuple[Any, ...] = node.args
    if node.target is aten.index_select.default:
        x, dim, index = arguments
    else:
        x, indices = arguments
        given = [i for i, index in enumerate(indices) if index is not None]
        if len(given) != 1:
            return None
        dim, index = given[0], indices[given[0]]
    places = rewriter.tensor(index)
    value = x.meta["val"]
    size = value.shape[dim]
    if places is None or places.ndim != 1 or places.dtype != torch.int64 or not isinstance(size, int):
        return None
    if not value.is_floating_point():
        return None
    return _by_matrix(rewriter, x, dim % value.ndim, functional.one_hot(places % size, size).T)


_SMOOTH = ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
_ALIGNED = {getattr(aten, name) for name in _SMOOTH}
_RESIZES = {*_ALIGNED, aten.upsample_nearest2d, aten._upsample_nearest_exact2d}

RULES: dict[Any, Rule] = {
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.clamp.Tensor: _clamp,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.adaptive_avg_pool1d.default: _adaptive_avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    aten.max_pool2d.default: max_pool2d,
    aten.prod.dim_int: _prod,
    aten.cumprod.default: _cumprod,
    aten.bilinear.default: _bilinear,
    aten.cdist.default: distances,
    aten.einsum.default: _einsum,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
    aten.squeeze.default: _squeeze_all,
    **{getattr(aten.squeeze, overload): _squeeze for overload in ("dim", "dims")},
}
"""For all of the graph."""

# attention that is called by itself: in nn.MultiheadAttention, see plain_attention.py, queries have four axes anyway
TRUNK: dict[Any, Rule] = {**RULES, aten.scaled_dot_product_attention.default: _attention}
"""For what goes to the exporter as it is."""

TAIL: dict[Any, Rule] = {
    **RULES,
    **{getattr(resize, name): _resize for resize in _RESIZES for name in ("default", "vec") if hasattr(resize, name)},
    aten.pad.default: _pad,
    aten.abs.default: magnitude,
    aten.index.Tensor: _constant_index,
    aten.index_select.default: _constant_index,
    **{getattr(aten, f"fft_{name}").default: half_spectrum for name in ("rfft", "rfft2", "rfftn")},
    **{getattr(aten, f"fft_{name}").default: of_half_spectrum for name in ("irfft", "irfft2", "irfftn")},
}
"""For what is differentiated."""
