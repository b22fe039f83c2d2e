"""What a thread keeps on a GPU for the sizes of a run: buffers, a library's context, and a CUDA graph of the whole run.

The first run of a slot is queued call by call; the second is captured, and from then on one launch replays it. All of a
slot's work is ordered: on the stream that it has, or on the caller's.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core
from finercam_rt.backends.device_block import ALIGNMENT, Block, Values
from finercam_rt.backends.protocol import RunTimes
from finercam_rt.backends.slots import BATCH_SIZES_KEPT
from finercam_rt.cuda import DEFAULT_STREAMS, Device, Event, Graph, Pinned, Stream
from finercam_rt.errors import BackendError, DeviceMemoryError

MEMORY_KEPT = 4 << 30
"""Bytes of the GPU that the slots of one thread keep at most, but for the one in use."""
_STAGED = 4
"""How many runs of device arrays may be queued before the host waits for the first of them."""

_logger = logging.getLogger("finercam_rt")


class Executor(Protocol):
    """A library's context for inputs of one shape."""

    @property
    def bytes(self) -> int:
        """Of the GPU's memory that it takes."""

    @property
    def rebindable(self) -> bool:
        """Whether an address may change from run to run, where runs are not captured here."""

    def bind(self, name: str, address: int) -> None:
        """Say where an input or output lies."""

    def enqueue(self, stream: int) -> None:
        """Queue a run on a stream, by its handle."""

    def capturable(self, stream: int) -> bool:
        """Whether its runs on this stream can become a CUDA graph."""

    def ran(self) -> None:
        """Called when the first run has been queued."""

    def close(self) -> None:
        """Give the memory back; its runs have ended."""


class DeviceSlot:
    """Everything for runs of one size by one thread.

    images, questions, embeddings: blocks of inputs. answers: the small outputs, and the map where it is drawn here.
    taps: the large outputs of head "taps".
    """

    def __init__(
        self,
        device: Device,
        executor: Executor,
        inputs: Values,
        outputs: Values,
        *,
        taps: Sequence[str],
        embeddings: str,
        draw: Callable[[DeviceSlot, Stream], None] | None,
        drawn: Values,
        graphs: bool,
    ) -> None:
        """Allocate and bind.

        Args:
            device: where.
            executor: runs the graph; it is closed with the slot.
            inputs, outputs: of the graph.
            taps: names of the outputs that few callers read.
            embeddings: name of the input that is the same for many runs.
            draw: queues what makes `drawn` from the outputs, behind a run.
            drawn: what else is answered.
            graphs: whether runs are captured.
        """
        self.device, self._executor, self._draw, self._graphs = device, executor, draw, graphs
        self._runs, self.no_graph = 0, "" if graphs else "they are turned off"
        self._graph: Graph | None = None
        self._open = False
        alone = ("images", embeddings)
        self.images = Block(device, {"images": inputs["images"]})
        self.questions = Block(device, {name: value for name, value in inputs.items() if name not in alone})
        self.embeddings = Block(device, {embeddings: inputs[embeddings]}) if embeddings in inputs else None
        small = {name: value for name, value in outputs.items() if name not in taps}
        self.answers = Block(device, {**small, **drawn})
        self.taps = Block(device, {name: outputs[name] for name in taps}) if taps else None
        for block in self._blocks():
            for name in block.values:
                if name in inputs or name in outputs:
                    executor.bind(name, block.address(name))
        self._images_at = self.images.address("images")
        self.stream: Stream = device.stream()
        self._done: Event = device.event()
        self._entered: Event = device.event()
        for block in (self.questions, self.images):  # rows that no image has filled must be finite
            self.stream.fill(block.memory.address, 0, block.bytes)
        self.stream.record(self._done)
        self._open = True
        self._last = self.stream.handle
        self._embedded: Any = None
        self._staging: list[tuple[Pinned, dict[str, NDArray[Any]], Event]] = []

    @property
    def bytes(self) -> int:
        """Of the GPU's memory."""
        return self._executor.bytes + sum(block.bytes for block in self._blocks())

    def run_host(
        self,
        feeds: Mapping[str, NDArray[Any]],
        download: Callable[[Stream], None],
        times: list[RunTimes] | None = None,
    ) -> None:
        """A run of arrays of the host. `download` queues the copies of what is wanted, which have ended on return.

        With `times`, those of the run are appended.
        """
        stream = self._enter(None)
        marks = [self.device.event(timing=True) for _ in range(4)] if times is not None else []
        images = self.images.host()["images"]
        np.copyto(images, feeds["images"])
        self._bind_images(self.images.address("images"))
        self._mark(stream, marks, 0)
        self.images.upload(stream)
        questions = self.questions.host()
        for name, values in questions.items():
            if (given := feeds.get(name)) is not None:
                values[...] = given
        self.questions.upload(stream)
        self._embed(feeds, stream)
        self._mark(stream, marks, 1)
        began = time.perf_counter()
        self._execute(stream)
        enqueue = 1e3 * (time.perf_counter() - began)
        self._mark(stream, marks, 2)
        download(stream)
        self._mark(stream, marks, 3)
        stream.record(self._done)
        stream.synchronize()
        if times is not None:
            spans = (later.milliseconds_since(earlier) for earlier, later in pairwise(marks))
            h2d, compute, d2h = spans
            times.append(RunTimes(h2d, compute, d2h, enqueue, None if self._graph is None else self._graph.nodes))

    def run_device(
        self,
        images: int,
        count: int,
        feeds: Mapping[str, NDArray[Any]],
        caller: int,
        collect: Callable[[Stream], None],
    ) -> Event:
        """A run of images that lie on the device, at an address; nothing waits for its end, which is the event.

        Args:
            images: the address of `count` images, contiguous.
            count: at most as many as the slot takes; what it computes for the rest is not looked at.
            feeds: the other inputs, of the host, with a row for each image that the slot takes.
            caller: handle of the stream on which the images were made and the results are read.
            collect: queues the copies of what is wanted.
        """
        stream = self._enter(caller)
        rows = self.images.values["images"][1][0]
        size = self.images.bytes_of("images") // rows * count
        if self.no_graph and self._executor.rebindable and images % ALIGNMENT == 0 and count == rows:
            self._bind_images(images)  # no copy; a graph would hold on to the address
        else:
            self._bind_images(self.images.address("images"))
            stream.copy(self.images.address("images"), images, size)
        staged = self._stage(feeds)
        stream.copy(self.questions.memory.address, staged[0].address, self.questions.bytes)
        stream.record(staged[2])
        self._embed(feeds, stream)
        self._execute(stream)
        collect(stream)
        stream.record(self._done)
        if caller in DEFAULT_STREAMS:
            self.device.stream(caller).wait(self._done)
        return self._done

    def __del__(self) -> None:
        """Of a thread that has ended, or of a closed engine; at the interpreter's end the driver takes all back."""
        if not sys.is_finalizing():
            self.close()

    def close(self) -> None:
        """Give everything back once its work has ended."""
        if not self._open:
            return
        self._open = False
        with suppress(_core.CudaError):  # of a GPU that is lost: there is nothing left to wait for
            self._done.synchronize()
            self.stream.synchronize()  # what a run that failed has left
        self._graph = None
        self._executor.close()
        for block in self._blocks():
            block.memory.release()

    def _blocks(self) -> list[Block]:
        blocks = (self.images, self.questions, self.embeddings, self.answers, self.taps)
        return [block for block in blocks if block is not None]

    def _enter(self, caller: int | None) -> Stream:
        """The stream to queue on, behind the caller's work and behind the slot's own."""
        if caller is None or caller in DEFAULT_STREAMS:
            stream = self.stream
            if caller is not None:  # libraries synchronise on a default stream, and it cannot be captured
                self.device.stream(caller).record(self._entered)
                stream.wait(self._entered)
        else:
            stream = self.device.stream(caller)
        if stream.handle != self._last:
            stream.wait(self._done)
            self._last = stream.handle
        return stream

    @staticmethod
    def _mark(stream: Stream, marks: Sequence[Event], index: int) -> None:
        if marks:
            stream.record(marks[index])

    def _bind_images(self, address: int) -> None:
        if address != self._images_at:
            self._executor.bind("images", address)
            self._images_at = address

    def _stage(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Pinned, dict[str, NDArray[Any]], Event]:
        """The small inputs in pinned memory whose last copy has ended."""
        if len(self._staging) < _STAGED:
            staged = (*self.questions.staged(), self.device.event())
        else:
            staged = self._staging.pop(0)
            staged[2].synchronize()
        self._staging.append(staged)
        for name, values in staged[1].items():
            if (given := feeds.get(name)) is not None:
                values[...] = given
        return staged

    def _embed(self, feeds: Mapping[str, NDArray[Any]], stream: Stream) -> None:
        if self.embeddings is None:
            return
        (name,) = self.embeddings.values
        if self._embedded is not feeds[name]:  # they are large, and the same ones for many runs
            self._done.synchronize()  # an earlier copy may still read the mirror
            np.copyto(self.embeddings.host()[name], feeds[name])
            self.embeddings.upload(stream)
            self._embedded = feeds[name]

    def _execute(self, stream: Stream) -> None:
        if self._runs == 1 and not self.no_graph:
            self._capture()
        if self._graph is not None:
            stream.launch(self._graph)
        else:
            self._queue(stream)
        if self._runs == 0:
            self._executor.ran()
        self._runs += 1

    def _queue(self, stream: Stream) -> None:
        self._executor.enqueue(stream.handle)
        if self._draw is not None:
            self._draw(self, stream)

    def _capture(self) -> None:
        """The graph of a run, where it can be had; else why not."""
        self._done.synchronize()  # the first run has set the library up
        if not self._executor.capturable(self.stream.handle):
            self.no_graph = "the library says that this plan's runs cannot be captured"
        else:
            try:
                self.stream.begin_capture()
                self._queue(self.stream)
                self._graph = self.stream.end_capture()
            except (_core.CudaError, _core.CudaMemoryError, BackendError) as error:
                self.stream.abandon_capture()
                if getattr(error, "fatal", False):
                    raise
                self.no_graph = " ".join(str(error).split())
        if self.no_graph:
            _logger.warning("runs are not captured in a CUDA graph, and take longer to queue: %s", self.no_graph)


class DeviceSlots(threading.local):
    """The calling thread's slots; the least recently used goes first, by number and by memory."""

    def __init__(self, limit: int = MEMORY_KEPT) -> None:
        """Called once for each thread that uses it."""
        self._slots: OrderedDict[Hashable, DeviceSlot] = OrderedDict()
        self._limit = limit

    def get(self, key: Hashable, make: Callable[[], DeviceSlot]) -> DeviceSlot:
        """The slot of this key, made where there is none; the others make room where memory is short."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._fitting(make)
            if slot is None:
                while self._slots:
                    self._drop()
                slot = make()
            self._slots[key] = slot
            while len(self._slots) > 1 and (len(self._slots) > BATCH_SIZES_KEPT or self._bytes() > self._limit):
                self._drop()
        self._slots.move_to_end(key)
        return slot

    def last(self, fits: Callable[[Any], bool], otherwise: Any) -> Any:
        """The key of the slot that was used last among those whose keys fit."""
        return next((key for key in reversed(self._slots) if fits(key)), otherwise)

    def _fitting(self, make: Callable[[], DeviceSlot]) -> DeviceSlot | None:
        """None where memory is short and the others could make room.

        A function of its own: while an error is handled, what had been allocated when it came is still held.
        """
        try:
            return make()
        except (_core.CudaMemoryError, DeviceMemoryError):
            if not self._slots:
                raise
            return None

    def _bytes(self) -> int:
        return sum(slot.bytes for slot in self._slots.values())

    def _drop(self) -> None:
        self._slots.popitem(last=False)[1].close()
