"""Fourier transforms as matrix products, against NumPy's in float64 and in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from finercam_rt import Engine
from finercam_rt.export import export_model
from finercam_rt.export.fourier import MOST_POINTS, fourier_by_products
from finercam_rt.manifest import InputSpec

from .oracle import RELATIVE_L2, Oracle, blobs, perturb, relative_l2

SHAPE = (2, 6, 9, 5)
CASES = [
    (axis, parts, inverse, onesided, length)
    for axis in (1, 2, 3)
    for parts, inverse, onesided in ((1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0), (2, 1, 1), (1, 1, 0))
    for length in (None, SHAPE[axis] - 2, SHAPE[axis] + 1)
]


def _expected(x: NDArray[Any], axis: int, inverse: int, onesided: int, length: int | None) -> NDArray[Any]:
    values = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    if onesided and inverse:
        return np.fft.irfft(values, length, axis)[..., None]
    transform = (np.fft.ifft if inverse else np.fft.fft) if not onesided else np.fft.rfft
    result = transform(values, length, axis)
    return np.stack([result.real, result.imag], -1)


def _model(x: NDArray[Any], axis: int, inverse: int, onesided: int, length: int | None, opset: int) -> onnx.ModelProto:
    constants = {"length": length, "axis": axis - x.ndim if opset == 20 else None}
    inputs = ["x", *("" if value is None else name for name, value in constants.items())]
    while not inputs[-1]:
        del inputs[-1]
    attributes = {"axis": axis} if opset == 18 else {}
    node = helper.make_node("DFT", inputs, ["y"], "dft", inverse=inverse, onesided=onesided, **attributes)
    sizes = [helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in constants.items() if value]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])
    graph = helper.make_graph([node], "dft", [given], [helper.make_empty_tensor_value_info("y")], sizes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize(("axis", "parts", "inverse", "onesided", "length"), CASES)
def test_numpys(axis: int, parts: int, inverse: int, onesided: int, length: int | None, opset: int) -> None:
    import onnxruntime

    if inverse and onesided and length is None:
        length = 2 * (SHAPE[axis] - 1)  # as the exporter writes it
    x = np.random.default_rng(0).normal(size=(*SHAPE, parts)).astype(np.float32)
    model = onnx_ir.from_proto(_model(x, axis, inverse, onesided, length, opset))
    fourier_by_products(model)
    assert "DFT" not in {node.op_type for node in model.graph}
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    (y,) = session.run(None, {"x": x})
    expected = _expected(x.astype(np.float64), axis, inverse, onesided, length)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [18, 20])
def test_long_ones_stay(opset: int) -> None:
    x = np.zeros((1, MOST_POINTS + 1, 1))
    model = onnx_ir.from_proto(_model(x, 1, 0, 0, None, opset))
    fourier_by_products(model)
    assert [node.op_type for node in model.graph] == ["DFT"]


class _GlobalFilters(nn.Module):
    """A small global filter network: two blocks, of which the second is behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.filters = nn.ParameterList(torch.randn(6, 5, 16, 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).permute(0, 2, 3, 1)
        for norm, weight in zip(self.norms, self.filters, strict=True):
            spectrum = torch.fft.rfft2(norm(y), dim=(1, 2), norm="ortho") * torch.view_as_complex(weight)
            y = y + torch.fft.irfft2(spectrum, s=(6, 9), dim=(1, 2), norm="ortho").relu()
        return self.classifier(y.mean((1, 2)))


@pytest.mark.parametrize("layer", ["patches", "norms.1"])
@pytest.mark.parametrize("opset", [18, 20])
def test_global_filters_in_every_runtime(layer: str, opset: int, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, path, images = perturb(_GlobalFilters()), tmp_path / "model.onnx", blobs(3, (48, 72), 1)
    spec = InputSpec((48, 72), (0.5,) * 3, (0.5,) * 3)
    layout = export_model(model, path, target_layer=layer, input=spec, opset=opset).layers[0].layout
    answer = Oracle(model, layer, images).explain((6, 9), layout, alpha=[0.7] * 3, objective="weighted")
    for backend in ("onnxruntime", "openvino"):
        with Engine(path, backend=backend) as engine:
            assert relative_l2(engine(images.numpy(), alpha=0.7).saliency_map, answer).max() < RELATIVE_L2, backend


@pytest.mark.parametrize(("precision", "backend"), [("fp16", "onnxruntime"), ("bf16", "openvino")])
def test_complex_numbers_stay_in_float32(precision: str, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    model, path, images = perturb(_GlobalFilters()), tmp_path / "model.onnx", blobs(3, (48, 72), 1)
    spec = InputSpec((48, 72), (0.5,) * 3, (0.5,) * 3)
    layout = export_model(model, path, target_layer="norms.1", input=spec, precision=precision).layers[0].layout
    answer = Oracle(model, "norms.1", images).explain((6, 9), layout, alpha=[0.7] * 3, objective="weighted")
    with Engine(path, backend=backend) as engine:
        assert relative_l2(engine(images.numpy(), alpha=0.7).saliency_map, answer).max() < 0.05
