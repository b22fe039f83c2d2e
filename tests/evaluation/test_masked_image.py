"""Average drop, increase in confidence, complexity, coherency and ADCC against pytorch-grad-cam and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Explained
from finercam_rt.evaluation.metrics import metrics_by_name
from finercam_rt.methods.objective import softmax

from .conftest import SIZE, planted, planted_maps

ALL = ["average_drop", "increase_in_confidence", "coherency", "adcc"]


@pytest.fixture
def images():
    bright = np.array([0.5, 0.5, 0, 0])[:, None, None, None]
    return (bright + np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE))).astype(np.float32)


@pytest.fixture
def saliency():
    return 3 * np.random.default_rng(1).random((4, SIZE, SIZE)).astype(np.float32)


def explain(images, target):
    """The brightness is the map."""
    return Explained(np.maximum(images.mean(axis=1), 0), planted(images), target)


def unit(saliency):
    low, high = saliency.min(axis=(1, 2), keepdims=True), saliency.max(axis=(1, 2), keepdims=True)
    return (saliency - low) / (high - low)


def test_drop_and_increase_equal_the_public_ones(make_batch, images, saliency):
    torch = pytest.importorskip("torch")
    public = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    batch = make_batch(images, planted, target=np.array([0, 1, 2, 3]))
    found = metrics_by_name(ALL[:2])[0].measure(batch, saliency)
    asked = [targets.ClassifierOutputSoftmaxTarget(k) for k in range(4)]

    class Planted(torch.nn.Module):
        def forward(self, images):
            return torch.from_numpy(planted(images.numpy()))

    inputs = torch.from_numpy(images), unit(saliency), asked, Planted()
    before = softmax(batch.logits)[np.arange(4), np.arange(4)]
    np.testing.assert_allclose(found["average_drop"] * before, public.DropInConfidence()(*inputs), atol=1e-6)
    increase = public.IncreaseInConfidence()(*inputs)
    np.testing.assert_allclose(found["increase_in_confidence"], increase)
    assert set(increase) == {0, 1}


def test_coherency_and_complexity_equal_the_public_ones(make_batch, images, saliency):
    torch = pytest.importorskip("torch")
    public = pytest.importorskip("pytorch_grad_cam.metrics.arcc", reason="this pytorch-grad-cam has no ARCC")
    batch = make_batch(images, planted).explained_by(explain)
    found = metrics_by_name(["coherency"])[0].measure(batch, saliency)["coherency"]

    def method(input_tensor, targets):
        return unit(explain(input_tensor.numpy(), None).saliency)

    cams = unit(saliency)
    expected = public.Coherency()(torch.from_numpy(images), cams.astype(np.float32), None, None, method)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3
    simple = metrics_by_name(["complexity"])[0].measure(batch, saliency)["complexity"]
    np.testing.assert_allclose(simple, public.Complexity()(cams), atol=1e-6)


def test_adcc_is_the_harmonic_mean_of_its_three_parts(make_batch, images, saliency):
    batch = make_batch(images, planted).explained_by(explain)
    found = metrics_by_name(ALL)[0].measure(batch, saliency)
    simple = metrics_by_name(["complexity"])[0].measure(batch, saliency)["complexity"]
    expected = 3 / (1 / found["coherency"] + 1 / (1 - simple) + 1 / (1 - found["average_drop"]))
    np.testing.assert_allclose(found["adcc"], expected, rtol=1e-12)
    for row in range(4):  # Pearson's correlation by NumPy
        again = explain(images[row][None] * unit(saliency)[row], None).saliency[0]
        correlation = np.corrcoef(saliency[row].ravel(), again.ravel())[0, 1]
        assert found["coherency"][row] == pytest.approx((1 + correlation) / 2, abs=1e-6)


def test_the_figures_do_not_depend_on_which_are_asked_for(make_batch, images, saliency):
    batch = make_batch(images, planted).explained_by(explain)
    whole = metrics_by_name(ALL)[0].measure(batch, saliency)
    for name in ALL:
        np.testing.assert_allclose(metrics_by_name([name])[0].measure(batch, saliency)[name], whole[name], atol=1e-6)


def test_one_pass_serves_all(make_batch, images, saliency):
    calls = []

    def forward(images):
        calls.append(len(images))
        return planted(images)

    batch = make_batch(images, forward).explained_by(explain)
    calls.clear()
    metrics_by_name(ALL)[0].measure(batch, saliency)
    assert calls == []
    metrics_by_name(ALL[:2])[0].measure(batch, saliency)
    assert calls == [4]


def test_the_planted_part_keeps_the_confidence(planted_batch):
    drop = {
        name: metrics_by_name(["average_drop"])[0].measure(planted_batch, map_)["average_drop"][0]
        for name, map_ in planted_maps().items()
    }
    assert drop["truth"] < drop["chance"]
    assert drop["truth"] < drop["inverted"]
    assert drop["inverted"] > 0.5


def test_a_part_that_is_zero_makes_adcc_zero_and_none_makes_it_undefined(make_batch, images, saliency):
    def opposite(masked, target):
        maps = np.stack([-saliency[0], np.ones((SIZE, SIZE)), saliency[2], saliency[3]]).astype(np.float32)
        return Explained(maps, planted(masked), target)

    batch = make_batch(images, planted).explained_by(opposite)
    found = metrics_by_name(["coherency", "adcc"])[0].measure(batch, saliency)
    assert found["coherency"][0] == pytest.approx(0, abs=1e-12)
    assert found["adcc"][0] == pytest.approx(0, abs=1e-9)
    assert np.isnan(found["coherency"]).tolist() == [False, True, False, False]
    assert np.isnan(found["adcc"]).tolist() == [False, True, False, False]
    assert found["coherency"][2] == pytest.approx(1)


def test_undefined_maps(make_batch, images, saliency):
    batch = make_batch(images, planted).explained_by(explain)
    saliency[0], saliency[1], saliency[2, 0, 0] = 0, 1, np.inf
    for name in (*ALL, "complexity"):
        found = metrics_by_name([name])[0].measure(batch, saliency)[name]
        assert np.isnan(found).tolist() == [True, True, True, False], name


def test_a_batch_without_a_method_is_refused(make_batch, images, saliency):
    with pytest.raises(InputError, match="explain"):
        metrics_by_name(["adcc"])[0].measure(make_batch(images, planted), saliency)
