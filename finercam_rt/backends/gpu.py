"""A library that runs the graph on an NVIDIA GPU, and our kernels behind it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core, cuda, ops
from finercam_rt.backends.device_block import Values
from finercam_rt.backends.device_finish import MAP, STATUS, Finish
from finercam_rt.backends.device_results import Piece, ResultLayout
from finercam_rt.backends.device_slot import DeviceSlot, Executor
from finercam_rt.backends.device_slots import DeviceSlots
from finercam_rt.backends.interface import Sizes, Value, checked_interface, classes_of, fixed_batch
from finercam_rt.backends.protocol import HostImages, RunTimes, Wanted
from finercam_rt.contrast import ContrastArrays
from finercam_rt.cuda import Device
from finercam_rt.errors import BackendError, InputError
from finercam_rt.manifest import ACTIVATIONS, EMBEDDINGS, Manifest

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
        loaded = self._guarded(f"loading {path}", load)
        inputs, outputs = loaded.interface()
        self._interface = checked_interface(inputs, outputs, manifest, path)
        fixed = fixed_batch(inputs)
        self.batch_range: tuple[int, int] | None = loaded.sizes("images") if fixed is None else (fixed, fixed)
        self._range = least, most = self.batch_range or (1, sys.maxsize)
        self.fixed_batch = least if least == most else None
        self._image_bytes = math.prod(manifest.input.shape) * _FLOAT32.itemsize
        self._classes = loaded.sizes(EMBEDDINGS) if EMBEDDINGS in inputs else None
        self._loaded = loaded
        self._slots = DeviceSlots()
        self._layouts: dict[tuple[Any, ...], ResultLayout] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Wanted | None = None) -> Mapping[str, NDArray[Any]]:
        """See Backend.run; every feed is contiguous, of the graph's dtype and shape."""
        images = feeds["images"]
        # copies, because a slot holds on to what it was asked last
        contrast = ContrastArrays(feeds["target"].copy(), feeds["references"].copy(), feeds["alpha"].copy())
        if self._manifest.taps is None or (wanted is not None and self.draws(wanted.method)):
            wanted, names = wanted or Wanted(self._manifest.method, True), None
        else:
            wanted, names = Wanted(self._manifest.method, True), tuple(self._interface.outputs)
        layout = self.results(len(images), classes_of(feeds), wanted, names)
        return layout.arrays(self.run_on_host(images, contrast, feeds, wanted, layout))

    def logits(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Backend.logits. The graph computes the rest too; it is not copied."""
        images, wanted = feeds["images"], Wanted(self._manifest.method, False)
        layout = self.results(len(images), classes_of(feeds), wanted, ("logits",))
        return layout.arrays(self.run_on_host(images, None, feeds, wanted, layout))["logits"]

    def record_times(self, times: list[RunTimes] | None) -> None:
        """See DeviceBackend.record_times."""
        self._times = times

    @property
    def gpu(self) -> Device:
        """See DeviceBackend.gpu."""
        return self._device

    @property
    def largest(self) -> int:
        """See DeviceBackend.largest."""
        return self._range[1]

    def draws(self, method: str) -> bool:
        """See DeviceBackend.draws."""
        return self._manifest.taps is None or method in ops.KERNEL_METHODS

    def results(self, count: int, classes: int, wanted: Wanted, names: tuple[str, ...] | None) -> ResultLayout:
        """See DeviceBackend.results."""
        key = count, classes, wanted, names
        if (known := self._layouts.get(key)) is not None:
            return known
        left_out = () if wanted.taps else self._taps()
        if names is None and not self.draws(wanted.method):
            raise InputError(
                f"maps by {wanted.method} are drawn on the host, and the batch lies on {self.device}; give an array of "
                f"the host, or export the engine with --method {wanted.method}."
            )
        pieces = self._pieces(classes)
        chosen = [name for name in pieces if name not in left_out] if names is None else names
        if len(self._layouts) >= _LAYOUTS_KEPT:
            self._layouts.clear()
        layout = self._layouts[key] = ResultLayout({name: pieces[name] for name in chosen}, count)
        return layout

    def _pieces(self, classes: int) -> dict[str, Piece]:
        """All results, in the order in which a slot has them, so that few copies take them."""
        manifest = self._manifest
        some = manifest.contrasts > 1
        several = (manifest.contrasts,) if some else ()
        alike = ("logits", ACTIVATIONS, *(manifest.taps.carried_outputs if manifest.taps else ()))  # for all contrasts
        outputs = {
            name: Piece(dtype, Sizes(1, classes).of(shape)[1:], some and name not in alike)
            for name, (dtype, shape) in self._interface.outputs.items()
        }
        taps = {name: outputs.pop(name) for name in self._taps()}
        drawn = {} if manifest.taps is None else {MAP: Piece(_FLOAT32, (*several, *manifest.grid), some)}
        alpha, status = Piece(_FLOAT32, several, some), Piece(_UINT8, several, some)
        return {"alpha": alpha, **outputs, **drawn, STATUS: status, **taps}

    def run_on_host(
        self,
        images: HostImages,
        contrast: ContrastArrays | None,
        constants: Mapping[str, NDArray[Any]],
        wanted: Wanted,
        layout: ResultLayout,
    ) -> NDArray[np.uint8]:
        """See DeviceBackend.run_on_host."""
        return self._guarded(len(images), self._on_host, images, contrast, constants.get(EMBEDDINGS), wanted, layout)

    def _on_host(
        self,
        images: HostImages,
        contrast: ContrastArrays | None,
        embeddings: NDArray[Any] | None,
        wanted: Wanted,
        layout: ResultLayout,
    ) -> NDArray[np.uint8]:
        slot = self._slot_of(len(images), embeddings, wanted, layout)
        return slot.run_host(images, contrast, embeddings, layout, self._times)

    def run_on_device(
        self,
        images: int,
        count: int,
        contrast: ContrastArrays | None,
        constants: Mapping[str, NDArray[Any]],
        wanted: Wanted,
        stream: int,
        layout: ResultLayout,
        results: int,
    ) -> None:
        """See DeviceBackend.run_on_device."""
        embeddings, most = constants.get(EMBEDDINGS), self._range[1]
        if count <= most:
            self._guarded(
                count, self._on_device, images, 0, count, contrast, embeddings, wanted, stream, layout, results
            )
            return
        for start in range(0, count, most):
            rows = min(most, count - start)
            part = None if contrast is None else contrast.rows(slice(start, start + rows))
            at = images + start * self._image_bytes
            self._guarded(rows, self._on_device, at, start, rows, part, embeddings, wanted, stream, layout, results)

    def _on_device(
        self,
        images: int,
        start: int,
        rows: int,
        contrast: ContrastArrays | None,
        embeddings: NDArray[Any] | None,
        wanted: Wanted,
        stream: int,
        layout: ResultLayout,
        results: int,
    ) -> None:
        """One run, to the rows of the results from `start` on."""
        slot = self._slot_of(rows, embeddings, wanted, layout)
        slot.run_device(images, rows, contrast, embeddings, stream, layout, start, results)

    def close(self) -> None:
        """See Backend.close."""
        self._loaded = None
        self._slots = DeviceSlots()

    def _taps(self) -> tuple[str, ...]:
        """The outputs of head "taps"."""
        taps = self._manifest.taps
        return () if taps is None else (ACTIVATIONS, taps.second, *taps.carried_outputs)

    def _slot_of(self, rows: int, embeddings: NDArray[Any] | None, wanted: Wanted, layout: ResultLayout) -> DeviceSlot:
        """For as many images and these results. There is one for each method that is drawn here from the taps: what is
        captured draws by one, and a context of TensorRT is for one graph alone.
        """
        loaded = self._loaded
        if loaded is None:
            raise BackendError("the engine is closed; make a new one.")
        least = self._range[0]
        sizes = Sizes(rows if rows > least else least, 0 if embeddings is None else len(embeddings))
        key: tuple[Sizes, str | None] = sizes, None
        if self._manifest.taps is not None:
            key = sizes, wanted.method if self.draws(wanted.method) else None
            if MAP not in layout:  # the method does not matter
                key = self._slots.last(lambda key: key[0] == sizes, key)
        return self._slots.get(key) or self._slots.put(key, lambda: self._new_slot(loaded, *key))

    def _new_slot(self, loaded: Loaded, sizes: Sizes, method: str | None) -> DeviceSlot:
        if self._classes is not None and not self._classes[0] <= sizes.classes <= self._classes[1]:
            raise InputError(
                f"there are {sizes.classes} classes, and {self._path} was built for {self._classes[0]} to "
                f"{self._classes[1]}; build it again with --max-classes {sizes.classes}."
            )
        inputs, outputs = (_of_sizes(values, sizes) for values in self._interface)
        manifest = self._manifest
        several = () if manifest.contrasts == 1 else (manifest.contrasts,)
        made: Values = {}
        if manifest.taps is not None and method is not None:
            made = {MAP: (_FLOAT32, (sizes.batch, *several, *manifest.grid))}
        if MAP in outputs or made:
            made = {**made, STATUS: (_UINT8, (sizes.batch * manifest.contrasts,))}
        return DeviceSlot(
            self._device,
            loaded.context(inputs, outputs),
            inputs,
            outputs,
            taps=self._taps(),
            embeddings=EMBEDDINGS,
            behind=Finish(self._manifest, self._device, method),
            made=made,
            graphs=self._graphs,
        )

    def _guarded(self, during: str | int, call: Callable[..., Result], *arguments: Any) -> Result:
        """The result of a call whose CUDA errors become sentences; during: what it does, or of how many images."""
        if self._lost is not None:
            raise self._lost
        try:
            return call(*arguments)
        except (_core.CudaError, _core.CudaMemoryError) as error:
            found = cuda.as_backend_error(error, during if isinstance(during, str) else f"a run of {during} images")
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


def _of_sizes(values: Values, sizes: Sizes) -> Values:
    return {name: (dtype, sizes.of(shape)) for name, (dtype, shape) in values.items()}
