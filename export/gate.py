"""Last stage of a reduced precision: the engine against its fp32 twin; a file that falls short is not kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from finercam_rt import ops
from finercam_rt.comparison import compare_explained, mean_agreement
from finercam_rt.errors import ExportError
from finercam_rt.manifest import EMBEDDINGS, Manifest
from finercam_rt.outputs import Drawing

Feeds = Mapping[str, NDArray[Any]]
Runner = Callable[[Feeds], dict[str, NDArray[Any]]]
"""The graph's inputs by name, to its outputs by name."""

LEAST = {"cosine": 0.985, "spearman": 0.94, "top_overlap": 0.85, "class_agreement": 0.95}
MOST_LOGIT_ERROR = 0.15
"""Means over the images. Two real bird models in int8 reach 0.993, 0.96, 0.91, 0.996 and 0.06. What was tried and left
out falls below one of these: symmetric ranges and nothing more (cosine 0.97, Spearman 0.93; see symmetric.py), ranges
from percentiles (cosine 0.97 and less) and quantised attention (cosine 0.981)."""

_BATCH = 8


class _Explained(NamedTuple):
    logits: NDArray[np.float32]
    saliency_map: NDArray[np.float32]
    status: tuple[str, ...]


def run_file(path: Path, precision: str) -> Runner:
    """An engine in ONNX Runtime on the CPU.

    Raises:
        ExportError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # see the ONNX Runtime backend
    options.log_severity_level = 4
    left_out = ["NchwcTransformer"] if precision == "fp16" else None  # see there, too
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
    except Exception as error:  # see the ONNX Runtime backend
        raise ExportError(f"ONNX Runtime cannot load the engine of reduced precision ({error}).") from error
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_modules(trunk: nn.Module, tail: fx.GraphModule, manifest: Manifest) -> Runner:
    """The same arithmetic in PyTorch, for files that no runtime of this machine computes."""

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        images, *contrast = (torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values())
        with torch.no_grad():
            outputs = tail(tuple(trunk(images)), *contrast)
        return {name: value.numpy() for name, value in zip(manifest.outputs, outputs, strict=True)}

    return run


def automatic(manifest: Manifest, count: int, class_embeddings: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
    """The inputs beside the images that leave every choice to the graph, for `count` images.

    class_embeddings: (K,D), of a zero-shot model.
    """
    lead = (count,) if manifest.contrasts == 1 else (count, manifest.contrasts)
    return {
        "target": np.full(lead, -1),
        "references": np.full((*lead, manifest.references), -1),
        "alpha": np.ones(lead, np.float32),
        **({} if class_embeddings is None else {EMBEDDINGS: class_embeddings}),
    }


def measure_agreement(
    twin: Runner,
    reduced: Runner,
    manifest: Manifest,
    images: NDArray[np.float32],
    class_embeddings: NDArray[np.float32] | None = None,
) -> tuple[dict[str, float], int]:
    """Means of `compare_explained` for the same contrasts (of several, the first), and the number of maps compared.

    Args:
        twin, reduced: the fp32 engine and the one of reduced precision.
        manifest: of both, but for the precision.
        images: (N,C,H,W) float32, normalised.
        class_embeddings: (K,D), of a zero-shot model.
    """
    records = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        feeds = {"images": batch, **automatic(manifest, len(batch), class_embeddings)}
        first = twin(feeds)
        second = reduced(feeds | {"target": first["target_class"], "references": first["reference_classes"]})
        records += compare_explained(_explained(first, manifest), _explained(second, manifest), manifest.input.size)
    return mean_agreement(records), sum("cosine" in record for record in records)


def shortfalls(means: Mapping[str, float], compared: int) -> list[str]:
    """What is below the thresholds, in words; empty for an engine that agrees with its twin."""
    if not compared:
        return ["no image has a map in both"]
    low = [
        f"{name} {means[name]:.3f} where {LEAST[name]:g} is asked" for name in LEAST if not means[name] >= LEAST[name]
    ]
    if not means["logit_error"] <= MOST_LOGIT_ERROR:
        low.append(f"logit error {means['logit_error']:.3f} where {MOST_LOGIT_ERROR:g} is allowed")
    return low


def _explained(outputs: dict[str, NDArray[Any]], manifest: Manifest) -> _Explained:
    logits, maps = outputs["logits"], Drawing(manifest, manifest.method).map_of(outputs)
    maps = np.ascontiguousarray(maps.reshape(len(maps), -1, *maps.shape[-2:])[:, 0])
    status = ops.status(maps)
    status[~np.isfinite(logits).all(axis=1)] = ops.Status.NON_FINITE
    return _Explained(logits, maps, tuple(ops.Status(code).label for code in status.tolist()))
