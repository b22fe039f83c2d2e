"""ROAD: remove and debias, the confidence after removed pixels were imputed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values
from finercam_rt.evaluation.metrics.imputation import impute
from finercam_rt.evaluation.metrics.options import THRESHOLD, MetricOptions
from finercam_rt.evaluation.metrics.perturbed import (
    confidences,
    measurable,
    predict,
    ranks,
    target_probability,
)

_BETTER = {"road": True, "road_morf": False, "road_lerf": True}
COLUMNS = tuple(_BETTER)
PERCENTILES = tuple(range(10, 100, 10))
NOISE = 0.01
"""Standard deviation of the imputed pixels' noise, in normalised space."""


class Road:
    """MoRF = mean over p of p_c(x_p) - p_c(x); LeRF the same with the least salient pixels; road = (LeRF - MoRF) / 2.

    x_p is the image whose pixels at and above the p-th percentile of the map are imputed, p = 10, 20, ... 90: at p = 10
    nine tenths of them. One noise an image, the same for all p and all maps, so that maps differ by the maps alone.

    Source: Rong et al., ICML 2022; as in pytorch-grad-cam, on softmax probabilities.
    """

    name = "road"
    needs_explain = False

    def __init__(self, columns: Sequence[str], options: MetricOptions) -> None:
        """Take some of `COLUMNS`."""
        self.columns = tuple(columns)
        self._options = options

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """What is removed first should matter, what is removed last should not."""
        return {column: _BETTER[column] for column in self.columns}

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """-1 to 1; NaN for a map that says nothing, a target of probability zero, or nothing left to impute from."""
        rows = measurable(batch, saliency)
        found = {column: np.full(len(saliency), np.nan) for column in _BETTER}
        for place, row in enumerate(rows.tolist()):
            if {"road", "road_morf"} & set(self.columns):
                found["road_morf"][row] = self._mean_drop(batch, saliency, row, place, least=False)
            if {"road", "road_lerf"} & set(self.columns):
                found["road_lerf"][row] = self._mean_drop(batch, saliency, row, place, least=True)
        found["road"] = (found["road_lerf"] - found["road_morf"]) / 2
        return {column: found[column] for column in self.columns}

    def _mean_drop(self, batch: MeasuredBatch, saliency: Floats, row: int, place: int, *, least: bool) -> float:
        if self._options.ties == THRESHOLD:
            removed = at_percentiles(saliency[row], least=least)
        else:
            removed = by_rank(ranks(batch, saliency)[place], least=least)
        if removed.all(axis=(1, 2)).any():
            return float("nan")
        noise = self._noise(batch, row)
        copies = np.stack([impute(batch.images[row], gone, noise) for gone in removed])
        rows = np.array([row])
        after = confidences(batch, rows, predict(batch, copies)[None]).target[0]
        return float(after.mean() - target_probability(batch)[row])

    def _noise(self, batch: MeasuredBatch, row: int) -> Floats:
        def draw() -> Floats:
            random = np.random.default_rng([self._options.seed, int(batch.indices[row])])
            return NOISE * random.standard_normal(batch.images.shape[1:], dtype=np.float32)

        return batch.once(("road noise", self._options.seed, row), draw)


def by_rank(places: NDArray[np.int32], *, least: bool) -> NDArray[np.bool_]:
    """(9,H,W) what is removed at each percentile: (100 - p) % of the pixels, the most or the least salient."""
    numbers = np.round((1 - np.array(PERCENTILES) / 100) * places.size).astype(np.int64)[:, None, None]
    return np.asarray(places >= places.size - numbers if least else places < numbers)


def at_percentiles(saliency: Floats, *, least: bool) -> NDArray[np.bool_]:
    """(9,H,W) the same by the map's percentiles, equal pixels together."""
    values = -saliency if least else saliency
    return np.asarray(values >= np.percentile(values, PERCENTILES)[:, None, None])
