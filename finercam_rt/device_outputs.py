"""One run of an engine's graph on a GPU: of images that lie there, into results that do, or of images of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from finercam_rt import arrays, device_arrays
from finercam_rt.backends.device_results import ResultLayout
from finercam_rt.backends.interface import classes_of
from finercam_rt.backends.protocol import DeviceBackend, HostImages, Wanted
from finercam_rt.contrast import ContrastArrays
from finercam_rt.cuda import DEFAULT_STREAMS
from finercam_rt.device_arrays import DeviceArray
from finercam_rt.errors import InputError
from finercam_rt.loading import check_batch
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, GRADIENTS, Manifest
from finercam_rt.outputs import Outputs, joined


def read_batch(batch: Any, where: int, backend: DeviceBackend, manifest: Manifest, fixed: int | None) -> DeviceArray:
    """Where a preprocessed batch lies, checked; where: its device, see `device_arrays.device_of`.

    Raises:
        InputError: a wrong shape, dtype, device or order of its values in memory.
    """
    if where not in (backend.gpu.index, device_arrays.UNSAID):
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
    asked, several = _asked(contrast, manifest)
    caller = device_arrays.stream_of(batch, found, stream)
    layout, address, results = _run(
        backend, batch, found, asked, constants, Wanted(method, True), caller, stream is None, None, several
    )
    outputs = _outputs(results, manifest)
    if not check or not (contrast.target < 0).any():
        return outputs, None
    part = slice(None) if several is None else (slice(None), slice(several))
    target, status = (layout.read(name, address, backend.gpu, caller)[part] for name in ("target_class", "status"))
    return outputs, outputs._replace(target=target, status=status)


def run_on_host(
    backend: DeviceBackend,
    manifest: Manifest,
    method: str,
    images: HostImages,
    contrast: ContrastArrays,
    constants: Mapping[str, NDArray[Any]],
    with_taps: bool,
) -> Outputs:
    """NumPy outputs of images of the host, whose maps are drawn on the GPU; see `run_on_device`.

    with_taps: whether they have the taps of head "taps".
    """
    count, most = len(images), backend.largest
    if count > most:
        parts = [slice(start, start + most) for start in range(0, count, most)]
        return joined(
            [
                run_on_host(backend, manifest, method, images[part], contrast.rows(part), constants, with_taps)
                for part in parts
            ]
        )
    asked, several = _asked(contrast, manifest)
    wanted = Wanted(method, with_taps)
    layout = backend.results(count, classes_of(constants), wanted, None)
    results = backend.run_on_host(images, asked, constants, wanted, layout)
    return _outputs(layout.arrays(results, several), manifest)


def logits_on_device(
    backend: DeviceBackend,
    manifest: Manifest,
    batch: Any,
    found: DeviceArray,
    constants: Mapping[str, NDArray[Any]],
    stream: int | None,
) -> Any:
    """The logits alone; the answers to the contrast stay where they are. See `run_on_device`."""
    caller = device_arrays.stream_of(batch, found, stream)
    wanted = Wanted(manifest.method, False)
    return _run(backend, batch, found, None, constants, wanted, caller, stream is None, ("logits",), None)[2]["logits"]


def _run(
    backend: DeviceBackend,
    batch: Any,
    found: DeviceArray,
    asked: ContrastArrays | None,
    constants: Mapping[str, NDArray[Any]],
    wanted: Wanted,
    caller: int,
    current: bool,
    names: tuple[str, ...] | None,
    several: int | None,
) -> tuple[ResultLayout, int, dict[str, Any]]:
    """How the results lie, where, and they themselves; current: whether the caller's stream is its framework's own."""
    if caller not in DEFAULT_STREAMS and backend.gpu.stream(caller).capturing():
        raise InputError(
            "the stream is being captured, and an engine's runs cannot be part of another graph; call it outside, "
            "where it replays a graph of its own."
        )
    count = found.shape[0]
    layout = backend.results(count, classes_of(constants), wanted, names)
    made = device_arrays.allocate(batch, layout.bytes, backend.gpu, caller, current=current)
    backend.run_on_device(found.address, count, asked, constants, wanted, caller, layout, made.address)
    if arrays.frees_early(batch):
        backend.gpu.stream(caller).synchronize()
    return layout, made.address, made.take(layout.places(several))


def _asked(contrast: ContrastArrays, manifest: Manifest) -> tuple[ContrastArrays, int | None]:
    """With as many contrasts as the graph has, and how many of them are the caller's; None where there is no axis."""
    if manifest.contrasts == 1:
        return contrast, None
    several = contrast.target.shape[1]
    return contrast.padded(manifest.contrasts), None if several == manifest.contrasts else several


def _outputs(results: Mapping[str, Any], manifest: Manifest) -> Outputs:
    maps: dict[str, Any] = {}
    if manifest.layer_maps:
        maps = {layer.name: results[output] for output, layer in manifest.layer_outputs.items()}
    carried: tuple[Any, ...] = ()
    if manifest.taps is not None and ACTIVATIONS in results:
        carried = tuple(results[name] for name in manifest.taps.carried_outputs)
    return Outputs(
        results["logits"],
        results["saliency_map"],
        results["target_class"],
        results["reference_classes"],
        results["alpha"],
        results["status"],
        maps,
        results.get(ACTIVATIONS),
        results.get(GRADIENTS),
        results.get(CHANNEL_WEIGHTS),
        carried,
    )
