"""The noisy linear imputer of ROAD: removed pixels become what their neighbours suggest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats

_NEIGHBOURS = {
    (dy, dx): 1 / 6 if dy == 0 or dx == 0 else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
}
"""Weights of the eight neighbours: 1/6 along the edges, 1/12 across the corners."""


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
        matrix, right = _system(image, removed)
        # symmetric and diagonally dominant: no pivoting is needed, and the ordering for A + A' makes half the fill
        options = {"SymmetricMode": True}
        solver = _splu()(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
        result[:, removed] = solver.solve(right).T
        if noise is not None:
            result[:, removed] += noise[:, removed]
    return result


def _system(image: Floats, removed: NDArray[np.bool_]) -> tuple[Any, NDArray[np.float64]]:
    """(u,u) sparse, (u,C): sum of weights * x - sum over removed neighbours of w x' = sum over the others of w x'."""
    from scipy.sparse import csc_matrix

    height, width = removed.shape
    count = int(removed.sum())
    number = np.full(removed.shape, -1, np.int32)
    number[removed] = np.arange(count)
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
    return csc_matrix(entries, shape=(count, count)), right[:, removed].T


def _splu() -> Any:
    try:
        from scipy.sparse.linalg import splu
    except ImportError:
        raise InputError("ROAD needs SciPy; `pip install scipy`.") from None
    return splu
