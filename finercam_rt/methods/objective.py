"""What a perturbed image is worth: the contrast's value T, of which the seeds are the derivative."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finercam_rt.methods.protocol import Classes, Floats

Values = NDArray[np.float64]
Objective: TypeAlias = tuple[int, Classes, float, str]
"""What `objective_values` takes behind the logits: one image's target, references and alpha, and the objective."""


def softmax(values: NDArray[np.floating]) -> Values:
    """exp(y_k) / sum_j exp(y_j) over the last axis, in float64; NaN where a value is infinite or NaN."""
    with np.errstate(invalid="ignore"):
        shifted = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def objective_values(logits: Floats, target: int, references: Classes, alpha: float, objective: str) -> Values:
    """(M,) T = y_c - alpha * (weighted) mean of y_i over the references, of M images of one contrast.

    Args:
        logits: (M,K) float32.
        target: c.
        references: (R,), -2 where unused. They are fixed; their weights are not.
        alpha: strength; 0 gives y_c.
        objective: "weighted" (weights q, the softmax of this image's y over the references), "mean", or "softmax" (the
            mean, of probabilities in the place of logits).

    Source: Finer-CAM (CVPR 2025) and pytorch-grad-cam, without the latter's epsilon; DESIGN, section 2.
    """
    scores = softmax(logits) if objective == "softmax" else logits.astype(np.float64)
    used = references[references >= 0]
    if alpha == 0 or not len(used):
        return scores[:, target]
    others = scores[:, used]
    contrast = (softmax(others) * others).sum(axis=1) if objective == "weighted" else others.mean(axis=1)
    return np.asarray(scores[:, target] - alpha * contrast)
