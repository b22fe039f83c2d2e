"""What MetaCAM must do whatever ROAD says, and the choice by ROAD."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import finercam_rt as fc
from finercam_rt.methods import EngineSource, Maps, MetaCam

SHAPE = (2, 12, 16)
IMAGES = np.zeros((2, 3, *SHAPE[1:]), np.float32)


class Fixed:
    """Gives the same maps whatever it is asked."""

    def __init__(self, maps, name="fixed"):
        self.maps, self.name = maps, name

    def explain(self, images, target=None, references=None, alpha=0.0):
        zeros = np.zeros(len(images), np.int64)
        return Maps(self.maps, zeros, zeros[:, None], np.zeros((len(images), 3), np.float32))


def fixed(seed):
    maps = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
    maps[:, 0, 0], maps[:, -1, -1] = 2, -1
    return Fixed(maps, f"map {seed}")


def overlap(truth):
    """A ROAD that is known: mean vote in the truth less the mean vote elsewhere, another truth for each image."""

    def road(images, target, saliency):
        return np.array([m[t].mean() - m[~t].mean() for m, t in zip(saliency.astype(float), truth, strict=True)])

    return road


TRUTH = np.random.default_rng(9).random(SHAPE) < [[[0.2]], [[0.7]]]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.95])
def test_copies_of_one_map_give_its_top_share(share):
    one = fixed(0)
    found = MetaCam([one] * 4, overlap(TRUTH), shares=[share]).explain(IMAGES).saliency_map
    threshold = np.sort(one.maps.reshape(2, -1), axis=1)[:, ::-1][:, round(share * 12 * 16) - 1]
    np.testing.assert_array_equal(found, one.maps >= threshold[:, None, None])


def test_order_does_not_matter():
    components = [fixed(seed) for seed in range(4)]
    first, other = (
        MetaCam(given, overlap(TRUTH)).explain(IMAGES).saliency_map for given in (components, components[::-1])
    )
    np.testing.assert_array_equal(first, other)
    assert set(np.unique(first)) <= {0, 0.25, 0.5, 0.75, 1}
    assert len(np.unique(first)) > 2


@pytest.mark.parametrize("subsets", [False, True])
def test_the_adaptive_share_is_at_least_as_good_as_any_fixed_one(subsets):
    road, components = overlap(TRUTH), [fixed(seed) for seed in range(3)]
    shares = [0.1, 0.2, 0.5, 0.8]
    adaptive = road(
        IMAGES, None, MetaCam(components, road, shares=shares, subsets=subsets).explain(IMAGES).saliency_map
    )
    chosen = [tuple(components)]
    if subsets:
        chosen = [given for size in (1, 2, 3) for given in combinations(components, size)]
    fixed_ones = np.stack(
        [
            road(IMAGES, None, MetaCam(list(given), road, shares=[share]).explain(IMAGES).saliency_map)
            for given in chosen
            for share in shares
        ]
    )
    np.testing.assert_allclose(adaptive, fixed_ones.max(axis=0))
    assert len(np.unique(fixed_ones)) > 4


def test_maps_that_say_nothing_have_no_vote():
    silent, damaged, one = fixed(1), fixed(2), fixed(0)
    silent.maps[1] = -1
    damaged.maps[1, 3, 3] = np.nan
    road = overlap(TRUTH)
    found, alone, without = (
        MetaCam(given, road, shares=[0.2]).explain(IMAGES).saliency_map
        for given in ([one, silent, damaged], [one], [silent, damaged])
    )
    np.testing.assert_array_equal(found[1], alone[1])
    assert np.abs(found[0] - alone[0]).max() > 0.3
    assert not without[1].any()


def test_an_undefined_road_is_never_chosen():
    def road(images, target, saliency):
        return np.where(saliency.mean((1, 2)) > 0.4, np.nan, saliency.mean((1, 2)))

    found = MetaCam([fixed(0)], road, shares=[0.1, 0.3, 0.6]).explain(IMAGES).saliency_map
    np.testing.assert_allclose(found.mean((1, 2)), round(0.3 * 192) / 192)


def test_residual_effects_are_sums_over_subsets():
    road, components, shares = overlap(TRUTH), [fixed(seed) for seed in range(3)], [0.1, 0.4]
    found = MetaCam(components, road, shares=shares).residual_effects(IMAGES)
    assert found.names == ("map 0", "map 1", "map 2")
    best = {(): np.zeros(2)}
    for size in (1, 2, 3):
        for members in combinations(range(3), size):
            given = [components[i] for i in members]
            best[members] = road(IMAGES, None, MetaCam(given, road, shares=shares).explain(IMAGES).saliency_map)
    none = best[0,]
    one = none + best[0, 1] - best[1,] + best[0, 2] - best[2,]
    two = one + best[0, 1, 2] - best[1, 2]
    np.testing.assert_allclose(found.effects[:, 0], np.stack([none, one, two], axis=1))


def test_components_of_an_engine(several, images):
    engine, steps = several.engine(), []
    components = [EngineSource(engine, method) for method in ("gradcam", "layercam", "hirescam")]
    assert [source.name for source in components] == ["gradcam", "layercam", "hirescam"]
    batch = images(2)
    truth = np.zeros((2, 48, 64), bool)
    truth[:, :20, :30] = True
    meta = MetaCam(components, overlap(truth), on_progress=lambda *step: steps.append(step))
    found = meta.explain(batch, alpha=1.0)
    assert found.saliency_map.shape == (2, 48, 64)
    assert found.saliency_map.max() > 0
    assert steps[-1] == (20, 20)
    expected = engine.with_method("layercam")(batch, contrasts=[fc.Contrast(alpha=1.0)])
    again = components[1].explain(batch, alpha=1.0)
    np.testing.assert_array_equal(again.saliency_map, expected.saliency_map[:, 0])
    np.testing.assert_array_equal(again.references, expected.references[:, 0])


def test_mistakes_get_one_sentence():
    with pytest.raises(fc.InputError, match="no components to vote"):
        MetaCam([], overlap(TRUTH))
    for shares in ([], [0.5, 1.0], [0.0]):
        with pytest.raises(fc.InputError, match="give at least one, each between 0 and 1"):
            MetaCam([fixed(0)], overlap(TRUTH), shares=shares)
