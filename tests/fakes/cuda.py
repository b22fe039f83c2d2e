"""A CUDA device over the host's memory, for runners (finercam_rt/cuda.py) where there is no GPU.

It is as lazy as it may be: what is queued on a stream is done when something waits for it, and not before; another
stream's work is done when an event that was waited for asks for it. Memory is not initialised but with rubbish, and
rubbish again once it is freed. So a copy, an order of streams or a synchronisation that is missing gives a wrong
result, and an address that is stale ends the device, as on a GPU. A captured graph is done anew at every launch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from finercam_rt import _core
from finercam_rt.cuda import DEFAULT_STREAMS

_ALIGNMENT = 256
Work = Callable[[], None]


def cuda_error(message: str, *, fatal: bool = False) -> _core.CudaError:
    error = _core.CudaError(f"[cuda] {message}")
    error.fatal = fatal
    return error


def memory_error(size: int) -> _core.CudaMemoryError:
    error = _core.CudaMemoryError(f"[cuda] allocating {size} bytes of cuda:0 failed: out of memory")
    error.bytes = size
    return error


class FakeMemory:
    """Of the device, or of the host where `pinned`."""

    def __init__(self, device: FakeDevice, size: int, pinned: bool) -> None:
        self._device, self.bytes, self.pinned = device, size, pinned
        raw = np.full(size + _ALIGNMENT, 0xCD, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.raw = raw[start : start + size]
        self.address = self.raw.ctypes.data
        device.live[self.address] = self.raw
        device.taken += 0 if pinned else size

    def view(self, dtype: str, shape: Any, offset: int = 0, strides: Any = None) -> np.ndarray:
        item = np.dtype(dtype).itemsize
        steps = None if strides is None else tuple(item * step for step in strides)
        return np.ndarray(tuple(shape), dtype, self.raw.data, offset, steps)

    def array(self) -> np.ndarray:
        return self.raw

    def release(self) -> None:
        if self._device.live.pop(self.address, None) is not None:
            self.raw[:] = 0xDD
            self._device.taken -= 0 if self.pinned else self.bytes

    def __del__(self) -> None:
        """As cudaFree does, it waits. `release` does not, so that those who call it must have."""
        if self.address in self._device.live and self._device.lost is None:
            for stream in list(self._device.streams.values()):
                stream.drain(len(stream._work))
        self.release()


class FakeEvent:
    def __init__(self, device: FakeDevice, timing: bool) -> None:
        self._device, self._timing = device, timing
        self.at: tuple[FakeStream, int] | None = None
        self.time: int | None = None

    def synchronize(self) -> None:
        self._device.check()
        if self.at is not None:
            self.at[0].drain(self.at[1])

    def done(self) -> bool:
        return self.at is None or self.at[0].ended >= self.at[1]

    def milliseconds_since(self, earlier: FakeEvent) -> float:
        assert self._timing
        assert earlier._timing
        assert self.time is not None, "it is not done"
        assert earlier.time is not None
        return float(self.time - earlier.time)


class FakeGraph:
    def __init__(self, work: list[Work]) -> None:
        self.work, self.launches = work, 0

    @property
    def nodes(self) -> int:
        return len(self.work)


class FakeStream:
    def __init__(self, device: FakeDevice, handle: int) -> None:
        self._device, self.handle = device, handle
        self._work: list[Work | None] = []
        self.ended = 0
        self.captured: list[Work] | None = None
        self._spoilt = False

    def put(self, work: Work) -> None:
        self._device.check()
        (self._work if self.captured is None else self.captured).append(work)

    def drain(self, upto: int) -> None:
        with self._device.lock:
            while self.ended < upto:
                work, self._work[self.ended] = self._work[self.ended], None
                self.ended += 1
                self._device.clock += 1
                if work is not None:
                    work()

    def copy(self, to: int, source: int, bytes: int) -> None:
        device = self._device

        def work() -> None:
            device.at(to, bytes)[:] = device.at(source, bytes)

        device.log("copy", bytes)
        self.put(work)

    def fill(self, to: int, value: int, bytes: int) -> None:
        self.put(lambda: self._device.at(to, bytes).fill(value))

    def record(self, event: FakeEvent) -> None:
        assert self.captured is None, "no event of ours belongs into a graph"

        def work() -> None:
            event.time = self._device.clock

        self.put(work)
        event.at = (self, len(self._work))

    def wait(self, event: FakeEvent) -> None:
        assert self.captured is None, "no event of ours belongs into a graph"
        if event.at is not None:
            stream, position = event.at
            self.put(lambda: stream.drain(position))

    def launch(self, graph: FakeGraph) -> None:
        def work() -> None:
            for part in graph.work:
                part()

        graph.launches += 1
        self._device.log("launch", graph.nodes)
        self.put(work)

    def synchronize(self) -> None:
        self._device.check()
        if self.captured is not None:
            self._spoilt = True
            raise cuda_error("waiting failed: operation not permitted when stream is capturing")
        self.drain(len(self._work))

    def begin_capture(self) -> None:
        assert self.captured is None
        if self.handle in DEFAULT_STREAMS:
            raise cuda_error("beginning to capture failed: operation not permitted")
        self._device.log("capture", 0)
        self.captured, self._spoilt = [], self._device.refuses_captures

    def end_capture(self) -> FakeGraph:
        assert self.captured is not None
        work, self.captured = self.captured, None
        if self._spoilt:
            raise cuda_error("capturing a graph on cuda:0 failed: operation failed due to a previous error")
        graph = FakeGraph(work)
        self._device.graphs.append(graph)
        return graph

    def abandon_capture(self) -> None:
        self.captured = None

    def capturing(self) -> bool:
        return self.captured is not None


class FakeCopies:
    def __init__(self, copies: Sequence[tuple[int, int, int]]) -> None:
        self.all = list(copies)


class FakeExchange:
    """As csrc/graph/exchange.cpp, which tests/runtime/test_exchange.py holds to the same order of calls."""

    STAGED = 4

    def __init__(self, device: FakeDevice, questions: int, size: int) -> None:
        self._device, self._questions = device, questions
        self._own, self._done, self._entered = device.stream(), device.event(), device.event()
        self._staged = [(device.pinned(size), device.event()) for _ in range(self.STAGED)]
        self._asked, self._answered, self._next = bytes(size), False, 0
        self._caller: int | None = None
        self._on, self._begun = self._own, False
        self._own.record(self._done)

    @property
    def stream(self) -> int:
        return self._own.handle

    def begin(self, images: int, images_at: int, image_bytes: int, questions: bytes | None, caller: int | None) -> int:
        self._begun = False
        if caller in DEFAULT_STREAMS:
            self._device.stream(caller).record(self._entered)
            self._own.wait(self._entered)
        on = self._own if caller is None or caller in DEFAULT_STREAMS else self._device.stream(caller)
        if on is not self._on:
            on.wait(self._done)
        self._caller, self._on, self._begun = caller, on, True
        if images_at:
            on.copy(images_at, images, image_bytes)
        if questions is not None and questions != self._asked:
            assert len(questions) == len(self._asked)
            self._asked, self._answered = questions, False
        if not self._answered:
            memory, read = self._staged[self._next]
            self._next = (self._next + 1) % self.STAGED
            read.synchronize()
            memory.raw[:] = np.frombuffer(self._asked, np.uint8)
            on.copy(self._questions, memory.address, len(self._asked))
            on.record(read)
            self._answered = True
        return on.handle

    def end(self, copies: FakeCopies, results: int) -> None:
        for source, to, size in copies.all:
            self._on.copy(results + to, source, size)
        self._on.record(self._done)
        if self._caller in DEFAULT_STREAMS:
            self._device.stream(self._caller).wait(self._done)

    def abandon(self) -> None:
        self._answered = False
        if self._begun and self._device.lost is None:
            self._on.record(self._done)

    def replay(
        self,
        graph: FakeGraph,
        images: int,
        images_at: int,
        image_bytes: int,
        questions: bytes | None,
        caller: int | None,
        copies: FakeCopies,
        results: int,
    ) -> None:
        self._device.log("replay", 0)
        try:
            self.begin(images, images_at, image_bytes, questions, caller)
            self._on.launch(graph)
            self.end(copies, results)
        except BaseException:
            self.abandon()
            raise

    def replay_host(
        self,
        graph: FakeGraph,
        images: np.ndarray,
        staging: FakeMemory,
        images_at: int,
        questions: bytes | None,
        copies: FakeCopies,
        mirror: FakeMemory,
        out: np.ndarray,
    ) -> None:
        assert images.flags.c_contiguous
        assert images.dtype == np.float32
        staging.raw[: images.nbytes] = images.reshape(-1).view(np.uint8)
        self.replay(graph, staging.address, images_at, images.nbytes, questions, None, copies, mirror.address)
        self.synchronize()
        out[:] = mirror.raw[: len(out)]

    def synchronize(self) -> None:
        self._done.synchronize()


class FakeDevice:
    """limit: bytes of its memory. refuses_captures: every capture fails at its end. journal: what was asked for."""

    index = 0

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clock = 0
        self.limit: int | None = None
        self.taken = 0  # bytes of the device alone
        self.refuses_captures = False
        self.lost: Exception | None = None
        self.live: dict[int, np.ndarray] = {}
        self.journal: list[tuple[str, int]] = []
        self.graphs: list[FakeGraph] = []
        self.streams = {handle: FakeStream(self, handle) for handle in DEFAULT_STREAMS}
        self._current = threading.local()

    def log(self, what: str, size: int) -> None:
        self.journal.append((what, size))

    def count(self, what: str) -> int:
        return sum(1 for name, _ in self.journal if name == what)

    def check(self) -> None:
        if self.lost is not None:
            raise self.lost

    def at(self, address: int, size: int) -> np.ndarray:
        """The bytes there; an address that is nobody's ends the device."""
        for start, raw in list(self.live.items()):
            if start <= address and address + size <= start + len(raw):
                return raw[address - start : address - start + size]
        self.lost = cuda_error("copying failed: an illegal memory access was encountered", fatal=True)
        raise self.lost

    def used(self) -> int:
        """Bytes of the device and of the host."""
        return sum(len(raw) for raw in self.live.values())

    def memory(self, size: int) -> FakeMemory:
        self.check()
        if self.limit is not None and self.taken + size > self.limit:
            raise memory_error(size)  # of no variable here, whose frame the error would then hold
        self.log("memory", size)
        return FakeMemory(self, size, pinned=False)

    def pinned(self, size: int) -> FakeMemory:
        self.log("pinned", size)
        return FakeMemory(self, size, pinned=True)

    def stream(self, handle: int | None = None) -> FakeStream:
        self.check()
        if handle is None:
            handle = 0x1000 + 16 * len(self.streams)
            self.streams[handle] = FakeStream(self, handle)
        return self.streams[handle]

    def event(self, timing: bool = False) -> FakeEvent:
        self.check()
        return FakeEvent(self, timing)

    def exchange(self, questions: int, size: int) -> FakeExchange:
        return FakeExchange(self, questions, size)

    def copies(self, copies: Sequence[tuple[int, int, int]]) -> FakeCopies:
        return FakeCopies(copies)

    def queue(self, stream: FakeStream, kernel: Callable[[int], object]) -> None:
        self.log("kernel", 0)

        def work() -> None:
            kernel(stream.handle)

        stream.put(work)

    def view(self, address: int, dtype: str, shape: Any) -> np.ndarray:
        return self.at(address, int(np.prod(shape)) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)

    @contextmanager
    def current(self) -> Iterator[None]:
        former, self._current.on = getattr(self._current, "on", False), True
        try:
            yield
        finally:
            self._current.on = former

    def is_current(self) -> bool:
        return getattr(self._current, "on", False)
