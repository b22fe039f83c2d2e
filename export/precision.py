"""Between cut and emit: the trunk in fp16 or bf16, with the images and what crosses the cut in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from finercam_rt.export.rewriter import Rewriter, finish, is_floating

aten = torch.ops.aten

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_CONVERSIONS = {aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default}


def with_precision(trunk: fx.GraphModule, precision: str) -> fx.GraphModule:
    """The trunk with weights and arithmetic of a precision: images float32 -> boundary, its floating values float32.

    What it converts or makes in float32 stays so until it meets a value of the reduced precision. Complex numbers, of
    which there are none of 16 bits in ONNX, are made of float32.

    Args:
        trunk: images -> boundary, its weights buffers of its own, as `cut` makes it. It is not changed.
        precision: "fp16" or "bf16".
    """
    dtype = DTYPES[precision]
    graph = fx.Graph()
    graph.output(graph.graph_copy(trunk.graph, {}))
    module = fx.GraphModule(trunk, graph)
    # this gives the module new buffers and leaves those of the source alone
    module._apply(lambda value: value.to(dtype) if value.is_floating_point() else value)  # type: ignore[no-untyped-call]
    rewriter = Rewriter(module)
    for node in list(graph.nodes):
        if node.op == "placeholder":
            images = rewriter.at(node.next).converted(node, dtype)
            node.replace_all_uses_with(images, lambda user, images=images: user is not images)
        elif node.op == "get_attr":
            rewriter.refresh(node)
        elif node.op == "output":
            rewriter.at(node)
            node.args = fx.node.map_arg(node.args, lambda value: rewriter.converted(value, torch.float32))
        else:
            _reduce(rewriter.at(node), node, dtype)
    finish(module)
    return module


def _reduce(rewriter: Rewriter, node: fx.Node, dtype: torch.dtype) -> None:
    """Give the floating arguments of an operation one type, since few operations take two."""
    types = {value.meta["val"].dtype for value in node.all_input_nodes if is_floating(value)}
    if any(_is_complex(value) for value in (node, *node.all_input_nodes)):
        types, dtype = {*types, torch.float32}, torch.float32
    if len(types) > 1 and node.target not in _CONVERSIONS:
        given: Any = (node.args, node.kwargs)
        node.args, node.kwargs = fx.node.map_arg(given, lambda value: rewriter.converted(value, dtype))
    rewriter.refresh(node)


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()
