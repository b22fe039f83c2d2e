"""Arrays over our own memory of a CUDA device, for whoever speaks DLPack or __cuda_array_interface__."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from finercam_rt.cuda import Device, Event, Memory

_DLPACK_CUDA = 2
_NO_WAIT = -1
"""DLPack's stream of a consumer that orders the work itself."""


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Such as "float32"; NumPy makes it up each time, which is slower than all else here."""
    return dtype.name


class OwnedArray:
    """It keeps its memory. Until `made` is called it is there to be written, and nobody waits for it."""

    def __init__(
        self,
        memory: Memory,
        device: Device,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        offset: int = 0,
        strides: Sequence[int] | None = None,
    ) -> None:
        """`offset` and `strides`, by default those of the order of the axes, are in bytes."""
        self._memory, self._offset = memory, offset
        self.device, self.dtype, self.shape, self.strides = device, dtype, shape, strides
        self.address = memory.address + offset
        self._stream = 0
        self._ready: Event | None = None

    def made(self, stream: int, ready: Event) -> OwnedArray:
        """Itself, from here on of the values that are there at an event of a stream."""
        self._stream, self._ready = stream, ready
        return self

    def order(self, stream: int) -> None:
        """Let what is queued on a stream from here on come after its values."""
        if self._ready is not None and stream != self._stream:
            self.device.stream(stream).wait(self._ready)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Ready on the stream that it names."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.strides,
            "stream": self._stream or 1,  # 0 is not allowed there, and 1 is the same stream
            "version": 3,
        }

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """Ordered with the consumer's stream, as DLPack has it."""
        if stream != _NO_WAIT:
            self.order(stream or 0)
        item = self.dtype.itemsize
        steps = None if self.strides is None else [stride // item for stride in self.strides]
        return self._memory.view(dtype_name(self.dtype), self.shape, self._offset, steps).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """kDLCUDA, and the number of the device."""
        return _DLPACK_CUDA, self.device.index
