"""What a thread keeps on a GPU for the sizes of a run: buffers, a library's context, and a CUDA graph of the whole run.

The first run of a slot is queued call by call; the second is captured, and from then on one call replays it. All of a
slot's work is ordered: on the stream that it has, or on the caller's.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core
from finercam_rt.backends.device_block import Block, Values
from finercam_rt.backends.device_results import ALIGNMENT, ResultLayout
from finercam_rt.backends.protocol import Filling, HostImages, RunTimes
from finercam_rt.contrast import ContrastArrays
from finercam_rt.cuda import Copies, Device, Event, Exchange, Graph, Pinned, Stream
from finercam_rt.errors import BackendError

_LAYOUTS_KEPT = 64

_logger = logging.getLogger("finercam_rt")


class Executor(Protocol):
    """A library's context for inputs of one shape."""

    @property
    def bytes(self) -> int:
        """Of the GPU's memory that it takes."""

    @property
    def rebindable(self) -> bool:
        """Whether an address may change from run to run, where runs are not captured here."""

    @property
    def captures(self) -> bool:
        """Whether CUDA graphs of its runs are the library's own affair; what comes behind is then captured alone."""

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

    images, embeddings: blocks of inputs. values: the other inputs, which are the questions, and behind them the small
    outputs and what is made of the outputs here. taps: the large outputs of head "taps".
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
        behind: Callable[[DeviceSlot, Stream, int], None],
        made: Values,
        graphs: bool,
    ) -> None:
        """Allocate and bind.

        Args:
            device: where.
            executor: runs the graph; it is closed with the slot.
            inputs, outputs: of the graph.
            taps: names of the outputs that few callers read.
            embeddings: name of the input that is the same for many runs.
            behind: queues what makes `made` from the outputs and the images at an address, behind a run.
            made: what else is answered.
            graphs: whether runs are captured.
        """
        self.device, self._executor, self._behind = device, executor, behind
        self._runs, self.no_graph = 0, "" if graphs else "they are turned off"
        self._graph: Graph | None = None
        self._open = False
        alone = ("images", embeddings)
        questions = {name: value for name, value in inputs.items() if name not in alone}
        small = {name: value for name, value in outputs.items() if name not in taps}
        self.images = Block(device, {"images": inputs["images"]})
        self.values = Block(device, {**questions, **small, **made})
        self.embeddings = Block(device, {embeddings: inputs[embeddings]}) if embeddings in inputs else None
        self.taps = Block(device, {name: outputs[name] for name in taps}) if taps else None
        for block in self._blocks():
            for name in block.values:
                if name in inputs or name in outputs:
                    executor.bind(name, block.address(name))
        self.rows = inputs["images"][1][0]
        self._images_at = self._images = self.images.address("images")
        self._image_bytes = self.images.bytes_of("images") // self.rows
        self._spans = [self.values.span_of(name) for name in questions]
        self._exchange: Exchange = device.exchange(self.values.memory.address, sum(self._spans))
        self.stream: Stream = device.stream(self._exchange.stream)
        self.stream.fill(self.images.memory.address, 0, self.images.bytes)  # rows that no image fills must be finite
        self.stream.synchronize()  # the first run may be on another
        self._open = True
        self._asked: ContrastArrays | None = None
        self._embedded: Any = None
        self._embeddings_staging: tuple[Pinned, NDArray[np.uint8]] | None = None
        self._copies: dict[tuple[ResultLayout, int, int], Copies] = {}
        self._staging: tuple[Pinned, NDArray[np.uint8]] | None = None
        self._mirror: tuple[Pinned, NDArray[np.uint8]] | None = None

    @property
    def total_bytes(self) -> int:
        """Of the GPU's memory."""
        return self._executor.bytes + sum(block.bytes for block in self._blocks())

    def run_host(
        self,
        images: HostImages,
        contrast: ContrastArrays | None,
        embeddings: NDArray[np.float32] | None,
        layout: ResultLayout,
        times: list[RunTimes] | None = None,
    ) -> NDArray[np.uint8]:
        """A run of images of the host: its results as they lie in `layout`, in new memory.

        Args:
            images: contiguous, or what makes them; at most as many as the slot takes. What it computes for the rest is
                not looked at.
            contrast: of as many images, in the graph's dtypes and shapes; None where it does not matter.
            embeddings: where they are an input; taken for the same ones while they are the same object.
            layout: of as many images.
            times: those of the run are appended.
        """
        if self._mirror is None or len(self._mirror[1]) < layout.bytes:
            self._mirror = self._pinned(layout.bytes)
        mirror, mirrored = self._mirror
        copies = self._copies_of(layout, 0, len(images))
        out: NDArray[np.uint8] = np.empty(layout.bytes, np.uint8)
        staging, size, filling = 0, 0, None
        if isinstance(images, np.ndarray):
            pinned, staged = self._staging = self._staging or self._pinned(self.images.bytes)
            if times is None and self._replays(embeddings):
                questions, self._asked = self._questions(contrast), None
                self._exchange.replay_host(self._graph, images, pinned, self._images, questions, copies, mirror, out)
                self._asked = contrast
                return out
            staging, size = pinned.address, images.nbytes
            staged[:size] = images.reshape(-1).view(np.uint8)
        else:
            filling = images
        marks = [self.device.event(timing=True) for _ in range(4)] if times is not None else []
        enqueue = self._step_by_step(
            staging, self._images, size, contrast, embeddings, None, copies, mirror.address, marks, filling
        )
        self._exchange.synchronize()
        out[...] = mirrored[: layout.bytes]
        if times is not None:
            self.stream.synchronize()
            h2d, compute, d2h = (later.milliseconds_since(earlier) for earlier, later in pairwise(marks))
            nodes = None if self._graph is None or self._executor.captures else self._graph.nodes
            times.append(RunTimes(h2d, compute, d2h, enqueue, nodes))
        return out

    def run_device(
        self,
        images: int,
        count: int,
        contrast: ContrastArrays | None,
        embeddings: NDArray[np.float32] | None,
        caller: int,
        layout: ResultLayout,
        start: int,
        results: int,
    ) -> None:
        """A run of `count` images that lie on the device, at an address; nothing waits for its end.

        Args:
            images, count: contiguous; see `run_host`.
            contrast, embeddings: see `run_host`.
            caller: handle of the stream on which the images were made and the results are read.
            layout, start: the results begin with row `start` of it.
            results: its address.
        """
        copies = self._copies_of(layout, start, count)
        size = count * self._image_bytes
        if self._replays(embeddings):
            questions, self._asked = self._questions(contrast), None
            self._exchange.replay(self._graph, images, self._images, size, questions, caller, copies, results)
            self._asked = contrast
            return
        # a graph would hold on to the address
        in_place = self.no_graph and self._executor.rebindable and images % ALIGNMENT == 0 and count == self.rows
        at = 0 if in_place else self._images
        self._step_by_step(images, at, size, contrast, embeddings, caller, copies, results, ())

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
            self._exchange.synchronize()
            self.stream.synchronize()  # what a run that failed has left
        self._graph = None
        self._executor.close()
        for block in self._blocks():
            block.memory.release()

    def _blocks(self) -> list[Block]:
        blocks = (self.images, self.values, self.embeddings, self.taps)
        return [block for block in blocks if block is not None]

    def _pinned(self, size: int) -> tuple[Pinned, NDArray[np.uint8]]:
        pinned = self.device.pinned(size)
        return pinned, pinned.array()

    def _replays(self, embeddings: Any) -> bool:
        """Whether the whole run is one graph, and the device has these embeddings."""
        return self._graph is not None and not self._executor.captures and embeddings is self._embedded

    def _questions(self, contrast: ContrastArrays | None) -> bytes | None:
        """As they lie on the device, zeros behind them; None for those that were asked last."""
        if contrast is None or contrast is self._asked:
            return None
        asked: Sequence[NDArray[Any]] = contrast
        return b"".join(values.tobytes().ljust(span, b"\0") for values, span in zip(asked, self._spans, strict=True))

    def _copies_of(self, layout: ResultLayout, start: int, count: int) -> Copies:
        """From the buffers to the rows of the results from `start` on, in as few copies as there can be."""
        key = layout, start, count
        if (known := self._copies.get(key)) is not None:
            return known
        if len(self._copies) >= _LAYOUTS_KEPT:
            self._copies.clear()
        joined: list[tuple[int, int, int]] = []
        last: Block | None = None
        for name in layout:
            block = next(b for b in (self.values, self.taps) if b is not None and name in b.values)
            source, (to, size) = block.address(name), layout.span(name, start, count)
            if joined and block is last and count == layout.count:  # what aligns the two may be copied along
                before, offset, length = joined[-1]
                if source - before == to - offset and 0 <= to - offset - length < ALIGNMENT:
                    joined[-1] = before, offset, to - offset + size
                    continue
            joined.append((source, to, size))
            last = block
        found = self._copies[key] = self.device.copies(joined)
        return found

    def _bind_images(self, address: int) -> None:
        if address != self._images_at:
            self._executor.bind("images", address)
            self._images_at = address

    def _step_by_step(
        self,
        images: int,
        at: int,
        size: int,
        contrast: ContrastArrays | None,
        embeddings: NDArray[np.float32] | None,
        caller: int | None,
        copies: Copies,
        results: int,
        marks: Sequence[Event],
        filling: Filling | None = None,
    ) -> float:
        """A run that is not replayed. Milliseconds that queueing its compute took.

        `at` is where the images are copied to, or made by `filling`; 0 for not at all. `marks`, of a run of the host,
        are put before and behind the copies.
        """
        questions, self._asked = self._questions(contrast), None
        self._bind_images(at or images)
        if marks:
            self.stream.record(marks[0])
        handle = self._exchange.begin(images, at if filling is None else 0, size, questions, caller)
        try:
            stream = self.stream if handle == self.stream.handle else self.device.stream(handle)
            if filling is not None:
                filling.fill(stream, at)
            self._embed(embeddings, stream)
            if marks:
                stream.record(marks[1])
            began = time.perf_counter()
            self._execute(stream, at or images)
            enqueue = 1e3 * (time.perf_counter() - began)
            if marks:
                stream.record(marks[2])
            self._exchange.end(copies, results)
            if marks:
                stream.record(marks[3])
        except BaseException:
            self._exchange.abandon()
            if caller is None:
                with suppress(_core.CudaError):  # the host will write to what is copied
                    self._exchange.synchronize()
            raise
        self._asked = contrast
        return enqueue

    def _embed(self, embeddings: NDArray[np.float32] | None, stream: Stream) -> None:
        if self.embeddings is None or embeddings is None or embeddings is self._embedded:
            return  # they are large, and the same ones for many runs
        staging, staged = self._embeddings_staging = self._embeddings_staging or self._pinned(self.embeddings.bytes)
        self._exchange.synchronize()  # an earlier copy may still read it
        staged[: embeddings.nbytes] = np.ascontiguousarray(embeddings).reshape(-1).view(np.uint8)
        self._embedded = None
        stream.copy(self.embeddings.memory.address, staging.address, embeddings.nbytes)
        self._embedded = embeddings

    def _execute(self, stream: Stream, images: int) -> None:
        if self._runs == 1 and not self.no_graph:
            self._capture(images)
        if self._graph is None:
            self._queue(stream, images)
        else:
            if self._executor.captures:
                self._executor.enqueue(stream.handle)
            stream.launch(self._graph)
        if self._runs == 0:
            self._executor.ran()
        self._runs += 1

    def _queue(self, stream: Stream, images: int) -> None:
        self._executor.enqueue(stream.handle)
        self._behind(self, stream, images)

    def _capture(self, images: int) -> None:
        """The graph of a run, where it can be had; else why not."""
        self._exchange.synchronize()  # the first run has set the library up
        if not self._executor.captures and not self._executor.capturable(self.stream.handle):
            self.no_graph = "the library says that this plan's runs cannot be captured"
        else:
            try:
                self.stream.begin_capture()
                if self._executor.captures:
                    self._behind(self, self.stream, images)
                else:
                    self._queue(self.stream, images)
                self._graph = self.stream.end_capture()
            except BaseException as error:
                self.stream.abandon_capture()
                passing = isinstance(error, (_core.CudaError, _core.CudaMemoryError, BackendError))
                if not passing or getattr(error, "fatal", False):
                    raise
                self.no_graph = " ".join(str(error).split())
        if self.no_graph:
            _logger.warning("runs are not captured in a CUDA graph, and take longer to queue: %s", self.no_graph)
