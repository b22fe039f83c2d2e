"""`ops.cam` from channel weights, of several contrasts, and by all methods."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import InputError, ops
from finercam_rt.manifest import METHODS

from .test_cam import LAYOUTS, arranged, features, options

SIZES = [(1, 1, 1, 1), (3, 67, 5, 9), (1, 2048, 7, 7), (2, 300, 1, 1), (2, 65, 21, 67)]


def oracle(method: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The map of (N,C,h,w) in float64 by the published formulas, position by position where it is simpler."""
    a, g = a.astype(np.float64), g.astype(np.float64)
    if method == "layercam":
        terms = np.maximum(g, 0) * a
    elif method == "hirescam":
        terms = g * a
    elif method == "gradcamelementwise":
        terms = np.maximum(g * a, 0)
    else:
        sums = a.sum((2, 3), keepdims=True)
        if method == "gradcam":
            weights = g.mean((2, 3))
        elif method == "xgradcam":
            weights = (g * a / (sums + 1e-7)).sum((2, 3))
        elif method == "gradcam++":
            alpha = np.where(g == 0, 0, g**2 / (2 * g**2 + sums * g**3 + 1e-6))
            weights = (np.maximum(g, 0) * alpha).sum((2, 3))
        else:
            spread = a.std((2, 3), keepdims=True)
            weights = (a > a.mean((2, 3), keepdims=True) + 2 * spread).mean((2, 3))
        terms = weights[:, :, None, None] * a
    return np.maximum(terms.sum(1), 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_channel_weights_are_as_good_as_gradients(device, layout, size):
    """The same map, bit by bit or nearly, as from gradients that are the same at every position."""
    a, _ = features(size, "float32")
    weights = np.random.default_rng(2).standard_normal(size[:2]).astype(np.float32)
    prefix_tokens = 2 if layout == "tokens" else 0
    put = device.put(arranged(a, layout, prefix_tokens))
    found = ops.cam(put, channel_weights=device.put(weights), **options(layout, size, prefix_tokens))
    wanted = np.maximum(np.einsum("nc,nchw->nhw", weights, a.astype(np.float64)), 0)
    terms = np.einsum("nc,nchw->nhw", np.abs(weights), np.abs(a)).max()
    np.testing.assert_allclose(device.get(found), wanted, rtol=0, atol=5e-7 * device.tolerance * terms)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "method", ["gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "gradcamelementwise", "fem"]
)
@pytest.mark.parametrize("size", [(3, 17, 4, 6), (2, 72, 7, 7)])
def test_methods_and_contrasts_equal_the_formulas(device, method, layout, size):
    prefix_tokens = 1 if layout == "tokens" else 0
    a, first = features(size, "float32")
    if method in ("gradcam++", "xgradcam"):  # whose denominators nearly cancel where the sum of A is negative or small
        a = np.abs(a) + np.float32(0.1)
    second = features(size, "float32", seed=1)[1]
    given = {**options(layout, size, prefix_tokens), "method": method}
    put, *gradients = (arranged(x, layout, prefix_tokens) for x in (a, first, second))
    put, stacked = device.put(put), device.put(np.stack(gradients, 1))
    found = ops.cam(put, stacked, **given)
    out = device.put(np.empty((size[0], 2, *size[2:]), np.float32))
    assert ops.cam(put, stacked, out=out, **given) is out
    found = device.get(found)
    np.testing.assert_array_equal(device.get(out), found)
    for p, g in enumerate((first, second)):
        wanted = oracle(method, a, g)
        assert wanted.max() > 0
        for one in (found[:, p], device.get(ops.cam(put, device.put(gradients[p]), **given))):
            np.testing.assert_allclose(one, wanted, rtol=0, atol=2e-5 * device.tolerance * wanted.max())


def test_weights_of_several_contrasts_and_tensors():
    torch = pytest.importorskip("torch")
    a, g = features((2, 8, 3, 5), "float32")
    weights = np.stack([g.mean((2, 3)), -g.mean((2, 3))], 1)
    found = ops.cam(torch.from_numpy(a), channel_weights=torch.from_numpy(weights))
    assert isinstance(found, torch.Tensor)
    for p in range(2):
        one = ops.cam(torch.from_numpy(a), channel_weights=torch.from_numpy(weights[:, p].copy()))
        np.testing.assert_array_equal(found[:, p].numpy(), one.numpy())
        np.testing.assert_allclose(one.numpy(), oracle("gradcam", a, g if p == 0 else -g), rtol=0, atol=1e-5)
    smooth = [ops.cam(a, method="gradcam-eigen", **given) for given in ({"channel_weights": weights}, {"gradients": g})]
    np.testing.assert_allclose(smooth[0][:, 0], smooth[1], rtol=0, atol=1e-4 * smooth[1].max())


def test_values_that_are_not_finite_show():
    for where in (0, 1):
        a, g = features((2, 8, 3, 5), "float32")
        (a, g)[where][1, 0, 0, 0] = np.nan
        for method in METHODS:
            found = ops.cam(a, g, method=method)
            assert np.isfinite(found[0]).all(), method
            reads = where == 0 or METHODS[method] != "nothing"
            assert np.isfinite(found[1]).all() != reads, method


A = np.ones((2, 4, 3, 3), np.float32)
W = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "made from gradients or from channel weights; give one of them"),
        ({"gradients": A, "channel_weights": W}, "give one of them"),
        ({"channel_weights": W, "method": "layercam"}, "layercam reads the gradients at every position"),
        ({"channel_weights": W[:, :3]}, r"channel weights have shape \(2, 3\) and the activations"),
        ({"channel_weights": W.astype("f2")}, "channel weights are float16 and the activations float32"),
        ({"gradients": A[:, None, :, :2]}, r"gradients have shape \(2, 1, 4, 2, 3\)|have shape \(2, 1, 4, 3, 2\)"),
        ({"gradients": A[:, None], "out": np.empty((2, 3, 3), "f4")}, r"it must be \(2, 1, 3, 3\)"),
        ({"gradients": A, "method": "scorecam"}, "the method is 'scorecam'; use one of 'gradcam', 'gradcam"),
    ],
)
def test_a_mistake_is_one_sentence(given, sentence):
    with pytest.raises(InputError, match=sentence):
        ops.cam(A, **given)
