"""TensorRT and TensorRT-RTX: a plan on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core, cuda, ops
from finercam_rt.backends.device_slot import DeviceSlot, DeviceSlots, Values
from finercam_rt.backends.interface import Sizes, checked_interface, fixed_batch, sizes_of
from finercam_rt.backends.protocol import Wanted
from finercam_rt.cuda import Device, Stream
from finercam_rt.errors import BackendError, InputError
from finercam_rt.files import cache_folder
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, EMBEDDINGS, GRADIENTS, LayerInfo, Manifest
from finercam_rt.tensorrt.library import RTX
from finercam_rt.tensorrt.runtime import LoadedPlan
from finercam_rt.tensorrt.serve import Served, serve

DRAWN_HERE = ("gradcam",)
"""Methods whose kernel runs on the GPU; for the others the taps are copied to the host."""
_MAP = "saliency_map"
_FLOAT32 = np.dtype(np.float32)

Result = TypeVar("Result")


class TensorRTBackend:
    """A plan, with a context, buffers and a CUDA graph for each thread and size of a run.

    A failure of CUDA after which no GPU work of this process can succeed makes every later call say so.
    """

    def __init__(self, path: Path, manifest: Manifest, *, device: str, cuda_graphs: bool) -> None:
        """Check, load and refuse; see open_backend for the errors."""
        served = serve(path, cuda.device_index(device) or 0)
        opened = cuda.open_device(device)
        self.name = served.library.flavour
        self.device = f"cuda:{opened.index}"
        self._path, self._manifest, self._device, self._graphs = path, manifest, opened, cuda_graphs
        self._lost: BackendError | None = None
        self._loaded: LoadedPlan | None = None
        plan = self._guarded(
            lambda: LoadedPlan(path, served, opened, _runtime_cache(served, opened)), f"loading {path}"
        )
        inputs, outputs = plan.interface()
        self._interface = checked_interface(inputs, outputs, manifest, path)
        self.batch_range: tuple[int, int] | None = plan.sizes("images")
        least, most = self.batch_range
        self.fixed_batch = fixed_batch(inputs) or (least if least == most else None)
        self._classes = plan.sizes(EMBEDDINGS) if EMBEDDINGS in inputs else None
        self._loaded = plan
        self._slots = DeviceSlots()

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Wanted | None = None) -> Mapping[str, NDArray[Any]]:
        """See Backend.run; every feed is contiguous, of the graph's dtype and shape."""
        sizes = sizes_of(feeds)
        draws = self._draws(wanted)
        taps = self._manifest.taps is not None and not (draws and wanted is not None and not wanted.taps)

        def run() -> Mapping[str, NDArray[Any]]:
            slot = self._slot(sizes, draws)

            def download(stream: Stream) -> None:
                slot.answers.download(stream)
                if taps and slot.taps is not None:
                    slot.taps.download(stream)

            slot.run_host(feeds, download)
            found = dict(slot.answers.host())
            if taps and slot.taps is not None:
                found |= slot.taps.host()
            if draws and self._manifest.contrasts > 1:
                found[_MAP] = found[_MAP].swapaxes(0, 1)
            return found

        return self._guarded(run, f"a run of {sizes.batch} images")

    def logits(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Backend.logits. The plan computes the rest too; it is not copied."""
        sizes = sizes_of(feeds)

        def run() -> NDArray[np.float32]:
            slot = self._slot(sizes, self._manifest.taps is not None)
            slot.run_host(feeds, lambda stream: slot.answers.download(stream, ("logits",)))
            return slot.answers.host()["logits"]

        return self._guarded(run, f"a run of {sizes.batch} images")

    def close(self) -> None:
        """See Backend.close."""
        self._loaded = None
        self._slots = DeviceSlots()

    def _draws(self, wanted: Wanted | None) -> bool:
        """Whether the map is made here, from the taps."""
        return self._manifest.taps is not None and wanted is not None and wanted.method in DRAWN_HERE

    def _slot(self, sizes: Sizes, draws: bool) -> DeviceSlot:
        plan = self._loaded
        if plan is None:
            raise BackendError("the engine is closed; make a new one.")
        return self._slots.get((sizes, draws), lambda: self._new_slot(plan, sizes, draws))

    def _new_slot(self, plan: LoadedPlan, sizes: Sizes, draws: bool) -> DeviceSlot:
        if self._classes is not None and not self._classes[0] <= sizes.classes <= self._classes[1]:
            raise InputError(
                f"there are {sizes.classes} classes, and {self._path} was built for {self._classes[0]} to "
                f"{self._classes[1]}; build it again with --max-classes {sizes.classes}."
            )
        inputs, outputs = (_of_sizes(values, sizes) for values in self._interface)
        shapes = ({name: shape for name, (_, shape) in values.items()} for values in (inputs, outputs))
        manifest = self._manifest
        taps = () if manifest.taps is None else (ACTIVATIONS, manifest.taps.second, *manifest.taps.carried_outputs)
        several = () if manifest.contrasts == 1 else (manifest.contrasts,)
        drawn: Values = {_MAP: (_FLOAT32, (*several, sizes.batch, *manifest.grid))} if draws else {}
        return DeviceSlot(
            self._device,
            plan.context(*shapes),
            inputs,
            outputs,
            taps=taps,
            embeddings=EMBEDDINGS,
            draw=self._queue_maps if draws else None,
            drawn=drawn,
            graphs=self._graphs,
        )

    def _queue_maps(self, slot: DeviceSlot, stream: Stream) -> None:
        """`cam` behind the run, on its stream, one launch a contrast."""
        assert slot.taps is not None
        (layer,) = self._manifest.layers
        contrasts = self._manifest.contrasts
        activations = slot.taps.view(ACTIVATIONS)
        shape = slot.taps.values[ACTIVATIONS][1]
        name = GRADIENTS if GRADIENTS in slot.taps.values else CHANNEL_WEIGHTS
        cells = shape[0] * layer.grid[0] * layer.grid[1]
        for contrast in range(contrasts):
            first, strides = _second(name, shape, layer, contrasts, contrast)
            gradients = slot.taps.view(name, shape, first, strides)
            drawn = slot.answers.view(_MAP, (shape[0], *layer.grid), contrast * cells)

            def draw(handle: int, gradients: Any = gradients, drawn: Any = drawn) -> None:
                ops.cam(
                    activations,
                    gradients,
                    layout=layer.layout,
                    prefix_tokens=layer.prefix_tokens,
                    grid=layer.grid if layer.layout == "tokens" else None,
                    out=drawn,
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


def _second(
    name: str, shape: tuple[int, ...], layer: LayerInfo, contrasts: int, contrast: int
) -> tuple[int, tuple[int, ...]]:
    """Where the gradients of a contrast begin, and their strides, in elements; weights are the same everywhere."""
    if name == CHANNEL_WEIGHTS:
        channels = shape[1] if layer.layout == "nchw" else shape[-1]
        spread = (1, 0, 0) if layer.layout == "nchw" else (*[0] * (len(shape) - 2), 1)
        return contrast * channels, (contrasts * channels, *spread)
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return contrast * strides[0], (contrasts * strides[0], *strides[1:])


def _runtime_cache(served: Served, device: Device) -> Path | None:
    """Where the kernels that TensorRT-RTX compiles for this plan on this GPU are kept: in the user's cache folder."""
    folder = cache_folder()
    if served.library.flavour != RTX or folder is None:
        return None
    return folder / "tensorrt-rtx" / f"{served.info.plan_sha256[:32]}-{served.library.version}-{device.index}.cache"
