"""The grid pointing game: in a picture of several photographs, does the map of a class lie on its own?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Pool, Values, drawable
from finercam_rt.evaluation.metrics.options import MetricOptions


class Grids(NamedTuple):
    """images (n,C,H,W) float32: the grids; tiles (n,H,W) bool: where each one's own tile is; rows (n,): whose it is."""

    images: Floats
    tiles: NDArray[np.bool_]
    rows: NDArray[np.intp]


class GridPointingGame:
    """sum of the grid's raw map in the image's own tile / its sum, the map being that of the image's target.

    The other tiles are photographs of the classes that look most like it: of those in the data set, the ones whose
    logits for the image are nearest to the target's. Tiles are the photographs made smaller (means over areas), so that
    the grid has the size that the classifier takes; places and photographs are drawn by seed and image.

    Source: Böhle et al., Convolutional dynamic alignment networks, CVPR 2021, with random classes and full-size tiles.
    """

    name = "grid_pointing_game"
    columns = ("grid_pointing_game",)
    needs_explain = True

    def __init__(self, options: MetricOptions) -> None:
        """Take tiles a side, and the seed."""
        self._side, self._seed = options.tiles, options.seed

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """A map that knows nothing of the tiles has 1 / tiles."""
        return {self.name: True}

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """0 to 1; NaN where the target is not the known class, or the grid's map says nothing."""
        if batch.explain is None:
            raise InputError("the grid pointing game asks the method for other maps; give the batch its `explain`.")
        grids = batch.once(("grids", self._side, self._seed), lambda: self._grids(batch))
        result = np.full(len(saliency), np.nan)
        if len(grids.rows):
            maps = batch.explain(grids.images, batch.target[grids.rows], shared=True).saliency
            said = drawable(maps)
            values = maps[said].astype(np.float64)
            result[grids.rows[said]] = (values * grids.tiles[said]).sum(axis=(1, 2)) / values.sum(axis=(1, 2))
        return {self.name: result}

    def _grids(self, batch: MeasuredBatch) -> Grids:
        pool = batch.pool
        present = np.empty(0, np.int64) if pool is None else np.unique(pool.labels[pool.labels >= 0])
        needed = self._side**2
        if pool is None or len(present) < needed:
            raise InputError(
                f"the grid pointing game needs photographs of {needed} labelled classes, and there are {len(present)}; "
                "add some, or leave it out."
            )
        own = pool.labels[batch.indices]
        # a tile is its own truth only where the class explained is the one that it shows
        rows = np.flatnonzero(((own == batch.target) | (own < 0)) & np.isfinite(batch.logits).all(axis=1))
        grids = [self._grid(batch, pool, row, present) for row in rows.tolist()]
        rows = rows[[grid is not None for grid in grids]] if grids else rows
        made = [grid for grid in grids if grid is not None]
        channels, height, width = batch.images.shape[1:]
        images = np.stack([grid for grid, _ in made]) if made else np.empty((0, channels, height, width), np.float32)
        tiles = np.stack([tile for _, tile in made]) if made else np.empty((0, height, width), bool)
        return Grids(images, tiles, rows)

    def _grid(
        self, batch: MeasuredBatch, pool: Pool, row: int, present: NDArray[np.int64]
    ) -> tuple[Floats, NDArray[np.bool_]] | None:
        """The grid of one image and its tile; None where all photographs of one of the other classes are damaged."""
        random = np.random.default_rng([self._seed, int(batch.indices[row])])
        target, logits = int(batch.target[row]), batch.logits[row].astype(np.float64)
        others = present[present != target]
        # classes that the data set has and the classifier has not cannot look like any
        distance = np.array([abs(logits[k] - logits[target]) if k < len(logits) else np.inf for k in others])
        nearest = others[np.argsort(distance, kind="stable")][: self._side**2 - 1]
        if len(nearest) < self._side**2 - 1:
            raise InputError(
                f"the grid pointing game needs {self._side**2} labelled classes; add some, or leave it out."
            )
        photographs = [_one_of(np.flatnonzero(pool.labels == k), pool, random) for k in nearest]
        if any(photograph is None for photograph in photographs):
            return None
        place = int(random.integers(self._side**2))
        photographs.insert(place, batch.images[row])
        return compose([photograph for photograph in photographs if photograph is not None], self._side, place)


def compose(photographs: list[Floats], side: int, place: int) -> tuple[Floats, NDArray[np.bool_]]:
    """A grid (C,H,W) of side * side photographs (C,H,W) made smaller, row by row, and where the one at `place` is."""
    channels, height, width = photographs[0].shape
    rows, columns = np.linspace(0, height, side + 1).astype(int), np.linspace(0, width, side + 1).astype(int)
    grid, tile = np.empty((channels, height, width), np.float32), np.zeros((height, width), bool)
    for number, photograph in enumerate(photographs):
        y, x = divmod(number, side)
        there = (slice(rows[y], rows[y + 1]), slice(columns[x], columns[x + 1]))
        vertical, horizontal = _area(height, rows[y + 1] - rows[y]), _area(width, columns[x + 1] - columns[x])
        grid[:, there[0], there[1]] = vertical @ photograph @ horizontal.T
        tile[there] = number == place
    return grid, tile


def _one_of(places: NDArray[np.intp], pool: Pool, random: np.random.Generator) -> Floats | None:
    """One of these photographs by chance, of those that can be read; None where none can."""
    while len(places):
        chosen = int(random.choice(places))
        try:
            photograph: Floats = pool.load([chosen])[0]
        except InputError:
            places = places[places != chosen]
        else:
            return photograph
    return None


def _area(size: int, smaller: int) -> Floats:
    """(smaller,size) the matrix of means over areas."""
    edges = np.linspace(0, size, smaller + 1)
    low, high = edges[:-1, None], edges[1:, None]
    cells = np.arange(size)
    overlap = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None)
    return np.asarray(overlap / (high - low), np.float32)
