"""Raw maps as pytorch-grad-cam returns them: in [0, 1], of the input's size, several layers averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finercam_rt.resizing import bilinear

EPSILON = 1e-7
"""What pytorch-grad-cam adds to the largest value before it divides by it."""

Maps = NDArray[np.float32]


def finished(layers: Sequence[Maps], size: tuple[int, int]) -> Maps:
    """Raw maps (N,h,w), one array a layer, as one (N,H,W) float32 in [0, 1].

    Each is min-max normalised and resized to `size` (H,W), bilinear with half-pixel centres; their mean is normalised
    again. A map without a positive value comes out as zeros, one that is not finite as NaN.
    """
    return normalised(np.mean([resized(normalised(maps), size) for maps in layers], axis=0, dtype=np.float32))


def normalised(maps: Maps) -> Maps:
    """(map - min) / (max - min + EPSILON), image by image."""
    shifted: Maps = maps - maps.min(axis=(1, 2), keepdims=True)
    shifted /= np.float32(EPSILON) + shifted.max(axis=(1, 2), keepdims=True)
    return shifted


def resized(maps: Maps, size: tuple[int, int]) -> Maps:
    """(N,h,w) to (N,H,W), bilinear with half-pixel centres, edges clamped, no antialiasing (cv2.resize)."""
    for axis, wanted in ((1, size[0]), (2, size[1])):
        if maps.shape[axis] != wanted:
            matrix = bilinear(maps.shape[axis], wanted)
            maps = matrix @ maps if axis == 1 else maps @ matrix.T
    return maps
