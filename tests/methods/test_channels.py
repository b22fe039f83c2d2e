"""Methods that change the image, or look at it, on images of other channels than RGB."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import Engine, ops
from finercam_rt.methods import MiCam, ScoreCam
from finercam_rt.methods.mutual_information import information

from ..fakes.taps import with_taps


def masked(toy, image):
    """The activations (C,h,w) of a toy, and the image seen through each of them."""
    activations = toy.activations(image[None]).astype(np.float32)
    return activations[0], ops.mask(image[None], activations)[0]


@pytest.mark.parametrize("channels", [1, 4])
def test_score_cam(make_toy, channels):
    toy = make_toy(channels=channels)
    image = np.random.default_rng(2).normal(size=(channels, *toy.size)).astype(np.float32)
    activations, seen = masked(toy, image)
    target = int(toy.logits(seen).mean(axis=0).argmax())
    weights = toy.logits(seen)[:, target] - toy.logits(np.zeros_like(image)[None])[0, target]
    expected = np.maximum(np.tensordot(weights, activations, 1), 0)
    assert expected.max() > 0
    with Engine(with_taps(toy, gradients=False), threads=1) as engine:
        source = ScoreCam(engine, form="paper", memory=3 * image.nbytes)
        found = source.explain(image[None], np.array([target]), np.full((1, 3), -2), 0.0)
    assert np.linalg.norm(found.saliency_map[0] - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_mi_cam_looks_at_the_mean_of_the_channels(make_toy, channels):
    toy = make_toy(channels=channels)
    image = np.random.default_rng(2).normal(size=(channels, *toy.size)).astype(np.float32)
    activations, _ = masked(toy, image)
    white = np.ones((1, 1, *toy.size), np.float32)
    grey = (image * 0.25 + 0.5).mean(axis=0)
    told = information(grey, ops.mask(white, activations[None])[0, :, 0])
    expected = np.maximum(np.tensordot(told.mutual, activations, 1), 0)
    with Engine(with_taps(toy, gradients=False), threads=1) as engine:
        found = MiCam(engine).explain(image[None]).saliency_map[0]
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2 * expected.max())
    other = information(image[0], ops.mask(white, activations[None])[0, :, 0]).mutual
    assert channels == 1 or np.abs(other / told.mutual - 1).max() > 0.1, "one channel alone says something else"
