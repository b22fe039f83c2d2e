"""Bilinear resizing along one axis, as a product with a matrix."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=32)
def bilinear(size: int, wanted: int) -> NDArray[np.float32]:
    """(wanted,size): row t has the weights of cell t; half-pixel centres, edges clamped, no antialiasing."""
    centres = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size))), np.float32)
