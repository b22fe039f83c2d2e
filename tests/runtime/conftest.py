"""What the tests of the engine and of its backends share."""

from __future__ import annotations

import numpy as np
import pytest

from ..fakes import onnxruntime as fake_onnxruntime
from ..fakes.gpu import Gpu

BACKENDS = ("onnxruntime", "openvino", "tensorrt", "onnxruntime-cuda")


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each runtime in turn, as what "auto" is; those of GPUs over stand-ins, TensorRT with a plan of every engine."""
    if request.param == "tensorrt":
        Gpu(monkeypatch).serve_graphs()
        return request.param
    if request.param == "onnxruntime-cuda":
        gpu = Gpu(monkeypatch)
        gpu.serve_sessions()
        fake_onnxruntime.install(monkeypatch, gpu.device)
        return "onnxruntime"
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    monkeypatch.setenv("FINERCAM_BACKEND", request.param)
    return request.param


@pytest.fixture
def on_gpu(request: pytest.FixtureRequest, backend_name: str) -> bool:
    """Whether that runtime is one over stand-ins."""
    return request.node.callspec.params["backend_name"] in BACKENDS[2:]


def batch(toy, count: int, scale: float = 1.0) -> np.ndarray:
    """(N,C,H,W) of the toy's channels and size, normalised."""
    return (np.random.default_rng(count).normal(size=(count, toy.kernel.shape[1], *toy.size)) * scale).astype(
        np.float32
    )


def photographs(count: int, size=(40, 56)) -> list[np.ndarray]:
    """Arrays (H,W,3) of noise."""
    rng = np.random.default_rng(count)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
