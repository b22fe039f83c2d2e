"""Arrays of a framework on a FakeDevice: what torch and the like have, as far as the runtime asks for it."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from .cuda import FakeDevice


class DeviceTensor:
    """Values in the device's memory, made on `stream`: they are there once that stream has come so far.

    As with a framework's pool, the memory goes to someone else when the stream has come to where it was dropped.
    """

    def __init__(self, device: FakeDevice, values: np.ndarray, stream: int = 0, offset: int = 0) -> None:
        self.device, self.values = device, np.ascontiguousarray(values)
        self.memory = device.memory(offset + self.values.nbytes)
        self.offset, self.strides, self.stream = offset, None, stream
        staged = self.values.view(np.uint8).ravel().copy()

        def write() -> None:
            self.memory.raw[offset:] = staged

        device.stream(stream).put(write)

    def __del__(self) -> None:
        if self.device.lost is None:
            self.device.stream(self.stream).put(self.memory.release)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.values.shape,
            "typestr": self.values.dtype.str,
            "data": (self.memory.address + self.offset, False),
            "strides": self.strides,
            "stream": self.stream or None,
            "version": 3,
        }

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("must not be exported")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.index


class UnorderedTensor(DeviceTensor):
    """As those of JAX: it names no stream, and is made on one that waits for no other."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        found = super().__cuda_array_interface__
        del found["stream"]
        return found | {"version": 2}

    def block_until_ready(self) -> UnorderedTensor:
        self.device.stream(self.stream).synchronize()
        return self


class Given:
    """What the framework made of a result: by DLPack, on a stream of its own."""

    def __init__(self, array: Any, stream: int) -> None:
        self.interface = array.__cuda_array_interface__
        self.stream, self.owner = stream, array
        array.__dlpack__(stream=stream)

    def numpy(self, device: FakeDevice) -> np.ndarray:
        """Its values, read on its stream."""
        device.stream(self.stream).synchronize()
        shape, dtype = self.interface["shape"], np.dtype(self.interface["typestr"])
        strides = self.interface["strides"] or np.empty(shape, dtype).strides
        last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + dtype.itemsize
        raw = device.at(self.interface["data"][0], last)
        return np.ndarray(shape, dtype, raw.data, 0, strides).copy()


class DenseGiven(Given):
    """As of JAX, which takes no strides but those of the order of the axes."""

    def __init__(self, array: Any, stream: int) -> None:
        super().__init__(array, stream)
        assert self.interface["strides"] is None
        self._part: Any = ()

    def __getitem__(self, part: Any) -> DenseGiven:
        self._part = part
        return self

    def numpy(self, device: FakeDevice) -> np.ndarray:
        return super().numpy(device)[self._part]


def install(monkeypatch: pytest.MonkeyPatch, stream: int) -> None:
    """Frameworks whose arrays those above are, which read on this stream."""
    for name, kind, given in (("framework", DeviceTensor, Given), ("unordered", UnorderedTensor, DenseGiven)):
        framework = types.ModuleType(name)
        framework.from_dlpack = lambda array, given=given: given(array, stream)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, framework)
        monkeypatch.setattr(kind, "__module__", f"{name}.tensors")
