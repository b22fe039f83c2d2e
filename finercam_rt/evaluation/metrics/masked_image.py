"""What the classifier and the method say of the image times its map: average drop, coherency, ADCC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values, drawable
from finercam_rt.evaluation.metrics.perturbed import (
    confidences,
    measurable,
    predict,
    rows_of,
    spread,
    target_probability,
)

_BETTER = {"average_drop": False, "increase_in_confidence": True, "coherency": True, "adcc": True}
COLUMNS = tuple(_BETTER)


class Complexity:
    """The mean of the min-max normalised map; NaN for a map that says nothing.

    Source: Poppi et al., Revisiting the evaluation of class activation mapping, CVPR Workshops 2021.
    """

    name = "complexity"
    columns = ("complexity",)
    needs_explain = False

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """Simpler is better."""
        return {"complexity": False}

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """0 to 1."""
        rows = np.flatnonzero(drawable(saliency))
        return {"complexity": spread(complexity(normalised(saliency[rows])), rows, len(saliency))}


class MaskedImage:
    """Average drop, increase in confidence, coherency and ADCC: all of x * L, with L the min-max normalised map.

    average drop = max(0, p_c - p_c(x L)) / p_c; increase in confidence = 1 where p_c(x L) > p_c, else 0; coherency =
    (1 + Pearson's correlation of L and the map of x L for c) / 2; ADCC = the harmonic mean of coherency, 1 - complexity
    and 1 - average drop. The means over the images are the figures of the papers. x is in normalised space, so that
    what L hides becomes zero there.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018 (the first two); Poppi et al., CVPR Workshops 2021.
    """

    name = "masked_image"

    def __init__(self, columns: Sequence[str]) -> None:
        """Take some of `COLUMNS`."""
        self.columns = tuple(columns)
        self.needs_explain = "coherency" in columns or "adcc" in columns

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """A drop is bad, the others are good."""
        return {column: _BETTER[column] for column in self.columns}

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """0 to 1; NaN for a map that says nothing, a target of probability zero, or a second map without a value."""
        rows = measurable(batch, saliency)
        if not len(rows):
            return {column: np.full(len(saliency), np.nan) for column in self.columns}
        maps = normalised(rows_of(saliency, rows))
        masked = rows_of(batch.images, rows) * maps[:, None].astype(np.float32)
        found: dict[str, Values] = {}
        if self.needs_explain:
            if batch.explain is None:
                raise InputError("coherency and ADCC ask the method for another map; give the batch its `explain`.")
            again = batch.explain(masked, batch.target[rows])
            logits = again.logits
            found["coherency"] = coherency(maps, again.saliency)
        else:
            logits = predict(batch, masked)
        before, after = target_probability(batch)[rows], confidences(batch, rows, logits[:, None]).target[:, 0]
        found["average_drop"] = np.maximum(0, before - after) / before
        found["increase_in_confidence"] = (after > before).astype(np.float64)
        if self.needs_explain:
            found["adcc"] = harmonic_mean(found["coherency"], 1 - complexity(maps), 1 - found["average_drop"])
        return {column: spread(found[column], rows, len(saliency)) for column in self.columns}


def normalised(saliency: Floats) -> Values:
    """(map - min) / (max - min), in float64, of maps that are not constant."""
    maps = saliency.astype(np.float64)
    low = maps.min(axis=(1, 2), keepdims=True)
    return np.asarray((maps - low) / (maps.max(axis=(1, 2), keepdims=True) - low))


def complexity(maps: Values) -> Values:
    """(n,) the means of normalised maps (n,H,W)."""
    return np.asarray(maps.mean(axis=(1, 2)))


def coherency(maps: Values, again: Floats) -> Values:
    """(n,) (1 + r) / 2, r Pearson's correlation of two maps (n,H,W); NaN where the second says nothing."""
    second = np.where(drawable(again)[:, None, None], again, np.nan).astype(np.float64)
    a, b = (values - values.mean(axis=(1, 2), keepdims=True) for values in (maps, second))
    norms = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.asarray((1 + np.clip((a * b).sum(axis=(1, 2)) / norms, -1, 1)) / 2)


def harmonic_mean(*parts: Values) -> Values:
    """n / sum 1 / part of values in [0, 1]; 0 where one of them is 0."""
    least = np.min(parts, axis=0)  # NaN where a part is
    with np.errstate(divide="ignore"):
        mean = len(parts) / sum(1 / part for part in parts)
    return np.where(least == 0, 0.0, mean)
