"""Part of stage 1: what depends on no image is computed once, when the graph is captured.

Position tables resized for another input size, relative indices, grids, rotary angles: runtimes fold most of it by
themselves, but not what they have no form for, such as an antialiased bicubic resize.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from finercam_rt.export.rewriter import attribute

SMALL = 1 << 16
"""Elements that a constant may always have; a larger one must not be more than twice what it was computed from."""


def fold_constants(graph_module: fx.GraphModule) -> None:
    """Compute, in place, the operations of which every argument is constant. Big tables stay as they were stored."""
    graph = graph_module.graph
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(graph_module, str(node.target))
            continue
        constant = node.op == "call_function" and all(source in values for source in node.all_input_nodes)
        if not constant or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        target: Any = node.target
        inputs = sum(_elements(values[source]) for source in node.all_input_nodes)
        if _elements(node.meta.get("val")) > max(SMALL, 2 * inputs):
            continue
        with torch.no_grad():
            values[node] = target(
                *fx.node.map_arg(node.args, values.__getitem__), **fx.node.map_arg(node.kwargs, values.__getitem__)
            )
    computed = [node for node in values if node.op != "get_attr" and isinstance(values[node], torch.Tensor)]
    for index, node in enumerate(node for node in computed if any(user not in values for user in node.users)):
        name = f"constant_{index}"
        graph_module.register_buffer(name, values[node].detach().clone().contiguous())
        with graph.inserting_before(node):
            replacement = graph.get_attr(name)
        replacement.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(replacement)
    for node in reversed(computed):
        if not node.users:
            graph.erase_node(node)
    graph.lint()
    graph_module.recompile()


def _elements(value: Any) -> float:
    """How many numbers a value holds; a symbolic size makes it unlimited."""
    if isinstance(value, (tuple, list)):
        return sum(_elements(part) for part in value)
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(size for size in value.shape) if all(isinstance(s, int) for s in value.shape) else math.inf
