"""Stage 7: the engine's logits and maps against eager autograd; a file that fails is not kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from finercam_rt.contrast import Contrast, top_classes
from finercam_rt.embeddings import ClassEmbeddings
from finercam_rt.engine import Engine
from finercam_rt.errors import ExportError
from finercam_rt.export.eager import objective_value, run_with_gradients
from finercam_rt.export.method import mean_of_normalised, positions, raw_map
from finercam_rt.export.refusal import refusing
from finercam_rt.export.zero_shot import ZeroShot
from finercam_rt.manifest import Manifest
from finercam_rt.outputs import Outputs

MAP_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-4


class Expected(NamedTuple):
    """What a map (N,h,w) must be, and the scale (N,) of its rounding: an error is relative to that."""

    values: torch.Tensor
    scale: torch.Tensor


class Eager(NamedTuple):
    """What eager autograd says: logits (N,K), and for each contrast a row of values.

    maps: the saliency map, and where it has several layers their raw maps after it; the scale of a raw map is its norm
    before the ReLU. taps: of head "taps" the activations and the gradients or the channel weights, as the graph gives
    them; else empty.
    """

    logits: torch.Tensor
    maps: list[list[Expected]]
    taps: list[list[Expected]]


def run_eagerly(
    model: nn.Module,
    manifest: Manifest,
    images: torch.Tensor,
    outputs: Outputs,
    class_embeddings: ClassEmbeddings | None = None,
) -> Eager:
    """What eager autograd says for the targets, references and alphas of `outputs`."""
    layers = manifest.layers
    activations, logits = run_with_gradients(model, [layer.name for layer in layers], images)
    if isinstance(model, ZeroShot) and class_embeddings is not None:
        logits = model.logits_of(logits, torch.tensor(class_embeddings.values))
    found, taps = [], []
    for target, references, alpha in _contrasts(outputs):
        value = objective_value(logits, target.tolist(), references.tolist(), alpha.tolist(), manifest.objective)
        gradients = torch.autograd.grad(value, activations, retain_graph=True)
        maps = []
        for layer, a, g in zip(layers, activations, gradients, strict=True):
            with torch.no_grad():
                raw = raw_map(a, g, layer, manifest.method)
                # what the ReLU hides: A and G of the other sign have the negative part of the same scores, mostly
                hidden = raw_map(a, -g, layer, manifest.method)
            maps.append(Expected(raw, (raw.square() + hidden.square()).flatten(1).sum(1).sqrt()))
        found.append(maps if len(maps) == 1 else [_whole(maps, manifest.grid), *maps])
        taps.append(_taps(manifest, activations[0].detach(), gradients[0]))
    return Eager(logits.detach(), found, taps)


@refusing("verifying the engine")
def verify(
    engine: Engine, model: nn.Module, images: torch.Tensor, class_embeddings: ClassEmbeddings | None = None
) -> dict[str, Any]:
    """Run the engine on batches of one and of all images, with automatic and pinned contrasts, and compare.

    Args:
        engine: a finercam_rt.Engine of the file under test.
        model: the model it was made from.
        images: (N,3,H,W) float32, normalised, N >= 2.
        class_embeddings: of a zero-shot model; the first few of them are another set, of fewer classes than the
            references need.

    Returns:
        What was measured: errors (relative L2 of the maps, largest relative difference of the logits), images, cases.

    Raises:
        ExportError: an error above the tolerance, or an automatic choice that eager logits do not support.
    """
    manifest = engine.manifest
    sets = [None] if class_embeddings is None else [class_embeddings, _few(class_embeddings, manifest.references)]
    runs = [run for classes in sets for run in _runs(engine, classes, images)]
    worst_map = worst_logit = 0.0
    for asked, classes, batch, arguments in runs:
        outputs = asked(batch.numpy(), **arguments)
        eager = run_eagerly(model, manifest, batch, outputs, classes)
        logits = eager.logits
        map_error = 0.0
        for contrast, (maps, taps) in enumerate(zip(eager.maps, eager.taps, strict=True)):
            every = (outputs.saliency_map, *outputs.layer_maps.values())
            wanted = [*(maps if len(every) > 1 else maps[:1]), *taps]
            for got, want in zip((*every, *_given(outputs)), wanted, strict=True):
                of_contrast = got if manifest.contrasts == 1 or got is outputs.activations else got[:, contrast]
                map_error = max(map_error, _error(torch.from_numpy(np.ascontiguousarray(of_contrast)), want))
        spread = logits.abs().max().clamp(min=1e-30)
        logit_error = _largest((torch.from_numpy(outputs.logits) - logits).abs() / spread)
        if map_error > MAP_TOLERANCE or logit_error > LOGIT_TOLERANCE:
            rounding = _rounding_of_eager(model, manifest, batch, outputs, classes)
            raise ExportError(_difference(map_error, logit_error, rounding, float(spread)))
        worst_map, worst_logit = max(worst_map, map_error), max(worst_logit, logit_error)
        _check_choices(outputs, logits, arguments, float(spread) * LOGIT_TOLERANCE)
    return {
        "map_relative_l2": worst_map,
        "logits_relative_max": worst_logit,
        "images": len(images),
        "cases": len(runs),
        "against": "eager autograd, float32",
    }


def _few(embeddings: ClassEmbeddings, references: int) -> ClassEmbeddings:
    """So few classes that an image lacks a reference, or two."""
    count = min(max(2, references), len(embeddings))
    return replace(embeddings, values=embeddings.values[:count], names=embeddings.names[:count])


def _runs(
    engine: Engine, classes: ClassEmbeddings | None, images: torch.Tensor
) -> list[tuple[Engine, ClassEmbeddings | None, torch.Tensor, dict[str, Any]]]:
    """The engine with these classes, the classes, a batch, and the arguments."""
    asked = engine if classes is None else engine.with_classes(classes)
    cases = _cases(asked.classes.count, engine.manifest.contrasts, len(images))
    return [(asked, classes, batch, case) for batch, case in [(images[:1], cases[0]), *((images, c) for c in cases)]]


def _cases(classes: int, several: int, count: int) -> list[dict[str, Any]]:
    """Arguments of the engine: targets and references chosen by it (the first three) and pinned, several alphas."""
    alphas = np.linspace(0.5, 2.5, count, dtype=np.float32)
    automatic: list[dict[str, Any]] = [{"alpha": 0.6}, {"alpha": 0.0}, {"alpha": alphas}]
    if several == 1:
        pinned = [(3 * i) % classes for i in range(count)]
        others = [[(target + 1) % classes] for target in pinned]
        return [
            *automatic,
            {"target": pinned, "alpha": 1.0},
            {"target": pinned, "references": others, "alpha": 1.0},
        ]
    rows = [[(3 * i + p) % classes for p in range(several)] for i in range(count)]
    return [
        *automatic,
        {"contrasts": top_classes(1, alpha=1.0)},
        {"contrasts": [[Contrast(c, alpha=0.3 * p) for p, c in enumerate(row)] for row in rows]},
        {"contrasts": [[Contrast(c, [(c + 1) % classes], 1.0) for c in row] for row in rows]},
    ]


def _contrasts(outputs: Outputs) -> Iterator[tuple[Any, Any, Any]]:
    """target (N,), references (N,R) and alpha (N,) of each contrast."""
    if outputs.target.ndim == 1:
        yield outputs.target, outputs.references, outputs.alpha
        return
    for p in range(outputs.target.shape[1]):
        yield outputs.target[:, p], outputs.references[:, p], outputs.alpha[:, p]


def _taps(manifest: Manifest, activations: torch.Tensor, gradients: torch.Tensor) -> list[Expected]:
    """What head "taps" gives besides the map, of one contrast."""
    if manifest.taps is None:
        return []
    given = gradients
    if not manifest.taps.gradients:
        values = positions(gradients, manifest.layers[0])
        given = values.data.mean(values.position)
    return [Expected(values, values.flatten(1).norm(dim=1)) for values in (activations, given)]


def _given(outputs: Outputs) -> list[Any]:
    """The taps that the engine gives."""
    taps = (outputs.activations, outputs.gradients, outputs.channel_weights)
    return [values for values in taps if values is not None]


def _whole(maps: list[Expected], grid: tuple[int, int]) -> Expected:
    """The mean of the normalised maps; normalising divides by what the ReLU left, and rounding grows with that."""
    values = mean_of_normalised([one.values for one in maps], grid)
    growth = torch.stack([one.scale / one.values.flatten(1).norm(dim=1) for one in maps]).amax(0)
    return Expected(values, (values.flatten(1).norm(dim=1) * growth).nan_to_num(nan=torch.inf))


def _error(got: torch.Tensor, want: Expected) -> float:
    difference = (got - want.values).flatten(1).norm(dim=1)
    # a map of zero scale must be matched exactly
    return _largest(torch.where(want.scale > 0, difference / want.scale.clamp(min=1e-30), difference))


def _largest(errors: torch.Tensor) -> float:
    return float(errors.nan_to_num(nan=torch.inf).max())


def _rounding_of_eager(
    model: nn.Module,
    manifest: Manifest,
    images: torch.Tensor,
    outputs: Outputs,
    class_embeddings: ClassEmbeddings | None,
) -> float:
    """How far the model itself, run eagerly in float32, is from its own run in float64: maps, relative L2."""
    try:
        exact = run_eagerly(copy.deepcopy(model).double(), manifest, images.double(), outputs, class_embeddings)
    except Exception:
        return 0.0  # a model with float32 in its code says nothing about rounding
    rounded = run_eagerly(model, manifest, images, outputs, class_embeddings)
    pairs = (
        (a, b)
        for rows, others in ((rounded.maps, exact.maps), (rounded.taps, exact.taps))
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    return max(_error(a.values.double(), b) for a, b in pairs)


def _difference(map_error: float, logit_error: float, rounding: float, logits: float) -> str:
    """What a difference is due to. A map that float32 cannot hold is refused as a wrong one is: the tolerance stays.

    Two causes are known, both of weights that were never trained or of a layer where nothing is left of the image: a
    map that is a small difference of large terms (behind it a layer norm, before it the same values at all positions),
    and logits so large that their last digit decides the softmax over the references.
    """
    if logit_error <= LOGIT_TOLERANCE and max(rounding, logits * torch.finfo(torch.float32).eps) > MAP_TOLERANCE / 2:
        return (
            f"float32 cannot hold the map of this layer: the logits reach {logits:.1e}, PyTorch's own map is "
            f"{rounding:.1e} from its run in float64, and the engine's {map_error:.1e} from PyTorch's, where "
            f"{MAP_TOLERANCE:.0e} is allowed; check that the weights are trained ones, or choose another target layer."
        )
    return (
        f"the compiled engine does not equal the model: relative error {map_error:.1e} of the maps and "
        f"{logit_error:.1e} of the logits, where {MAP_TOLERANCE:.0e} is allowed; nothing was written, please report it."
    )


def _check_choices(outputs: Outputs, logits: torch.Tensor, arguments: dict[str, Any], margin: float) -> None:
    """Automatic targets are the largest logits and automatic references the nearest, up to rounding."""
    if "contrasts" in arguments:
        return
    for rank, (targets, references, _) in enumerate(_contrasts(outputs)):
        for row, target, others in zip(logits, targets.tolist(), references.tolist(), strict=True):
            if "target" not in arguments and row.sort(descending=True).values[rank] - row[target] > margin:
                raise ExportError("the compiled engine predicts another class than the model; nothing was written.")
            if "references" in arguments:
                continue
            distance = (row - row[target]).abs()
            distance[target] = torch.inf
            used = [index for index in others if index >= 0]
            if len(used) < min(len(others), len(row) - 1):
                raise ExportError("the compiled engine leaves references out; nothing was written, please report it.")
            nearest = distance.sort().values[: len(used)]
            if (distance[used] - nearest).abs().max() > 2 * margin:
                raise ExportError("the compiled engine chooses other references than the model; nothing was written.")
