"""After verify: the engine with its trunk in a reduced precision, held against the verified one in fp32."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from finercam_rt.errors import ExportError
from finercam_rt.export.emit import save
from finercam_rt.export.gate import automatic, measure_agreement, run_file, run_modules, shortfalls
from finercam_rt.export.precision import with_precision
from finercam_rt.export.quantize import quantize
from finercam_rt.export.refusal import refusing
from finercam_rt.export.symmetric import quantize_symmetric
from finercam_rt.images import ImageSource, load_image, source_name
from finercam_rt.manifest import INT8, PRECISIONS, InputSpec, Manifest
from finercam_rt.preprocess import Preprocessor

if TYPE_CHECKING:
    import onnx_ir

CALIBRATED, COMPARED, FEWEST = 128, 64, 8
"""Photographs to calibrate on and to compare on, at most; photographs for int8, at least."""
NOISE_IMAGES = 16
BF16_OPSET = 22
"""Convolutions in bf16 are part of ONNX since then."""


class Samples(NamedTuple):
    """calibration and comparison: (N,C,H,W) float32, normalised; described: what the latter are, in words."""

    calibration: NDArray[np.float32]
    comparison: NDArray[np.float32]
    described: str


def check_precision(precision: str, photographs: Sequence[ImageSource]) -> None:
    """Refuse what `take_samples` could not take samples for.

    Raises:
        ExportError: an unknown precision; int8 with fewer than 8 photographs.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is unknown; give one of {', '.join(PRECISIONS)}.")
    if precision in INT8 and len(photographs) < FEWEST:
        raise ExportError(
            f"int8 takes its ranges from photographs, at least {FEWEST}, and {len(photographs)} were given; "
            "give a folder of typical ones with --calibration."
        )


def take_samples(
    precision: str, photographs: Sequence[ImageSource], spec: InputSpec, images: torch.Tensor | None
) -> Samples:
    """The images that a precision needs, read before the work.

    Of the photographs every third is kept for the comparison, so that it says something about photographs that the
    ranges of int8 were not taken from. Without photographs it is on `images`, or on seeded noise.

    Raises:
        InputError: a photograph that cannot be read.
    """
    nothing = np.empty((0, *spec.shape), np.float32)
    if precision == "fp32":
        return Samples(nothing, nothing, "")
    kept = [source for position, source in enumerate(photographs) if position % 3 != 2]
    rest = [source for position, source in enumerate(photographs) if position % 3 == 2]
    if precision not in INT8:
        kept, rest = [], list(photographs)
    calibration = _load(_spread(kept, CALIBRATED), spec)
    if images is not None:
        return Samples(calibration, images.numpy(), f"the {len(images)} images given")
    if photographs:
        comparison = _load(_spread(rest, COMPARED), spec)
        return Samples(calibration, comparison, f"{len(comparison)} photographs")
    noise = np.random.default_rng(0).standard_normal((NOISE_IMAGES, *spec.shape), np.float32)
    return Samples(calibration, noise, f"{NOISE_IMAGES} images of seeded noise")


def reduce(
    trunk: fx.GraphModule,
    tail: fx.GraphModule,
    emit: Callable[..., onnx_ir.Model],
    twin: Path,
    manifest: Manifest,
    precision: str,
    samples: Samples,
    force: bool,
    class_embeddings: NDArray[np.float32] | None = None,
) -> tuple[onnx_ir.Model, Manifest]:
    """The engine of `twin` with its trunk in another precision, and its manifest with what the comparison measured.

    Args:
        trunk, tail: images -> boundary; (boundary, target, references, alpha) -> outputs.
        emit: (trunk, opset=...) -> the ONNX model.
        twin: the verified fp32 engine; files may lie beside it.
        manifest: the twin's.
        precision: "fp16", "bf16", "int8" or "int8-symmetric".
        samples: see `take_samples`.
        force: whether a difference above the thresholds of gate.py is written down and no error.
        class_embeddings: (K,D), of a zero-shot model.

    Raises:
        ExportError: the precision cannot be had, or the maps and classes differ from the twin's by too much.
    """
    folder = Path(tempfile.mkdtemp(dir=twin.parent))  # of its own: the twin may have any name
    draft = folder / "draft.onnx"
    opset = max(manifest.opset, BF16_OPSET) if precision == "bf16" else manifest.opset
    line = f"precision: the trunk in {precision}"
    if precision == "int8":
        graph, line = quantize(twin, folder, samples.calibration, automatic(manifest, 1, class_embeddings))
    elif precision == "int8-symmetric":
        graph, line = quantize_symmetric(twin, samples.calibration, automatic(manifest, 1, class_embeddings))
    else:
        with refusing(f"computing the trunk in {precision}"):
            reduced = with_precision(trunk, precision)
        graph = emit(reduced, opset=opset)
    manifest = dataclasses.replace(manifest, precision=precision, opset=opset, passes=(*manifest.passes, line))
    if precision == "bf16":
        run, where = run_modules(reduced, tail, manifest), "the same arithmetic in PyTorch"
    else:
        save(graph, manifest, draft)
        run, where = run_file(draft, precision), "ONNX Runtime"
    means, compared = measure_agreement(run_file(twin, "fp32"), run, manifest, samples.comparison, class_embeddings)
    low = shortfalls(means, compared)
    if low and not force:
        raise ExportError(
            f"in {precision} the engine differs from its fp32 twin on {samples.described}: {', '.join(low)}; nothing "
            "was written; choose another precision or other photographs, or write it all the same with --force."
        )
    measured: dict[str, Any] = {
        "against": "the fp32 engine",
        "images": samples.described,
        "computed_by": where,
        "maps_compared": compared,
        **{name: value if np.isfinite(value) else None for name, value in means.items()},
        **({"below_threshold": low} if low else {}),
        **({"calibration_photographs": len(samples.calibration)} if precision in INT8 else {}),
    }
    return graph, dataclasses.replace(manifest, verification={**manifest.verification, "precision": measured})


def _spread(items: Sequence[ImageSource], count: int) -> list[ImageSource]:
    """At most `count` of the items, evenly spaced, since a folder is often sorted by class."""
    step = max(1.0, len(items) / count)
    return [items[int(position * step)] for position in range(min(count, len(items)))]


def _load(sources: Sequence[ImageSource], spec: InputSpec) -> NDArray[np.float32]:
    images, view = np.empty((len(sources), *spec.shape), np.float32), np.empty(spec.view_shape, np.uint8)
    preprocess = Preprocessor(spec)
    for position, source in enumerate(sources):
        preprocess(load_image(source, position, spec.channels), images[position], view, source_name(source, position))
    return images
