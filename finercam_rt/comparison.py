"""How far two engines agree on one photograph: their maps and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops

TOP_SHARE = 0.05
OK = ops.Status.OK.label


class Agreement(NamedTuple):
    """cosine and Spearman's rank correlation of two raw maps; the share of the top 5 % of pixels that both have."""

    cosine: float
    spearman: float
    top_overlap: float


class Comparable(Protocol):
    """What is compared, one row an image: logits (N,K), raw maps (N,h,w) and the maps' status; an Explanation is."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """(N,K)."""

    @property
    def saliency_map(self) -> NDArray[np.float32]:
        """(N,h,w), raw."""

    @property
    def status(self) -> Sequence[str]:
        """Of each map."""


def compare_explained(a: Comparable, b: Comparable, size: tuple[int, int]) -> list[dict[str, Any]]:
    """A record an image: same_class (predicted), logit_error, status of both; where both are ok map_error, `Agreement`.

    The errors are |b - a| / |a|, L2 norms over the logits and over the raw map. Both must have explained the same
    classes against the same references, and differ by the engines alone; size is that of the input, (H,W).
    """
    records: list[dict[str, Any]] = []
    for row, (first, second) in enumerate(zip(a.logits.astype(np.float64), b.logits.astype(np.float64), strict=True)):
        record: dict[str, Any] = {
            "same_class": bool(first.argmax() == second.argmax()),
            "logit_error": _error(first, second),
            "status": [a.status[row], b.status[row]],
        }
        if record["status"] == [OK, OK]:
            record["map_error"] = _error(a.saliency_map[row], b.saliency_map[row])
            record |= compare_maps(a.saliency_map[row], b.saliency_map[row], size)._asdict()
        records.append(record)
    return records


def mean_agreement(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the records of `compare_explained`: of the maps where there are two, of classes and logits over all.

    NaN where there is nothing to average.
    """
    names = (*Agreement._fields, "map_error", "logit_error", "same_class")
    means = {name: _mean([record[name] for record in records if name in record]) for name in names}
    means["class_agreement"] = means.pop("same_class")
    return means


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


def _error(a: NDArray[Any], b: NDArray[Any]) -> float:
    """|b - a| / |a|."""
    first = a.astype(np.float64)
    return float(np.linalg.norm(b - first) / max(float(np.linalg.norm(first)), 1e-30))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
