"""Whether a contender's answer is right, against eager autograd with its own objective; nothing wrong is timed."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional

from comparison.contenders import REFERENCES, Answer, Contender, reshape_transform
from finercam_rt.export.eager import objective_value, run_with_gradients
from finercam_rt.manifest import LayerInfo

LOGIT_TOLERANCE = 1e-4
MAP_TOLERANCE = 2e-3
"""Relative L2 error of the normalised map: grad-cam adds 1e-7 to each divisor and interpolates by another library."""


def check(
    contender: Contender, answer: Answer, model: torch.nn.Module, layer: LayerInfo, images: torch.Tensor
) -> dict[str, float]:
    """Largest errors of the logits and of the maps that are not degenerate, with their number.

    Raises:
        ValueError: an error above its tolerance, or no map that says anything.
    """
    with torch.no_grad():
        logits = model(images)
    measured: dict[str, float] = {}
    if answer.logits is not None:
        error = float((torch.as_tensor(answer.logits) - logits).abs().max() / logits.abs().max())
        _require(error <= LOGIT_TOLERANCE, f"its logits differ by {error:.1e}")
        measured["logits_relative_max"] = error
    if contender.objective is None:
        return measured
    expected = _normalised(_oracle(contender, model, layer, images, logits))
    got = _normalised(torch.as_tensor(np.asarray(answer.saliency_map)).float())
    if got.shape[1:] != expected.shape[1:]:
        scaled = functional.interpolate(expected[:, None], got.shape[1:], mode="bilinear", align_corners=False)
        expected = _normalised(scaled[:, 0])
    speaking = expected.flatten(1).amax(1) > 0
    _require(bool(speaking.any()), "no map of the model says anything, so there is nothing to compare")
    errors = (got - expected).flatten(1).norm(dim=1)[speaking] / expected.flatten(1).norm(dim=1)[speaking]
    worst = float(errors.nan_to_num(nan=torch.inf).max())
    _require(worst <= MAP_TOLERANCE, f"its map differs from autograd's by {worst:.1e}")
    return {**measured, "normalised_map_relative_l2": worst, "maps": float(speaking.sum())}


def _oracle(
    contender: Contender, model: torch.nn.Module, layer: LayerInfo, images: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """The raw Grad-CAM map (N,h,w) by autograd, of the predicted class against the nearest ones."""
    assert contender.objective is not None
    order = logits.argsort(dim=1, descending=True, stable=True)
    targets, references = order[:, 0].tolist(), order[:, 1 : 1 + REFERENCES].tolist()
    (activations,), scores = run_with_gradients(model, [layer.name], images)
    alphas = [contender.alpha] * len(images)
    value = objective_value(scores, targets, references, alphas, contender.objective)
    (gradients,) = torch.autograd.grad(value, activations)
    channels_first = (lambda tensor: tensor) if layer.layout == "nchw" else reshape_transform(layer)
    weights = channels_first(gradients).mean((2, 3), keepdim=True)
    return torch.relu((weights * channels_first(activations.detach())).sum(1))


def _normalised(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-30)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
