"""Arrays of any framework on a CUDA device: read where they lie, and results given back as arrays of the same one.

No framework is imported. torch and CuPy allocate the results themselves, so that their pools serve them; for the others
the memory is ours.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from finercam_rt import arrays
from finercam_rt.cuda import Device, Event, Memory
from finercam_rt.errors import InputError

_DLPACK_CUDA = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""
_NO_WAIT = -1
"""DLPack's stream of a consumer that orders the work itself."""

Take = Callable[[int, str, Sequence[int], Sequence[int]], Any]
"""Offset in bytes, dtype, shape and strides in elements, to an array of the caller's framework."""


class DeviceArray(NamedTuple):
    """Where an array lies: `stream` is the one that its framework says it was made on, None where it does not."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    stream: int | None


class Results(NamedTuple):
    """New memory of the device: its address, what makes arrays of it, and what is called once they are queued."""

    address: int
    take: Take
    finish: Callable[[], None]


def is_on_device(array: Any) -> bool:
    """Whether it lies on a CUDA device."""
    if isinstance(array, np.ndarray):
        return False
    where = getattr(array, "__dlpack_device__", None)
    if where is not None:
        return where()[0] in _DLPACK_CUDA
    return hasattr(array, "__cuda_array_interface__")


def read(array: Any, name: str) -> DeviceArray:
    """Where an array of a CUDA device lies.

    Raises:
        InputError: it does not say so by __cuda_array_interface__, or is of a kind that cannot (it requires grad).
    """
    try:
        found = array.__cuda_array_interface__
    except Exception as error:  # each framework has its own types
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{name} cannot be read on its device ({reason}); give a plain array.") from None
    shape, dtype = tuple(found["shape"]), np.dtype(found["typestr"])
    dense, step = list[int](), dtype.itemsize
    for size in reversed(shape):
        dense.insert(0, step)
        step *= size
    strides = found.get("strides") or dense
    contiguous = all(size == 1 or a == b for size, a, b in zip(shape, strides, dense, strict=True))
    return DeviceArray(found["data"][0], shape, dtype.name, contiguous, found.get("stream"))


def device_of(array: Any) -> int | None:
    """The number of its device; None where it does not say."""
    where = getattr(array, "__dlpack_device__", None)
    return None if where is None else int(where()[1])


def stream_of(array: Any, found: DeviceArray, stream: int | None) -> int:
    """The stream to be ordered with: the caller's, else torch's current one, else the one that the array names.

    Raises:
        InputError: `stream` is no integer.
    """
    if stream is not None:
        try:
            return operator.index(stream)
        except TypeError:
            raise InputError(
                f"the stream is of type {type(stream).__name__}; give its handle, such as torch's stream.cuda_stream."
            ) from None
    torch = _module(array, "torch")
    if torch is not None:
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    return found.stream or 0


def allocate(example: Any, size: int, device: Device, stream: int) -> Results:
    """Memory for results that are used on a stream, and arrays of the framework of `example` over it."""
    torch, cupy = _module(example, "torch"), _module(example, "cupy")
    if torch is not None:
        return _of_torch(torch, example, size, stream)
    if cupy is not None:
        return _of_cupy(cupy, size, device, stream)
    memory, ready = device.memory(size), list[Event]()

    def finish() -> None:
        event = device.event()
        device.stream(stream).record(event)
        ready.append(event)

    def take(offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> Any:
        return _to_framework(
            _Owned(memory, device, ready, offset, dtype, tuple(shape), tuple(strides), stream), example
        )

    return Results(memory.address, take, finish)


class _Owned:
    """An array over our memory, for whoever speaks DLPack or __cuda_array_interface__."""

    def __init__(
        self,
        memory: Memory,
        device: Device,
        ready: list[Event],
        offset: int,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        stream: int,
    ) -> None:
        self._memory, self._device, self._ready, self._offset = memory, device, ready, offset
        self.dtype, self.shape, self.element_strides = np.dtype(dtype), shape, strides
        self.address, self._stream = memory.address + offset, stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Ready on the stream that it names."""
        item = self.dtype.itemsize
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": tuple(item * step for step in self.element_strides),
            "stream": self._stream or 1,  # 0 is not allowed there, and 1 is the same stream
            "version": 3,
        }

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """Ordered with the consumer's stream, as DLPack has it."""
        if stream != _NO_WAIT:
            for event in self._ready:
                self._device.stream(stream or 0).wait(event)
        view = self._memory.view(self.dtype.name, self.shape, self._offset, self.element_strides)
        return view.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """kDLCUDA, and the number of the device."""
        return _DLPACK_CUDA[0], self._device.index


def _to_framework(array: _Owned, example: Any) -> Any:
    numba, pycuda = _module(example, "numba"), _module(example, "pycuda")
    if numba is not None:
        return numba.cuda.as_cuda_array(array)
    if pycuda is not None:
        strides = array.__cuda_array_interface__["strides"]
        return type(example)(array.shape, array.dtype, gpudata=array.address, base=array, strides=strides)
    return arrays.like(array, example)


def _of_torch(torch: Any, example: Any, size: int, stream: int) -> Results:
    # of the pool of the stream on which the caller will use it, or torch could hand the memory on too early
    used = torch.cuda.ExternalStream(stream, example.device) if stream else torch.cuda.default_stream(example.device)
    with torch.cuda.stream(used):
        block = torch.empty(size, dtype=torch.uint8, device=example.device)

    def take(offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> Any:
        typed = getattr(torch, dtype)
        return block.view(typed).as_strided(tuple(shape), tuple(strides), offset // typed.itemsize)

    return Results(block.data_ptr(), take, _nothing)


def _of_cupy(cupy: Any, size: int, device: Device, stream: int) -> Results:
    used = cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null
    with cupy.cuda.Device(device.index), used:
        block = cupy.empty(size, cupy.uint8)

    def take(offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> Any:
        item = np.dtype(dtype).itemsize
        steps = tuple(item * step for step in strides)
        return cupy.ndarray(tuple(shape), dtype, memptr=block.data + offset, strides=steps)

    return Results(block.data.ptr, take, _nothing)


def _nothing() -> None:
    """What pools of memory need: they reuse it in the order of the stream."""


def _module(array: Any, name: str) -> Any:
    """The framework of this name, where the array is of it."""
    return sys.modules.get(name) if type(array).__module__.partition(".")[0] == name else None
