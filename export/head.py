"""The last linear layer taken off the tail, so that a sparse seed gathers rows of its weight. DESIGN, section 2.3."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from finercam_rt.export.rewriter import drop_dead

aten = torch.ops.aten


class Head(NamedTuple):
    """features: the tail up to the input (N,D) of the last linear layer; weight (K,D); bias (K,) or None."""

    features: fx.GraphModule
    weight: torch.Tensor
    bias: torch.Tensor | None


def take_head(tail: fx.GraphModule) -> Head | None:
    """The tail without its last linear layer, and that layer; None for a tail that ends in something else."""
    outputs: Any = tail.graph.output_node().args[0]
    (logits,) = outputs
    if logits.target is not aten.linear.default or logits.args[0].meta["val"].ndim != 2:
        return None
    parameters = logits.args[1:]
    if any(node is not None and node.op != "get_attr" for node in parameters):
        return None
    weight, bias = (None if node is None else tail.get_buffer(str(node.target)) for node in (*parameters, None)[:2])
    assert weight is not None
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(tail.graph, copies)
    graph.output((copies[logits.args[0]],))
    drop_dead(graph)
    return Head(fx.GraphModule(tail, graph), weight, bias)
