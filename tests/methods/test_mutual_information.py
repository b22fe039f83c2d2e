"""What mutual information must do whatever its estimator, and the maps that are made of it."""

from __future__ import annotations

import numpy as np
import pytest

import finercam_rt as fc
from finercam_rt import ops
from finercam_rt.methods import MiCam, MiGrad
from finercam_rt.methods.mutual_information import information

X = np.random.default_rng(0).standard_normal((224, 224)).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal((224, 224)).astype(np.float32)


def test_information_of_affine_maps_is_that_of_the_image_itself():
    found = information(X, np.stack([X, -2 * X + 3, 1e-3 * X, NOISE, np.full_like(X, 7)]))
    counts = np.histogram(X, bins=32)[0] / X.size
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    np.testing.assert_allclose(found.mutual[:3], entropy, rtol=1e-3)
    np.testing.assert_allclose(found.of_image, entropy, rtol=1e-3)
    np.testing.assert_allclose(found.normalised[:3], 1, rtol=1e-3)
    assert 0 < found.mutual[3] < 0.02
    assert found.mutual[4] == found.of_maps[4] == found.normalised[4] == 0


def test_information_equals_its_definition():
    gray, other = X[:40, :30], X[5:45, 2:32] + 0.4 * X[:40, :30]
    counts = np.histogram2d(gray.ravel().astype(float), other.ravel().astype(float), bins=32)[0]
    p = counts / counts.sum()
    outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    expected = (p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum()
    np.testing.assert_allclose(information(gray, other[None]).mutual, expected, rtol=1e-6)


def test_a_map_that_is_not_finite_has_none():
    damaged = X.copy()
    damaged[3, 3] = np.nan
    found = information(X, np.stack([X, damaged]))
    assert np.isnan(found.mutual).tolist() == [False, True]


def test_an_image_without_contrast_has_none():
    assert information(np.ones((9, 9), np.float32), X[None, :9, :9]).mutual.tolist() == [0]


def test_the_map_is_the_same_for_every_class(cnn, images):
    source, batch = MiCam(cnn.engine()), images(2)
    maps = [source.explain(batch, np.full(2, c), None, alpha).saliency_map for c in range(9) for alpha in (0.0, 1.0)]
    assert (ops.status(maps[0]) == ops.Status.OK).all()
    for other in maps[1:]:
        np.testing.assert_array_equal(maps[0], other)


@pytest.mark.parametrize("method", [MiCam, MiGrad])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["cnn", "several", "vit"])
def test_equals_its_formula(method, kind, alpha, images, request):
    exported, batch = request.getfixturevalue(kind), images(2)
    found = method(exported.engine(), memory=1 << 16).explain(batch, alpha=alpha)
    several = exported.engine().manifest.contrasts > 1
    contrasts = [fc.Contrast(alpha=alpha)]
    outputs = exported.engine()(batch, **({"contrasts": contrasts} if several else {"alpha": alpha}))
    a = outputs.activations
    weights = outputs.channel_weights if not several else outputs.gradients[:, 0].mean((2, 3))
    if kind == "vit":
        a = a[:, 1:].swapaxes(1, 2).reshape(2, 16, 3, 4)
    photographs = batch * np.array([0.2, 0.25, 0.3])[:, None, None] + np.array([0.5, 0.4, 0.3])[:, None, None]
    for row in range(2):
        gray = np.tensordot([0.299, 0.587, 0.114], photographs[row], 1).astype(np.float32)
        resized = ops.mask(np.ones((1, 1, *gray.shape), np.float32), a[row : row + 1])[0, :, 0]
        told = information(gray, resized)
        w = told.mutual if method is MiCam else told.normalised * weights[row]
        expected = np.maximum(np.tensordot(w, a[row], 1), 0)
        # a value near the border of two bins may fall into either
        np.testing.assert_allclose(found.saliency_map[row], expected, rtol=1e-2, atol=1e-2 * expected.max())


def test_an_engine_without_activations_is_refused(toy):
    with pytest.raises(fc.InputError, match=r"export it with --head taps\.$"):
        MiCam(fc.Engine(toy.path)).explain(np.zeros((1, 3, *toy.size), np.float32))
