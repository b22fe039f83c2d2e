"""Stage 6: discrete Fourier transforms of a known length become matrix products, which all runtimes have.

TensorRT has no DFT, ONNX Runtime none for GPUs, and OpenVINO (2026.4) computes it along another axis than the one that
is asked for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir
from numpy.typing import NDArray

MOST_POINTS = 1024
"""Of a transform as a product. Its matrix takes 16 MiB then; longer ones stay what they are."""


class _Transform(NamedTuple):
    """What a DFT node computes along its axis."""

    points: int
    length: int
    is_complex: bool
    inverse: bool
    onesided: bool
    dtype: onnx_ir.DataType


def fourier_by_products(model: onnx_ir.Model) -> None:
    """Write the transforms of a model anew, in place. Source: the definition of ONNX's operator DFT, 17 and 20."""
    tape = onnx_ir.tape.Tape()
    matrices: dict[_Transform, tuple[onnx_ir.Value, tuple[int, ...]]] = {}
    for node in [node for node in model.graph.all_nodes() if node.op_type == "DFT"]:
        found = _read(node)
        if found is None:
            continue
        axis, transform = found
        if transform not in matrices:
            matrix = _matrix(transform)
            sizes = matrix.shape
            matrix = matrix.reshape(sizes[0] * sizes[1], -1).astype(transform.dtype.numpy())
            matrices[transform] = tape.initializer(onnx_ir.tensor(matrix), f"fourier_{len(matrices)}"), sizes[2:]
        before = len(tape.nodes)
        product = _product(tape, node, axis, *matrices[transform])
        new = tape.nodes[before:]
        for each in new:
            each.metadata_props.update(node.metadata_props)
        onnx_ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, node.outputs, [product])
    for initializer in tape.initializers:
        model.graph.register_initializer(initializer)


def _read(node: onnx_ir.Node) -> tuple[int, _Transform] | None:
    """The axis from the front and the transform; None where a size is not known, or too large."""
    x = node.inputs[0]
    if x is None or x.shape is None or x.dtype is None:
        return None
    inverse, onesided = (node.attributes.get_int(name, 0) == 1 for name in ("inverse", "onesided"))
    axis = node.attributes.get_int("axis", _number(node, 2))  # of opset 18 and 19, and of 20
    if axis is None:
        return None
    axis %= len(x.shape)
    points = x.shape[axis]
    length = _number(node, 1) if len(node.inputs) > 1 and node.inputs[1] is not None else points
    if not isinstance(points, int) or not isinstance(length, int) or max(points, length) > MOST_POINTS:
        return None
    return axis, _Transform(points, length, x.shape[-1] == 2, inverse, onesided, x.dtype)


def _number(node: onnx_ir.Node, position: int) -> int | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    return None if value is None or value.const_value is None else int(value.const_value.numpy().item())


def _matrix(transform: _Transform) -> NDArray[np.float64]:
    """(points, parts, results, parts): what the values along the axis, real or pairs of a real and an imaginary part,
    are multiplied by.
    """
    half = transform.length // 2 + 1
    to_real = transform.onesided and transform.inverse
    used = min(transform.points, half if to_real else transform.length)
    results = half if transform.onesided and not transform.inverse else transform.length
    turns = np.outer(np.arange(used), np.arange(results)) % transform.length
    angles = (2 if transform.inverse else -2) * math.pi / transform.length * turns
    blocks = np.array([[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]])
    if transform.inverse:
        blocks /= transform.length
    if to_real:  # the other half is the conjugate of what is there, but for the first and the middle one
        blocks = (
            blocks[:, :1] * np.array([1 if 2 * point % transform.length == 0 else 2 for point in range(used)])[:, None]
        )
    if not transform.is_complex:
        blocks = blocks[:1]
    matrix = np.zeros((transform.points, blocks.shape[0], results, blocks.shape[1]))
    matrix[:used] = blocks.transpose(2, 0, 3, 1)
    return matrix


def _product(
    tape: onnx_ir.tape.Tape, node: onnx_ir.Node, axis: int, matrix: onnx_ir.Value, sizes: tuple[int, ...]
) -> onnx_ir.Value:
    """What the node gives: its axis goes next to that of the parts, and the two are one for the product."""
    x = node.inputs[0]
    assert x is not None
    assert x.shape is not None
    rank = len(x.shape)

    def reshape(value: onnx_ir.Value, *sizes: int) -> onnx_ir.Value:
        """The axes in front stay as they are."""
        shape = onnx_ir.tensor([0] * (rank - 2) + list(sizes))
        return tape.op("Reshape", [value, tape.initializer(shape, f"{node.name}_shape_{len(sizes)}")])

    order = [index for index in range(rank) if index != axis]
    order.insert(rank - 2, axis)
    if axis != rank - 2:
        x = tape.op("Transpose", [x], {"perm": order})
    y = tape.op("MatMul", [reshape(x, -1), matrix])
    y = reshape(y, *sizes)
    return y if axis == rank - 2 else tape.op("Transpose", [y], {"perm": [order.index(index) for index in range(rank)]})
