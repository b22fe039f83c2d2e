"""A library that runs the graph on an NVIDIA GPU, and our kernels behind it."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core, cuda, ops
from finercam_rt.backends.device_block import Values
from finercam_rt.backends.device_results import Piece, ResultLayout
from finercam_rt.backends.device_slot import DeviceSlot, DeviceSlots, Executor
from finercam_rt.backends.interface import Sizes, Value, checked_interface, fixed_batch, sizes_of
from finercam_rt.backends.protocol import RunTimes, Wanted
from finercam_rt.cuda import Device, Event, Stream
from finercam_rt.errors import BackendError, InputError
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, EMBEDDINGS, GRADIENTS, Manifest

_MAP = "saliency_map"
_STATUS = "status"
_FLOAT32, _UINT8 = np.dtype(np.float32), np.dtype(np.uint8)

_LAYOUTS_KEPT = 64

Result = TypeVar("Result")


class Loaded(Protocol):
    """A graph that a library has loaded."""

    def interface(self) -> tuple[dict[str, Value], dict[str, Value]]:
        """Its inputs and outputs by name."""

    def sizes(self, name: str) -> tuple[int, int] | None:
        """Least and largest first size of an input; None where any will do."""

    def context(self, inputs: Values, outputs: Values) -> Executor:
        """What runs it for inputs of these shapes, one run at a time.

        Raises:
            InputError: shapes that it was not built for.
            DeviceMemoryError: the GPU has too little memory.
            BackendError: the library fails.
            _core.CudaError: so does CUDA.
        """


class GpuBackend:
    """A loaded graph, with a context, buffers and a CUDA graph for each thread and size of a run.

    A failure of CUDA after which no GPU work of this process can succeed makes every later call say so.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        device: Device,
        load: Callable[[], Loaded],
        *,
        cuda_graphs: bool,
    ) -> None:
        """Load by `load` and check; see open_backend for the errors. cuda_graphs: whether runs are captured here."""
        self.name = name
        self.device = f"cuda:{device.index}"
        self._path, self._manifest, self._device, self._graphs = path, manifest, device, cuda_graphs
        self._lost: BackendError | None = None
        self._loaded: Loaded | None = None
        self._times: list[RunTimes] | None = None
        loaded = self._guarded(load, f"loading {path}")
        inputs, outputs = loaded.interface()
        self._interface = checked_interface(inputs, outputs, manifest, path)
        fixed = fixed_batch(inputs)
        self.batch_range: tuple[int, int] | None = loaded.sizes("images") if fixed is None else (fixed, fixed)
        self._range = least, most = self.batch_range or (1, sys.maxsize)
        self.fixed_batch = least if least == most else None
        self._classes = loaded.sizes(EMBEDDINGS) if EMBEDDINGS in inputs else None
        self._loaded = loaded
        self._slots = DeviceSlots()
        self._layouts: dict[tuple[Any, ...], ResultLayout] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Wanted | None = None) -> Mapping[str, NDArray[Any]]:
        """See Backend.run; every feed is contiguous, of the graph's dtype and shape."""
        sizes = sizes_of(feeds)
        method = self._drawn(wanted)
        taps = self._manifest.taps is not None and not (method and wanted is not None and not wanted.taps)

        def run() -> Mapping[str, NDArray[Any]]:
            slot = self._slot(sizes, method)

            def download(stream: Stream) -> None:
                slot.answers.download(stream)
                if taps and slot.taps is not None:
                    slot.taps.download(stream)

            slot.run_host(feeds, download, self._times)
            found = dict(slot.answers.host())
            if taps and slot.taps is not None:
                found |= slot.taps.host()
            return found

        return self._guarded(run, f"a run of {sizes.batch} images")

    def logits(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Backend.logits. The graph computes the rest too; it is not copied."""
        sizes = sizes_of(feeds)

        def run() -> NDArray[np.float32]:
            slot = self._any_slot(sizes)
            slot.run_host(feeds, lambda stream: slot.answers.download(stream, ("logits",)))
            return slot.answers.host()["logits"]

        return self._guarded(run, f"a run of {sizes.batch} images")

    def record_times(self, times: list[RunTimes] | None) -> None:
        """See DeviceBackend.record_times."""
        self._times = times

    @property
    def gpu(self) -> Device:
        """See DeviceBackend.gpu."""
        return self._device

    def results(self, count: int, classes: int, wanted: Wanted, names: tuple[str, ...] | None) -> ResultLayout:
        """See DeviceBackend.results."""
        manifest = self._manifest
        if names is None and manifest.taps is not None and self._drawn(wanted) is None:
            raise InputError(
                f"maps by {wanted.method} are drawn on the host, and the batch lies on {self.device}; give an array of "
                f"the host, or export the engine with --method {wanted.method}."
            )
        key = count, classes, wanted.taps, names
        if (known := self._layouts.get(key)) is not None:
            return known
        some = manifest.contrasts > 1
        several = (manifest.contrasts,) if some else ()
        alike = ("logits", ACTIVATIONS, *(manifest.taps.carried_outputs if manifest.taps else ()))  # for all contrasts
        pieces = {
            name: Piece(dtype, Sizes(1, classes).of(shape)[1:], some and name not in alike)
            for name, (dtype, shape) in self._interface.outputs.items()
        }
        pieces["alpha"] = Piece(_FLOAT32, several, some)
        if manifest.taps is not None:
            pieces[_MAP] = Piece(_FLOAT32, (*several, *manifest.grid), some)
        pieces[_STATUS] = Piece(_UINT8, several, some)
        left_out = () if wanted.taps else self._taps()
        chosen = [name for name in pieces if name not in left_out] if names is None else names
        if len(self._layouts) >= _LAYOUTS_KEPT:
            self._layouts.clear()
        layout = self._layouts[key] = ResultLayout({name: pieces[name] for name in chosen}, count)
        return layout

    def run_on_device(
        self,
        images: int,
        feeds: Mapping[str, NDArray[Any]],
        wanted: Wanted,
        stream: int,
        layout: ResultLayout,
        results: int,
    ) -> Event:
        """See DeviceBackend.run_on_device."""
        count = len(feeds["alpha"])
        height, width = self._manifest.input.size
        least, most = self._range
        constants = {name: value for name, value in feeds.items() if name == EMBEDDINGS}
        done: Event | None = None
        for start in range(0, count, most):
            rows = min(most, count - start)
            part = {name: value[start : start + rows] for name, value in feeds.items() if name != EMBEDDINGS}
            filled = max(least, rows)
            if filled > rows:
                part = {name: _filled(value, filled) for name, value in part.items()}
            sizes = Sizes(filled, len(constants[EMBEDDINGS]) if constants else 0)
            address = images + start * 3 * height * width * _FLOAT32.itemsize
            done = self._guarded(
                lambda: self._run_part(  # noqa: B023
                    address, rows, part | constants, sizes, self._drawn(wanted), stream, layout, results, start
                ),
                f"a run of {filled} images",
            )
        assert done is not None
        return done

    def _run_part(
        self,
        images: int,
        count: int,
        feeds: Mapping[str, NDArray[Any]],
        sizes: Sizes,
        method: str | None,
        caller: int,
        layout: ResultLayout,
        results: int,
        start: int,
    ) -> Event:
        """`count` images of one run, to the rows of the results from `start` on."""
        slot = self._slot(sizes, method) if _MAP in layout else self._any_slot(sizes)

        def collect(stream: Stream) -> None:
            if _STATUS in layout:
                self._queue_status(slot, stream, images, count)
            for name in layout:
                block = next(b for b in (slot.answers, slot.questions, slot.taps) if b is not None and name in b.values)
                offset, size = layout.span(name, start, count)
                stream.copy(results + offset, block.address(name), size)

        return slot.run_device(images, count, feeds, caller, collect)

    def _queue_status(self, slot: DeviceSlot, stream: Stream, images: int, count: int) -> None:
        """What the maps are worth; that images or logits are not finite need not show in them."""
        manifest = self._manifest
        shape = slot.answers.values[_STATUS][1]
        maps = slot.answers.view(_MAP, (math.prod(shape), *manifest.grid))
        flat = slot.answers.view(_STATUS, (math.prod(shape),))
        marked = slot.answers.view(_STATUS, (count, manifest.contrasts))
        height, width = manifest.input.size
        given = self._device.view(images, "float32", (count, 3 * height * width))
        logits = slot.answers.view("logits", (count, slot.answers.values["logits"][1][1]))

        def queue(handle: int) -> None:
            _core.map_status(maps, flat, threads=1, stream=handle)
            for values in (given, logits):
                _core.mark_non_finite(values, marked, threads=1, stream=handle)

        self._device.queue(stream, queue)

    def close(self) -> None:
        """See Backend.close."""
        self._loaded = None
        self._slots = DeviceSlots()

    def _taps(self) -> tuple[str, ...]:
        """The outputs of head "taps"."""
        taps = self._manifest.taps
        return () if taps is None else (ACTIVATIONS, taps.second, *taps.carried_outputs)

    def _drawn(self, wanted: Wanted | None) -> str | None:
        """The method whose map is made here from the taps; None of head "graph", and where the host draws it."""
        if self._manifest.taps is None or wanted is None or wanted.method not in ops.KERNEL_METHODS:
            return None
        return wanted.method

    def _slot(self, sizes: Sizes, method: str | None) -> DeviceSlot:
        """One for each method: what is captured draws by one, and a context of TensorRT is for one graph alone."""
        loaded = self._loaded
        if loaded is None:
            raise BackendError("the engine is closed; make a new one.")
        return self._slots.get((sizes, method), lambda: self._new_slot(loaded, sizes, method))

    def _any_slot(self, sizes: Sizes) -> DeviceSlot:
        """For what no method changes: the one that was used last."""
        method = self._drawn(Wanted(self._manifest.method, False))
        return self._slot(sizes, self._slots.last(lambda key: key[0] == sizes, (sizes, method))[1])

    def _new_slot(self, loaded: Loaded, sizes: Sizes, method: str | None) -> DeviceSlot:
        if self._classes is not None and not self._classes[0] <= sizes.classes <= self._classes[1]:
            raise InputError(
                f"there are {sizes.classes} classes, and {self._path} was built for {self._classes[0]} to "
                f"{self._classes[1]}; build it again with --max-classes {sizes.classes}."
            )
        inputs, outputs = (_of_sizes(values, sizes) for values in self._interface)
        manifest = self._manifest
        several = () if manifest.contrasts == 1 else (manifest.contrasts,)
        drawn: Values = {_STATUS: (_UINT8, (sizes.batch * manifest.contrasts,))}
        if method is not None:
            drawn = {**drawn, _MAP: (_FLOAT32, (sizes.batch, *several, *manifest.grid))}
        return DeviceSlot(
            self._device,
            loaded.context(inputs, outputs),
            inputs,
            outputs,
            taps=self._taps(),
            embeddings=EMBEDDINGS,
            draw=None if method is None else functools.partial(self._queue_maps, method),
            drawn=drawn,
            graphs=self._graphs,
        )

    def _queue_maps(self, method: str, slot: DeviceSlot, stream: Stream) -> None:
        """`cam` behind the run, on its stream, one launch for all contrasts."""
        assert slot.taps is not None
        (layer,) = self._manifest.layers
        activations, out = slot.taps.view(ACTIVATIONS), slot.answers.view(_MAP)
        name = GRADIENTS if GRADIENTS in slot.taps.values else CHANNEL_WEIGHTS
        second = {name: slot.taps.view(name)}

        def draw(handle: int) -> None:
            ops.cam(
                activations,
                **second,
                method=method,
                layout=layer.layout,
                prefix_tokens=layer.prefix_tokens,
                grid=layer.grid if layer.layout == "tokens" else None,
                out=out,
                stream=handle,
            )

        self._device.queue(stream, draw)

    def _guarded(self, call: Callable[[], Result], during: str) -> Result:
        """The result of `call`, whose CUDA errors become sentences."""
        if self._lost is not None:
            raise self._lost
        try:
            return call()
        except (_core.CudaError, _core.CudaMemoryError) as error:
            found = cuda.as_backend_error(error, during)
            error.__traceback__ = None  # whose frames hold what had been allocated
            if getattr(error, "fatal", False):
                self._lost = found
            raise found from None
        except BackendError as error:
            self._check_device(error)
            raise

    def _check_device(self, error: BackendError) -> None:
        """After a failure of the library: whether CUDA works on, which it does not say itself."""
        try:
            self._device.stream().synchronize()
        except (_core.CudaError, _core.CudaMemoryError) as lost:
            if getattr(lost, "fatal", False):
                self._lost = cuda.as_backend_error(lost, str(error).rstrip("."))
                raise self._lost from None


def _filled(values: NDArray[Any], count: int) -> NDArray[Any]:
    """With the last row repeated up to `count` rows."""
    return np.concatenate([values, np.repeat(values[-1:], count - len(values), axis=0)])


def _of_sizes(values: Values, sizes: Sizes) -> Values:
    return {name: (dtype, sizes.of(shape)) for name, (dtype, shape) in values.items()}
