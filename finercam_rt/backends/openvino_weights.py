"""A graph that OpenVINO's CPU plugin computes rightly: no square weight feeds two matrix products.

Openvino 2026.4 packs the weight of a matrix product once for all products that read it, by its address and shape. A
weight that one product reads as it is and another one transposed, as a tail and its gradient do, has the same shape
both ways where it is square, and one of the two gets the other's packing: wrong by more than its own size, without an
error. Reading it through equal conversions, reshapes or slices does not help, because OpenVINO merges those; a copy
does. Not square weights are packed apart. Convolutions and their transposes share a weight of as many channels in as
out in the same wrong way.
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
            if not _is_square(weight, swapped) or (sources := _constants_behind(weight)) is None:
                continue
            if sources & seen:
                node.input(port).replace_source_output(openvino.op.Constant(_value(openvino, weight)).output(0))
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


def _constants_behind(output: Any) -> set[str] | None:
    """The names of the constants that it is computed from; None where it depends on an input of the graph."""
    found: set[str] = set()
    visited: set[str] = set()
    waiting = [output.get_node()]
    while waiting:
        node = waiting.pop()
        name = node.get_name()  # unique in the model
        if name in visited:
            continue
        visited.add(name)
        if node.get_type_name() == "Constant":
            found.add(name)
        elif not node.inputs():
            return None
        else:
            waiting += [value.get_node() for value in node.input_values()]
    return found


def _value(openvino: Any, output: Any) -> Any:
    """A copy of the constant, or of what is computed from constants; never the same memory."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return np.array(node.data)
    result = openvino.Tensor(output.get_element_type(), output.get_shape())
    openvino.Model([openvino.op.Result(output)], []).evaluate([result], [])
    return np.array(result.data)
