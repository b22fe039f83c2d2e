"""ROAD and its imputer against pytorch-grad-cam's, on what must come back exactly, and on the planted classifier."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name, road
from finercam_rt.evaluation.metrics.imputation import impute

from .conftest import SIZE, planted, planted_maps

COLUMNS = ["road", "road_morf", "road_lerf"]


@pytest.fixture
def hole():
    """A blob, a line and pixels at the border and in a corner."""
    removed = np.zeros((SIZE, SIZE), bool)
    removed[5:15, 6:18], removed[20], removed[9:12, 0], removed[-1, -1] = True, True, True, True
    return removed


def test_a_constant_comes_back(hole):
    image = np.full((3, SIZE, SIZE), 0.7, np.float32)
    np.testing.assert_allclose(impute(np.where(hole, 9, image).astype(np.float32), hole), image, atol=1e-6)


def test_a_linear_ramp_comes_back_inside_of_the_image():
    removed = np.zeros((SIZE, SIZE), bool)
    removed[2:20, 3:21] = True
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    image = np.stack([x, y, 2 * x - 3 * y]) / SIZE
    np.testing.assert_allclose(impute(np.where(removed, 9, image).astype(np.float32), removed), image, atol=1e-6)


def test_noise_is_added_to_what_is_removed_alone(hole):
    image, noise = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    difference = impute(image, hole, noise) - impute(image, hole)
    np.testing.assert_allclose(difference, noise * hole, atol=1e-6)
    assert np.array_equal(impute(image, np.zeros_like(hole), noise), image)


@pytest.mark.parametrize("shape", [(1, 7), (9, 2), (50, 37)])
def test_the_solution_is_the_mean_of_its_neighbours_everywhere(shape):
    """At any size and whichever pixels are removed."""
    rng = np.random.default_rng(0)
    image, removed = rng.normal(size=(2, *shape)).astype(np.float32), rng.random(shape) < 0.7
    removed[0, 0] = False
    found = np.pad(impute(image, removed).astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones(shape), 1)
    weights = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12

    def summed(values):
        height, width = shape
        shifted = [weights[y, x] * values[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return np.sum(shifted, axis=0)

    np.testing.assert_allclose((found[:, 1:-1, 1:-1] - summed(found) / summed(inside))[:, removed], 0, atol=1e-6)
    assert np.array_equal(found[:, 1:-1, 1:-1][:, ~removed].astype(np.float32), image[:, ~removed])


def test_nothing_left_is_refused():
    with pytest.raises(InputError, match="every pixel"):
        impute(np.zeros((3, 4, 4), np.float32), np.ones((4, 4), bool))


@pytest.mark.parametrize("missing", ["scipy", "scipy.sparse", "scipy.sparse.linalg"])
def test_without_scipy(hole, monkeypatch, missing):
    """Whichever part of it is asked for first."""
    for name in [name for name in sys.modules if name == missing or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match="ROAD needs SciPy; `pip install scipy`"):
        impute(np.zeros((3, SIZE, SIZE), np.float32), hole)
    whole = np.ones((3, SIZE, SIZE), np.float32)
    assert np.array_equal(impute(whole, np.zeros_like(hole)), whole), "for which nothing is solved"


def test_the_imputer_equals_the_public_one(hole):
    torch = pytest.importorskip("torch")
    public = pytest.importorskip("pytorch_grad_cam.metrics.road")
    image = np.random.default_rng(0).normal(size=(3, SIZE, SIZE)).astype(np.float32)
    kept = torch.from_numpy(1 - hole.astype(np.float32))
    expected = public.NoisyLinearImputer(noise=0)(torch.from_numpy(image), kept).numpy()
    np.testing.assert_allclose(impute(image, hole), expected, atol=1e-5)


def test_road_equals_the_public_one(make_batch, monkeypatch):
    """With the noise of both off, by the map's percentiles as it does; the softmax as its target."""
    torch = pytest.importorskip("torch")
    public = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    monkeypatch.setattr(road, "NOISE", 0.0)
    monkeypatch.setattr(public.NoisyLinearImputer.__init__, "__defaults__", (0.0, public.neighbors_weights))
    images = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    saliency = np.random.default_rng(1).random((2, SIZE, SIZE)).astype(np.float32)
    batch = make_batch(images, planted, target=np.array([0, 1]), forward_size=4)
    measured = metrics_by_name(COLUMNS, MetricOptions(ties="threshold"))[0].measure(batch, saliency)

    class Planted(torch.nn.Module):
        def forward(self, images):
            return torch.from_numpy(planted(images.numpy()))

    asked = [targets.ClassifierOutputSoftmaxTarget(k) for k in (0, 1)]
    for column, scorer in (
        ("road", public.ROADCombined()),
        ("road_morf", public.ROADMostRelevantFirstAverage()),
        ("road_lerf", public.ROADLeastRelevantFirstAverage()),
    ):
        expected = scorer(torch.from_numpy(images), saliency, asked, Planted())
        np.testing.assert_allclose(measured[column], expected, atol=1e-5, err_msg=column)
        assert np.abs(expected).max() > 1e-3
    by_rank = metrics_by_name(COLUMNS)[0].measure(batch, saliency)
    np.testing.assert_allclose(by_rank["road"], measured["road"], atol=5e-3)


def test_the_planted_part_beats_the_body_chance_and_the_inverted_map(planted_batch):
    metric = metrics_by_name(["road"])[0]
    truth, body, chance, inverted = (
        float(metric.measure(planted_batch, map_)["road"][0]) for map_ in planted_maps().values()
    )
    assert truth > body > chance > inverted
    assert truth > 0.1
    assert inverted < -0.1


def test_the_noise_is_the_images_own(make_batch):
    """The same for the same seed and place in the data set, whatever batch the image is in."""
    images = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    saliency = np.random.default_rng(1).random((3, SIZE, SIZE)).astype(np.float32)

    def scores(rows, seed=0):
        batch = make_batch(images[rows], planted, indices=np.array(rows))
        return metrics_by_name(["road"], MetricOptions(seed=seed))[0].measure(batch, saliency[rows])["road"]

    whole = scores([0, 1, 2])
    np.testing.assert_allclose(scores([2, 1]), whole[[2, 1]], rtol=1e-6)
    assert (np.abs(scores([0, 1, 2], seed=1) - whole) > 1e-7).all()


def test_undefined_maps_and_plateaus_that_leave_nothing(planted_batch):
    """By percentiles, a map that is zero nearly everywhere removes everything at the low ones."""
    sparse = np.zeros((1, SIZE, SIZE), np.float32)
    metric = metrics_by_name(COLUMNS, MetricOptions(ties="threshold"))[0]
    assert np.isnan([v[0] for v in metric.measure(planted_batch, sparse).values()]).all()
    sparse = sparse.copy()
    sparse[0, 4, 4] = 1
    found = metric.measure(planted_batch, sparse)
    assert np.isnan(found["road"][0])
    assert np.isnan(found["road_morf"][0])
    assert np.isfinite(metrics_by_name(["road"])[0].measure(planted_batch, sparse)["road"][0])
