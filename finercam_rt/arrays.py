"""Arrays of any framework in, arrays of the same framework out, by DLPack and without importing any of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError, one_line

_FRAMEWORKS = ("torch", "cupy", "numba", "pycuda")
"""Whose arrays are asked for in their own way, and given back."""
_found: dict[type, str] = {}
_CPU_DEVICES = (1, 3)
"""DLPack's kDLCPU and kDLCUDAHost (pinned memory, which the CPU reads as its own)."""


def to_numpy(array: Any, name: str) -> NDArray[Any]:
    """A NumPy array that shares the memory of anything with DLPack on the CPU.

    Raises:
        InputError: not an array, on another device, or of a kind that cannot be exported (a tensor that requires
            grad, a dtype that NumPy does not have).
    """
    if isinstance(array, np.ndarray):
        return array
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise InputError(f"{name} is of type {type(array).__name__}; give a NumPy array, or one with DLPack.")
    check_sign(array, name)
    try:
        if array.__dlpack_device__()[0] in _CPU_DEVICES:
            return np.from_dlpack(array)
    except Exception as error:  # each framework has its own types: BufferError, RuntimeError, TypeError
        raise InputError(f"{name} cannot be read by DLPack ({one_line(error)}).") from None
    raise InputError(f"{name} is on another device than the engine, which computes on the CPU; move it there.")


def check_sign(array: Any, name: str) -> None:
    """Refuse a torch tensor that is to be read with the other sign, of which no protocol tells.

    Raises:
        InputError: it is the imaginary part of a conjugate, or another such view.
    """
    is_negated = getattr(array, "is_neg", None)
    if is_negated is not None and is_negated():
        raise InputError(
            f"{name} cannot be read, because a sign is still to be applied; give what resolve_neg() makes of it."
        )


def framework_of(array: Any) -> str:
    """The name of the package that the array is of, which has been imported; of a subclass the base's."""
    kind = type(array)
    if kind not in _found:
        packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
        _found[kind] = next((package for package in packages if package in _FRAMEWORKS), packages[0])
    return _found[kind]


def frees_early(array: Any) -> bool:
    """Whether memory that is dropped goes on to other work though streams not of its framework read it still: JAX's."""
    return hasattr(array, "block_until_ready")


def like(array: Any, example: Any) -> Any:
    """`array` as the framework of `example` has it, sharing memory; as it is where that has no from_dlpack."""
    return converter(example)(array)


def converter(example: Any) -> Callable[[Any], Any]:
    """What makes arrays of the framework of `example`, sharing memory; they stay as they are where that cannot."""
    if isinstance(example, np.ndarray):
        return _same
    namespace = getattr(example, "__array_namespace__", None)
    module = namespace() if namespace else sys.modules.get(framework_of(example))
    from_dlpack: Callable[[Any], Any] = getattr(module, "from_dlpack", _same)
    return from_dlpack


def _same(array: Any) -> Any:
    return array
