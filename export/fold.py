"""Between capture and cut: a batch norm behind a convolution or a linear layer becomes part of its weight and bias."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from finercam_rt.export.capture import Captured
from finercam_rt.export.refusal import refusing
from finercam_rt.export.rewriter import attribute, finish, new_constant

aten = torch.ops.aten

BATCH_NORM = aten._native_batch_norm_legit_no_training.default

CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
}


@refusing("folding batch norms into the layers before them")
def fold_batch_norms(captured: Captured) -> tuple[Captured, tuple[str, ...]]:
    """s (Wx + b - mean) + beta, s = gamma / sqrt(var + eps), as one layer: weight sW, bias s (b - mean) + beta.

    Folded is a batch norm that is the only reader of a convolution (grouped or not) or of a linear layer (N,C) whose
    weights are constants. One that follows something else stays: the target layer's mark, an activation, a sum. Weights
    are folded in float64 and rounded once; they get buffers of their own, since a layer's weight may be shared.

    Returns:
        A new captured graph, and a line for the report, or none for a model without batch norms.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(captured.graph_module.graph, copies))
    module = fx.GraphModule(captured.graph_module, graph)
    norms = [node for node in graph.nodes if node.target is BATCH_NORM]
    if not norms:
        return captured, ()
    folded = [_fold(module, norm) for norm in norms]
    finish(module)
    line = f"batch norm: folded {sum(folded)} of {len(norms)}"
    marks = tuple(copies[mark] for mark in captured.marks)
    return Captured(module, marks, copies[captured.logits]), (line,)


def _fold(module: fx.GraphModule, norm: fx.Node) -> bool:
    """Fold one batch norm into the layer before it, if that is possible."""
    layer, *statistics = norm.args[:5]
    eps = float(norm.args[6])  # type: ignore[arg-type]
    if not isinstance(layer, fx.Node) or len(layer.users) != 1 or not _has_channels_of_its_weight(layer):
        return False
    readers = list(norm.users)
    if any(reader.target is not operator.getitem or reader.args[1] != 0 for reader in readers):
        return False
    source, *parameters = (*layer.args, None)[:3]
    if layer.kwargs or not all(_is_constant(value) for value in (*parameters, *statistics)):
        return False
    weight, bias, gamma, beta, mean, variance = (_double(module, value) for value in (*parameters, *statistics))
    assert weight is not None
    assert mean is not None
    assert variance is not None
    scale = (variance + eps).rsqrt() * (1 if gamma is None else gamma)
    shift = (0 if beta is None else beta) - mean * scale + (0 if bias is None else bias * scale)
    weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))

    dtype = layer.meta["val"].dtype
    with module.graph.inserting_before(layer):
        constants = [module.graph.get_attr(new_constant(module, "folded", v.to(dtype))) for v in (weight, shift)]
    layer.args = (source, *constants, *layer.args[3:])
    for reader in readers:
        reader.replace_all_uses_with(layer)
    return True


def _has_channels_of_its_weight(layer: fx.Node) -> bool:
    """Whether dimension 1 of the output, which a batch norm scales, is dimension 0 of the weight."""
    return layer.target in CONVOLUTIONS or (layer.target is aten.linear.default and layer.meta["val"].ndim == 2)


def _is_constant(value: Any) -> bool:
    return value is None or (isinstance(value, fx.Node) and value.op == "get_attr")


def _double(module: fx.GraphModule, value: Any) -> torch.Tensor | None:
    if value is None:
        return None
    return attribute(module, str(value.target)).detach().double()
