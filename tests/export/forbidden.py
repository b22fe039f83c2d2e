"""What TensorRT cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def forbidden(path: Path) -> list[str]:
    """The operations that TensorRT cannot take."""
    model = onnx.load(path)
    found = []
    for node in (node for graph in (model.graph, *model.functions) for node in _nodes(graph)):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type.startswith("Scatter") and attributes.get("reduction", b"none") != b"none":
            found.append(f"{node.op_type} {attributes['reduction']}")
        if node.op_type == "MaxPool" and len([name for name in node.output if name]) > 1:
            found.append("MaxPool with indices")
        if node.op_type in ("Attention", "MaxUnpool", "Loop", "Scan") or node.domain not in ("", "ai.onnx"):
            found.append(f"{node.domain}.{node.op_type}")
    return found
