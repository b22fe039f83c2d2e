"""int8 with zero points 0, on graphs made by hand: each kind of layer keeps its mean, and what is not taken is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from finercam_rt.errors import ExportError
from finercam_rt.export.symmetric import quantize_symmetric
from finercam_rt.tensorrt import library
from finercam_rt.tensorrt.builder import BuildOptions, build

RNG = np.random.default_rng(7)
IMAGES = (0.6 + 0.4 * RNG.standard_normal((64, 3, 8, 8))).astype(np.float32)
"""Far from centred, so that errors of the weights have a mean."""


def _weight(*shape: int) -> np.ndarray:
    return (0.2 + RNG.standard_normal(shape)).astype(np.float32)


LAYERS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "convolution": ([("Conv", ["images", "w", "b"], {"pads": [0] * 4})], {"w": _weight(5, 3, 3, 3), "b": _weight(5)}),
    "convolution without a bias": ([("Conv", ["images", "w"], {})], {"w": _weight(5, 3, 2, 2)}),
    "grouped convolution": (
        [("Conv", ["images", "first"], {}), ("Conv", ["0", "w"], {"group": 2})],
        {"first": _weight(4, 3, 1, 1) * 0 + np.eye(4, 3, dtype=np.float32)[..., None, None], "w": _weight(6, 2, 3, 3)},
    ),
    "linear": (
        [("Flatten", ["images"], {}), ("MatMul", ["0", "w"], {}), ("Add", ["b", "1"], {})],
        {"w": _weight(192, 7), "b": _weight(7)},
    ),
    "Gemm": (
        [("Flatten", ["images"], {}), ("Gemm", ["0", "w"], {"transB": 1})],
        {"w": _weight(7, 192)},
    ),
    "Gemm, not transposed": (
        [("Flatten", ["images"], {}), ("Gemm", ["0", "w", "b"], {})],
        {"w": _weight(192, 7), "b": _weight(7)},
    ),
}
REFUSED: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "depthwise": ([("Conv", ["images", "w"], {"group": 3})], {"w": _weight(3, 1, 3, 3)}),
    "no bias to correct": ([("Flatten", ["images"], {}), ("MatMul", ["0", "w"], {})], {"w": _weight(192, 7)}),
    "scaled": ([("Flatten", ["images"], {}), ("Gemm", ["0", "w"], {"alpha": 0.5})], {"w": _weight(192, 7)}),
}


def _write(case: tuple[list[Any], dict[str, np.ndarray]], path: Path) -> Path:
    nodes = [
        helper.make_node(kind, inputs, [str(index)], f"trunk/{index}", **attributes)
        for index, (kind, inputs, attributes) in enumerate(case[0])
    ]
    shape = ["n", "k"] if case[0][0][0] == "Flatten" else ["n", "k", "height", "width"]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(str(len(nodes) - 1), TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in case[1].items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": IMAGES})[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_stays_near_and_keeps_its_mean(tmp_path: Path, name: str) -> None:
    twin = _write(LAYERS[name], tmp_path / "twin.onnx")
    model, line = quantize_symmetric(twin, IMAGES, {})
    onnx_ir.save(model, tmp_path / "int8.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "int8.onnx"), full_check=True)
    layers = sum(kind in ("Conv", "MatMul", "Gemm") for kind, *_ in LAYERS[name][0])
    assert line.startswith(f"precision: int8 with zero points 0 in {layers} of the trunk's {layers} convolutions")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    scales = {value.name: value.dims for value in graph.initializer if value.name.endswith(".weight.scale")}
    outputs = {"first": 4, "w": 7 if "Flatten" in kinds else len(LAYERS[name][1]["w"])}
    # one for each output channel: TensorRT's kernels have no other
    assert [list(dims) for dims in scales.values()] == [[outputs[key]] for key in LAYERS[name][1] if key in outputs]
    assert kinds.count("QuantizeLinear") == layers  # of weights only the integers are kept
    assert kinds.count("Sub") == ("Flatten" in kinds)  # linear layers read centred values
    wanted, found = _run(twin), _run(tmp_path / "int8.onnx")
    error = (found - wanted).astype(np.float64)
    assert 0 < np.abs(error).max() < 0.04 * np.abs(wanted).max()
    means = error.mean((0, 2, 3) if error.ndim == 4 else 0)
    assert np.abs(means).max() < 0.4 * np.abs(error).mean()


@pytest.mark.skipif(not library.is_installed(library.RTX), reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("name", LAYERS)
def test_tensorrt_takes_the_layer(tmp_path: Path, name: str) -> None:
    path = tmp_path / "int8.onnx"
    onnx_ir.save(quantize_symmetric(_write(LAYERS[name], tmp_path / "twin.onnx"), IMAGES, {})[0], path)
    options = BuildOptions((1, 4, 16), (2, 2, 2), ("SM86", "SM89", "SM120"))
    built = build(path, library.import_flavour(library.RTX), options)
    assert str(len(LAYERS[name][0]) - 1) in {output for kernel in built.kernels for output in kernel.outputs}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_take_is_left(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="nothing of the trunk can be computed in int8"):
        quantize_symmetric(_write(REFUSED[name], tmp_path / "twin.onnx"), IMAGES, {})


def test_layers_that_share_an_activation_share_its_rounding(tmp_path: Path) -> None:
    case = (
        [("Conv", ["images", "w"], {}), ("Conv", ["images", "v"], {}), ("Add", ["0", "1"], {})],
        {"w": _weight(5, 3, 1, 1), "v": _weight(5, 3, 1, 1)},
    )
    model, _ = quantize_symmetric(_write(case, tmp_path / "twin.onnx"), IMAGES, {})
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 3  # of the images, and of two weights
    assert set(model.graph.initializers) & {"w", "v"} == set()
