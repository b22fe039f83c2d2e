"""RD@x and CD@x against code written here, on a planted classifier, and where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name
from finercam_rt.methods.objective import softmax

from .conftest import SIZE, planted, planted_maps


def random_classifier(classes: int = 7):
    """Logits of a random two-layer network: every pixel matters."""
    rng = np.random.default_rng(5)
    first = rng.normal(size=(3 * SIZE * SIZE, 16)).astype(np.float32) / 20
    second = rng.normal(size=(16, classes)).astype(np.float32)
    return lambda images: np.tanh(images.reshape(len(images), -1) @ first) @ second


@pytest.fixture
def batch(make_batch):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(5, 3, SIZE, SIZE)).astype(np.float32)
    return make_batch(images, random_classifier(), target=np.array([0, 3, 6, 1, 0]))


def by_hand(batch, saliency, share, fill):
    """One image after the other: mask >= quantile(1 - share), as the reproduction of the paper has it."""
    rows = []
    for image, target, map_, background in zip(batch.images, batch.target, saliency, fill, strict=True):
        before = softmax(batch.forward(image[None]))[0]
        gone = map_ >= np.quantile(map_.astype(np.float64), 1 - share)
        after = softmax(batch.forward(np.where(gone, background, image)[None]))[0]
        logits = batch.forward(image[None])[0]
        other = min((k for k in range(len(logits)) if k != target), key=lambda k: abs(logits[k] - logits[target]))
        drop = before[target] - after[target]
        rows.append((drop, drop - (before[other] - after[other])))
    return np.array(rows).T


@pytest.mark.parametrize("ties", ["index", "threshold"])
@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
def test_equal_to_a_loop_over_the_images(batch, fill, ties):
    saliency = np.random.default_rng(2).random((5, SIZE, SIZE)).astype(np.float32)
    backgrounds = {
        "zero": np.zeros_like(batch.images),
        "mean": np.broadcast_to(batch.images.mean(axis=(2, 3), keepdims=True), batch.images.shape),
        "blur": blurred(batch.images),
    }
    metrics = metrics_by_name(["rd@5", "cd@10", "cd@5", "rd@37.5"], MetricOptions(fill=fill, ties=ties))
    assert [metric.columns for metric in metrics] == [("rd@5", "cd@10", "cd@5", "rd@37.5")]
    found = metrics[0].measure(batch, saliency)
    for column, values in found.items():
        expected = by_hand(batch, saliency, float(column[3:]) / 100, backgrounds[fill])
        np.testing.assert_allclose(values, expected[column.startswith("rd") * 1], atol=2e-6, err_msg=column)
        assert np.abs(values).max() > 1e-3


def blurred(images):
    """A Gaussian of 5/224 of the side, cut off at 4 standard deviations, edges mirrored: one matrix a side."""
    sigma = 5 / 224 * SIZE
    radius = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    matrix = np.zeros((SIZE, SIZE))
    for row in range(SIZE):
        for offset, tap in zip(range(-radius, radius + 1), taps / taps.sum(), strict=True):
            column = row + offset
            matrix[row, -1 - column if column < 0 else 2 * SIZE - 1 - column if column >= SIZE else column] += tap
    return (matrix @ images @ matrix.T).astype(np.float32)


def test_the_planted_part_beats_the_body_chance_and_the_inverted_map(planted_batch):
    metric = metrics_by_name(["rd@10", "cd@10"])[0]
    scores = {name: metric.measure(planted_batch, map_) for name, map_ in planted_maps().items()}
    for column in metric.columns:
        truth, *others = (float(scores[name][column][0]) for name in ("truth", "body", "chance", "inverted"))
        assert truth > 0.5, column
        assert truth > 5 * max(others), (column, others)


def test_tie_rules(planted_batch):
    """A plateau of 30 pixels with 10 to remove: the first 10 in reading order, or all 30."""
    saliency = np.zeros((1, SIZE, SIZE), np.float32)
    saliency[0, 5:11, 4:9] = 1
    seen = []

    def forward(images):
        seen.append(images)
        return planted(images)

    batch = planted_batch.__class__(planted_batch.images, planted_batch.logits, planted_batch.target, forward)
    share = f"rd@{100 * 10 / SIZE**2:.4f}"
    for ties in ("index", "threshold"):
        metrics_by_name([share], MetricOptions(ties=ties))[0].measure(batch, saliency)
    first, all_ = (np.argwhere((images[0] == 0).all(axis=0)) for images in seen)
    assert first.tolist() == [[5, x] for x in range(4, 9)] + [[6, x] for x in range(4, 9)]
    assert all_.tolist() == np.argwhere(saliency[0]).tolist()


def test_shares_of_one_map_are_one_forward_pass_of_at_most_the_batch_size(make_batch):
    sizes = []

    def forward(images):
        sizes.append(len(images))
        return planted(images)

    images = np.random.default_rng(0).normal(size=(5, 3, SIZE, SIZE)).astype(np.float32)
    batch = make_batch(images, forward, forward_size=20)
    sizes.clear()
    saliency = np.random.default_rng(2).random((5, SIZE, SIZE)).astype(np.float32)
    metrics_by_name(["rd@5", "cd@5", "rd@10"])[0].measure(batch, saliency)
    assert sizes == [10]
    small = make_batch(images, forward, forward_size=3)
    sizes.clear()
    metrics_by_name(["rd@5", "cd@5", "rd@10"])[0].measure(small, saliency)
    assert max(sizes) <= 3
    assert sum(sizes) == 10


def test_undefined_maps_and_targets(make_batch):
    """Zero, constant, not finite: NaN, and the others are as they are alone."""
    images = np.random.default_rng(0).normal(size=(5, 3, SIZE, SIZE)).astype(np.float32)

    def certain(images):
        """Class 0 has no probability in the last image, by 2000 nats."""
        logits = planted(images)
        logits[-1, 0] -= 2000
        return logits

    batch = make_batch(images, planted)
    sure = batch.__class__(images, certain(images), batch.target, planted)
    saliency = np.random.default_rng(2).random((5, SIZE, SIZE)).astype(np.float32)
    alone = metrics_by_name(["rd@5"])[0].measure(batch, saliency)["rd@5"]
    saliency[0], saliency[1], saliency[3, 2, 2] = 0, 7, np.nan
    mixed = metrics_by_name(["rd@5"])[0].measure(sure, saliency)["rd@5"]
    assert np.isnan(mixed).tolist() == [True, True, False, True, True]
    assert mixed[2] == pytest.approx(alone[2], abs=1e-6)
    assert np.isnan(metrics_by_name(["rd@5"])[0].measure(batch, np.zeros_like(saliency))["rd@5"]).all()


@pytest.mark.parametrize("name", ["rd@", "rd@0", "cd@100", "rd@five", "rd@-5"])
def test_a_wrong_share_is_refused(name):
    with pytest.raises(InputError, match="per cent"):
        metrics_by_name([name])


def test_the_same_share_written_in_two_ways_is_the_same():
    assert metrics_by_name(["rd@05", "cd@2.50%"])[0].columns == ("rd@5", "cd@2.5")
    with pytest.raises(InputError, match="twice"):
        metrics_by_name(["rd@5", "rd@5.0"])


def test_one_class_has_no_nearest(make_batch):
    batch = make_batch(np.ones((1, 3, 4, 4), np.float32), lambda images: images[:, :1, 0, 0])
    with pytest.raises(InputError, match="one class"):
        _ = batch.nearest
