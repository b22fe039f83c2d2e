"""Arrays that a run on a GPU reads and writes, in one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finercam_rt.backends.device_results import ALIGNMENT
from finercam_rt.cuda import Device, Memory
from finercam_rt.owned_array import dtype_name

Values = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Dtype and shape by name."""


class Block:
    """Arrays one behind the other in the device's memory."""

    def __init__(self, device: Device, values: Values) -> None:
        """For these values, whose names keep their order."""
        self.values, self._offsets, end = values, dict[str, int](), 0
        for name in values:
            self._offsets[name] = end
            end += self.span_of(name)
        self.bytes = end
        self.memory: Memory = device.memory(self.bytes)

    def address(self, name: str) -> int:
        """Where one of them begins."""
        return self.memory.address + self._offsets[name]

    def bytes_of(self, name: str) -> int:
        """The size of one of them."""
        dtype, shape = self.values[name]
        return math.prod(shape) * dtype.itemsize

    def span_of(self, name: str) -> int:
        """Its size with what aligns the next one."""
        return max(1, -(-self.bytes_of(name) // ALIGNMENT)) * ALIGNMENT

    def view(self, name: str, shape: Sequence[int] | None = None) -> Any:
        """One of them as an array of the device, or its beginning in another shape."""
        dtype, whole = self.values[name]
        return self.memory.view(dtype_name(dtype), whole if shape is None else shape, self._offsets[name])
