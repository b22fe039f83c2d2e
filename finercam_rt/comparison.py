"""How far two engines agree on one photograph: their maps and their classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops

TOP_SHARE = 0.05


class Agreement(NamedTuple):
    """cosine and Spearman's rank correlation of two raw maps; the share of the top 5 % of pixels that both have."""

    cosine: float
    spearman: float
    top_overlap: float


def compare_maps(a: NDArray[np.float32], b: NDArray[np.float32], size: tuple[int, int]) -> Agreement:
    """Agreement of two raw maps of one grid, (h,w) float32, both of status ok; the pixels are those of `size` (H,W).

    Spearman's correlation is Pearson's of the ranks, ties sharing their mean rank.
    """
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    drawn = ops.render(np.stack([a, b]), size).image.reshape(2, -1)
    count = max(1, round(TOP_SHARE * drawn.shape[1]))
    tops = [set(np.argsort(-pixels, kind="stable")[:count].tolist()) for pixels in drawn]
    return Agreement(
        cosine=float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))),
        spearman=_correlation(_ranks(x), _ranks(y)),
        top_overlap=len(tops[0] & tops[1]) / count,
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
