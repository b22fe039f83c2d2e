"""Arrays of any framework as the kernels take them: looked at, checked, allocated and given back."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from finercam_rt import _core, cuda
from finercam_rt.arrays import check_sign, framework_of, frees_early
from finercam_rt.errors import InputError
from finercam_rt.owned_array import OwnedArray
from finercam_rt.threads import MOST_THREADS, physical_cores_granted

_BYTES_PER_THREAD = 1 << 20  # what one core reads in the time that a thread takes to start and to join


def cuda_status() -> str:
    """Whether the CUDA kernels can run here: "available: N devices", or "unavailable: " and the reason."""
    devices, reason = _core.cuda_status()
    return f"available: {devices} device{'s' * (devices != 1)}" if devices else f"unavailable: {reason}"


class Array(NamedTuple):
    """What a kernel must know of an array; `name` is for errors, `plain` is C-contiguous and aligned to 4 bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    aligned: bool
    plain: bool


def describe(array: Any, name: str, dtypes: tuple[str, ...], axes: tuple[str, ...]) -> Array:
    """Shape, dtype and device of an argument, checked; `axes` are the names of its axes, a digit where one is fixed."""
    check_sign(array, f"the {name}")
    found = None if array is None else _core.describe(array)
    if found is None:
        raise InputError(
            f"the {name} ({type(array).__name__}) cannot be read as an array; give a NumPy array or a tensor "
            "that supports DLPack, in native byte order."
        )
    described = Array(name, *found)
    wanted = "(" + ",".join(axes) + ")"
    if len(described.shape) != len(axes):
        raise InputError(f"the {name} have shape {described.shape}; give {wanted}.")
    for axis, size in zip(axes, described.shape, strict=True):
        if size == 0 or (axis.isdigit() and size != int(axis)):
            raise InputError(f"the {name} have shape {described.shape}; give {wanted} with sizes of at least 1.")
    if described.dtype not in dtypes:
        raise InputError(f"the {name} are {described.dtype}; convert them to {listed(dtypes)}.")
    if not described.aligned:
        raise InputError(f"the {name} are not aligned in memory; copy them first.")
    if described.device != "cpu" and not described.device.startswith("cuda:"):
        raise InputError(f"the {name} lie on {described.device}; move them to the CPU or to a CUDA device.")
    if described.device != "cpu" and not _core.cuda_status()[0]:
        raise InputError(f"the {name} lie on {described.device}, but CUDA is {cuda_status()}; move them to the CPU.")
    return described


def check_same_device(array: Array, reference: Array) -> None:
    """Refuse arrays on two devices."""
    if array.device != reference.device:
        raise InputError(
            f"the {array.name} lie on {array.device} and the {reference.name} on {reference.device}; move one of them."
        )


def stream_of(stream: int | None, described: Array, *arguments: Any) -> int:
    """The stream that the caller gave, or torch's current one where the first argument is a tensor on a CUDA device.

    What is queued there comes after arguments that these kernels have made on other streams.
    """
    if described.device == "cpu":
        return stream or 0
    if stream is None:
        torch = _torch_of(arguments[0])
        stream = int(torch.cuda.current_stream(arguments[0].device).cuda_stream) if torch else 0
    for argument in arguments:
        if isinstance(argument, OwnedArray):
            argument.order(stream)
    return stream


def finish(stream: int, described: Array, *arguments: Any) -> None:
    """Wait for the kernel that was queued on the stream, where an argument may be freed before it has been read."""
    if described.device != "cpu" and any(map(frees_early, arguments)):
        cuda.CudaDevice(int(described.device.removeprefix("cuda:"))).stream(stream).synchronize()


def output(out: Any, name: str, dtype: str, shape: tuple[int, ...], like: Array) -> Any:
    """`out`, checked, or a new array on the device of `like`."""
    if out is None:
        return allocate(dtype, shape, like)
    check_sign(out, name)
    found = _core.describe(out)
    if found is None:
        raise InputError(f"{name} ({type(out).__name__}) cannot be read as an array; give {shape} {dtype}.")
    described = Array(name, *found)
    if (described.shape, described.dtype, described.device) != (shape, dtype, like.device):
        raise InputError(
            f"{name} is {described.shape} {described.dtype} on {described.device}; it must be {shape} {dtype} on "
            f"{like.device}."
        )
    if not described.plain or (isinstance(out, np.ndarray) and not out.flags.writeable):
        raise InputError(f"{name} is not a writable, C-contiguous array aligned to 4 bytes; give one that is.")
    return out


def allocate(dtype: str, shape: tuple[int, ...], like: Array) -> Any:
    """A new array, its values not set, on the device of `like`."""
    if like.device == "cpu":
        return np.empty(shape, dtype)
    device = cuda.CudaDevice(int(like.device.removeprefix("cuda:")))
    kind = np.dtype(dtype)
    return OwnedArray(device.memory(math.prod(shape) * kind.itemsize), device, kind, shape)


def to_caller(result: Any, argument: Any, stream: int) -> Any:
    """The result of a kernel on this stream: a torch tensor where the argument is one, else ordered with its readers.

    A tensor is torch's own affair: it is used on torch's current stream.
    """
    torch = _torch_of(argument)
    if torch:
        return torch.from_dlpack(result)
    if isinstance(result, OwnedArray):
        ready = result.device.event()
        result.device.stream(stream).record(ready)
        result.made(stream, ready)
    return result


def _torch_of(array: Any) -> Any:
    """The torch module where the array is a tensor of it; torch is never imported here."""
    return sys.modules["torch"] if framework_of(array) == "torch" else None


def listed(names: Any) -> str:
    """Names for a sentence."""
    return ", ".join(repr(name) for name in names)


def pair(values: Any, name: str) -> tuple[int, int]:
    """(height, width), two integers of at least 1."""
    try:
        height, width = (int(v) if int(v) == v else 0 for v in values)
    except (OverflowError, TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"the {name} is {values!r}; give (height, width), two integers of at least 1.")
    return height, width


def workers_for(threads: int | None, size: int) -> int:
    """The caller's choice, or as many cores as work on `size` bytes repays."""
    if threads is None:
        repaid = size // _BYTES_PER_THREAD
        return 1 if repaid < 2 else min(_cores(), repaid)
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads}; give 1 to {MOST_THREADS}, or None to choose.")
    return threads


@functools.cache
def _cores() -> int:
    return physical_cores_granted()
