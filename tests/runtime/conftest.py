"""What the tests of the engine and of its backends share."""

from __future__ import annotations

import numpy as np
import pytest

from ..fakes.gpu import Gpu

BACKENDS = ("onnxruntime", "openvino", "tensorrt")


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each runtime in turn, as what "auto" is; TensorRT over stand-ins, which make a plan of every engine file."""
    if request.param == "tensorrt":
        Gpu(monkeypatch).serve_graphs()
        return request.param
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    monkeypatch.setenv("FINERCAM_BACKEND", request.param)
    return request.param


def batch(toy, count: int, scale: float = 1.0) -> np.ndarray:
    """(N,3,H,W) of the toy's size, normalised."""
    return (np.random.default_rng(count).normal(size=(count, 3, *toy.size)) * scale).astype(np.float32)


def photographs(count: int, size=(40, 56)) -> list[np.ndarray]:
    """Arrays (H,W,3) of noise."""
    rng = np.random.default_rng(count)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
