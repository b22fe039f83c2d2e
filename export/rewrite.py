"""Part of stage 1: captured operations that autograd or ONNX has no form for, written with others that they have."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from finercam_rt.errors import ExportError

aten = torch.ops.aten


def rewrite(graph_module: fx.GraphModule, rules: dict[Any, Rule]) -> None:
    """Replace, in place, the operations that have a rule by what the rule makes of them."""
    rewriter = Rewriter(graph_module)
    for node in list(graph_module.graph.nodes):
        rule = rules.get(node.target) if node.op == "call_function" else None
        found = None if rule is None else rule(rewriter.at(node), node)
        if found is not None:
            node.replace_all_uses_with(found)
            graph_module.graph.erase_node(node)
    graph_module.graph.lint()
    graph_module.recompile()


class Rewriter:
    """Adds operations ahead of the node that is replaced, with their values' shapes."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        """Take the graph."""
        self._module, self._node = graph_module, next(iter(graph_module.graph.nodes))
        images = next(node for node in graph_module.graph.nodes if node.op == "placeholder")
        self._mode = images.meta["val"].fake_mode

    def at(self, node: fx.Node) -> Rewriter:
        """This rewriter, at work on `node`."""
        self._node = node
        return self

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new operation."""
        with self._module.graph.inserting_before(self._node):
            node = self._module.graph.call_function(target, args, kwargs)
        with self._mode:
            values = fx.node.map_arg((args, kwargs), self._value)
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def constant(self, value: torch.Tensor) -> fx.Node:
        """A new constant of the graph."""
        index = 0
        while hasattr(self._module, name := f"rewritten_{index}"):
            index += 1
        self._module.register_buffer(name, value)
        with self._module.graph.inserting_before(self._node):
            return self._module.graph.get_attr(name)

    def number(self, value: Any) -> float | None:
        """A constant of one element as a number; None for anything else."""
        if isinstance(value, (int, float)):
            return float(value)
        while isinstance(value, fx.Node) and value.target in _COPIES:
            value = value.args[0]
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        found = attribute(self._module, str(value.target))
        return float(found) if found.numel() == 1 else None

    def _value(self, node: fx.Node) -> Any:
        if "val" in node.meta:
            return node.meta["val"]
        return self._mode.from_tensor(attribute(self._module, str(node.target)), static_shapes=True)


_COPIES = (aten.clone.default, aten.lift_fresh_copy.default, aten.detach.default, aten.alias.default)
Rule = Callable[[Rewriter, fx.Node], fx.Node | None]


def attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The weight or constant that a get_attr node names.

    Raises:
        ExportError: it is no tensor.
    """
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor):
        raise ExportError(f"the captured graph holds {path!r}, which is no tensor; the model cannot be compiled.")
    return value


def _arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Positional arguments, with the defaults of those that were left out."""
    return (*node.args, *defaults[len(node.args) :])


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
    x, source, dim, start, stop, step = _arguments(node, None, None, 0, None, None, 1)
    return _with_part(rewriter, x, source, dim, start, stop, step)


def _select_scatter(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    x, source, dim, index = node.args
    size = x.meta["val"].shape[dim]  # type: ignore[union-attr, index]
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
    x, *bounds = _arguments(node, None, None, None)
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
    query, key, value, mask, dropout, causal = _arguments(node, None, None, None, None, 0.0, False)
    ranks = {argument.meta["val"].ndim for argument in (query, key, value)}  # type: ignore[union-attr]
    mask = node.kwargs.get("attn_mask", mask)
    causal, dropout = node.kwargs.get("is_causal", causal), node.kwargs.get("dropout_p", dropout)
    if ranks == {4} or causal or dropout or node.kwargs.get("enable_gqa"):
        return None
    if mask is not None and mask.meta["val"].dtype == torch.bool:  # type: ignore[union-attr]
        return None
    given = node.kwargs.get("scale")
    scale = query.meta["val"].shape[-1] ** -0.5 if given is None else given  # type: ignore[union-attr, operator]
    scaled = rewriter.emit(aten.mul.Tensor, query, scale)
    scores = rewriter.emit(aten.matmul.default, scaled, rewriter.emit(aten.transpose.int, key, -2, -1))
    if mask is not None:
        scores = rewriter.emit(aten.add.Tensor, scores, mask)
    return rewriter.emit(aten.matmul.default, rewriter.emit(aten.softmax.int, scores, -1), value)


def _adaptive_avg_pool2d(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Windows of one size are an average pooling, others two products with constant matrices."""
    x, size = node.args
    sizes, wanted = x.meta["val"].shape[-2:], _pair(size)  # type: ignore[union-attr]
    if wanted == (1, 1):
        return None  # global pooling
    if all(old % new == 0 for old, new in zip(sizes, wanted, strict=True)):
        kernel = [old // new for old, new in zip(sizes, wanted, strict=True)]
        return rewriter.emit(aten.avg_pool2d.default, x, kernel, kernel)
    rows, columns = (
        rewriter.constant(functional.adaptive_avg_pool1d(torch.eye(old)[None], new)[0])
        for old, new in zip(sizes, wanted, strict=True)
    )
    across = rewriter.emit(aten.matmul.default, x, columns)
    return rewriter.emit(aten.matmul.default, rewriter.emit(aten.transpose.int, rows, 0, 1), across)


def _adaptive_max_pool2d(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Windows of one size are a max pooling; one of all positions is the maximum along them."""
    values = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    x, size = node.args
    sizes, wanted = x.meta["val"].shape[-2:], _pair(size)  # type: ignore[union-attr]
    if len(values) != len(node.users) or any(old % new for old, new in zip(sizes, wanted, strict=True)):
        return None
    if wanted == (1, 1):
        flat = rewriter.emit(aten.flatten.using_ints, x, -2)
        largest = rewriter.emit(operator.getitem, rewriter.emit(aten.max.dim, flat, -1, True), 0)
        found = rewriter.emit(aten.unsqueeze.default, largest, -1)
    else:
        kernel = [old // new for old, new in zip(sizes, wanted, strict=True)]
        found = rewriter.emit(aten.max_pool2d.default, x, kernel, kernel)
    for value in values:
        value.replace_all_uses_with(found)
    return found


def _im2col(rewriter: Rewriter, node: fx.Node) -> fx.Node:
    """Windows, as a convolution that copies: each channel has one kernel for each place in a window."""
    x, kernel, dilation, padding, stride = node.args
    channels = x.meta["val"].shape[1]  # type: ignore[union-attr]
    weight = rewriter.constant(_copying(channels, _pair(kernel)))
    windows = rewriter.emit(aten.conv2d.default, x, weight, None, stride, padding, dilation, channels)
    return rewriter.emit(aten.flatten.using_ints, windows, 2)


def _col2im(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """The sum of windows at their places: the transposed convolution."""
    x, size, *geometry = node.args
    kernel, dilation, padding, stride = map(_pair, geometry)
    rows, columns = _pair(size)
    if x.meta["val"].ndim != 3:  # type: ignore[union-attr]
        return None
    channels = x.meta["val"].shape[1] // math.prod(kernel)  # type: ignore[union-attr]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    counts = [(n + 2 * p - s) // t + 1 for n, p, s, t in zip((rows, columns), padding, spans, stride, strict=True)]
    reached = [(c - 1) * t - 2 * p + s for c, t, p, s in zip(counts, stride, padding, spans, strict=True)]
    missing = [rows - reached[0], columns - reached[1]]
    windows = rewriter.emit(aten.unflatten.int, x, 2, counts)
    weight = rewriter.constant(_copying(channels, kernel))
    return rewriter.emit(
        aten.conv_transpose2d.input, windows, weight, None, stride, padding, missing, channels, dilation
    )


def _copying(channels: int, kernel: tuple[int, int]) -> torch.Tensor:
    """Kernels (channels * places, 1, *kernel) of which each has its one at another place."""
    places = math.prod(kernel)
    return torch.eye(places).reshape(places, 1, *kernel).repeat(channels, 1, 1, 1)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


CAPTURED: dict[Any, Rule] = {
    aten.copy.default: _copy,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.clamp.Tensor: _clamp,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool2d,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
}
"""Of the whole graph."""

TRUNK: dict[Any, Rule] = {aten.scaled_dot_product_attention.default: _attention}
"""Of what is not differentiated, and goes to the exporter as it is."""
