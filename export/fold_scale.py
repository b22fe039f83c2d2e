"""Scales of linear layers in their weights: of queries, say, which the derivative reads too and a runtime folds in only
where nothing else does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from finercam_rt.export.rewriter import finish

aten = torch.ops.aten

_SAME = (
    aten.alias.default,
    aten.clone.default,
    aten.expand.default,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.view.default,
)
"""What may lie between the layer and the multiplication."""


def fold_scale(traced: fx.GraphModule) -> fx.GraphModule:
    """The same graph, changed in place: a linear layer whose result is only multiplied with a number gives the product.

    Args:
        traced: ATen operations, whose get_attr nodes name its constants.
    """
    graph, changed = traced.graph, False
    for node in list(graph.nodes):
        if node.target is not aten.mul.Tensor or isinstance(node.args[1], fx.Node) or node.kwargs:
            continue
        layer = _layer(node.args[0])
        if layer is None or layer.meta["val"].dtype != node.meta["val"].dtype:
            continue
        bias, _, transposed = layer.args
        constants = [bias, transposed.args[0]]
        if not all(_is_own(traced, constant) for constant in constants):
            continue
        for constant in constants:
            with _disable_current_modes():
                scaled = getattr(traced, constant.target).detach() * node.args[1]
            delattr(traced, constant.target)  # of the traced graph alone, and perhaps a parameter
            traced.register_buffer(constant.target, scaled)
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
        changed = True
    if changed:
        finish(traced)
    return traced


def _layer(node: Any) -> Any:
    """The addmm of a weight (K,D) that a value comes from, if nothing else reads it on the way."""
    while isinstance(node, fx.Node) and len(node.users) == 1 and node.target in _SAME:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.target is not aten.addmm.default or len(node.users) != 1 or node.kwargs:
        return None
    transposed = node.args[2]
    if not isinstance(transposed, fx.Node) or transposed.target is not aten.permute.default:
        return None
    return node if len(transposed.users) == 1 else None


def _is_own(traced: fx.GraphModule, node: Any) -> bool:
    """Whether a value is a constant that nothing else reads, under any name."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) != 1:
        return False
    tensor = getattr(traced, str(node.target), None)
    if not isinstance(tensor, torch.Tensor):
        return False
    others = (getattr(traced, str(other.target), None) for other in traced.graph.nodes if other.op == "get_attr")
    return sum(isinstance(other, torch.Tensor) and other.data_ptr() == tensor.data_ptr() for other in others) == 1
