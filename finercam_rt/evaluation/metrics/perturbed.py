"""Confidence in perturbed copies of a batch, which exist only as long as they are looked at."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values, drawable
from finercam_rt.evaluation.metrics.options import BLUR, MEAN, THRESHOLD
from finercam_rt.methods.objective import softmax

_BLUR = 5 / 224
"""Standard deviation of the blur over the image's longer side: RISE takes 5 pixels for 224."""


class Confidences(NamedTuple):
    """target, nearest: (n,S) the probabilities of the class explained and of the one nearest to it."""

    target: NDArray[np.float64]
    nearest: NDArray[np.float64]


def measurable(batch: MeasuredBatch, saliency: Floats) -> NDArray[np.intp]:
    """The images whose map says something and whose target has a probability to lose."""
    probability = target_probability(batch)
    return np.flatnonzero(drawable(saliency) & np.isfinite(probability) & (probability > 0))


def target_probability(batch: MeasuredBatch) -> Values:
    """(N,) the probability of each image's target."""
    return np.asarray(batch.probabilities[np.arange(len(batch.target)), batch.target])


def nearest_probability(batch: MeasuredBatch) -> Values:
    """(N,) the probability of the class nearest to each image's target."""
    return np.asarray(batch.probabilities[np.arange(len(batch.target)), batch.nearest])


def ranks(batch: MeasuredBatch, saliency: Floats) -> NDArray[np.int32]:
    """(n,H,W) the place of each pixel of the measurable maps, 0 the most salient; one sort a map for all metrics."""
    return batch.once_for(saliency, "ranks", lambda: ops.rank(rows_of(saliency, measurable(batch, saliency))))


def rows_of(values: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
    """These rows, not copied where they are all."""
    return values if len(rows) == len(values) else values[rows]


def counts(saliency: Floats, shares: NDArray[np.float64], ties: str) -> NDArray[np.int64]:
    """How many pixels the most salient share of a map is, (S,) or, where equal pixels stay together, (n,S).

    "index": round(share * H * W), at least 1. "threshold": all pixels of at least the (1 - share) quantile of their
    map, as `values >= quantile(values, 1 - share)` has them.
    """
    if ties != THRESHOLD:
        pixels = saliency.shape[1] * saliency.shape[2]
        return np.asarray(np.maximum(np.round(shares * pixels), 1), np.int64)
    flat = saliency.reshape(len(saliency), -1).astype(np.float64)
    thresholds = np.quantile(flat, 1 - shares, axis=1).T
    return np.asarray((flat[:, None] >= thresholds[:, :, None]).sum(axis=2), np.int64)


def filled(batch: MeasuredBatch, fill: str) -> Floats:
    """(N,C,H,W): what the images are where all has been removed."""
    return batch.once(("filled", fill), lambda: _fill(batch.images, fill))


def removed(
    batch: MeasuredBatch, saliency: Floats, number: NDArray[np.int64], fill: str, *, insert: bool = False
) -> Confidences:
    """Confidences after the `number` (S,) or (n,S) most salient pixels became the fill; the n measurable images.

    With `insert`, the fill is looked at in which those pixels became the image's.
    """
    rows = measurable(batch, saliency)
    places, images = ranks(batch, saliency), rows_of(batch.images, rows)
    background = rows_of(filled(batch, fill), rows)
    if insert:
        images, background = background, images
    at_once = max(1, batch.forward_size // max(1, len(rows)))
    parts = []
    for start in range(0, number.shape[-1], at_once):
        part = np.ascontiguousarray(number[..., start : start + at_once])
        copies = ops.remove(images, places, part, background)
        logits = predict(batch, copies.reshape(-1, *copies.shape[2:]))
        parts.append(confidences(batch, rows, logits.reshape(len(rows), part.shape[-1], -1)))
    return Confidences(*(np.concatenate(values, axis=1) for values in zip(*parts, strict=True)))


def confidences(batch: MeasuredBatch, rows: NDArray[np.intp], logits: Floats) -> Confidences:
    """Probabilities of the targets and of the nearest classes of these images, logits (n,S,K)."""
    probability = softmax(logits)
    return Confidences(
        *(np.take_along_axis(probability, c[rows, None, None], axis=2)[:, :, 0] for c in (batch.target, batch.nearest))
    )


def predict(batch: MeasuredBatch, images: Floats) -> Floats:
    """(M,K) logits of any number of images."""
    size = batch.forward_size
    return np.concatenate([batch.forward(images[start : start + size]) for start in range(0, len(images), size)])


def spread(values: NDArray[np.float64], rows: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """(count,...) with the values in their rows, NaN in the others."""
    result = np.full((count, *values.shape[1:]), np.nan)
    result[rows] = values
    return result


def _fill(images: Floats, fill: str) -> Floats:
    if fill == BLUR:
        sigma = _BLUR * max(images.shape[2:])
        return np.asarray(_gaussian_filter()(images, (0, 0, sigma, sigma)), np.float32)
    value = images.mean(axis=(2, 3), keepdims=True) if fill == MEAN else np.zeros((1, 1, 1, 1), np.float32)
    return np.ascontiguousarray(np.broadcast_to(value, images.shape))


def _gaussian_filter() -> Any:
    try:
        from scipy.ndimage import gaussian_filter
    except ImportError:
        raise InputError("blurring needs SciPy; `pip install scipy`, or choose another fill.") from None
    return gaussian_filter
