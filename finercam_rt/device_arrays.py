"""Arrays of any framework on a CUDA device: read where they lie, and results given back as arrays of the same one.

No framework is imported. torch and CuPy allocate the results themselves, so that their pools serve them; for the others
the memory is ours.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import arrays, cuda
from finercam_rt.arrays import framework_of
from finercam_rt.backends.device_results import Place
from finercam_rt.cuda import Device
from finercam_rt.errors import InputError, one_line
from finercam_rt.owned_array import OwnedArray, dtype_name

_UINT8 = np.dtype(np.uint8)
_DLPACK_CUDA = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""
UNSAID = -1
"""Stands for the number of a device that an array does not tell."""

Take = Callable[[Sequence[Place]], dict[str, Any]]
"""Where results lie, to arrays of the caller's framework by name; called once they are queued."""


class DeviceArray(NamedTuple):
    """Where an array lies: `stream` is the one that its framework says it was made on, None where it does not."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    stream: int | None


class Results(NamedTuple):
    """New memory of the device: its address, and what makes arrays of it."""

    address: int
    take: Take


def device_of(array: Any) -> int | None:
    """The number of the CUDA device on which it lies, UNSAID where it does not say; None where it lies on none."""
    if isinstance(array, np.ndarray):
        return None
    if (
        framework_of(array) == "torch"
    ):  # what the protocols say of its tensors is Python, and takes longer than all else
        return int(array.get_device()) if array.is_cuda else None
    where = getattr(array, "__dlpack_device__", None)
    if where is not None:
        kind, index = where()
        return int(index) if kind in _DLPACK_CUDA else None
    return UNSAID if hasattr(array, "__cuda_array_interface__") else None


def read(array: Any, name: str) -> DeviceArray:
    """Where an array of a CUDA device lies.

    Raises:
        InputError: it does not say so by __cuda_array_interface__, or is of a kind that cannot (it requires grad).
    """
    arrays.check_sign(array, name)
    try:
        if framework_of(array) == "torch" and not array.requires_grad:
            return DeviceArray(array.data_ptr(), tuple(array.shape), _name_of(array.dtype), array.is_contiguous(), None)
        if arrays.frees_early(array):  # its interface names no stream either, and waits for nothing
            array.block_until_ready()
        found = array.__cuda_array_interface__
    except Exception as error:  # each framework has its own types
        reason = one_line(error)
        raise InputError(f"{name} cannot be read on its device ({reason}); give a plain array.") from None
    shape, strides, dtype = tuple(found["shape"]), found.get("strides"), _dtype(found["typestr"])
    contiguous = strides is None or _is_dense(shape, strides, dtype.itemsize)
    return DeviceArray(found["data"][0], shape, dtype_name(dtype), contiguous, found.get("stream"))


@functools.cache
def _name_of(dtype: Any) -> str:
    """Of a dtype of torch."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def _dtype(text: str) -> np.dtype[Any]:
    """Of "<f4" and the like; there are few."""
    return np.dtype(text)


def _is_dense(shape: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """Whether these strides, in bytes, are those of the order of the axes."""
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and step != item:
            return False
        item *= size
    return True


def to_host(array: Any, name: str) -> NDArray[Any]:
    """A copy in the host's memory of a contiguous array on a CUDA device; waits for it.

    Raises:
        InputError: see `read`; it is not contiguous.
        BackendError: there is no such device.
    """
    found, where = read(array, name), device_of(array)
    if not found.contiguous:
        raise InputError(f"{name} is not contiguous in its device's memory; make it so, as with .contiguous().")
    device = cuda.open_device("auto" if where in (None, UNSAID) else f"cuda:{where}")
    dtype = np.dtype(found.dtype)
    size = math.prod(found.shape) * dtype.itemsize
    pinned, stream = device.pinned(max(size, 1)), device.stream(stream_of(array, found, None))
    stream.copy(pinned.address, found.address, size)
    stream.synchronize()
    values: NDArray[Any] = pinned.array()[:size].view(dtype).reshape(found.shape).copy()
    return values


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
    if framework_of(array) == "torch":
        torch: Any = sys.modules["torch"]
        return int(torch.cuda.current_stream(array.device).cuda_stream)
    return found.stream or 0


def allocate(example: Any, size: int, device: Device, stream: int, *, current: bool) -> Results:
    """Memory for results that are used on a stream, and arrays of the framework of `example` over it.

    current: whether the stream is the one on which the framework itself works at present.
    """
    name = framework_of(example)
    if name == "torch":
        return _of_torch(sys.modules[name], example, size, stream, current)
    if name == "cupy":
        return _of_cupy(sys.modules[name], size, device, stream)
    memory = device.memory(size)
    dense = arrays.frees_early(example)  # JAX takes no other strides

    def take(places: Sequence[Place]) -> dict[str, Any]:
        ready = device.event()
        device.stream(stream).record(ready)
        to_framework = _converter(example)
        found = {}
        for place in places:
            shape, strides = (place.whole, None) if dense else (place.shape, place.strides)
            owned = OwnedArray(memory, device, place.dtype, shape, place.offset, strides).made(stream, ready)
            array = to_framework(owned)
            found[place.name] = array if shape == place.shape else array[:, : place.shape[1]]
        return found

    return Results(memory.address, take)


def _converter(example: Any) -> Callable[[OwnedArray], Any]:
    """To arrays of the framework of `example`."""
    name = framework_of(example)
    if name == "numba":
        return sys.modules[name].cuda.as_cuda_array  # type: ignore[no-any-return]
    if name == "pycuda":
        return lambda array: type(example)(
            array.shape,
            array.dtype,
            gpudata=array.address,
            base=array,
            strides=array.strides,
        )
    return arrays.converter(example)


def _of_torch(torch: Any, example: Any, size: int, stream: int, current: bool) -> Results:
    if current:
        block = torch.empty(size, dtype=torch.uint8, device=example.device)
    else:
        # of the pool of the stream on which the caller will use it, or torch could hand the memory on too early
        device = example.device
        used = torch.cuda.ExternalStream(stream, device) if stream else torch.cuda.default_stream(device)
        with torch.cuda.stream(used):
            block = torch.empty(size, dtype=torch.uint8, device=device)

    def take(places: Sequence[Place]) -> dict[str, Any]:
        typed = {_UINT8: block}
        found = {}
        for place in places:
            if place.dtype not in typed:
                typed[place.dtype] = block.view(getattr(torch, dtype_name(place.dtype)))
            found[place.name] = typed[place.dtype].as_strided(place.shape, place.steps, place.start)
        return found

    return Results(block.data_ptr(), take)


def _of_cupy(cupy: Any, size: int, device: Device, stream: int) -> Results:
    used = cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null
    with cupy.cuda.Device(device.index), used:
        block = cupy.empty(size, cupy.uint8)

    def take(places: Sequence[Place]) -> dict[str, Any]:
        return {
            place.name: cupy.ndarray(place.shape, place.dtype, memptr=block.data + place.offset, strides=place.strides)
            for place in places
        }

    return Results(block.data.ptr, take)
