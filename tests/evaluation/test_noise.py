"""Noise robustness: rank-biased overlap, segments, and methods whose robustness is known."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Explained
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name
from finercam_rt.evaluation.metrics.noise import quickshift_segments, rank_biased_overlap, segment_means

pytest.importorskip("skimage", reason="Quickshift comes from scikit-image")
SIZE = 48


def overlap_by_sets(a: list[int], b: list[int], p: float) -> float:
    """The definition, for orders without ties."""
    terms = [p ** (d - 1) * len(set(a[:d]) & set(b[:d])) / d for d in range(1, len(a) + 1)]
    return (1 - p) / (1 - p ** len(a)) * sum(terms)


def scores_of(order: np.ndarray) -> np.ndarray:
    scores = np.empty(len(order))
    scores[order] = -np.arange(len(order))
    return scores


def test_overlap_of_equal_reversed_and_random_orders():
    """Of 30 items, p = 0.9: 1.000, 0.090 and, on average, 0.290."""
    m, rng = 30, np.random.default_rng(0)
    one = scores_of(np.arange(m))
    assert rank_biased_overlap(one, one) == pytest.approx(1)
    assert rank_biased_overlap(one, one[::-1]) == pytest.approx(0.090, abs=5e-4)
    random = [rank_biased_overlap(scores_of(rng.permutation(m)), scores_of(rng.permutation(m))) for _ in range(2000)]
    assert np.mean(random) == pytest.approx(0.290, abs=0.01)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_overlap_equals_its_definition(p):
    rng = np.random.default_rng(1)
    for m in (1, 2, 17):
        a, b = rng.permutation(m), rng.permutation(m)
        expected = overlap_by_sets(a.tolist(), b.tolist(), p)
        assert rank_biased_overlap(scores_of(a), scores_of(b), p) == pytest.approx(expected)


def test_ties_come_together():
    """Segments without evidence tie: equal maps still agree, and the numbering of the segments says nothing."""
    a, b = np.array([3.0, 0, 0, 0]), np.array([0, 0, 0, 3.0])
    assert rank_biased_overlap(a, a) == pytest.approx(1)
    weights = 0.9 ** np.arange(4)
    assert rank_biased_overlap(a, b) == pytest.approx((weights * [0, 1, 1, 1]).sum() / weights.sum())
    renumbered = rank_biased_overlap(a[[1, 0, 2, 3]], b[[1, 0, 2, 3]])
    assert renumbered == pytest.approx(rank_biased_overlap(a, b))


def test_segments_of_two_colours_and_their_means():
    image = np.zeros((3, SIZE, SIZE), np.float32)
    image[:, :, SIZE // 2 :] = [[[4.0]], [[-2.0]], [[0.5]]]
    segments = quickshift_segments(image)
    left, right = (set(half.ravel().tolist()) for half in np.split(segments, 2, axis=1))
    assert left.isdisjoint(right)
    assert left | right == set(range(len(left | right)))
    values = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    expected = [values[segments == k].mean() for k in sorted(left | right)]
    np.testing.assert_allclose(segment_means(values, segments), expected, rtol=1e-5)


def classifier(images: np.ndarray) -> np.ndarray:
    """Class 0 for smooth images, class 1 for noisy ones."""
    rough = np.abs(np.diff(images, axis=3)).mean(axis=(1, 2, 3))
    return np.stack([0 * rough + 1, 4 * rough], axis=1).astype(np.float32)


@pytest.fixture
def batch(make_batch):
    """Smooth images with structure, which strong noise makes class 1."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    images = np.stack([np.sin(6 * x + k) * np.cos(9 * y * k) for k in (1, 2)]).astype(np.float32)
    return make_batch(np.repeat(images[:, None], 3, axis=1), classifier)


def measure(batch, saliency, method, **options):
    def explain(images, target, shared):
        logits = classifier(images)
        predicted = logits.argmax(axis=1) if target is None else target
        return Explained(method(images, predicted), logits, predicted)

    metric = metrics_by_name(["noise_robustness"], MetricOptions(**options))[0]
    return metric.measure(batch.explained_by(explain), saliency)


def test_a_map_that_never_changes_is_consistent_and_answers_nothing(batch):
    fixed = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    found = measure(batch, np.stack([fixed] * 2), lambda images, predicted: np.stack([fixed] * len(images)))
    np.testing.assert_allclose(found["noise_consistency"], 1)
    np.testing.assert_allclose(found["noise_responsiveness"], 0, atol=1e-12)
    np.testing.assert_allclose(found["noise_robustness"], 0, atol=1e-12)


def test_without_noise_maps_are_consistent_and_responsiveness_is_undefined(batch):
    maps = np.abs(batch.images.mean(axis=1))
    found = measure(batch, maps, lambda images, predicted: np.abs(images.mean(axis=1)), noise=(0.0,))
    np.testing.assert_allclose(found["noise_consistency"], 1)
    assert np.isnan(found["noise_responsiveness"]).all()
    assert np.isnan(found["noise_robustness"]).all()


def test_a_map_that_follows_the_class_is_best_and_chance_is_chance(batch):
    rng = np.random.default_rng(4)
    maps = rng.random((2, SIZE, SIZE)).astype(np.float32)

    def follows(images, predicted):
        """Of one image at a time: the same map while the class stays, the reverse when it changes."""
        which = min((0, 1), key=lambda k: np.abs(images[0] - batch.images[k]).mean())
        return np.stack([maps[which] if k == 0 else 1 - maps[which] for k in predicted])

    best = measure(batch, maps, follows)
    np.testing.assert_allclose(best["noise_consistency"], 1)
    assert (best["noise_robustness"] > 0.5).all()
    chance = measure(batch, maps, lambda images, predicted: rng.random((len(images), SIZE, SIZE), np.float32))
    assert (chance["noise_robustness"] < 0.7 * best["noise_robustness"]).all()


def test_the_noise_is_the_images_own(make_batch, batch):
    """The same for the same seed and place in the data set, whatever batch the image is in."""
    seen = []

    def look(images, predicted):
        seen.append(images)
        return np.abs(images.mean(axis=1))

    maps = np.abs(batch.images.mean(axis=1))
    measure(batch, maps, look)
    measure(make_batch(batch.images[1:], classifier, indices=np.array([1])), maps[1:], look)
    assert np.array_equal(seen[1], seen[2])
    measure(batch, maps, look, seed=1)
    assert not np.array_equal(seen[3], seen[0])
    levels = (seen[0] - batch.images[0]).std(axis=(1, 2, 3)) / batch.images[0].std()
    np.testing.assert_allclose(levels, [0.1, 0.3, 1.0], rtol=0.05)


def test_undefined(batch):
    """A constant map; a map of another class than the predicted; a noisy copy without a map."""
    maps = np.abs(batch.images.mean(axis=1))
    maps[0] = 1
    found = measure(batch, maps, lambda images, predicted: np.abs(images.mean(axis=1)))
    assert np.isnan(found["noise_consistency"]).tolist() == [True, False]
    other = batch.__class__(batch.images, batch.logits, np.array([0, 1]), batch.forward)
    maps = np.abs(batch.images.mean(axis=1))
    found = measure(other, maps, lambda images, predicted: np.abs(images.mean(axis=1)))
    assert np.isnan(found["noise_consistency"]).tolist() == [False, True]
    blank = measure(batch, maps, lambda images, predicted: np.zeros_like(images[:, 0]))
    assert all(np.isnan(values).all() for values in blank.values())
    with pytest.raises(InputError, match="explain"):
        metrics_by_name(["noise_robustness"])[0].measure(batch, maps)


def test_an_image_of_one_segment_says_nothing(make_batch):
    """Two orders of one item always agree."""
    tiny = make_batch(np.random.default_rng(0).random((2, 3, 16, 16)).astype(np.float32), classifier)
    assert not quickshift_segments(tiny.images[0]).any()
    maps = np.abs(tiny.images.mean(axis=1))
    found = measure(tiny, maps, lambda images, predicted: np.abs(images.mean(axis=1)), noise=(0.0,))
    assert all(np.isnan(values).all() for values in found.values())
