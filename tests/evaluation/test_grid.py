"""The grid pointing game on a method that finds a class by its colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Explained
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name
from finercam_rt.evaluation.metrics.grid import compose

SIZE, CLASSES = 24, 6


@dataclass
class Photographs:
    """Two photographs of each class k, of brightness k + 1."""

    labels: np.ndarray
    loaded: list

    def load(self, indices):
        self.loaded += list(indices)
        return np.stack([np.full((3, SIZE, SIZE), self.labels[k] + 1, np.float32) for k in indices])


@pytest.fixture
def pool():
    return Photographs(np.repeat(np.arange(CLASSES), 2), [])


def classifier(images):
    """The logit of class k is k: the nearest classes are the neighbouring ones."""
    return np.repeat(np.arange(CLASSES, dtype=np.float32)[None], len(images), axis=0)


def by_colour(images, target, shared=True):
    """The map of class k is where the brightness is k + 1."""
    there = np.abs(images.mean(axis=1) - (target[:, None, None] + 1)) < 1e-3
    return Explained(there.astype(np.float32), classifier(images), target)


def batch_of(make_batch, pool, rows, explain=by_colour):
    labels = pool.labels[rows]
    images = np.stack([np.full((3, SIZE, SIZE), k + 1, np.float32) for k in labels])
    return make_batch(images, classifier, target=labels, indices=np.array(rows), pool=pool).explained_by(explain)


def measure(batch, **options):
    maps = np.zeros_like(batch.images[:, 0])  # the images' own maps take no part
    return metrics_by_name(["grid_pointing_game"], MetricOptions(**options))[0].measure(batch, maps)[
        "grid_pointing_game"
    ]


@pytest.mark.parametrize("tiles", [2])
def test_a_method_that_knows_the_class_gets_all(make_batch, pool, tiles):
    found = measure(batch_of(make_batch, pool, [0, 3, 10, 11]), tiles=tiles)
    np.testing.assert_allclose(found, 1)


def test_a_method_that_knows_nothing_gets_the_tiles_share(make_batch, pool):
    def even(images, target, shared):
        maps = np.ones((len(images), SIZE, SIZE), np.float32)
        maps[:, ::2] = 2
        return Explained(maps, classifier(images), target)

    np.testing.assert_allclose(measure(batch_of(make_batch, pool, [0, 3, 10], even)), 1 / 4)


def test_the_other_tiles_are_the_nearest_classes(make_batch, pool):
    seen = []

    def look(images, target, shared):
        seen.append(images)
        return by_colour(images, target)

    measure(batch_of(make_batch, pool, [0, 5], look))
    tiles = [set(np.unique(image.round(4)).tolist()) for image in seen[0]]
    assert tiles == [{1, 2, 3, 4}, {2, 3, 4, 1}]  # classes 0 to 3; class 2 with 1, 3 and the first of 0 and 4


def test_grids_are_drawn_by_place_and_shared_by_methods(make_batch, pool):
    seen = []

    def look(images, target, shared):
        seen.append(images)
        return by_colour(images, target)

    batch = batch_of(make_batch, pool, [0, 5, 7], look)
    measure(batch)
    loads = len(pool.loaded)
    assert loads == 9
    measure(batch.explained_by(look))
    assert len(pool.loaded) == loads
    measure(batch_of(make_batch, pool, [7, 5], look))
    assert np.array_equal(seen[0][[2, 1]], seen[2])


def test_undefined_where_the_class_explained_is_not_the_one_shown(make_batch, pool):
    batch = batch_of(make_batch, pool, [0, 3])
    wrong = batch.__class__(
        batch.images, batch.logits, np.array([0, 4]), batch.forward, indices=batch.indices, pool=pool, explain=by_colour
    )
    assert np.isnan(measure(wrong)).tolist() == [False, True]

    def nothing(images, target, shared):
        return Explained(np.zeros_like(images[:, 0]), classifier(images), target)

    assert np.isnan(measure(batch.explained_by(nothing))).all()


def test_too_few_classes_or_no_method_are_refused(make_batch, pool):
    with pytest.raises(InputError, match="needs photographs of 9 labelled classes, and there are 6"):
        measure(batch_of(make_batch, pool, [0]), tiles=3)
    batch = batch_of(make_batch, pool, [0])
    with pytest.raises(InputError, match="explain"):
        measure(batch.__class__(batch.images, batch.logits, batch.target, batch.forward, pool=pool))
    with pytest.raises(InputError, match="labelled classes"):
        measure(make_batch(batch.images, classifier).explained_by(by_colour))


@pytest.mark.parametrize("side", [2, 3])
def test_tiles_are_means_over_areas(side):
    """Sizes that the side does not divide, too: the mean of a photograph is its tile's."""
    rng = np.random.default_rng(0)
    photographs = [rng.random((3, 20, 31)).astype(np.float32) for _ in range(side * side)]
    covered = np.zeros((20, 31), int)
    for place, photograph in enumerate(photographs):
        grid, tile = compose(photographs, side, place)
        covered += tile
        np.testing.assert_allclose(grid[:, tile].mean(axis=1), photograph.mean(axis=(1, 2)), rtol=1e-5)
    assert (covered == 1).all()
    grid, _ = compose([p[:, :, :30] for p in photographs[:4]], 2, 0)
    first = photographs[0][:, :, :30].reshape(3, 10, 2, 15, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(grid[:, :10, :15], first, rtol=1e-5)
