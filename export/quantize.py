"""After verify: the trunk of an fp32 engine in int8 for CPUs, by ONNX Runtime's static quantisation (QDQ).

What is quantised, from measurement on real birds (MobileNetV2, DINOv2): convolutions, and what joins or clips their
outputs; linear layers, of which only the input is rounded, so that residual streams, norms and attention stay in
float32. Ranges are the smallest and largest values on the photographs: percentiles cut off the few large channels that
transformers rely on (cosine of the maps 0.97 and less, where these give 0.99). Activations are uint8 with a zero point,
weights int8 per channel. TensorRT takes no zero points: see symmetric.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import ExportError
from finercam_rt.export.emit import TRUNK
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line

if TYPE_CHECKING:
    import onnx
    import onnx_ir

LINEAR = {"MatMul", "Gemm"}
HEAVY = {"Conv", *LINEAR}
_JOINS = {"Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}
"""Quantised where all that they read comes out of quantised convolutions."""
_TOKENS = {"Transpose", "Reshape", "Flatten", "LayerNormalization"}
"""A convolution that one of these reads makes the patches of a transformer or of a ConvNeXt: no int8 output there."""


def quantize(
    twin: Path, folder: Path, images: NDArray[np.float32], feeds: dict[str, NDArray[Any]]
) -> tuple[onnx_ir.Model, str]:
    """The engine `twin` with its trunk in int8, and a line for the report.

    Args:
        twin: the fp32 engine, as `emit` names its nodes.
        folder: where files may lie until this returns.
        images: (N,C,H,W) float32, normalised, to calibrate on.
        feeds: the other inputs, for a batch of one.

    Raises:
        ExportError: no operation of the trunk can be quantised, or the quantisation fails.
    """
    import onnx
    import onnx_ir
    from onnxruntime import quantization

    graph = onnx.load(twin).graph
    reduced = chosen(graph)
    if not reduced:
        raise ExportError("nothing of the trunk can be computed in int8; choose another precision.")
    written = folder / "int8.onnx"
    try:
        with quiet():
            quantization.quantize_static(
                str(twin),
                str(written),
                _reader(images, feeds),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=list(reduced),
                op_types_to_quantize=sorted(set(reduced.values())),
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": sorted(LINEAR)},
            )
    except Exception as error:  # it raises ValueError, RuntimeError, and what onnx and ONNX Runtime have of their own
        raise ExportError(f"ONNX Runtime cannot quantise the trunk ({first_line(error)}).") from error
    model = onnx_ir.load(written)
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = f"{TRUNK}{node.name}"
    model.metadata_props.clear()
    model.producer_name = "pytorch"
    heavy = [node.name for node in graph.node if node.name.startswith(TRUNK) and node.op_type in HEAVY]
    done = sum(name in reduced for name in heavy)
    return model, f"precision: int8 in {done} of the trunk's {len(heavy)} convolutions and matrix products"


def chosen(graph: onnx.GraphProto) -> dict[str, str]:
    """Name to operation of the nodes of the trunk that become int8."""
    constants = {value.name for value in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in graph.node:  # in topological order
        if not node.name.startswith(TRUNK):
            continue
        if node.op_type in HEAVY:
            weight = node.input[1]
            # a weight that the tail reads as well would be rounded there too
            right = weight in constants and all(reader.name.startswith(TRUNK) for reader in readers[weight])
            if node.op_type == "Conv":
                right = right and not any(reader.op_type in _TOKENS for reader in readers.get(node.output[0], ()))
        else:
            sources = [name for name in node.input if name and (name not in constants or node.op_type == "Add")]
            right = node.op_type in _JOINS and all(
                name in producer and producer[name].name in found and producer[name].op_type not in LINEAR
                for name in sources
            )
        if right:
            found[node.name] = node.op_type
    return found


def _reader(images: NDArray[np.float32], feeds: dict[str, NDArray[Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One image at a time."""

        def __init__(self) -> None:
            self._rows: Iterator[NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            row = next(self._rows, None)
            return None if row is None else {"images": row[None], **feeds}

    return Reader()
