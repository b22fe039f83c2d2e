"""Photographs that become a GPU's inputs there: their bytes go to it as they are, and one launch resizes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import device_arrays, ops
from finercam_rt.backends.protocol import Filling
from finercam_rt.contrast import ContrastArrays
from finercam_rt.cuda import Device, Memory, Pinned, Stream
from finercam_rt.errors import InputError
from finercam_rt.images import ImageSource, load_photograph
from finercam_rt.ops import Frame
from finercam_rt.original import Original, original_of
from finercam_rt.outputs import Outputs
from finercam_rt.pixels import pixels_of, size_of
from finercam_rt.preprocess import Preprocessor

LARGEST = 32 << 20
"""Bytes of a photograph that goes to the GPU as it is; a larger one is cropped on the host, and its crop goes there."""
_ALIGNMENT = 256


class PixelMemory:
    """Memory for the photographs of a batch, which grows and is used again."""

    def __init__(self, device: Device) -> None:
        """Of a GPU, and of the host for copies to it."""
        self.device = device
        self._pinned: dict[str, tuple[Pinned, NDArray[np.uint8]]] = {}
        self._memory: dict[str, Memory] = {}

    def host(self, name: str, size: int) -> tuple[Pinned, NDArray[np.uint8]]:
        """Pinned memory of at least this size, with what it held before."""
        known = self._pinned.get(name)
        if known is None or len(known[1]) < size:
            pinned = self.device.pinned(_grown(size))
            values = pinned.array()
            if known is not None:
                values[: len(known[1])] = known[1]
            known = self._pinned[name] = pinned, values
        return known

    def there(self, name: str, size: int) -> Memory:
        """The GPU's, of at least this size; not initialised."""
        known = self._memory.get(name)
        if known is None or known.bytes < size:
            self._memory.pop(name, None)
            known = self._memory[name] = self.device.memory(_grown(size))
        return known


class _Free(threading.local):
    """A thread's memories that are not in use: there is more than one where a source of photographs explains others."""

    def __init__(self) -> None:
        """Called once for each thread that uses it."""
        self.memories: list[PixelMemory] = []


class PixelPool:
    """The memories that are not in use, of each thread its own."""

    def __init__(self, device: Device) -> None:
        """Of a GPU."""
        self.device = device
        self._free: _Free | None = _Free()

    def take(self) -> PixelMemory:
        """The one that this thread used last, or a new one."""
        free = self._free
        return free.memories.pop() if free is not None and free.memories else PixelMemory(self.device)

    def give(self, memory: PixelMemory) -> None:
        """Back; no run of it is under way."""
        free = self._free
        if free is not None:
            free.memories.append(memory)

    def close(self) -> None:
        """Give the memory of all threads back to the GPU, and what is in use as soon as it is not."""
        self._free = None


class _Photograph(NamedTuple):
    """Pixels (height,width,C): an offset in the staging memory, or an address on the GPU and the stream they are on."""

    size: tuple[int, int, int]
    frame: Frame
    offset: int
    address: int | None
    stream: int

    @property
    def end(self) -> int:
        """Where the next one may begin in the staging memory."""
        taken = math.prod(self.size) if self.address is None else 0
        return self.offset + -(-taken // _ALIGNMENT) * _ALIGNMENT


class DeviceInputs:
    """The photographs of a batch as uint8, in the thread's memory until they are run."""

    def __init__(
        self,
        preprocess: Preprocessor,
        pool: PixelPool,
        run: Callable[[Filling, ContrastArrays], Outputs],
    ) -> None:
        """`run`: of images and as many contrasts."""
        self._preprocess, self._pool, self._run = preprocess, pool, run
        self._memory = pool.take()
        self._rows: list[_Photograph] = []
        self._scratch: NDArray[np.float32] = np.empty(preprocess.spec.shape, np.float32)

    def __del__(self) -> None:
        """Its memory serves the next ones."""
        self._pool.give(self._memory)

    def put(self, source: ImageSource, position: int, row: int, view: NDArray[np.uint8], name: str) -> Original:
        """See Inputs.put."""
        del self._rows[row:]
        if device_arrays.device_of(source) is not None:
            return self._put_there(source, position, name)
        photograph = load_photograph(source, position, self._preprocess.spec.channels)
        image = photograph.image
        size = size_of(image)
        if self._fits(size):
            frame = self._preprocess.frame(size, name)
            geometry = self._preprocess.geometry(size, frame)
            self._stage(pixels_of(image), frame)
        else:
            geometry = self._preprocess(image, self._scratch, view, name)
            self._stage(view, Frame(self._preprocess.spec.size, 0, 0))
        return original_of(photograph, position, geometry)

    def run(self, contrast: ContrastArrays, views: NDArray[np.uint8]) -> Outputs:
        """See RunInputs.run."""
        crops = _Crops(self._preprocess, self._memory, self._rows[: len(views)])
        outputs = self._run(crops, contrast)
        views[...] = crops.views()
        return outputs

    def _fits(self, size: tuple[int, int]) -> bool:
        """Whether the kernel resizes a photograph of this size."""
        return (
            self._preprocess.spec.interpolation in ops.INTERPOLATIONS
            and self._preprocess.spec.channels * size[0] * size[1] <= LARGEST
        )

    def _stage(self, pixels: NDArray[np.uint8], frame: Frame) -> None:
        """Copy: an iterator may give the same array again with other pixels."""
        start = max((row.end for row in self._rows), default=0)
        _, staged = self._memory.host("pixels", start + pixels.nbytes + _ALIGNMENT)
        staged[start : start + pixels.nbytes] = pixels.reshape(-1)
        self._rows.append(_Photograph(pixels.shape, frame, start, None, 0))

    def _put_there(self, source: Any, position: int, name: str) -> Original:
        where, device = device_arrays.device_of(source), self._memory.device
        if where not in (device.index, device_arrays.UNSAID):
            raise InputError(
                f"{name} lies on cuda:{where}, and the engine computes on cuda:{device.index}; move it there."
            )
        found = device_arrays.read(source, name)
        channels = self._preprocess.spec.channels
        if found.dtype != "uint8" or len(found.shape) != 3 or found.shape[2] != channels or 0 in found.shape:
            raise InputError(
                f"{name} is an array of {found.dtype} of shape {found.shape} on the GPU; give uint8 (H,W,{channels}) "
                "there, or a normalised batch to engine(batch)."
            )
        if not found.contiguous:
            raise InputError(
                f"{name} is not contiguous in the order (H,W,{channels}); make it so, as with .contiguous()."
            )
        interpolation = self._preprocess.spec.interpolation
        if interpolation not in ops.INTERPOLATIONS:
            raise InputError(
                f"{name} lies on the GPU, and the engine resizes by {interpolation}, which is done on the host; give a "
                "NumPy array."
            )
        size = found.shape[0], found.shape[1]
        frame = self._preprocess.frame(size, name)
        stream = device_arrays.stream_of(source, found, None)
        self._rows.append(_Photograph((*size, channels), frame, 0, found.address, stream))
        return Original(source, position, self._preprocess.geometry(size, frame), 1, channels, None)


class _Crops:
    """Photographs of one run, or of a part of it: what makes the images, and the views of it; see `Filling`."""

    def __init__(
        self, preprocess: Preprocessor, memory: PixelMemory, rows: list[_Photograph], start: int = 0, total: int = 0
    ) -> None:
        self._preprocess, self._memory, self._rows, self._start = preprocess, memory, rows, start
        self._total = total or len(rows)
        self._crop = math.prod(preprocess.spec.view_shape)
        self._mirror = memory.host("views", self._total * self._crop)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> _Crops:
        first = rows.indices(len(self._rows))[0]
        return _Crops(self._preprocess, self._memory, self._rows[rows], first, self._total)

    def views(self) -> NDArray[np.uint8]:
        """(N,H,W,C) uint8, what the model sees; of runs that have ended."""
        return self._mirror[1][: self._total * self._crop].reshape(-1, *self._preprocess.spec.view_shape)

    def fill(self, stream: Stream, images: int) -> None:
        """Queue the copy of the bytes, the one launch, and the copy of the crops back."""
        device, spec, count = self._memory.device, self._preprocess.spec, len(self._rows)
        addresses = self._brought(stream)
        taken = [device.view(address, "uint8", row.size) for address, row in zip(addresses, self._rows, strict=True)]
        seen = self._memory.there("views", self._total * self._crop).address
        view = device.view(seen, "uint8", (count, *spec.view_shape))
        out = device.view(images, "float32", (count, *spec.shape))
        frames = [row.frame for row in self._rows]
        # what the host has cropped needs no filter, and its interpolation may be one that the kernel does not have
        interpolation = spec.interpolation if spec.interpolation in ops.INTERPOLATIONS else ops.INTERPOLATIONS[0]

        def queue(handle: int) -> None:
            ops.preprocess(
                taken,
                frames,
                spec.size,
                mean=spec.mean,
                std=spec.std,
                interpolation=interpolation,
                fill=self._preprocess.fill,
                out=out,
                view=view,
                stream=handle,
            )

        device.queue(stream, queue)
        to = self._mirror[0].address + self._start * self._crop
        stream.copy(to, seen, count * self._crop)

    def _brought(self, stream: Stream) -> list[int]:
        """Where each photograph lies on the GPU."""
        device = self._memory.device
        staged = [row for row in self._rows if row.address is None]
        base = first = 0
        if staged:
            first = staged[0].offset
            size = staged[-1].end - first
            base = self._memory.there("pixels", size).address
            stream.copy(base, self._memory.host("pixels", staged[-1].end)[0].address + first, size)
        for handle in {row.stream for row in self._rows if row.address is not None}:
            made = device.event()
            device.stream(handle).record(made)
            stream.wait(made)
        return [base + row.offset - first if row.address is None else row.address for row in self._rows]


def _grown(size: int) -> int:
    """With room for somewhat larger ones."""
    return size + size // 2
