"""How the results of runs on a GPU lie in one piece of memory of the caller's."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.cuda import Device

_ALIGNMENT = 256


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Such as "float32"; NumPy makes it up each time, which is slower than all else here."""
    return dtype.name


class Piece(NamedTuple):
    """One result of N images: `shape` is that of an image; contrasts: whether its first axis is theirs."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    contrasts: bool


class ResultLayout:
    """Results of `count` images, one behind the other."""

    def __init__(self, pieces: Mapping[str, Piece], count: int) -> None:
        """In the order of `pieces`."""
        self._pieces, self._count, self._offsets, end = pieces, count, dict[str, int](), 0
        for name, piece in pieces.items():
            self._offsets[name] = end
            end += -(-self._bytes(piece) * count // _ALIGNMENT) * _ALIGNMENT
        self.bytes = max(end, _ALIGNMENT)
        self._arrays: dict[tuple[str, int | None], tuple[int, str, tuple[int, ...], tuple[int, ...]]] = {}

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._pieces)

    def has_contrasts(self, name: str) -> bool:
        """Whether contrasts are the second axis of a result."""
        return self._pieces[name].contrasts

    def span(self, name: str, start: int, count: int) -> tuple[int, int]:
        """Offset and size in bytes of the rows of `count` images, the first of them row `start`."""
        size = self._bytes(self._pieces[name])
        return self._offsets[name] + start * size, count * size

    def array(self, name: str, several: int | None = None) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
        """Offset in bytes, dtype, shape (N, ...) and strides in elements; `several` contrasts of those there are."""
        if (known := self._arrays.get((name, several))) is not None:
            return known
        piece = self._pieces[name]
        strides = [1]
        for size in reversed(piece.shape):
            strides.insert(0, strides[0] * size)
        shape: tuple[int, ...] = (self._count, *piece.shape)
        if several is not None:
            shape = (shape[0], several, *shape[2:])
        found = self._offsets[name], dtype_name(piece.dtype), shape, tuple(strides)
        self._arrays[name, several] = found
        return found

    def read(self, name: str, results: int, device: Device, caller: int) -> NDArray[Any]:
        """One of them as a NumPy array, from results at an address that are used on a stream; waits for it."""
        offset, dtype, shape, _ = self.array(name)
        size = self._bytes(self._pieces[name]) * self._count
        pinned, stream = device.pinned(size), device.stream(caller)
        stream.copy(pinned.address, results + offset, size)
        stream.synchronize()
        return pinned.array()[:size].view(dtype).reshape(shape).copy()

    @staticmethod
    def _bytes(piece: Piece) -> int:
        """Of one image."""
        return math.prod(piece.shape) * piece.dtype.itemsize
