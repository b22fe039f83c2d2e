"""How the results of runs on a GPU lie in one piece of memory, of the caller's or of the host's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.cuda import Device

ALIGNMENT = 256
"""Of every array, in bytes: what TensorRT asks for. Buffers and results have the same, so that one copy takes many."""


class Piece(NamedTuple):
    """One result of N images: `shape` is that of an image; contrasts: whether its first axis is theirs."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    contrasts: bool


class Place(NamedTuple):
    """Where a result lies, and as what: `offset` and `strides` in bytes, `start` and `steps` the same in elements.

    whole: its shape with all contrasts.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    start: int
    steps: tuple[int, ...]
    whole: tuple[int, ...]


class ResultLayout:
    """Results of `count` images, one behind the other."""

    def __init__(self, pieces: Mapping[str, Piece], count: int) -> None:
        """In the order of `pieces`."""
        self.count = count
        self._pieces, self._offsets, end = pieces, dict[str, int](), 0
        for name, piece in pieces.items():
            self._offsets[name] = end
            end += max(1, -(-self._bytes(piece) * count // ALIGNMENT)) * ALIGNMENT
        self.bytes = max(end, ALIGNMENT)
        self._places: dict[int | None, tuple[Place, ...]] = {}

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._pieces)

    def span(self, name: str, start: int, count: int) -> tuple[int, int]:
        """Offset and size in bytes of the rows of `count` images, the first of them row `start`."""
        size = self._bytes(self._pieces[name])
        return self._offsets[name] + start * size, count * size

    def places(self, several: int | None = None) -> tuple[Place, ...]:
        """Of all, with shapes (N, ...); `several` contrasts of those there are."""
        known = self._places.get(several)
        if known is None:
            known = self._places[several] = tuple(self._place(name, several) for name in self._pieces)
        return known

    def arrays(self, results: NDArray[np.uint8], several: int | None = None) -> dict[str, NDArray[Any]]:
        """All of them by name, contiguous, where the results lie in an array of the host."""
        found = {
            place.name: np.ndarray(place.shape, place.dtype, results, place.offset, place.strides)
            for place in self.places(several)
        }
        return found if several is None else {name: np.ascontiguousarray(values) for name, values in found.items()}

    def read(self, name: str, results: int, device: Device, caller: int) -> NDArray[Any]:
        """One of them as a NumPy array, from results at an address that are used on a stream; waits for it."""
        offset, size = self.span(name, 0, self.count)
        pinned, stream = device.pinned(size), device.stream(caller)
        stream.copy(pinned.address, results + offset, size)
        stream.synchronize()
        piece = self._pieces[name]
        return pinned.array()[:size].view(piece.dtype).reshape(self.count, *piece.shape).copy()

    def _place(self, name: str, several: int | None) -> Place:
        piece = self._pieces[name]
        steps = [1]
        for size in reversed(piece.shape):
            steps.insert(0, steps[0] * size)
        shape = whole = (self.count, *piece.shape)
        if several is not None and piece.contrasts:
            shape = (shape[0], several, *shape[2:])
        offset, item = self._offsets[name], piece.dtype.itemsize
        strides = tuple(step * item for step in steps)
        return Place(name, piece.dtype, shape, offset, strides, offset // item, tuple(steps), whole)

    @staticmethod
    def _bytes(piece: Piece) -> int:
        """Of one image."""
        return math.prod(piece.shape) * piece.dtype.itemsize
