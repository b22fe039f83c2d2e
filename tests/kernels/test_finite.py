"""Rows with NaN or infinity in them get their status, and the others keep theirs."""

from __future__ import annotations

import numpy as np
import pytest

from finercam_rt import _core

FOUND = 3


def marked(device, values, status) -> np.ndarray:
    put = device.put(status)
    _core.mark_non_finite(device.put(values), put, threads=2, stream=0)
    return device.get(put)


@pytest.mark.parametrize("columns", [1, 3, 4, 1000, 4096, 3 * 67 * 65])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_place_is_looked_at(device, columns, value):
    rng = np.random.default_rng(columns)
    for place in {0, columns // 2, columns - 1}:
        values = rng.normal(size=(5, columns)).astype(np.float32)
        values[3, place] = value
        found = marked(device, values, np.array([[0], [1], [2], [1], [0]], np.uint8))
        assert found.ravel().tolist() == [0, 1, 2, FOUND, 0]


def test_large_and_subnormal_values_are_finite(device):
    values = np.array([[np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-45, 0]], np.float32)
    assert marked(device, values, np.array([[1]], np.uint8)).tolist() == [[1]]


def test_all_contrasts_of_an_image(device):
    values = np.zeros((3, 10), np.float32)
    values[1, 4] = np.nan
    assert marked(device, values, np.zeros((3, 2), np.uint8)).tolist() == [[0, 0], [FOUND, FOUND], [0, 0]]


def test_a_status_of_contrasts_one_behind_the_other():
    values = np.zeros((3, 10), np.float32)
    values[2, 9] = np.inf
    status = np.zeros((2, 4), np.uint8)
    _core.mark_non_finite(values, status.T[:3], threads=1, stream=0)
    assert status.tolist() == [[0, 0, FOUND, 0], [0, 0, FOUND, 0]]


def test_wrong_sizes():
    with pytest.raises(ValueError, match="expected a status of 3 rows, got 2"):
        _core.mark_non_finite(np.zeros((3, 4), np.float32), np.zeros((2, 1), np.uint8), threads=1, stream=0)
    with pytest.raises(ValueError, match="expected sizes of at least 1"):
        _core.mark_non_finite(np.zeros((3, 0), np.float32), np.zeros((3, 1), np.uint8), threads=1, stream=0)
