"""After verify: the trunk of an fp32 engine in int8 as TensorRT takes it, with all zero points 0.

A symmetric range wastes a bit on values of one sign. Three things make up for that, measured on real birds
(MobileNetV2, DINOv2; cosine of the maps with fp32's):
- a linear layer reads `x - c`, c the middle of each channel's range, and its bias takes up `c W`: 0.994 where symmetric
  ranges alone give 0.977. A convolution with padding cannot, since it pads with the 0 of what it reads.
- what rounding the weights adds on average is taken off the bias, `mean(x) (W' - W)`: without it the first would
  multiply c with the weights' errors.
- depthwise convolutions stay in float32, 0.997 where they are rounded too 0.989: they read little and multiply less.
Only what convolutions and linear layers read is rounded. Formulas: Nagel et al., "Data-Free Quantization through Weight
Equalization and Bias Correction" (2019) for the bias, "Outlier Suppression+" (Wei et al. 2023) for the shift.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import ExportError
from finercam_rt.export.emit import TRUNK
from finercam_rt.export.quantize import HEAVY, LINEAR, chosen
from finercam_rt.manifest import SOURCE_KEY

if TYPE_CHECKING:
    import onnx_ir

LARGEST = 127
"""Of what is rounded; -128 is left out, so that the range is symmetric."""


class _Statistics(NamedTuple):
    """Of one activation, by channel, (C,) float64: smallest, largest and mean value."""

    least: NDArray[np.float64]
    most: NDArray[np.float64]
    mean: NDArray[np.float64]


class _Rounded(NamedTuple):
    """What the nodes that share an activation read of it, and the (C,) float64 that was taken off."""

    value: onnx_ir.Value
    centre: NDArray[np.float64]


def quantize_symmetric(
    twin: Path, images: NDArray[np.float32], feeds: dict[str, NDArray[Any]]
) -> tuple[onnx_ir.Model, str]:
    """The engine `twin` with its trunk in int8 with zero points 0, and a line for the report.

    Args:
        twin: the fp32 engine, as `emit` names its nodes.
        images: (N,C,H,W) float32, normalised, to calibrate on.
        feeds: the other inputs, for a batch of one.

    Raises:
        ExportError: no operation of the trunk can be quantised.
    """
    import onnx
    import onnx_ir

    names = set(chosen(onnx.load(twin, load_external_data=False).graph))
    model = onnx_ir.load(twin)
    heavy = [node for node in model.graph if (node.name or "").startswith(TRUNK) and node.op_type in HEAVY]
    done = [node for node in heavy if node.name in names and _can_be_rounded(node)]
    if not done:
        raise ExportError("nothing of the trunk can be computed in int8; choose another precision.")
    statistics = _measure(twin, {_name(node, 0): _axis(node) for node in done}, images, feeds)
    rounded: dict[tuple[str, bool], _Rounded] = {}
    for node in done:
        source, linear = _name(node, 0), node.op_type in LINEAR
        if (source, linear) not in rounded:
            rounded[source, linear] = _round_input(model, node, statistics[source])
        _round_weight(model, node, rounded[source, linear], statistics[source].mean)
    _drop_unused(model)
    model.metadata_props.clear()
    line = f"precision: int8 with zero points 0 in {len(done)} of the trunk's {len(heavy)} convolutions and "
    return model, f"{line}matrix products"


def _can_be_rounded(node: onnx_ir.Node) -> bool:
    """A dense convolution or a linear layer, x W + b."""
    weight = _weight(node)
    if node.op_type == "MatMul":
        return weight.ndim == 2 and _bias_of(node) is not None
    if len(node.inputs) > 2 and node.inputs[2] is not None and not _is_constant(node.inputs[2]):
        return False
    if node.op_type == "Conv":
        return bool(weight.shape[1] > 1)
    scaled = any(name in node.attributes and node.attributes[name].as_float() != 1 for name in ("alpha", "beta"))
    return not scaled and not _flag(node, "transA")


def _axis(node: onnx_ir.Node) -> int:
    """Of the channels, in what it reads."""
    return 1 if node.op_type == "Conv" else -1


def _measure(
    twin: Path, axes: dict[str, int], images: NDArray[np.float32], feeds: dict[str, NDArray[Any]]
) -> dict[str, _Statistics]:
    """Statistics of the values of a graph, by name, over all images and positions."""
    import onnx
    import onnxruntime

    graph = onnx.load(twin)
    known = {value.name for value in graph.graph.output}
    inner = [name for name in axes if name != "images"]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # optimisations would fuse the values away that are asked for, or change them
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, _Statistics] = {}
    for image in images:
        # ONNX Runtime takes no names for all of them
        values = session.run(inner, {"images": image[None], **feeds}) if inner else []
        given = dict(zip(inner, values, strict=True))
        for name, axis in axes.items():
            value = np.moveaxis(given.get(name, image[None]), axis, -1)
            rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
            new = _Statistics(rows.min(0), rows.max(0), rows.mean(0) / len(images))
            old = found.get(name, _Statistics(new.least, new.most, np.zeros(len(new.mean))))
            found[name] = _Statistics(
                np.minimum(old.least, new.least), np.maximum(old.most, new.most), old.mean + new.mean
            )
    return found


def _round_input(model: onnx_ir.Model, node: onnx_ir.Node, statistics: _Statistics) -> _Rounded:
    """[Sub,] QuantizeLinear and DequantizeLinear before the node."""
    import onnx_ir

    value = node.inputs[0]
    assert value is not None
    centre = np.zeros_like(statistics.mean)
    nodes = []
    name = f"{value.name}.{'linear' if node.op_type in LINEAR else 'convolution'}"
    if node.op_type in LINEAR:
        centre = ((statistics.least + statistics.most) / 2).astype(np.float32).astype(np.float64)
        middle = _constant(model, f"{name}.centre", centre.astype(np.float32))
        nodes.append(onnx_ir.node("Sub", [value, middle]))
    span = float(max(np.abs(statistics.least - centre).max(), np.abs(statistics.most - centre).max()))
    scale = _constant(model, f"{name}.scale", np.float32(span / LARGEST if span > 0 else 1))
    zero = _constant(model, f"{name}.zero", np.int8(0))
    read = nodes[-1].outputs[0] if nodes else value
    nodes.append(onnx_ir.node("QuantizeLinear", [read, scale, zero]))
    nodes.append(onnx_ir.node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero]))
    for new in nodes:
        _call(new, f"{TRUNK}{name}.{new.op_type}", node)
    model.graph.insert_before(node, nodes)
    return _Rounded(nodes[-1].outputs[0], centre)


def _round_weight(model: onnx_ir.Model, node: onnx_ir.Node, rounded: _Rounded, mean: NDArray[np.float64]) -> None:
    """The node reads int8, with a scale an output channel; its bias makes up for the centre and for the rounding."""
    import onnx_ir

    weight = _weight(node).astype(np.float64)
    outputs_first = node.op_type == "Conv" or _flag(node, "transB")
    axis = 0 if outputs_first else 1
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight).max(others, keepdims=True)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    integers = np.clip(np.rint(weight / scale), -LARGEST, LARGEST)
    computed: NDArray[np.float64] = integers * scale.astype(np.float64)
    correction = _product(node, rounded.centre, computed) - _product(node, mean, computed - weight)

    stored = _constant(model, f"{node.name}.weight", integers.astype(np.int8))
    scales = _constant(model, f"{node.name}.weight.scale", scale.ravel())
    zeros = _constant(model, f"{node.name}.weight.zero", np.zeros(scale.size, np.int8))
    dequantised = onnx_ir.node("DequantizeLinear", [stored, scales, zeros], attributes={"axis": axis})
    _call(dequantised, f"{node.name}.weight.DequantizeLinear", node)
    model.graph.insert_before(node, [dequantised])
    found = _bias_of(node)
    before = np.zeros(len(correction)) if found is None else _array(found[0], found[1])
    bias = _constant(model, f"{node.name}.bias", (before + correction).astype(np.float32))
    if found is None:
        node.resize_inputs(3)
    host, position = (node, 2) if found is None else found
    host.replace_input_with(position, bias)
    node.replace_input_with(0, rounded.value)
    node.replace_input_with(1, dequantised.outputs[0])


def _product(node: onnx_ir.Node, vector: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the node makes of an input that is `vector`, (C,), at every position; (outputs,)."""
    if node.op_type != "Conv":
        product: NDArray[np.float64] = vector @ (weight.T if _flag(node, "transB") else weight)
        return product
    groups = len(vector) // weight.shape[1]
    kernels = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    sums: NDArray[np.float64] = np.einsum("goik,gi->go", kernels, vector.reshape(groups, -1)).ravel()
    return sums


def _bias_of(node: onnx_ir.Node) -> tuple[onnx_ir.Node, int] | None:
    """Who reads the bias, and as which input: the node itself, or the addition behind a MatMul; None where it has none
    of its own.
    """
    if node.op_type != "MatMul":
        return (node, 2) if len(node.inputs) > 2 and _is_constant(node.inputs[2]) else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    position = 1 - uses[0].idx
    width = _weight(node).shape[1]
    return (add, position) if _is_constant(add.inputs[position]) and _array(add, position).shape == (width,) else None


def _drop_unused(model: onnx_ir.Model) -> None:
    initializers = model.graph.initializers
    for name in [name for name, value in initializers.items() if not value.uses()]:
        del initializers[name]


def _constant(model: onnx_ir.Model, name: str, array: Any) -> onnx_ir.Value:
    import onnx_ir

    tensor = onnx_ir.tensor(np.asarray(array), name=name)
    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(np.shape(array)), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _call(new: onnx_ir.Node, name: str, like: onnx_ir.Node) -> None:
    """Name the node and what it gives; it comes from the same line of the model as `like`."""
    new.name = name
    new.outputs[0].name = f"{name}.output"
    if SOURCE_KEY in like.metadata_props:
        new.metadata_props[SOURCE_KEY] = like.metadata_props[SOURCE_KEY]


def _name(node: onnx_ir.Node, position: int) -> str:
    value = node.inputs[position]
    assert value is not None
    assert value.name is not None
    return value.name


def _flag(node: onnx_ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1


def _is_constant(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _weight(node: onnx_ir.Node) -> NDArray[np.float32]:
    return _array(node, 1)


def _array(node: onnx_ir.Node, position: int) -> NDArray[np.float32]:
    value = node.inputs[position]
    assert value is not None
    assert value.const_value is not None
    array: NDArray[np.float32] = value.const_value.numpy()
    return array
