"""What a runner asks of a CUDA device: memory, copies, streams, events and graphs.

The compiled module has all of it; the protocols are there so that tests can run a runner over a stand-in. Addresses and
sizes are in bytes. What fails raises _core.CudaError or _core.CudaMemoryError, which `as_backend_error` makes sentences
of. All but `Device` and `Memory` belong to one thread at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core
from finercam_rt.errors import BackendError, DeviceMemoryError, one_line

DEFAULT_STREAMS = (0, 1, 2)
"""Handles of the default streams: 0, CUDA's legacy one and the one of each thread. None of them can be captured."""


class Memory(Protocol):
    """Memory of the device, which goes with the object."""

    @property
    def address(self) -> int:
        """Where it begins, a multiple of 256."""

    @property
    def bytes(self) -> int:
        """Its size."""

    def view(self, dtype: str, shape: Sequence[int], offset: int = 0, strides: Sequence[int] | None = None) -> Any:
        """An array that kernels take and that shares it; offset in bytes, strides in elements."""

    def release(self) -> None:
        """Free it now."""


class Pinned(Protocol):
    """Memory of the host that the device copies from and to by itself."""

    @property
    def address(self) -> int:
        """Where it begins."""

    def array(self) -> NDArray[np.uint8]:
        """Its bytes."""


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Wait on the host until the stream has come there."""

    def done(self) -> bool:
        """Whether it has."""

    def milliseconds_since(self, earlier: Any) -> float:
        """Between two events with timing that are done."""


class Graph(Protocol):
    """Captured work, to be launched again and again; it holds the addresses that it was captured with."""

    @property
    def nodes(self) -> int:
        """How many kernels, copies and the like."""


class Stream(Protocol):
    """A queue of work."""

    @property
    def handle(self) -> int:
        """A cudaStream_t."""

    def copy(self, to: int, source: int, bytes: int) -> None:
        """Queue a copy, between the device and pinned memory in either direction or within the device."""

    def fill(self, to: int, value: int, bytes: int) -> None:
        """Queue writing one value to every byte."""

    def record(self, event: Any) -> None:
        """Queue an event."""

    def wait(self, event: Any) -> None:
        """Let later work wait for an event of another stream."""

    def launch(self, graph: Any) -> None:
        """Queue a graph."""

    def synchronize(self) -> None:
        """Wait on the host for all of it."""

    def begin_capture(self) -> None:
        """From here on what this thread queues becomes a graph, and does not run. Not of a default stream."""

    def end_capture(self) -> Graph:
        """The graph. The capture has ended even where this raises."""

    def abandon_capture(self) -> None:
        """End a capture for nothing, where there is one."""

    def capturing(self) -> bool:
        """Whether what is queued becomes a graph, of this thread or of another."""


class Copies(Protocol):
    """What is copied out of a run's buffers, and where to in its results: made once, and used for many runs."""


class Exchange(Protocol):
    """A run's inputs brought, its results taken away, and its place among the streams; see csrc/graph/exchange.h."""

    @property
    def stream(self) -> int:
        """The handle of its own stream, for runs of the host and of callers on a default stream."""

    def begin(self, images: int, images_at: int, image_bytes: int, questions: bytes | None, caller: int | None) -> int:
        """Queue the copies of the inputs; the handle of the stream on which the run is then queued.

        Args:
            images: their address.
            images_at: where the run reads them; 0 for where they are, and nothing is copied.
            image_bytes: their size.
            questions: the other inputs, as they lie on the device; None for those of the run before.
            caller: handle of the stream that made the images and will read the results; None for the host.
        """

    def end(self, copies: Any, results: int) -> None:
        """Queue the copies of the results to an address, and let the caller's stream wait for them."""

    def abandon(self) -> None:
        """In the place of `end`, of a run that could not be queued."""

    def replay(
        self,
        graph: Any,
        images: int,
        images_at: int,
        image_bytes: int,
        questions: bytes | None,
        caller: int | None,
        copies: Any,
        results: int,
    ) -> None:
        """`begin`, a launch and `end` in one call."""

    def replay_host(
        self,
        graph: Any,
        images: NDArray[np.float32],
        staging: Any,
        images_at: int,
        questions: bytes | None,
        copies: Any,
        mirror: Any,
        out: NDArray[np.uint8],
    ) -> None:
        """The same of arrays of the host, by way of two pinned ones, with the results in `out` on return."""

    def synchronize(self) -> None:
        """Wait on the host until the last run has ended."""


class Device(Protocol):
    """One GPU; any number of threads may use it."""

    @property
    def index(self) -> int:
        """Its number."""

    def memory(self, size: int) -> Memory:
        """Of the device, not initialised."""

    def pinned(self, size: int) -> Pinned:
        """Of the host, not initialised."""

    def stream(self, handle: int | None = None) -> Stream:
        """A new one, or the caller's by its handle, which must outlive it."""

    def event(self, timing: bool = False) -> Event:
        """A new one; timing: whether `milliseconds_since` is asked of it."""

    def exchange(self, questions: int, size: int) -> Exchange:
        """A new one, of runs that read their questions at this address."""

    def copies(self, copies: Sequence[tuple[int, int, int]]) -> Copies:
        """Of each the address, the offset in the results and the size."""

    def view(self, address: int, dtype: str, shape: Sequence[int]) -> Any:
        """An array that kernels take, over memory that the caller keeps alive."""

    def queue(self, stream: Any, kernel: Callable[[int], object]) -> None:
        """Queue what `kernel` queues when it is given the stream's handle."""

    def current(self) -> AbstractContextManager[None]:
        """Inside, it is the current device of this thread, for libraries that take that one.

        And captures of other threads do not hinder what is called there. See make_current in csrc/core/device.h.
        """


class CudaDevice:
    """The real one."""

    def __init__(self, index: int) -> None:
        """Of this number; there must be one, see `open_device`."""
        self.index = index

    def memory(self, size: int) -> Memory:
        """See Device.memory."""
        return _core.DeviceMemory(size, self.index)

    def pinned(self, size: int) -> Pinned:
        """See Device.pinned."""
        return _core.PinnedMemory(size, self.index)

    def stream(self, handle: int | None = None) -> Stream:
        """See Device.stream."""
        return _core.Stream(self.index, handle)

    def event(self, timing: bool = False) -> Event:
        """See Device.event."""
        return _core.Event(self.index, timing)

    def exchange(self, questions: int, size: int) -> Exchange:
        """See Device.exchange."""
        return _core.Exchange(self.index, questions, size)

    def copies(self, copies: Sequence[tuple[int, int, int]]) -> Copies:
        """See Device.copies."""
        return _core.ResultCopies(copies)

    def view(self, address: int, dtype: str, shape: Sequence[int]) -> Any:
        """See Device.view."""
        return _core.cuda_view(address, dtype, shape, self.index)

    def queue(self, stream: Stream, kernel: Callable[[int], object]) -> None:
        """See Device.queue."""
        kernel(stream.handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        """See Device.current."""
        former = _core.cuda_make_current(self.index)
        try:
            yield
        finally:
            _core.cuda_restore_current(*former)


def device_index(device: str) -> int | None:
    """The number in "cuda:1"; 0 of "cuda", None of what is no CUDA device."""
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    return None if match is None else int(match[1] or 0)


def open_device(device: str) -> Device:
    """The CUDA device that is called "cuda" or "cuda:N"; "auto" is the first.

    Raises:
        BackendError: there is none, or none of that number.
    """
    index = 0 if device == "auto" else device_index(device)
    if index is None:
        raise BackendError(f"the device is {device!r}, which is no CUDA device; give 'cuda' or 'cuda:N'.")
    devices, reason = _core.cuda_status()
    if not devices:
        raise BackendError(f"there is no CUDA device here ({reason}).")
    if index >= devices:
        raise BackendError(f"there is no device cuda:{index} here; the last one is cuda:{devices - 1}.")
    return CudaDevice(index)


def as_backend_error(error: Exception, during: str) -> BackendError:
    """A CUDA error as a sentence; `during` names the operation, such as "a run of 8 images"."""
    text = one_line(error).removeprefix("[cuda] ")
    size = getattr(error, "bytes", None)
    if size is not None:
        return DeviceMemoryError(
            f"the GPU's memory does not suffice for {during}: {size} bytes more were asked for ({text}); give fewer "
            "images a run, or free some.",
            size,
        )
    if getattr(error, "fatal", False):
        return BackendError(
            f"CUDA failed in {during} ({text}), and nothing of this process can use the GPU any more; start it again."
        )
    return BackendError(f"CUDA failed in {during} ({text}).")
