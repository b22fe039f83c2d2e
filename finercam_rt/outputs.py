"""One run of an engine's graph: images and contrasts in, arrays of the caller's own out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.backends.protocol import Backend, Wanted
from finercam_rt.classes import Classes
from finercam_rt.contrast import ContrastArrays
from finercam_rt.errors import InputError
from finercam_rt.explanation import status_of
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, GRADIENTS, METHODS, Manifest
from finercam_rt.padding import padded

T = TypeVar("T")


class Outputs(NamedTuple):
    """What `engine(batch)` returns, in the framework of the batch; one row an image.

    logits (N,K) float32; saliency_map (N,h,w) float32, raw; target (N,) int64; references (N,R) int64, -2 where
    unused; alpha (N,) float32; status (N,) uint8, the codes of `ops.Status`: 0 ok, 1 no_positive_evidence, 2 constant,
    3 non_finite; layer_maps, the raw map (N,h,w) of each layer by its name, where the engine gives them. Of head "taps"
    activations, in the layer's layout, and gradients, of the same shape, or channel_weights (N,C), all float32; None
    where the engine does not give them; carried, what a tail file (`Tail`) reads besides the activations. An engine of
    several contrasts has an axis for them behind N on all but the logits, the activations and the carried values.
    """

    logits: Any
    saliency_map: Any
    target: Any
    references: Any
    alpha: Any
    status: Any
    layer_maps: dict[str, Any]
    activations: Any = None
    gradients: Any = None
    channel_weights: Any = None
    carried: tuple[Any, ...] = ()

    def each(self, change: Callable[[NDArray[Any]], Any]) -> Outputs:
        """With every array changed."""
        changed: dict[str, Any] = {
            name: None if values is None else change(values)
            for name, values in self._asdict().items()
            if name not in ("layer_maps", "carried")
        }
        maps = {name: change(values) for name, values in self.layer_maps.items()}
        return Outputs(**changed, layer_maps=maps, carried=tuple(change(values) for values in self.carried))


@dataclass(frozen=True)
class Drawing:
    """How the raw map comes out of a graph's outputs.

    manifest: the engine's. method: one that its outputs serve. threads: of the kernel, None for as many as it repays.
    """

    manifest: Manifest
    method: str
    threads: int | None = None

    def map_of(self, found: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The raw map, (N,h,w) or (N,P,h,w), of a run's outputs by name; a view of them where the graph made it."""
        saliency_map: NDArray[np.float32]
        if self.manifest.taps is None:
            saliency_map = found["saliency_map"]
            return saliency_map
        (layer,) = self.manifest.layers
        tokens = layer.layout == "tokens"
        saliency_map = ops.cam(
            found[ACTIVATIONS],
            found.get(GRADIENTS),
            channel_weights=found.get(CHANNEL_WEIGHTS),
            method=self.method,
            layout=layer.layout,
            prefix_tokens=layer.prefix_tokens,
            grid=layer.grid if tokens else None,
            threads=self.threads,
        )
        return saliency_map


def checked_method(manifest: Manifest, method: str | None, path: Path) -> str:
    """The method that is drawn: the one asked for, or the engine's own.

    Raises:
        InputError: there is no such method, or the graph does not give what it needs.
    """
    if method is None or method == manifest.method:
        return manifest.method
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; give one of {', '.join(METHODS)}.")
    if manifest.taps is None:
        raise InputError(
            f"{path} makes the map of {manifest.method} in its graph; for {method} export it with --method {method}, "
            "or with --head taps --gradients for all methods."
        )
    if method not in manifest.taps.methods:
        raise InputError(
            f"{path} gives the channel weights alone, and {method} needs the gradients at every position; export it "
            "with --head taps --gradients."
        )
    return method


def run_graph(
    backend: Backend,
    drawing: Drawing,
    images: NDArray[np.float32],
    contrast: ContrastArrays,
    count: int,
    constants: Mapping[str, NDArray[Any]],
    with_taps: bool,
) -> Outputs:
    """NumPy outputs of the first `count` images, copied out of the backend's buffers; status of the maps.

    Args:
        backend: the loaded graph.
        drawing: the engine's.
        images: (N,C,H,W), N >= count; the rows behind `count` fill a batch of fixed size. More than the backend takes
            at a time are run in parts.
        contrast: of `count` images.
        count: how many of the images are asked for.
        constants: inputs without a row for each image, by their names: the class embeddings of a zero-shot model.
        with_taps: whether activations and gradients, where the graph gives them, are copied out as well.

    Raises:
        BackendError: the runtime failed, or the backend is closed.
    """
    least, most = backend.batch_range or (1, len(images))
    if count <= most:
        filled = max(least, min(len(images), most))
        return _run_once(backend, drawing, padded(images[:filled], filled), contrast, count, constants, with_taps)
    parts = [slice(start, min(start + most, count)) for start in range(0, count, most)]
    return joined(
        [
            run_graph(backend, drawing, images[part], contrast.rows(part), part.stop - part.start, constants, with_taps)
            for part in parts
        ]
    )


def run_logits(backend: Backend, images: NDArray[np.float32], constants: Mapping[str, NDArray[Any]]) -> Any:
    """The logits (N,K) of all images, copied out of the backend's buffers; see Backend.logits."""
    least, most = backend.batch_range or (1, len(images))
    parts = [images[start : start + most] for start in range(0, len(images), most)]
    found = [
        backend.logits({"images": padded(part, max(least, len(part))), **constants})[: len(part)].copy()
        for part in parts
    ]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _run_once(
    backend: Backend,
    drawing: Drawing,
    images: NDArray[np.float32],
    contrast: ContrastArrays,
    count: int,
    constants: Mapping[str, NDArray[Any]],
    with_taps: bool,
) -> Outputs:
    """See run_graph; as many images as the backend takes at a time."""
    manifest = drawing.manifest
    several = manifest.contrasts > 1
    asked = contrast.padded(manifest.contrasts) if several else contrast
    feeds: dict[str, NDArray[Any]] = {"images": images, **asked._asdict()}
    if count < len(images):
        feeds = {name: padded(value, len(images)) for name, value in feeds.items()}
    feeds |= constants
    buffers = backend.run(feeds, Wanted(drawing.method, with_taps))
    part = (slice(count), slice(contrast.target.shape[1])) if several else slice(count)
    logits = buffers["logits"][:count].copy()
    taps: dict[str, Any] = {}
    found: dict[str, NDArray[Any]] = {}
    if manifest.taps is not None and ACTIVATIONS in buffers:
        found = {ACTIVATIONS: buffers[ACTIVATIONS][:count], manifest.taps.second: buffers[manifest.taps.second][part]}
        if with_taps:
            taps = {name: values.copy() for name, values in found.items()}
            taps["carried"] = tuple(buffers[name][:count].copy() for name in manifest.taps.carried_outputs)
    drawn = buffers.get("saliency_map")
    saliency_map = drawing.map_of(found) if drawn is None else drawn[part].copy()
    status = status_of(saliency_map)
    # A ReLU may turn NaN into 0 on the way to the map, so the map alone does not tell.
    damaged = rows_not_finite(logits)
    if damaged is not None:
        status[damaged] = ops.Status.NON_FINITE
    return Outputs(
        logits,
        saliency_map,
        buffers["target_class"][part].copy(),
        buffers["reference_classes"][part].copy(),
        contrast.alpha.copy(),
        status,
        {layer.name: buffers[output][part].copy() for output, layer in manifest.layer_outputs.items()},
        **taps,
    )


def conflicts(contrast: ContrastArrays, outputs: Outputs) -> list[int]:
    """The images with a target, which the graph chose, that is one of the references that the caller gave."""
    if (contrast.references < 0).all():  # none was given, a twentieth of the time
        return []
    same = _same_class(contrast, outputs)
    # Logits that are not finite make the predicted class an accident.
    same &= outputs.status != ops.Status.NON_FINITE
    return [int(row) for row in np.flatnonzero(same.reshape(len(same), -1).any(axis=1))]


def conflict_error(contrast: ContrastArrays, outputs: Outputs, row: int, name: str, classes: Classes) -> InputError:
    """The error of one of the `conflicts`, whose image is called `name`."""
    place = int(np.argmax(_same_class(contrast, outputs)[row]))
    predicted = classes.name(int(np.atleast_1d(outputs.target[row])[place]))
    rank = -int(np.atleast_1d(contrast.target[row])[place])
    which = "the predicted class" if rank == 1 else f"the class of rank {rank},"
    return InputError(f"{name}: {which} {predicted!r} is one of the references; give another reference or a target.")


def rows_not_finite(values: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Which rows (N,) have a value that is not finite; None where all are finite, which costs two fast reductions."""
    # max and min propagate NaN, and unlike a sum they neither overflow nor warn.
    if math.isfinite(np.maximum.reduce(values, axis=None)) and math.isfinite(np.minimum.reduce(values, axis=None)):
        return None
    finite: NDArray[np.bool_] = np.all(np.isfinite(values.reshape(len(values), -1)), axis=1)
    return ~finite


def joined(parts: Sequence[T]) -> T:
    """The rows of all, in order: of arrays, and of what is in tuples and dictionaries; None stays None."""
    rows: Sequence[Any] = parts
    first: Any = rows[0]
    found: Any = None
    if isinstance(first, dict):
        found = {name: joined([part[name] for part in rows]) for name in first}
    elif isinstance(first, tuple):
        found = getattr(first, "_make", tuple)([joined(column) for column in zip(*rows, strict=True)])
    elif first is not None:
        found = np.concatenate(rows)
    return cast("T", found)


def _same_class(contrast: ContrastArrays, outputs: Outputs) -> NDArray[np.bool_]:
    """Which contrasts, (N,) or (N,P), have their target among the references that were asked for."""
    same: NDArray[np.bool_] = (contrast.references == outputs.target[..., None]).any(axis=-1)
    return same
