"""Deletion and insertion: confidence while the most salient pixels go, or come, first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values
from finercam_rt.evaluation.metrics.options import INDEX, MetricOptions
from finercam_rt.evaluation.metrics.perturbed import (
    Confidences,
    counts,
    measurable,
    nearest_probability,
    removed,
    spread,
    target_probability,
)

DELETION, INSERTION = "deletion", "insertion"


class Curves(NamedTuple):
    """share: (S+1,) of the pixels deleted or inserted, 0 to 1; values: by name, (N,S+1), NaN rows where undefined."""

    share: NDArray[np.float64]
    values: Mapping[str, NDArray[np.float64]]


class PerturbationCurve:
    """The area under p*_c over the share of pixels deleted from the image, or inserted into the fill (trapezoids).

    Source: Petsiuk et al., RISE, BMVC 2018.
    """

    needs_explain = False

    def __init__(self, name: str, options: MetricOptions) -> None:
        """Take "deletion" or "insertion"."""
        self.name = name
        self.columns = (name,)
        self._fill = options.insertion_fill if name == INSERTION else options.fill
        self._steps = options.steps

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """Deletion is better the smaller, insertion the larger."""
        return {self.name: self.name == INSERTION}

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """0 to 1; NaN for a map that says nothing or a target of probability zero."""
        curve = self.curves(batch, saliency).values[self.name]
        return {self.name: np.asarray((curve[:, 1:] + curve[:, :-1]).sum(axis=1) / (2 * self._steps))}

    def curves(self, batch: MeasuredBatch, saliency: Floats) -> Curves:
        """p*_c under the metric's name; of deletion also "confidence_drop" and "relative_drop", CD and RD.

        What `measure` computed for the same array is not computed again.
        """
        return batch.once_for(
            saliency, ("curves", self.name, self._fill, self._steps), lambda: self._make(batch, saliency)
        )

    def _make(self, batch: MeasuredBatch, saliency: Floats) -> Curves:
        rows, count = measurable(batch, saliency), len(saliency)
        share = np.linspace(0, 1, self._steps + 1)
        if not len(rows):
            empty = np.full((count, len(share)), np.nan)
            return Curves(share, dict.fromkeys(self._names(), empty))
        whole = Confidences(target_probability(batch)[rows, None], nearest_probability(batch)[rows, None])
        if self.name == INSERTION:
            number = np.concatenate([[0], counts(saliency, share[1:-1], INDEX)])
            seen = removed(batch, saliency, number, self._fill, insert=True)
            target = np.concatenate([seen.target, whole.target], axis=1)
            return Curves(share, {INSERTION: spread(target, rows, count)})
        seen = removed(batch, saliency, counts(saliency, share[1:], INDEX), self._fill)
        target, nearest = (np.concatenate(pair, axis=1) for pair in zip(whole, seen, strict=True))
        drop = whole.target - target
        found = (target, drop, drop - (whole.nearest - nearest))
        return Curves(share, {name: spread(v, rows, count) for name, v in zip(self._names(), found, strict=True)})

    def _names(self) -> tuple[str, ...]:
        return (INSERTION,) if self.name == INSERTION else (DELETION, "confidence_drop", "relative_drop")
