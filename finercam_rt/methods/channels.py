"""A part of a layer's channels in the place of all, and what that costs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.comparison import compare_maps
from finercam_rt.errors import InputError
from finercam_rt.methods.protocol import Classes, Floats, MapSource


def largest_variance(activations: Floats, count: int | None) -> NDArray[np.int64]:
    """(N,k) the channels of each image whose activations (N,C,h,w) vary most over the positions, in their own order.

    The variance, and not the norm: a channel that is the same everywhere masks everything, and says nothing of any
    place, however large it is. Ties to the lower index; count None is all of them.

    Raises:
        InputError: a count below 1.
    """
    batch, channels = activations.shape[:2]
    if count is None or count >= channels:
        return np.broadcast_to(np.arange(channels), (batch, channels))
    if count < 1:
        raise InputError(f"the channels are {count}; give at least 1, or leave it out for all of them.")
    variance = activations.reshape(batch, channels, -1).astype(np.float64).var(axis=2)
    return np.sort(np.argsort(-variance, axis=1, kind="stable")[:, :count], axis=1)


class SubsetError(NamedTuple):
    """How far maps from a part of the channels agree with those from all, means over `images` maps that are both ok.

    cosine and Spearman's rank correlation of the raw maps; top_overlap, the share of the top 5 % of pixels in both.
    """

    images: int
    cosine: float
    spearman: float
    top_overlap: float


def subset_error(
    part: MapSource, whole: MapSource, images: Floats, target: Classes | None = None, alpha: float = 0.0
) -> SubsetError:
    """What a method with `channels` costs against the same method without, on (N,C,H,W) images; NaN where none count.

    It takes the runs of both, so a few images are enough.
    """
    maps = [source.explain(images, target, alpha=alpha).saliency_map for source in (part, whole)]
    both = np.flatnonzero((ops.status(maps[0]) == ops.Status.OK) & (ops.status(maps[1]) == ops.Status.OK))
    size = (images.shape[2], images.shape[3])
    found = [compare_maps(maps[0][row], maps[1][row], size) for row in both]
    means = np.mean(found, axis=0) if found else np.full(3, np.nan)
    return SubsetError(len(found), *(float(value) for value in means))
