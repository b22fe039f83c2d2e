"""The devices that every kernel test runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from finercam_rt import _core


@dataclass(frozen=True)
class Device:
    """Brings arrays to a device and back; tolerance multiplies what float32 sums may differ from the oracle."""

    name: str
    tolerance: float

    def put(self, array: np.ndarray) -> Any:
        if self.name == "cpu":
            return array
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).cuda()

    def get(self, result: Any) -> np.ndarray:
        return result if isinstance(result, np.ndarray) else result.cpu().numpy()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    return Device("cpu", 1.0) if request.param == "cpu" else cuda_device()


@pytest.fixture
def gpu() -> Device:
    """For tests of the marker `gpu`, of what the CPU has not."""
    return cuda_device()


def cuda_device() -> Device:
    """Of this machine; skips where there is none."""
    devices, reason = _core.cuda_status()
    if not devices:
        pytest.skip(reason)
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return Device("cuda", 4.0)
