"""Noise robustness: does the map stay while the class stays, and change when the class changes?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values, drawable
from finercam_rt.evaluation.metrics.options import MetricOptions
from finercam_rt.manifest import RGB

_LEAST_SEGMENTS = 2
"""The order of one says nothing, and agrees with every other."""
PERSISTENCE = 0.9
"""p of rank-biased overlap."""
_KERNEL_SIZE, _MAX_DIST, _RATIO = 4, 200, 0.2
"""Of Quickshift: LIME's choice, some thirty segments in 224 x 224 pixels."""
_CONSISTENCY, _RESPONSIVENESS, _ROBUSTNESS = "noise_consistency", "noise_responsiveness", "noise_robustness"


class NoiseRobustness:
    """Consistency x responsiveness, from how noise reorders the segments of the image by their mean saliency.

    Of an image's noisy copies, consistency is the mean rank-biased overlap with the clean map's order over those with
    the class predicted still, responsiveness the mean of 1 - overlap over those with another. Noise is Gaussian; its
    standard deviations are in units of the image's own, and it is drawn by seed and image. Segments are Quickshift's of
    the clean image.

    Source: the idea is that of arXiv 2508.18154, whose noise levels, p and normalisation are not public: these are
    ours.
    """

    name = "noise_robustness"
    columns = (_ROBUSTNESS, _CONSISTENCY, _RESPONSIVENESS)
    needs_explain = True

    def __init__(self, options: MetricOptions) -> None:
        """Take the noise, its draws, and the seed."""
        self._levels = np.repeat(options.noise, options.noise_draws)
        self._seed = options.seed

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """All are good."""
        return dict.fromkeys(self.columns, True)

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """0 to 1; a column is NaN where no copy speaks to it.

        So are all three where the map explains another class than the predicted one, or where it or the map of a noisy
        copy says nothing.
        """
        if batch.explain is None:
            raise InputError("noise robustness asks the method for other maps; give the batch its `explain`.")
        result = {column: np.full(len(saliency), np.nan) for column in self.columns}
        for row in np.flatnonzero(drawable(saliency) & (batch.logits.argmax(axis=1) == batch.target)).tolist():
            again = batch.explain(self._copies(batch, row), None, shared=True)
            if not drawable(again.saliency).all():
                continue
            segments = self._segments(batch, row)
            if segments.max() + 1 < _LEAST_SEGMENTS:
                continue
            clean = segment_means(saliency[row], segments)
            overlaps = np.array([rank_biased_overlap(clean, segment_means(map_, segments)) for map_ in again.saliency])
            same = again.target == batch.target[row]
            if same.any():
                result[_CONSISTENCY][row] = overlaps[same].mean()
            if not same.all():
                result[_RESPONSIVENESS][row] = (1 - overlaps[~same]).mean()
        result[_ROBUSTNESS] = result[_CONSISTENCY] * result[_RESPONSIVENESS]
        return result

    def _copies(self, batch: MeasuredBatch, row: int) -> Floats:
        def make() -> Floats:
            random = np.random.default_rng([self._seed, int(batch.indices[row])])
            image = batch.images[row]
            noise = random.standard_normal((len(self._levels), *image.shape), dtype=np.float32)
            deviations = (self._levels * image.std()).astype(np.float32)
            return np.asarray(image + deviations[:, None, None, None] * noise)

        return batch.once(("noisy copies", tuple(self._levels), self._seed, row), make)

    def _segments(self, batch: MeasuredBatch, row: int) -> NDArray[np.int64]:
        return batch.once(("segments", row), lambda: quickshift_segments(batch.images[row]))


def quickshift_segments(image: Floats) -> NDArray[np.int64]:
    """(H,W) the number of each pixel's segment, from 0, of an image (C,H,W) of any range; C other than 3 as grey.

    Raises:
        InputError: scikit-image is missing.

    Source: Vedaldi and Soatto, Quick shift and kernel methods for mode seeking, ECCV 2008.
    """
    try:
        from skimage import segmentation
    except ImportError:
        raise InputError("noise robustness needs scikit-image; `pip install scikit-image`.") from None
    low, high = float(image.min()), float(image.max())
    pixels = (image.transpose(1, 2, 0).astype(np.float64) - low) / max(high - low, 1e-12)
    if len(image) != RGB:  # the colour space of its distances is of red, green and blue
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), RGB, axis=2)
    quickshift: Any = segmentation.quickshift
    found = quickshift(pixels, kernel_size=_KERNEL_SIZE, max_dist=_MAX_DIST, ratio=_RATIO, rng=0)
    return np.asarray(found, np.int64)


def segment_means(saliency: Floats, segments: NDArray[np.int64]) -> Values:
    """(m,) the mean of a map (H,W) over each segment."""
    labels = segments.ravel()
    return np.asarray(np.bincount(labels, saliency.ravel().astype(np.float64)) / np.bincount(labels))


def rank_biased_overlap(a: Values, b: Values, p: float = PERSISTENCE) -> float:
    """(1 - p) / (1 - p^m) * sum_d p^(d-1) A_d of two orders of m items, given by their scores, the largest first.

    A_d is the overlap of the first d of both, 2 |S n T| / (|S| + |T|): items that tie come together, at the first of
    their places. 1 for equal orders.

    Source: Webber et al., A similarity measure for indefinite rankings, ACM TOIS 2010, cut off at m.
    """
    depths = np.arange(1, len(a) + 1)
    first = [np.sort(-scores).searchsorted(-scores) + 1 for scores in (a, b)]  # places from 1, those of ties equal
    in_a, in_b = (places[:, None] <= depths for places in first)
    agreement = 2 * (in_a & in_b).sum(axis=0) / (in_a.sum(axis=0) + in_b.sum(axis=0))
    weights = p ** (depths - 1.0)
    return float((weights * agreement).sum() / weights.sum())
