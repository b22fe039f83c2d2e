"""The devices that every kernel test runs on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from finercam_rt import _core

from ..fakes import ptx


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

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Of a dtype of torch's, which NumPy may not have."""
        import torch

        return torch.empty(shape, dtype=dtype, device=self.name)


class InterpretedDevice(Device):
    """The CUDA kernels, run by the interpreter of PTX."""

    def put(self, array: np.ndarray) -> Any:
        return ptx.interpreter().put(array)

    def get(self, result: Any) -> np.ndarray:
        return ptx.interpreter().get(result)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Of two bytes a value: an array of int16 on the host."""
        return ptx.interpreter().put(np.zeros(shape, np.int16), str(dtype).removeprefix("torch."))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu), "ptx"])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "ptx":
        return request.getfixturevalue("interpreted")
    return Device("cpu", 1.0) if request.param == "cpu" else cuda_device()


@pytest.fixture
def gpu() -> Device:
    """For tests of the marker `gpu`, of what the CPU has not."""
    return cuda_device()


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "ptx"])
def accelerator(request: pytest.FixtureRequest) -> Device:
    """For tests of what the CPU has not, and the interpreter has."""
    return cuda_device() if request.param == "cuda" else request.getfixturevalue("interpreted")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Calls of `_core` are those of the interpreted extension, of finercam_rt and of the tests; no fault may come."""
    interpreter = ptx.interpreter()
    installed = _core
    for name, module in list(sys.modules.items()):
        if name.startswith(("finercam_rt.", "tests.")) and getattr(module, "_core", None) is installed:
            monkeypatch.setattr(module, "_core", interpreter.core)
    with interpreter.watched():
        yield InterpretedDevice("ptx", 4.0)


def cuda_device() -> Device:
    """Of this machine; skips where there is none."""
    devices, reason = _core.cuda_status()
    if not devices:
        pytest.skip(reason)
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return Device("cuda", 4.0)
