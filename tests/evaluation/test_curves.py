"""Deletion and insertion against a loop and against Quantus, and on the planted classifier."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name
from finercam_rt.methods.objective import softmax

from .conftest import SIZE, planted, planted_maps

STEPS = 8


@pytest.fixture
def batch(make_batch):
    images = np.random.default_rng(1).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32) + 0.5
    return make_batch(images, planted, target=np.array([0, 1, 3]), forward_size=5)


@pytest.fixture
def saliency():
    return np.random.default_rng(2).random((3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("name", ["deletion", "insertion"])
@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_equal_to_a_loop_over_pixels(batch, saliency, name, fill):
    options = MetricOptions(fill=fill, insertion_fill=fill, steps=STEPS)
    metric = metrics_by_name([name], options)[0]
    found, curves = metric.measure(batch, saliency)[name], metric.curves(batch, saliency)
    for row, (image, map_) in enumerate(zip(batch.images, saliency, strict=True)):
        blank = np.zeros_like(image) + (image.mean(axis=(1, 2), keepdims=True) if fill == "mean" else 0)
        canvas, other = (image.copy(), blank) if name == "deletion" else (blank.copy(), image)
        curve = [softmax(planted(canvas[None]))[0, batch.target[row]]]
        for place in np.array_split(np.argsort(-map_.ravel()), STEPS):
            canvas.reshape(3, -1)[:, place] = other.reshape(3, -1)[:, place]
            curve.append(softmax(planted(canvas[None]))[0, batch.target[row]])
        np.testing.assert_allclose(curves.values[name][row], curve, atol=2e-6)
        assert found[row] == pytest.approx(np.trapezoid(curve, dx=1 / STEPS), abs=2e-6)
    assert np.array_equal(curves.share, np.linspace(0, 1, STEPS + 1))


def test_the_curves_of_deletion_hold_the_confidence_drops(batch, saliency):
    deletion, drops = metrics_by_name(["deletion", "cd@25", "rd@25"], MetricOptions(steps=STEPS))
    curves, single = deletion.curves(batch, saliency), drops.measure(batch, saliency)
    np.testing.assert_allclose(curves.values["confidence_drop"][:, 2], single["cd@25"], atol=1e-6)
    np.testing.assert_allclose(curves.values["relative_drop"][:, 2], single["rd@25"], atol=1e-6)
    assert (curves.values["relative_drop"][:, 0] == 0).all()


def test_what_was_measured_is_not_computed_again(make_batch, saliency):
    calls = []

    def forward(images):
        calls.append(len(images))
        return planted(images)

    batch = make_batch(np.ones((3, 3, SIZE, SIZE), np.float32), forward, forward_size=12)
    calls.clear()
    deletion, insertion = metrics_by_name(["deletion", "insertion"], MetricOptions(steps=STEPS))
    for metric in (deletion, insertion):
        metric.measure(batch, saliency)
        metric.curves(batch, saliency)
    assert sum(calls) == 2 * 3 * STEPS
    assert max(calls) <= 12
    deletion.measure(batch, saliency.copy())
    assert sum(calls) == 3 * 3 * STEPS


def test_the_planted_part_beats_chance_and_the_inverted_map(planted_batch):
    deletion, insertion = metrics_by_name(["deletion", "insertion"], MetricOptions(insertion_fill="zero"))
    low = {name: deletion.measure(planted_batch, map_)["deletion"][0] for name, map_ in planted_maps().items()}
    high = {name: insertion.measure(planted_batch, map_)["insertion"][0] for name, map_ in planted_maps().items()}
    assert low["truth"] < low["chance"] < low["inverted"]
    assert high["truth"] > high["chance"] > high["inverted"]


def test_undefined_where_the_map_says_nothing(batch, saliency):
    saliency[1] = 0
    for metric in metrics_by_name(["deletion", "insertion"], MetricOptions(steps=STEPS)):
        assert np.isnan(metric.measure(batch, saliency)[metric.name]).tolist() == [False, True, False]
        nothing = metric.curves(batch, np.zeros_like(saliency)).values
        assert all(np.isnan(curve).all() and curve.shape == (3, STEPS + 1) for curve in nothing.values())


def test_deletion_equals_pixel_flipping_of_quantus(batch, saliency):
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed: pip install quantus")
    torch = pytest.importorskip("torch")

    class Planted(torch.nn.Module):
        def forward(self, images):
            return torch.from_numpy(planted(images.numpy()))

    steps = 9  # Quantus flips the three channels of a pixel one after the other
    flipping = quantus.PixelFlipping(
        features_in_step=3 * SIZE * SIZE // steps,
        perturb_baseline=0.0,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    curves = flipping(
        model=Planted().eval(),
        x_batch=batch.images,
        y_batch=batch.target,
        a_batch=saliency[:, None],
        softmax=True,
        device="cpu",
    )
    metric = metrics_by_name(["deletion"], MetricOptions(steps=steps))[0]
    ours = metric.curves(batch, saliency).values["deletion"]
    np.testing.assert_allclose(ours[:, 1:], np.array(curves), atol=1e-5)
