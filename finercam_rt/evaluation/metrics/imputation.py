"""The noisy linear imputer of ROAD: removed pixels become what their neighbours suggest."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats

_NEIGHBOURS = {
    (dy, dx): 1 / 6 if dy == 0 or dx == 0 else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
}
"""Weights of the eight neighbours: 1/6 along the edges, 1/12 across the corners."""
_SMALL = 64
"""Pixels that are not divided further."""


def impute(image: Floats, removed: NDArray[np.bool_], noise: Floats | None = None) -> Floats:
    """The image (C,H,W) whose removed pixels (H,W) are the weighted means of their eight neighbours, all at once.

    A neighbour along an edge weighs 1/6, one across a corner 1/12, one beyond the image nothing. `noise` (C,H,W), if
    given, is added to the removed pixels. Constants and linear ramps come back exactly, but for the image's border.

    Raises:
        InputError: every pixel is removed, so that there is nothing to start from; SciPy is missing.

    Source: Rong et al., A consistent and efficient evaluation strategy for attribution methods (ROAD), ICML 2022.
    """
    if removed.all():
        raise InputError("every pixel is removed, so that none is left to impute from; remove fewer.")
    result = image.copy()
    if removed.any():
        solve, pixels = _splu(), np.flatnonzero(removed)
        pixels = pixels[np.argsort(_dissection(*removed.shape).ravel()[pixels])]
        matrix, right = _system(image, removed, pixels)
        # symmetric and diagonally dominant, in an order that fills little: neither pivoting nor another order is needed
        options = {"SymmetricMode": True}
        solver = solve(matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, panel_size=1, relax=20, options=options)
        result.reshape(len(image), -1)[:, pixels] = solver.solve(right).T
        if noise is not None:
            result[:, removed] += noise[:, removed]
    return result


def _system(image: Floats, removed: NDArray[np.bool_], pixels: NDArray[np.intp]) -> tuple[Any, NDArray[np.float64]]:
    """(u,u) sparse, (u,C): sum of weights * x - sum over removed neighbours of w x' = sum over the others of w x'.

    Row k is that of the removed pixel pixels[k], numbered in reading order.
    """
    from scipy.sparse import csc_matrix

    height, width = removed.shape
    count = len(pixels)
    number = np.full(removed.shape, -1, np.int32)
    number.ravel()[pixels] = np.arange(count)
    weights, right = np.zeros(removed.shape), np.zeros(image.shape)
    known = np.where(removed, 0, image).astype(np.float64)
    rows, columns, values = [number[removed]], [number[removed]], []
    for (dy, dx), weight in _NEIGHBOURS.items():
        here = (slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
        weights[here] += weight
        right[:, here[0], here[1]] += weight * known[:, there[0], there[1]]
        both = removed[here] & removed[there]
        rows.append(number[here][both])
        columns.append(number[there][both])
        values.append(np.full(len(rows[-1]), -weight))
    values.insert(0, weights[removed])
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csc_matrix(entries, shape=(count, count)), right.reshape(len(image), -1)[:, pixels].T


@functools.cache
def _dissection(height: int, width: int) -> NDArray[np.int32]:
    """(height,width) the place of each pixel in a nested dissection: both halves of the grid before the line between.

    Eliminated so, neighbours of pixels fill little of the matrix, whichever of them are left out.
    """
    order = np.empty((height, width), np.int32)
    first = 0
    parts = [(slice(0, height), slice(0, width), False)]
    while parts:
        rows, columns, whole = parts.pop()
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if whole or high * wide <= _SMALL:
            order[rows, columns] = first + np.arange(high * wide).reshape(high, wide)
            first += high * wide
        elif high >= wide:
            middle = (rows.start + rows.stop) // 2
            parts.append((slice(middle, middle + 1), columns, True))
            parts += [(half, columns, False) for half in (slice(rows.start, middle), slice(middle + 1, rows.stop))]
        else:
            middle = (columns.start + columns.stop) // 2
            parts.append((rows, slice(middle, middle + 1), True))
            parts += [(rows, half, False) for half in (slice(columns.start, middle), slice(middle + 1, columns.stop))]
    return order


def _splu() -> Any:
    try:
        from scipy.sparse.linalg import splu
    except ImportError:
        raise InputError("ROAD needs SciPy; `pip install scipy`.") from None
    return splu
