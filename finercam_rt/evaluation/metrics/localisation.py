"""Does the map lie on the object: energy in the box or mask, and the pointing game."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values, drawable


class EnergyInMask:
    """sum of the raw map inside the mask / its sum; NaN without a mask.

    Source: Wang et al., Score-CAM, CVPR Workshops 2020 (the energy-based pointing game).
    """

    name = "energy"
    columns = ("energy",)
    higher_is_better: ClassVar[Mapping[str, bool]] = {"energy": True}
    needs_explain = False

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """The share of each map that its mask holds, 0 to 1."""
        result = np.full(len(saliency), np.nan)
        if batch.masks is not None:
            rows = drawable(saliency) & batch.masks.any(axis=(1, 2))
            maps = saliency[rows].astype(np.float64)
            result[rows] = (maps * batch.masks[rows]).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))
        return {"energy": result}


class PointingGame:
    """1 where the largest value of the map (the first of several) lies inside the mask, else 0; NaN without a mask.

    Source: Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, without its margin of 15 pixels.
    """

    name = "pointing_game"
    columns = ("pointing_game",)
    higher_is_better: ClassVar[Mapping[str, bool]] = {"pointing_game": True}
    needs_explain = False

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """1 or 0 for each map."""
        result = np.full(len(saliency), np.nan)
        if batch.masks is not None:
            rows = np.flatnonzero(drawable(saliency) & batch.masks.any(axis=(1, 2)))
            # flattened before the rows are taken: of none of them reshape cannot tell how many pixels a map has
            peaks = saliency.reshape(len(saliency), -1)[rows].argmax(axis=1)
            result[rows] = batch.masks.reshape(len(saliency), -1)[rows, peaks]
        return {"pointing_game": result}
