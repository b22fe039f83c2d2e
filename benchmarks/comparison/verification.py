"""Whether a contender's answer is right, against eager autograd with its own objective; nothing wrong is timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from comparison.contenders import REFERENCES, Answer, Contender
from finercam_rt.engine import Outputs
from finercam_rt.export.verify import eager_map
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
    """The raw map (N,h,w) by autograd, of the predicted class against the nearest ones."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    count = len(images)
    none: Any = None
    choice = Outputs(
        logits=none,
        saliency_map=none,
        target=order[:, 0].numpy(),
        references=order[:, 1 : 1 + REFERENCES].numpy(),
        alpha=np.full(count, contender.alpha, np.float32),
        status=none,
    )
    assert contender.objective is not None
    _, raw, _ = eager_map(model, layer, contender.objective, images, choice)
    return torch.as_tensor(raw)


def _normalised(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-30)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
