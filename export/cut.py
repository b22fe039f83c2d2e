"""Stage 2: the captured graph is cut at the target layers into a trunk and a tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from finercam_rt.errors import ExportError
from finercam_rt.export.capture import Captured
from finercam_rt.export.refusal import refusing
from finercam_rt.export.rewriter import attribute, drop_dead
from finercam_rt.export.values import dependents, sources

aten = torch.ops.aten


@dataclass(frozen=True)
class Split:
    """trunk: images -> (*activations, *carried); tail: (*activations, *carried) -> logits.

    `outer` holds the indices of the target layers whose activations those are, usually (0,); a layer behind another one
    stays in the tail as a mark. `boundary` holds the fake values (symbolic batch, static rest) of activations and
    carried, in that order.
    """

    trunk: fx.GraphModule
    tail: fx.GraphModule
    boundary: tuple[Any, ...]
    outer: tuple[int, ...] = (0,)


@refusing("cutting the graph at the target layer")
def cut(captured: Captured) -> Split:
    """Cut at the marks; what crosses the cut beside the activations (a residual stream, a batch size) is carried.

    Raises:
        ExportError: the logits do not depend on a target layer.
    """
    nodes = list(captured.graph_module.graph.nodes)
    for mark in captured.marks:
        if captured.logits not in dependents(nodes, [mark]):
            raise ExportError("the logits do not depend on the target layer's output; choose a layer before the head.")
    tail = dependents(nodes, captured.marks)
    outer = [index for index, mark in enumerate(captured.marks) if _source(mark) not in tail]
    marks = [captured.marks[index] for index in outer]
    images = [node for node in nodes if node.op == "placeholder"]
    carried = [
        node
        for node in nodes
        if node not in tail and node.op != "get_attr" and any(user in tail and user not in marks for user in node.users)
    ]
    crossing = [*(_source(mark) for mark in marks), *carried]
    trunk = _extract(captured.graph_module, [n for n in nodes if n not in tail], images, crossing)
    inside = [n for n in nodes if (n in tail and n not in marks) or n.op == "get_attr"]
    rest = _extract(captured.graph_module, inside, [*marks, *carried], [captured.logits])
    return Split(trunk, rest, tuple(node.meta["val"] for node in crossing), tuple(outer))


def share_behind(split: Split) -> float:
    """How many of the model's operations come behind the target layer, 0 to 1."""
    trunk, tail = (sum(node.op == "call_function" for node in part.graph.nodes) for part in (split.trunk, split.tail))
    return float(tail / max(trunk + tail, 1))


def passes_beside(captured: Captured, split: Split, classes: int) -> bool:
    """Whether the logits know of the image by another branch: by its own way from the image, or by scores of the
    classes that cross the cut beside the activations.
    """
    images = next(node for node in captured.graph_module.graph.nodes if node.op == "placeholder")
    channels = images.meta["val"].shape[1]
    # a branch may read the image, prepared
    before = {
        node
        for mark in captured.marks
        for node in sources(mark)
        if not (isinstance(value := node.meta["val"], torch.Tensor) and value.ndim == 4 and value.shape[1] == channels)
    }
    if images in sources(captured.logits, before | set(captured.marks)):
        return True
    given = next(node for node in split.trunk.graph.nodes if node.op == "placeholder")
    crossing: Any = split.trunk.graph.output_node().args[0]
    values = [node.meta["val"] for node in crossing[len(split.outer) :] if given in sources(node)]
    shapes = [[size for size in value.shape[1:] if size != 1] for value in values if isinstance(value, torch.Tensor)]
    return [classes] in shapes


def _source(mark: fx.Node) -> fx.Node:
    source = mark.args[0]
    assert isinstance(source, fx.Node)
    return source


def _extract(
    source: fx.GraphModule, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """A graph module of `nodes` alone, with frozen weights that share storage with the source's."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in nodes:
        if node not in copies and node.op != "output":
            copies[node] = graph.node_copy(node, lambda argument: copies[argument])
            _forget_strides(copies[node])
    graph.output(tuple(copies[node] for node in outputs))
    drop_dead(graph)
    root = torch.nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target).replace(".", "_")
            root.register_buffer(name, attribute(source, str(node.target)).detach())
            node.target = name
    graph.lint()
    return fx.GraphModule(root, graph)


def _forget_strides(node: fx.Node) -> None:
    """Replace what rests on the strides of the captured run, which need not be those of the run that is traced next."""
    if node.target is aten.view.default:
        node.target = aten.reshape.default
