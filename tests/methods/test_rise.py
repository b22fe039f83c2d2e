"""RISE against its formula, and on a classifier that looks at one place."""

from __future__ import annotations

import numpy as np
import pytest

import finercam_rt as fc
from finercam_rt.methods import Rise
from finercam_rt.methods.objective import softmax


def test_equals_its_formula(cnn, images):
    engine, batch = cnn.engine(), images(2)
    source = Rise(engine, masks=40, seed=3)
    masks = np.concatenate(list(source._random_masks(batch.shape[2:])))
    assert masks.shape == (40, *batch.shape[2:])
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-6
    references = np.array([[0, 4, -2], [1, -2, -2]])
    found = source.explain(batch, np.array([2, 3]), references, 0.5)
    for row, image in enumerate(batch):
        p = softmax(engine(image * masks[:, None]).logits)
        used = [c for c in references[row] if c >= 0]
        values = p[:, [2, 3][row]] - 0.5 * p[:, used].mean(1)
        expected = np.maximum(np.tensordot(values, masks, 1) / (0.5 * 40), 0)
        np.testing.assert_allclose(found.saliency_map[row], expected, rtol=1e-4, atol=1e-6)


def test_the_seed_alone_decides(cnn, images):
    one = 3 * 48 * 64 * 4
    first, again, other = (
        Rise(cnn.engine(), masks=30, seed=seed, memory=memory).explain(images(1)).saliency_map
        for seed, memory in ((1, one), (1, 7 * one), (2, one))
    )
    np.testing.assert_allclose(first, again, rtol=1e-4, atol=1e-6)
    assert np.abs(first - other).max() > 1e-2 * first.max()


def test_masks_show_half_of_every_pixel(cnn):
    masks = np.concatenate(list(Rise(cnn.engine(), masks=2000)._random_masks((48, 64))))
    assert abs(masks.mean() - 0.5) < 0.01
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 0.06


def test_it_finds_the_place_that_the_classifier_looks_at(make_toy):
    """Of a black box, head "graph": an image that is zero but in one corner, so that nothing else can matter."""
    toy = make_toy(size=(48, 48))
    engine = fc.Engine(toy.path, threads=1)
    image = np.zeros((1, 3, 48, 48), np.float32)
    image[:, :, :16, 32:] = 30 * np.random.default_rng(5).standard_normal((1, 3, 16, 16))
    target = engine(image).logits.argmax(1)
    found = Rise(engine, masks=1500).explain(image, target).saliency_map[0]
    assert found.shape == (48, 48)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert row < 16
    assert column >= 32
    assert found[:16, 32:].mean() > 1.05 * found[24:, :24].mean()


def test_progress_and_mistakes(cnn, images):
    steps = []
    Rise(cnn.engine(), masks=10, on_progress=lambda *step: steps.append(step)).explain(images(2))
    assert steps[-1] == (20, 20)
    for options, sentence in (
        ({"masks": 0}, "the number of masks is 0"),
        ({"cells": 0}, "the number of cells is 0"),
        ({"shown": 1.0}, "give a number between 0 and 1"),
        ({"seed": -1}, "the seed is -1"),
    ):
        with pytest.raises(fc.InputError, match=sentence):
            Rise(cnn.engine(), **options)
