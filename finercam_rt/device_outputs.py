"""One run of an engine's graph on images that lie on the GPU, into results that lie there too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from finercam_rt import device_arrays
from finercam_rt.backends.device_results import ResultLayout
from finercam_rt.backends.protocol import DeviceBackend, Wanted
from finercam_rt.contrast import ContrastArrays
from finercam_rt.device_arrays import DeviceArray
from finercam_rt.errors import InputError
from finercam_rt.loading import check_batch
from finercam_rt.manifest import EMBEDDINGS, Manifest
from finercam_rt.outputs import Outputs


def read_batch(batch: Any, backend: DeviceBackend, manifest: Manifest, fixed: int | None) -> DeviceArray:
    """Where a preprocessed batch lies, checked.

    Raises:
        InputError: a wrong shape, dtype, device or order of its values in memory.
    """
    where = device_arrays.device_of(batch)
    if where is not None and where != backend.gpu.index:
        raise InputError(f"the batch lies on cuda:{where}, and the engine computes on {backend.device}; move it there.")
    found = device_arrays.read(batch, "the batch")
    check_batch(found.shape, found.dtype, manifest.input.shape, fixed)
    if not found.contiguous:
        raise InputError("the batch is not contiguous in the order (N,C,H,W); make it so, as with .contiguous().")
    return found


def run_on_device(
    backend: DeviceBackend,
    manifest: Manifest,
    method: str,
    batch: Any,
    found: DeviceArray,
    contrast: ContrastArrays,
    constants: Mapping[str, NDArray[Any]],
    stream: int | None,
    *,
    check: bool,
) -> tuple[Outputs, Outputs | None]:
    """Outputs in the framework of the batch; nothing waits for them, but what is queued on the stream comes after them.

    With `check`, and where a target was left to the graph, the targets and the status as NumPy arrays as well, which
    waits for them; else None.

    Args:
        backend: the loaded graph.
        manifest: the engine's.
        method: how the map is drawn.
        batch, found: the images, and where they lie.
        contrast: of as many images.
        constants: see outputs.run_graph.
        stream: see Engine.__call__.

    Raises:
        InputError: a map that is not drawn on the GPU.
        BackendError: the runtime failed, or the backend is closed.
    """
    several = contrast.target.shape[1] if manifest.contrasts > 1 else None
    asked = contrast if several is None else contrast.padded(manifest.contrasts)
    feeds = {**asked._asdict(), **constants}
    caller = device_arrays.stream_of(batch, found, stream)
    layout, address, results = _run(backend, batch, found, feeds, Wanted(method, True), caller, None, several)
    taps = {name: results[name] for name in ("activations", "gradients", "channel_weights") if name in results}
    carried = () if manifest.taps is None else tuple(results[name] for name in manifest.taps.carried_outputs)
    maps = {layer.name: results[output] for output, layer in manifest.layer_outputs.items()}
    outputs = Outputs(
        results["logits"],
        results["saliency_map"],
        results["target_class"],
        results["reference_classes"],
        results["alpha"],
        results["status"],
        maps,
        **taps,
        carried=carried,
    )
    if not check or not (contrast.target < 0).any():
        return outputs, None
    part = slice(None) if several is None else (slice(None), slice(several))
    target, status = (layout.read(name, address, backend.gpu, caller)[part] for name in ("target_class", "status"))
    return outputs, outputs._replace(target=target, status=status)


def logits_on_device(
    backend: DeviceBackend,
    manifest: Manifest,
    batch: Any,
    found: DeviceArray,
    contrast: ContrastArrays,
    constants: Mapping[str, NDArray[Any]],
    stream: int | None,
) -> Any:
    """The logits alone; the answers to the contrast stay where they are. See `run_on_device`."""
    asked = contrast if manifest.contrasts == 1 else contrast.padded(manifest.contrasts)
    feeds = {**asked._asdict(), **constants}
    caller = device_arrays.stream_of(batch, found, stream)
    return _run(backend, batch, found, feeds, Wanted(manifest.method, False), caller, ("logits",), None)[2]["logits"]


def _run(
    backend: DeviceBackend,
    batch: Any,
    found: DeviceArray,
    feeds: Mapping[str, NDArray[Any]],
    wanted: Wanted,
    caller: int,
    names: tuple[str, ...] | None,
    several: int | None,
) -> tuple[ResultLayout, int, dict[str, Any]]:
    """How the results lie, where, and they themselves."""
    classes = len(feeds[EMBEDDINGS]) if EMBEDDINGS in feeds else 0
    layout = backend.results(found.shape[0], classes, wanted, names)
    made = device_arrays.allocate(batch, layout.bytes, backend.gpu, caller)
    backend.run_on_device(found.address, feeds, wanted, caller, layout, made.address)
    made.finish()
    results = {name: made.take(*layout.array(name, several if layout.has_contrasts(name) else None)) for name in layout}
    return layout, made.address, results
