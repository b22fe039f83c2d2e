"""Stage 7: the engine's logits and maps against eager autograd; a file that fails is not kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from finercam_rt.engine import Engine, Outputs
from finercam_rt.errors import ExportError
from finercam_rt.export.eager import objective_value, run_with_gradients
from finercam_rt.export.method import raw_map
from finercam_rt.manifest import LayerInfo

MAP_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-4


def eager_map(
    model: nn.Module, layer: LayerInfo, objective: str, method: str, images: torch.Tensor, outputs: Outputs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What eager autograd says for the targets, references and alphas of `outputs`.

    Returns:
        logits (N,K), the raw map (N,h,w), and the norm (N,) of each map before its ReLU: the scale of its rounding.
    """
    activations, logits = run_with_gradients(model, layer.name, images)
    value = objective_value(
        logits,
        [int(v) for v in outputs.target],
        [[int(v) for v in row] for row in outputs.references],
        [float(v) for v in outputs.alpha],
        objective,
    )
    (gradients,) = torch.autograd.grad(value, activations)
    with torch.no_grad():
        expected = raw_map(activations, gradients, layer, method)
        # what the ReLU hides: A and G of the other sign have the negative part of the same scores for most methods
        hidden = raw_map(activations, -gradients, layer, method)
        scale = (expected.square() + hidden.square()).flatten(1).sum(1).sqrt()
    return logits.detach(), expected, scale


def verify(
    engine: Engine, model: nn.Module, layer: LayerInfo, objective: str, method: str, images: torch.Tensor
) -> dict[str, Any]:
    """Run the engine on batches of one and of all images, with automatic and pinned contrasts, and compare.

    Args:
        engine: a finercam_rt.Engine of the file under test.
        model: the model it was made from.
        layer: the target layer.
        objective: "weighted" or "mean".
        method: one of manifest.METHODS.
        images: (N,3,H,W) float32, normalised, N >= 2.

    Returns:
        What was measured: errors (relative L2 of the maps, largest relative difference of the logits), images, cases.

    Raises:
        ExportError: an error above the tolerance, or an automatic choice that eager logits do not support.
    """
    num_classes = engine.manifest.num_classes
    count = images.shape[0]
    pinned = [(3 * i) % num_classes for i in range(count)]
    others = [[(target + 1) % num_classes] for target in pinned]
    cases: list[dict[str, Any]] = [
        {"alpha": 0.0},
        {"alpha": 0.6},
        {"alpha": np.linspace(0.5, 2.5, count, dtype=np.float32)},
        {"target": pinned, "alpha": 1.0},
        {"target": pinned, "references": others, "alpha": 1.0},
    ]
    worst_map = worst_logit = 0.0
    for batch, arguments in [(images[:1], cases[1]), *((images, case) for case in cases)]:
        outputs = engine(batch.numpy(), **arguments)
        logits, expected, scale = eager_map(model, layer, objective, method, batch, outputs)
        got = torch.from_numpy(np.ascontiguousarray(outputs.saliency_map))
        difference = (got - expected).flatten(1).norm(dim=1)
        # a map of zero scale must be matched exactly
        errors = torch.where(scale > 0, difference / scale.clamp(min=1e-30), difference)
        spread = logits.abs().max().clamp(min=1e-30)
        logit_error = (torch.from_numpy(outputs.logits) - logits).abs().max() / spread
        worst_map = max(worst_map, float(errors.nan_to_num(nan=torch.inf).max()))
        worst_logit = max(worst_logit, float(logit_error.nan_to_num(nan=torch.inf)))
        _check_choices(outputs, logits, arguments, float(spread) * LOGIT_TOLERANCE)
    if worst_map > MAP_TOLERANCE or worst_logit > LOGIT_TOLERANCE:
        raise ExportError(
            f"the compiled engine does not equal the model: relative error {worst_map:.1e} of the maps and "
            f"{worst_logit:.1e} of the logits, where {MAP_TOLERANCE:.0e} is allowed; "
            "nothing was written, please report it."
        )
    return {
        "map_relative_l2": worst_map,
        "logits_relative_max": worst_logit,
        "images": count,
        "cases": len(cases) + 1,
        "against": "eager autograd, float32",
    }


def _check_choices(outputs: Outputs, logits: torch.Tensor, arguments: dict[str, Any], margin: float) -> None:
    """Automatic targets are the largest logits and automatic references the nearest, up to rounding."""
    for row, target, references in zip(logits, outputs.target, outputs.references, strict=True):
        if "target" not in arguments and row.max() - row[int(target)] > margin:
            raise ExportError("the compiled engine predicts another class than the model; nothing was written.")
        if "references" not in arguments:
            distance = (row - row[int(target)]).abs()
            distance[int(target)] = torch.inf
            nearest = distance.sort().values[: len(references)]
            if (distance[torch.as_tensor(references)] - nearest).abs().max() > 2 * margin:
                raise ExportError("the compiled engine chooses other references than the model; nothing was written.")
