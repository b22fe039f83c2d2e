"""Beside an engine of head "taps": the graph from the target layer's activations to the logits, in a file of its own.

What is computed before the target layer need not be run again for each masked copy of its activations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export.assemble import Assembly
from finercam_rt.export.cut import Split
from finercam_rt.export.emit import save, to_onnx
from finercam_rt.export.hooks import hooked
from finercam_rt.export.method import positions
from finercam_rt.export.outputs import feature_map, with_feature_map
from finercam_rt.export.refusal import refusing
from finercam_rt.export.rewriter import fake_mode
from finercam_rt.export.sink import sink_selections
from finercam_rt.export.verify import LOGIT_TOLERANCE
from finercam_rt.manifest import LayerInfo, Manifest
from finercam_rt.tail import Tail
from finercam_rt.tail_manifest import TailManifest

if TYPE_CHECKING:
    import onnx_ir

aten = torch.ops.aten

_KEPT = 0.7
"""Share of the channels that are left in what a tail is verified on, and which ones an image keeps, by chance."""


def carried_shapes(split: Split) -> tuple[tuple[int, ...], ...]:
    """The shapes, without the batch, of the tensors that cross the cut beside the activations.

    Raises:
        ExportError: one of them is not float32, or has no axis of images in front.
    """
    activations, *carried = split.boundary
    batch = str(activations.shape[0])
    shapes = []
    for value in carried:
        if not isinstance(value, torch.Tensor):
            if _times(value, activations.shape[0]) is None:
                raise ExportError(
                    f"the tail reads a number that the batch decides ({value}), so it cannot be a file of its own; "
                    "leave the tail out, or choose a later target layer."
                )
            continue
        per_image = value.ndim > 0 and str(value.shape[0]) == batch
        if value.dtype != torch.float32 or not per_image or not all(isinstance(s, int) for s in value.shape[1:]):
            raise ExportError(
                f"the tail reads a value {tuple(map(str, value.shape))} {str(value.dtype)[6:]} beside the activations, "
                "which has no row for each image; leave the tail out, or choose another target layer."
            )
        shapes.append(tuple(int(size) for size in value.shape[1:]))
    return tuple(shapes)


def _times(value: Any, batch: Any) -> int | None:
    """How many times the batch a number that crosses the cut is; None where it is a tensor or anything else."""
    if not isinstance(value, torch.SymInt) or not isinstance(batch, torch.SymInt):
        return None
    ratio = value.node.expr / batch.node.expr
    return int(ratio) if ratio.is_Integer else None


def cut_sha256(split: Split, weights_sha256: str, layer: LayerInfo) -> str:
    """Says which engines and tails come from one cut of one model: SHA-256 (hex) of weights, layer and operations."""
    facts = [
        weights_sha256,
        dataclasses.asdict(layer),
        split.tail.code,
        [str(value) for value in carried_shapes(split)],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_tail(path: Path, split: Split, engine: Engine, model: nn.Module, images: torch.Tensor) -> None:
    """Write activations (M,...), carried_<i> (M,...) -> logits (M,K), M dynamic, once it was found equal to the model.

    Args:
        path: where it goes, with its own manifest.
        split: the model, cut at one target layer.
        engine: the verified engine, in fp32, that it belongs to.
        model: images -> logits, what both are made from.
        images: (N,C,H,W) float32, normalised, to verify on.

    Raises:
        ExportError: an operation that ONNX has no form for; logits that differ by more than the tolerance.
        EngineError, BackendError: the graph does not run.
    """
    graph, manifest = _emit(split, engine.manifest)
    save(graph, manifest, path)
    save(graph, dataclasses.replace(manifest, verification=_verify(path, engine, model, images)), path)


def _emit(split: Split, manifest: Manifest) -> tuple[onnx_ir.Model, TailManifest]:
    """The ONNX model and its manifest."""
    taps = manifest.taps
    assert taps is not None
    assert taps.cut_sha256 is not None
    assert manifest.num_classes is not None
    (layer,) = manifest.layers
    made = TailManifest(
        model=manifest.model.name,
        layer=layer.name,
        activations=layer.shape(taps.channels),
        carried=taps.carried,
        num_classes=manifest.num_classes,
        cut_sha256=taps.cut_sha256,
        opset=manifest.opset,
        producer=manifest.producer,
    )
    tail, _ = sink_selections(split.tail)
    with refusing("putting the tail together"):
        values = [node.meta["val"] for node in tail.graph.nodes if node.op == "placeholder"]
        assembly, names = Assembly(fake_mode(tail.graph)), iter(made.inputs)
        activations = assembly.input(next(names), values[0])
        batch = values[0].shape[0]
        rows = assembly.call(aten.sym_size.int, activations, 0, value=batch)
        carried = []
        for value in values[1:]:  # what is no tensor is the number of images, or of windows
            times = _times(value, batch)
            carried.append(
                assembly.input(next(names), value)
                if times is None
                else assembly.call(operator.mul, times, rows, value=value)
            )
        outputs = assembly.add(tail, [activations, *carried])
        program = assembly.program(outputs)
    axes = {"activations": "rows"}
    return to_onnx(program, list(made.inputs), ["logits"], manifest.opset, axes), made


def _verify(path: Path, engine: Engine, model: nn.Module, images: torch.Tensor) -> dict[str, Any]:
    """Hold the tail to the model, run eagerly with the same activations and with some of their channels put to zero."""
    (layer,) = engine.manifest.layers
    tail = Tail(path, engine.manifest, backend="onnxruntime", threads=1)
    outputs = engine(images.numpy())
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for share in (1.0, _KEPT):
        kept = _channel_mask(outputs.activations.shape, layer, share, generator)
        got = tail.logits(outputs.activations * kept.numpy(), outputs.carried)
        # each image alone too, in a batch of another size
        alone = tail.logits(outputs.activations[:1] * kept[:1].numpy(), [values[:1] for values in outputs.carried])
        want = _logits_with(model, layer, images, kept)
        spread = want.abs().max().clamp(min=1e-30)
        for found, wanted in ((got, want), (alone, want[:1])):
            worst = max(worst, float(((torch.from_numpy(np.ascontiguousarray(found)) - wanted).abs() / spread).max()))
    if not worst <= LOGIT_TOLERANCE:
        raise ExportError(
            f"the compiled tail does not equal the model: relative error {worst:.1e} of the logits, where "
            f"{LOGIT_TOLERANCE:.0e} is allowed; nothing was written, please report it."
        )
    return {"logits_relative_max": worst, "images": len(images), "against": "eager PyTorch, float32, channels masked"}


def _channel_mask(shape: tuple[int, ...], layer: LayerInfo, share: float, generator: torch.Generator) -> torch.Tensor:
    """1 at a share of each image's channels, 0 at the others, over the map's positions; 1 at prefix tokens."""
    mask = torch.ones(shape)
    values = positions(mask, layer)
    channels = values.data.shape[values.channel]
    chosen = torch.rand(shape[0], channels, generator=generator) <= share
    values.data.mul_(chosen.unsqueeze(values.position))  # a view of the mask
    return mask


def _logits_with(model: nn.Module, layer: LayerInfo, images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The model's logits with the layer's output multiplied by factors."""

    def multiply(_module: nn.Module, _inputs: object, output: Any) -> Any:
        return with_feature_map(output, feature_map(output, layer) * factors, layer)

    with hooked([(model.get_submodule(layer.name), multiply)]), torch.no_grad():
        logits: torch.Tensor = model(images)
    return logits
