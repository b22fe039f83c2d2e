"""A graph that OpenVINO's CPU plugin computes rightly: no square weight feeds two matrix products.

Openvino 2026.4 packs the weight of a matrix product once for all products that read it, by its address and shape. A
weight that one product reads as it is and another one transposed, as a tail and its gradient do, has the same shape
both ways where it is square, and one of the two gets the other's packing: wrong by more than its own size, without an
error. Reading it through equal conversions, reshapes or slices does not help, because OpenVINO merges those; a copy
does. Not square weights are packed apart. Convolutions and their transposes share a weight of as many channels in as
out in the same wrong way.

A weight that is repeated for each image is a weight like any other once the batch is known to be one image, since
OpenVINO then drops the repetition: such a graph has to come through here again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_PRODUCTS = {
    "MatMul": ((0, 1), -2),
    "Convolution": ((1,), 0),
    "ConvolutionBackpropData": ((1,), 0),
    "GroupConvolution": ((1,), 1),
    "GroupConvolutionBackpropData": ((1,), 1),
}
"""The operations with packed weights, the inputs where these may be, and the first of the two dimensions of the weight
that the operation and its transpose swap."""


def unshare_square_weights(openvino: Any, model: Any) -> int:
    """Give every product but the first of a square weight a copy of its own; the number of copies.

    openvino is the module, which is not imported here; model is changed in place.
    """
    seen: set[str] = set()
    copies = 0
    for node in model.get_ordered_ops():
        ports, swapped = _PRODUCTS.get(node.get_type_name(), ((), 0))
        for port in ports:
            weight = node.input_value(port)
            if not _is_square(weight, swapped) or (behind := _behind(weight)) is None:
                continue
            sources, parameters = behind
            if sources & seen:
                value = _value(openvino, weight, parameters)
                node.input(port).replace_source_output(openvino.op.Constant(value).output(0))
                copies += 1
            seen |= sources
    return copies


def _is_square(output: Any, swapped: int) -> bool:
    """Whether it is a weight with as many rows as columns: the dimension `swapped`, and the one behind it."""
    shape = output.get_partial_shape()
    if shape.is_dynamic or len(shape) < 2:
        return False
    sizes = shape.to_shape()
    return bool(sizes[swapped] == sizes[swapped + 1])


def _behind(output: Any) -> tuple[set[str], list[Any]] | None:
    """The names of the constants whose values it has, and the inputs of the graph whose shapes alone matter.

    None where it depends on the values of an input of the graph, or on a shape that is not known.
    """
    found: set[str] = set()
    parameters: dict[str, Any] = {}
    visited: set[tuple[str, bool]] = set()
    waiting = [(output.get_node(), False)]
    while waiting:
        node, shape_alone = waiting.pop()
        name = node.get_name()  # unique in the model
        if (name, shape_alone) in visited:
            continue
        visited.add((name, shape_alone))
        kind = node.get_type_name()
        if kind == "Constant":
            found |= set() if shape_alone else {name}
        elif kind == "Parameter" and shape_alone:
            parameters[name] = node
        elif not node.inputs():
            return None
        else:
            if kind == "ShapeOf" and node.input_value(0).get_partial_shape().is_dynamic:
                return None
            waiting += [(value.get_node(), shape_alone or kind == "ShapeOf") for value in node.input_values()]
    return found, list(parameters.values())


def _value(openvino: Any, output: Any, parameters: list[Any]) -> Any:
    """A copy of the constant, or of what is computed from constants and shapes; never the same memory."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return np.array(node.data)
    result = openvino.Tensor(output.get_element_type(), output.get_shape())
    inputs = [openvino.Tensor(value.get_element_type(), value.get_output_shape(0)) for value in parameters]
    openvino.Model([openvino.op.Result(output)], parameters).evaluate([result], inputs)
    return np.array(result.data)
