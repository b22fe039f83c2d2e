"""Arrays that a run on a GPU reads and writes, in one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.backends.device_results import dtype_name
from finercam_rt.cuda import Device, Memory, Pinned, Stream

ALIGNMENT = 256
"""Of every array, in bytes: what TensorRT asks for."""

Values = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Dtype and shape by name."""


class Block:
    """Arrays one behind the other in the device's memory, and mirrored in the host's where that is asked for."""

    def __init__(self, device: Device, values: Values) -> None:
        """For these values, whose names keep their order."""
        self.values, self._offsets, end = values, dict[str, int](), 0
        for name, (dtype, shape) in values.items():
            self._offsets[name] = end
            end += max(1, -(-math.prod(shape) * dtype.itemsize // ALIGNMENT)) * ALIGNMENT
        self.bytes = end
        self.memory: Memory = device.memory(self.bytes)
        self._device = device
        self._mirror: tuple[Pinned, dict[str, NDArray[Any]]] | None = None

    def address(self, name: str) -> int:
        """Where one of them begins."""
        return self.memory.address + self._offsets[name]

    def bytes_of(self, name: str) -> int:
        """The size of one of them."""
        dtype, shape = self.values[name]
        return math.prod(shape) * dtype.itemsize

    def view(self, name: str, shape: Sequence[int] | None = None) -> Any:
        """One of them as an array of the device, or its beginning in another shape."""
        dtype, whole = self.values[name]
        return self.memory.view(dtype_name(dtype), whole if shape is None else shape, self._offsets[name])

    def host(self) -> dict[str, NDArray[Any]]:
        """The mirror, which the copies below read and write."""
        return self._mirrored()[1]

    def upload(self, stream: Stream) -> None:
        """Queue the copy of the mirror to the device."""
        stream.copy(self.memory.address, self._mirrored()[0].address, self.bytes)

    def download(self, stream: Stream, names: Sequence[str] | None = None) -> None:
        """Queue the copy of all, or of some, to the mirror."""
        mirror = self._mirrored()[0].address
        if names is None:
            stream.copy(mirror, self.memory.address, self.bytes)
        for name in names or ():
            stream.copy(mirror + self._offsets[name], self.address(name), self.bytes_of(name))

    def staged(self) -> tuple[Pinned, dict[str, NDArray[Any]]]:
        """Another mirror, and its arrays by name."""
        pinned = self._device.pinned(self.bytes)
        raw = pinned.array()
        raw[:] = 0  # what a run of the logits does not feed, and they do not depend on
        arrays = {
            name: raw[start : start + self.bytes_of(name)].view(self.values[name][0]).reshape(self.values[name][1])
            for name, start in self._offsets.items()
        }
        return pinned, arrays

    def _mirrored(self) -> tuple[Pinned, dict[str, NDArray[Any]]]:
        if self._mirror is None:
            self._mirror = self.staged()
        return self._mirror
