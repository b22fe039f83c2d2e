"""Energy in the mask and the pointing game on maps whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt.evaluation.metrics import metrics_by_name


@pytest.fixture
def box() -> np.ndarray:
    mask = np.zeros((1, 8, 10), bool)
    mask[0, 2:5, 3:7] = True
    return mask


def measure(make_batch, name, saliency, masks):
    batch = make_batch(np.zeros((len(saliency), 3, 8, 10), np.float32), masks=masks)
    return metrics_by_name([name])[0].measure(batch, saliency)[name]


@pytest.mark.parametrize("name", ["energy", "pointing_game"])
def test_the_truth_beats_a_shifted_and_an_inverted_map(make_batch, box, name):
    truth = box.astype(np.float32)
    maps = np.concatenate([truth, np.roll(truth, 5, axis=1), 1 - truth])
    scores = measure(make_batch, name, maps, np.repeat(box, 3, axis=0))
    assert scores.tolist() == [1, 0, 0]


def test_energy_is_the_share_of_the_sum(make_batch, box):
    maps = np.random.default_rng(0).random((1, 8, 10)).astype(np.float32)
    np.testing.assert_allclose(measure(make_batch, "energy", maps, box), maps[box].sum() / maps.sum(), rtol=1e-6)
    uniform = np.ones((1, 8, 10), np.float32)
    uniform[0, 0, 0] += 1e-3
    np.testing.assert_allclose(measure(make_batch, "energy", uniform, box), 12 / 80, rtol=1e-3)


@pytest.mark.parametrize("name", ["energy", "pointing_game"])
def test_undefined_without_a_mask_or_a_map(make_batch, box, name):
    maps = np.ones((4, 8, 10), np.float32)
    maps[1:, 0, 0] = [2, np.nan, 2]  # constant, fine, not finite, no mask
    masks = np.repeat(box, 4, axis=0)
    masks[3] = False
    assert np.isnan(measure(make_batch, name, maps, masks)).tolist() == [True, False, True, True]
    assert np.isnan(measure(make_batch, name, maps, None)).all()
    for row in (0, 2, 3):  # a batch of nothing else
        assert np.isnan(measure(make_batch, name, maps[row : row + 1], masks[row : row + 1])).all()


def test_equal_to_quantus(make_batch, box):
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed: pip install quantus")
    rng = np.random.default_rng(0)
    maps, masks = rng.random((12, 8, 10)).astype(np.float32), rng.random((12, 8, 10)) < 0.4
    batch = {"model": None, "x_batch": maps[:, None], "y_batch": np.zeros(12, int), "a_batch": maps[:, None]}
    for name, metric in (("energy", quantus.RelevanceMassAccuracy), ("pointing_game", quantus.PointingGame)):
        theirs = metric(abs=False, normalise=False, disable_warnings=True)(**batch, s_batch=masks[:, None])
        np.testing.assert_allclose(measure(make_batch, name, maps, masks), theirs, rtol=1e-6)
