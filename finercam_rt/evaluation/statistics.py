"""Means with bootstrap intervals, over images, and of paired differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
ROUNDING = 1e-6
"""Differences up to this are what float32 makes of the same map drawn in two ways."""
_CHUNK = 500_000
"""Counts in memory at once, 4 MB."""


class Interval(NamedTuple):
    """A mean over so many images, and the ends of its interval; NaN where no image has a value."""

    mean: float
    low: float
    high: float
    images: int

    @property
    def covers_zero(self) -> bool:
        """Whether the interval cannot tell the mean from 0, or both differ by float32's rounding alone."""
        return not (self.low > ROUNDING or self.high < -ROUNDING)


class Bootstrap:
    """Percentile bootstrap over the N images of one evaluation: every row and column sees the same resamples.

    The resamples are those of images, so that differences are paired. Only their counts are ever in memory, some at a
    time. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """

    def __init__(self, images: int, seed: int, resamples: int = RESAMPLES) -> None:
        """Set what is drawn: `resamples` times N of N images with replacement."""
        self._images, self._seed, self.resamples = images, seed, resamples

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of each column of each resample, (resamples, M).

        values: (N,M), NaN where an image has none; it then takes no part, and a resample without any value is NaN.
        """
        there = np.isfinite(values)
        filled = np.where(there, values, 0.0)
        weights = there.astype(np.float64)
        parts = []
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = [(counts @ filled) / (counts @ weights) for counts in self._counts()]
        return np.concatenate(parts)

    def intervals(self, values: NDArray[np.float64]) -> list[Interval]:
        """The mean of each column of (N,M), with its interval; of one image, or none, there is no interval."""
        count = np.isfinite(values).sum(axis=0)
        drawn = self.means(values)
        tail = 50 * (1 - CONFIDENCE)
        result = []
        for column, of in enumerate(count.tolist()):
            mean = float(np.nanmean(values[:, column])) if of else float("nan")
            means = drawn[:, column][np.isfinite(drawn[:, column])]
            low, high = np.percentile(means, [tail, 100 - tail]) if of > 1 else (float("nan"), float("nan"))
            result.append(Interval(mean, float(low), float(high), of))
        return result

    def _counts(self) -> Iterator[NDArray[np.float64]]:
        """How often each image is in each resample, some of them (n,N) at a time."""
        rng = np.random.default_rng(self._seed)
        at_once = max(1, _CHUNK // self._images)
        for start in range(0, self.resamples, at_once):
            rows = min(at_once, self.resamples - start)
            drawn = rng.integers(0, self._images, (rows, self._images))
            drawn += (np.arange(rows) * self._images)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * self._images)
            yield counts.reshape(rows, self._images).astype(np.float64)
